"""What the benchmark sends: real alerts where there are some, else simulated ones, and the topics they lie in.

Packets are repeated in order until there are enough. Message `i` goes to partition `i % partitions`, so that every
way of processing reads the same packets from the same places.
"""

import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from confluent_kafka import Producer

REPOSITORY = Path(__file__).resolve().parents[2]

SIMULATED = 300
"""Packets made where there are no real ones: enough that none stays in the processor's cache until its next turn."""
LONGEST_BACKLOG = 1000
ROOM = 3
"""Disk must hold the input, one output and as much again."""


def data_folder() -> Path:
    """Where real alerts would be: ALERTS_DIR, or shared/data beside the repository."""
    given = os.environ.get("ALERTS_DIR")
    return Path(given) if given else REPOSITORY.parent / "shared" / "data"


def prepare(survey: str, folder: Path) -> str:
    """Put the distinct packets of a survey into `folder`, numbered; give a word on where they come from."""
    folder.mkdir(parents=True)
    packets, origin = _packets(survey)
    for number, packet in enumerate(packets):
        (folder / f"{number:05d}.avro").write_bytes(packet)
    return origin


def is_real(survey: str) -> bool:
    """Whether the data folder has alerts of a survey."""
    return any((data_folder() / survey).rglob("*.avro"))


def _packets(survey: str) -> tuple[Iterator[bytes], str]:
    real = sorted((data_folder() / survey).rglob("*.avro"))
    if real:
        return (path.read_bytes() for path in real), f"{len(real)} real {survey} alerts"
    if survey not in {"ztf", "candidate"}:
        raise SystemExit(f"No real alerts of {survey} in the data folder, and they cannot be simulated; use ztf.")
    from stream_vae.sky.packets import simulate_packets

    made = simulate_packets(SIMULATED, shape=survey)  # type: ignore[arg-type]
    return (each.packet for each in made), f"{SIMULATED} simulated {survey} alerts"


def load(folder: Path) -> list[bytes]:
    """Read what `prepare` wrote."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def publish(bootstrap_servers: str, topic: str, partitions: int, packets: Sequence[bytes], alerts: int) -> None:
    """Put `alerts` messages into a topic."""
    size = alerts * sum(map(len, packets)) // len(packets)
    if shutil.disk_usage("/tmp").free < ROOM * size:  # noqa: S108 - where the broker's folder is
        raise SystemExit(f"{alerts} alerts need {ROOM * size / 1e9:.1f} GB of disk; ask for fewer with --alerts.")
    producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 5, "batch.size": 1_000_000})
    for number, packet in zip(range(alerts), itertools.cycle(packets), strict=False):
        producer.produce(topic, packet, key=f"object-{number % len(packets)}", partition=number % partitions)
        while len(producer) > LONGEST_BACKLOG:
            producer.poll(0.01)
    if producer.flush(60):
        raise SystemExit("Kafka did not take the benchmark's input.")
