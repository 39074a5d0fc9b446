"""`doctor`: what is in order is green, what is not says what to do, and nothing hangs."""

import json
import socket
from time import monotonic

import pytest
from stream_vae.metrics import Metrics
from stream_vae.runtime.health import HealthServer
from stream_vae.settings import KafkaSettings, ReleaseSettings, Settings
from stream_vae.tools.checks_kafka import KafkaChecks
from stream_vae.tools.checkup import State, examine

from deployment import command, deploy


def states(deployment_or_file):
    file = getattr(deployment_or_file, "file", deployment_or_file)
    result = command("doctor", "--settings", file, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == (0 if report["healthy"] else 1)
    return report["checks"]


def of(checks, name):
    found = [check for check in checks if check["name"] == name]
    assert found, [check["name"] for check in checks]
    return found[0]


def test_a_deployment_in_order_is_good_throughout(kafka, real_packets, tmp_path):
    deployment = deploy(kafka, tmp_path, metrics={"port": 0}, delivery={"mode": "exactly_once"})
    for topic in (deployment.output, deployment.dead_letters):
        _alter(kafka, topic, 10_500_000)
    deployment.publish([real_packets("ztf")[0].read_bytes()])
    checks = states(deployment)
    assert {check["name"]: check["state"] for check in checks} == {
        "settings": "good",
        "survey": "good",
        "release": "good",
        "encoder": "good",
        "gpu": "skipped",
        "cutouts": "good",
        "registry": "skipped",
        "reservoir": "skipped",
        "metrics port": "good",
        "brokers": "good",
        "input topic": "good",
        "output topic": "good",
        "lite topic": "good",
        "dead-letter topic": "good",
        # The real Kafka takes 10,485,760 bytes, as much as our producer sends.
        "message sizes": "good",
        "permissions": "good",
        "consumer group": "good",
        "transactions": "good",
        "clock": "good",
        "a real alert": "good",
    }, checks


def _alter(kafka, topic, limit):
    from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

    entry = ConfigEntry("max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.incremental_alter_configs([resource])[resource].result(10)


def test_an_output_topic_that_takes_less_than_the_input_is_bad(kafka, tmp_path):
    deployment = deploy(kafka, tmp_path)
    _alter(kafka, deployment.output, 1_000_000)
    found = of(states(deployment), "message sizes")
    assert found["state"] == "bad"
    assert f"--entity-name {deployment.output} --add-config max.message.bytes=1049" in found["remedy"]


def test_an_output_topic_without_room_for_the_enrichment_is_worth_a_look(kafka, tmp_path):
    found = of(states(deploy(kafka, tmp_path)), "message sizes")
    assert found["state"] == "warning"
    assert "10,485,760" in found["says"]


def test_a_missing_topic_is_bad_and_the_remedy_names_it(broker, tmp_path):
    deployment = deploy(broker, tmp_path)
    text = deployment.file.read_text(encoding="utf-8").replace(deployment.dead_letters, "no-such-topic")
    deployment.file.write_text(text, encoding="utf-8")
    found = of(states(deployment), "dead-letter topic")
    assert found["state"] == "bad"
    assert "--create --topic no-such-topic" in found["remedy"]


def test_questions_that_the_embedded_kafka_cannot_answer_are_no_fault(embedded_kafka, real_packets, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path)
    deployment.publish([real_packets("ztf")[0].read_bytes()])
    checks = states(deployment)
    assert all(check["state"] != "bad" for check in checks)
    assert of(checks, "permissions")["state"] == "warning"
    assert of(checks, "a real alert")["state"] == "good"


def test_no_broker_is_one_fault_and_ends_in_time(tmp_path, embedded_kafka):
    deployment = deploy(embedded_kafka, tmp_path)
    text = deployment.file.read_text(encoding="utf-8")
    deployment.file.write_text(text.replace(embedded_kafka.bootstrap_servers, "127.0.0.1:1"), encoding="utf-8")
    started = monotonic()
    checks = states(deployment)
    assert monotonic() - started < 40
    assert [check["name"] for check in checks if check["state"] == "bad"] == ["brokers"]
    assert "kafka.bootstrap_servers" in of(checks, "brokers")["says"]
    assert of(checks, "permissions")["state"] == "skipped"


def test_a_damaged_release_is_bad(embedded_kafka, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path)
    (encoder,) = (tmp_path / "store" / "releases").glob("*/encoder.onnx")
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"?")
    checks = states(deployment)
    assert of(checks, "release")["state"] == "bad"
    assert "digest differs" in of(checks, "release")["says"]
    assert of(checks, "encoder")["state"] == "skipped"


def test_a_release_for_cutouts_that_the_survey_has_not_is_bad(embedded_kafka, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path, survey_profile=_SCIENCE_ONLY)
    assert of(states(deployment), "cutouts")["state"] == "bad"


_SCIENCE_ONLY = {"fields": {"alert_id": "candid"}, "cutouts": {"science": "cutoutScience.stampData"}}


def test_alerts_of_another_survey_are_bad(embedded_kafka, real_packets, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path, survey="lsst")
    deployment.publish([real_packets("ztf")[0].read_bytes()])
    found = of(states(deployment), "a real alert")
    assert found["state"] == "bad"
    assert "diaSourceId" in found["says"]


def test_one_bad_alert_among_good_ones_is_worth_a_look(embedded_kafka, real_packets, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path)
    deployment.publish([real_packets("ztf")[0].read_bytes(), b"junk"])
    assert of(states(deployment), "a real alert")["state"] == "warning"


def test_a_clock_behind_the_alerts_is_worth_a_look(embedded_kafka, real_packets, tmp_path):
    import time

    deployment = deploy(embedded_kafka, tmp_path)
    deployment.publish([real_packets("ztf")[0].read_bytes()], timestamp=int((time.time() + 3600) * 1000))
    found = of(states(deployment), "clock")
    assert found["state"] == "warning"
    assert "NTP" in found["remedy"]


def test_a_port_taken_by_a_stranger_is_bad_and_by_a_worker_is_good(embedded_kafka, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        deployment = deploy(embedded_kafka, tmp_path, metrics={"port": port})
        assert of(states(deployment), "metrics port")["state"] == "bad"
    metrics = Metrics("ztf")

    def fine():
        return True, "fine"

    with HealthServer(metrics.registry, host="127.0.0.1", port=port, ready=fine, alive=fine):
        assert of(states(deployment), "metrics port")["state"] == "good"


def test_a_registry_that_does_not_answer_is_bad(embedded_kafka, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path, registry={"url": "http://127.0.0.1:1"})
    assert of(states(deployment), "registry")["state"] == "bad"


@pytest.mark.parametrize("content", [None, "not a schema"])
def test_a_folder_without_good_schemas_is_bad(content, embedded_kafka, tmp_path):
    folder = tmp_path / "schemas"
    folder.mkdir()
    if content:
        (folder / "1.avsc").write_text(content, encoding="utf-8")
    deployment = deploy(embedded_kafka, tmp_path, registry={"url": str(folder)})
    assert of(states(deployment), "registry")["state"] == "bad"


def test_wrong_settings_are_the_only_line(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('survey = "ztf"', encoding="utf-8")
    checks = states(file)
    assert [(check["name"], check["state"]) for check in checks] == [("settings", "bad")]
    assert "kafka" in checks[0]["says"]


def test_the_table_says_what_to_do(embedded_kafka, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path, release={"store": str(tmp_path / "empty")})
    result = command("doctor", "--settings", deployment.file)
    assert result.exit_code == 1
    assert "stream-vae train --promote" in result.stdout
    assert "1 to mend" in result.stdout


def test_before_there_is_any_topic_the_sizes_are_no_matter(kafka, tmp_path):
    settings = KafkaSettings(
        bootstrap_servers=kafka.bootstrap_servers,
        input_topics=(kafka.topic("never"),),
        output_topic=kafka.topic("never"),
        dead_letter_topic=kafka.topic("never"),
        create_topics=True,
    )
    whole = Settings(survey="ztf", kafka=settings, release=ReleaseSettings(store=str(tmp_path)))
    found = {finding.name: finding.state for finding in examine(KafkaChecks(whole).checks())}
    assert found["message sizes"] is State.SKIPPED
