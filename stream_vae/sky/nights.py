"""Nights of one survey: what stays the same from image to image, what changes with the night, and what with the image.

`stream_vae.sky.simulate` draws every image pair from any instrument. Here the instrument and its pipeline are drawn
once, and seeing, sky brightness and the mix of filters belong to the night: what a release of one survey must take for
normal.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from stream_vae.sky.conditions import Conditions, draw_conditions
from stream_vae.sky.psf import draw_psf
from stream_vae.sky.simulate import SimulatedStamps, stamps_under

BANDS = ("g", "r", "i")
SEEING_SCATTER = 0.15
"""Of a night's median seeing about the site's, in its natural logarithm: quartiles some 20% apart, as at good sites."""
SKY_SCATTER = 0.5
"""Of a night's sky brightness: the Moon makes about a magnitude of it."""
_SEEING_WITHIN = 0.08
_SKY_WITHIN = 0.15
_MEDIAN_FWHM_PX = 3.5
_BAND_SKY = {"g": 0.6, "r": 1.0, "i": 1.8}
_BAND_SEEING = {"g": 1.06, "r": 1.0, "i": 0.95}


@dataclass(frozen=True)
class Night:
    """What the images of a night have in common.

    Parameters
    ----------
    seeing : float
        Median full width at half maximum over the site's.
    sky : float
        Brightness of the sky over the site's, in flux.
    bands : tuple of float
        Share of the images in each of `BANDS`.
    """

    seeing: float = 1.0
    sky: float = 1.0
    bands: tuple[float, float, float] = (0.4, 0.4, 0.2)


def draw_night(rng: np.random.Generator) -> Night:
    """Draw an ordinary night.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where it comes from.

    Returns
    -------
    Night
        Seeing and sky log-normal about the site's, and a mix of filters that is rarely far from the usual one.
    """
    g, r, i = rng.dirichlet((8.0, 8.0, 4.0)).tolist()
    seeing, sky = np.exp(rng.standard_normal(2) * (SEEING_SCATTER, SKY_SCATTER)).tolist()
    return Night(seeing, sky, (g, r, i))


@dataclass(frozen=True)
class NightStamps:
    """Stamps of a night.

    Parameters
    ----------
    images : SimulatedStamps
        Of one image pair.
    band : str
        One of `BANDS`.
    """

    images: SimulatedStamps
    band: str


def simulate_night(night: Night, *, instrument: int, seed: int, size: int = 21) -> Iterator[NightStamps]:
    """Simulate image pairs of a night without end.

    Parameters
    ----------
    night : Night
        What they have in common.
    instrument : int
        Fixes the telescope, the camera and the pipeline.
    seed : int
        Fixes the rest.
    size : int
        Pixels along each side of a stamp.

    Yields
    ------
    NightStamps
        One image pair; it may have no stamps.
    """
    survey = draw_conditions(np.random.default_rng((instrument, 0x5C09E)))
    for group in count():
        rng = np.random.default_rng((seed, group, 0x417))
        band = str(rng.choice(BANDS, p=night.bands))
        yield NightStamps(stamps_under(_image(survey, night, band, rng), rng, size=size, group=group), band)


def _image(survey: Conditions, night: Night, band: str, rng: np.random.Generator) -> Conditions:
    """Conditions of one image: the survey's, the night's, and what no two images have in common."""
    own = draw_conditions(rng)  # registration, subpixel phases and the like
    fwhm = _MEDIAN_FWHM_PX * _BAND_SEEING[band] * night.seeing * float(np.exp(_SEEING_WITHIN * rng.standard_normal()))
    site_sky = 1500.0 * _BAND_SKY[band]
    template_fwhm = 0.85 * _MEDIAN_FWHM_PX * _BAND_SEEING[band] * float(np.exp(0.05 * rng.standard_normal()))
    return replace(
        survey,
        science_psf=draw_psf(rng, max(fwhm, 1.8)),
        template_psf=draw_psf(rng, max(template_fwhm, 1.8)),
        science_background_e=site_sky * night.sky * float(np.exp(_SKY_WITHIN * rng.standard_normal())),
        template_background_e=0.7 * site_sky,
        subpixel_x=own.subpixel_x,
        subpixel_y=own.subpixel_y,
        registration_x=0.5 * own.registration_x,
        registration_y=0.5 * own.registration_y,
        distortion=own.distortion,
        flux_scale=own.flux_scale,
        background_error=own.background_error,
        psf_error=own.psf_error,
    )
