"""The FITS files that we write are what astropy reads."""

import io

import numpy as np
import pytest
from astropy.io import fits
from stream_vae.sky.fits import BLOCK_BYTES, write_fits


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "i8", "f4", "f8"])
def test_astropy_reads_the_same_pixels_of_every_type(dtype: str) -> None:
    image = (np.arange(5 * 7).reshape(5, 7) * 3).astype(dtype)
    written = write_fits(image)
    assert len(written) % BLOCK_BYTES == 0
    with fits.open(io.BytesIO(written)) as hdus:
        hdus.verify("exception")
        assert hdus[0].data.dtype.newbyteorder("=") == image.dtype
        np.testing.assert_array_equal(hdus[0].data, image)


def test_nan_and_infinity_survive() -> None:
    image = np.array([[1.5, np.nan], [np.inf, -np.inf]], np.float32)
    with fits.open(io.BytesIO(write_fits(image))) as hdus:
        np.testing.assert_array_equal(hdus[0].data, image)


def test_scaling_cards_are_understood() -> None:
    stored = np.array([[-32768, 0, 32767]], np.int16)
    with fits.open(io.BytesIO(write_fits(stored, {"BZERO": 32768, "BSCALE": 1}))) as hdus:
        np.testing.assert_array_equal(hdus[0].data, [[0, 32768, 65535]])


def test_a_type_that_fits_does_not_have_is_refused() -> None:
    with pytest.raises(KeyError):
        write_fits(np.zeros((2, 2), np.complex64))
