"""Encode any number of stamps to a file with a release, in bounded memory, without Keras."""

import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.data.source import open_source
from stream_vae.learning.data.stamps import StampSource
from stream_vae.learning.progress import Reporter, reporter
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore
from stream_vae.stages.encode import Encoder
from stream_vae.stages.score import Scorer
from stream_vae.stages.stamp import Stamps

log = logging.getLogger(__name__)

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
    if out.suffix != ".npz" or out.is_dir():
        raise ConfigError(f"--out {out}: it is written as a .npz file.", remedy="Name a file with that suffix.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}.", remedy="Make it first.")
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"--out {out}: the folder {out.parent} is read-only.", remedy="Name another.")
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
        size = release.card.latent_size
        _check_room(out, source.count * (2 * size + 1) * 4)
        shapes = {"z_mean": (source.count, size), "z_log_var": (source.count, size), "real_score": (source.count,)}
        paths = {Path(name) / f"{column}.npy": shape for column, shape in shapes.items()}
        encoded = _write_columns(release, source, paths, out, report)
        if encoded == 0:
            raise ConfigError(
                f"None of the {source.count} stamps of {source.name} can be encoded: all are blank or mostly NaN.",
                remedy="Check what was cut out; give stamps with finite pixels that are not all alike.",
            )
        with _writing(out):
            _write_npz([*paths], Path(name) / "out.npz")
            shutil.move(Path(name) / "out.npz", out)
    if encoded < source.count:
        log.warning(
            "%d of %d stamps of %s are blank or mostly NaN: their rows are NaN.",
            source.count - encoded,
            source.count,
            source.name,
        )
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


def _write_columns(
    release: Release, source: StampSource, shapes: Mapping[Path, tuple[int, ...]], out: Path, report: Reporter
) -> int:
    """Write each column to a .npy file as it comes, never mapped nor held; give how many stamps have a code."""
    done = encoded = 0
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in shapes]
        for file, shape in zip(files, shapes.values(), strict=True):
            head = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, head)
        for columns in encode_chunks(release, source):
            with _writing(out):
                for file, column in zip(files, columns, strict=True):
                    file.write(np.ascontiguousarray(column, np.float32).data)
            done += len(columns[0])
            encoded += int(np.isfinite(columns[0][:, 0]).sum())
            report("encode", done, source.count)
    return encoded


def _check_room(out: Path, needed: int) -> None:
    """Refuse what the disk has no room for: the columns, and for a moment the file made from them too."""
    free = shutil.disk_usage(out.parent).free
    if 2 * needed > free:
        raise ConfigError(
            f"--out {out}: {2 * needed / 1e9:.1f} GB are needed there, and {free / 1e9:.1f} GB are free.",
            remedy="Name a file on a larger disk.",
        )


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be written: {error.strerror}.", remedy="Make room, or name another file."
        ) from error


def _write_npz(paths: Sequence[Path], out: Path) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for path in paths:
            archive.write(path, path.name)
