"""Ways to describe a stamp by a few numbers, all behind one face, so that reports compare like with like.

A fitted Keras model, a release through ONNX Runtime, PCA, a sparse dictionary and the raw pixels all are a
`Representation`; the last three are made in `stream_vae.learning.baselines`. What is measured of them is in
`stream_vae.learning.measures`.
"""

from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from stream_vae.backends.onnx import OnnxNetwork
from stream_vae.model.reconstruct import Reconstructor
from stream_vae.model.release import Release
from stream_vae.stages.encode import Encoder

Array = NDArray[np.float32]

BATCH = 2048
"""Stamps at a time: 3.6 MB of float32 at 21x21."""


class Representation(Protocol):
    """Turns stamps into codes and, if it can, codes into stamps."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def variance(self) -> float | None:
        """The decoder's sigma^2 a pixel; None where there is no likelihood."""
        ...

    def encode(self, stamps: Array) -> tuple[Array, Array | None]:
        """Describe stamps.

        Parameters
        ----------
        stamps : ndarray, shape (n, size, size, channels)
            Scaled.

        Returns
        -------
        z_mean : ndarray, shape (n, k)
            Codes.
        z_log_var : ndarray, shape (n, k), or None
            Their log-variances; None for a method that knows no uncertainty.
        """
        ...

    def decode(self, codes: Array) -> Array | None:
        """Reconstruct stamps.

        Parameters
        ----------
        codes : ndarray, shape (n, k)
            Codes, as `encode` gives them.

        Returns
        -------
        ndarray, shape (n, size, size, channels), or None
            None for a method that cannot.
        """
        ...


class ModelRepresentation:
    """A fitted Keras model.

    Parameters
    ----------
    name : str
        What reports call it.
    model : keras.Model
        A `CVAE` or `SCAE`.
    """

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self.model = model

    @property
    def variance(self) -> float | None:
        """The decoder's sigma^2."""
        return float(self.model.variance)

    def encode(self, stamps: Array) -> tuple[Array, Array | None]:
        """Encode with Keras.

        Parameters
        ----------
        stamps : ndarray, shape (n, size, size, channels)
            Scaled.

        Returns
        -------
        z_mean, z_log_var : ndarray, shape (n, latent_size)
            Posteriors.
        """
        from stream_vae.learning.fit import encode

        return encode(self.model, stamps)

    def decode(self, codes: Array) -> Array | None:
        """Decode with Keras.

        Parameters
        ----------
        codes : ndarray, shape (n, latent_size)
            Codes.

        Returns
        -------
        ndarray, shape (n, size, size, channels)
            Stamps.
        """
        from stream_vae.learning.fit import decode

        return decode(self.model, codes)


class ReleaseRepresentation:
    """A release through ONNX Runtime: no Keras needed.

    Parameters
    ----------
    release : Release
        Verified.
    threads : int
        ONNX Runtime threads of one call.

    Raises
    ------
    ConfigError
        If its graphs do not run here.
    """

    def __init__(self, release: Release, *, threads: int = 1) -> None:
        self.name = release.id
        self.release = release
        self._encoder = Encoder(release, OnnxNetwork(release, threads=threads))
        self._decoder = Reconstructor(release)

    @property
    def variance(self) -> float | None:
        """The decoder's sigma^2 that the card states, None if it does not."""
        try:
            return float(self.release.card.metrics["reconstruction"]["decoder_variance"])
        except (KeyError, TypeError, ValueError):
            return None

    def encode(self, stamps: Array) -> tuple[Array, Array | None]:
        """Encode with ONNX Runtime.

        Parameters
        ----------
        stamps : ndarray, shape (n, size, size, channels)
            Scaled as the release's card says.

        Returns
        -------
        z_mean, z_log_var : ndarray, shape (n, latent_size)
            Posteriors.
        """
        parts = [self._encoder.run(stamps[i : i + BATCH]) for i in range(0, max(1, len(stamps)), BATCH)]
        return np.concatenate([part.z_mean for part in parts]), np.concatenate([part.z_log_var for part in parts])

    def decode(self, codes: Array) -> Array | None:
        """Decode with ONNX Runtime.

        Parameters
        ----------
        codes : ndarray, shape (n, latent_size)
            Codes.

        Returns
        -------
        ndarray, shape (n, size, size, channels)
            Stamps.
        """
        parts = [self._decoder.reconstruct(codes[i : i + BATCH]) for i in range(0, max(1, len(codes)), BATCH)]
        return np.concatenate(parts)


def of_model(name: str, model: Any) -> Representation:
    """See a fitted Keras model as a representation.

    Parameters
    ----------
    name : str
        What reports call it.
    model : keras.Model
        A `CVAE` or `SCAE`.

    Returns
    -------
    Representation
        Mean, log-variance and reconstruction as the model has them.
    """
    return ModelRepresentation(name, model)


def of_release(release: Release, *, threads: int = 1) -> Representation:
    """See a release as a representation.

    Parameters
    ----------
    release : Release
        Verified.
    threads : int
        ONNX Runtime threads of one call.

    Returns
    -------
    Representation
        Named by the release's id.

    Raises
    ------
    ConfigError
        If its graphs do not run here.
    """
    return ReleaseRepresentation(release, threads=threads)


def sampled(z_mean: Array, z_log_var: Array | None, *, seed: int) -> Array:
    """Draw one code a stamp from its posterior.

    Parameters
    ----------
    z_mean : ndarray, shape (n, k)
        Means.
    z_log_var : ndarray, shape (n, k), or None
        Log-variances; None leaves the means as they are.
    seed : int
        Of the draw.

    Returns
    -------
    ndarray, shape (n, k)
        Codes.
    """
    if z_log_var is None:
        return z_mean
    noise = np.random.default_rng(seed).standard_normal(z_mean.shape, np.float32)
    return cast("Array", z_mean + np.exp(0.5 * z_log_var) * noise)
