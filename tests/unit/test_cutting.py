"""The compiled way of a cutout gives what the careful one gives, or leaves the cutout to it."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_vae import inflate
from stream_vae.avro.binary import write_bytes
from stream_vae.cutout import Hdu, decompress, read_fits
from stream_vae.cutting import KnownHeaders, cut_each
from stream_vae.native import address, addresses

SIZE = 21
CAP = 1_000_000


def fits(side: int, *, seed: int = 0, width: int | None = None) -> bytes:
    """An image of noise, in which every second pixel's low bits are zero so that something can be packed."""
    random = np.random.default_rng(seed)
    image = random.normal(0, 30, (side, width or side)).astype(">f4")
    image[0, 0] = np.nan
    image.view(">u4")[::2] &= 0xFFFFF000
    cards = ("SIMPLE  = T", "BITPIX  = -32", "NAXIS   = 2", f"NAXIS1  = {width or side}", f"NAXIS2  = {side}", "END")
    header = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    data = image.tobytes()
    return header + data + bytes(-len(data) % 2880)


def known(*files: bytes) -> KnownHeaders:
    headers = {}
    for file in files:
        height, width = (int(file[80 * n + 9 : 80 * n + 80]) for n in (4, 3))
        size = height * width * 4
        headers[file[:2880]] = Hdu(2880, 2880 + size + -size % 2880, np.dtype(">f4"), height, width, 1.0, 0.0, None)
    return KnownHeaders(headers)


def cut(cutouts: list[bytes], headers: KnownHeaders, *, nominal: int = 0, inflates: bool = True):
    """Cut all of them from records that hold nothing else."""
    records = [write_bytes(each) for each in cutouts]
    raw = np.full((len(records), SIZE, SIZE, 2), 7, np.float32)
    done = cut_each(
        raw.view(np.uint32),
        1,
        np.arange(len(records)),
        addresses(records),
        np.array([(0, len(each)) for each in records], np.int64),
        headers.texts,
        headers.shapes,
        nominal,
        CAP,
        inflate.decompressor() if inflates else 0,
        np.empty(2**19, np.uint8),
    )
    assert (raw[..., 0] == 7).all()
    assert (raw[~done, ..., 1] == 7).all()
    return raw[..., 1], done


def careful(cutout: bytes) -> np.ndarray:
    image = read_fits(decompress(cutout, CAP))
    top, left = (length // 2 - SIZE // 2 for length in image.shape)
    return image[top : top + SIZE, left : left + SIZE].astype(np.float32)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((one.view(np.uint32) == other.view(np.uint32)).all())


def test_libdeflate_is_found():
    assert inflate.available()


WITHOUT = """
import importlib
whole = importlib.import_module
def without(name, *rest):
    if name == "deflate._deflate":
        raise ImportError(name)
    return whole(name, *rest)
importlib.import_module = without
from stream_vae import cutting, inflate
assert not inflate.available()
cutting.warm_up()
import test_cutting
plain = test_cutting.fits(63)
stamps, done = test_cutting.cut([plain, test_cutting.gzip.compress(plain)], test_cutting.known(plain), inflates=False)
assert done.tolist() == [True, False]
"""


def test_without_libdeflates_functions_plain_cutouts_are_cut_and_packed_ones_left():
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tests), str(tests.parents[1])))}
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("side", [47, 61, 63, 64, 81])
@pytest.mark.parametrize("level", [1, 6, 9])
def test_a_usual_cutout_is_what_the_careful_way_gives(side, level):
    plain = [fits(side, seed=seed) for seed in range(5)]
    packed = [gzip.compress(each, level, mtime=0) for each in plain]
    stamps, done = cut(packed + plain, known(plain[0]))
    assert done.all()
    for stamp, cutout in zip(stamps, packed + plain, strict=True):
        assert same(stamp, careful(cutout))


def test_a_file_name_in_gzips_header_is_stepped_over():
    plain = fits(63)
    packed = gzip.compress(plain, mtime=0)
    named = packed[:3] + b"\x08" + packed[4:10] + b"stamp.fits\0" + packed[10:]
    stamps, done = cut([named], known(plain))
    assert done.all()
    assert same(stamps[0], careful(named))


def test_headers_that_take_turns_are_told_apart():
    files = [fits(63), fits(47), fits(63), fits(81), fits(47), fits(63)]
    packed = [gzip.compress(each, mtime=0) for each in files]
    stamps, done = cut(files + packed, known(*files))
    assert done[: len(files)].all()
    for stamp, cutout, it_is in zip(stamps, files + packed, done, strict=True):
        assert not it_is or same(stamp, careful(cutout))


def test_stored_blocks_are_read_too():
    plain = fits(63)
    stored = gzip.compress(plain, 0, mtime=0)
    stamps, done = cut([stored], known(plain))
    assert done.all()
    assert same(stamps[0], careful(stored))


LEFT = {
    "an unknown header": (gzip.compress(fits(61), mtime=0), {}),
    "short of the nominal size": (gzip.compress(fits(63), mtime=0), {"nominal": 65}),
    "nothing to decompress with": (gzip.compress(fits(63), mtime=0), {"inflates": False}),
    "smaller than the stamp": (fits(15), {}),
    "not square": (fits(63, width=48), {}),
    "cut off in the middle": (gzip.compress(fits(63), mtime=0)[:-4000], {}),
    "cut off at the end": (gzip.compress(fits(63), mtime=0)[:-3], {}),
    "a checksum that does not fit": (
        gzip.compress(fits(63), mtime=0)[:-8] + b"junk" + (20160).to_bytes(4, "little"),
        {},
    ),
    "two members": (gzip.compress(fits(63)[:9000], mtime=0) + gzip.compress(fits(63)[9000:], mtime=0), {}),
    "junk behind": (gzip.compress(fits(63), mtime=0) + b"junk", {}),
    "a plain file that ends early": (fits(63)[:9000], {}),
    "empty": (b"", {}),
    "of two bytes": (b"\x1f\x8b", {}),
    "no FITS": (b"\xff\xd8\xff".ljust(4000), {}),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_is_not_usual_is_left(what):
    cutout, changes = LEFT[what]
    _, done = cut([cutout], known(fits(63), fits(15), fits(63, width=48)), **changes)
    assert not done.any()


def test_a_header_of_impossible_size_that_was_seen_does_no_harm():
    plain = fits(63)
    huge = {bytes(2880): Hdu(2880, 10**30, np.dtype(">f4"), 10**20, 10**9, 1.0, 0.0, None)}
    good = {plain[:2880]: Hdu(2880, 20160, np.dtype(">f4"), 63, 63, 1.0, 0.0, None)}
    stamps, done = cut([plain], KnownHeaders(huge | good))
    assert done.all()
    assert same(stamps[0], careful(plain))


def test_a_cutout_over_the_cap_is_left():
    large = fits(63)
    records = [write_bytes(each) for each in (large, gzip.compress(large, mtime=0))]
    headers = known(large)
    done = cut_each(
        np.zeros((2, SIZE, SIZE, 1), np.uint32),
        0,
        np.arange(2),
        addresses(records),
        np.array([(0, len(each)) for each in records], np.int64),
        headers.texts,
        headers.shapes,
        0,
        len(large) - 1,
        inflate.decompressor(),
        np.empty(2**19, np.uint8),
    )
    assert not done.any()


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 12_000), junk=st.binary(min_size=1, max_size=40))
def test_damage_is_left(at, junk):
    plain = fits(63)
    packed = bytearray(gzip.compress(plain, mtime=0))
    packed[at : at + len(junk)] = junk
    stamps, done = cut([bytes(packed)], known(plain))
    if done[0]:  # what was changed was nothing, or gzip's time and the like
        assert same(stamps[0], careful(bytes(packed)))


def test_addresses_are_those_of_the_bytes():
    values = [b"", b"a", bytes(range(256)) * 300]
    where = addresses(values)
    assert [int(each) for each in where[1:]] == [address(each) for each in values[1:]]
    assert address(memoryview(values[2])[5:]) == int(where[2]) + 5
    assert address(b"") == 0
