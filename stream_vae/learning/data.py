"""Find the training stamps that `--data` names: the simulator, a .npy or .npz file, a folder of alerts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stream_vae.errors import ConfigError
from stream_vae.learning.alerts import stamps_from_alerts
from stream_vae.learning.progress import Reporter, silent
from stream_vae.learning.stampfile import stamps_from_file
from stream_vae.learning.stamps import CHUNK, Chunk, StampSource
from stream_vae.model.release import Preprocessing
from stream_vae.stages.stamp import normalise
from stream_vae.surveys import CUTOUTS


def open_source(
    data: str,
    preprocessing: Preprocessing,
    *,
    survey: str | None = None,
    simulated_stamps: int = 6000,
    seed: int = 1,
    report: Reporter = silent,
) -> StampSource:
    """Find the stamps that `--data` names.

    Parameters
    ----------
    data : str
        `sim`, a .npy or .npz file, or a folder of alert packets.
    preprocessing : Preprocessing
        How to prepare them.
    survey : str, optional
        Profile of a folder's alerts; absent: told from the packets.
    simulated_stamps : int
        How many to simulate for `sim`.
    seed : int
        Of the simulation.
    report : Reporter
        Told how far the simulation is.

    Returns
    -------
    StampSource
        Ready to be read.

    Raises
    ------
    ConfigError
        If there is nothing, or it has not the right form; says what to do.
    """
    if data == "sim":
        return simulated(simulated_stamps, preprocessing, seed=seed, report=report)
    path = Path(data)
    if path.is_dir():
        return stamps_from_alerts(path, survey, preprocessing)
    if not path.is_file():
        raise ConfigError(
            f"--data {data}: there is no such file or folder.",
            remedy="Give `sim`, a .npy or .npz file of stamps, or a folder of alert packets.",
        )
    return stamps_from_file(path, preprocessing)


def simulated(count: int, preprocessing: Preprocessing, *, seed: int, report: Reporter = silent) -> StampSource:
    """Simulate image pairs and cut stamps of what is detected in their differences.

    Parameters
    ----------
    count : int
        How many stamps.
    preprocessing : Preprocessing
        Its size and cutouts count.
    seed : int
        The same seed gives the same stamps.
    report : Reporter
        Told how far it is.

    Returns
    -------
    StampSource
        Labelled, grouped by image.

    Raises
    ------
    ConfigError
        If the stamps' side is even.
    """
    from stream_vae.sky import simulate_stamps

    if preprocessing.stamp_size % 2 == 0:
        raise ConfigError(
            f"Simulated stamps have a central pixel, so a side of {preprocessing.stamp_size} cannot be.",
            remedy="Set preprocessing.stamp_size to an odd number in the recipe.",
        )
    result = simulate_stamps(
        count,
        size=preprocessing.stamp_size,
        seed=seed,
        progress=lambda done, total: report("simulate", done, total),
    )
    raw = result.stamps[..., [CUTOUTS.index(name) for name in preprocessing.cutouts]]

    def chunks() -> Iterator[Chunk]:
        for i in range(0, len(raw), CHUNK):
            stamps, quality = normalise(raw[i : i + CHUNK], preprocessing)
            part = slice(i, i + CHUNK)
            yield Chunk(stamps, quality, result.labels[part].astype(np.int8), result.groups[part].astype(np.int64))

    return StampSource("simulation", f"sim, seed {seed}", len(raw), chunks, grouped=True)
