"""Stamps to latent codes, whatever runs the network; no bad stamp takes its batch along."""

import logging

import numpy as np
import numpy.typing as npt

from stream_vae.alert import Codes, FloatArray
from stream_vae.backends import Network
from stream_vae.backends.onnx import OnnxNetwork
from stream_vae.errors import ConfigError, StreamVaeError
from stream_vae.model.release import Release
from stream_vae.quality import Quality
from stream_vae.stages.stamp import Stamps

log = logging.getLogger(__name__)


class Encoder:
    """A release's encoder.

    Parameters
    ----------
    release : Release
        Verified.
    network : Network, optional
        Runs it; absent: ONNX Runtime in this thread.

    Raises
    ------
    ConfigError
        If the network does not take the stamps or give the codes that the card says.
    RetriableError
        If it cannot be reached now.
    """

    def __init__(self, release: Release, network: Network | None = None) -> None:
        self.latent_size = release.card.latent_size
        self.network = network or OnnxNetwork(release)
        self._try(release)

    def _try(self, release: Release) -> None:
        wanted = release.card.preprocessing
        shape = (1, wanted.stamp_size, wanted.stamp_size, len(wanted.cutouts))
        try:
            probe = self.run(np.zeros(shape, np.float32))
        except StreamVaeError:
            raise
        except Exception as error:
            raise ConfigError(f"The encoder of {release.id} does not run: {error}.") from error
        if probe.z_mean.shape != (1, self.latent_size) or probe.z_log_var.shape != (1, self.latent_size):
            raise ConfigError(
                f"The encoder of {release.id} gives {probe.z_mean.shape[1]} latents; its card says {self.latent_size}."
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
        return self.network.run(stamps) if len(stamps) else _empty(0, self.latent_size)

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

        Raises
        ------
        RetriableError
            If what runs it cannot be reached now.
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
        except StreamVaeError:
            raise  # no stamp's fault
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
            if len(rows) == 1:
                log.warning("the encoder fails on one alert: %s", error)
                poison.append(int(rows[0]))
                return
            for half in np.array_split(rows, 2):
                self._encode_rows(stamps, half, codes, poison)


def _empty(rows: int, latent_size: int) -> Codes:
    return Codes(np.full((rows, latent_size), np.nan, np.float32), np.full((rows, latent_size), np.nan, np.float32))
