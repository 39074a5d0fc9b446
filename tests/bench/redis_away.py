"""Does a reservoir cost throughput, and does one that is dead, hung or full?

    .venv/bin/python tests/bench/redis_away.py [--survey ztf] [--alerts 8000] [--rounds 5] [--json OUT]

One worker in a process of its own, a backlog on a real Kafka, and in turn: no reservoir; one that fills, so that every
alert is sent; one that is full, as it is for all but its first hours; one whose server is dead; one whose server is
stopped (it takes connections and never answers); one whose server has no memory left. The
rate is taken in the middle of the backlog, from the worker's own counts; all rates of a round are held against the
first. Kafka takes the other core.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import corpus  # noqa: E402 - needs the path above
import psutil  # noqa: E402
import redis  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from summary import Spread  # noqa: E402
from topics import configure  # noqa: E402

from deployment import deploy  # noqa: E402
from flow import running, until  # noqa: E402
from servers import Kafka, MissingServiceError, free_ports, real_kafka, redis_binary, start_redis  # noqa: E402

WAYS = ("none", "filling", "settled", "dead", "hung", "full")
BEGIN, END = 0.2, 0.9
"""Of a run's alerts, the part that is measured."""
ROOM_BYTES = 100_000
"""That a server without memory has left: some eighty stamps."""
SETTLED = dict.fromkeys(("capacity", "recent_capacity", "rare_capacity", "known_capacity"), 10)
"""Of a reservoir that is full after a moment: the packets repeat, so that a larger one would never turn one away."""
RUN_TIMEOUT_S = 300


@contextlib.contextmanager
def server(way: str, folder: Path) -> Iterator[str | None]:
    """Give the URL of a Redis in that state."""
    if way == "none":
        yield None
        return
    (port,) = free_ports(1)
    url = f"redis://127.0.0.1:{port}/0"
    if way == "dead":
        yield url
        return
    folder.mkdir()
    process = start_redis(redis_binary(), port, folder)
    try:
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            until(lambda: _answers(client), what="Redis answers")
            if way == "full":
                client.config_set("maxmemory", client.info("memory")["used_memory"] + ROOM_BYTES)
                client.config_set("maxmemory-policy", "noeviction")
        if way == "hung":
            process.send_signal(signal.SIGSTOP)
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(client.ping())
    return False


def measure(kafka: Kafka, topic: str, way: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run a worker through the backlog; give its rate, its CPU time an alert, and what the reservoir dropped."""
    (port,) = free_ports(1)
    folder.mkdir()
    with server(way, folder / "redis") as url:
        reservoir = {"url": url} | (SETTLED if way == "settled" else {})
        sections = {} if url is None else {"reservoir": reservoir}
        deployment = deploy(kafka, folder, survey=options.survey, metrics={"port": port}, **sections)
        document = deployment.file.read_text("utf-8").replace(deployment.input, topic)
        deployment.file.write_text(document, "utf-8")
        outputs = [deployment.output, deployment.lite, deployment.dead_letters]
        configure(kafka, outputs, {"retention.ms": -1})
        with running(folder / "worker.log", "run", "--settings", deployment.file) as worker:
            process = psutil.Process(worker.pid)
            begin, end = int(BEGIN * options.alerts), int(END * options.alerts)
            first = _reaches(port, begin, process)
            last = _reaches(port, end, process)
            dropped = _metric(port, "stream_vae_reservoir_dropped_total")
            entered = _metric(port, "stream_vae_reservoir_entered_total")
        kafka.delete_topics(outputs)
    alerts = last[0] - first[0]
    return {
        "alerts_per_s": alerts / (last[1] - first[1]),
        "cpu_us": (last[2] - first[2]) / alerts * 1e6,
        "dropped": dropped,
        "entered": entered,
    }


def _reaches(port: int, alerts: int, process: psutil.Process) -> tuple[float, float, float]:
    """Wait for a count; give count, wall-clock time and CPU time then."""
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            count = _metric(port, "stream_vae_alerts_published_total")
            if count >= alerts:
                spent = process.cpu_times()
                return count, time.monotonic(), spent.user + spent.system
        time.sleep(0.05)
    raise SystemExit(f"The worker did not publish {alerts} alerts in {RUN_TIMEOUT_S} s.")


def _metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def main() -> None:
    """Measure in interleaved rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--survey", default="ztf")
    parser.add_argument("--alerts", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds: list[dict[str, dict[str, float]]] = []
    with contextlib.ExitStack() as stack:
        try:
            kafka = stack.enter_context(real_kafka())
        except MissingServiceError as error:
            raise SystemExit(str(error)) from error
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stream-vae-redis-")))
        made = corpus.prepare(options.survey, folder / "corpus")
        topic = kafka.fresh_topic(1, stem="redis-away", retention_ms=-1, max_message_bytes=10_000_000)
        corpus.publish(kafka.bootstrap_servers, topic, 1, made.packets, options.alerts)
        measure(kafka, topic, "none", folder / "warm", options)  # not counted: the broker compiles too
        for number in range(options.rounds):
            order = WAYS if number % 2 == 0 else WAYS[::-1]
            found = {way: measure(kafka, topic, way, folder / f"{number}-{way}", options) for way in order}
            rounds.append(found)
            rates = ", ".join(f"{way} {found[way]['alerts_per_s']:,.0f}/s" for way in WAYS)
            print(f"round {number + 1}: {rates}", file=sys.stderr, flush=True)
    table = Table("reservoir", "alerts/s", "rate / none", "CPU us", "CPU / none", "entered", "dropped")
    for way in WAYS:
        each = [found[way] for found in rounds]
        table.add_row(
            way,
            f"{Spread.of([one['alerts_per_s'] for one in each]).median:,.0f}",
            _ratio([found[way]["alerts_per_s"] / found["none"]["alerts_per_s"] for found in rounds]),
            f"{Spread.of([one['cpu_us'] for one in each]).median:.0f}",
            _ratio([found[way]["cpu_us"] / found["none"]["cpu_us"] for found in rounds]),
            f"{each[-1]['entered']:,.0f}",
            f"{each[-1]['dropped']:,.0f}",
        )
    print(f"{made.origin}, {options.alerts} a run, {options.rounds} rounds, {os.cpu_count()} cores")
    Console(width=120).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(rounds, indent=2) + "\n", "utf-8")


def _ratio(values: list[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


if __name__ == "__main__":
    main()
