"""``stream-vae inspect`` and ``stream-vae tail``: what is in a message, and what is being published."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from stream_vae import surveys
from stream_vae.alert import Packet
from stream_vae.cli import EXIT_NO, app, console, notes
from stream_vae.cli.alert_view import DASH, number, show, title_of
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.errors import ConfigError, RejectedAlertError
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore
from stream_vae.settings import LimitSettings, Settings
from stream_vae.stages.enrich import SOURCE_HEADER
from stream_vae.surveys import Profile
from stream_vae.tools import topics
from stream_vae.tools.inspection import Inspection, inspect, text_of
from stream_vae.tools.messages import Enrichment, Reader, guess_profile, reader_of
from stream_vae.tools.pictures import write_png


@app.command("inspect")
def inspect_command(
    message: Annotated[str, typer.Argument(metavar="FILE|TOPIC/PARTITION/OFFSET", help="An alert packet.")],
    settings: SettingsFile = None,
    survey: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="The survey's profile; absent: told from the fields.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Release store, to score it; absent: the settings'.")
    ] = None,
    release: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Which release; absent: the one in the message, or the current one."),
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="OUT.png", help="Write the picture there too.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Show whole cutouts, not their centres.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show an alert file or a message in a topic: fields, cutouts, scores, and a picture with its reconstruction.

    Exit 1 if it is no alert: then it says what a worker would dead-letter it for.

    Examples:

        stream-vae inspect alert.avro

        stream-vae inspect alert.avro --store releases --png alert.png

        stream-vae inspect ztf-enriched/3/1041 --settings ztf.toml

        stream-vae inspect alert.avro --survey my-survey.toml --json
    """
    loaded = _settings_for(message, settings)
    try:
        packet = read_message(message, loaded)
        profile = surveys.load(survey) if survey else None
        found = look(packet, loaded, profile, at=message, store=store, release_id=release, whole=whole)
    except RejectedAlertError as error:
        if as_json:
            answer({"at": message, "rejected": {"reason": error.reason.value, "error": str(error)}})
        else:
            console.print(
                f"[red]No alert[/red]: a worker would dead-letter this message as [bold]{error.reason}[/bold]."
            )
            console.print(str(error), markup=False)
        raise typer.Exit(EXIT_NO) from None
    if png:
        if not found.panels:
            raise ConfigError("There is nothing to draw: no cutout can be read.", remedy="Leave out --png.")
        write_png(found.panels, title_of(found), png)
    if as_json:
        answer(found.document() | {"png": str(png) if png else None})
    else:
        show(found)
        if png:
            console.print(f"Picture: {png}", highlight=False)


def _settings_for(message: str, file: Path | None) -> Settings | None:
    """Load settings only where they are given or needed: a file on disk can be looked at without any."""
    if file is not None or not Path(message).is_file():
        if not Path(message).is_file() and topics.Position.parse(message) is None:
            raise ConfigError(
                f"{message!r} is neither a file nor a topic/partition/offset.", remedy="Such as ztf-enriched/0/42."
            )
        return load(file)
    return None


def read_message(message: str, settings: Settings | None) -> Packet:
    """Get what ``inspect`` was pointed at.

    Parameters
    ----------
    message : str
        A file's path, or ``topic/partition/offset``.
    settings : Settings or None
        Needed for a topic.

    Returns
    -------
    Packet
        A file's is of the topic ``file``.

    Raises
    ------
    ConfigError
        If it is not there.
    RetriableError
        If the brokers do not answer.
    """
    path, position = Path(message), topics.Position.parse(message)
    if path.is_file():
        try:
            return Packet(path.read_bytes(), path.name, 0, 0)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    assert settings is not None
    assert position is not None
    return topics.read_at(settings.kafka, position)


def look(
    packet: Packet,
    settings: Settings | None,
    profile: Profile | None,
    *,
    at: str | None = None,
    store: str | None = None,
    release_id: str | None = None,
    whole: bool = False,
) -> Inspection:
    """Find the reader and the release for a message, and inspect it.

    Parameters
    ----------
    packet : Packet
        The message.
    settings : Settings or None
        Give framing, survey and store where they are not given otherwise.
    profile : Profile or None
        The survey; absent: the settings', or told from the fields.
    at : str, optional
        What to call its place.
    store : str, optional
        Release store.
    release_id : str, optional
        Absent: the release that the message names if the store has it, else the current one.
    whole : bool
        Pictures of whole cutouts.

    Returns
    -------
    Inspection
        What there is.

    Raises
    ------
    ConfigError
        If a release is asked for and not there, or the survey cannot be told.
    RejectedAlertError
        If the message is no alert.
    RetriableError
        If the schema registry or the store cannot be reached.
    """
    reader = reader_of(settings, packet.topic, profile) if settings else Reader(profile or guess_profile(packet))
    url = store or (settings.release.store if settings else None)
    if url is None and release_id is not None:
        raise ConfigError(f"--release {release_id} needs a store.", remedy="Give --store URL or --settings FILE.")
    asked = bool(store or release_id)
    release, note = None, None
    opened = ReleaseStore(url) if url else None
    if opened is not None:
        configured = settings.release.id if settings and not store else None
        try:
            release = _release(opened, release_id or configured, reader.read(packet).enrichment)
        except ConfigError as error:
            if asked:
                raise
            note = str(error)
    limit = (settings.limits if settings else LimitSettings()).max_cutout_bytes
    found = inspect(packet, reader, release, at=at, whole=whole, max_cutout_bytes=limit)
    return found.with_note(note) if note else found


def _release(store: ReleaseStore, wanted: str | None, carried: Enrichment | None) -> Release:
    if wanted is None and carried is not None and carried.release in store.folders():
        wanted = carried.release
    return store.load(wanted)


@dataclass(frozen=True, slots=True)
class Row:
    """One message of ``tail``."""

    packet: Packet
    alert_id: str | None
    object_id: str | None
    enrichment: Enrichment | None
    problem: str | None
    """Why there is no enrichment."""

    def document(self) -> dict[str, Any]:
        """Give plain values for JSON.

        Returns
        -------
        dict
            With the enrichment's fields at its top level.
        """
        document: dict[str, Any] = {
            "at": self.packet.origin,
            "source": self.origin,
            "timestamp_ms": self.packet.timestamp_ms,
            "alert_id": self.alert_id,
            "object_id": self.object_id,
        }
        enrichment = self.enrichment.document() if self.enrichment else {}
        return document | enrichment | ({"problem": self.problem} if self.problem else {})

    @property
    def origin(self) -> str | None:
        """Where the alert was read from, if the message says so."""
        return text_of(dict(self.packet.headers).get(SOURCE_HEADER))


def rows_of(packets: Iterable[Packet], reader: Reader) -> Iterator[Row]:
    """Read messages for ``tail``; one that cannot be read is a row that says so.

    Parameters
    ----------
    packets : iterable of Packet
        Of an output topic.
    reader : Reader
        For that topic.

    Yields
    ------
    Row
        One a packet.

    Raises
    ------
    RetriableError
        If the schema registry cannot be reached.
    """
    for packet in packets:
        try:
            reading = reader.read(packet)
        except RejectedAlertError as error:
            yield Row(packet, None, None, None, f"{error.reason}: {error}")
            continue
        fields = reading.fields()
        problem = None if reading.enrichment else "not enriched"
        yield Row(packet, fields["alert_id"], fields["object_id"], reading.enrichment, problem)


@app.command()
def tail(
    topic: Annotated[
        str | None, typer.Argument(metavar="TOPIC", help="Absent: the output topic, or else the lite topic.")
    ] = None,
    settings: SettingsFile = None,
    count: Annotated[int, typer.Option("-n", "--count", min=0, help="How many of the latest.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the latest enriched alerts of a topic, full or lite; with --json one object a line.

    Examples:

        stream-vae tail --settings ztf.toml

        stream-vae tail ztf-lite --settings ztf.toml -n 50

        stream-vae tail --settings ztf.toml --follow --json | jq 'select(.real_score > 0.9)'
    """
    loaded = load(settings)
    name = topic or loaded.kafka.output_topic or loaded.kafka.lite_topic
    assert name is not None  # the settings see to it
    reader = reader_of(loaded, name)
    if not follow:
        _print_rows(list(rows_of(topics.latest(loaded.kafka, name, count), reader)), name, as_json=as_json, head=True)
        return
    notes.print(f"Following {name}; Ctrl-C ends it.", highlight=False)
    for turn, packets in enumerate(topics.follow(loaded.kafka, name, count)):
        if packets or turn == 0:
            _print_rows(list(rows_of(packets, reader)), name, as_json=as_json, head=turn == 0)


_WIDTHS = {"alert": 20, "real_score": 13, "novelty": 8, "distance": 8, "quality": 16}
"""Fixed, so that lines which come later stand below those that came before."""
_RELEASE_DIGITS = 12
_OFFSET_DIGITS = 12


def _print_rows(rows: Sequence[Row], topic: str, *, as_json: bool, head: bool) -> None:
    if as_json:
        for row in rows:
            console.print(json.dumps(row.document()), markup=False, highlight=False, soft_wrap=True)
        return
    if head and not rows:
        console.print(f"No messages in {topic} yet.")
    table = Table(show_header=head, show_edge=False, box=None, pad_edge=False)
    widths: dict[str, int | None] = {**_WIDTHS, "at": len(topic) + _OFFSET_DIGITS, "release": _RELEASE_DIGITS}
    if console.width < sum(width or 0 for width in widths.values()) + 2 * len(widths):
        widths = {**_WIDTHS, "p/offset": None}
    else:
        widths["read from"] = None
    for title, width in widths.items():
        table.add_column(title, width=width, overflow="fold")
    for row in rows:
        cells = _cells(row)
        where = f"{row.packet.partition}/{row.packet.offset}"
        table.add_row(*(cells if "at" in widths else [*cells[: len(_WIDTHS)], where]))
    if rows:
        console.print(table)


def _cells(row: Row) -> list[Text | str]:
    """In the order of the columns."""
    found, at, origin = row.enrichment, row.packet.origin, row.origin or DASH
    if found is None:
        return [row.alert_id or DASH, *[DASH] * 3, Text(row.problem or "", style="red"), at, DASH, origin]
    score = DASH if found.real_score is None else f"{found.real_score:.3f} ± {found.real_score_std or 0:.3f}"
    quality = Text(", ".join(found.quality_names) or "good", style="" if found.quality == 0 else "yellow")
    short = found.release.rpartition("-")[2]
    numbers = (number(found.novelty), number(found.reference_distance))
    return [str(row.alert_id), score, *numbers, quality, at, short, origin]
