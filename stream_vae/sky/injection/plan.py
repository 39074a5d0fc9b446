"""What to inject, and into what: the plan and the images, checked before anything is measured."""

from dataclasses import dataclass

import numpy as np

from stream_vae.errors import ConfigError
from stream_vae.sky.psf import Image


@dataclass(frozen=True)
class Plan:
    """How to inject.

    Parameters
    ----------
    per_image : int
        Sources wanted in each image and round; fewer where they would touch.
    rounds : int
        Every round injects others into the untouched image.
    snr : tuple of float
        Least and largest peak over the median noise of the difference.
    size : int
        Pixels along each side of a stamp, odd.
    near_sources : float
        Share of positions that take the place of one of the image's own detections, turned about the source
        nearest to it, so that surroundings do not tell the injected from the detected; the others are uniform.
    gain_e_adu : float or None
        Electrons per count, for the Poisson noise of the injected light; None: it has none.
    fwhm_px, beta : float or None, float
        A Moffat profile that is given rather than measured.
    saturation : float or None
        Of the science image, in counts above its background.
    other_label : int
        Of detections that were not injected: -1 unknown or 0 bogus.
    """

    per_image: int = 100
    rounds: int = 1
    snr: tuple[float, float] = (5.0, 100.0)
    size: int = 21
    near_sources: float = 0.5
    gain_e_adu: float | None = None
    fwhm_px: float | None = None
    beta: float = 3.0
    saturation: float | None = None
    other_label: int = -1

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        checks = {
            "--per-image": self.per_image >= 1,
            "--rounds": self.rounds >= 1,
            "--snr-min and --snr-max": 0.0 < self.snr[0] < self.snr[1] < np.inf,
            "--size (odd, 3 or more)": self.size >= 3 and self.size % 2 == 1,
            "--near-sources (0 to 1)": 0.0 <= self.near_sources <= 1.0,
            "--gain": self.gain_e_adu is None or 0.0 < self.gain_e_adu < np.inf,
            "--fwhm (0.8 to 24)": self.fwhm_px is None or 0.8 <= self.fwhm_px <= 24.0,
            "--beta (over 1)": 1.0 < self.beta <= 20.0,
            "--other-label (-1 or 0)": self.other_label in {-1, 0},
        }
        wrong = [name for name, good in checks.items() if not good]
        if wrong:
            raise ConfigError(f"{', '.join(wrong)}: out of range.", remedy="See stream-vae inject --help.")


@dataclass(frozen=True)
class Images:
    """One field: a difference, or a science image and its template; each (height, width), NaN where masked.

    Parameters
    ----------
    name : str
        What to call it.
    difference : ndarray or None
        Absent: science minus template is made here.
    science, template : ndarray or None
        On the difference's grid.
    noise : ndarray or None
        Standard deviation of the difference; None: measured in it. Not used for a pair.
    """

    name: str
    difference: Image | None = None
    science: Image | None = None
    template: Image | None = None
    noise: Image | None = None


def check_images(images: Images, plan: Plan) -> None:
    """See that a field can be used.

    Parameters
    ----------
    images : Images
        The field.
    plan : Plan
        How to inject.

    Raises
    ------
    ConfigError
        If images are missing, too small, of different shapes or blank.
    """
    given = {name: vars(images)[name] for name in ("difference", "science", "template", "noise")}
    given = {name: image for name, image in given.items() if image is not None}
    if "difference" not in given and not {"science", "template"} <= given.keys():
        raise ConfigError(
            f"{images.name}: no difference, and no pair to make one of.",
            remedy="Give --difference, or --science and --template.",
        )
    shapes = {name: image.shape for name, image in given.items()}
    if len(set(shapes.values())) > 1:
        raise ConfigError(f"{images.name}: shapes differ: {shapes}.", remedy="Give images on one pixel grid.")
    height, width = next(iter(shapes.values()))
    if min(height, width) < 2 * plan.size:
        raise ConfigError(
            f"{images.name}: {height}x{width} pixels are too few for stamps of {plan.size}.",
            remedy=f"Give images of at least {2 * plan.size} pixels a side, or a smaller --size.",
        )
    for name, image in given.items():
        if np.isfinite(image).mean() < 0.05:
            raise ConfigError(f"{images.name}: under 5% of {name} is finite.", remedy="Check the image and its mask.")
