"""An hour of alerts at a steady rate through a fleet: does anything grow, and is anything lost?

    .venv/bin/python tests/bench/soak.py --minutes 60 --rate 100 [--workers 2] [--json OUT] [--plot OUT.png]

A real Kafka whose topics keep little, a Redis for the reservoir, real ZTF alerts under ids of their own, and
`stream-vae run --workers N` with both outputs and its metrics page, which is read as Prometheus would. README.md beside
this file says what is compared with what. Exit 1 if anything is not as promised.
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import corpus  # noqa: E402 - needs the path above
import networks  # noqa: E402
from growth import Growth, Sample, Windows, grown, is_ours  # noqa: E402
from processes import Household, child  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from soak_plot import plot  # noqa: E402
from stream_vae.runtime.group import Group  # noqa: E402
from stream_vae.tools.audit import audit_of  # noqa: E402
from stream_vae.tools.fleet_status import fleet_status, page_url  # noqa: E402
from topics import configure  # noqa: E402

from chaos.load import Item, Load  # noqa: E402
from chaos.witness import Findings, Witness  # noqa: E402
from deployment import Deployment, deploy  # noqa: E402
from flow import Process, count_messages, running, until  # noqa: E402
from servers import Kafka, MissingServiceError, free_ports, real_kafka, real_redis  # noqa: E402

INTERVAL_S = 10.0
PARTITIONS = 4
RETENTION = {"retention.bytes": 2**28, "segment.bytes": 2**26}
"""Of each partition: 256 MiB in segments of 64, some 2.5 minutes of 100 alerts a second."""
RESERVOIR = 20_000
"""Stamps: full, and so as large as it gets, within the warm-up at 100 alerts a second."""
START_TIMEOUT_S = 300
END_TIMEOUT_S = 300
SAVED_EVERY = 6
FIRST_CANDID = 2 * 10**18
"""Of 9 bytes as Avro writes it, like those of all real alerts, and above them."""


def main() -> int:
    options = _options()
    with contextlib.ExitStack() as stack:
        try:
            kafka, redis = stack.enter_context(real_kafka()), stack.enter_context(real_redis())
        except MissingServiceError as error:
            raise SystemExit(str(error)) from error
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stream-vae-soak-")))
        document = soak(kafka, redis.url, folder, options)
    _save(document, options)
    _tell(document)
    return int(bool(document["problems"]))


def soak(kafka: Kafka, redis_url: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run it all; the document holds the samples, what is compared, and what is wrong."""
    (port,) = free_ports(1)
    deployment = deploy(
        kafka,
        folder,
        partitions=PARTITIONS,
        reservoir={"url": redis_url, "capacity": RESERVOIR},
        metrics={"port": port},
    )
    networks.make_release(folder / "store", folder / "bench-release", 1)
    keep_little(deployment)
    document: dict[str, Any] = {
        "command": " ".join(["tests/bench/soak.py", *sys.argv[1:]]),
        "began": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "rate": options.rate,
        "minutes": options.minutes,
        "packets": len(real_packets()),
        "samples": [],
        "problems": [],
    }
    log = options.json.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    witness = Witness(deployment)
    # Before the fleet, which so begins with a backlog: what workers keep of their fullest batches they have at once.
    load = Load(deployment, renumbered(), a_second=options.rate, partitions=PARTITIONS)
    with running(log, "run", "--settings", deployment.file, "--workers", options.workers) as fleet:
        until(lambda: _ready(deployment, options.workers), what="the fleet is ready", timeout_s=START_TIMEOUT_S)
        watch(deployment, fleet, document, options, lambda: len(load.sent))
        load.stop()
        settled = _settles(deployment, witness, len(load.sent))
        books = [asdict(line) | {"balanced": line.balanced} for line in audit_of(deployment.settings.kafka)]
        lite = count_messages(kafka, deployment.lite)
        fleet.signal(signal.SIGTERM)
        exit_code = fleet.wait(END_TIMEOUT_S)
        witness.stop()
    findings = witness.findings(load.sent)
    growth = grown(document["samples"], Windows.of(options.minutes * 60))
    document |= {
        "sent": len(load.sent),
        "settled": settled,
        "books": books,
        "lite": lite,
        "exit": exit_code,
        "findings": asdict(findings),
        "growth": [asdict(each) for each in growth],
    }
    document["problems"] += [*_wrong(document, findings, options.workers), *_grows(growth)]
    return document


def keep_little(deployment: Deployment) -> None:
    """Bound what the topics keep: an hour of alerts would be tens of GB."""
    topics = (deployment.input, deployment.output, deployment.lite, deployment.dead_letters)
    configure(deployment.kafka, topics, RETENTION)


def real_packets() -> list[tuple[int, bytes]]:
    """Read ZTF's packets, which are called by their candid."""
    found = [(int(path.stem), path.read_bytes()) for path in sorted((corpus.data_folder() / "ztf").rglob("*.avro"))]
    if not found:
        raise SystemExit("A soak is of real ZTF alerts: name their folder by ALERTS_DIR.")
    return found


def renumbered() -> Iterator[Item]:
    """Real alerts over and over, each with a candid that no other has: to the reservoir they are all new."""
    parts = [packet.split(_as_avro(candid)) for candid, packet in real_packets()]
    for number, pieces in zip(itertools.count(FIRST_CANDID), itertools.cycle(parts)):
        yield Item(_as_avro(number).join(pieces))


def _as_avro(number: int) -> bytes:
    """Write a long that is not negative."""
    rest, out = number << 1, bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*out, rest])


def _ready(deployment: Deployment, workers: int) -> bool:
    with contextlib.suppress(Exception):  # the page is not there yet
        lines = fleet_status(page_url(deployment.settings.metrics)).lines
        return sum(line.partitions for line in lines) == PARTITIONS and len(lines) > workers
    return False


def watch(
    deployment: Deployment,
    fleet: Process,
    document: dict[str, Any],
    options: argparse.Namespace,
    count: Callable[[], int],
) -> None:
    """Take a sample every ten seconds until the time is over or the fleet has ended."""
    others = {"broker": child("java"), "Redis": child("redis-server", "valkey-server"), "this program": os.getpid()}
    household = Household(fleet.pid, {name: pid for name, pid in others.items() if pid is not None})
    group, url = Group(deployment.settings.kafka), page_url(deployment.settings.metrics)
    start = time.monotonic()
    for number in itertools.count(1):
        time.sleep(max(start + number * INTERVAL_S - time.monotonic(), 0))
        if not fleet.running:
            document["problems"].append("the fleet ended before it was told to")
            return
        lines = fleet_status(url).lines
        sample: Sample = {
            "at_s": time.monotonic() - start,
            "sent": count(),
            "lag": group.lag(),
            "published": sum(line.published for line in lines),
            "restarts": sum(line.restarts for line in lines),
            "disk_free_bytes": shutil.disk_usage("/tmp").free,  # noqa: S108 - where the broker's folder is
            "processes": {name: asdict(reading) for name, reading in household.read(memory=True).items()},
        }
        document["samples"].append(sample)
        if number % SAVED_EVERY == 0:
            _save(document, options)
        if sample["at_s"] >= options.minutes * 60:
            return


def _settles(deployment: Deployment, witness: Witness, sent: int) -> bool:
    """Wait until nothing waits any more and the reader has seen all; False if that does not come."""
    group = Group(deployment.settings.kafka)
    deadline = time.monotonic() + END_TIMEOUT_S
    while time.monotonic() < deadline:
        if group.lag() == 0 and len(witness.fates) >= sent:
            return True
        time.sleep(1)
    return False


def _grows(growth: Sequence[Growth]) -> Iterator[str]:
    for each in growth:
        if each.ours:
            yield from each.problems()


def _wrong(document: dict[str, Any], findings: Findings, workers: int) -> Iterator[str]:
    """What does not balance or was lost."""
    pages = [line["page"] or {} for line in document["books"]]
    totals = {name: sum(page.get(name, 0) for page in pages) for name in ("consumed", "published", "dead_lettered")}
    gaps = sum(page["next_offset"] - page["since"] - page["consumed"] for page in pages if page)
    sent, last = document["sent"], document["samples"][-1]
    ours = sum(map(is_ours, last["processes"]))
    checks = {
        f"not everything settled in {END_TIMEOUT_S} s": document["settled"],
        f"the books say {totals} with {gaps} gaps of {sent:,} sent": all(line["balanced"] for line in document["books"])
        and totals == {"consumed": sent, "published": sent, "dead_lettered": 0}
        and gaps == 0,
        f"the reader says {findings}": findings.lost == findings.invented == findings.misplaced == 0
        and findings.duplicated == findings.disordered == 0,
        f"{document['lite']:,} lite messages": document["lite"] == sent,
        f"the fleet left with {document['exit']}": document["exit"] == 0,
        f"{last['restarts']:g} restarts, {ours} processes of ours": last["restarts"] == 0 and ours == workers + 1,
    }
    yield from (what for what, right in checks.items() if not right)


def _save(document: dict[str, Any], options: argparse.Namespace) -> None:
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(document, options.plot)


def _tell(document: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    columns = ("process", "RSS MB", "change", "USS MB", "change", "descriptors", "threads", "cores")
    title = f"{document['sent']:,} alerts in {document['minutes']:g} minutes: medians of the first window and the last"
    table = Table(*columns, title=title)
    for each in document["growth"]:
        memory = [
            text
            for first, last in (each["rss_bytes"], each["uss_bytes"])
            for text in (f"{first / 1e6:.1f} > {last / 1e6:.1f}", f"{last / first - 1:+.1%}")
        ]
        counts = [f"{first:g} > {last:g}" for first, last in (each["descriptors"], each["threads"])]
        table.add_row(
            each["process"], *memory, *counts, f"{each['cpu_cores'][1]:.2f}", style=None if each["ours"] else "dim"
        )
    console.print(table)
    lags = [each["lag"] for each in document["samples"] if each["lag"] is not None]
    console.print(f"lag: median {median(lags):,}, largest {max(lags):,}; the reader: {document['findings']}")
    for problem in document["problems"]:
        console.print(problem, style="red", highlight=False)
    if not document["problems"]:
        console.print("Nothing grew, nothing was lost.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of load (60)")
    parser.add_argument("--rate", type=float, default=100, help="alerts a second (100)")
    parser.add_argument("--workers", type=int, default=2, help="of the fleet (2)")
    parser.add_argument("--json", type=Path, default=corpus.REPOSITORY / "tests/bench/results/soak.json")
    parser.add_argument("--plot", type=Path, help="a PNG, drawn anew every minute")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
