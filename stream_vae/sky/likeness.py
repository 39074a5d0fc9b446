"""Simulated stamps like a user's own: conditions near those that made such stamps, and a judge who lets stamps pass.

`stream_vae.sky.matching` finds both from unlabelled stamps.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stream_vae.sky.conditions import Conditions
from stream_vae.sky.psf import Image, Psf

Floats = npt.NDArray[np.float64]

_STEP = 0.05
"""Relative width of the kernel round the conditions that fitted: about as well as a hundred stamps know a profile."""


class Judge(Protocol):
    """A fitted classifier of scikit-learn's kind; class 1 are the user's stamps."""

    def predict_proba(self, statistics: Floats) -> Floats:
        """Give the probabilities of both classes.

        Parameters
        ----------
        statistics : ndarray, (n, statistics)
            Of each stamp.

        Returns
        -------
        ndarray, (n, 2)
            Simulated, and the user's.
        """
        ...


@dataclass(frozen=True)
class Likeness:
    """What simulated stamps have to be like.

    Parameters
    ----------
    conditions : tuple of Conditions
        Those whose stamps passed for the user's.
    weights : ndarray, (conditions,)
        How often each is to be drawn; the sum is one.
    judge : Judge
        Tells the user's stamps from simulated ones by `stamp_statistics`.
    ceiling : float
        Odds at which a stamp always passes; at lower odds in proportion.

    References
    ----------
    Beaumont, M. A., et al. 2009, Biometrika 96, 983 (conditions are drawn near those accepted before).
    Azadi, S., et al. 2019, Discriminator Rejection Sampling, ICLR, equation 4 (the odds are the ratio of densities).
    """

    conditions: tuple[Conditions, ...]
    weights: Floats
    judge: Judge
    ceiling: float

    def draw(self, rng: np.random.Generator) -> Conditions:
        """Draw conditions near one of those that fitted.

        Parameters
        ----------
        rng : numpy.random.Generator
            Where they come from.

        Returns
        -------
        Conditions
            For one image pair.
        """
        chosen = self.conditions[int(rng.choice(len(self.conditions), p=self.weights))]
        return _near(rng, chosen)

    def passes(self, rng: np.random.Generator, difference: Image) -> npt.NDArray[np.bool_]:
        """Let stamps pass by their odds of being the user's.

        Parameters
        ----------
        rng : numpy.random.Generator
            Decides where the odds are neither zero nor over the ceiling.
        difference : ndarray of float32, (n, size, size)
            Stamps of the difference image.

        Returns
        -------
        ndarray of bool, (n,)
            True for those that may stay.
        """
        if not len(difference):
            return np.zeros(0, np.bool_)
        return np.asarray(rng.uniform(size=len(difference)) * self.ceiling < odds(self.judge, difference))


def odds(judge: Judge, difference: Image) -> Floats:
    """Give the judge's odds that stamps are the user's.

    Parameters
    ----------
    judge : Judge
        Fitted on as many simulated stamps, by weight, as the user's.
    difference : ndarray of float32, (n, size, size)
        Stamps of the difference image.

    Returns
    -------
    ndarray, (n,)
        Ratio of the density of the user's stamps to that of simulated ones.
    """
    probability = np.clip(judge.predict_proba(stamp_statistics(difference))[:, 1], 1e-4, 1 - 1e-4)
    return np.asarray(probability / (1.0 - probability))


def stamp_statistics(difference: Image) -> Floats:
    """Give what stamps are compared by: rings, neighbours' products, noise, moments, and the centre.

    Parameters
    ----------
    difference : ndarray of float32, (n, size, size)
        Stamps of the difference image in any unit; NaN where masked.

    Returns
    -------
    ndarray, (n, statistics)
        Of stamps scaled as a model sees them, so that gain and exposure time do not matter.
    """
    flat = _scaled(difference)
    size = flat.shape[1]
    y, x = np.indices((size, size)) - size // 2
    ring = np.rint(np.hypot(x, y)).astype(int)
    columns = [f(flat[:, ring == r], axis=1) for r in range(size // 2 + 1) for f in (np.mean, np.std, np.max, np.min)]
    outer = np.abs(flat) * (ring > size // 3)
    columns += [np.mean(flat**k, axis=(1, 2)) for k in (1, 2, 3, 4)]
    columns += [np.median(outer[:, ring > size // 3], axis=1), np.mean(np.isnan(difference), axis=(1, 2))]
    for down, right in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (0, 3)):
        one, other = flat[:, : size - down, : size - right], flat[:, down:, right:]
        columns.append(np.mean(one * other, axis=(1, 2)))
        both = outer[:, : size - down, : size - right] * outer[:, down:, right:]
        sign = np.sign(one * other)
        columns.append(np.sum(both * sign, axis=(1, 2)) / np.maximum(np.sum(outer**2, axis=(1, 2)), 1e-9))
    middle = slice(max(size // 2 - 3, 0), size // 2 + 4)
    centre = flat[:, middle, middle].reshape(len(flat), -1)
    return np.concatenate([np.stack(columns, axis=1), centre], axis=1).astype(np.float64)


def _scaled(stamps: Image) -> Image:
    """Minus the median, over the largest absolute value; masked pixels are zero."""
    masked = np.isnan(stamps)
    known = np.where(masked.all(axis=(1, 2), keepdims=True), np.float32(0.0), stamps)
    centred = known - np.nanmedian(known, axis=(1, 2), keepdims=True)
    largest = np.nanmax(np.abs(centred), axis=(1, 2), keepdims=True)
    return np.nan_to_num(centred / np.where(largest > 0, largest, 1.0), nan=0.0).astype(np.float32)


def _near(rng: np.random.Generator, one: Conditions) -> Conditions:
    """Conditions whose every number is off by some percent; what is yes or no stays."""
    numbers = {field.name: _jitter(rng, getattr(one, field.name)) for field in fields(one)}
    near = replace(one, **numbers)
    half = np.clip([near.subpixel_x, near.subpixel_y], -0.5, 0.5)
    return replace(
        near,
        subpixel_x=float(half[0]),
        subpixel_y=float(half[1]),
        # A flux scale is one plus a small error, and the noise map is never too large.
        flux_scale=1.0 + _jitter(rng, one.flux_scale - 1.0),
        noise_underestimate=min(near.noise_underestimate, 1.0),
        fading=one.fading,
    )


def _jitter(rng: np.random.Generator, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value * float(np.exp(_STEP * rng.standard_normal()))
    if isinstance(value, tuple):
        return tuple(_jitter(rng, part) for part in value)
    assert isinstance(value, Psf), "conditions are numbers, choices and profiles"
    near = replace(value, **{field.name: _jitter(rng, getattr(value, field.name)) for field in fields(value)})
    return replace(near, axis_ratio=min(near.axis_ratio, 1.0), coma_weight=min(near.coma_weight, 0.5))
