"""A burst as LSST sends one: alerts at a pace for some seconds, and how long they take to come out again.

    .venv/bin/python tests/bench/burst.py [--survey ztf] [--alerts 40000] [--over 37] [--workers 2] [--lite]

A real Kafka, a generator in a process of its own and `stream-vae run --workers N`, all on this machine. README.md
beside this file says which clocks are compared.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import corpus  # noqa: E402 - needs the path above
import networks  # noqa: E402
import numpy as np  # noqa: E402
from outcome import Sent, latency, read_out  # noqa: E402
from processes import Household, Moment, Span, child  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from stream_vae.runtime.group import Group  # noqa: E402
from topics import configure  # noqa: E402

from deployment import Deployment, deploy  # noqa: E402
from flow import running, until  # noqa: E402
from servers import Kafka, MissingServiceError, real_kafka  # noqa: E402

WARM_UP = 40_000
"""Alerts before: every packet in each worker, and so many that the broker's virtual machine has compiled what it runs:
with 6,000 that is still a third of its CPU time in the burst."""
INTERVAL_S = 0.5
START_TIMEOUT_S = 300
DRAIN_TIMEOUT_S = 600
IN_TIME_S = 1.0
BEHIND_S = 0.1
"""A generator that is further behind than this with one message of a hundred has not kept its pace."""
BUSY = 0.9
NEITHER = "neither cores nor a single process: waiting"


def main() -> None:
    options = _options()
    with contextlib.ExitStack() as stack:
        try:
            kafka = stack.enter_context(real_kafka())
        except MissingServiceError as error:
            raise SystemExit(str(error)) from error
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stream-vae-burst-")))
        result = burst(kafka, folder, options)
    _tell(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def burst(kafka: Kafka, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one burst."""
    made = corpus.prepare(options.survey, folder / "corpus")
    needed = options.alerts * made.mean_packet_bytes * (1 if options.lite else 2)
    if shutil.disk_usage("/tmp").free < needed * 1.5:  # noqa: S108 - where the broker's folder is
        raise SystemExit(f"{needed / 1e9:.0f} GB are needed on disk.")
    deployment = _deploy(kafka, folder, made, options)
    output = deployment.lite if options.lite else deployment.output
    warm_up = options.warm_up // options.partitions * options.partitions
    with running(folder / "fleet.log", "run", "--settings", deployment.file, "--workers", options.workers) as fleet:
        corpus.publish(kafka.bootstrap_servers, deployment.input, options.partitions, made.packets, warm_up)
        group = Group(deployment.settings.kafka)
        until(lambda: group.lag() == 0, what="the warm-up is settled", timeout_s=START_TIMEOUT_S)
        time.sleep(2)  # what was put off until it is quiet
        job = {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topic": deployment.input,
            "partitions": options.partitions,
            "corpus": str(made.folder),
            "alerts": options.alerts,
            "over_s": options.over,
        }
        generator, spans = _send(fleet.pid, group, job, folder)
    sent = Sent(np.load(folder / "sent.npy"), options.partitions, warm_up // options.partitions)
    found = latency(sent, read_out(kafka, output, sent))
    result: dict[str, Any] = {
        "command": " ".join(["tests/bench/burst.py", *sys.argv[1:]]),
        "packets": made.origin,
        "mean_packet_bytes": made.mean_packet_bytes,
        "rate": options.alerts / options.over,
        "generator": generator | {"kept_pace": generator["behind_s"]["p99"] < BEHIND_S},
        **found,
        "spans": {name: asdict(span) | {"parts_s": span.parts_s} for name, span in spans.items()},
    }
    return result | {"limit": limit(result, spans["burst"])}


def _deploy(kafka: Kafka, folder: Path, made: corpus.Corpus, options: argparse.Namespace) -> Deployment:
    unused = "output_topic" if options.lite else "lite_topic"
    sections: dict[str, Any] = {"kafka": {unused: None}} | made.sections
    deployment = deploy(kafka, folder, survey=made.survey, partitions=options.partitions, **sections)
    networks.make_release(folder / "store", folder / "bench-release", 1)
    output = deployment.lite if options.lite else deployment.output
    configure(kafka, [deployment.input, output], {"retention.bytes": -1})
    configure(kafka, [output], {"message.timestamp.type": "LogAppendTime"})
    return deployment


def _send(supervisor: int, group: Group, job: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Span]]:
    """Let the generator send, and wait until all is settled; CPU time of the burst and of the drain after it."""
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    cores = os.sched_getaffinity(0)
    others = {"broker": child("java"), "this program": os.getpid()}
    pids = {name: pid for name, pid in others.items() if pid is not None}
    command = [sys.executable, str(HERE / "generator.py"), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        household = Household(supervisor, pids | {"generator": process.pid})
        process.stdout.readline()
        before = now = Moment.of(household, cores)
        process.stdin.write("go\n")
        process.stdin.flush()
        ended: Moment | None = None
        while ended is None or group.lag() != 0:
            if now.at > before.at + job["over_s"] + DRAIN_TIMEOUT_S:
                raise SystemExit(f"Not drained in {DRAIN_TIMEOUT_S} s; {group.lag()} messages wait.")
            time.sleep(INTERVAL_S)
            now = Moment.of(household, cores)
            if ended is None and process.poll() is not None:
                ended = now
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit("The generator failed.")
    return json.loads(output), {"burst": ended.since(before), "whole": now.since(before)}


def limit(result: dict[str, Any], burst: Span) -> str:
    """Name what the burst waited for, by what was used up while it came in."""
    if result["latency_s"]["p99"] <= IN_TIME_S:
        return "nothing"
    if burst.machine.busy_s > BUSY * (burst.machine.busy_s + burst.machine.idle_s):
        parts = {name: seconds for name, seconds in burst.parts_s.items() if name != "idle"}
        most = sorted(parts, key=lambda name: -parts[name])[:2]
        return f"the cores, all of which were busy: most of their time went to {most[0]} and {most[1]}"
    if not result["generator"]["kept_pace"]:
        return "the generator, which did not keep its pace"
    if busiest := [name for name, seconds in burst.cpu_s.items() if seconds > BUSY * burst.wall_s]:
        return f"{' and '.join(busiest)}, each as busy as one thread can be"
    return NEITHER


def _tell(result: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    generator, spans = result["generator"], result["spans"]
    kept, behind = "kept" if generator["kept_pace"] else "DID NOT KEEP", generator["behind_s"]
    console.print(
        f"{result['packets']} ({result['mean_packet_bytes'] / 1e3:.1f} kB) at {result['rate']:,.0f}/s; the generator "
        f"{kept} its pace (behind: p99 {behind['p99']:.3f} s, max {behind['max']:.3f} s), all acknowledged after "
        f"{generator['acknowledged_s']:.1f} s"
    )
    console.print(
        f"all out after {result['all_out_s']:.1f} s; {result['backlog_at_end']:,} waited when the last was sent; "
        f"missing {result['missing']}, twice {result['again']}"
    )
    quantiles = Table("seconds", "p50", "p90", "p99", "max")
    for name in ("latency_s", "until_scored_s", "scored_to_out_s"):
        quantiles.add_row(name.removesuffix("_s"), *(f"{value:,.3f}" for value in result[name].values()))
    usage = Table("CPU seconds", "burst", "of a core", "whole", title=f"of {os.cpu_count()} cores")
    for name in spans["burst"]["parts_s"]:
        burst, whole = (spans[span]["parts_s"][name] for span in ("burst", "whole"))
        usage.add_row(name, f"{burst:.1f}", f"{burst / spans['burst']['wall_s']:.2f}", f"{whole:.1f}")
    console.print(quantiles, usage, f"What it waited for: {result['limit']}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--survey", default="ztf", help="ztf (default), lsst, lsst_wire, ...")
    parser.add_argument("--alerts", type=int, default=40_000, help="of the burst (40000)")
    parser.add_argument("--over", type=float, default=37.0, help="seconds (37)")
    parser.add_argument("--workers", type=int, default=2, help="of the fleet (2)")
    parser.add_argument("--partitions", type=int, default=4, help="of each topic (4)")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="alerts before it")
    parser.add_argument("--lite", action="store_true", help="publish enrichments without the packets, and nothing else")
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args()


if __name__ == "__main__":
    main()
