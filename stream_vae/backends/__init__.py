"""What runs a release's encoder: ONNX Runtime, Keras on TensorFlow or JAX, or a pool of actors that others share.

All of them are a `Network`, and say the same of the same stamps to 1e-4 of a code's unit. One deployment uses one of
them: a redelivered alert must get the same bytes again, and the last digits differ.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from stream_vae.alert import Codes, FloatArray
from stream_vae.model.release import Release
from stream_vae.settings import EncoderSettings


class Network(Protocol):
    """Turns stamps into codes."""

    @property
    def name(self) -> str:
        """What runs it, and on what: "ONNX Runtime 1.22 on the CPU"."""
        ...

    def run(self, stamps: FloatArray) -> Codes:
        """Encode stamps.

        Parameters
        ----------
        stamps : ndarray
            (n, size, size, channels) scaled float32, n at least 1.

        Returns
        -------
        Codes
            (n, latent size) float32 each; a stamp's do not depend on the others'.

        Raises
        ------
        StreamVaeError
            If what runs it cannot be reached or used now; whatever else is raised is the fault of a stamp.
        """
        ...


OpenNetwork = Callable[[Release], Network]
"""Makes a release's network; raises ConfigError where it cannot run as the settings ask."""


def network_of(section: EncoderSettings, release: Release) -> Network:
    """Make a release's network in this process.

    Parameters
    ----------
    section : EncoderSettings
        ``[encoder]``; its pool is not used here.
    release : Release
        Verified.

    Returns
    -------
    Network
        Loaded, not yet run.

    Raises
    ------
    ConfigError
        If the backend is not installed, the release has not what it needs, or a GPU was asked for and is not used.
    """
    if section.backend == "onnx":
        from stream_vae.backends.onnx import OnnxNetwork

        return OnnxNetwork(release, threads=section.threads, gpu=section.device == "gpu", rows=section.max_stamps)
    from stream_vae.backends.keras import KerasNetwork

    return KerasNetwork(release, section.backend, gpu=section.device == "gpu", rows=section.max_stamps)


def padded(stamps: FloatArray, rows: int) -> FloatArray:
    """Fill up with stamps of zeros.

    Kernels are chosen by the number of rows, and round differently; what always sees the same number gives a stamp the
    same code whatever batch it comes in.

    Parameters
    ----------
    stamps : ndarray
        (n, size, size, channels) float32.
    rows : int
        At least n.

    Returns
    -------
    ndarray
        (rows, size, size, channels) float32; the same object where there is nothing to fill.
    """
    if len(stamps) == rows:
        return stamps
    full = np.zeros((rows, *stamps.shape[1:]), np.float32)
    full[: len(stamps)] = stamps
    return full


def in_chunks(run: Callable[[FloatArray], tuple[FloatArray, FloatArray]], stamps: FloatArray, rows: int) -> Codes:
    """Run a network that always sees the same number of rows.

    Parameters
    ----------
    run : callable
        Gives z_mean and z_log_var, (rows, latent size) each, of (rows, size, size, channels).
    stamps : ndarray
        (n, size, size, channels) float32, n at least 1.
    rows : int
        How many it sees at a time.

    Returns
    -------
    Codes
        (n, latent size) each.
    """
    heads = [run(padded(stamps[i : i + rows], rows)) for i in range(0, len(stamps), rows)]
    z_mean, z_log_var = (np.concatenate([head[k] for head in heads])[: len(stamps)] for k in (0, 1))
    return Codes(z_mean, z_log_var)
