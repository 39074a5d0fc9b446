"""A folder of .npy and .npz files as one set of stamps, read one file after another."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from stream_vae.errors import ConfigError
from stream_vae.learning.data.files import walk
from stream_vae.learning.data.stampfile import check_file, stamps_from_file
from stream_vae.learning.data.stamps import Chunk, StampSource
from stream_vae.model.release import Preprocessing

SUFFIXES = (".npy", ".npz")
_LOOKED_AT = 200


def holds_shards(folder: Path) -> bool:
    """Tell a folder of array files from one of alerts by its first files.

    Parameters
    ----------
    folder : Path
        Any.

    Returns
    -------
    bool
        Whether a .npy or .npz file is among them.

    Raises
    ------
    ConfigError
        If they are Parquet files, which are not read.
    """
    suffixes = {file.suffix for file in islice(walk(folder), _LOOKED_AT)}
    if ".parquet" in suffixes:
        raise ConfigError(
            f"{folder} holds Parquet files, which cannot be memory-mapped and are not read.",
            remedy="Write each shard's stamps as .npy with numpy.save, or as .npz with labels and groups.",
        )
    return not suffixes.isdisjoint(SUFFIXES)


def stamps_from_shards(folder: Path, preprocessing: Preprocessing, *, noise: bool = False) -> StampSource:
    """Read stamps from the array files in a folder, in the order of their names.

    Parameters
    ----------
    folder : Path
        Holds .npy files, or .npz files with `stamps` and perhaps `labels`, `groups` and so on. Equal groups in two
        files are one group; a file without groups has each stamp by itself.
    preprocessing : Preprocessing
        What the stamps should be.
    noise : bool
        Whether to read noise maps.

    Returns
    -------
    StampSource
        All of them; every file's head has been checked.

    Raises
    ------
    ConfigError
        Names the file that is damaged, or whose stamps are of another shape or type than the first file's.
    """
    files = [file for file in walk(folder) if file.suffix in SUFFIXES]
    heads = [check_file(file, preprocessing) for file in files]
    for file, head in zip(files, heads, strict=True):
        if (head.shape[1:], head.dtype) != (heads[0].shape[1:], heads[0].dtype):
            raise ConfigError(
                f"{file} holds stamps of shape {head.shape[1:]} and type {head.dtype}, but {files[0].name} of "
                f"{heads[0].shape[1:]} and {heads[0].dtype}.",
                remedy="Give shards of one shape and type; take this one out or write it again.",
            )
        if head.grouped != heads[0].grouped:
            raise ConfigError(
                f"{file if head.grouped else files[0]} has groups and {files[0] if head.grouped else file} has none.",
                remedy="Give `groups` in every shard or in none.",
            )

    def chunks() -> Iterator[Chunk]:
        before = 0
        for file, head in zip(files, heads, strict=True):
            for chunk in stamps_from_file(file, preprocessing, noise=noise, values_of_groups=True).chunks():
                groups = chunk.groups if head.grouped else chunk.groups + np.int64(before)
                yield chunk._replace(groups=groups)
            before += head.shape[0]

    count = sum(head.shape[0] for head in heads)
    lineage = {"shards": len(files)}
    return StampSource("file", folder.name, count, chunks, grouped=heads[0].grouped, lineage=lineage)
