"""Runs the ways on one Kafka: the broker on one core, each run in a process of its own on another."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
import networks
from job import Job
from processes import on_cores

from servers import Kafka, real_kafka

WAYS = Path(__file__).with_name("ways.py")
LONGEST_RUN_S = 900
EXACTLY_ONCE = {"delivery": {"mode": "exactly_once"}}
KEPT_BYTES = 2**30
"""Of what is published, in each partition."""
Overrides = dict[str, dict[str, Any]]
"""Settings by section that are not the defaults."""


@dataclass(frozen=True)
class Cores:
    """Where the broker runs, and where what is measured does."""

    broker: int | None
    client: int | None

    @classmethod
    def choose(cls) -> "Cores":
        available = sorted(os.sched_getaffinity(0))
        return cls(None, None) if len(available) < 2 else cls(available[0], available[1])


@dataclass(frozen=True)
class Kind:
    """Distinct alerts, and a store with the release that encodes them."""

    made: corpus.Corpus
    store: Path

    @classmethod
    def make(cls, survey: str, cutouts: int, folder: Path) -> "Kind":
        made = corpus.prepare(survey, folder / "corpus")
        networks.make_release(folder / "store", folder / "release", cutouts)
        return cls(made, folder / "store")

    def about(self) -> dict[str, Any]:
        """Say what the alerts are, for the JSON file."""
        return {"packets": self.made.origin, "mean_packet_bytes": self.made.mean_packet_bytes}


@dataclass(frozen=True)
class Backlog:
    """A topic with alerts in it."""

    topic: str
    partitions: int
    alerts: int


class Runner:
    """Fills topics, and lets one way after the other work them off."""

    def __init__(self, kafka: Kafka, core: int | None, work: Path) -> None:
        self._kafka = kafka
        self._core = core
        self._work = work
        self._runs = 0

    def fill(self, kind: Kind, partitions: int, alerts: int) -> Backlog:
        topic = self._kafka.fresh_topic(partitions, stem="bench-in", retention_bytes=-1)
        corpus.publish(self._kafka.bootstrap_servers, topic, partitions, kind.made.packets, alerts)
        return Backlog(topic, partitions, alerts)

    def empty(self, backlogs: Iterable[Backlog]) -> None:
        """Give the disk back."""
        self._kafka.delete_topics([backlog.topic for backlog in backlogs])

    def run(self, way: str, kind: Kind, backlog: Backlog, overrides: Overrides) -> dict[str, Any]:
        """Let one way work off a backlog, with a group of its own."""
        self._runs += 1
        output, dead = (
            self._kafka.fresh_topic(backlog.partitions, stem=f"bench-{stem}", retention_bytes=KEPT_BYTES)
            for stem in ("out", "dead")
        )
        job = Job(
            way=way,
            survey=kind.made.survey,
            bootstrap_servers=self._kafka.bootstrap_servers,
            input_topic=backlog.topic,
            output_topic=output,
            dead_letter_topic=dead,
            group_id=self._kafka.topic("bench"),
            alerts=backlog.alerts,
            corpus=str(kind.made.folder),
            store=str(kind.store),
            core=self._core,
            overrides=overrides | kind.made.sections | (EXACTLY_ONCE if way == "exactly_once" else {}),
        )
        path = self._work / f"job-{self._runs}.json"
        job.save(path)
        try:
            command = [sys.executable, WAYS, path]
            result = subprocess.run(command, stdout=subprocess.PIPE, timeout=LONGEST_RUN_S, check=True, text=True)
        finally:
            self._kafka.delete_topics([output, dead])
        run: dict[str, Any] = json.loads(result.stdout)
        if run["alerts"] != backlog.alerts or run["published"] != backlog.alerts:
            raise SystemExit(f"{way} read {run['alerts']} and published {run['published']} of {backlog.alerts} alerts.")
        return run


@contextlib.contextmanager
def runner(work: Path) -> Iterator[Runner]:
    """Start Kafka on its core; this process stays there meanwhile, out of the way of what is measured."""
    cores = Cores.choose()
    with contextlib.ExitStack() as stack:
        if cores.broker is not None:
            stack.enter_context(on_cores({cores.broker}))  # the broker inherits it, and decides on its threads by it
        yield Runner(stack.enter_context(real_kafka()), cores.client, work)
