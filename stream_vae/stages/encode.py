"""Stamps to latent codes through ONNX Runtime."""

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from stream_vae.alert import Codes, FloatArray
from stream_vae.errors import ConfigError
from stream_vae.model.release import ENCODER, Release
from stream_vae.quality import Quality
from stream_vae.stages.stamp import Stamps

log = logging.getLogger(__name__)

_SMALLEST = 16
"""Rows that the encoder always sees at least: with very few rows ONNX Runtime takes other kernels, which
round differently, and a redelivered alert must get the same bytes whatever batch it comes in."""


def open_session(path: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open an ONNX graph on the CPU.

    Parameters
    ----------
    path : Path
        The graph.
    threads : int
        Threads of one call.

    Returns
    -------
    onnxruntime.InferenceSession
        Ready to run.

    Raises
    ------
    ConfigError
        If the file is no graph that this ONNX Runtime can run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # warnings about constant folding are nobody's business
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle workers must not burn a core
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ConfigError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run {path.name}: {error}.",
            remedy="Export the release again with a lower opset, or update onnxruntime.",
        ) from error


class Encoder:
    """A release's encoder.

    Parameters
    ----------
    release : Release
        Verified.
    threads : int
        ONNX Runtime threads of one call.

    Raises
    ------
    ConfigError
        If the graph does not take the stamps or give the codes that the card says.
    """

    def __init__(self, release: Release, threads: int = 1) -> None:
        self.latent_size = release.card.latent_size
        wanted = release.card.preprocessing
        self._shape = (wanted.stamp_size, wanted.stamp_size, len(wanted.cutouts))
        self._session = open_session(release.folder / ENCODER, threads)
        self._input = self._session.get_inputs()[0].name
        self._check(release.id)

    def _check(self, release_id: str) -> None:
        shape = tuple(self._session.get_inputs()[0].shape[1:])
        if shape != self._shape:
            raise ConfigError(f"The encoder of {release_id} takes stamps {shape}; its card says {self._shape}.")
        try:
            probe = self.run(np.zeros((1, *self._shape), np.float32))
        except Exception as error:
            raise ConfigError(f"The encoder of {release_id} does not run: {error}.") from error
        if probe.z_mean.shape != (1, self.latent_size) or probe.z_log_var.shape != (1, self.latent_size):
            raise ConfigError(
                f"The encoder of {release_id} gives {probe.z_mean.shape[1]} latents; its card says {self.latent_size}."
            )

    def run(self, stamps: FloatArray) -> Codes:
        """Encode stamps that are all scoreable.

        Parameters
        ----------
        stamps : ndarray
            (n, size, size, channels) scaled float32.

        Returns
        -------
        Codes
            (n, latent size) each.
        """
        rows = len(stamps)
        if rows < _SMALLEST:
            padded = np.zeros((_SMALLEST, *self._shape), np.float32)
            padded[:rows] = stamps
            stamps = padded
        z_mean, z_log_var = self._session.run(["z_mean", "z_log_var"], {self._input: stamps})
        return Codes(z_mean[:rows], z_log_var[:rows])

    def encode(self, batch: Stamps) -> tuple[Codes, Stamps, list[int]]:
        """Encode a batch; unscoreable rows get NaN.

        Parameters
        ----------
        batch : Stamps
            One row an alert.

        Returns
        -------
        codes : Codes
            One row an alert.
        batch : Stamps
            With ENCODER_OUTPUT_NOT_FINITE added where the encoder gave NaN or infinity.
        poison : list of int
            Rows on which the encoder itself fails.
        """
        rows = np.flatnonzero(batch.scoreable)
        codes = _empty(len(batch.quality), self.latent_size)
        poison: list[int] = []
        if len(rows):
            self._encode_rows(batch.stamps, rows, codes, poison)
        finite = np.isfinite(codes.z_mean).all(axis=1) & np.isfinite(codes.z_log_var).all(axis=1)
        broken = batch.scoreable & ~finite
        broken[poison] = False  # these are dead letters, and no alert with a flag
        if not broken.any():
            return codes, batch, poison
        codes.z_mean[broken] = codes.z_log_var[broken] = np.nan
        flag = np.where(broken, np.uint32(Quality.ENCODER_OUTPUT_NOT_FINITE), np.uint32(0))
        return codes, batch._replace(quality=batch.quality | flag), poison

    def _encode_rows(self, stamps: FloatArray, rows: npt.NDArray[np.intp], codes: Codes, poison: list[int]) -> None:
        """Encode rows; where that fails, halve them until the alert that does it is alone."""
        try:
            whole = len(rows) == len(stamps)
            codes.z_mean[rows], codes.z_log_var[rows] = self.run(stamps if whole else stamps[rows])
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
            if len(rows) == 1:
                log.warning("the encoder fails on one alert: %s", error)
                poison.append(int(rows[0]))
                return
            for half in np.array_split(rows, 2):
                self._encode_rows(stamps, half, codes, poison)


def _empty(rows: int, latent_size: int) -> Codes:
    return Codes(np.full((rows, latent_size), np.nan, np.float32), np.full((rows, latent_size), np.nan, np.float32))
