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
from stream_vae.cutout import CutoutError, decompress, read_fits
from stream_vae.cutting import SCRATCH_BYTES, cut_each
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


def cut(cutouts: list[bytes], *, nominal: int = 0, inflates: bool = True):
    """Cut all of them from records that hold nothing else."""
    records = [write_bytes(each) for each in cutouts]
    raw = np.full((len(records), SIZE, SIZE, 2), 7, np.float32)
    done = cut_each(
        raw.view(np.uint32),
        1,
        np.arange(len(records)),
        addresses(records),
        np.array([(0, len(each)) for each in records], np.int64),
        nominal,
        CAP,
        inflate.decompressor() if inflates else 0,
        np.empty(SCRATCH_BYTES, np.uint8),
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
stamps, done = test_cutting.cut([plain, test_cutting.gzip.compress(plain)], inflates=False)
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
    stamps, done = cut(packed + plain)
    assert done.all()
    for stamp, cutout in zip(stamps, packed + plain, strict=True):
        assert same(stamp, careful(cutout))


def test_a_file_name_in_gzips_header_is_stepped_over():
    plain = fits(63)
    packed = gzip.compress(plain, mtime=0)
    named = packed[:3] + b"\x08" + packed[4:10] + b"stamp.fits\0" + packed[10:]
    stamps, done = cut([named])
    assert done.all()
    assert same(stamps[0], careful(named))


def test_headers_that_take_turns_are_told_apart():
    files = [fits(63), fits(47), fits(63), fits(81), fits(47), fits(63)]
    packed = [gzip.compress(each, mtime=0) for each in files]
    stamps, done = cut(files + packed)
    assert done[: len(files)].all()
    for stamp, cutout, it_is in zip(stamps, files + packed, done, strict=True):
        assert not it_is or same(stamp, careful(cutout))


def test_stored_blocks_are_read_too():
    plain = fits(63)
    stored = gzip.compress(plain, 0, mtime=0)
    stamps, done = cut([stored])
    assert done.all()
    assert same(stamps[0], careful(stored))


LEFT = {
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
    _, done = cut([cutout], **changes)
    assert not done.any()


def test_a_cutout_over_the_cap_is_left():
    large = fits(63)
    records = [write_bytes(each) for each in (large, gzip.compress(large, mtime=0))]
    done = cut_each(
        np.zeros((2, SIZE, SIZE, 1), np.uint32),
        0,
        np.arange(2),
        addresses(records),
        np.array([(0, len(each)) for each in records], np.int64),
        0,
        len(large) - 1,
        inflate.decompressor(),
        np.empty(SCRATCH_BYTES, np.uint8),
    )
    assert not done.any()


IMAGE = np.random.default_rng(1).normal(0, 30, (63, 63)).astype(">f4").tobytes()
MUST = ("SIMPLE  =                    T", "BITPIX  =                  -32", "NAXIS   =                    2")
AXES = ("NAXIS1  =                   63 / columns", "NAXIS2  =63")


def with_cards(*cards: str) -> bytes:
    header = "".join(card.ljust(80) for card in cards).encode()
    return header + b" " * (-len(header) % 2880) + IMAGE + bytes(-len(IMAGE) % 2880)


HEADERS = {
    "as it should be": ((*MUST, *AXES, "END"), True),
    "of three blocks": ((*MUST, *AXES, *(f"CRVAL{n}  = 1.5" for n in range(80)), "END"), True),
    "with zeros in front": ((*MUST, "NAXIS1  = 0063", AXES[1], "END"), True),
    "with a wrong one of a pair first": ((*MUST, "NAXIS1  = 0", *AXES, "END"), True),
    "with END at a block's end": ((*MUST, *AXES, *["COMMENT"] * 30, "END"), True),
    "of nine blocks": ((*MUST, *AXES, *["COMMENT"] * 300, "END"), False),
    "with one axis twice": ((*MUST, *AXES, AXES[0], "END"), False),
    "scaled": ((*MUST, *AXES, "BSCALE  = 2.0", "END"), False),
    "with an offset": ((*MUST, *AXES, "BZERO   = 2.0", "END"), False),
    "with groups": ((*MUST, *AXES, "GCOUNT  = 2", "END"), False),
    "with parameters": ((*MUST, *AXES, "PCOUNT  = 2", "END"), False),
    "with a third axis": ((*MUST, *AXES, "NAXIS3  = 1", "END"), False),
    "of doubles": ((MUST[0], "BITPIX  = -64", MUST[2], *AXES, "END"), False),
    "of one axis": ((*MUST[:2], "NAXIS   = 1", *AXES, "END"), False),
    "with a fraction": ((*MUST, "NAXIS1  = 63.0", AXES[1], "END"), False),
    "with a word": ((*MUST, "NAXIS1  = many", AXES[1], "END"), False),
    "with two numbers": ((*MUST, "NAXIS1  = 63 63", AXES[1], "END"), False),
    "with a huge axis": ((*MUST, "NAXIS1  = 63000000000000000000000", AXES[1], "END"), False),
    "with a negative axis": ((*MUST, "NAXIS1  = -63", "NAXIS2  = -63", "END"), False),
    "without a number": ((*MUST, "NAXIS1  =", AXES[1], "END"), False),
    "without an axis": ((*MUST, AXES[0], "END"), False),
    "without END": ((*MUST, *AXES), False),
    "of a table": (("XTENSION= 'IMAGE'", *MUST[1:], *AXES, "END"), False),
}


@pytest.mark.parametrize("what", HEADERS)
def test_usual_headers_are_read_and_others_left(what):
    cards, usual = HEADERS[what]
    cutout = with_cards(*cards)
    stamps, done = cut([cutout])
    assert done.tolist() == [usual]
    assert not usual or same(stamps[0], careful(cutout))


def _kept_by_the_careful_way(cutout: bytes) -> np.ndarray | None:
    try:
        return careful(cutout)
    except CutoutError:
        return None


_CARDS = st.sampled_from([cards[n] for cards, _ in HEADERS.values() for n in range(1, len(cards))])


@settings(max_examples=300, deadline=None)
@given(cards=st.lists(_CARDS, min_size=1, max_size=12))
def test_whatever_header_is_read_says_the_same_to_the_careful_way(cards):
    cutout = with_cards(MUST[0], *cards, "END")
    stamps, done = cut([cutout])
    if done[0]:
        expected = _kept_by_the_careful_way(cutout)
        assert expected is not None
        assert same(stamps[0], expected)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 480), junk=st.text(" 0123456789=-/+ENDAXIS\t\n", min_size=1, max_size=12))
def test_a_header_with_damage_is_left_or_read_alike(at, junk):
    plain = bytearray(with_cards(*MUST, *AXES, "END"))
    plain[at : at + len(junk)] = junk.encode()
    stamps, done = cut([bytes(plain)])
    if done[0]:
        expected = _kept_by_the_careful_way(bytes(plain))
        assert expected is not None
        assert same(stamps[0], expected)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 12_000), junk=st.binary(min_size=1, max_size=40))
def test_damage_is_left(at, junk):
    plain = fits(63)
    packed = bytearray(gzip.compress(plain, mtime=0))
    packed[at : at + len(junk)] = junk
    stamps, done = cut([bytes(packed)])
    if done[0]:  # what was changed was nothing, or gzip's time and the like
        assert same(stamps[0], careful(bytes(packed)))


def test_addresses_are_those_of_the_bytes():
    values = [b"", b"a", bytes(range(256)) * 300]
    where = addresses(values)
    assert [int(each) for each in where[1:]] == [address(each) for each in values[1:]]
    assert address(memoryview(values[2])[5:]) == int(where[2]) + 5
    assert address(b"") == 0
