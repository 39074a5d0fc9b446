"""Two workers of a fleet against one: work for each CPU second that they could have had.

    .venv/bin/python tests/bench/scaling.py [--survey ztf] [--alerts 12000] [--rounds 3] [--json OUT]

A real Kafka shares two cores with the fleet, so that wall-clock time cannot double. README.md beside this file says
what is compared instead.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import corpus  # noqa: E402 - needs the path above
import networks  # noqa: E402
import psutil  # noqa: E402
from processes import Household, Moment, child, on_cores  # noqa: E402
from report import save, terminal  # noqa: E402
from rich.console import RenderableType  # noqa: E402
from rich.table import Table  # noqa: E402
from stream_vae.runtime.group import Group  # noqa: E402
from summary import Spread  # noqa: E402
from topics import configure, fleet_kafka  # noqa: E402

from deployment import deploy  # noqa: E402
from flow import running  # noqa: E402
from servers import Kafka, MissingServiceError  # noqa: E402

PARTITIONS = 4
BEGIN, END = 0.2, 0.8
"""Of a run's alerts, the part that is measured: before, workers compile; after, one may have finished its share."""
INTERVAL_S = 0.25
RUN_TIMEOUT_S = 600


@dataclass(frozen=True)
class Run:
    """One fleet at work, in the middle of its backlog."""

    workers: int
    alerts: int
    wall_s: float
    worker_cpu_s: float
    idle_s: float
    """Of the cores that the workers may use."""
    broker_cpu_s: float

    @property
    def cpu_us(self) -> float:
        """CPU time of the workers an alert."""
        return self.worker_cpu_s / self.alerts * 1e6

    @property
    def available_s(self) -> float:
        """CPU seconds that the workers had or could have had: what they used, and what lay idle beside them."""
        return self.worker_cpu_s + self.idle_s

    @property
    def per_available_s(self) -> float:
        return self.alerts / self.available_s


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    survey: str = "ztf"
    alerts: int = 12_000
    rounds: int = 3


def main() -> None:
    options = _options()
    try:
        with tempfile.TemporaryDirectory(prefix="stream-vae-scaling-") as folder:
            result = measure(Path(folder), Plan(options.survey, options.alerts, options.rounds))
    except MissingServiceError as error:
        raise SystemExit(str(error)) from error
    terminal().print(*show(result), sep="\n")
    if options.json:
        save({"command": " ".join(["tests/bench/scaling.py", *sys.argv[1:]])} | result, options.json)


def measure(folder: Path, plan: Plan) -> dict[str, Any]:
    """Let one worker and two take turns on the same backlog."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise MissingServiceError("two workers need two cores")
    with on_cores(cores), fleet_kafka() as kafka:  # the broker and the fleets inherit them
        made = corpus.prepare(plan.survey, folder / "corpus")
        topic = kafka.fresh_topic(PARTITIONS, stem="scaling", retention_bytes=-1)
        corpus.publish(kafka.bootstrap_servers, topic, PARTITIONS, made.packets, plan.alerts)
        _work_off(kafka, topic, folder / "0", made, plan.alerts, cores)  # not counted: the broker compiles too
        rounds = [
            [
                _work_off(kafka, topic, folder / f"{number + 1}-{workers}", made, plan.alerts, cores[-workers:])
                for workers in (1, 2)
            ]
            for number in range(plan.rounds)
        ]
    found = ratios(rounds)
    return {
        "packets": made.origin,
        "rounds": [[asdict(run) for run in runs] for runs in rounds],
        "ratios": {name: [value.median, value.low, value.high] for name, value in found.items()},
    }


def _work_off(kafka: Kafka, topic: str, folder: Path, made: corpus.Corpus, alerts: int, cores: Sequence[int]) -> Run:
    """Let a fleet of one worker a core work off the topic, its workers on these cores."""
    folder.mkdir()
    section = {"input_topics": [topic], "lite_topic": None}
    deployment = deploy(kafka, folder, survey=made.survey, partitions=PARTITIONS, kafka=section, **made.sections)
    networks.make_release(folder / "store", folder / "bench-release", 1)
    configure(kafka, [deployment.output], {"retention.bytes": 2**28})
    group = Group(deployment.settings.kafka)
    seen: list[tuple[int, Moment]] = []
    arguments = ("run", "--settings", deployment.file, "--workers", len(cores), "--exit-when-idle", 1)
    with running(folder / "fleet.log", *arguments) as fleet:
        broker = child("java")
        household = Household(fleet.pid, {"broker": broker} if broker else {})
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while fleet.running and (not seen or seen[-1][0] < END * alerts):
            if time.monotonic() > deadline:
                raise SystemExit(f"No end in {RUN_TIMEOUT_S} s: {fleet.text[-2000:]}")
            for worker in household.workers():
                pin(worker, cores)
            moment, waiting = Moment.of(household, set(cores)), group.lag()
            if waiting is not None:
                seen.append((alerts - waiting, moment))
            time.sleep(INTERVAL_S)
        if fleet.wait(RUN_TIMEOUT_S):
            raise SystemExit(fleet.text[-2000:])
    kafka.delete_topics([deployment.output])
    return _run(len(cores), seen, alerts)


def _run(workers: int, seen: Sequence[tuple[int, Moment]], alerts: int) -> Run:
    middle = [each for each in seen if BEGIN * alerts <= each[0] <= END * alerts]
    if len(middle) < 2:
        raise SystemExit("Too few looks at a run: give it more --alerts.")
    (done, begin), (done_then, end) = middle[0], middle[-1]
    span = end.since(begin)
    return Run(workers, done_then - done, span.wall_s, span.of("worker"), span.machine.idle_s, span.of("broker"))


def pin(process: psutil.Process, cores: Sequence[int]) -> None:
    """Keep all threads of a process on some cores; those that they start inherit it."""
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        for thread in process.threads():
            os.sched_setaffinity(thread.id, cores)


def show(result: dict[str, Any]) -> Iterator[RenderableType]:
    """Show what was measured."""
    rounds = [[Run(**run) for run in runs] for runs in result["rounds"]]
    table = Table("", "CPU us/alert", "alerts/s", "alerts / available CPU s", "idle of their cores", "broker us/alert")
    for name, runs in zip(("one worker", "two workers"), zip(*rounds, strict=True), strict=True):
        spreads = (
            Spread.of([run.cpu_us for run in runs]),
            Spread.of([run.alerts / run.wall_s for run in runs]),
            Spread.of([run.per_available_s for run in runs]),
            Spread.of([run.idle_s / run.wall_s / run.workers * 100 for run in runs]),
            Spread.of([run.broker_cpu_s / run.alerts * 1e6 for run in runs]),
        )
        table.add_row(name, *(spread.show() for spread in spreads))
    yield table
    for name, values in ratios(rounds).items():
        yield f"{name}: {values.show(2)} over {len(rounds)} rounds"


def ratios(rounds: Sequence[Sequence[Run]]) -> dict[str, Spread]:
    """Two workers over one, each pair from the same round."""
    return {
        "work of two workers / of one, for what each could have had": Spread.of(
            [2 * two.per_available_s / one.per_available_s for one, two in rounds]
        ),
        "CPU an alert of two / of one": Spread.of([two.cpu_us / one.cpu_us for one, two in rounds]),
        "wall-clock rate of two / of one": Spread.of(
            [two.alerts / two.wall_s / (one.alerts / one.wall_s) for one, two in rounds]
        ),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--survey", default="ztf", help="ztf (default), lsst, ...: a folder of the real alerts")
    parser.add_argument("--alerts", type=int, default=Plan.alerts, help="a run (12000)")
    parser.add_argument("--rounds", type=int, default=Plan.rounds, help="of one worker, then two (3)")
    parser.add_argument("--json", type=Path, help="where to write the runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
