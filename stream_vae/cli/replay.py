"""``stream-vae replay``: publish a folder of alerts, or simulated ones, to a topic as a survey would."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn

from stream_vae import kafka
from stream_vae.cli import app, console, notes
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.errors import ConfigError
from stream_vae.settings import KafkaSettings
from stream_vae.tools.replay import Sent, Tally, from_files, from_simulator, in_bursts, send, spoiled, steadily

if TYPE_CHECKING:
    from collections.abc import Iterable

_PARTITIONS = 4
"""Of an input topic that a replay has to make: enough for a few workers to share."""


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
    _have_topic(section, target)
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
        f"{tally.sent / max(tally.seconds, 1e-9):,.0f} a second.",
        soft_wrap=True,
    )


def _have_topic(settings: KafkaSettings, topic: str) -> None:
    if topic in kafka.partitions(settings, [topic]):
        return
    if not settings.create_topics:
        raise ConfigError(
            f"There is no topic {topic}.",
            remedy="Create it, name another with --topic, or set kafka.create_topics = true.",
        )
    kafka.create_topics(settings, {topic: _PARTITIONS})
