"""What is wrong at the start is one message with the key and the remedy, and exit code 2; nothing was consumed."""

import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
from stream_vae.model.store import ReleaseStore

from deployment import Deployment, deploy
from flow import running
from releases import make_release

WITHIN_S = 60  # for what hangs; a start takes seconds, more on a busy machine
WRONG = 2


@dataclass(frozen=True)
class Start:
    """How a start went."""

    code: int
    text: str

    def refused(self, *words: str) -> None:
        """Check that it was one message, with these words, and no traceback."""
        assert self.code == WRONG, self.text
        assert "Traceback" not in self.text, self.text
        for word in words:
            assert word in self.text, self.text


def start(file: Path | str, folder: Path, **environment: str) -> Start:
    arguments = ("run", "--settings", file, "--workers", 0, "--exit-when-idle", 0)
    with running(folder / "log", *arguments, environment=environment) as process:
        return Start(process.wait(WITHIN_S), process.text)


@pytest.fixture(scope="module")
def deployment(kafka, tmp_path_factory) -> Deployment:
    return deploy(kafka, tmp_path_factory.mktemp("deployment"), metrics={"port": 0})


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_the_deployment_that_these_tests_spoil_starts_as_it_is(deployment, tmp_path):
    found = start(deployment.file, tmp_path)
    assert found.code == 0, found.text


def test_no_broker_at_the_address(deployment, tmp_path):
    address = f"127.0.0.1:{closed_port()}"
    found = start(deployment.file, tmp_path, STREAM_VAE_KAFKA__BOOTSTRAP_SERVERS=address)
    found.refused("ConfigError", "kafka.bootstrap_servers", address, "doctor")


@pytest.mark.parametrize("key", ["input_topics", "dead_letter_topic"])
def test_a_topic_that_does_not_exist(deployment, tmp_path, key):
    found = start(deployment.file, tmp_path, **{f"STREAM_VAE_KAFKA__{key.upper()}": "no-such-topic"})
    found.refused("no-such-topic", "kafka-topics.sh --create", "kafka.create_topics")


def test_missing_topics_are_made_where_that_is_asked_for(deployment, kafka, tmp_path):
    names = {f"STREAM_VAE_KAFKA__{key}": kafka.topic(key.lower()) for key in ("OUTPUT_TOPIC", "DEAD_LETTER_TOPIC")}
    found = start(deployment.file, tmp_path, STREAM_VAE_KAFKA__CREATE_TOPICS="true", **names)
    assert found.code == 0, found.text


def test_a_release_store_that_does_not_exist(deployment, tmp_path):
    found = start(deployment.file, tmp_path, STREAM_VAE_RELEASE__STORE=str(tmp_path / "nowhere"))
    found.refused("nowhere", "release.store")


def test_a_store_without_a_current_release(deployment, tmp_path):
    store = tmp_path / "store"
    make_release(ReleaseStore(str(store)), tmp_path / "release", promote=False)
    start(deployment.file, tmp_path, STREAM_VAE_RELEASE__STORE=str(store)).refused("current", "promote")


def test_a_release_that_was_tampered_with(deployment, tmp_path):
    store = tmp_path / "store"
    card = make_release(ReleaseStore(str(store)), tmp_path / "release")
    encoder = next(store.rglob("encoder.onnx"))
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"\xff")
    start(deployment.file, tmp_path, STREAM_VAE_RELEASE__STORE=str(store)).refused(card.id, "encoder.onnx")


def test_a_release_that_needs_cutouts_which_the_survey_does_not_have(deployment, tmp_path):
    store = tmp_path / "store"
    make_release(ReleaseStore(str(store)), tmp_path / "release", cutouts=("difference", "template"))
    file = tmp_path / "settings.toml"
    profile = (
        '[survey_profile]\nfields = {alert_id = "candid"}\ncutouts = {difference = "cutoutDifference.stampData"}\n'
    )
    text = deployment.file.read_text(encoding="utf-8").replace('survey = "ztf"', 'survey = "ours"')
    file.write_text(f"{text}\n{profile}", encoding="utf-8")
    found = start(file, tmp_path, STREAM_VAE_RELEASE__STORE=str(store))
    found.refused("ours", "template", "profile")


def test_a_metrics_port_that_is_in_use(deployment, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = start(deployment.file, tmp_path, STREAM_VAE_METRICS__PORT=str(port))
    found.refused("metrics.port", str(port), "free port")


def test_a_settings_file_that_is_no_toml(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("survey = ztf\n", encoding="utf-8")
    start(file, tmp_path).refused(str(file), "TOML", "line 1")


def test_a_settings_file_that_does_not_exist(tmp_path):
    start(tmp_path / "none.toml", tmp_path).refused("none.toml", "config init")


def test_a_survey_that_nobody_knows(deployment, tmp_path):
    found = start(deployment.file, tmp_path, STREAM_VAE_SURVEY="ztv")
    found.refused("ztv", "survey", "ztf", "survey_profile")


def test_a_registry_that_is_no_url(deployment, tmp_path):
    found = start(deployment.file, tmp_path, STREAM_VAE_REGISTRY__URL=str(tmp_path / "no-folder"))
    found.refused("no-folder", "[registry] url")


def test_an_option_that_librdkafka_does_not_know(deployment, tmp_path):
    found = start(deployment.file, tmp_path, STREAM_VAE_KAFKA__CONSUMER_OPTIONS='{"no.such.option": 1}')
    found.refused("no.such.option", "kafka")
