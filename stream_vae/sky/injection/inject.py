"""Point sources injected into a user's own images: positives as the paper made them, among the image's own detections.

The sources go into a difference image, or into the science image of a pair that is then subtracted here; the result
is searched at 5 sigma and stamps are cut round what is found. What was injected is real; a detection elsewhere is
unlabelled, since real transients may be among them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from stream_vae.cutout import crop_into
from stream_vae.errors import ConfigError
from stream_vae.sky.alard_lupton import Subtracted, subtract_pair
from stream_vae.sky.detection import THRESHOLD
from stream_vae.sky.injection.plan import Images, Plan, check_images
from stream_vae.sky.psf import Image, Psf, add_points
from stream_vae.sky.scene import TRANSIENT_SLOPE, power_law
from stream_vae.sky.stars import Stars, background, find_sources, isolated_stars, measure_psf, noise_of

SEPARATION_PX = 4
"""Of two detections as close as this only the more significant one is kept."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Injected(NamedTuple):
    """What one round in one field gave."""

    stamps: Image
    """(n, size, size, 3): difference, science, template; NaN beyond the border and where there is no such image."""
    noise: Image
    """(n, size, size), of the difference."""
    labels: npt.NDArray[np.int8]
    snr: Image
    """Signal to noise of the detected pixel."""
    x: Ints
    y: Ints
    true_x: Floats
    """Of all that was injected, found or not, with `true_y`, `true_flux`, `true_snr` and `found`."""
    true_y: Floats
    true_flux: Floats
    true_snr: Floats
    """Peak over the median noise of the difference."""
    found: npt.NDArray[np.bool_]
    psf: Psf
    """Of the injected sources."""


class _Field(NamedTuple):
    """A field made ready: backgrounds removed, profile and stars known."""

    images: Images
    psf: Psf
    science: Image | None
    template: Image | None
    noises: tuple[Image, Image] | None
    profiles: tuple[Psf, Psf] | None
    stars: Stars
    sources: Stars


def inject(images: Images, plan: Plan, rng: np.random.Generator) -> Iterator[Injected]:
    """Inject sources into a field, find what can be found, and cut stamps.

    Parameters
    ----------
    images : Images
        The field.
    plan : Plan
        How.
    rng : numpy.random.Generator
        Positions, fluxes and noise come from it.

    Yields
    ------
    Injected
        One a round; detections of the untouched image are in the first only.

    Raises
    ------
    ConfigError
        If images are missing, too small, of different shapes, blank, or without stars where they are needed.
    """
    check_images(images, plan)
    field = _prepare(images, plan)
    untouched = _difference(field, None, plan)
    # Fitted without what is injected, which is no part of the template: in a whole survey image it would weigh nothing.
    kernel = None if untouched.subtracted is None else untouched.subtracted.kernel
    noise = _sky_noise(untouched, images.name)
    own_x, own_y, _ = _detect(untouched)
    for at in range(plan.rounds):
        x, y = _positions(rng, field, untouched.image, plan, own_x, own_y)
        snr = power_law(rng, len(x), *plan.snr, TRANSIENT_SLOPE)
        flux = snr * noise / _profile_in_difference(field).peak()
        light = np.zeros(untouched.image.shape, np.float32)
        add_points(light, field.psf, x, y, flux, floor=0.02 * noise)
        seen = light if plan.gain_e_adu is None else _poisson(rng, light, plan.gain_e_adu)
        difference = _difference(field, seen, plan, kernel)
        yield _cut(field, difference, (x, y, flux, snr), (light, seen), plan, keep_own=at == 0)


def _prepare(images: Images, plan: Plan) -> _Field:
    """Measure what there is to measure, once for all rounds."""
    none = Stars(np.zeros(0, np.int64), np.zeros(0, np.int64))
    given = None if plan.fwhm_px is None else Psf(plan.fwhm_px, plan.beta)
    if images.science is None:
        if given is None:
            raise ConfigError(
                f"{images.name}: there is no science image to measure the profile in.",
                remedy="Give --science, or the profile's width with --fwhm.",
            )
        return _Field(images, given, None, None, None, None, none, none)
    science, noise = _flat(images.science, plan.gain_e_adu)
    sources, stars = find_sources(science, noise), isolated_stars(science, noise, plan.saturation)
    psf = given or measure_psf(science, noise, stars, name=f"{images.name}, science image")
    if images.difference is not None or images.template is None:
        return _Field(images, psf, None, None, None, None, stars, sources)
    template, template_noise = _flat(images.template, plan.gain_e_adu)
    template_stars = isolated_stars(template, template_noise)
    template_psf = measure_psf(template, template_noise, template_stars, name=f"{images.name}, template")
    noises, profiles = (noise, template_noise), (psf, template_psf)
    return _Field(images, psf, science, template, noises, profiles, stars, sources)


def _flat(image: Image, gain: float | None) -> tuple[Image, Image]:
    """An image without its background, and its noise with the sources' own."""
    above = (image - background(image)).astype(np.float32)
    noise = noise_of(image)
    if gain is not None:
        bright = np.where(above > 3.0 * noise, above, np.float32(0.0))
        noise = np.sqrt(noise**2 + bright / np.float32(gain)).astype(np.float32)
    return above, noise


class _Difference(NamedTuple):
    image: Image
    noise: Image
    subtracted: Subtracted | None


def _difference(field: _Field, light: Image | None, plan: Plan, kernel: Floats | None = None) -> _Difference:
    """The field's difference with more light in it."""
    extra = np.float32(0.0) if light is None else light
    spread = np.float32(0.0) if light is None or plan.gain_e_adu is None else light / np.float32(plan.gain_e_adu)
    if field.science is not None and field.template is not None and field.noises and field.profiles:
        noises = (np.sqrt(field.noises[0] ** 2 + np.maximum(spread, 0.0)).astype(np.float32), field.noises[1])
        made = subtract_pair(
            field.science + extra,
            field.template,
            noises,
            field.profiles,
            field.stars,
            kernel=kernel,
            name=field.images.name,
        )
        return _Difference(made.image, made.noise, made)
    given = np.asarray(field.images.difference, np.float32)
    noise = noise_of(given) if field.images.noise is None else field.images.noise
    noise = np.where(noise > 0.0, noise, np.float32(np.nan))  # what a pipeline writes where it knows nothing
    return _Difference(given + extra, np.sqrt(noise**2 + np.maximum(spread, 0.0)).astype(np.float32), None)


def _profile_in_difference(field: _Field) -> Psf:
    return field.psf if field.profiles is None else max(field.profiles, key=lambda psf: psf.fwhm_px)


def _sky_noise(difference: _Difference, name: str) -> float:
    good = difference.noise[np.isfinite(difference.noise) & np.isfinite(difference.image)]
    noise = float(np.median(good)) if len(good) else 0.0
    if not noise > 0.0:
        raise ConfigError(f"{name}: the difference has no noise.", remedy="Check the image; it may be blank.")
    return noise


def _poisson(rng: np.random.Generator, light: Image, gain: float) -> Image:
    return np.asarray(rng.poisson(np.maximum(light, 0.0) * gain) / gain, np.float32)


def _significance(difference: _Difference) -> Image:
    """S/N of each pixel by the noise map, scaled to the scatter that is there, as in `stream_vae.sky.detection`."""
    snr = difference.image / difference.noise
    good = snr[np.isfinite(snr)]
    scatter = 1.4826 * float(np.median(np.abs(good))) if len(good) else 1.0
    return np.where(np.isfinite(snr), snr / np.float32(max(scatter, 1e-3)), np.float32(0.0)).astype(np.float32)


def _detect(difference: _Difference) -> tuple[Ints, Ints, Image]:
    """Column, row and S/N of the most significant pixel of every region over 5 sigma, row by row."""
    significance = _significance(difference)
    regions, count = ndimage.label(significance > THRESHOLD, np.ones((3, 3)))
    if not count:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    at = np.array(ndimage.maximum_position(significance, regions, np.arange(1, count + 1)), np.int64)
    at = at[np.argsort(-significance[at[:, 0], at[:, 1]], kind="stable")]
    # Of each close pair the fainter one goes: two regions of one source that noise has parted.
    pairs = cKDTree(at).query_pairs(SEPARATION_PX, p=np.inf, output_type="ndarray")
    at = np.delete(at, pairs.max(axis=1), axis=0)
    at = at[np.lexsort((at[:, 1], at[:, 0]))]
    return at[:, 1], at[:, 0], significance[at[:, 0], at[:, 1]]


def _positions(
    rng: np.random.Generator, field: _Field, image: Image, plan: Plan, own_x: Ints, own_y: Ints
) -> tuple[Floats, Floats]:
    """Where to inject: on data, no two in one stamp."""
    height, width = image.shape
    offered = 20 * plan.per_image
    x, y = rng.uniform(0, width - 1, offered), rng.uniform(0, height - 1, offered)
    turned = rng.uniform(size=offered) < plan.near_sources
    if len(own_x) and len(field.sources.x):
        which, angle = rng.integers(len(own_x), size=offered), rng.uniform(0, 2 * np.pi, offered)
        nearest = _nearest(field.sources, own_x, own_y)[which]
        source_x, source_y = field.sources.x[nearest], field.sources.y[nearest]
        distance = np.hypot(own_x[which] - source_x, own_y[which] - source_y)
        x = np.where(turned, source_x + distance * np.cos(angle) + rng.uniform(-0.5, 0.5, offered), x)
        y = np.where(turned, source_y + distance * np.sin(angle) + rng.uniform(-0.5, 0.5, offered), y)
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    x, y = x[inside], y[inside]
    whole = np.isfinite(image[np.rint(y).astype(int), np.rint(x).astype(int)])
    return _spread(x[whole], y[whole], plan)


def _nearest(sources: Stars, x: Ints, y: Ints) -> Ints:
    nearest: Ints = cKDTree(np.stack([sources.x, sources.y], axis=-1)).query(np.stack([x, y], axis=-1))[1]
    return nearest


def _spread(x: Floats, y: Floats, plan: Plan) -> tuple[Floats, Floats]:
    """Keep those that are a stamp's side away from all before them."""
    kept: list[int] = []
    for i in range(len(x)):
        if all(max(abs(x[i] - x[j]), abs(y[i] - y[j])) > plan.size for j in kept):
            kept.append(i)
        if len(kept) == plan.per_image:
            break
    return x[kept], y[kept]


def _cut(
    field: _Field,
    difference: _Difference,
    truth: tuple[Floats, Floats, Floats, Floats],
    light: tuple[Image, Image],
    plan: Plan,
    *,
    keep_own: bool,
) -> Injected:
    """Detect, match with what was injected, and cut stamps; blends of both are left out."""
    true_x, true_y, true_flux, true_snr = truth
    x, y, snr = _detect(difference)
    expected = light[0] if difference.subtracted is None else difference.subtracted.as_in_difference(light[0])
    share = expected[y, x] / difference.image[y, x]
    apart = np.hypot(x[:, None] - true_x, y[:, None] - true_y)  # (detections, injected)
    # As in `stream_vae.sky.detection`: a centroid's error at 5 sigma plus half a pixel's diagonal.
    radius = 1.0 + 0.3 * _profile_in_difference(field).fwhm_px
    near = apart.min(axis=1, initial=np.inf) <= radius
    real, own = near & (share >= 0.5), share <= 0.15
    found = (
        np.isin(np.arange(len(true_x)), np.argmin(apart[real], axis=1)) if real.any() else np.zeros(len(true_x), bool)
    )
    keep = np.flatnonzero(real | (own & keep_own))
    layers = (difference.image, field.images.science, field.images.template, difference.noise)
    cut = np.full((len(keep), plan.size, plan.size, 4), np.nan, np.float32)
    for channel, layer in enumerate(layers):
        if layer is not None:
            shown = layer + light[1] if channel == 1 else layer
            for i, at in enumerate(keep.tolist()):
                crop_into(cut[i, :, :, channel], shown, int(y[at]), int(x[at]))
    return Injected(
        stamps=cut[..., :3],
        noise=cut[..., 3],
        labels=np.where(real[keep], 1, plan.other_label).astype(np.int8),
        snr=snr[keep],
        x=x[keep],
        y=y[keep],
        true_x=true_x,
        true_y=true_y,
        true_flux=true_flux,
        true_snr=true_snr,
        found=found,
        psf=field.psf,
    )
