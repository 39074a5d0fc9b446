"""The scaling of stamps against the formula, written with numpy in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stream_vae.model.release import Preprocessing
from stream_vae.quality import Quality
from stream_vae.stages.stamp import normalise

SIDE = 5
WANTED = Preprocessing(stamp_size=SIDE, max_masked_fraction=0.5)
pixels = st.one_of(
    st.floats(-1e6, 1e6, width=32, allow_subnormal=False), st.sampled_from([0.0, -0.0, 1.0, 1.0, -1.0, np.nan, np.inf])
)


def by_the_formula(raw: np.ndarray) -> np.ndarray:
    known = np.isfinite(raw)
    values = raw.astype(np.float64)
    shifted = values - np.median(values[known])
    return np.where(known, shifted / np.abs(shifted[known]).max(), 0.0)


@settings(deadline=None)  # the first call compiles
@given(hnp.arrays(np.float32, (SIDE, SIDE), elements=pixels))
def test_stamps_are_scaled_by_median_and_largest_absolute_value_of_their_known_pixels(raw: np.ndarray) -> None:
    stamps, quality = normalise(raw[np.newaxis, :, :, np.newaxis], WANTED)
    known = raw[np.isfinite(raw)]
    if len(known) < SIDE * SIDE / 2:
        assert quality[0] & Quality.TOO_MANY_MASKED
    elif np.ptp(known) == 0:
        assert quality[0] & Quality.BLANK
    else:
        np.testing.assert_allclose(stamps[0, :, :, 0], by_the_formula(raw), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [0, 1, 2, 5])
def test_the_median_of_an_even_and_an_odd_number_of_pixels_is_numpys(masked: int) -> None:
    rng = np.random.default_rng(masked)
    raw = rng.normal(-3, 100, (64, 21, 21, 3)).astype(np.float32)
    raw.reshape(64, 441, 3)[:, :masked] = np.nan
    stamps, _ = normalise(raw, Preprocessing(cutouts=("difference", "science", "template")))
    median = np.nanmedian(raw, axis=(1, 2), keepdims=True)
    expected = (raw - median) / np.nanmax(np.abs(raw - median), axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(stamps, np.nan_to_num(expected), rtol=1e-6, atol=1e-7)


def test_pixels_near_the_limit_of_float32_do_not_make_the_median_infinite() -> None:
    raw = np.full((1, SIDE, SIDE, 1), 3e38, np.float32)
    raw[0, 0, 0, 0], raw[0, 0, 1, 0] = np.nan, 2.9e38
    stamps, quality = normalise(raw, WANTED)
    assert quality[0] == Quality.MASKED_PIXELS
    assert np.isfinite(stamps).all()
    assert stamps[0, 0, 1, 0] == -1.0
