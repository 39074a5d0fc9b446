"""What an alert costs, Kafka to Kafka: stream_vae, the usual way and the floor, measured in one run.

    .venv/bin/python tests/bench/run.py [--alerts 6000] [--repeats 5] [--survey ztf] [--cutouts 1] [--json OUT]

A real Apache Kafka runs on one core and each way, in a process of its own, on the other. README.md beside this file
says what is measured and how to read it.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import corpus  # noqa: E402 - needs the path above
import networks  # noqa: E402
import summary  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402
from job import Job  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

from servers import Kafka, MissingServiceError, real_kafka  # noqa: E402

RESULTS = HERE / "results"
SHARE_OF_USUAL = 4
"""The usual way takes a quarter of the alerts: its cost an alert does not depend on their number, and time is dear."""
LONGEST_RUN_S = 900
EXACTLY_ONCE = {"delivery": {"mode": "exactly_once"}}


@dataclass(frozen=True)
class Case:
    """One kind of input and release."""

    survey: str
    """With `_wire` behind it: in Confluent's wire format."""
    cutouts: int

    @property
    def name(self) -> str:
        return f"{self.survey}, {self.cutouts} cutout{'s' * (self.cutouts > 1)}"


EVERYTHING = [Case("ztf", 1), Case("ztf", 3), Case("ztf_wire", 1), Case("lsst", 1), Case("lsst_wire", 1)]
"""What is measured if nothing is asked for; LSST's alerts cannot be simulated."""


@dataclass(frozen=True)
class Cores:
    """Where the broker runs, and where what is measured does."""

    broker: int | None
    client: int | None

    @classmethod
    def choose(cls) -> "Cores":
        available = sorted(os.sched_getaffinity(0))
        return cls(None, None) if len(available) < 2 else cls(available[0], available[1])


class Bench:
    """Runs ways on one Kafka."""

    def __init__(self, kafka: Kafka, cores: Cores, work: Path, options: argparse.Namespace) -> None:
        self._kafka = kafka
        self._admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})
        self._cores = cores
        self._work = work
        self._options = options
        self._runs = 0

    def measure(self, case: Case, progress: Progress) -> dict[str, Any]:
        """Run every way once a round, in turn."""
        folder = self._work / case.name
        made = corpus.prepare(case.survey, folder / "corpus")
        networks.make_release(folder / "store", folder / "release", case.cutouts)
        numbers = dict.fromkeys(self._options.ways, self._options.alerts)
        if "usual" in numbers:
            numbers["usual"] = max(1, self._options.alerts // SHARE_OF_USUAL)
        task = progress.add_task(f"{case.name}: filling topics", total=self._options.repeats * len(numbers))
        topics = {count: self._topic("in", retention=-1) for count in set(numbers.values())}
        for count, topic in topics.items():
            corpus.publish(self._kafka.bootstrap_servers, topic, self._options.partitions, made.packets, count)
        rounds = []
        for number in range(self._options.repeats):
            done = {}
            for way, count in numbers.items():
                progress.update(task, description=f"{case.name}: round {number + 1}, {way}")
                done[way] = self._run(way, made, folder / "store", topics[count], count)
                progress.advance(task)
            rounds.append(done)
        self._delete(list(topics.values()))
        about = asdict(case) | {"packets": made.origin, "mean_packet_bytes": made.mean_packet_bytes}
        return {"case": about, "rounds": rounds, "summary": summary.summarise(rounds)}

    def _run(self, way: str, made: corpus.Corpus, store: Path, topic: str, alerts: int) -> dict[str, Any]:
        self._runs += 1
        output, dead = self._topic("out"), self._topic("dead")
        job = Job(
            way=way,
            survey=made.survey,
            bootstrap_servers=self._kafka.bootstrap_servers,
            input_topic=topic,
            output_topic=output,
            dead_letter_topic=dead,
            group_id=f"bench-{self._runs}",
            alerts=alerts,
            corpus=str(made.folder),
            store=str(store),
            core=self._cores.client,
            overrides=self._options.settings | made.sections | (EXACTLY_ONCE if way == "exactly_once" else {}),
        )
        path = self._work / f"job-{self._runs}.json"
        job.save(path)
        try:
            result = subprocess.run(
                [sys.executable, HERE / "ways.py", path],
                stdout=subprocess.PIPE,
                timeout=LONGEST_RUN_S,
                check=True,
                text=True,
            )
        finally:
            self._delete([output, dead])
        run: dict[str, Any] = json.loads(result.stdout)
        if run["alerts"] != alerts or run["published"] != alerts:
            raise SystemExit(f"{way} read {run['alerts']} and published {run['published']} of {alerts} alerts.")
        return run

    def _topic(self, stem: str, retention: int = 2**30) -> str:
        name = self._kafka.topic(f"bench-{stem}")
        new = NewTopic(name, self._options.partitions, 1, config={"retention.bytes": str(retention)})
        self._admin.create_topics([new], operation_timeout=30)[name].result(timeout=30)
        return name

    def _delete(self, topics: list[str]) -> None:
        """Give the disk back."""
        for future in self._admin.delete_topics(topics).values():
            future.result(timeout=30)


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """Show one case."""
    rounds = result["rounds"]
    case = result["case"]
    table = Table(
        title=f"{case['survey']}, {case['cutouts']} cutout(s): {case['packets']}, "
        f"{case['mean_packet_bytes'] / 1e3:.1f} kB, {len(rounds)} rounds",
        caption="medians; the range over the rounds in grey; ratios are taken within each round",
    )
    for column in ("way", "CPU us/alert", "user", "sys", "over stream_vae", "over floor", "alerts/s", "RSS MB"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way in rounds[0]:
        ratios = [summary.ratio(rounds, way, to).show(2) if to in rounds[0] else "" for to in ("stream_vae", "floor")]
        table.add_row(
            way,
            summary.spread(rounds, way, "cpu_us").show(),
            f"{summary.spread(rounds, way, 'user_s').median:,.0f}",
            f"{summary.spread(rounds, way, 'system_s').median:,.0f}",
            *ratios,
            summary.spread(rounds, way, "alerts_per_s").show(),
            f"{summary.spread(rounds, way, 'peak_rss_bytes').median / 1e6:,.0f}",
        )
    yield table
    if "stream_vae" in rounds[0]:
        parts = Table(title="stream_vae's CPU time by stage")
        parts.add_column("stage")
        parts.add_column("us/alert", justify="right")
        for name, value in summary.profile(rounds).items():
            parts.add_row(name, value.show(1))
        yield parts


def machine() -> dict[str, Any]:
    """Describe where this ran."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def _setting(text: str) -> tuple[str, str, Any]:
    key, _, value = text.partition("=")
    section, _, name = key.partition(".")
    return section, name, json.loads(value)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alerts", type=int, default=6000, help="messages a run (6000)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    parser.add_argument("--partitions", type=int, default=4, help="of each topic (4)")
    parser.add_argument("--survey", action="append", help="ztf, ztf_wire, lsst, lsst_wire, pgir; may be repeated")
    parser.add_argument(
        "--cutouts",
        type=int,
        action="append",
        choices=(1, 2, 3),
        help="may be repeated (1); with no --survey and no --cutouts: ztf 1 and 3, ztf_wire 1, lsst 1, lsst_wire 1",
    )
    parser.add_argument(
        "--ways", default="stream_vae,usual,floor", help="which to run, in this order; exactly_once too"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=JSON", help="another setting")
    parser.add_argument("--json", type=Path, help="where to write the results (tests/bench/results/TIME.json)")
    options = parser.parse_args()
    options.ways = options.ways.split(",")
    options.settings = {}
    for section, name, value in map(_setting, options.set):
        options.settings.setdefault(section, {})[name] = value
    return options


@contextlib.contextmanager
def _broker(core: int | None) -> Iterator[Kafka]:
    """Start Kafka on its core; this process stays there, out of the way of what is measured."""
    if core is not None:
        os.sched_setaffinity(0, {core})  # inherited by the broker, whose own threads it decides on by it
    with real_kafka() as kafka:
        yield kafka


def main() -> None:
    """Measure all cases, print tables, write JSON."""
    options, cores = arguments(), Cores.choose()
    console = Console(width=None if sys.stdout.isatty() else 120)
    cases = [Case(survey, cutouts) for survey in options.survey or ["ztf"] for cutouts in options.cutouts or [1]]
    if not options.survey and not options.cutouts:
        cases = [case for case in EVERYTHING if corpus.can_be_had(case.survey)]
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["tests/bench/run.py", *sys.argv[1:]]),
        "machine": machine(),
        "broker_on_its_own_core": cores.broker is not None and "KAFKA_BOOTSTRAP" not in os.environ,
        "results": [],
    }
    results: list[dict[str, Any]] = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="stream-vae-bench-") as work,
            _broker(cores.broker) as kafka,
            Progress(console=console, transient=True) as progress,
        ):
            bench = Bench(kafka, cores, Path(work), options)
            results.extend(bench.measure(case, progress) for case in cases)
    except MissingServiceError as error:
        raise SystemExit(str(error)) from error
    for result in results:
        console.print(*tables(result))
    path = options.json or RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document | {"results": results}, indent=1) + "\n", encoding="utf-8")
    console.print(f"Written to {path}")


if __name__ == "__main__":
    main()
