"""The published bit mask keeps its values, and its documentation keeps up with it."""

import re
from pathlib import Path

from stream_vae import schemas
from stream_vae.quality import UNSCOREABLE, Quality, describe

README = Path(__file__).resolve().parents[2] / "schemas" / "README.md"


def test_the_published_bits_never_change_their_value() -> None:
    assert {flag.name: flag.value for flag in Quality} == {
        "MASKED_PIXELS": 1,
        "PADDED": 2,
        "NOT_SQUARE": 4,
        "MISSING_CUTOUT": 8,
        "UNREADABLE_CUTOUT": 16,
        "BLANK": 32,
        "TOO_MANY_MASKED": 64,
        "OVERSIZED_CUTOUT": 128,
        "ENCODER_OUTPUT_NOT_FINITE": 256,
        "NO_SCORER": 512,
    }


def test_every_bit_is_documented_where_readers_look() -> None:
    text = README.read_text(encoding="utf-8")
    (field,) = [f for f in schemas.load("enrichment", "1.0")["fields"] if f["name"] == "quality"]
    for flag in Quality:
        row = next(line for line in text.splitlines() if line.startswith(f"| {flag.value} | `{flag.name}` |"))
        assert ("**no**" in row) == bool(flag & UNSCOREABLE)
        entry = re.search(rf"\b{flag.value} [a-z][^;.]*", field["doc"])
        assert entry is not None
        assert ("(*)" in entry[0]) == bool(flag & UNSCOREABLE)


def test_a_mask_is_described_by_its_names() -> None:
    assert describe(Quality.PADDED | Quality.BLANK) == ("padded", "blank")
    assert describe(0) == ()


def test_a_bit_of_a_later_version_is_shown_by_its_value() -> None:
    assert describe(2048 | 1) == ("masked_pixels", "bit_2048")
