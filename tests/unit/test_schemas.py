"""The schemas that we publish: readable by stock fastavro, documented, and compatible among versions."""

import io
import re
from pathlib import Path

import fastavro
import pytest
from fastavro.utils import generate_one
from stream_vae import schemas
from stream_vae.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "schemas"
ALL = sorted((path.parent.name, path.stem) for path in FOLDER.glob("*/*.avsc"))


@pytest.mark.parametrize(("name", "version"), ALL)
def test_every_schema_parses_and_says_what_each_field_is(name: str, version: str) -> None:
    schema = _load(name, version)
    fastavro.parse_schema(schema)
    assert schema["doc"]
    assert all(field["doc"] for field in schema["fields"])


def test_the_enrichment_has_the_fields_of_the_design_in_their_order() -> None:
    names = [field["name"] for field in schemas.load("enrichment", "1.0")["fields"]]
    assert names == [
        "release",
        "latent_space",
        "latent_mean",
        "latent_log_var",
        "real_score",
        "real_score_std",
        "reference_distance",
        "novelty",
        "quality",
        "scored_at",
    ]


def test_vectors_and_scores_of_an_unscoreable_alert_are_null() -> None:
    schema = fastavro.parse_schema(schemas.load("enrichment", "1.0"))
    unscored = {"release": "r", "latent_space": "s", "quality": 32, "scored_at": 1_700_000_000_000_000}
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, schema, unscored)
    buffer.seek(0)
    record = fastavro.schemaless_reader(buffer, schema, None)
    nullable = ("latent_mean", "latent_log_var", "real_score", "real_score_std", "reference_distance", "novelty")
    assert all(record[name] is None for name in nullable)


def test_an_unknown_schema_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=re.escape("enrichment 99.0")):
        schemas.load("enrichment", "99.0")


def test_a_loaded_schema_is_the_callers_own() -> None:
    schemas.load("candidate", "1.0")["fields"].clear()
    assert schemas.load("candidate", "1.0")["fields"]


@pytest.mark.parametrize("name", sorted({name for name, _ in ALL}))
def test_versions_of_one_major_number_read_each_other(name: str) -> None:
    versions = [version for folder, version in ALL if folder == name]
    for written in versions:
        for read in versions:
            if written.split(".")[0] == read.split(".")[0]:
                _read_across(_load(name, written), _load(name, read))


def _load(name: str, version: str) -> dict:
    schema = schemas.load(name, version)
    if name == "lite":  # its file refers to the enrichment by name; messages have it written out
        schema["fields"][-1]["type"] = schemas.load("enrichment", version)
    return schema


def _read_across(writer: dict, reader: dict) -> None:
    """Every record that one version writes another version reads, with equal values in the fields that both have."""
    sample = generate_one(fastavro.parse_schema(writer))
    buffer = io.BytesIO()
    fastavro.writer(buffer, fastavro.parse_schema(writer), [sample])
    buffer.seek(0)
    (own,) = fastavro.reader(buffer)
    buffer.seek(0)
    (record,) = fastavro.reader(buffer, reader_schema=fastavro.parse_schema(reader))
    assert record.keys() == {field["name"] for field in reader["fields"]}
    assert all(record[key] == own[key] for key in record.keys() & own.keys())
