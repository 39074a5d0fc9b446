"""Cutouts to pixels: what gzip and FITS may look like, judged by Python's gzip and by astropy."""

import gzip
import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stream_vae import surveys
from stream_vae.cutout import CutoutError, centre_of, crop_into, decompress, read_fits, read_float32
from stream_vae.quality import Quality

from stage_parts import record_of

CAP = 100_000
PLAIN = bytes(range(256)) * 20
PACKED = gzip.compress(PLAIN, mtime=0)


def unreadable(read: Callable[[], object], quality: Quality = Quality.UNREADABLE_CUTOUT) -> str:
    with pytest.raises(CutoutError) as caught:
        read()
    assert caught.value.quality is quality
    return str(caught.value)


# gzip


@pytest.mark.parametrize("as_view", [False, True])
@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(PACKED, id="one member"),
        pytest.param(PLAIN, id="not compressed"),
        pytest.param(PACKED + bytes(100), id="zeros behind"),
        pytest.param(PACKED + b"junk behind it", id="junk behind"),
        pytest.param(gzip.compress(PLAIN[:5000], mtime=0) + gzip.compress(PLAIN[5000:], mtime=0), id="two members"),
        pytest.param(gzip.compress(PLAIN, mtime=0) + gzip.compress(b"", mtime=0), id="an empty member behind"),
        pytest.param(gzip.compress(PLAIN[:9], mtime=0) + gzip.compress(PLAIN[9:], mtime=0), id="a short member first"),
    ],
)
def test_whole_gzip_files_and_plain_ones_give_their_bytes(packed: bytes, as_view: bool) -> None:
    assert decompress(memoryview(packed) if as_view else packed, CAP) == PLAIN


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(PACKED[:-1], id="last byte lost"),
        pytest.param(PACKED[:-8], id="trailer lost"),
        pytest.param(PACKED[: len(PACKED) // 2], id="half"),
        pytest.param(PACKED[:10], id="header only"),
        pytest.param(PACKED[:2], id="magic only"),
        pytest.param(PACKED[:-8] + bytes(4) + PACKED[-4:], id="wrong checksum"),
        pytest.param(PACKED[:-4] + bytes(4), id="length of zero"),
        pytest.param(PACKED[:-4] + (len(PLAIN) + 1).to_bytes(4, "little"), id="length of one more"),
        pytest.param(PACKED[:-4] + b"\xff\xff\xff\xff", id="length of 4 GB"),
        pytest.param(PACKED[:2] + b"\x07" + PACKED[3:], id="another method"),
        pytest.param(PACKED + PACKED[:40], id="second member cut off"),
    ],
)
def test_damaged_gzip_is_unreadable(packed: bytes) -> None:
    unreadable(lambda: decompress(packed, CAP))


def test_a_bomb_is_refused_after_the_cap_whatever_it_claims_to_be() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()
    assert len(bomb) < 250_000
    for claimed in (200 * 2**20, 5000, 0):
        lying = bomb[:-4] + claimed.to_bytes(4, "little")
        assert "over 100000 bytes" in unreadable(lambda lying=lying: decompress(lying, CAP), Quality.OVERSIZED_CUTOUT)


def test_many_small_members_are_capped_together() -> None:
    many = gzip.compress(bytes(60_000), mtime=0) + gzip.compress(bytes(50_000), mtime=0)
    unreadable(lambda: decompress(many, CAP), Quality.OVERSIZED_CUTOUT)


@pytest.mark.parametrize("packed", [bytes(CAP + 1), gzip.compress(bytes(CAP + 1), mtime=0)])
def test_the_cap_is_the_last_size_that_is_accepted(packed: bytes) -> None:
    unreadable(lambda: decompress(packed, CAP), Quality.OVERSIZED_CUTOUT)
    assert len(decompress(packed, CAP + 1)) == CAP + 1


@given(st.binary(max_size=300), st.integers(0, len(PACKED)), st.integers(0, 40))
def test_no_damage_to_a_gzip_file_does_worse_than_a_cutout_error(junk: bytes, at: int, cut: int) -> None:
    try:
        data = decompress(PACKED[:at] + junk + PACKED[at + cut :], CAP)
    except CutoutError:
        return
    assert len(data) <= CAP


# FITS


def written(*hdus: Any, **keywords: Any) -> bytes:
    """A FITS file as astropy writes it; arrays become image HDUs."""
    buffer = io.BytesIO()
    made = [
        each if isinstance(each, fits.hdu.base._BaseHDU) else (fits.PrimaryHDU(each) if n == 0 else fits.ImageHDU(each))
        for n, each in enumerate(hdus)
    ]
    for name, value in keywords.items():
        made[0].header[name] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a card was mended
        fits.HDUList(made).writeto(buffer, output_verify="silentfix")
    return buffer.getvalue()


def by_astropy(data: bytes, hdu: int = 0, *, uint: bool = True) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(io.BytesIO(data), uint=uint) as opened:
            return np.array(opened[hdu].data)


def card(text: str) -> bytes:
    return text.encode().ljust(80)


def header(*cards: str) -> bytes:
    text = b"".join(map(card, (*cards, "END")))
    return text.ljust(-(-len(text) // 2880) * 2880)


SIMPLE = ("SIMPLE  =                    T", "BITPIX  =                  -32")
TWO_AXES = ("NAXIS   =                    2", "NAXIS1  =                    3", "NAXIS2  =                    2")
SMALL = np.arange(6, dtype=">f4").reshape(2, 3)
PIXELS = SMALL.tobytes().ljust(2880, b"\0")

DTYPES = st.sampled_from(["u1", ">i2", ">i4", ">i8", ">f4", ">f8"])
SHAPES = st.tuples(st.integers(1, 30), st.integers(1, 30))


@given(st.data(), DTYPES, SHAPES)
def test_images_of_every_type_are_read_as_astropy_reads_them(data: Any, dtype: str, shape: tuple[int, int]) -> None:
    image = data.draw(hnp.arrays(np.dtype(dtype), shape))
    file = written(image)
    read = read_fits(file)
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read, by_astropy(file))


@given(
    st.data(),
    st.sampled_from(["u1", ">i2", ">i4"]),
    st.sampled_from([(1.0, 32768.0), (0.25, -3.5), (2.0, 0.0), (-1e-3, 1e5)]),
)
def test_scaled_integers_with_blanks_are_read_as_astropy_reads_them(
    data: Any, dtype: str, scaling: tuple[float, float]
) -> None:
    image = data.draw(hnp.arrays(np.dtype(dtype), (4, 5), elements=st.integers(0, 100)))
    file = written(image)
    cards = [f"BSCALE  = {scaling[0]:>20}", f"BZERO   = {scaling[1]:>20}", "BLANK   =                    7"]
    at = file.index(b"END".ljust(80))
    file = file[:at] + b"".join(map(card, (*cards, "END"))) + file[at + 320 :]
    read = read_fits(file)
    # Its short cut for unsigned integers (BZERO 32768, BSCALE 1) forgets BLANK; the standard does not.
    np.testing.assert_allclose(read, by_astropy(file, uint=False), rtol=1e-6)
    assert (np.isnan(read) == (image == 7)).all()


@pytest.mark.parametrize(("dtype", "kind"), [(np.uint16, ">i2"), (np.uint32, ">i4"), (np.int8, "u1")])
def test_the_offsets_that_make_signed_integers_unsigned_and_back_are_undone(dtype: Any, kind: str) -> None:
    limits = np.iinfo(dtype)
    image = np.array([[limits.min, limits.max], [1, 0]], dtype)
    file = written(image)
    assert b"BZERO" in file
    np.testing.assert_array_equal(read_fits(file), image)


def test_scaled_floats_are_scaled_and_a_blank_value_means_nothing_for_them() -> None:
    file = header(*SIMPLE, *TWO_AXES, "BSCALE  = 2.0D0 / Fortran's", "BZERO   = 1d1", "BLANK   = 3") + PIXELS
    np.testing.assert_array_equal(read_fits(file), SMALL * 2 + 10)


def test_a_blank_value_beyond_the_type_masks_nothing() -> None:
    file = written(np.array([[0, 255]], np.uint8), BLANK=99_999)
    np.testing.assert_array_equal(read_fits(file), [[0.0, 255.0]])


def test_of_several_images_the_first_is_taken() -> None:
    first, second = np.ones((3, 4), np.float32), np.zeros((5, 5), np.float32)
    assert read_fits(written(first, second, second)).shape == (3, 4)
    assert read_fits(written(None, second, first)).shape == (5, 5)


def test_tables_and_cubes_before_the_image_are_passed_over() -> None:
    table = fits.BinTableHDU.from_columns([fits.Column("a", "3J", array=np.arange(12).reshape(4, 3))])
    cube, image = np.ones((2, 3, 4), np.float32), np.full((2, 2), 5, np.int16)
    np.testing.assert_array_equal(read_fits(written(None, table, image)), image)
    np.testing.assert_array_equal(read_fits(written(cube, image)), image)


def test_a_table_alone_is_no_image() -> None:
    table = fits.BinTableHDU.from_columns([fits.Column("a", "3J", array=np.arange(12).reshape(4, 3))])
    assert "without a two-dimensional image" in unreadable(lambda: read_fits(written(None, table)))


def test_a_tile_compressed_image_is_not_mistaken_for_pixels() -> None:
    packed = fits.CompImageHDU(np.arange(900, dtype=np.int16).reshape(30, 30))
    unreadable(lambda: read_fits(written(None, packed)))


def test_axes_of_one_behind_the_second_are_left_away() -> None:
    image = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    np.testing.assert_array_equal(read_fits(written(image)), image[0, 0])


@pytest.mark.parametrize(
    "image",
    [None, np.ones(5, np.float32), np.ones((2, 3, 4), np.float32), np.ones((3, 1, 4, 1, 2), np.float32)],
    ids=["no axes", "one axis", "three axes", "five axes"],
)
def test_files_without_a_two_dimensional_image_are_unreadable(image: np.ndarray | None) -> None:
    assert "without a two-dimensional image" in unreadable(lambda: read_fits(written(image)))


def test_long_headers_are_read_to_their_end() -> None:
    file = written(SMALL, **{f"KEY{n}": "x" * 60 for n in range(200)})
    assert file.index(b"END".ljust(80)) > 4 * 2880
    np.testing.assert_array_equal(read_fits(file), SMALL)


def test_a_keyword_in_a_comment_or_without_its_sign_changes_nothing() -> None:
    lines = ("COMMENT BITPIX  = 8", "BSCALE    7", "HISTORY  NAXIS = 0", "        BZERO = 5")
    np.testing.assert_array_equal(read_fits(header(*SIMPLE, *TWO_AXES, *lines) + PIXELS), SMALL)


def test_the_last_block_need_not_be_full() -> None:
    np.testing.assert_array_equal(read_fits((header(*SIMPLE, *TWO_AXES) + PIXELS)[: 2880 + 24]), SMALL)


@pytest.mark.parametrize("length", [0, 1, 79, 80, 500, 2880, 2880 + 23])
def test_a_file_that_ends_early_is_unreadable(length: int) -> None:
    unreadable(lambda: read_fits((header(*SIMPLE, *TWO_AXES) + PIXELS)[:length]))


@pytest.mark.parametrize(
    "cards",
    [
        (SIMPLE[0], *TWO_AXES),
        (*SIMPLE, TWO_AXES[0], TWO_AXES[1]),
        (*SIMPLE,),
        (SIMPLE[0], "BITPIX  = 7", *TWO_AXES),
        (SIMPLE[0], "BITPIX  = eight", *TWO_AXES),
        (SIMPLE[0], "BITPIX  =", *TWO_AXES),
        (*SIMPLE, TWO_AXES[0], "NAXIS1  = -3", TWO_AXES[2]),
        (*SIMPLE, TWO_AXES[0], "NAXIS1  = 3.0", TWO_AXES[2]),
        (*SIMPLE, TWO_AXES[0], "NAXIS1  = 99999999999999999999", TWO_AXES[2]),
        (*SIMPLE, TWO_AXES[0], "NAXIS1  = 0", TWO_AXES[2]),
        (*SIMPLE, "NAXIS   = 1000", *TWO_AXES[1:]),
        (*SIMPLE, "NAXIS   = -1"),
        (*SIMPLE, *TWO_AXES, "GCOUNT  = 0"),
        (*SIMPLE, *TWO_AXES, "PCOUNT  = -1"),
        (*SIMPLE, *TWO_AXES, "BSCALE  = 'one'"),
        ("SIMPLE  =                    T", "BITPIX  = 16", *TWO_AXES, "BLANK   = none"),
    ],
    ids=lambda cards: " ".join(cards).replace("  ", "")[:60],
)
def test_a_damaged_header_is_unreadable(cards: tuple[str, ...]) -> None:
    unreadable(lambda: read_fits(header(*cards) + PIXELS))


def test_a_header_without_end_is_not_searched_for_ever() -> None:
    endless = card("SIMPLE  =                    T") + card("COMMENT") * 100_000
    assert "without END" in unreadable(lambda: read_fits(endless))


def test_a_file_of_empty_hdus_is_not_searched_for_ever() -> None:
    empty = header("XTENSION= 'IMAGE   '", "BITPIX  = 8", "NAXIS   = 0")
    first = header("SIMPLE  =                    T", "BITPIX  = 8", "NAXIS   = 0")
    unreadable(lambda: read_fits(first + empty * 1000 + header(*SIMPLE, *TWO_AXES) + PIXELS))


def test_what_is_no_fits_file_is_unreadable() -> None:
    for data in (b"", b"JFIF", b"\x89PNG".ljust(5000), gzip.compress(PACKED)):
        assert "not a FITS header" in unreadable(lambda data=data: read_fits(data))


@given(st.integers(0, 2880 + 30), st.binary(min_size=1, max_size=80))
def test_no_damage_to_a_fits_file_does_worse_than_a_cutout_error(at: int, junk: bytes) -> None:
    file = header(*SIMPLE, *TWO_AXES, "BSCALE  = 1.0", "BLANK   = 3") + PIXELS
    try:
        image = read_fits(file[:at] + junk + file[at + len(junk) :])
    except CutoutError:
        return
    assert image.ndim == 2


def test_headers_that_were_seen_before_give_the_same_and_not_one_anothers_image() -> None:
    images = [np.full(shape, n, np.float32) for n, shape in enumerate([(2, 3), (3, 2), (4, 4)])]
    files = [written(image) for image in images]
    for _ in range(3):
        for image, file in zip(images, files, strict=True):
            np.testing.assert_array_equal(read_fits(file), image)


def cutouts_in(record: dict[str, Any], name: str) -> Any:
    value: Any = record
    for part in name.split("."):
        value = None if value is None else value.get(part)
    return value


@pytest.mark.parametrize("survey", ["ztf", "lsst", "winter", "pgir", "turbo", "decam"])
def test_real_cutouts_are_read_as_astropy_reads_them(survey: str, real_packets: Callable[[str], list[Path]]) -> None:
    profile = surveys.load(survey)
    compared = 0
    for path in real_packets(survey)[::10] or real_packets(survey):
        record = record_of(path.read_bytes())
        for name in surveys.CUTOUTS:
            cutout = next((c for p in profile.cutouts.paths(name) if (c := cutouts_in(record, p))), None)
            if cutout is None:
                continue
            plain = decompress(cutout, 4 * 2**20)
            assert plain == (gzip.decompress(cutout) if cutout[:2] == b"\x1f\x8b" else cutout)
            np.testing.assert_array_equal(read_fits(plain), by_astropy(bytes(plain)))
            compared += 1
    assert compared


# raw stamps


def test_raw_stamps_are_rows_of_little_endian_float32() -> None:
    stamp = np.arange(12, dtype="<f4").reshape(3, 4)
    np.testing.assert_array_equal(read_float32(stamp.tobytes(), 3, 4), stamp)
    square = np.arange(9, dtype="<f4").reshape(3, 3)
    np.testing.assert_array_equal(read_float32(memoryview(square.tobytes()), None, None), square)


@pytest.mark.parametrize(
    ("length", "height", "width"),
    [(48, 4, 4), (47, 3, 4), (0, None, None), (3, None, None), (20, None, None), (0, 0, 0), (4, -1, -1), (48, 3, None)],
)
def test_raw_stamps_of_another_shape_than_they_say_are_unreadable(
    length: int, height: int | None, width: int | None
) -> None:
    unreadable(lambda: read_float32(bytes(length), height, width))


# the candidate's pixel, and the crop round it


@pytest.mark.parametrize(
    ("length", "nominal", "position", "centre"),
    [
        (63, 63, 500.0, 31),
        (64, 63, 500.0, 32),  # larger than a whole one: centred
        (30, None, 3.0, 15),  # no nominal size: centred whatever it is
        (40, 63, None, 31),  # cut off, and nobody knows where: as at the high edge
        (40, 63, 3000.0, 31),  # at the high edge the candidate keeps its place
        (40, 63, 8.7, 8),  # at the low edge it is where the detector says
        (40, 63, 0.0, 0),
        (40, 63, -2.5, 0),
        (40, 63, float("nan"), 31),
        (40, 63, float("inf"), 31),
        (10, 63, 3000.0, 9),  # never outside
        (1, 63, 20.0, 0),
    ],
)
def test_the_candidates_pixel(length: int, nominal: int | None, position: float | None, centre: int) -> None:
    assert centre_of(length, nominal, position) == centre


def cropped_by_padding(image: np.ndarray, size: int, row: int, column: int) -> np.ndarray:
    """The plain way: surround the image with NaN on all sides, then cut."""
    wide = size + max(image.shape) + 200
    padded = np.pad(image.astype(np.float32), wide, constant_values=np.nan)
    top, left = row - size // 2 + wide, column - size // 2 + wide
    return padded[top : top + size, left : left + size]


@given(
    SHAPES,
    st.sampled_from([3, 4, 21]),
    st.integers(-60, 60),
    st.integers(-60, 60),
    st.sampled_from([">f4", ">f8", ">i2", "u1"]),
)
def test_a_crop_anywhere_is_what_padding_first_would_give(
    shape: tuple[int, int], size: int, row: int, column: int, dtype: str
) -> None:
    image = np.arange(shape[0] * shape[1]).reshape(shape).astype(dtype)
    out = np.full((size, size), 7, np.float32)
    padded = crop_into(out, image, row, column)
    expected = cropped_by_padding(image, size, row, column)
    np.testing.assert_array_equal(out, expected)
    assert padded == bool(np.isnan(expected).any())


@pytest.mark.parametrize(("row", "column"), [(10, 10), (52, 52), (10, 52), (52, 10)])
def test_a_crop_that_just_fits_is_not_padded_and_one_pixel_on_is(row: int, column: int) -> None:
    image, out = np.ones((63, 63), np.float32), np.empty((21, 21), np.float32)
    assert not crop_into(out, image, row, column)
    assert crop_into(out, image, row + (1 if row > 30 else -1), column)
    assert crop_into(out, image, row, column + (1 if column > 30 else -1))


def test_a_crop_fully_outside_is_all_masked() -> None:
    out = np.zeros((21, 21), np.float32)
    assert crop_into(out, np.ones((5, 5), np.float32), 500, -500)
    assert np.isnan(out).all()


def test_a_crop_into_one_channel_of_a_batch_leaves_the_others() -> None:
    batch = np.zeros((2, 3, 3, 2), np.float32)
    crop_into(batch[1, :, :, 1], np.ones((3, 3)), 1, 1)
    assert batch.sum() == 9
    assert batch[1, :, :, 1].all()
