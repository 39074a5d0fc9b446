"""Stamps drawn from a reservoir, with all that is known of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stream_vae.alert import FloatArray
from stream_vae.errors import ConfigError
from stream_vae.model.release import Preprocessing


@dataclass(frozen=True, slots=True)
class Sample:
    """Stamps drawn from a reservoir, one row each.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled, float32 with the precision of float16.
    alert_ids : tuple of str
        No id twice.
    preprocessing : Preprocessing
        How they were prepared.
    labels : ndarray of int8, shape (n,)
        1 real, 0 bogus, -1 unknown: what holds where several labels speak of one alert.
    provenances : tuple of str
        Where that label comes from; empty where there is none.
    time_s : ndarray, shape (n,)
        When the alert was published, in seconds since 1970.
    novelty : ndarray, shape (n,)
        By the release that scored it; NaN where it could not tell.
    quality : ndarray of uint32, shape (n,)
        Bits of `stream_vae.quality.Quality`.
    bands : tuple of str
        The filter; empty where the alert has none.
    strata : tuple of str
        Those that each is in, of those that were drawn from, joined by ``+``: ``anchors+recent``.
    """

    stamps: FloatArray
    alert_ids: tuple[str, ...]
    preprocessing: Preprocessing
    labels: npt.NDArray[np.int8]
    provenances: tuple[str, ...]
    time_s: npt.NDArray[np.float64]
    novelty: FloatArray
    quality: npt.NDArray[np.uint32]
    bands: tuple[str, ...]
    strata: tuple[str, ...]

    def within(self, *strata: str) -> npt.NDArray[np.bool_]:
        """Tell which are in a stratum.

        Parameters
        ----------
        *strata : str
            Names.

        Returns
        -------
        ndarray of bool, shape (n,)
            True for those that are in any of these.
        """
        wanted = set(strata)
        return np.array([not wanted.isdisjoint(each.split("+")) for each in self.strata], np.bool_)

    def rows(self, chosen: npt.NDArray[np.bool_]) -> "Sample":
        """Choose rows.

        Parameters
        ----------
        chosen : ndarray of bool, shape (n,)
            Which.

        Returns
        -------
        Sample
            Of these, in the same order.
        """
        at = np.flatnonzero(chosen)

        def some(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[row] for row in at)

        return Sample(
            self.stamps[at],
            some(self.alert_ids),
            self.preprocessing,
            self.labels[at],
            some(self.provenances),
            self.time_s[at],
            self.novelty[at],
            self.quality[at],
            some(self.bands),
            some(self.strata),
        )

    @classmethod
    def load(cls, path: Path, preprocessing: Preprocessing) -> "Sample":
        """Read what `save` wrote.

        Parameters
        ----------
        path : Path
            The .npz.
        preprocessing : Preprocessing
            How the stamps were prepared, which the file does not say.

        Returns
        -------
        Sample
            The same.

        Raises
        ------
        OSError, ValueError, KeyError, zipfile.BadZipFile
            If it is no such file.
        """
        # Opened here: numpy leaves a file open that is no archive.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            numbers: dict[str, Any] = {name: file[name] for name in _NUMBERS}
            texts: dict[str, Any] = {name: tuple(file[name].tolist()) for name in _TEXTS}
        return cls(preprocessing=preprocessing, **numbers, **texts)

    def save(self, path: Path) -> None:
        """Write a file that ``--data`` takes.

        Parameters
        ----------
        path : Path
            The .npz: `stamps`, `labels` and `alert_ids`, and the other columns by their names.

        Raises
        ------
        ConfigError
            If it cannot be written.
        """
        columns: dict[str, Any] = {name: getattr(self, name) for name in _NUMBERS}
        columns |= {name: np.array(getattr(self, name), np.str_) for name in _TEXTS}
        try:
            with path.open("wb") as file:
                np.savez(file, **columns)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.", remedy="Name another file.") from error


_NUMBERS = ("stamps", "labels", "time_s", "novelty", "quality")
_NUMBERS = ("stamps", "labels", "time_s", "novelty", "quality")
_TEXTS = ("alert_ids", "provenances", "bands", "strata")
