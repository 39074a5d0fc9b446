"""`inspect` and `tail` on real alerts, in files and in topics of both Kafkas."""

import itertools
import json

import pytest
from stream_vae.errors import ConfigError
from stream_vae.model.store import ReleaseStore
from stream_vae.tools import topics

from deployment import answered, command, deploy
from releases import make_release

SURVEYS = ("ztf", "lsst", "pgir", "winter", "turbo", "decam")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    make_release(ReleaseStore(str(folder / "store")), folder / "release")
    return folder / "store"


@pytest.mark.parametrize("survey", SURVEYS)
def test_inspect_tells_the_survey_of_a_real_alert_and_scores_it(survey, real_packets, store):
    for packet in real_packets(survey)[::40]:
        found = answered("inspect", packet, "--store", store)
        assert found["survey"] == survey, packet
        assert all(found["fields"][name] is not None for name in ("alert_id", "ra_deg", "dec_deg", "date")), packet
        assert found["verdict"]["quality_names"] or 0 <= found["verdict"]["real_score"] <= 1
        assert set(found["cutouts"]) == {"difference", "science", "template"}


def test_inspect_shows_fields_cutouts_scores_and_a_picture(real_packets, store, tmp_path):
    packet = real_packets("ztf/kowalski")[0]
    png = tmp_path / "alert.png"
    result = command("inspect", packet, "--store", store, "--png", png)
    assert result.exit_code == 0
    for expected in ("ztf alert", "object_id", "63x63", "real_score", "latent mean", "difference 21x21"):
        assert expected in result.stdout
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "neither decoder.onnx nor cvae.keras" in result.stdout


def test_inspect_says_why_a_file_is_no_alert(real_packets, tmp_path):
    packet = tmp_path / "cut.avro"
    packet.write_bytes(real_packets("ztf")[0].read_bytes()[:-100])
    result = command("inspect", packet, "--survey", "ztf", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["rejected"]["reason"] == "truncated"


def test_inspect_refuses_what_is_neither_file_nor_position():
    result = command("inspect", "no-such-file.avro")
    assert isinstance(result.exception, ConfigError)
    assert "ztf-enriched/0/42" in str(result.exception)


def test_enriched_alerts_are_shown_by_tail_and_inspect(broker, real_packets, tmp_path):
    deployment = deploy(broker, tmp_path)
    packets = [path.read_bytes() for path in real_packets("ztf/kowalski")[:6]]
    deployment.publish(packets)
    deployment.run_worker()

    for topic in (deployment.output, deployment.lite):
        result = command("tail", topic, "--settings", deployment.file, "-n", 4, "--json")
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row["source"] for row in rows] == [f"{deployment.input}/0/{offset}" for offset in range(2, 6)]
        for row in rows:
            message = answered("inspect", row["at"], "--settings", deployment.file)
            assert message["fields"]["alert_id"] == row["alert_id"]
            assert message["enrichment"]["real_score"] == row["real_score"]
            assert message["lite"] == (topic == deployment.lite)

    full = answered("inspect", f"{deployment.output}/0/0", "--settings", deployment.file)
    scored = ("latent_mean", "latent_log_var", "real_score", "reference_distance", "novelty", "quality", "release")
    assert {name: full["enrichment"][name] for name in scored} == {name: full["verdict"][name] for name in scored}


def test_tail_shows_a_table_with_scores(embedded_kafka, real_packets, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path)
    deployment.publish(path.read_bytes() for path in real_packets("ztf/kowalski")[:3])
    deployment.run_worker()
    result = command("tail", "--settings", deployment.file)
    assert result.exit_code == 0
    assert "real_score" in result.stdout
    assert result.stdout.count(" ± ") == 3
    assert f"{deployment.output}/0/2" in result.stdout


def test_tail_says_that_a_message_is_not_enriched_or_no_alert(embedded_kafka, real_packets, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path)
    deployment.publish([real_packets("ztf")[0].read_bytes(), b"junk"])
    result = command("tail", deployment.input, "--settings", deployment.file, "--json")
    problems = [json.loads(line)["problem"] for line in result.stdout.splitlines()]
    assert problems[0] == "not enriched"
    assert problems[1].startswith("framing: ")


def test_following_gives_the_latest_and_then_what_comes(broker, tmp_path):
    deployment = deploy(broker, tmp_path, partitions=3)
    deployment.publish([b"a", b"b", b"c", b"d"])
    lists = topics.follow(deployment.settings.kafka, deployment.input, 2)
    first = next(lists)
    assert len(first) == 2
    deployment.publish([b"e", b"f", b"g"])
    came = list(itertools.islice((packet.value for packets in lists for packet in packets), 3))
    assert sorted(came) == [b"e", b"f", b"g"]


def test_the_latest_messages_are_found_behind_transaction_markers(kafka, tmp_path):
    from confluent_kafka import Producer

    deployment = deploy(kafka, tmp_path)
    name = kafka.topic("writer")
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": name})
    producer.init_transactions(20)
    for number in range(4):  # one message and one marker each
        producer.begin_transaction()
        producer.produce(deployment.input, b"%d" % number)
        producer.commit_transaction(20)
    found = topics.latest(deployment.settings.kafka, deployment.input, 3)
    assert [packet.value for packet in found] == [b"1", b"2", b"3"]
    with pytest.raises(ConfigError, match="marker"):
        topics.read_at(deployment.settings.kafka, topics.Position(deployment.input, 0, 7))


def test_following_waits_for_an_open_transaction(kafka, tmp_path):
    from confluent_kafka import Producer

    deployment = deploy(kafka, tmp_path)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": kafka.topic("writer")})
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(deployment.input, b"soon")
    producer.flush(20)
    lists = topics.follow(deployment.settings.kafka, deployment.input, 5)
    assert next(lists) == []
    producer.commit_transaction(20)
    assert next(packet.value for packets in lists for packet in packets) == b"soon"


def test_a_position_outside_the_topic_is_an_error_that_says_what_there_is(broker, tmp_path):
    deployment = deploy(broker, tmp_path)
    deployment.publish([b"only"])
    result = command("inspect", f"{deployment.input}/0/5", "--settings", deployment.file)
    assert isinstance(result.exception, ConfigError)
    assert "0 to 0" in str(result.exception)
    result = command("inspect", "no-such-topic/0/5", "--settings", deployment.file)
    assert isinstance(result.exception, ConfigError)


def test_tail_reads_confluent_packets_whose_output_schema_no_registry_keeps(broker, real_packets, tmp_path):
    from lsst_layouts import SCHEMA_IDS, write_lsst_schemas

    folder = tmp_path / "schemas"
    folder.mkdir()
    write_lsst_schemas(folder)
    deployment = deploy(broker, tmp_path, survey="lsst", registry={"url": str(folder)})
    packets = [path.read_bytes() for path in real_packets("lsst_wire")]
    assert {int.from_bytes(packet[1:5], "big") for packet in packets} <= set(SCHEMA_IDS)
    deployment.publish(packets)
    deployment.run_worker()
    for topic in (deployment.output, deployment.lite):
        result = command("tail", topic, "--settings", deployment.file, "--json")
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(rows) == len(packets)
        assert all("problem" not in row and row["release"].startswith("test-") for row in rows)


def test_tail_reads_schemaless_packets(embedded_kafka, tmp_path):
    from stream_vae.avro.framing import FrameReader
    from stream_vae.sky.packets import simulate_packets

    schema = tmp_path / "candidate.avsc"
    packets = [sent.packet for sent in simulate_packets(4, shape="candidate", seed=2)]
    schema.write_text(FrameReader().open(packets[0]).writer.json, encoding="utf-8")
    framing = {"framing": "schemaless", "schema_file": str(schema)}
    deployment = deploy(embedded_kafka, tmp_path, survey="candidate", kafka=framing)
    deployment.publish(bytes(FrameReader().open(packet).body) for packet in packets)
    deployment.run_worker()
    for topic in (deployment.output, deployment.lite):
        result = command("tail", topic, "--settings", deployment.file, "--json")
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(rows) == 4
        assert all(0 <= row["real_score"] <= 1 for row in rows)


def test_inspect_takes_the_release_that_the_message_names(embedded_kafka, real_packets, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path)
    deployment.publish([real_packets("ztf")[0].read_bytes()])
    deployment.run_worker()
    newer = make_release(ReleaseStore(str(tmp_path / "store")), tmp_path / "newer", seed=5)
    at = f"{deployment.output}/0/0"
    found = answered("inspect", at, "--settings", deployment.file)
    assert found["verdict"]["release"] == found["enrichment"]["release"] != newer.id
    asked = answered("inspect", at, "--settings", deployment.file, "--release", newer.id)
    assert asked["verdict"]["release"] == newer.id
    missing = command("inspect", at, "--settings", deployment.file, "--release", "no-such")
    assert isinstance(missing.exception, ConfigError)


def test_a_missing_store_is_a_note_unless_it_was_asked_for(embedded_kafka, real_packets, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path, release={"store": str(tmp_path / "empty")})
    packet = real_packets("ztf")[0]
    found = answered("inspect", packet, "--settings", deployment.file)
    assert found["verdict"] is None
    assert any("no current release" in note for note in found["notes"])
    asked = command("inspect", packet, "--store", tmp_path / "empty")
    assert isinstance(asked.exception, ConfigError)
