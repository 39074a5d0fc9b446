"""``stream-vae replay``: publish a folder of alerts, or simulated ones, to a topic as a survey would."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from confluent_kafka import KafkaError, KafkaException
from rich.progress import Progress, SpinnerColumn, TextColumn

from stream_vae import kafka
from stream_vae.cli import app, console, notes
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
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
    from stream_vae.sky.faults import KINDS, corrupt as damage

    rng = np.random.default_rng(seed)
    kinds = itertools.cycle(KINDS)
    for sent in packets:
        chance = rng.random()
        if chance < corrupt:
            kind = next(kinds)
            yield Sent(sent.key, damage(sent.packet, kind, rng), kind)
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


@app.command()
def replay(
    what: Annotated[str, typer.Argument(metavar="PATH|sim", help="A folder of *.avro, one file, or sim.")],
    settings: SettingsFile = None,
    topic: Annotated[str | None, typer.Option(help="Absent: the first input topic of the settings.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="How many; files are repeated if need be.")] = None,
    shape: Annotated[str, typer.Option(help="Simulated alerts: ztf or candidate.")] = "ztf",
    rate: Annotated[float | None, typer.Option(min=0.01, metavar="N", help="Alerts a second.")] = None,
    burst: Annotated[int | None, typer.Option(min=1, metavar="N", help="Alerts of a burst; see --every.")] = None,
    every: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="Between the starts of bursts.")] = 37.0,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share that is sent twice.")] = 0.0,
    corrupt: Annotated[float, typer.Option(min=0, max=1, help="Share that is damaged, in every known way.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Fixes the simulation and what is spoiled.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Publish alerts to Kafka at a rate, or as bursts of N every S seconds.

    Examples:

        stream-vae replay alerts/ --settings ztf.toml --rate 100

        stream-vae replay sim --settings ztf.toml --count 5000 --corrupt 0.01 --duplicates 0.02

        stream-vae replay alerts/ --settings lsst.toml --count 40000 --burst 10000 --every 37
    """
    loaded = load(settings)
    section = loaded.kafka
    target = topic or section.input_topics[0]
    if target not in kafka.partitions(section, [target]):
        raise ConfigError(f"There is no topic {target}.", remedy="Create it, or name another with --topic.")
    if rate is not None and burst is not None:
        raise ConfigError("--rate and --burst exclude each other.")
    if what == "sim":
        packets: Iterable[Sent] = from_simulator(count or 1000, shape=shape, seed=seed)
    else:
        packets = from_files(Path(what), count)
    if duplicates or corrupt:
        packets = spoiled(packets, duplicates=duplicates, corrupt=corrupt, seed=seed)
    pace = steadily(rate) if rate else in_bursts(burst, every) if burst else None
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), console=notes, transient=True, disable=not notes.is_terminal
    ) as progress:
        task = progress.add_task(f"to {target}")

        def watch(tally: Tally) -> None:
            progress.update(task, description=f"to {target}: {tally.sent:,} alerts, {tally.bytes / 1e6:,.0f} MB")

        tally = send(packets, section, target, pace=pace, watch=watch)
    if as_json:
        answer(vars(tally))
        return
    spoilt = f", {tally.duplicates} duplicates, {tally.corrupted} damaged" if duplicates or corrupt else ""
    console.print(
        f"Sent {tally.sent:,} alerts ({tally.bytes / 1e6:,.1f} MB{spoilt}) to {target} in {tally.seconds:.1f} s, "
        f"{tally.sent / max(tally.seconds, 1e-9):,.0f} a second."
    )
