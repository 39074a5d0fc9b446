"""How long alerts take: under a steady load, and in a burst as LSST sends one.

    .venv/bin/python tests/bench/burst.py [--survey ztf] [--alerts 40000] [--over 37] [--steady 200] [--lite]

A real Kafka, a generator in a process of its own and `stream-vae run --workers N`, all on this machine. README.md
beside this file says which clocks are compared.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import corpus  # noqa: E402 - needs the path above
import networks  # noqa: E402
import numpy as np  # noqa: E402
from job import peak_rss_bytes  # noqa: E402
from loads import BURST, STEADY_PER_S, WARM_UP, Load, Plan, steady  # noqa: E402
from outcome import Sent, ends, latency, read_out  # noqa: E402
from processes import Household, Moment, Span, child  # noqa: E402
from report import save, terminal  # noqa: E402
from rich.console import RenderableType  # noqa: E402
from rich.table import Table  # noqa: E402
from stream_vae.runtime.group import Group  # noqa: E402
from topics import configure, fleet_kafka  # noqa: E402

from deployment import Deployment, deploy  # noqa: E402
from flow import Process, running  # noqa: E402
from servers import Kafka, MissingServiceError  # noqa: E402

QUIET_S = 2
"""Before each load: what was put off until it is quiet is done."""
INTERVAL_S = 0.5
START_TIMEOUT_S = 300
DRAIN_TIMEOUT_S = 600
IN_TIME_S = 1.0
BEHIND_S = 0.1
"""A generator that is further behind than this with one message of a hundred has not kept its pace."""
BUSY = 0.9
NEITHER = "neither cores nor a single process: waiting"
ROOM = 1.2
"""Disk for a fifth more than the messages' bytes."""


def main() -> None:
    options = _options()
    loads = (steady(options.steady),) if options.steady else ()
    plan = Plan(
        (*loads, Load(BURST.name, options.alerts, options.over)),
        options.survey,
        options.workers,
        options.partitions,
        options.warm_up,
        options.lite,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="stream-vae-burst-") as folder:
            result = measure(Path(folder), plan)
    except MissingServiceError as error:
        raise SystemExit(str(error)) from error
    terminal().print(*show(result), sep="\n")
    if options.json:
        save({"command": " ".join(["tests/bench/burst.py", *sys.argv[1:]])} | result, options.json)


def measure(folder: Path, plan: Plan) -> dict[str, Any]:
    """Start a fleet, warm it up, and put the loads on it."""
    with fleet_kafka() as kafka:
        made = corpus.prepare(plan.survey, folder / "corpus")
        _check_disk(made, plan)
        deployment = _deploy(kafka, folder, made, plan)
        arguments = ("run", "--settings", deployment.file, "--workers", plan.workers)
        with running(folder / "fleet.log", *arguments) as fleet:
            stand = _Stand(kafka, deployment, made, fleet, plan, folder)
            stand.warm_up()
            loads = {load.name: stand.put(load) for load in plan.loads}
    about = {"packets": made.origin, "mean_packet_bytes": made.mean_packet_bytes, "workers": plan.workers}
    return about | {"loads": loads}


def _check_disk(made: corpus.Corpus, plan: Plan) -> None:
    alerts = plan.warm_up + sum(load.alerts for load in plan.loads)
    needed = alerts * made.mean_packet_bytes * (1 if plan.lite else 2) * ROOM
    if shutil.disk_usage("/tmp").free < needed:  # noqa: S108 - where the broker's folder is
        raise SystemExit(f"{needed / 1e9:.0f} GB are needed on disk.")


def _deploy(kafka: Kafka, folder: Path, made: corpus.Corpus, plan: Plan) -> Deployment:
    unused = "output_topic" if plan.lite else "lite_topic"
    sections: dict[str, Any] = {"kafka": {unused: None}} | made.sections
    deployment = deploy(kafka, folder, survey=made.survey, partitions=plan.partitions, **sections)
    networks.make_release(folder / "store", folder / "bench-release", 1)
    output = deployment.lite if plan.lite else deployment.output
    configure(kafka, [deployment.input, output], {"retention.bytes": -1})
    configure(kafka, [output], {"message.timestamp.type": "LogAppendTime"})
    return deployment


class _Stand:
    """A fleet that runs, and its topics."""

    def __init__(
        self, kafka: Kafka, deployment: Deployment, made: corpus.Corpus, fleet: Process, plan: Plan, folder: Path
    ) -> None:
        self._kafka = kafka
        self._input = deployment.input
        self._output = deployment.lite if plan.lite else deployment.output
        self._group = Group(deployment.settings.kafka)
        self._made = made
        self._fleet = fleet
        self._plan = plan
        self._folder = folder
        self._before = 0
        """Alerts sent so far, in each partition."""

    def warm_up(self) -> None:
        partitions, alerts = self._plan.partitions, self._plan.even(self._plan.warm_up)
        corpus.publish(self._kafka.bootstrap_servers, self._input, partitions, self._made.packets, alerts)
        self._before = alerts // partitions
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._group.lag() != 0:
            if not self._fleet.running or time.monotonic() > deadline:
                raise SystemExit(f"The fleet did not settle the warm-up: {self._fleet.text[-2000:]}")
            time.sleep(INTERVAL_S)

    def put(self, load: Load) -> dict[str, Any]:
        """Put one load on the fleet, and see what comes out."""
        partitions, alerts = self._plan.partitions, self._plan.even(load.alerts)
        folder = self._folder / load.name
        folder.mkdir()
        job = {
            "bootstrap_servers": self._kafka.bootstrap_servers,
            "topic": self._input,
            "partitions": partitions,
            "corpus": str(self._made.folder),
            "alerts": alerts,
            "over_s": load.over_s,
        }
        time.sleep(QUIET_S)
        begin = ends(self._kafka, self._output)
        generator, spans, peaks = self._send(job, folder)
        sent = Sent(np.load(folder / "sent.npy"), partitions, self._before)
        self._before += alerts // partitions
        result: dict[str, Any] = {
            "alerts": alerts,
            "rate": alerts / load.over_s,
            "generator": generator | {"kept_pace": generator["behind_s"]["p99"] < BEHIND_S},
            **latency(sent, read_out(self._kafka, self._output, sent, begin)),
            "spans": {name: asdict(span) | {"parts_s": span.parts_s} for name, span in spans.items()},
            "worker_peak_rss_bytes": peaks,
        }
        return result | {"limit": limit(result, spans["load"])}

    def _send(self, job: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Span], list[int]]:
        """Let the generator send, and wait until all is settled; CPU time of the load, and with the drain after it."""
        path = folder / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        cores = os.sched_getaffinity(0)
        others = {"broker": child("java"), "this program": os.getpid()}
        pids = {name: pid for name, pid in others.items() if pid is not None}
        command = [sys.executable, str(HERE / "generator.py"), str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            household = Household(self._fleet.pid, pids | {"generator": process.pid})
            process.stdout.readline()
            before = now = Moment.of(household, cores)
            process.stdin.write("go\n")
            process.stdin.flush()
            ended: Moment | None = None
            while ended is None or self._group.lag() != 0:
                if now.at > before.at + job["over_s"] + DRAIN_TIMEOUT_S:
                    raise SystemExit(f"Not drained in {DRAIN_TIMEOUT_S} s; {self._group.lag()} messages wait.")
                time.sleep(INTERVAL_S)
                now = Moment.of(household, cores)
                if ended is None and process.poll() is not None:
                    ended = now
            output = process.stdout.read()
        if process.returncode:
            raise SystemExit("The generator failed.")
        peaks = [peak_rss_bytes(worker.pid) for worker in household.workers()]
        return json.loads(output), {"load": ended.since(before), "whole": now.since(before)}, peaks


def limit(result: dict[str, Any], load: Span) -> str:
    """Name what the load waited for, by what was used up while it came in."""
    if result["latency_s"]["p99"] <= IN_TIME_S:
        return "nothing"
    if load.machine.busy_s > BUSY * (load.machine.busy_s + load.machine.idle_s):
        parts = {name: seconds for name, seconds in load.parts_s.items() if name != "idle"}
        most = sorted(parts, key=lambda name: -parts[name])[:2]
        return f"the cores, all of which were busy: most of their time went to {most[0]} and {most[1]}"
    if not result["generator"]["kept_pace"]:
        return "the generator, which did not keep its pace"
    if busiest := [name for name, seconds in load.cpu_s.items() if seconds > BUSY * load.wall_s]:
        return f"{' and '.join(busiest)}, each as busy as one thread can be"
    return NEITHER


def show(result: dict[str, Any]) -> Iterator[RenderableType]:
    """Show what was measured."""
    yield f"{result['packets']} ({result['mean_packet_bytes'] / 1e3:.1f} kB), {result['workers']} workers"
    quantiles = Table("load", "seconds", "p50", "p90", "p99", "max", title="latency")
    for name, load in result["loads"].items():
        for span in ("latency_s", "until_scored_s", "scored_to_out_s"):
            values = (f"{value:,.3f}" for value in load[span].values())
            quantiles.add_row(name, span.removesuffix("_s").replace("_", " "), *values)
    yield quantiles
    for name, load in result["loads"].items():
        yield from _told(name, load)


def _told(name: str, load: dict[str, Any]) -> Iterator[RenderableType]:
    generator, spans = load["generator"], load["spans"]
    kept, behind = "kept" if generator["kept_pace"] else "DID NOT KEEP", generator["behind_s"]
    yield (
        f"{name}: {load['alerts']:,} at {load['rate']:,.0f}/s; the generator {kept} its pace (behind: p99 "
        f"{behind['p99']:.3f} s, max {behind['max']:.3f} s), all acknowledged after {generator['acknowledged_s']:.1f} s"
    )
    yield (
        f"all out after {load['all_out_s']:.1f} s; {load['backlog_at_end']:,} waited when the last was sent; "
        f"missing {load['missing']}, twice {load['again']}; peak memory of the workers until then "
        f"{', '.join(f'{peak / 1e6:,.0f}' for peak in load['worker_peak_rss_bytes'])} MB"
    )
    usage = Table("CPU seconds", name, "of a core", "with the drain", title=f"of {os.cpu_count()} cores")
    for part in spans["load"]["parts_s"]:
        during, whole = (spans[span]["parts_s"][part] for span in ("load", "whole"))
        usage.add_row(part, f"{during:.1f}", f"{during / spans['load']['wall_s']:.2f}", f"{whole:.1f}")
    yield usage
    yield f"What it waited for: {load['limit']}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--survey", default="ztf", help="ztf (default), lsst, lsst_wire, ...")
    parser.add_argument("--alerts", type=int, default=BURST.alerts, help="of the burst (40000)")
    parser.add_argument("--over", type=float, default=BURST.over_s, help="seconds (37)")
    parser.add_argument(
        "--steady", type=int, default=STEADY_PER_S, help="alerts a second before it, for 20 s (200; 0: none)"
    )
    parser.add_argument("--workers", type=int, default=2, help="of the fleet (2)")
    parser.add_argument("--partitions", type=int, default=4, help="of each topic (4)")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="alerts before all (40000)")
    parser.add_argument("--lite", action="store_true", help="publish enrichments without the packets, and nothing else")
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args()


if __name__ == "__main__":
    main()
