"""gunzip of real ZTF cutouts by libdeflate, ISA-L, zlib and zlib-ng: all of a cutout, and as far as the stamp's end."""

import gzip
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from importlib import import_module
from types import ModuleType
from typing import Any

import deflate
import numpy as np
from stream_vae.cutout import read_fits
from stream_vae.inflate import decompressor, inflate
from stream_vae.native import addresses, compiled

from alternatives.real_alerts import packets_of, stages_for
from alternatives.rounds import Work, compare, interleaved

STAMP = 21
BLOCK = 2880
GZIP_BITS = 31
CHECKSUM = -8
"""Where the checksum begins, from a member's end."""
Gunzip = Callable[[bytes, int], bytes]
"""Of a member and the bytes that are wanted of it."""


def measure(options: Namespace) -> dict[str, list[dict[str, Any]]]:
    """Tables by title."""
    stages = stages_for("ztf")
    alerts = stages.decoder.decode(packets_of("ztf")).alerts
    cutouts = [bytes(cutout) for alert in alerts if (cutout := alert.cutout("difference"))]
    whole = [int.from_bytes(cutout[-4:], "little") for cutout in cutouts]
    parts = [_behind_stamp(cutout) for cutout in cutouts]
    share = sum(parts) / sum(whole)
    ways: dict[str, Work] = {"libdeflate in the worker's compiled loop": _compiled_loop(cutouts, whole)}
    ways |= {name: partial(_each, way, cutouts, whole) for name, way in _whole().items()}
    ways["libdeflate in a compiled loop, in part"] = _compiled_loop(cutouts, parts)
    ways |= {f"{name}, in part": partial(_each, way, cutouts, parts) for name, way in _in_part().items()}
    rows = compare(interleaved(ways, options.rounds), len(cutouts), "cutout")
    for row in rows:
        row["sees a wrong checksum"] = _sees_damage(row["way"], cutouts[0], whole[0], parts[0])
    title = f"Decompression: {len(cutouts)} real ZTF cutouts of {sum(map(len, cutouts)) // len(cutouts)} bytes"
    return {f"{title}; in part: as far as the stamp's last row, {100 * share:.0f}% of the bytes": rows}


def _behind_stamp(cutout: bytes) -> int:
    """Bytes up to the end of the stamp's last row, for a 4-byte image behind one header block."""
    height, width = read_fits(gzip.decompress(cutout)).shape
    return BLOCK + min(height // 2 - STAMP // 2 + STAMP, height) * width * 4


def _each(gunzip: Gunzip, cutouts: Iterable[bytes], sizes: Iterable[int]) -> None:
    for cutout, size in zip(cutouts, sizes, strict=True):
        gunzip(cutout, size)


def _compiled_loop(cutouts: Sequence[bytes], sizes: Sequence[int]) -> Work:
    where, lengths = addresses(cutouts), np.array(list(map(len, cutouts)), np.int64)
    wanted, out = np.array(sizes, np.int64), np.empty(max(sizes), np.uint8)
    return lambda: _inflate_each(decompressor(), where, lengths, wanted, out)


@compiled
def _inflate_each(handle: Any, where: Any, lengths: Any, sizes: Any, out: Any) -> int:
    good = 0
    for n in range(len(where)):
        good += inflate(handle, where[n], lengths[n], out[: sizes[n]])
    return good


def _whole() -> dict[str, Gunzip]:
    ways: dict[str, Gunzip] = {"libdeflate, package deflate": deflate.gzip_decompress}
    if isal := _library("isal.igzip_lib"):
        ways["ISA-L, isal.igzip_lib"] = lambda member, size: isal.decompress(member, isal.DECOMP_GZIP, 15, size)
    for name, library in _like_zlib().items():
        ways[name] = lambda member, size, library=library: library.decompress(member, GZIP_BITS, size)
    return ways | {"gzip.decompress": lambda member, _: gzip.decompress(member)}


def _in_part() -> dict[str, Gunzip]:
    ways: dict[str, Gunzip] = {}
    if isal := _library("isal.igzip_lib"):
        ways["ISA-L, isal.igzip_lib"] = lambda member, size: isal.IgzipDecompressor(isal.DECOMP_GZIP).decompress(
            member, size
        )
    for name, library in _like_zlib().items():
        ways[name] = lambda member, size, library=library: library.decompressobj(GZIP_BITS).decompress(member, size)
    return ways


def _like_zlib() -> dict[str, ModuleType]:
    """Those that have zlib's own calls."""
    names = {"ISA-L, isal.isal_zlib": "isal.isal_zlib", "zlib-ng": "zlib_ng.zlib_ng", "zlib": "zlib"}
    return {name: library for name, module in names.items() if (library := _library(module))}


@cache
def _library(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:
        print(f"{name} is not installed: its rows are left out.")
        return None


def _sees_damage(name: str, cutout: bytes, whole: int, part: int) -> str:
    """Ask a way for a member whose checksum is wrong, and check that it reads the good one right."""
    damaged = bytearray(cutout)
    damaged[CHECKSUM] ^= 1
    if "compiled loop" in name:
        size = part if name.endswith("in part") else whole
        found = [_compiled_loop([member], [size])() for member in (cutout, bytes(damaged))]
        return "no" if found[0] == found[1] else "yes"
    partly = name.endswith(", in part")
    gunzip = _in_part()[name.removesuffix(", in part")] if partly else _whole()[name]
    size = part if partly else whole
    assert gunzip(cutout, size) == gzip.decompress(cutout)[:size]
    try:
        gunzip(bytes(damaged), size)
    except Exception:  # noqa: BLE001 - each library has its own
        return "yes"
    return "no"
