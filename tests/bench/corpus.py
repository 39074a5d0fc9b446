"""What the benchmark sends: real alerts where there are some, else simulated ones, and the topics they lie in.

Packets are repeated in order until there are enough. Message `i` goes to partition `i % partitions`, so that every
way of processing reads the same packets from the same places. `ztf_wire` is `ztf` in Confluent's wire format, and so
with every survey: the same records, and a folder of their schemas.
"""

import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wire
from confluent_kafka import Producer

REPOSITORY = Path(__file__).resolve().parents[2]

SIMULATED = 300
"""Packets made where there are no real ones: enough that none stays in the processor's cache until its next turn."""
LONGEST_BACKLOG = 1000
ROOM = 3
"""Disk must hold the input, one output and as much again."""
SHAPES = {"ztf", "candidate"}
"""Of packets that can be simulated."""
WIRE = "_wire"


@dataclass(frozen=True)
class Corpus:
    """The distinct packets of a survey, and where they lie for other processes."""

    survey: str
    """Whose profile reads them."""
    origin: str
    """A word on where they come from."""
    packets: Sequence[bytes]
    folder: Path
    sections: dict[str, dict[str, Any]]
    """What the settings must say for them: the registry."""

    @property
    def mean_packet_bytes(self) -> float:
        return sum(map(len, self.packets)) / len(self.packets)


def data_folder() -> Path:
    """Where real alerts would be: ALERTS_DIR, or shared/data beside the repository."""
    given = os.environ.get("ALERTS_DIR")
    return Path(given) if given else REPOSITORY.parent / "shared" / "data"


def real_alerts(survey: str) -> list[Path]:
    """The data folder's alerts of a survey, in order."""
    return sorted((data_folder() / survey).rglob("*.avro"))


def prepare(kind: str, work: Path) -> Corpus:
    """Put the distinct packets of a survey, or of its wire format, into a folder within `work`."""
    survey = kind.removesuffix(WIRE)
    packets, origin = _packets(survey)
    folder, schemas = work / "packets", work / "schemas"
    folder.mkdir(parents=True)
    sections = {}
    if kind.endswith(WIRE):
        schemas.mkdir()
        packets, origin = wire.from_files(packets, schemas), f"{origin} in wire format"
        sections = {"registry": {"url": str(schemas)}}
    for number, packet in enumerate(packets):
        (folder / f"{number:05d}.avro").write_bytes(packet)
    return Corpus(survey, origin, load(folder), folder, sections)


def can_be_had(kind: str) -> bool:
    """Whether the data folder has alerts of a survey, or they can be simulated."""
    survey = kind.removesuffix(WIRE)
    return survey in SHAPES or bool(real_alerts(survey))


def _packets(survey: str) -> tuple[Iterator[bytes], str]:
    real = real_alerts(survey)
    if real:
        return (path.read_bytes() for path in real), f"{len(real)} real {survey} alerts"
    if survey not in SHAPES:
        raise SystemExit(f"No real alerts of {survey} in the data folder, and they cannot be simulated; use ztf.")
    from stream_vae.sky.packets import simulate_packets

    made = simulate_packets(SIMULATED, shape=survey)  # type: ignore[arg-type]
    return (each.packet for each in made), f"{SIMULATED} simulated {survey} alerts"


def load(folder: Path) -> list[bytes]:
    """Read the packets that `prepare` wrote."""
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
