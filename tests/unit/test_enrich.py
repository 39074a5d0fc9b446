"""What is published: the original's bytes and one field more, as fastavro would have written and as it reads them."""

import io
import json
from typing import Any

import fastavro
import numpy as np
import pytest
from stream_vae import schemas, surveys
from stream_vae.alert import Alert, Codes, Outcome, Outgoing, Rejected, Scores
from stream_vae.avro.framing import FrameReader, Framing
from stream_vae.avro.registry import FolderRegistry
from stream_vae.errors import Reason
from stream_vae.model.release import Preprocessing, ReleaseCard
from stream_vae.sky.packets import packet_schema, simulate_packets
from stream_vae.stages.decode import Decoder
from stream_vae.stages.enrich import Enricher, EnrichmentWriter, OutputSchemas, Topics
from stream_vae.surveys import Profile

from stage_parts import CANDIDATE, avro_file, candidate, decoded, packet, record_of

LATENTS = 21
NOW = 1_790_000_000_123_456
ENRICHMENT = fastavro.parse_schema(schemas.load("enrichment", "1.0"))
RNG = np.random.default_rng(5)
CARD = ReleaseCard(
    id="test-20260101-0123456789ab",
    name="test",
    created_at="2026-01-01T00:00:00Z",
    latent_space="space-1",
    latent_size=LATENTS,
    recipe={},
    data={},
    metrics={},
    preprocessing=Preprocessing(),
    stream_vae_version="0",
    files={},
)


def found(rows: int, latents: int = LATENTS) -> tuple[Codes, Scores]:
    """Codes and scores of a batch in which everything is known."""
    codes = Codes(*(RNG.normal(0, 3, (rows, latents)).astype(np.float32) for _ in Codes._fields))
    return codes, Scores(*(RNG.uniform(0, 1, rows).astype(np.float32) for _ in Scores._fields))


def expected(codes: Codes, scores: Scores, row: int, quality: int = 0) -> dict[str, Any]:
    """The record that the schema describes; what is not finite is null."""

    def vector(values: np.ndarray) -> list[float] | None:
        return values[row].tolist() if np.isfinite(values[row]).all() else None

    def number(values: np.ndarray) -> float | None:
        return float(values[row]) if np.isfinite(values[row]) else None

    return {
        "release": CARD.id,
        "latent_space": CARD.latent_space,
        "latent_mean": vector(codes.z_mean),
        "latent_log_var": vector(codes.z_log_var),
        **{name: number(getattr(scores, name)) for name in Scores._fields},
        "quality": quality,
        "scored_at": NOW,
    }


def encoded(record: dict[str, Any], schema: Any) -> bytes:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, schema, record)
    return buffer.getvalue()


def enricher(
    full: str | None = "out",
    lite: str | None = None,
    profile: Profile | str = "candidate",
    registry: FolderRegistry | None = None,
    **options: Any,
) -> Enricher:
    chosen = surveys.load(profile) if isinstance(profile, str) else profile
    return Enricher(CARD, chosen, Topics(full, lite, "dead"), OutputSchemas(registry), **options)


def messages(results: list[Outcome | Rejected]) -> list[Outgoing]:
    outcomes = [result for result in results if isinstance(result, Outcome)]
    assert len(outcomes) == len(results), results
    return [message for outcome in outcomes for message in outcome.messages]


def read(value: bytes, schema: Any = None) -> dict[str, Any]:
    (record,) = fastavro.reader(io.BytesIO(value), schema)
    assert isinstance(record, dict)
    return record


# the record's bytes


@pytest.mark.parametrize("latents", [1, 21, 63, 64, 200])
def test_the_bytes_are_those_that_fastavro_writes(latents: int) -> None:
    codes, scores = found(6, latents)
    for row, hole in enumerate([None, "z_mean", "real_score", "reference_distance", "novelty", "everything"]):
        for values in (*zip(Codes._fields, codes, strict=True), *zip(Scores._fields, scores, strict=True)):
            coded = hole == "z_mean" and values[0] in Codes._fields
            if hole in (values[0], "everything") or coded:
                values[1][row] = np.nan
    quality = np.array([0, 16, 512, 64, 1023, 8], np.uint32)
    written = EnrichmentWriter(CARD.id, CARD.latent_space, latents).write(codes, scores, quality, NOW)
    for row, value in enumerate(written):
        assert value == encoded(expected(codes, scores, row, int(quality[row])), ENRICHMENT)


@pytest.mark.parametrize("name", [*Codes._fields, *Scores._fields])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_any_value_that_is_not_finite_is_null_by_itself(name: str, wrong: float) -> None:
    codes, scores = found(2)
    values = getattr(codes if name in Codes._fields else scores, name)
    values[0].flat[-1:] = wrong if values.ndim == 2 else 0
    if values.ndim == 1:
        values[0] = wrong
    writer = EnrichmentWriter(CARD.id, CARD.latent_space, LATENTS)
    for row, value in enumerate(writer.write(codes, scores, np.zeros(2, np.uint32), NOW)):
        assert value == encoded(expected(codes, scores, row), ENRICHMENT)


def test_no_rows_make_no_records() -> None:
    codes, scores = found(0)
    assert EnrichmentWriter("r", "s", LATENTS).write(codes, scores, np.zeros(0, np.uint32), NOW) == []


def test_names_beyond_ascii_are_written_as_utf8() -> None:
    codes, scores = found(1)
    (value,) = EnrichmentWriter("ré" * 40, "空間", LATENTS).write(codes, scores, np.zeros(1, np.uint32), NOW)
    record = expected(codes, scores, 0) | {"release": "ré" * 40, "latent_space": "空間"}
    assert value == encoded(record, ENRICHMENT)


# the full message


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy"])
def test_a_full_message_is_what_fastavro_would_have_written_from_the_whole_record(codec: str) -> None:
    originals = [candidate(n) for n in range(3)]
    alerts = decoded([avro_file(record, codec=codec) for record in originals])
    codes, scores = found(3)
    codes.z_mean[1], codes.z_log_var[1], scores.real_score[1] = np.nan, np.nan, np.nan
    sent = messages(enricher().enrich(alerts, codes, scores, np.array([0, 8, 1], np.uint32), NOW))
    schema = CANDIDATE | {
        "fields": [*CANDIDATE["fields"], {"name": "stream_vae", "type": ["null", ENRICHMENT], "default": None}]
    }
    for row, (original, quality) in enumerate(zip(originals, (0, 8, 1), strict=True)):
        whole = original | {"stream_vae": expected(codes, scores, row, quality)}
        frame = FrameReader().open(sent[row].value)
        assert bytes(frame.body) == encoded(whole, fastavro.parse_schema(schema))
        assert frame.codec == codec
        assert frame.sync == alerts[row].frame.sync


def test_old_readers_read_new_messages_and_new_readers_old_ones() -> None:
    original = candidate(1)
    (alert,) = decoded([avro_file(original)])
    codes, scores = found(1)
    (message,) = messages(enricher().enrich([alert], codes, scores, np.zeros(1, np.uint32), NOW))
    new_schema = json.loads(FrameReader().open(message.value).writer.json)
    plain = read(alert.packet.value)
    assert read(message.value, CANDIDATE) == plain
    assert read(alert.packet.value, new_schema) == plain | {"stream_vae": None}
    enriched = read(message.value)
    assert enriched.pop("stream_vae")["latent_mean"] == codes.z_mean[0].tolist()
    assert enriched == plain


def test_the_original_is_not_touched_byte_for_byte() -> None:
    packets = [each.packet for each in simulate_packets(3, shape="ztf", seed=1)]
    alerts = decoded(packets, "ztf")
    codes, scores = found(3)
    sent = messages(enricher(profile="ztf").enrich(alerts, codes, scores, np.zeros(3, np.uint32), NOW))
    for alert, message in zip(alerts, sent, strict=True):
        body = bytes(FrameReader().open(message.value).body)
        assert body.startswith(bytes(alert.frame.body))
        assert alert.frame.header is not None
        assert alert.packet.value.startswith(alert.frame.header.prefix)


def test_redelivery_gives_the_same_bytes_but_for_the_time_of_scoring() -> None:
    values = [avro_file(candidate(n)) for n in range(4)]
    codes, scores = found(4)
    quality = np.zeros(4, np.uint32)
    once = messages(enricher(lite="lite").enrich(decoded(values), codes, scores, quality, NOW))
    again = messages(enricher(lite="lite").enrich(decoded(values), codes, scores, quality, NOW))
    later = messages(enricher(lite="lite").enrich(decoded(values), codes, scores, quality, NOW + 60_000_000))
    assert once == again
    for early, late in zip(once, later, strict=True):
        first, second = read(early.value), read(late.value)
        assert first.pop("stream_vae").pop("scored_at") != second.pop("stream_vae").pop("scored_at")
        assert first == second
        assert early.headers == late.headers


def test_the_time_of_scoring_is_now_in_microseconds() -> None:
    codes, scores = found(1)
    before = np.datetime64("now", "us").astype(int) - 2_000_000
    (message,) = messages(enricher().enrich(decoded([avro_file(candidate())]), codes, scores, np.zeros(1, np.uint32)))
    scored_at = read(message.value)["stream_vae"]["scored_at"]
    assert before < scored_at.timestamp() * 1e6 < before + 60_000_000


# headers, key, time


def test_key_time_and_foreign_headers_are_kept_and_our_own_are_renewed() -> None:
    headers = [("traceparent", b"00-1"), ("stream_vae.release", b"old"), ("stream_vae.reason", b"x"), ("nothing", None)]
    (alert,) = decoded([avro_file(candidate())], headers=headers, key=b"key", timestamp_ms=123)
    codes, scores = found(1)
    for message in messages(enricher(lite="lite").enrich([alert], codes, scores, np.zeros(1, np.uint32), NOW)):
        assert message.key == b"key"
        assert message.timestamp_ms == 123
        assert message.headers == [
            ("traceparent", b"00-1"),
            ("nothing", None),
            ("stream_vae.source", b"in/0/0"),
            ("stream_vae.release", CARD.id.encode()),
        ]


# the filter


def test_the_filter_takes_low_scores_and_never_an_unscored_alert() -> None:
    alerts = decoded([avro_file(candidate(n)) for n in range(4)])
    codes, scores = found(4)
    scores.real_score[:] = [0.2, 0.5, np.nan, 0.49999]
    results = enricher(min_real_score=0.5).enrich(alerts, codes, scores, np.zeros(4, np.uint32), NOW)
    assert [result.fate for result in results if isinstance(result, Outcome)] == [
        "filtered",
        "published",
        "published",
        "filtered",
    ]
    assert results[0] == Outcome(alerts[0].packet, (), "filtered")


# the lite message


@pytest.mark.parametrize("only", [True, False])
def test_a_lite_message_is_the_enrichment_and_where_it_belongs(only: bool) -> None:
    (alert,) = decoded([avro_file(candidate(7))])
    codes, scores = found(1)
    *_, message = messages(
        enricher(full=None if only else "out", lite="lite").enrich(
            [alert], codes, scores, np.array([1], np.uint32), NOW
        )
    )
    record = read(message.value)
    assert message.topic == "lite"
    assert record.pop("stream_vae")["quality"] == 1
    assert record == {
        "survey": "candidate",
        "alert_id": "7",
        "object_id": "object-7",
        "ra_deg": 17.0,
        "dec_deg": -20.0,
        "midpoint_mjd": 60_000.25,
        "time_scale": "utc",
        "band": "g",
    }


def test_a_lite_messages_schema_is_the_published_one_with_the_enrichment_written_out() -> None:
    (alert,) = decoded([avro_file(candidate(7))])
    codes, scores = found(1)
    (message,) = messages(enricher(None, "lite").enrich([alert], codes, scores, np.zeros(1, np.uint32), NOW))
    lite = schemas.load("lite", "1.0")
    lite["fields"][-1]["type"] = schemas.load("enrichment", "1.0")
    assert json.loads(FrameReader().open(message.value).writer.json) == lite


def test_what_the_alert_does_not_say_is_null() -> None:
    (alert,) = decoded([avro_file(candidate(7, object_id=None, band=None))])
    codes, scores = found(1)
    (message,) = messages(enricher(None, "lite").enrich([alert], codes, scores, np.zeros(1, np.uint32), NOW))
    record = read(message.value)
    assert record["object_id"] is None
    assert record["band"] is None


def test_a_julian_date_becomes_a_modified_one_and_a_filter_number_its_name() -> None:
    (simulated,) = simulate_packets(1, shape="ztf", seed=2)
    (alert,) = decoded([simulated.packet], "ztf")
    codes, scores = found(1)
    quality = np.zeros(1, np.uint32)
    (message,) = messages(enricher(None, "lite", "ztf").enrich([alert], codes, scores, quality, NOW))
    record, original = read(message.value), record_of(simulated.packet)["candidate"]
    assert record["midpoint_mjd"] == pytest.approx(original["jd"] - 2_400_000.5, abs=1e-9)
    assert record["band"] == {1: "g", 2: "r", 3: "i"}[original["fid"]]
    assert record["alert_id"] == str(original["candid"])
    assert record["ra_deg"] == original["ra"]


def test_numbers_that_identify_become_text_and_an_unknown_filter_keeps_its_number() -> None:
    fields = {"id": "long", "object": "long", "fid": "int", "ra": "float", "t": "long"}
    writer = {"type": "record", "name": "R", "fields": [{"name": n, "type": t} for n, t in fields.items()]}
    paths = {"alert_id": "id", "object_id": "object", "band": "fid", "ra_deg": "ra", "time": "t"}
    profile = surveys.load("mine", {"fields": paths, "cutouts": {"science": "none"}, "band_names": {"1": "g"}})
    value = avro_file({"id": -3, "object": 2**60, "fid": 9, "ra": 1.5, "t": 60_000}, fastavro.parse_schema(writer))
    codes, scores = found(1)
    results = enricher(None, "lite", profile).enrich(
        decoded([value], profile), codes, scores, np.zeros(1, np.uint32), NOW
    )
    record = read(messages(results)[0].value)
    assert (record["alert_id"], record["object_id"], record["band"]) == ("-3", str(2**60), "9")
    assert (record["ra_deg"], record["midpoint_mjd"], record["survey"]) == (1.5, 60_000.0, "mine")


# schemas that admit no enrichment


def with_field(name: str, kind: Any, value: Any) -> Alert:
    schema = CANDIDATE | {"fields": [*CANDIDATE["fields"], {"name": name, "type": kind}]}
    (alert,) = decoded([avro_file(candidate() | {name: value}, fastavro.parse_schema(schema))])
    return alert


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("stream_vae", "int", 1),
        (
            "other",
            {"type": "record", "name": "stream_vae.StreamVaeEnrichment", "fields": [{"name": "x", "type": "int"}]},
            {"x": 1},
        ),
    ],
)
def test_an_alert_that_has_the_field_or_its_type_already_is_rejected_alone(name: str, kind: Any, value: Any) -> None:
    bad = with_field(name, kind, value)
    (good,) = decoded([avro_file(candidate())])
    codes, scores = found(2)
    rejected, published = enricher().enrich([bad, good], codes, scores, np.zeros(2, np.uint32), NOW)
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.stage, rejected.alert_id) == (Reason.SCHEMA, "enrich", "1")
    assert isinstance(published, Outcome)
    assert published.fate == "published"


def test_lite_alone_takes_alerts_that_were_enriched_before() -> None:
    alert = with_field("stream_vae", "int", 1)
    codes, scores = found(1)
    (message,) = messages(enricher(None, "lite").enrich([alert], codes, scores, np.zeros(1, np.uint32), NOW))
    assert read(message.value)["alert_id"] == "1"


# Confluent's wire format


def test_confluent_messages_stay_confluent_under_the_id_of_the_registered_schema(tmp_path: Any) -> None:
    (tmp_path / "7.avsc").write_text(packet_schema("candidate"))
    registry = FolderRegistry(tmp_path)
    (simulated,) = simulate_packets(1, shape="candidate", seed=3, schema_id=7)
    frames = FrameReader(framing=Framing.CONFLUENT, schemas=registry)
    from stream_vae.avro.limits import DEFAULT_LIMITS

    decoder = Decoder(frames, surveys.load("candidate"), DEFAULT_LIMITS)
    (alert,), _ = decoder.decode([packet(simulated.packet)])
    codes, scores = found(1)
    quality = np.zeros(1, np.uint32)
    full, lite = messages(enricher("out", "lite", registry=registry).enrich([alert], codes, scores, quality, NOW))
    for message in (full, lite):
        assert message.value[0] == 0
        schema_id = int.from_bytes(message.value[1:5], "big")
        schema = fastavro.parse_schema(json.loads(registry.get(schema_id)))
        stream = io.BytesIO(message.value[5:])
        record = fastavro.schemaless_reader(stream, schema, None)
        assert stream.read() == b""
        assert record["stream_vae"]["release"] == CARD.id  # type: ignore[index, call-overload]
    assert full.value[5:].startswith(simulated.packet[5:])
