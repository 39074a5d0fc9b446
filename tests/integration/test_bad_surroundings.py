"""Brokers that take less than we need: told at the start and by the doctor, with what to do about it."""

import json
from typing import Any

import pytest
from stream_vae.errors import ConfigError
from stream_vae.runtime.start_up import check_surroundings
from stream_vae.settings import from_plain, to_plain

from deployment import Deployment, command, deploy
from flow import work

SMALL = 100_000


def with_topic(deployment: Deployment, role: str, name: str, **limits: int) -> Any:
    document = to_plain(deployment.settings)
    document["kafka"][role] = name
    document["limits"] |= limits
    return from_plain(document)


@pytest.fixture(scope="module")
def deployment(kafka, tmp_path_factory) -> Deployment:
    return deploy(kafka, tmp_path_factory.mktemp("deployment"), survey="candidate")


@pytest.fixture(scope="module")
def small_topic(kafka) -> str:
    return kafka.fresh_topic(stem="small", max_message_bytes=SMALL)


def test_an_output_topic_that_takes_less_than_the_input_is_refused(deployment, small_topic):
    with pytest.raises(ConfigError, match=rf"{small_topic} takes 100,000 bytes") as caught:
        check_surroundings(with_topic(deployment, "output_topic", small_topic))
    assert f"kafka-configs.sh --alter --entity-type topics --entity-name {small_topic}" in caught.value.remedy
    # What the remedy names does help: larger alerts go to the dead letters.
    allowed = int(caught.value.remedy.rpartition("limits.max_packet_bytes = ")[2].split(":")[0])
    check_surroundings(with_topic(deployment, "output_topic", small_topic, max_packet_bytes=allowed))


def test_a_dead_letter_topic_that_takes_less_than_the_input_is_refused_whatever_the_limits(deployment, small_topic):
    with pytest.raises(ConfigError, match=r"max\.message\.bytes="):
        check_surroundings(with_topic(deployment, "dead_letter_topic", small_topic, max_packet_bytes=50_000))


def test_a_transaction_that_may_take_longer_than_brokers_allow_is_refused_with_both_keys(kafka, tmp_path):
    options = {"transaction.timeout.ms": 3_600_000}
    deployment = deploy(
        kafka, tmp_path, survey="candidate", kafka={"producer_options": options}, delivery={"mode": "exactly_once"}
    )
    with pytest.raises(ConfigError, match=r"kafka\.producer_options.*transaction\.max\.timeout\.ms"):
        work(deployment.settings)
    report = json.loads(command("doctor", "--settings", deployment.file, "--json").stdout)
    (found,) = (check for check in report["checks"] if check["name"] == "transactions")
    assert found["state"] == "bad"
    assert "transaction.max.timeout.ms" in found["remedy"]


def test_a_registry_that_does_not_answer_at_the_start_is_a_warning_as_it_may_come_back(deployment, caplog):
    document = to_plain(deployment.settings)
    document["registry"]["url"] = "http://127.0.0.1:1"
    check_surroundings(from_plain(document))
    assert "does not serve" in caplog.text


def test_all_that_is_wrong_is_told_at_once(deployment, small_topic):
    document = to_plain(with_topic(deployment, "dead_letter_topic", small_topic))
    document["kafka"]["framing"] = "confluent"
    with pytest.raises(ConfigError, match=rf"{small_topic} takes .*registry: none is set"):
        check_surroundings(from_plain(document))
