"""From alerts to stamps: which pixels, how they are scaled, and which flags say what was unusual."""

from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stream_vae import surveys
from stream_vae.model.release import Preprocessing
from stream_vae.quality import UNSCOREABLE, Quality
from stream_vae.sky.fits import write_fits
from stream_vae.stages.stamp import Stamper, Stamps, normalise

from stage_parts import avro_file, candidate, decoded

ONE = Preprocessing()
TRIPLET = Preprocessing(cutouts=("science", "template", "difference"))
Q = Quality
RNG = np.random.default_rng(7)
NOISE = RNG.normal(100, 5, (21, 21)).astype(np.float32)


def cut(
    stamp: np.ndarray | None = None, wanted: Preprocessing = ONE, max_bytes: int = 10_000, **changes: Any
) -> Stamps:
    """The stamp of one candidate."""
    record = candidate(1, stamp, **changes)
    return Stamper(wanted, surveys.load("candidate").cutouts, max_bytes).cut(decoded([avro_file(record)]))


def flags(stamps: Stamps) -> Quality:
    return Quality(int(stamps.quality[0]))


def by_the_formula(raw: np.ndarray) -> np.ndarray:
    """Huijse et al. (2018), section 3, in float64, over the pixels that are known."""
    known = np.isfinite(raw)
    shifted = raw.astype(np.float64) - np.median(raw[known].astype(np.float64))
    return np.where(known, shifted / np.abs(shifted[known]).max(), 0.0)


def test_a_stamp_is_scaled_and_nothing_was_unusual() -> None:
    stamps = cut(NOISE)
    assert stamps.stamps.shape == (1, 21, 21, 1)
    assert stamps.stamps.dtype == np.float32
    assert flags(stamps) == Q(0)
    np.testing.assert_allclose(stamps.stamps[0, :, :, 0], by_the_formula(NOISE), rtol=1e-5, atol=1e-6)
    assert np.abs(stamps.stamps).max() == 1


def test_no_alerts_make_no_stamps() -> None:
    stamps = Stamper(ONE, surveys.load("candidate").cutouts, 10_000).cut([])
    assert stamps.stamps.shape == (0, 21, 21, 1)
    assert stamps.quality.shape == stamps.scoreable.shape == (0,)


def test_the_crop_is_around_the_middle_of_a_larger_cutout() -> None:
    large = RNG.normal(0, 1, (63, 63)).astype(np.float32)
    large[31, 31] = 50
    stamps = cut(large, max_bytes=20_000)
    assert flags(stamps) == Q(0)
    assert np.unravel_index(stamps.stamps[0, :, :, 0].argmax(), (21, 21)) == (10, 10)
    np.testing.assert_allclose(stamps.stamps[0, :, :, 0], by_the_formula(large[21:42, 21:42]), rtol=1e-4, atol=1e-6)


def test_a_smaller_cutout_is_padded_and_flagged() -> None:
    small = RNG.normal(0, 1, (17, 17)).astype(np.float32)
    stamps = cut(small)
    assert flags(stamps) == Q.PADDED | Q.MASKED_PIXELS
    assert not stamps.stamps[0, :2].any()
    np.testing.assert_allclose(stamps.stamps[0, 2:19, 2:19, 0], by_the_formula(small), rtol=1e-4, atol=1e-6)


def test_a_cutout_that_is_not_square_is_flagged() -> None:
    assert flags(cut(RNG.normal(0, 1, (21, 30)).astype(np.float32))) == Q.NOT_SQUARE


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_take_no_part_and_are_filled(wrong: float) -> None:
    masked = NOISE.copy()
    masked[3, 4], masked[20, 20] = wrong, wrong
    stamps = cut(masked)
    assert flags(stamps) == Q.MASKED_PIXELS
    assert stamps.stamps[0, 3, 4, 0] == stamps.stamps[0, 20, 20, 0] == 0
    np.testing.assert_allclose(stamps.stamps[0, :, :, 0], by_the_formula(masked), rtol=1e-5, atol=1e-6)


def test_masked_pixels_hold_the_releases_fill_value() -> None:
    masked = NOISE.copy()
    masked[0, 0] = np.nan
    assert cut(masked, Preprocessing(fill=-0.5)).stamps[0, 0, 0, 0] == np.float32(-0.5)


def test_the_largest_share_of_masked_pixels_is_the_releases() -> None:
    masked = NOISE.copy()
    masked.ravel()[:220] = np.nan  # of 441: just below a half
    assert flags(cut(masked)) == Q.MASKED_PIXELS
    masked.ravel()[220] = np.nan
    unscored = cut(masked)
    assert flags(unscored) == Q.MASKED_PIXELS | Q.TOO_MANY_MASKED
    assert not unscored.stamps.any()
    assert flags(cut(masked, Preprocessing(max_masked_fraction=0.6))) == Q.MASKED_PIXELS


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_an_all_masked_stamp_is_unscoreable_whatever_the_release_allows(fraction: float) -> None:
    stamps = cut(np.full((21, 21), np.nan), Preprocessing(max_masked_fraction=fraction))
    assert flags(stamps) == Q.MASKED_PIXELS | Q.TOO_MANY_MASKED
    assert not stamps.scoreable[0]


@pytest.mark.parametrize("value", [0.0, -0.0, 1234.5, -1e38])
def test_a_stamp_of_one_value_is_blank(value: float) -> None:
    stamps = cut(np.full((21, 21), value))
    assert flags(stamps) == Q.BLANK
    assert not stamps.stamps.any()


def test_huge_pixels_are_scaled_and_those_that_differ_by_more_than_float32_holds_are_not() -> None:
    huge = ((NOISE - 100) * 2e36).astype(np.float32)
    assert np.abs(huge).max() > 1e37
    assert flags(cut(huge)) == Q(0)
    chess = ((np.indices((21, 21)).sum(axis=0) % 2) * 2 - 1) * 3e38
    assert flags(cut(chess)) == Q.TOO_MANY_MASKED


def test_tiny_pixels_are_scaled() -> None:
    tiny = (NOISE * 1e-32).astype(np.float32)
    stamps = cut(tiny)
    assert flags(stamps) == Q(0)
    assert np.abs(stamps.stamps).max() == 1


def test_a_missing_cutout_is_flagged_and_its_row_is_zero() -> None:
    for nothing in (None, b""):
        stamps = cut(difference=nothing)
        assert flags(stamps) == Q.MISSING_CUTOUT
        assert not stamps.stamps.any()


def test_a_cutout_that_is_no_stamp_is_unreadable_and_one_over_the_cap_oversized() -> None:
    assert flags(cut(NOISE, height=20)) == Q.UNREADABLE_CUTOUT
    assert flags(cut(NOISE, difference=b"\x01\x02\x03")) == Q.UNREADABLE_CUTOUT
    assert flags(cut(NOISE, max_bytes=21 * 21 * 4 - 1)) == Q.OVERSIZED_CUTOUT


def test_three_channels_are_in_the_releases_order_and_scaled_each_by_itself() -> None:
    planes = {name: RNG.normal(10**n, n + 1, (21, 21)).astype("<f4") for n, name in enumerate(surveys.CUTOUTS)}
    stamps = cut(NOISE, TRIPLET, **{name: plane.tobytes() for name, plane in planes.items()})
    assert flags(stamps) == Q(0)
    assert stamps.stamps.shape == (1, 21, 21, 3)
    for channel, name in enumerate(TRIPLET.cutouts):
        np.testing.assert_allclose(stamps.stamps[0, :, :, channel], by_the_formula(planes[name]), rtol=1e-4, atol=1e-5)


def test_one_bad_channel_makes_the_alert_unscoreable_and_zero() -> None:
    good = NOISE.astype("<f4").tobytes()
    blank = np.zeros((21, 21), "<f4").tobytes()
    stamps = cut(NOISE, TRIPLET, science=good, template=None)
    assert flags(stamps) == Q.MISSING_CUTOUT
    assert not stamps.stamps.any()
    stamps = cut(NOISE, TRIPLET, science=good, template=blank)
    assert flags(stamps) == Q.BLANK
    assert not stamps.stamps.any()


def test_a_bad_alert_changes_nothing_of_its_neighbours() -> None:
    records = [candidate(n) for n in range(5)]
    records[2]["difference"] = None
    records[3]["difference"] = b"odd"
    stamper = Stamper(ONE, surveys.load("candidate").cutouts, 10_000)
    together = stamper.cut(decoded([avro_file(record) for record in records]))
    for row in (0, 1, 4):
        alone = stamper.cut(decoded([avro_file(records[row])]))
        np.testing.assert_array_equal(together.stamps[row], alone.stamps[0])
    assert together.scoreable.tolist() == [True, True, False, False, True]


ZTF_LIKE = fastavro.parse_schema(
    {
        "type": "record",
        "name": "Alert",
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "x", "type": ["null", "float"]},
            {"name": "y", "type": ["null", "float"]},
            {"name": "pixels", "type": ["null", "bytes"]},
        ],
    }
)
NOMINAL = surveys.parse(
    {
        "name": "edges",
        "fields": {"alert_id": "id", "x_pixel": "x", "y_pixel": "y"},
        "cutouts": {"difference": "pixels", "nominal_size": 63},
    },
    where="here",
)


@pytest.mark.parametrize(
    ("shape", "x", "y", "expected"),
    [
        ((63, 40), 3000.0, 500.0, (31, 31)),  # cut off at the high edge: in place
        ((63, 40), 8.0, 500.0, (31, 8)),  # cut off at the low edge: at its own pixel
        ((40, 63), 500.0, 5.0, (5, 31)),
        ((63, 40), None, None, (31, 31)),
        ((63, 63), 3.0, 3.0, (31, 31)),  # a whole one is centred, whatever the position
    ],
)
def test_a_cutout_that_ends_at_the_detectors_edge_is_cropped_around_the_candidate(
    shape: tuple[int, int], x: float | None, y: float | None, expected: tuple[int, int]
) -> None:
    image = RNG.normal(0, 1, shape).astype(np.float32)
    image[expected] = 1000
    record = {"id": 1, "x": x, "y": y, "pixels": write_fits(image)}
    stamps = Stamper(ONE, NOMINAL.cutouts, 100_000).cut(decoded([avro_file(record, ZTF_LIKE)], NOMINAL))
    assert np.unravel_index(stamps.stamps[0, :, :, 0].argmax(), (21, 21)) == (10, 10)


def test_float64_pixels_beyond_float32_are_masked_without_a_warning() -> None:
    image = RNG.normal(0, 1, (63, 63))
    image[25, 25] = 1e300
    record = {"id": 1, "x": None, "y": None, "pixels": write_fits(image)}
    stamps = Stamper(ONE, NOMINAL.cutouts, 100_000).cut(decoded([avro_file(record, ZTF_LIKE)], NOMINAL))
    assert flags(stamps) == Q.MASKED_PIXELS


PIXELS = st.one_of(st.floats(width=32), st.sampled_from([0.0, np.nan, np.inf, 3e38, -3e38, 1e-45]))


@settings(deadline=None)  # the first call compiles
@given(hnp.arrays(np.float32, (2, 5, 5, 2), elements=PIXELS), st.sampled_from([0.2, 0.5, 1.0]))
def test_whatever_the_pixels_are_stamps_are_finite_within_one_and_zero_where_unscoreable(
    raw: np.ndarray, allowed: float
) -> None:
    stamps, quality = normalise(raw, Preprocessing(stamp_size=5, max_masked_fraction=allowed))
    assert np.isfinite(stamps).all()
    assert np.abs(stamps).max() <= 1
    unscoreable = (quality & np.uint32(UNSCOREABLE)) != 0
    assert not stamps[unscoreable].any()
    masked = (~np.isfinite(raw)).sum(axis=(1, 2))
    assert (((quality & Q.MASKED_PIXELS) != 0) == (masked > 0).any(axis=1)).all()
    too_many = ((masked > allowed * 25) | (masked == 25)).any(axis=1)
    assert (unscoreable >= too_many).all()


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (5, 5), elements=st.floats(-1e6, 1e6, width=32)),
    st.floats(0.125, 1024, width=32),
    st.integers(0, 24),
)
def test_the_scale_of_the_flux_does_not_matter(raw: np.ndarray, factor: float, brightest: int) -> None:
    raw.ravel()[brightest] = 2e6
    wanted = Preprocessing(stamp_size=5)
    stamps, _ = normalise(raw[None, ..., None], wanted)
    scaled, _ = normalise((raw * np.float32(factor))[None, ..., None], wanted)
    np.testing.assert_allclose(scaled, stamps, rtol=1e-4, atol=1e-5)


def test_the_rows_of_a_batch_do_not_touch_one_another() -> None:
    raw = RNG.normal(0, 1, (64, 21, 21, 1)).astype(np.float32)
    raw[5], raw[6, 0, 0], raw[7] = np.nan, np.inf, 3.0
    together, quality = normalise(raw, ONE)
    for row in range(64):
        alone, flag = normalise(raw[row : row + 1], ONE)
        np.testing.assert_array_equal(together[row], alone[0])
        assert quality[row] == flag[0]


def test_raw_stamps_are_not_changed_by_the_scaling() -> None:
    raw = NOISE[None, ..., None].copy()
    normalise(raw, ONE)
    np.testing.assert_array_equal(raw[0, :, :, 0], NOISE)


def test_stamps_in_any_memory_layout_are_scaled_alike() -> None:
    raw = RNG.normal(0, 1, (3, 21, 21, 2))
    expected, _ = normalise(raw.astype(np.float32), ONE)
    for layout in (np.asfortranarray(raw), raw.astype(">f8"), raw[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(normalise(layout, ONE)[0], expected)
