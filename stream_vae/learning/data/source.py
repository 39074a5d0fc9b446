"""Find the stamps that `--data` names: the simulator, a .npy or .npz file, a folder of such files or of alerts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stream_vae.errors import ConfigError
from stream_vae.labels import read_labels
from stream_vae.learning.data.alerts import stamps_from_alerts
from stream_vae.learning.data.noise import scaled_noise
from stream_vae.learning.data.shards import holds_shards, stamps_from_shards
from stream_vae.learning.data.stampfile import stamps_from_file
from stream_vae.learning.data.stamps import CHUNK, Chunk, StampSource
from stream_vae.learning.progress import Reporter, silent
from stream_vae.model.release import Preprocessing
from stream_vae.stages.stamp import normalise
from stream_vae.surveys import CUTOUTS

PIECE = 20_000
"""Stamps that are simulated at a time: with three channels and their noise 210 MB."""


def open_source(
    data: str,
    preprocessing: Preprocessing,
    *,
    survey: str | None = None,
    simulated_stamps: int = 6000,
    fading: float = 0.0,
    seed: int = 1,
    labels: Path | None = None,
    noise: bool = False,
    report: Reporter = silent,
) -> StampSource:
    """Find the stamps that `--data` names.

    Parameters
    ----------
    data : str
        `sim`, a .npy or .npz file, a folder of such files, or a folder of alert packets.
    preprocessing : Preprocessing
        How to prepare them.
    survey : str, optional
        Profile of a folder's alerts; absent: told from the packets.
    simulated_stamps : int
        How many to simulate for `sim`.
    fading : float
        Share of fading sources among them, as `stream_vae.sky.simulate_stamps` has it.
    seed : int
        Of the simulation.
    labels : Path, optional
        Table of labels by alert id, for a folder of alerts.
    noise : bool
        Whether to read noise maps, too.
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
    path = Path(data)
    if labels is not None and (data == "sim" or not path.is_dir() or holds_shards(path)):
        raise ConfigError(
            f"--labels {labels} names alerts, and --data {data} has none.",
            remedy="Give a folder of alert packets, or put an array `labels` beside `stamps` in the .npz.",
        )
    if data == "sim":
        return simulated(simulated_stamps, preprocessing, seed=seed, fading=fading, report=report)
    if path.is_dir():
        if holds_shards(path):
            return stamps_from_shards(path, preprocessing, noise=noise)
        table = None if labels is None else read_labels(labels)
        return stamps_from_alerts(path, survey, preprocessing, labels=table, noise=noise)
    if not path.is_file():
        raise ConfigError(
            f"--data {data}: there is no such file or folder.",
            remedy="Give `sim`, a .npy or .npz file of stamps, or a folder of such files or of alert packets.",
        )
    return stamps_from_file(path, preprocessing, noise=noise)


def simulated(
    count: int, preprocessing: Preprocessing, *, seed: int, fading: float = 0.0, report: Reporter = silent
) -> StampSource:
    """Simulate image pairs and cut stamps of what is detected in their differences.

    Parameters
    ----------
    count : int
        How many stamps.
    preprocessing : Preprocessing
        Its size and cutouts count.
    seed : int
        The same seed gives the same stamps.
    fading : float
        Share of fading sources, as `stream_vae.sky.simulate_stamps` has it.
    report : Reporter
        Told how far it is.

    Returns
    -------
    StampSource
        Labelled, grouped by image, with noise maps, kinds and signal to noise. What is over 20,000 stamps is simulated
        as it is read, and anew for each reading.

    Raises
    ------
    ConfigError
        If the stamps' side is even.
    """
    from stream_vae.sky import SimulatedStamps, simulate_stamps

    if preprocessing.stamp_size % 2 == 0:
        raise ConfigError(
            f"Simulated stamps have a central pixel, so a side of {preprocessing.stamp_size} cannot be.",
            remedy="Set preprocessing.stamp_size to an odd number in the recipe.",
        )
    seeds = [seed, *(seed + 1_000_003 * piece for piece in range(1, -(-count // PIECE)))]
    channels = [CUTOUTS.index(name) for name in preprocessing.cutouts]

    def piece(number: int) -> SimulatedStamps:
        before = number * PIECE
        return simulate_stamps(
            min(PIECE, count - before),
            size=preprocessing.stamp_size,
            seed=seeds[number],
            fading=fading,
            progress=lambda done, _: report("simulate", before + done, count),
        )

    first = piece(0)

    def chunks() -> Iterator[Chunk]:
        for number in range(len(seeds)):
            result = first if number == 0 else piece(number)
            raw, noise = result.stamps[..., channels], result.noise[..., channels]
            groups = result.groups.astype(np.int64) + (number << 32)
            for i in range(0, len(raw), CHUNK):
                part = slice(i, i + CHUNK)
                stamps, quality = normalise(raw[part], preprocessing)
                scaled = scaled_noise(raw[part], stamps, noise[part])
                labels = result.labels[part].astype(np.int8)
                yield Chunk(stamps, quality, labels, groups[part], scaled, result.kinds[part], result.snr[part])

    return StampSource("simulation", f"sim, seed {seed}", count, chunks, grouped=True)
