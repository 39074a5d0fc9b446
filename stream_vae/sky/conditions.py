"""What one simulated image pair was taken under: everything that differs from image to image."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stream_vae.sky.psf import Psf, draw_psf

Floats = npt.NDArray[np.float64]

FADING = 1 / 3
"""Share of the injected sources that have faded: of ZTF's alerts a third or more are fainter than the template."""


@dataclass(frozen=True)
class Conditions:
    """The instrument, the night and the pipeline of one image pair.

    Counts are electrons of the science exposure; the template is on the same scale.

    Parameters
    ----------
    science_psf, template_psf : Psf
        Profiles of the two images before any resampling.
    science_background_e, template_background_e : float
        Sky in electrons per pixel.
    read_noise_e : float
        Read noise of one exposure.
    gain_e_adu : float
        Electrons per count of the stamps.
    full_well_e : float
        Where pixels saturate.
    template_depth : float
        Number of exposures behind the template.
    response_scatter : float
        Pixel-to-pixel error of the flat field, which no noise map knows.
    subpixel_x, subpixel_y : float
        Offset between the two pixel grids, which the pipeline knows and resamples away.
    registration_x, registration_y : float
        Error of the registration at the centre, in pixels.
    distortion : tuple of float
        Its gradient over the image (xx, xy, yx, yy), in pixels per pixel.
    resample_science : bool
        The science image is brought to the template's grid, rather than the other way.
    lanczos : bool
        Resampled with Lanczos-3, rather than bilinearly.
    psf_error : float
        Relative error of the pipeline's idea of the two profiles.
    flux_scale : float
        What the template is multiplied by, wrongly, before it is subtracted.
    background_error : float
        Background left in the difference, in units of its noise; and its gradient over the image.
    noise_underestimate : float
        The pipeline's noise map over the true noise.
    matched_filter : bool
        Detection on the image filtered with its profile, rather than on single pixels.
    centre_on_peak : bool
        The pipeline cuts stamps round the brightest pixel near the detection, rather than round the detected one.
    mask_saturated : bool
        The pipeline masks saturated pixels.
    misread_share : float
        Share of the pixels over a tenth of the full well that are read out wrongly, by up to their own value.
    zero_point_mag : float
        Magnitude of one electron.
    pixel_scale_arcsec : float
        Pixel size.
    fading : float
        Share of the injected sources that have faded since the template; at zero there are none, and the pipeline does
        not look for negative peaks.
    spike_share : float
        Share of a star's light that the vanes of the secondary mirror's support throw into spikes; zero without vanes.
    spike_length_px : float
        Distance from the star where a spike has half the surface brightness that it begins with.
    spike_angle_rad, spike_turn_rad : float
        Direction of the first of four spikes in the science image, and how far the template's are turned from it.
    """

    science_psf: Psf
    template_psf: Psf
    science_background_e: float
    template_background_e: float
    read_noise_e: float
    gain_e_adu: float
    full_well_e: float
    template_depth: float
    response_scatter: float
    subpixel_x: float
    subpixel_y: float
    registration_x: float
    registration_y: float
    distortion: tuple[float, float, float, float]
    resample_science: bool
    lanczos: bool
    psf_error: float
    flux_scale: float
    background_error: float
    noise_underestimate: float
    matched_filter: bool
    centre_on_peak: bool
    mask_saturated: bool
    misread_share: float
    zero_point_mag: float
    pixel_scale_arcsec: float
    fading: float
    spike_share: float
    spike_length_px: float
    spike_angle_rad: float
    spike_turn_rad: float

    @property
    def difference_psf(self) -> Psf:
        """Profile of a source in the difference: the wider of the two, to which the other is matched."""
        return self.science_psf if self.science_is_wider else self.template_psf

    @property
    def science_is_wider(self) -> bool:
        """Whether the template is the one to be convolved."""
        return self.science_psf.fwhm_px >= self.template_psf.fwhm_px

    @property
    def science_sky_noise_e(self) -> float:
        """Standard deviation of an empty pixel of the science image, in electrons."""
        return float(np.hypot(np.sqrt(self.science_background_e), self.read_noise_e))

    def displacement(self, x: Floats, y: Floats, side: int) -> tuple[Floats, Floats]:
        """Give how far the template's sky is off by the error of the registration.

        Parameters
        ----------
        x, y : ndarray, (n,)
            Positions in the science image, in pixels.
        side : int
            Pixels along each axis of the images.

        Returns
        -------
        tuple of ndarray, (n,)
            To be added to x and y.
        """
        xx, xy, yx, yy = self.distortion
        east, north = x - side / 2, y - side / 2
        return self.registration_x + xx * east + xy * north, self.registration_y + yx * east + yy * north


def draw_conditions(rng: np.random.Generator, fading: float = FADING) -> Conditions:
    """Draw the conditions of one image pair.

    The ranges: FWHM 2 to 8 pixels, Moffat beta 2.5 to 4.5, ellipticity up to 0.2, sky 100 to 10,000 electrons,
    read noise 5 to 20 electrons, gain 0.5 to 4, registration error 0.05 to 1 pixel, flux scale good to about a
    percent. Quantities that span a decade or more are uniform in their logarithm.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where they come from.
    fading : float
        Share of the injected sources that have faded.

    Returns
    -------
    Conditions
        For one pair.
    """
    fwhm = _log_uniform(rng, 2.0, 8.0)
    # Templates are picked from good nights: one in seven pairs has the sharper science image.
    ratio = rng.uniform(0.7, 1.0) if rng.uniform() < 6 / 7 else rng.uniform(1.0, 1.2)
    background = _log_uniform(rng, 1e2, 1e4)
    registration, direction = _log_uniform(rng, 0.05, 1.0), rng.uniform(0.0, 2.0 * np.pi)
    # A quarter of the registration error at the corner comes from distortion.
    xx, xy, yx, yy = (rng.standard_normal(4) * registration * 0.25 / 128.0).tolist()
    return Conditions(
        science_psf=draw_psf(rng, fwhm),
        template_psf=draw_psf(rng, max(fwhm * ratio, 1.8)),
        science_background_e=background,
        template_background_e=background * rng.uniform(0.3, 1.5),
        read_noise_e=rng.uniform(5.0, 20.0),
        gain_e_adu=_log_uniform(rng, 0.5, 4.0),
        full_well_e=rng.uniform(6e4, 2e5),
        template_depth=_log_uniform(rng, 3.0, 40.0),
        response_scatter=_log_uniform(rng, 1e-3, 1e-2),
        subpixel_x=rng.uniform(-0.5, 0.5),
        subpixel_y=rng.uniform(-0.5, 0.5),
        registration_x=float(registration * np.cos(direction)),
        registration_y=float(registration * np.sin(direction)),
        distortion=(xx, xy, yx, yy),
        resample_science=rng.uniform() < 0.4,
        lanczos=rng.uniform() < 0.7,
        psf_error=_log_uniform(rng, 0.003, 0.03),
        flux_scale=1.0 + 0.01 * rng.standard_normal(),
        background_error=0.1 * rng.standard_normal(),
        noise_underestimate=rng.uniform(0.75, 1.0),
        matched_filter=rng.uniform() < 0.5,
        centre_on_peak=rng.uniform() < 0.4,
        mask_saturated=rng.uniform() < 0.3,
        misread_share=rng.uniform(0.01, 0.1) if rng.uniform() < 0.4 else 0.0,
        zero_point_mag=rng.uniform(26.0, 31.0),
        pixel_scale_arcsec=rng.uniform(0.25, 1.05),
        fading=fading,
        # Vanes cover up to some percent of the aperture; a third of the instruments has none, or they are too thin.
        spike_share=_log_uniform(rng, 1e-3, 2e-2) if rng.uniform() < 2 / 3 else 0.0,
        spike_length_px=_log_uniform(rng, 5.0, 25.0),
        spike_angle_rad=rng.uniform(0.0, np.pi / 2),
        # An equatorial mount keeps its spikes to about a degree; behind a derotator they lie anywhere.
        spike_turn_rad=0.01 * rng.standard_normal() if rng.uniform() < 0.7 else rng.uniform(0.0, np.pi / 2),
    )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
