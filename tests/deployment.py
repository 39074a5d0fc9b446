"""A small deployment for tests: topics, a settings file, a release, and a worker that runs until it is idle."""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from stream_vae import settings
from stream_vae.metrics import Metrics
from stream_vae.model.store import ReleaseStore
from stream_vae.runtime.worker import Worker
from stream_vae.settings import Settings
from typer.testing import CliRunner, Result

from releases import make_release
from servers import Kafka

_WIDE = {"COLUMNS": "220", "NO_COLOR": "1"}


@dataclass(frozen=True)
class Deployment:
    """What the tests of the commands stand on."""

    kafka: Kafka
    file: Path
    settings: Settings

    @property
    def input(self) -> str:
        return self.settings.kafka.input_topics[0]

    @property
    def output(self) -> str:
        assert self.settings.kafka.output_topic
        return self.settings.kafka.output_topic

    @property
    def lite(self) -> str:
        assert self.settings.kafka.lite_topic
        return self.settings.kafka.lite_topic

    @property
    def dead_letters(self) -> str:
        return self.settings.kafka.dead_letter_topic

    def publish(self, packets: Iterable[bytes], topic: str | None = None, **arguments: Any) -> None:
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers, "message.max.bytes": 10_000_000})
        for number, packet in enumerate(packets):
            producer.produce(topic or self.input, packet, key=f"key-{number}".encode(), **arguments)
            producer.poll(0)
        assert producer.flush(30) == 0

    def run_worker(self) -> None:
        Worker(self.settings, Metrics(self.settings.survey)).run(exit_when_idle_s=0.3)


def deploy(
    kafka: Kafka, folder: Path, /, *, survey: str = "ztf", partitions: int = 1, **sections: dict[str, Any]
) -> Deployment:
    """Make topics, a store with one release, and the settings for them.

    `sections` add to the settings file; None leaves out what would be there.
    """
    store = folder / "store"
    make_release(ReleaseStore(str(store)), folder / "release")
    stem = kafka.topic("cli")
    topics = {"output_topic": f"{stem}-out", "lite_topic": f"{stem}-lite", "dead_letter_topic": f"{stem}-dead"}
    topics = {name: topic for name, topic in topics.items() if sections.get("kafka", {}).get(name, "") is not None}
    for topic in (f"{stem}-in", *topics.values()):
        kafka.create_topic(topic, partitions)
    document: dict[str, Any] = {
        "kafka": {
            "bootstrap_servers": kafka.bootstrap_servers,
            "input_topics": [f"{stem}-in"],
            "group_id": stem,
            "consumer_options": kafka.consumer_options,
            **topics,
        },
        "release": {"store": str(store)},
    }
    for section, values in sections.items():
        document.setdefault(section, {}).update(values)
    file = folder / "settings.toml"
    lines = [f"survey = {json.dumps(survey)}"]
    for section, values in document.items():
        # JSON's strings, numbers, booleans and arrays are TOML's; tables within a section are written inline.
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items() if value is not None)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return Deployment(kafka, file, settings.load(file))


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def command(*arguments: object, stdin: str | None = None) -> Result:
    """Run a command of the CLI in this process; what it raised on purpose is in `exception`."""
    from stream_vae.cli import app, dlq, doctor, look  # noqa: F401 - a family's import makes its commands

    root = logging.getLogger()
    handlers = root.handlers[:]
    try:
        return CliRunner().invoke(app, [str(each) for each in arguments], env=_WIDE, input=stdin)
    finally:
        root.handlers[:] = handlers  # a command logs to the runner's output, which is closed now
        logging.getLogger("stream_vae.kafka").setLevel(logging.NOTSET)


def answered(*arguments: object) -> Any:
    """Run a command with `--json`, and give what it says."""
    result = command(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)
