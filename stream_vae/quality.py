"""What was unusual about one alert's cutouts: the ``quality`` bit mask of every enriched alert.

The bits are part of the published record (schemas/README.md lists them), so a value is never given a new meaning.
"""

from enum import IntFlag


class Quality(IntFlag):
    """Bits of the ``quality`` field; zero means that nothing was unusual."""

    MASKED_PIXELS = 1
    """Some pixels of a stamp were NaN or infinite, and were filled after the scaling."""
    PADDED = 2
    """The cutout was smaller than the stamp, or off-centre for it, and was padded."""
    NOT_SQUARE = 4
    """The cutout's sides differ."""
    MISSING_CUTOUT = 8
    """A cutout that the release needs is null or absent."""
    UNREADABLE_CUTOUT = 16
    """A cutout that the release needs does not decompress, or is no two-dimensional image."""
    BLANK = 32
    """All unmasked pixels of a stamp have one value, so there is nothing to scale by."""
    TOO_MANY_MASKED = 64
    """A larger share of a stamp is masked than the release allows."""
    OVERSIZED_CUTOUT = 128
    """A cutout is larger than the cap on decompressed bytes; decompression stopped there."""
    ENCODER_OUTPUT_NOT_FINITE = 256
    """The encoder gave NaN or infinity for this stamp."""
    NO_SCORER = 512
    """The release has no scorer: the code is there and the score is null."""


UNSCOREABLE = (
    Quality.MISSING_CUTOUT
    | Quality.UNREADABLE_CUTOUT
    | Quality.BLANK
    | Quality.TOO_MANY_MASKED
    | Quality.OVERSIZED_CUTOUT
    | Quality.ENCODER_OUTPUT_NOT_FINITE
)
"""Any of these bits: the alert is published with null vectors and scores."""


def describe(quality: int) -> tuple[str, ...]:
    """Give the names of the bits that are set, lowest first.

    Parameters
    ----------
    quality : int
        The bit mask of an enriched alert.

    Returns
    -------
    tuple of str
        Lower-case names; a bit that this version does not know is shown as ``bit_<value>``.
    """
    known = [flag.name.lower() for flag in Quality if quality & flag and flag.name]
    unknown = quality & ~sum(Quality)
    return (*known, *(f"bit_{1 << i}" for i in range(unknown.bit_length()) if unknown >> i & 1))
