"""Simulated candidates: whole image pairs are made, subtracted and searched, and stamps cut round what is found."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import numpy.typing as npt
from scipy import fft

from stream_vae.sky.conditions import FADING, Conditions, draw_conditions
from stream_vae.sky.detection import Candidates, detect, is_ambiguous
from stream_vae.sky.differencing import Difference, subtract
from stream_vae.sky.exposure import expose_science, expose_template
from stream_vae.sky.likeness import Likeness
from stream_vae.sky.parallel import map_in_order
from stream_vae.sky.psf import Image
from stream_vae.sky.scene import Transients, draw_scene

REAL_KINDS = ("transient", "variable", "asteroid", "fading")
_OF_DETECTORS = ("cosmic_ray", "hot_pixel", "bad_column", "trail", "bleed", "edge")
BOGUS_KINDS = (*_OF_DETECTORS, "spike", "ghost", "dipole", "noise")

_FIELD_PX = 256
"""Side of the searched field. Small, so that some thousand stamps come from many different images."""

_TRANSIENTS_PER_FIELD = 18
"""That have brightened. With those that have faded and the caps below about 30 to 40% of the detections are real."""

MOST_FADING = 0.9
"""Nine that have faded for each that has brightened: the latter are as many as ever."""

_CAP_PER_KIND = {"dipole": 8, "noise": 5, "trail": 4, "bleed": 4, "edge": 4, "bad_column": 3, "spike": 3, "ghost": 2}
"""At most so many of a kind and sign are kept from one image, so that one bad registration does not fill the set."""


@dataclass(frozen=True)
class SimulatedStamps:
    """Stamps round detections, with what is known of them; the first axis of every array is the candidate.

    Parameters
    ----------
    stamps : ndarray of float32, (n, size, size, 3)
        Difference, science and template, in counts (ADU). NaN where there are no data.
    noise : ndarray of float32, (n, size, size, 3)
        The pipeline's noise map of each: what it takes one standard deviation of the pixel for. NaN where `stamps` is.
    labels : ndarray of int8, (n,)
        1 real, 0 bogus.
    groups : ndarray of int32, (n,)
        Number of the image pair: split by it, never across it.
    kinds : ndarray of str, (n,)
        One of `REAL_KINDS` or `BOGUS_KINDS`.
    snr : ndarray of float32, (n,)
        Signal to noise of the detected pixel, positive also where that is a negative peak.
    positive : ndarray of bool, (n,)
        False for a negative peak, where the template is the brighter one. Stamps are of science minus template all the
        same, as LSST's are; ZTF's are of template minus science there, so that their peaks are always positive.
    x, y : ndarray of float32, (n,)
        The detected pixel in its image.
    ra_deg, dec_deg : ndarray of float64, (n,)
        Its position on the sky, ICRS.
    mag : ndarray of float32, (n,)
        AB magnitude of the best-fitting profile's flux, of either sign; NaN where that sign is not the peak's.
    midpoint_mjd : ndarray of float64, (n,)
        Mid-exposure, TAI.
    """

    stamps: Image
    noise: Image
    labels: npt.NDArray[np.int8]
    groups: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.str_]
    snr: Image
    positive: npt.NDArray[np.bool_]
    x: Image
    y: Image
    ra_deg: npt.NDArray[np.float64]
    dec_deg: npt.NDArray[np.float64]
    mag: Image
    midpoint_mjd: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Field:
    """A subtracted image pair and what is known of it.

    Parameters
    ----------
    conditions : Conditions
        What it was taken under.
    transients : Transients
        What was injected.
    difference : Difference
        The images and their noise maps, in electrons.
    candidates : Candidates
        All that was detected, blends and the commonest artefacts included.
    """

    conditions: Conditions
    transients: Transients
    difference: Difference
    candidates: Candidates


def simulate_stamps(
    n: int,
    *,
    size: int = 21,
    seed: int = 0,
    real_fraction: float | None = None,
    fading: float | None = None,
    like: Likeness | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> SimulatedStamps:
    """Simulate image pairs until there are `n` stamps.

    Every image pair has its own random numbers, made from `seed` and the pair's number: a longer run begins
    with the stamps of a shorter one.

    Parameters
    ----------
    n : int
        Number of stamps.
    size : int
        Pixels along each side of a stamp, odd.
    seed : int
        Fixes everything.
    real_fraction : float, optional
        Share of real ones. By default what the detection gives, which is 30 to 40%.
    fading : float, optional
        Share of the injected sources that have faded, by default `conditions.FADING`. With it negative peaks are
        detected, bogus ones too; at 0 none are.
    like : Likeness, optional
        From `stream_vae.sky.match`: stamps like a user's own, rather than those of any instrument. Some ten times as
        slow, because it throws away what does not look alike.
    workers : int
        Processes to spread the image pairs over; the stamps are the same for any number. They are spawned, so that a
        script that asks for more than one needs ``if __name__ == "__main__":`` round what it does.
    progress : callable, optional
        Called with the number of stamps so far and `n` after every image pair.

    Returns
    -------
    SimulatedStamps
        Exactly `n`, image by image.

    Raises
    ------
    ValueError
        `n`, `size`, `real_fraction`, `fading` or `workers` make no sense, or `fading` is given with `like`.
    """
    if n < 1:
        raise ValueError(f"n must be positive, not {n}")
    parts: list[SimulatedStamps] = []
    done = 0
    for part in simulate_images(
        n, size=size, seed=seed, real_fraction=real_fraction, fading=fading, like=like, workers=workers
    ):
        parts.append(part)
        done += len(part)
        if progress is not None:
            progress(done, n)
    return _join(parts)


def simulate_images(
    n: int,
    *,
    size: int = 21,
    seed: int = 0,
    real_fraction: float | None = None,
    fading: float | None = None,
    like: Likeness | None = None,
    workers: int = 1,
) -> Iterator[SimulatedStamps]:
    """Simulate like `simulate_stamps`, and yield the stamps image by image, so that not all are in memory at once.

    Parameters
    ----------
    n : int
        Number of stamps in all.
    size : int
        Pixels along each side of a stamp, odd.
    seed : int
        Fixes everything.
    real_fraction : float, optional
        Share of real ones among the `n`.
    fading : float, optional
        Share of fading sources, as `simulate_stamps` has it.
    like : Likeness, optional
        What they have to be like, as `simulate_stamps` has it.
    workers : int
        Processes, as `simulate_stamps` has them.

    Yields
    ------
    SimulatedStamps
        Those of one image pair; there may be none.

    Raises
    ------
    ValueError
        `size`, `real_fraction`, `fading` or `workers` make no sense, or `fading` is given with `like`.
    """
    if size < 3 or size % 2 == 0:
        raise ValueError(f"size must be odd and at least 3, not {size}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    missing = _wanted(n, real_fraction)
    fading = _checked_fading(fading, like)
    pairs = map_in_order(partial(simulate_pair, seed, size, like, fading=fading), count(), workers)
    with closing(pairs):
        while n > 0:
            part = next(pairs)
            part = _take(part, _keep(part.labels, missing, n))
            yield part
            missing = missing - np.bincount(part.labels, minlength=2)
            n -= len(part)


def _checked_fading(fading: float | None, like: Likeness | None) -> float:
    if fading is None:
        return FADING
    if like is not None:
        raise ValueError("fading must be left out with like, which has its own")
    if not 0.0 <= fading <= MOST_FADING:
        raise ValueError(f"fading must be between 0 and {MOST_FADING}, not {fading}")
    return fading


def _wanted(n: int, real_fraction: float | None) -> npt.NDArray[np.int64]:
    """How many of bogus and real are wanted at most."""
    if real_fraction is None:
        return np.array([n, n])
    if not 0.0 <= real_fraction <= 1.0:
        raise ValueError(f"real_fraction must be between 0 and 1, not {real_fraction}")
    real = round(n * real_fraction)
    return np.array([n - real, real])


def _keep(labels: npt.NDArray[np.int8], missing: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.bool_]:
    """The first so many of each class, and of all."""
    keep = np.zeros(len(labels), np.bool_)
    for label in (0, 1):
        keep[np.flatnonzero(labels == label)[: missing[label]]] = True
    keep[np.flatnonzero(keep)[total:]] = False
    return keep


def simulate_pair(
    seed: int, size: int, like: Likeness | None, group: int, *, fading: float = FADING
) -> SimulatedStamps:
    """Simulate one image pair.

    Parameters
    ----------
    seed : int
        Fixes, with the pair's number, everything.
    size : int
        Pixels along each side of a stamp.
    like : Likeness or None
        What the stamps have to be like.
    group : int
        Number of the pair.
    fading : float
        Share of the injected sources that have faded; `like` has its own.

    Returns
    -------
    SimulatedStamps
        Those of the pair, in random order; there may be none.
    """
    rng = np.random.default_rng((seed, group))
    stamps = stamps_under(draw_pair_conditions(rng, like, fading), rng, size=size, group=group)
    return stamps if like is None else _take(stamps, like.passes(rng, stamps.stamps[..., 0]))


def stamps_under(conditions: Conditions, rng: np.random.Generator, *, size: int, group: int) -> SimulatedStamps:
    """Simulate one image pair under given conditions.

    Parameters
    ----------
    conditions : Conditions
        Of the pair.
    rng : numpy.random.Generator
        Sky, noise and artefacts come from it.
    size : int
        Pixels along each side of a stamp.
    group : int
        Number of the pair.

    Returns
    -------
    SimulatedStamps
        In random order; there may be none.
    """
    field = _expose_field(rng, conditions, size)
    candidates = _choose(rng, field.candidates)
    return _cut(rng, field.conditions, field.difference, candidates, size=size, group=group)


def simulate_field(
    seed: int, group: int, *, size: int = 21, like: Likeness | None = None, fading: float = FADING
) -> Field:
    """Simulate the image pair that the stamps of a group are cut from.

    Parameters
    ----------
    seed : int
        As for `simulate_stamps`.
    group : int
        Number of the pair.
    size : int
        Pixels along each side of those stamps: it decides how far from the border detections may be.
    like : Likeness, optional
        As for `simulate_stamps`.
    fading : float
        As for `simulate_stamps`; `like` has its own.

    Returns
    -------
    Field
        Images, what was injected, and all that was detected.
    """
    rng = np.random.default_rng((seed, group))
    return _expose_field(rng, draw_pair_conditions(rng, like, fading), size)


def _expose_field(rng: np.random.Generator, conditions: Conditions, size: int) -> Field:
    margin = size // 2 + 8  # what resampling and convolution spoil at the border stays outside every stamp
    side = fft.next_fast_len(_FIELD_PX + 2 * margin, real=True)
    scene = draw_scene(rng, conditions, side, _TRANSIENTS_PER_FIELD)
    science = expose_science(rng, conditions, scene)
    template = expose_template(rng, conditions, scene)
    difference = subtract(rng, conditions, science, template)
    return Field(conditions, scene.transients, difference, detect(conditions, difference, scene.transients, margin))


def draw_pair_conditions(rng: np.random.Generator, like: Likeness | None, fading: float = FADING) -> Conditions:
    """Draw the conditions of one pair: the first thing that its random numbers are used for.

    Parameters
    ----------
    rng : numpy.random.Generator
        The pair's.
    like : Likeness or None
        None: any instrument's.
    fading : float
        Share of the injected sources that have faded; `like` has its own.

    Returns
    -------
    Conditions
        Of the pair.
    """
    return draw_conditions(rng, fading) if like is None else like.draw(rng)


def _choose(rng: np.random.Generator, candidates: Candidates) -> Candidates:
    """In random order, without blends and with no more of each kind than the caps allow."""
    order = rng.permutation(len(candidates.row))
    order = order[~is_ambiguous(candidates.kind[order])]
    keep = np.ones(len(order), np.bool_)
    for kind, cap in _CAP_PER_KIND.items():
        for positive in (True, False):
            of_both = (candidates.kind[order] == kind) & (candidates.positive[order] == positive)
            keep[np.flatnonzero(of_both)[cap:]] = False
    order = order[keep]
    return Candidates(**{name: value[order] for name, value in vars(candidates).items()})


def _cut(
    rng: np.random.Generator,
    conditions: Conditions,
    difference: Difference,
    candidates: Candidates,
    *,
    size: int,
    group: int,
) -> SimulatedStamps:
    row, column = candidates.row, candidates.column
    flux = np.where(candidates.positive, candidates.flux, -candidates.flux)
    offset = np.arange(size) - size // 2
    pixels = (row[:, None, None] + offset[None, :, None], column[:, None, None] + offset[None, None, :])
    gain = np.float32(conditions.gain_e_adu)
    images = (difference.image, difference.science, difference.template)
    noises = (difference.noise, difference.science_noise, difference.template_noise)
    stamps = np.stack([image[pixels] for image in images], axis=-1) / gain
    noise = np.stack([image[pixels] for image in noises], axis=-1) / gain
    noise[np.isnan(stamps)] = np.nan
    ra_deg, dec_deg = _sky_position(rng, conditions, row, column, difference.image.shape[0])
    mag = np.full(len(row), np.nan, np.float32)
    mag[flux > 0] = conditions.zero_point_mag - 2.5 * np.log10(flux[flux > 0])
    return SimulatedStamps(
        stamps=np.asarray(stamps, dtype=np.float32),
        noise=np.asarray(noise, dtype=np.float32),
        labels=candidates.real.astype(np.int8),
        groups=np.full(len(row), group, np.int32),
        kinds=candidates.kind,
        snr=candidates.snr,
        positive=candidates.positive,
        x=column.astype(np.float32),
        y=row.astype(np.float32),
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        mag=mag,
        midpoint_mjd=np.full(len(row), rng.uniform(60_000.0, 64_000.0)),
    )


def _sky_position(
    rng: np.random.Generator,
    conditions: Conditions,
    row: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
    side: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Project pixels onto the sky (gnomonic) round a field centre that is drawn uniformly on the sphere."""
    ra0, dec0 = rng.uniform(0.0, 2.0 * np.pi), np.arcsin(rng.uniform(-1.0, 1.0))
    scale = np.deg2rad(conditions.pixel_scale_arcsec / 3600.0)
    xi, eta = -(column - side / 2) * scale, (row - side / 2) * scale  # right ascension grows to the left
    denominator = np.cos(dec0) - eta * np.sin(dec0)
    ra = ra0 + np.arctan2(xi, denominator)
    dec = np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(xi, denominator))
    return np.rad2deg(ra) % 360.0, np.rad2deg(dec)


def _take(part: SimulatedStamps, keep: npt.NDArray[np.bool_]) -> SimulatedStamps:
    return SimulatedStamps(**{name: value[keep] for name, value in vars(part).items()})


def _join(parts: list[SimulatedStamps]) -> SimulatedStamps:
    return SimulatedStamps(**{name: np.concatenate([vars(p)[name] for p in parts]) for name in vars(parts[0])})
