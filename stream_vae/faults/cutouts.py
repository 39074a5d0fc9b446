"""Faults of the cutouts: the alert is published all the same, without a score where the pixels cannot be had."""

import gzip
from collections.abc import Callable, Mapping

import numpy as np

from stream_vae.faults.bombs import gzip_of_zeros
from stream_vae.faults.fault import Expected, Fault, Scope, flagged, scored
from stream_vae.faults.unpacking import Pixels, Unpacked, gunzip
from stream_vae.quality import Quality
from stream_vae.sky.fits import BLOCK_BYTES, CARD_BYTES, Value, card, data_blocks, header, write_fits
from stream_vae.sky.psf import Image

_MISSING = flagged(Quality.MISSING_CUTOUT)
_UNREADABLE = flagged(Quality.UNREADABLE_CUTOUT)
_BLANK = flagged(Quality.BLANK)
_MASKED = flagged(Quality.TOO_MANY_MASKED)
_OVERSIZED = flagged(Quality.OVERSIZED_CUTOUT)

_BOMB_MIB = 500
_SMALL_BOMB_MIB = 100
_LARGEST_FLOAT32 = 3.4e38

Rng = np.random.Generator


def _cutout(change: Callable[[bytes, Rng], bytes | None], expected: Expected, scope: Scope = Scope.FITS) -> Fault:
    def spoil(_: bytes, parts: Unpacked | None, rng: Rng) -> bytes:
        assert parts is not None, "the scope says that there are"
        return parts.with_cutouts(lambda cutout: change(cutout, rng))

    return Fault(scope, spoil, expected)


def _pixels(change: Callable[[Image, Rng], Pixels], expected: Expected) -> Fault:
    def spoil(_: bytes, parts: Unpacked | None, rng: Rng) -> bytes:
        assert parts is not None, "the scope says that there are"
        return parts.with_pixels(lambda image: change(image, rng))

    return Fault(Scope.PIXELS, spoil, expected)


def _shape_field(height: int, width: int, expected: Expected) -> Fault:
    def spoil(_: bytes, parts: Unpacked | None, __: Rng) -> bytes:
        assert parts is not None, "the scope says that there are"
        return parts.with_record({**parts.record, "height": height, "width": width})

    return Fault(Scope.RAW, spoil, expected)


# gzip


def _bomb() -> Fault:
    """One cutout of 500 MB and the others of 100 MB: together they still fit into a Kafka message."""

    def spoil(_: bytes, parts: Unpacked | None, __: Rng) -> bytes:
        assert parts is not None, "the scope says that there are"
        sizes = iter((_BOMB_MIB, _SMALL_BOMB_MIB, _SMALL_BOMB_MIB))
        return parts.with_cutouts(lambda _cutout: gzip_of_zeros(next(sizes)))

    return Fault(Scope.GZIP, spoil, _OVERSIZED)


def _wrong_checksum(cutout: bytes, _: Rng) -> bytes:
    return cutout[:-8] + bytes(255 - byte for byte in cutout[-8:-4]) + cutout[-4:]


def _wrong_length(cutout: bytes, _: Rng) -> bytes:
    return cutout[:-4] + (int.from_bytes(cutout[-4:], "little") + 1).to_bytes(4, "little")


def _bomb_that_claims_to_be_small(_: bytes, __: Rng) -> bytes:
    return gzip_of_zeros(_SMALL_BOMB_MIB)[:-4] + (20160).to_bytes(4, "little")


def _cut(cutout: bytes, rng: Rng) -> bytes:
    return cutout[: int(len(cutout) * rng.uniform(0.2, 0.9))]


def _flipped(cutout: bytes, rng: Rng) -> bytes:
    """Damage twenty bytes in the middle of the compressed data; the checksum finds it if inflating does not."""
    middle = len(cutout) // 2 + int(rng.integers(-20, 20))
    return cutout[:middle] + bytes(255 - byte for byte in cutout[middle : middle + 20]) + cutout[middle + 20 :]


# FITS headers. Each is spoiled in the plain file, which is then gzip'd if the cutout was.


def _like(cutout: bytes, fits: bytes) -> bytes:
    return gzip.compress(fits, 1, mtime=0) if cutout[:2] == b"\x1f\x8b" else fits


def _fits(change: Callable[[bytes], bytes], expected: Expected = _UNREADABLE) -> Fault:
    return _cutout(lambda cutout, _: _like(cutout, change(gunzip(cutout))), expected)


def _with_card(keyword: str, value: Value | bytes) -> Callable[[bytes], bytes]:
    """Make a change that overwrites one card of the primary header."""

    def change(fits: bytes) -> bytes:
        new = value if isinstance(value, bytes) else card(keyword, value)[10:]
        at = fits.index(f"{keyword:<8}=".encode())
        return fits[: at + 10] + new.ljust(CARD_BYTES - 10)[: CARD_BYTES - 10] + fits[at + CARD_BYTES :]

    return change


def _without_end(fits: bytes) -> bytes:
    at = next(i for i in range(0, len(fits), CARD_BYTES) if fits[i : i + CARD_BYTES].rstrip() == b"END")
    return fits[:at] + b" " * CARD_BYTES + fits[at + CARD_BYTES : BLOCK_BYTES] + b" " * (2 * BLOCK_BYTES)


def _empty_hdus(_: bytes) -> bytes:
    nothing: dict[str, Value] = {"BITPIX": 8, "NAXIS": 0}
    return header({"SIMPLE": True, **nothing}) + 40 * header({"XTENSION": "IMAGE", **nothing, "PCOUNT": 0, "GCOUNT": 1})


def _only_header(cards: Mapping[str, Value]) -> Callable[[bytes], bytes]:
    return lambda _: header({"SIMPLE": True, "BITPIX": -32, **cards})


# Pictures that are right, but not what surveys usually send.


def _quantised(image: Image, dtype: str, levels: int, lowest: int) -> tuple[Pixels, dict[str, Value]]:
    """Scale an image to whole numbers, and give the cards that scale it back."""
    low, high = float(image.min()), float(image.max())
    scale = (high - low) / levels or 1.0
    stored = np.rint((image - low) / scale).astype(np.int64) + lowest
    return stored.astype(dtype), {"BSCALE": scale, "BZERO": low - lowest * scale}


def _refits(make: Callable[[Image], bytes], expected: Expected) -> Fault:
    """Write each cutout's image as another kind of FITS file."""

    def spoil(_: bytes, parts: Unpacked | None, __: Rng) -> bytes:
        assert parts is not None, "the scope says that there are"
        files = {name: make(image) for name, image in parts.images().items()}
        names = iter(files)
        return parts.with_cutouts(lambda cutout: _like(cutout, files[next(names)]))

    return Fault(Scope.FITS, spoil, expected)


def _whole_numbers(dtype: str, levels: int, lowest: int) -> Callable[[Image], bytes]:
    return lambda image: write_fits(*_quantised(image, dtype, levels, lowest))


def _with_blank_value(image: Image) -> bytes:
    stored, cards = _quantised(image, "i2", 60_000, -30_000)
    stored[::7, ::3] = -32768
    return write_fits(stored, {**cards, "BLANK": -32768})


def _several_hdus(image: Image) -> bytes:
    """An empty primary HDU, the image as an extension, and another behind it."""
    cards: dict[str, Value] = {"BITPIX": -32, "NAXIS": 2, "NAXIS1": image.shape[1], "NAXIS2": image.shape[0]}
    extension = header({"XTENSION": "IMAGE", **cards, "PCOUNT": 0, "GCOUNT": 1})
    primary = header({"SIMPLE": True, "BITPIX": 8, "NAXIS": 0, "EXTEND": True})
    pixels = data_blocks(image.astype(np.float32))
    return primary + extension + pixels + extension + pixels


CUTOUT_FAULTS: Mapping[str, Fault] = {
    "cutout_null": _cutout(lambda _cutout, _rng: None, _MISSING, Scope.NULLABLE),
    "cutout_empty": _cutout(lambda _cutout, _rng: b"", _MISSING, Scope.PIXELS),
    "cutout_random": _cutout(lambda cutout, rng: b"\xa7" + rng.bytes(len(cutout)), _UNREADABLE, Scope.PIXELS),
    "cutout_png": _cutout(lambda _cutout, rng: b"\x89PNG\r\n\x1a\n" + rng.bytes(501), _UNREADABLE, Scope.PIXELS),
    "gzip_truncated": _cutout(_cut, _UNREADABLE, Scope.GZIP),
    "gzip_without_trailer": _cutout(lambda cutout, _: cutout[:-8], _UNREADABLE, Scope.GZIP),
    "gzip_wrong_checksum": _cutout(_wrong_checksum, _UNREADABLE, Scope.GZIP),
    "gzip_wrong_length": _cutout(_wrong_length, _UNREADABLE, Scope.GZIP),
    "gzip_damaged": _cutout(_flipped, _UNREADABLE, Scope.GZIP),
    "gzip_header_only": _cutout(lambda cutout, _: cutout[:10], _UNREADABLE, Scope.GZIP),
    "gzip_of_nothing": _cutout(lambda _cutout, _rng: gzip.compress(b"", mtime=0), _UNREADABLE, Scope.GZIP),
    "gzip_of_gzip": _cutout(lambda cutout, _: gzip.compress(cutout, 1, mtime=0), _UNREADABLE, Scope.GZIP),
    "gzip_bomb": _bomb(),
    "gzip_bomb_that_claims_to_be_small": _cutout(_bomb_that_claims_to_be_small, _OVERSIZED, Scope.GZIP),
    "gzip_zeros_behind": _cutout(lambda cutout, _: cutout + bytes(100), scored(), Scope.GZIP),
    "not_compressed": _cutout(lambda cutout, _: gunzip(cutout), scored(), Scope.GZIP),
    "fits_no_axes": _fits(_only_header({"NAXIS": 0})),
    "fits_one_axis": _fits(lambda _: write_fits(np.ones(441, np.float32))),
    "fits_three_axes": _fits(lambda _: write_fits(np.ones((3, 21, 21), np.float32))),
    "fits_thousand_axes": _fits(_with_card("NAXIS", 1000)),
    "fits_absurd_axis": _fits(_with_card("NAXIS1", 2**31 - 1)),
    "fits_negative_axis": _fits(_with_card("NAXIS1", -63)),
    "fits_axis_of_no_pixels": _fits(_with_card("NAXIS2", 0)),
    "fits_axis_not_a_number": _fits(_with_card("NAXIS1", b"'sixty-three'")),
    "fits_unknown_bitpix": _fits(_with_card("BITPIX", 7)),
    "fits_without_end": _fits(_without_end),
    "fits_header_cut_short": _fits(lambda fits: fits[:200]),
    "fits_data_cut_short": _fits(lambda fits: fits[: BLOCK_BYTES + 1000]),
    "fits_only_empty_hdus": _fits(_empty_hdus),
    "fits_third_axis_of_one": _refits(lambda image: write_fits(image[None]), scored()),
    "fits_uint8": _refits(_whole_numbers("u1", 255, 0), scored()),
    "fits_int16": _refits(_whole_numbers("i2", 60_000, -30_000), scored()),
    "fits_uint16": _refits(_whole_numbers("i2", 65_535, -32_768), scored()),
    "fits_int32": _refits(_whole_numbers("i4", 2_000_000_000, -1_000_000_000), scored()),
    "fits_int64": _refits(_whole_numbers("i8", 2_000_000_000, 0), scored()),
    "fits_float64": _refits(lambda image: write_fits(image.astype(np.float64)), scored()),
    "fits_blank_value": _refits(_with_blank_value, scored(Quality.MASKED_PIXELS)),
    "fits_scale_of_zero": _refits(
        lambda image: write_fits(image.astype(np.int32), {"BSCALE": 0.0, "BZERO": 5.0}), _BLANK
    ),
    "fits_several_hdus": _refits(_several_hdus, scored()),
    "raw_of_odd_length": _cutout(lambda cutout, _: cutout[:-3], _UNREADABLE, Scope.RAW),
    "raw_shape_negative": _shape_field(-21, -21, _UNREADABLE),
    "raw_shape_zero": _shape_field(0, 0, _UNREADABLE),
    "raw_shape_absurd": _shape_field(2**31 - 1, 2**31 - 1, _UNREADABLE),
}
"""The alert has cutouts, as FITS files or raw."""


# Pixels


def _filled(value: float) -> Callable[[Image, Rng], Pixels]:
    return lambda image, _: np.full(image.shape, value, np.float32)


def _nan_in(modulus: int, below: int) -> Callable[[Image, Rng], Pixels]:
    """Make a change that masks an even share of the pixels, in the middle as anywhere."""

    def change(image: Image, _: Rng) -> Pixels:
        rows, columns = np.indices(image.shape)
        changed = image.astype(np.float32)
        changed[(2 * rows + columns) % modulus < below] = np.nan
        return changed

    return change


def _some_infinite(image: Image, rng: Rng) -> Pixels:
    changed = image.astype(np.float32)
    height, width = image.shape
    rows, columns = height // 2 + rng.integers(-4, 5, 6), width // 2 + rng.integers(-4, 5, 6)
    changed[rows, columns] = np.where(rng.uniform(size=6) < 0.5, np.inf, -np.inf)
    return changed


def _scaled(largest: float) -> Callable[[Image, Rng], Pixels]:
    def change(image: Image, _: Rng) -> Pixels:
        centred = image.astype(np.float64) - np.median(image)
        return np.asarray(centred / np.abs(centred).max() * largest, dtype=np.float32)

    return change


def _float_limits(image: Image, _: Rng) -> Pixels:
    """A chessboard of the largest numbers of either sign: their differences overflow."""
    chess = (np.indices(image.shape).sum(axis=0) % 2) * 2 - 1
    return np.asarray(chess * _LARGEST_FLOAT32, dtype=np.float32)


PIXEL_FAULTS: Mapping[str, Fault] = {
    "pixels_all_nan": _pixels(_filled(np.nan), _MASKED),
    "pixels_all_infinite": _pixels(_filled(np.inf), _MASKED),
    "pixels_all_zero": _pixels(_filled(0.0), _BLANK),
    "pixels_constant": _pixels(_filled(1234.5), _BLANK),
    "pixels_constant_with_gaps": _pixels(
        lambda image, rng: _nan_in(10, 1)(np.full(image.shape, 3.0, np.float32), rng), _BLANK
    ),
    "pixels_60_percent_nan": _pixels(_nan_in(5, 3), _MASKED),
    "pixels_10_percent_nan": _pixels(_nan_in(10, 1), scored(Quality.MASKED_PIXELS)),
    "pixels_some_infinite": _pixels(_some_infinite, scored(Quality.MASKED_PIXELS)),
    "pixels_of_1e38": _pixels(_scaled(1e38), scored()),
    "pixels_of_1e-30": _pixels(_scaled(1e-30), scored()),
    "pixels_at_float_limits": _pixels(_float_limits, _MASKED),
    "one_pixel": _pixels(lambda image, _: image[:1, :1], _MASKED),
    "two_columns": _pixels(lambda image, _: image[:, :2], _MASKED),
    "not_square": _pixels(lambda image, _: image[:, : image.shape[1] * 3 // 4], scored(Quality.NOT_SQUARE)),
}
"""The alert's cutouts can be read, and it is their pixels that are unusual."""
