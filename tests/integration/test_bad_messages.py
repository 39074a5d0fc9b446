"""Bad messages of every kind go through Kafka, among good ones: each ends where it must, and the worker goes on."""

import numpy as np
import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from stream_vae.errors import FatalError
from stream_vae.faults.corpus import EXPECTED, Expected, Outcome, corrupt, kinds_for
from stream_vae.model.store import ReleaseStore
from stream_vae.quality import UNSCOREABLE
from stream_vae.sky.packets import simulate_packets

from deployment import Deployment, deploy
from flow import Record, check_books, decode_file, now_ms, read, send, total, work
from releases import make_release

PARTITIONS = 8  # 5 MB of bad alerts, and as much again: under the 5 MB a partition that the embedded Kafka keeps
CUTOUTS = ("difference", "science", "template")
FAULT = "test.fault"
GOOD = "none"
ALL_FATES = {"max_dead_letter_ratio": 1.0}  # more than half of these messages are bad, on purpose


def records_of(shape: str) -> list[Record]:
    """Give a good alert before each spoiled one."""
    packets = [each.packet for each in simulate_packets(8, shape=shape, seed=5)]
    rng = np.random.default_rng(11)
    records = []
    for n, kind in enumerate(kinds_for(packets[0])):
        good = packets[n % len(packets)]
        for name, packet in ((GOOD, good), (kind, corrupt(good, kind, rng))):
            key = f"{name}-{n}".encode()
            records.append(Record(packet, key, [(FAULT, name.encode()), ("traceparent", key)], now_ms()))
    return records


@pytest.fixture
def deployment(broker, tmp_path, request) -> Deployment:
    made = deploy(broker, tmp_path, survey=request.param, partitions=PARTITIONS, limits=ALL_FATES)
    make_release(ReleaseStore(str(tmp_path / "store")), tmp_path / "three", cutouts=CUTOUTS)
    return made


@pytest.mark.parametrize("deployment", ["ztf", "candidate"], indirect=True)
def test_every_kind_of_bad_message_ends_where_it_must_and_the_books_balance(broker, deployment):
    records = records_of(deployment.settings.survey)
    assert len(records) > 2 * 40
    send(broker, deployment.input, records, partitions=PARTITIONS)
    metrics = work(deployment.settings)

    sent = {record.position: record for record in read(broker, deployment.input)}
    published = read(broker, deployment.output)
    dead = read(broker, deployment.dead_letters)
    assert len(sent) == len(records)
    assert sorted(record.origin for record in (*published, *dead)) == sorted(sent)  # each once, none twice
    for record in dead:
        check_dead_letter(record, sent[record.origin])
    for record in published:
        check_published(record)
    check_books(deployment.settings, consumed=len(sent), dead_lettered=len(dead))
    assert total(metrics, "stream_vae_alerts_rejected_total") == len(dead)
    assert {record.origin for record in read(broker, deployment.lite)} == {record.origin for record in published}


def expected_of(record: Record) -> Expected:
    fault = record.header(FAULT).decode()
    return Expected(Outcome.SCORED) if fault == GOOD else EXPECTED[fault]


def check_dead_letter(record: Record, original: Record) -> None:
    expected = expected_of(record)
    assert expected.outcome is Outcome.DEAD_LETTER, record.headers
    assert record.header("stream_vae.reason").decode() in expected.reasons, record.headers
    assert (record.value, record.key) == (original.value, original.key)
    assert record.header("stream_vae.timestamp_ms") == str(original.timestamp_ms).encode()
    assert list(record.headers[: len(original.headers)]) == list(original.headers)
    place = [record.header(f"stream_vae.{name}").decode() for name in ("topic", "partition", "offset")]
    assert place == [str(part) for part in original.position]
    assert record.header("stream_vae.stage") in {b"decode", b"enrich"}
    assert record.header("stream_vae.error")


def check_published(record: Record) -> None:
    expected = expected_of(record)
    enrichment = decode_file(record.value)["stream_vae"]
    unscored = bool(enrichment["quality"] & UNSCOREABLE)
    assert expected.outcome is (Outcome.FLAGGED if unscored else Outcome.SCORED), (record.headers, enrichment)
    assert enrichment["quality"] & expected.quality == expected.quality, record.headers
    assert (enrichment["latent_mean"] is None) == (enrichment["real_score"] is None) == unscored
    if record.header(FAULT).decode() == GOOD:
        assert enrichment["quality"] == 0


def test_a_message_without_a_value_is_dead_lettered_as_empty(broker, tmp_path):
    deployment = deploy(broker, tmp_path, limits=ALL_FATES)
    good = next(simulate_packets(1, seed=6)).packet
    send(broker, deployment.input, [Record(None, b"deleted"), Record(good, b"good"), Record(b"", b"empty")])
    work(deployment.settings)
    dead = read(broker, deployment.dead_letters)
    assert [(record.key, record.header("stream_vae.reason")) for record in dead] == [
        (b"deleted", b"empty"),
        (b"empty", b"empty"),
    ]
    assert [record.key for record in read(broker, deployment.output)] == [b"good"]
    check_books(deployment.settings, consumed=3, dead_lettered=2)


# Messages that the output topic refuses for their size.

MODES = pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])
LARGE = next(simulate_packets(1, seed=12, size=71)).packet
LIMIT = len(LARGE) + 500  # of the topic: the enrichment takes more than that, and the others have far less


@MODES
def test_an_alert_that_grows_over_the_topics_limit_is_dead_lettered_and_its_neighbours_are_not(kafka, tmp_path, mode):
    output = kafka.fresh_topic(stem="limited", max_message_bytes=LIMIT)
    deployment = deploy(kafka, tmp_path, kafka={"output_topic": output}, delivery={"mode": mode})
    packets = [each.packet for each in simulate_packets(20, seed=7)]
    assert max(map(len, packets)) + 5_000 < LIMIT < sum(map(len, packets))
    records = [Record(packet, b"fits") for packet in packets]
    records[4] = records[13] = Record(LARGE, b"does not fit")
    send(kafka, deployment.input, records)
    work(deployment.settings)
    dead = read(kafka, deployment.dead_letters)
    assert [(each.key, each.header("stream_vae.reason")) for each in dead] == [
        (b"does not fit", b"too_large_to_publish")
    ] * 2
    assert [each.value for each in dead] == [LARGE] * 2
    assert [each.origin[2] for each in read(kafka, output)] == [n for n in range(20) if n not in {4, 13}]
    check_books(deployment.settings, consumed=20, dead_lettered=2)


@MODES
def test_dead_letters_that_fit_one_by_one_are_no_reason_to_stop(kafka, tmp_path, mode):
    dead_letters = kafka.fresh_topic(stem="limited", max_message_bytes=LIMIT)
    deployment = deploy(
        kafka, tmp_path, kafka={"dead_letter_topic": dead_letters}, delivery={"mode": mode}, limits=ALL_FATES
    )
    records = [Record(each.packet[:-1], b"cut short") for each in simulate_packets(20, seed=8)]
    send(kafka, deployment.input, records)
    work(deployment.settings)
    assert [each.value for each in read(kafka, dead_letters)] == [each.value for each in records]
    check_books(deployment.settings, consumed=20, dead_lettered=20)


def test_a_dead_letter_that_does_not_fit_its_topic_stops_the_worker_and_is_not_lost(kafka, tmp_path):
    dead_letters = kafka.fresh_topic(stem="limited", max_message_bytes=10_000)
    deployment = deploy(kafka, tmp_path, kafka={"dead_letter_topic": dead_letters})
    packets = [each.packet for each in simulate_packets(3, seed=9)]
    send(kafka, deployment.input, [Record(packet) for packet in (packets[0], packets[1][:-1], packets[2])])
    with pytest.raises(FatalError, match=r"dead letter of .* is too large"):
        work(deployment.settings)
    widen(kafka, dead_letters)
    work(deployment.settings)
    assert [each.value for each in read(kafka, dead_letters)] == [packets[1][:-1]]
    check_books(deployment.settings, consumed=3, dead_lettered=1, duplicates=None)


def widen(kafka, topic: str) -> None:
    entry = ConfigEntry("max.message.bytes", "1000000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.incremental_alter_configs([resource])[resource].result(30)


# Most of them bad: then not the alerts are at fault.


@MODES
def test_when_most_messages_are_bad_the_worker_stops_and_nothing_is_lost(kafka, tmp_path, mode):
    deployment = deploy(kafka, tmp_path, delivery={"mode": mode}, batch={"max_alerts": 32})
    packets = [each.packet for each in simulate_packets(200, shape="candidate", seed=10)]
    survey = {"survey": "candidate"}
    settings = deployment.settings.model_copy(update=survey)
    records = [Record(packet if n < 40 else packet[:-1]) for n, packet in enumerate(packets)]
    send(kafka, deployment.input, records)
    with pytest.raises(FatalError, match="max_dead_letter_ratio"):
        work(settings)
    published, dead = (read(kafka, topic) for topic in (deployment.output, deployment.dead_letters))
    assert len(published) == 40
    assert 50 < len(dead) < 160, "it stopped before the end, once it had seen 100 messages"

    # As an operator would who has looked at the dead letters and decides to go on.
    limits = settings.limits.model_copy(update=ALL_FATES)
    work(settings.model_copy(update={"limits": limits}))
    dead = read(kafka, deployment.dead_letters)
    assert [each.value for each in dead] == [each.value for each in records[40:]]
    check_books(settings, consumed=200, dead_lettered=160)
