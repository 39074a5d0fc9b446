"""What is on the sky in one simulated image: stars, galaxies, and the real transients injected among them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gamma

from stream_vae.sky.conditions import Conditions
from stream_vae.sky.psf import Image

Floats = npt.NDArray[np.float64]

STAR_SLOPE = -1.75
"""Counts of stars per flux: 10^(0.3 mag) stars per magnitude."""
TRANSIENT_SLOPE = -3.0 / 2.512
"""Counts of transients per flux, as the paper's survey saw them."""


@dataclass(frozen=True)
class Stars:
    """The stars, each array of shape (n,).

    Parameters
    ----------
    x, y : ndarray
        Positions in pixels.
    flux : ndarray
        Total fluxes in electrons.
    """

    x: Floats
    y: Floats
    flux: Floats


@dataclass(frozen=True)
class Galaxies:
    """Sersic galaxies, each array of shape (n,).

    Parameters
    ----------
    x, y : ndarray
        Centres in pixels.
    flux : ndarray
        Total fluxes in electrons.
    radius : ndarray
        Effective radii along the major axis, in pixels.
    index : ndarray
        Sersic's n.
    axis_ratio, angle : ndarray
        Minor over major axis, and the direction of the major axis in radians.
    """

    x: Floats
    y: Floats
    flux: Floats
    radius: Floats
    index: Floats
    axis_ratio: Floats
    angle: Floats


@dataclass(frozen=True)
class Transients:
    """Injected sources, each array of shape (n,): what is real in the difference.

    Parameters
    ----------
    x, y : ndarray
        Positions in pixels at mid-exposure.
    flux : ndarray
        Fluxes in electrons, beyond what the template has there: negative for what has faded, which only the template
        has.
    trail_x, trail_y : ndarray
        Motion during the exposure in pixels, short against the profile; zero unless `kind` is "asteroid".
    kind : ndarray of str
        "transient", "variable" (on a star), "asteroid" or "fading".
    """

    x: Floats
    y: Floats
    flux: Floats
    trail_x: Floats
    trail_y: Floats
    kind: npt.NDArray[np.str_]


@dataclass(frozen=True)
class Scene:
    """All of the sky in one square canvas.

    Parameters
    ----------
    side : int
        Pixels along each axis.
    stars : Stars
        They do not change, but for the variables among the transients.
    galaxies : Galaxies
        Hosts and others.
    transients : Transients
        What only one of the two images has.
    """

    side: int
    stars: Stars
    galaxies: Galaxies
    transients: Transients


def draw_scene(rng: np.random.Generator, conditions: Conditions, side: int, n_transients: int) -> Scene:
    """Draw the sky of one image.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where it comes from.
    conditions : Conditions
        They say what flux makes a given S/N.
    side : int
        Pixels along each axis.
    n_transients : int
        Number of injected sources that have brightened; those that have faded come on top.

    Returns
    -------
    Scene
        Stars, galaxies and transients.
    """
    stars = _draw_stars(rng, conditions, side)
    galaxies = _draw_galaxies(rng, conditions, side)
    x, y = draw_positions(rng, n_transients, side, stars, galaxies)
    transients = _draw_transients(rng, conditions, stars, x, y)
    n_faded = round(n_transients * conditions.fading / (1.0 - conditions.fading))
    if n_faded:
        x, y = draw_positions(rng, n_faded, side, stars, galaxies)
        transients = _joined(transients, _draw_faded(rng, conditions, stars, x, y))
    return Scene(side, stars, galaxies, transients)


def power_law(rng: np.random.Generator, n: int, low: float, high: float, slope: float) -> Floats:
    """Draw from a density proportional to ``value ** slope`` between two limits.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the numbers come from.
    n : int
        How many.
    low, high : float
        The limits.
    slope : float
        The exponent, other than -1.

    Returns
    -------
    ndarray, (n,)
        The values.
    """
    exponent = slope + 1.0
    start, end = low**exponent, high**exponent
    value: Floats = (start + rng.uniform(size=n) * (end - start)) ** (1.0 / exponent)
    return value


def draw_positions(
    rng: np.random.Generator, n: int, side: int, stars: Stars, galaxies: Galaxies
) -> tuple[Floats, Floats]:
    """Draw where something happens: on empty sky, in a galaxy, or near a star.

    Transients and the hits of single pixels both take their positions from here, so that the
    surroundings of a candidate tell nothing about its class.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the positions come from.
    n : int
        How many.
    side : int
        Pixels along each axis.
    stars, galaxies : Stars, Galaxies
        What is there to be near to.

    Returns
    -------
    tuple of ndarray, (n,)
        x and y in pixels.
    """
    x, y = rng.uniform(0, side, (2, n))
    place = rng.uniform(size=n)
    if len(galaxies.x):
        near = place < 0.4
        host = rng.integers(len(galaxies.x), size=n)
        spread = 0.6 * galaxies.radius[host]
        x = np.where(near, galaxies.x[host] + spread * rng.standard_normal(n), x)
        y = np.where(near, galaxies.y[host] + spread * rng.standard_normal(n), y)
    if len(stars.x):
        near = place > 0.9
        star = rng.integers(len(stars.x), size=n)
        x = np.where(near, stars.x[star] + 4.0 * rng.standard_normal(n), x)
        y = np.where(near, stars.y[star] + 4.0 * rng.standard_normal(n), y)
    return x, y


def _draw_stars(rng: np.random.Generator, conditions: Conditions, side: int) -> Stars:
    n = int(np.exp(rng.uniform(np.log(15), np.log(250))))
    # From stars lost in the noise to some that saturate by a factor of thirty.
    faintest = 3.0 * conditions.science_sky_noise_e / conditions.science_psf.peak()
    brightest = 30.0 * conditions.full_well_e / conditions.science_psf.peak()
    x, y = rng.uniform(0, side, (2, n))
    return Stars(x, y, power_law(rng, n, faintest, brightest, STAR_SLOPE))


def _draw_galaxies(rng: np.random.Generator, conditions: Conditions, side: int) -> Galaxies:
    n = int(rng.integers(4, 20))
    radius = np.exp(rng.uniform(np.log(1.5), np.log(14.0), n))
    axis_ratio = rng.uniform(0.25, 1.0, n)
    # Mean surface brightness inside the effective radius, in units of the sky noise.
    brightness = np.exp(rng.uniform(np.log(0.5), np.log(30.0), n)) * conditions.science_sky_noise_e
    x, y = rng.uniform(0, side, (2, n))
    return Galaxies(
        x=x,
        y=y,
        flux=2.0 * brightness * np.pi * radius**2 * axis_ratio,
        radius=radius,
        index=rng.choice([0.7, 1.0, 1.0, 2.0, 4.0], n) * rng.uniform(0.9, 1.1, n),
        axis_ratio=axis_ratio,
        angle=rng.uniform(0, np.pi, n),
    )


def _draw_transients(
    rng: np.random.Generator, conditions: Conditions, stars: Stars, x: Floats, y: Floats
) -> Transients:
    n = len(x)
    kind = np.full(n, "transient", dtype="<U12")
    pick = rng.uniform(size=n)
    variable = (pick < 0.08) & bool(len(stars.x))
    star = rng.integers(max(len(stars.x), 1), size=n)
    kind[variable] = "variable"
    x[variable], y[variable] = stars.x[star[variable]], stars.y[star[variable]]
    moving = pick > 0.85
    kind[moving] = "asteroid"
    # Trails of more than about a third of the profile's width would be streaks, which are bogus here.
    length = np.where(moving, rng.uniform(0.0, 0.35, n) * conditions.science_psf.fwhm_px, 0.0)
    angle = rng.uniform(0, 2 * np.pi, n)
    return Transients(x, y, _transient_flux(rng, conditions, n), length * np.cos(angle), length * np.sin(angle), kind)


def _draw_faded(rng: np.random.Generator, conditions: Conditions, stars: Stars, x: Floats, y: Floats) -> Transients:
    """Stars that were brighter, and transients that are gone; asteroids do not stay in a stack."""
    n = len(x)
    variable = (rng.uniform(size=n) < 0.3) & bool(len(stars.x))
    star = rng.integers(max(len(stars.x), 1), size=n)
    x[variable], y[variable] = stars.x[star[variable]], stars.y[star[variable]]
    still = np.zeros(n)
    return Transients(x, y, -_transient_flux(rng, conditions, n), still, still, np.full(n, "fading", dtype="<U12"))


def _joined(one: Transients, other: Transients) -> Transients:
    return Transients(**{name: np.concatenate([value, vars(other)[name]]) for name, value in vars(one).items()})


def _transient_flux(rng: np.random.Generator, conditions: Conditions, n: int) -> Floats:
    """S/N of 4 to 100 on empty sky, by the detection in use: noise decides which of those below 5 are found."""
    psf, noise = conditions.difference_psf, conditions.science_sky_noise_e
    if conditions.matched_filter:
        flux_at_unit_snr = noise / np.sqrt(np.sum(psf.image(64).astype(np.float64) ** 2))
    else:
        flux_at_unit_snr = noise / psf.peak()
    return power_law(rng, n, 4.0 * flux_at_unit_snr, 100.0 * flux_at_unit_snr, TRANSIENT_SLOPE)


def galaxy_image(galaxies: Galaxies, side: int, dx: Floats, dy: Floats) -> Image:
    """Draw the galaxies before any blurring.

    Parameters
    ----------
    galaxies : Galaxies
        What to draw.
    side : int
        Pixels along each axis.
    dx, dy : ndarray, (n,)
        Displacement of each galaxy in this exposure, in pixels.

    Returns
    -------
    ndarray of float32, (side, side)
        Electrons per pixel.

    References
    ----------
    Graham & Driver 2005, PASA 22, 118, equations 1 to 4.
    """
    image = np.zeros((side, side), np.float32)
    b = 2.0 * galaxies.index - 1.0 / 3.0 + 0.009876 / galaxies.index
    n = galaxies.index
    total = 2 * np.pi * n * galaxies.radius**2 * galaxies.axis_ratio * np.exp(b) * b ** (-2 * n) * gamma(2 * n)
    central = galaxies.flux / total * np.exp(b)  # intensity at the centre
    for g in range(len(galaxies.x)):
        _add_galaxy(image, galaxies, g, (galaxies.x[g] + dx[g], galaxies.y[g] + dy[g]), (central[g], b[g]))
    return image


def _add_galaxy(
    image: Image, galaxies: Galaxies, g: int, centre: tuple[float, float], shape: tuple[float, float]
) -> None:
    half = int(4.0 * galaxies.radius[g]) + 4
    (x, y), (central, b) = centre, shape
    rows = np.arange(max(round(y) - half, 0), min(round(y) + half + 1, image.shape[0]), dtype=np.float32)
    columns = np.arange(max(round(x) - half, 0), min(round(x) + half + 1, image.shape[1]), dtype=np.float32)
    if not len(rows) or not len(columns):
        return
    dx, dy = columns[None, :] - np.float32(x), rows[:, None] - np.float32(y)
    cos, sin = np.float32(np.cos(galaxies.angle[g])), np.float32(np.sin(galaxies.angle[g]))
    ratio = np.float32(galaxies.axis_ratio[g])
    # A third of a pixel of softening stands for the average over the central pixel of a cuspy profile.
    r2 = (dx * cos + dy * sin) ** 2 + ((dy * cos - dx * sin) / ratio) ** 2 + np.float32(0.1)
    profile = np.float32(central) * np.exp(
        -np.float32(b) * (r2 / np.float32(galaxies.radius[g] ** 2)) ** np.float32(0.5 / galaxies.index[g])
    )
    image[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] += profile.astype(np.float32)
