"""Encode any number of stamps to a file with a release, in bounded memory, without Keras."""

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.data import open_source
from stream_vae.learning.progress import reporter
from stream_vae.learning.stamps import StampSource
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore
from stream_vae.stages.encode import Encoder
from stream_vae.stages.score import Scorer
from stream_vae.stages.stamp import Stamps

Array = NDArray[np.float32]

EVALUATION_SEED = 900_001
"""Of simulated stamps that are encoded or evaluated: not a recipe's, or they would be those trained on."""


def encode_to_npz(
    store: ReleaseStore | str,
    release_id: str | None,
    data: str,
    out: Path,
    *,
    survey: str | None = None,
    simulated_stamps: int = 4000,
    progress: bool = True,
) -> int:
    """Write codes and scores of stamps to a .npz file.

    Parameters
    ----------
    store : ReleaseStore or str
        Where releases are.
    release_id : str or None
        Which one; None for the current.
    data : str
        `sim`, a .npy or .npz file of stamps, or a folder of alert packets.
    out : Path
        The file to write: `z_mean`, `z_log_var` (n, latent_size) and `real_score` (n,), float32, in input
        order, NaN where a stamp cannot be scored.
    survey : str, optional
        Profile of a folder's alerts; absent: told from the packets.
    simulated_stamps : int
        How many for `sim`.
    progress : bool
        Show it.

    Returns
    -------
    int
        How many stamps were encoded; rows of NaN do not count.

    Raises
    ------
    ConfigError
        If release, data or output are not usable; says what to do.
    """
    store = ReleaseStore(store) if isinstance(store, str) else store
    release = store.load(release_id)
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}.", remedy="Make it first.")
    with reporter(show=progress) as report, tempfile.TemporaryDirectory(prefix=".stream-vae-", dir=out.parent) as name:
        source = open_source(
            data,
            release.card.preprocessing,
            survey=survey,
            simulated_stamps=simulated_stamps,
            seed=EVALUATION_SEED,
            report=report,
        )
        if source.count == 0:
            raise ConfigError(f"{source.name} holds no stamps.", remedy="Give at least one.")
        # Columns grow on disk and not in memory, and the archive is put together from them at the end.
        size = release.card.latent_size
        shapes = {"z_mean": (source.count, size), "z_log_var": (source.count, size), "real_score": (source.count,)}
        paths = {column: Path(name) / f"{column}.npy" for column in shapes}
        files = {
            column: np.lib.format.open_memmap(paths[column], "w+", np.float32, shape)
            for column, shape in shapes.items()
        }
        at = encoded = 0
        for z_mean, z_log_var, real_score in encode_chunks(release, source):
            rows = slice(at, at + len(z_mean))
            files["z_mean"][rows], files["z_log_var"][rows], files["real_score"][rows] = z_mean, z_log_var, real_score
            at += len(z_mean)
            encoded += int(np.isfinite(z_mean[:, 0]).sum())
            report("encode", at, source.count)
        for column in files.values():
            column.flush()
        _write_npz(paths, Path(name) / "out.npz")
        shutil.move(Path(name) / "out.npz", out)
    return encoded


def encode_chunks(release: Release, source: StampSource) -> Iterator[tuple[Array, Array, Array]]:
    """Encode and score a source, a chunk at a time, as serving does.

    Parameters
    ----------
    release : Release
        Verified.
    source : StampSource
        Prepared for this release.

    Yields
    ------
    z_mean, z_log_var, real_score : ndarray
        (n, latent_size) twice and (n,); NaN where a stamp cannot be scored.
    """
    encoder, scorer = Encoder(release), Scorer(release)
    for chunk in source.chunks():
        codes = encoder.encode(Stamps(chunk.stamps, chunk.quality))[0]
        yield codes.z_mean, codes.z_log_var, scorer.score(codes).real_score


def _write_npz(paths: dict[str, Path], out: Path) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, path in paths.items():
            archive.write(path, f"{name}.npy")
