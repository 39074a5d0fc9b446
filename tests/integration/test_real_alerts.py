"""Every real alert goes through Kafka and a worker and comes back: scored, or flagged with its reason.

What comes back is judged with confluent-kafka and fastavro alone, as a consumer would read it.
"""

import gzip
import io
import json
import math
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import astropy.io.fits
import fastavro
import numpy as np
import pytest
from stream_vae.avro.schema import mend
from stream_vae.model.store import ReleaseStore
from stream_vae.quality import UNSCOREABLE, Quality
from stream_vae.settings import Settings

from deployment import deploy
from flow import (
    Record,
    avro_file,
    check_books,
    decode,
    decode_file,
    encode,
    enriched_schema,
    now_ms,
    read,
    send,
    total,
    work,
)
from lsst_layouts import SCHEMA_IDS, lsst_schema, write_lsst_schemas
from releases import LATENTS, make_release
from schema_registry import Registry
from servers import Kafka

# How many there are in the data that field-notes describe, so that none is passed over in silence.
SURVEYS = {"ztf": 585, "lsst": 30, "winter": 21, "pgir": 17, "turbo": 11, "decam": 1}
CUTOUTS = {"one": ("difference",), "three": ("difference", "science", "template")}
PARTITIONS = {"real": 3, "embedded": 16}  # 585 of 57 kB are 2 MB a partition, under the 5 that the embedded one keeps
FATES = ("consumed", "published", "dead_lettered", "filtered")
VECTORS = ("latent_mean", "latent_log_var")
SCORES = ("real_score", "real_score_std", "reference_distance", "novelty")
ID_FIELDS = {"lsst": "diaSourceId"}
TRACE = [
    ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", b"a=b"),
    ("x", None),
]
WAYS = [
    pytest.param(("real", "one"), id="real-one", marks=pytest.mark.kafka),
    pytest.param(("real", "three"), id="real-three", marks=pytest.mark.kafka),
]


@dataclass(frozen=True)
class Flow:
    """One survey's alerts, there and back."""

    settings: Settings
    sent: list[Record]
    full: list[Record]
    lite: list[Record]
    dead: list[Record]
    counted: Counter

    @cached_property
    def pairs(self) -> list[tuple[Record, Record]]:
        """Original and enriched."""
        by_origin = {record.origin: record for record in self.full}
        return [(record, by_origin[record.position]) for record in self.sent]

    @cached_property
    def enrichments(self) -> list[dict[str, Any]]:
        return [decode_file(record.value)["stream_vae"] for record in self.full]


@pytest.fixture(scope="module", params=SURVEYS)
def survey(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=WAYS)
def way(request) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def flow(request, survey, way, real_packets, tmp_path_factory) -> Flow:
    broker, cutouts = way
    return flow_of(request, survey, broker, cutouts, real_packets, tmp_path_factory)


@pytest.fixture(scope="module")
def embedded_flow(request, real_packets, tmp_path_factory) -> Flow:
    return flow_of(request, "ztf", "embedded", "one", real_packets, tmp_path_factory)


def flow_of(request, survey, broker, cutouts, real_packets, tmp_path_factory) -> Flow:
    kafka: Kafka = request.getfixturevalue({"embedded": "embedded_kafka", "real": "kafka"}[broker])
    paths = real_packets(survey)
    assert len(paths) >= SURVEYS[survey]
    folder = tmp_path_factory.mktemp(survey)
    deployment = deploy(kafka, folder, survey=survey, partitions=PARTITIONS[broker])
    make_release(ReleaseStore(str(folder / "store")), folder / cutouts, cutouts=CUTOUTS[cutouts])
    return there_and_back(kafka, deployment.settings, [path.read_bytes() for path in paths], PARTITIONS[broker])


def there_and_back(kafka: Kafka, settings: Settings, packets: list[bytes], partitions: int) -> Flow:
    section = settings.kafka
    start_ms = now_ms() - 3_600_000
    records = [Record(packet, f"object-{n}".encode(), TRACE, start_ms + n) for n, packet in enumerate(packets)]
    send(kafka, section.input_topics[0], records, partitions=partitions)
    metrics = work(settings)
    fates = {fate: total(metrics, f"stream_vae_alerts_{fate}_total") for fate in FATES}
    sent, full, lite, dead = (
        read(kafka, topic)
        for topic in (section.input_topics[0], section.output_topic, section.lite_topic, section.dead_letter_topic)
    )
    return Flow(settings, sent, full, lite, dead, Counter(fates))


def same(one: object, other: object) -> bool:
    """Compare decoded records; by repr, because NaN is not equal to itself."""
    return repr(one) == repr(other)


def test_every_real_alert_comes_out_published_and_the_books_balance(flow):
    check_published(flow)


def test_every_ztf_alert_comes_out_of_the_embedded_kafka_too(embedded_flow):
    check_published(embedded_flow)


def check_published(flow: Flow) -> None:
    assert len(flow.sent) == len(flow.full) == len(flow.lite)
    assert {record.position for record in flow.sent} == {record.origin for record in flow.full}
    assert {record.position for record in flow.sent} == {record.origin for record in flow.lite}
    assert flow.dead == []
    check_books(flow.settings, consumed=len(flow.sent))
    assert flow.counted == {"consumed": len(flow.sent), "published": len(flow.sent), "dead_lettered": 0, "filtered": 0}


def test_every_real_alert_is_scored_but_for_one_with_a_blank_template(flow, survey, way):
    unscored = [each for each in flow.enrichments if each["quality"] & UNSCOREABLE]
    # One of TURBO's has 821.0 in every pixel of its template.
    assert [each["quality"] for each in unscored] == [Quality.BLANK] * ((survey, way[1]) == ("turbo", "three"))
    assert [each[name] for each in unscored for name in (*VECTORS, *SCORES)] == [None] * 6 * len(unscored)
    for enrichment in flow.enrichments:
        if enrichment in unscored:
            continue
        vectors = [enrichment[name] for name in VECTORS]
        scores = [enrichment[name] for name in SCORES]
        assert [len(vector) for vector in vectors] == [LATENTS, LATENTS]
        assert all(math.isfinite(number) for numbers in (*vectors, scores) for number in numbers)
        assert 0 <= enrichment["real_score"] <= 1
        assert 0 <= enrichment["novelty"] <= 1


def test_key_timestamp_and_trace_headers_are_kept(flow):
    for record, enriched in flow.pairs:
        assert (enriched.key, enriched.timestamp_ms) == (record.key, record.timestamp_ms)
        assert list(enriched.headers[: len(TRACE)]) == TRACE
        assert set(dict(enriched.headers[len(TRACE) :])) == {"stream_vae.source", "stream_vae.release"}
    assert {record.header("stream_vae.release").decode() for record in (*flow.full, *flow.lite)} == {
        enrichment["release"] for enrichment in flow.enrichments
    }


def test_the_original_is_untouched_and_the_whole_equals_a_full_encoding(flow):
    for record, enriched in flow.pairs:
        before, after = avro_file(record.value), avro_file(enriched.value)
        schema = enriched_schema(mend(json.loads(before.metadata.pop("avro.schema"))))
        assert json.loads(after.metadata.pop("avro.schema"))["fields"][:-1] == schema["fields"][:-1]
        assert after.metadata == before.metadata
        assert (after.sync, after.records) == (before.sync, 1)
        assert after.body.startswith(before.body)
        assert after.body == encode(schema, decode(schema, after.body))


def test_old_and_new_readers_read_it(flow):
    for record, enriched in flow.pairs[:40]:
        old = mend(json.loads(avro_file(record.value).metadata["avro.schema"]))
        original = decode(old, avro_file(record.value).body)
        new = enriched_schema(old)
        assert same(decode_file(enriched.value, old), original)
        found = decode_file(enriched.value, new)
        assert found.pop("stream_vae")["release"] == enriched.header("stream_vae.release").decode()
        assert same(found, original)
        # An alert that was never enriched, read by those who know the enrichment.
        plain = io.BytesIO()
        fastavro.writer(plain, old, [original])
        assert decode_file(plain.getvalue(), new)["stream_vae"] is None


def test_the_lite_topic_has_the_same_enrichment_with_the_alerts_id_and_place(flow, survey):
    full = {record.origin: decode_file(record.value) for record in flow.full}
    for record in flow.lite:
        lite, alert = decode_file(record.value), full[record.origin]
        assert lite["survey"] == survey
        assert lite["stream_vae"] == alert["stream_vae"]
        assert lite["alert_id"] == str(alert[ID_FIELDS.get(survey, "candid")])
        source = alert["diaSource" if survey == "lsst" else "candidate"]
        assert (lite["ra_deg"], lite["dec_deg"]) == (source["ra"], source.get("dec", source.get("decl")))
        assert 50_000 < lite["midpoint_mjd"] < 70_000


def test_alerts_with_more_masked_pixels_than_the_release_allows_are_published_unscored(kafka, real_packets, tmp_path):
    packets = [path.read_bytes() for path in real_packets("ztf/fink-broker")]
    deployment = deploy(kafka, tmp_path)
    make_release(ReleaseStore(str(tmp_path / "store")), tmp_path / "strict", max_masked_fraction=1e-6)
    flow = there_and_back(kafka, deployment.settings, packets, 1)
    unscored = 0
    for record in flow.full:
        alert = decode_file(record.value)
        enrichment = alert.pop("stream_vae")
        image = stamp_of(alert["cutoutDifference"]["stampData"])
        if image is None:
            continue  # cut off at the detector's edge: where its centre is, is the stamper's business
        has_nan = bool(np.isnan(image).any())
        unscored += has_nan
        assert bool(enrichment["quality"] & Quality.TOO_MANY_MASKED) == has_nan
        assert [enrichment[name] is None for name in (*VECTORS, *SCORES)] == [has_nan] * 6
    assert unscored
    check_published(flow)


def stamp_of(cutout: bytes) -> np.ndarray | None:
    """Cut the middle out of a whole ZTF cutout, with astropy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the "T" of SIMPLE is in another column than the standard has it
        hdus = astropy.io.fits.open(io.BytesIO(gzip.decompress(cutout)))
    with hdus:
        image = np.array(hdus[0].data, np.float64)
    return image[21:42, 21:42] if image.shape == (63, 63) else None


# LSST on the wire: the schemas are in a registry.


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry({number: json.dumps(lsst_schema(number)) for number in SCHEMA_IDS}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("cutouts", CUTOUTS)
def test_lsst_packets_of_the_wire_come_back_with_the_output_schemas_registered(
    kafka, real_packets, tmp_path, registry, cutouts
):
    packets = [path.read_bytes() for path in real_packets("lsst_wire")]
    deployment = deploy(kafka, tmp_path, survey="lsst", registry={"url": registry.url})
    make_release(ReleaseStore(str(tmp_path / "store")), tmp_path / cutouts, cutouts=CUTOUTS[cutouts])
    flow = there_and_back(kafka, deployment.settings, packets, 1)
    check_published(flow)
    assert set(registry.subjects) == {f"{deployment.output}-value", f"{deployment.lite}-value"}
    for record, enriched, lite in zip(flow.sent, flow.full, flow.lite, strict=True):
        old = lsst_schema(int.from_bytes(record.value[1:5], "big"))
        new, lite_schema = (registered(registry, each.value) for each in (enriched, lite))
        assert enriched.value[:1] == b"\0"
        assert enriched.value[5:].startswith(record.value[5:])
        alert = decode(new, enriched.value[5:])
        assert encode(new, alert) == enriched.value[5:]
        assert encode(enriched_schema(old), alert) == enriched.value[5:]
        assert same(decode(new, enriched.value[5:], old), decode(old, record.value[5:]))
        assert len(alert["stream_vae"]["latent_mean"]) == LATENTS
        assert decode(lite_schema, lite.value[5:])["alert_id"] == str(alert["diaSource"]["diaSourceId"])


def registered(registry: Registry, packet: bytes) -> dict[str, Any]:
    return json.loads(registry.schemas[int.from_bytes(packet[1:5], "big")])


def test_a_folder_of_schemas_serves_the_wire_too_and_gives_ids_that_last(kafka, real_packets, tmp_path):
    packets = [path.read_bytes() for path in real_packets("lsst_wire")]
    ids = []
    for turn in ("first", "second"):
        folder = tmp_path / turn
        folder.mkdir()
        write_lsst_schemas(folder)
        deployment = deploy(kafka, tmp_path / f"deployment-{turn}", survey="lsst", registry={"url": str(folder)})
        flow = there_and_back(kafka, deployment.settings, packets, 1)
        check_published(flow)
        for record, enriched in flow.pairs:
            schema = enriched_schema(lsst_schema(int.from_bytes(record.value[1:5], "big")))
            assert decode(schema, enriched.value[5:])["stream_vae"]["quality"] == 0
        ids.append([record.value[1:5] for record in flow.full])
    assert ids[0] == ids[1]
