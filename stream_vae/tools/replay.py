"""Publish a folder of alerts, or simulated ones, to a topic as a survey would."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import numpy as np
from confluent_kafka import KafkaError, KafkaException

from stream_vae import kafka
from stream_vae.errors import ConfigError, FatalError
from stream_vae.settings import KafkaSettings

FAULT_HEADER = "replay.fault"
_AHEAD = 2_000
"""Messages that may wait in the producer: enough to keep it busy."""


class Sent(NamedTuple):
    """One message to replay."""

    key: bytes | None
    packet: bytes
    fault: str | None = None


@dataclass
class Tally:
    """What a replay sent."""

    sent: int = 0
    bytes: int = 0
    duplicates: int = 0
    corrupted: int = 0
    seconds: float = 0.0


def from_files(path: Path, count: int | None = None) -> Iterator[Sent]:
    """Read alert packets from a folder or a file.

    Parameters
    ----------
    path : Path
        A folder, searched with its subfolders for ``*.avro``, or one file.
    count : int, optional
        How many, over and over if need be; absent: each once.

    Yields
    ------
    Sent
        In the order of their paths.

    Raises
    ------
    ConfigError
        If there is none.
    """
    files = sorted(path.rglob("*.avro")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ConfigError(f"{path} holds no alert packets (*.avro).", remedy="Give a folder of alerts, a file, or sim.")
    for file in itertools.islice(itertools.cycle(files), count or len(files)):
        yield Sent(file.stem.encode(), file.read_bytes())


def from_simulator(count: int, *, shape: str = "ztf", seed: int = 0) -> Iterator[Sent]:
    """Make simulated alerts.

    Parameters
    ----------
    count : int
        How many.
    shape : str
        ``ztf`` or ``candidate``.
    seed : int
        Fixes everything.

    Yields
    ------
    Sent
        Image by image.
    """
    from stream_vae.sky.packets import simulate_packets

    for each in simulate_packets(count, shape="candidate" if shape == "candidate" else "ztf", seed=seed):
        yield Sent(each.key, each.packet)


def spoiled(packets: Iterable[Sent], *, duplicates: float, corrupt: float, seed: int) -> Iterator[Sent]:
    """Send some packets twice and damage others.

    Parameters
    ----------
    packets : iterable of Sent
        Good ones.
    duplicates : float
        Share that is sent twice.
    corrupt : float
        Share that is replaced by a damaged copy, of each kind of fault in turn.
    seed : int
        Fixes which.

    Yields
    ------
    Sent
        With the fault's name where there is one.
    """
    from stream_vae.faults import corpus as faults

    rng = np.random.default_rng(seed)
    turn = 0
    for sent in packets:
        chance = rng.random()
        if chance < corrupt:
            kinds = faults.kinds_for(sent.packet)
            kind, turn = kinds[turn % len(kinds)], turn + 1
            yield Sent(sent.key, faults.corrupt(sent.packet, kind, rng), kind)
            continue
        yield sent
        if chance > 1 - duplicates:
            yield sent


def send(
    packets: Iterable[Sent],
    settings: KafkaSettings,
    topic: str,
    *,
    pace: Callable[[int], None] | None = None,
    watch: Callable[[Tally], None] | None = None,
) -> Tally:
    """Publish packets and wait until all are acknowledged.

    Parameters
    ----------
    packets : iterable of Sent
        What to send.
    settings : KafkaSettings
        ``[kafka]``.
    topic : str
        Where to.
    pace : callable, optional
        Called with the number already sent before each; sleeps where a rate is asked for.
    watch : callable, optional
        Called now and then, for a progress bar.

    Returns
    -------
    Tally
        What was sent.

    Raises
    ------
    FatalError
        If Kafka refuses a message.
    """
    producer = kafka.plain_producer(settings)
    tally, failures = Tally(), []
    started = monotonic()

    def delivered(error: KafkaError | None, message: Any) -> None:
        del message
        if error is not None:
            failures.append(error)

    previous: Sent | None = None
    for sent in packets:
        if pace:
            pace(tally.sent)
        while len(producer) > _AHEAD:
            producer.poll(0.05)
        headers = [(FAULT_HEADER, sent.fault.encode())] if sent.fault else []
        try:
            producer.produce(topic, sent.packet, sent.key, on_delivery=delivered, headers=headers)
        except KafkaException as error:
            raise FatalError(f"Kafka refuses a message for {topic}: {error.args[0].str()}.") from error
        tally.sent += 1
        tally.bytes += len(sent.packet)
        tally.corrupted += sent.fault is not None
        tally.duplicates += sent is previous
        previous = sent
        producer.poll(0)
        if watch and tally.sent % 50 == 0:
            watch(tally)
        if failures:
            break
    producer.flush(60)
    tally.seconds = monotonic() - started
    if watch:
        watch(tally)
    if failures:
        raise FatalError(f"Kafka did not take {len(failures)} messages for {topic}: {failures[0].str()}.")
    return tally


def steadily(rate: float) -> Callable[[int], None]:
    """Pace a replay by a rate.

    Parameters
    ----------
    rate : float
        Messages a second.

    Returns
    -------
    callable
        For `send`.
    """
    started = monotonic()

    def pace(sent: int) -> None:
        if (wait := started + sent / rate - monotonic()) > 0:
            sleep(wait)

    return pace


def in_bursts(size: int, every_s: float) -> Callable[[int], None]:
    """Pace a replay as visits of a telescope.

    Parameters
    ----------
    size : int
        Messages of a burst, sent as fast as they go.
    every_s : float
        Seconds from the start of one burst to that of the next.

    Returns
    -------
    callable
        For `send`.
    """
    started = monotonic()

    def pace(sent: int) -> None:
        if sent % size == 0 and (wait := started + sent // size * every_s - monotonic()) > 0:
            sleep(wait)

    return pace
