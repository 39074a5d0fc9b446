"""Latent codes to scores: real/bogus with its spread, distance to known transients, novelty."""

from zipfile import BadZipFile

import numba
import numpy as np

from stream_vae.alert import Codes, FloatArray, Scores
from stream_vae.backends.onnx import SMALLEST, open_session
from stream_vae.errors import ConfigError
from stream_vae.model.release import REFERENCE, SCORER, Release
from stream_vae.quality import Quality

NEIGHBOURS = 5
"""Reference transients whose mean distance is published: one alone is at the mercy of a mislabelled anchor."""


class Scorer:
    """What one release says about a latent code.

    Parameters
    ----------
    release : Release
        Verified.

    Raises
    ------
    ConfigError
        If the release's reference or scorer does not fit its latent size, or does not run.
    """

    def __init__(self, release: Release) -> None:
        path = release.path(SCORER)
        self._session = open_session(path) if path else None
        size = release.card.latent_size
        try:
            # Opened here: numpy leaves a file open that is no archive.
            with (release.folder / REFERENCE).open("rb") as file, np.load(file, allow_pickle=False) as reference:
                self._real = np.ascontiguousarray(reference["real_z_mean"], np.float32)
                real_log_var = reference.get("real_z_log_var")
                self._center = np.ascontiguousarray(reference["center"], np.float32)
                self._whitening = np.ascontiguousarray(reference["whitening"], np.float32)
                self._quantiles = np.ascontiguousarray(reference["novelty_quantiles"], np.float32)
        except (KeyError, ValueError, OSError, BadZipFile) as error:
            raise ConfigError(f"{REFERENCE} of {release.id} cannot be read: {error}.") from error
        shapes = (self._real.shape[1:], self._center.shape, self._whitening.shape)
        if shapes != ((size,), (size,), (size, size)) or len(self._quantiles) < 2:
            raise ConfigError(f"{REFERENCE} of {release.id} does not fit {size} latents.")
        self._anchors = self._real.T
        if real_log_var is not None:  # an older release has none: its distance stays the one between the means
            if real_log_var.shape != self._real.shape:
                raise ConfigError(f"{REFERENCE} of {release.id} has not one variance for each mean of its anchors.")
            deviation = np.exp(0.5 * real_log_var.astype(np.float64)).astype(np.float32)
            self._anchors = np.concatenate([self._real, deviation], axis=1).T
        self._anchors = np.ascontiguousarray(self._anchors)
        try:
            self.score(Codes(np.zeros((1, size), np.float32), np.zeros((1, size), np.float32)))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ConfigError(f"The scorer of {release.id} does not run: {error}.") from error

    @property
    def flag(self) -> np.uint32:
        """`Quality` bits that every alert of this release gets: NO_SCORER where it cannot tell real from bogus."""
        return np.uint32(Quality.NO_SCORER if self._session is None else 0)

    def score(self, codes: Codes) -> Scores:
        """Score a batch; rows without a code get NaN.

        Parameters
        ----------
        codes : Codes
            (n, latent size) each, NaN where not encoded.

        Returns
        -------
        Scores
            (n,) each.
        """
        rows = len(codes.z_mean)
        real_score, real_score_std = self._real_scores(codes)
        distance = np.full(rows, np.nan, np.float32)
        if len(self._real):
            distance = _nearest(codes.z_mean, codes.z_log_var, self._anchors, NEIGHBOURS)
        return Scores(real_score, real_score_std, distance, self._novelty(codes.z_mean))

    def _real_scores(self, codes: Codes) -> tuple[FloatArray, FloatArray]:
        rows = len(codes.z_mean)
        if self._session is None:
            nothing = np.full(rows, np.nan, np.float32)
            return nothing, nothing
        known = np.isfinite(codes.z_mean[:, 0])
        padded = max(rows, SMALLEST)
        z_mean = np.zeros((padded, codes.z_mean.shape[1]), np.float32)
        z_log_var = np.zeros_like(z_mean)
        z_mean[:rows][known] = codes.z_mean[known]
        z_log_var[:rows][known] = codes.z_log_var[known]
        inputs = {"z_mean": z_mean, "z_log_var": z_log_var}
        score, std = self._session.run(["real_score", "real_score_std"], inputs)
        return (
            np.where(known, score[:rows], np.float32(np.nan)),
            np.where(known, std[:rows], np.float32(np.nan)),
        )

    def _novelty(self, z_mean: FloatArray) -> FloatArray:
        distance = _mahalanobis(z_mean, self._center, self._whitening)
        shares = np.linspace(0.0, 1.0, len(self._quantiles))
        novelty: FloatArray = np.interp(distance, self._quantiles, shares).astype(np.float32)
        return novelty


# Plain loops and no matrix products: BLAS rounds by the shape of the batch, these do not.


@numba.njit(nogil=True, cache=True)
def _nearest(z_mean: FloatArray, z_log_var: FloatArray, anchors: FloatArray, neighbours: int) -> FloatArray:
    """Mean distance to the nearest anchors, (n,); anchors are (latent size, k) means, then as many deviations or none.

    The distance is the 2-Wasserstein one between the posteriors: the Euclidean one of means and standard deviations
    together (stream_vae.learning.search says why); without deviations it is that of the means.
    """
    rows, size = z_mean.shape
    units, count = anchors.shape
    k = min(neighbours, count)
    out = np.empty(rows, np.float32)
    nearest = np.empty(k, np.float32)
    squared = np.empty(count, np.float32)
    for n in range(rows):
        squared[:] = np.float32(0.0)
        for d in range(units):
            value = z_mean[n, d] if d < size else np.exp(np.float32(0.5) * z_log_var[n, d - size])
            # All anchors at once: LLVM makes vectors of it, and the order of each sum stays what it is.
            for a in range(count):
                squared[a] += (value - anchors[d, a]) ** 2
        nearest[:] = np.inf
        for a in range(count):
            total = squared[a]
            if not total < nearest[k - 1]:
                continue
            place = k - 1
            while place > 0 and nearest[place - 1] > total:
                nearest[place] = nearest[place - 1]
                place -= 1
            nearest[place] = total
        mean = np.float32(0.0)
        for i in range(k):
            mean += np.sqrt(nearest[i])
        out[n] = mean / k if np.isfinite(z_mean[n, 0]) else np.nan
    return out


@numba.njit(nogil=True, cache=True)
def _mahalanobis(z_mean: FloatArray, center: FloatArray, whitening: FloatArray) -> FloatArray:
    """Length of the whitened code, (n,)."""
    rows, size = z_mean.shape
    out = np.empty(rows, np.float32)
    for n in range(rows):
        total = np.float32(0.0)
        for i in range(size):
            component = np.float32(0.0)
            for j in range(size):
                component += whitening[i, j] * (z_mean[n, j] - center[j])
            total += component * component
        out[n] = np.sqrt(total)
    return out
