"""Simulated images as files: FITS images, a catalogue of what was injected, and one of what was detected."""

import csv
from pathlib import Path

import numpy as np

from stream_vae.sky.fits import Value, write_fits
from stream_vae.sky.simulate import Field

IMAGES = ("science", "template", "difference", "noise")


def write_field(folder: Path, number: int, field: Field) -> None:
    """Write an image pair.

    Parameters
    ----------
    folder : Path
        Gets ``00007-science.fits``, ``-template.fits``, ``-difference.fits`` and ``-noise.fits`` (of the difference),
        all on one pixel grid, float32 counts (ADU), NaN where there are no data; ``-injected.csv`` and
        ``-detected.csv``, whose pixels count from 0 as numpy's do.
    number : int
        Of the pair.
    field : Field
        What to write.
    """
    difference, gain = field.difference, np.float32(field.conditions.gain_e_adu)
    pixels = (difference.science, difference.template, difference.image, difference.noise)
    cards: dict[str, Value] = {
        "BUNIT": "adu",
        "GAIN": float(gain),
        "PIXSCALE": round(field.conditions.pixel_scale_arcsec, 4),
        "MAGZERO": round(field.conditions.zero_point_mag - 2.5 * float(np.log10(gain)), 4),
    }
    for name, image in zip(IMAGES, pixels, strict=True):
        (folder / f"{number:05d}-{name}.fits").write_bytes(write_fits((image / gain).astype(np.float32), cards))
    injected, found = field.transients, field.candidates
    _write_table(
        folder / f"{number:05d}-injected.csv",
        {"x": injected.x, "y": injected.y, "flux_adu": injected.flux / gain, "kind": injected.kind},
    )
    _write_table(
        folder / f"{number:05d}-detected.csv",
        {
            "x": found.column,
            "y": found.row,
            "snr": found.snr,
            "flux_adu": found.flux / gain,
            "positive": found.positive.astype(int),
            "kind": found.kind,
            "label": found.real.astype(int),
        },
    )


def _write_table(path: Path, columns: dict[str, np.ndarray]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*(column.tolist() for column in columns.values()), strict=True):
            writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in row)
