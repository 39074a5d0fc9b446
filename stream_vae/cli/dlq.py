"""``stream-vae dlq``: what was refused, why, and back with it."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from stream_vae import kafka
from stream_vae.alert import Packet
from stream_vae.cli import app, console, notes
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.errors import ConfigError, Reason, RejectedAlertError, RetriableError
from stream_vae.settings import Settings
from stream_vae.tools import topics
from stream_vae.tools.dead_letters import Letter, Progress, letter_of, list_letters
from stream_vae.tools.inspection import headers_of, text_of
from stream_vae.tools.messages import reader_of
from stream_vae.tools.send_back import Choice, Memory, Plan, plan_replay, replay

group = typer.Typer(no_args_is_help=True, help="List, show and replay dead letters.")
app.add_typer(group, name="dlq")

OneReason = Annotated[Reason | None, typer.Option("--reason", metavar="REASON", help="Only letters with this reason.")]

_HEAD_BYTES = 256
_LINE_BYTES = 16
_LONGEST_ERROR = 120


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    with Bar(console=notes, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@group.command("ls")
def list_command(
    settings: SettingsFile = None,
    reason: OneReason = None,
    count: Annotated[int, typer.Option("-n", "--count", min=0, help="How many of the latest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Count the dead letters by reason, and list the latest.

    Examples:

        stream-vae dlq ls --settings ztf.toml

        stream-vae dlq ls --settings ztf.toml --reason truncated -n 100

        stream-vae dlq ls --settings ztf.toml --json
    """
    section = load(settings).kafka
    with _progress(f"Reading {section.dead_letter_topic}") as progress:
        found = list_letters(section, count, reason, progress)
    if as_json:
        letters = [letter.document() for letter in found.latest]
        answer({"topic": section.dead_letter_topic, "counts": found.counts, "letters": letters})
        return
    if not found.counts:
        console.print(f"[green]No dead letters[/green] in {section.dead_letter_topic}.")
        return
    counts = Table("reason", "letters")
    counts.columns[1].justify = "right"
    for name, number in found.counts.items():
        counts.add_row(name, f"{number:,}")
    console.print(counts)
    if found.latest:
        console.print(_letters_table(found.latest))
        example = found.latest[-1].packet.origin
        console.print(f"`stream-vae dlq show {example}` shows one; `stream-vae dlq replay` sends them back.")


def _letters_table(letters: list[Letter]) -> Table:
    table = Table("at", "read from", "reason", "stage", "alert", "error")
    for column in table.columns:
        column.overflow = "fold"
    for letter in letters:
        error = letter.error or ""
        short = error if len(error) <= _LONGEST_ERROR else f"{error[:_LONGEST_ERROR]}..."
        cells = (letter.packet.origin, str(letter.origin or "-"), letter.reason, letter.stage or "-")
        table.add_row(*cells, letter.alert_id or "-", Text(short))
    return table


@group.command()
def show(
    at: Annotated[str, typer.Argument(metavar="OFFSET|PARTITION/OFFSET|TOPIC/PARTITION/OFFSET")],
    settings: SettingsFile = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the bytes there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: its headers, its first bytes, and what decoding says of it today.

    Examples:

        stream-vae dlq show 17 --settings ztf.toml

        stream-vae dlq show ztf-dead-letters/2/17 --settings ztf.toml --out bad.avro
    """
    loaded = load(settings)
    letter = letter_of(topics.read_at(loaded.kafka, position_of(at, loaded)))
    today = decode_today(letter.packet, loaded)
    if out is not None:
        try:
            out.write_bytes(letter.packet.value)
        except OSError as error:
            raise ConfigError(
                f"{out} cannot be written: {error.strerror}.", remedy="Give --out another path."
            ) from error
    if as_json:
        about = {"key": text_of(letter.packet.key), "headers": headers_of(letter.packet), "today": today}
        head = letter.packet.value[:_HEAD_BYTES].hex()
        answer(letter.document() | about | {"head_hex": head, "out": str(out) if out else None})
        return
    console.print(f"[bold]{letter.packet.origin}[/bold]  {len(letter.packet.value):,} bytes", highlight=False)
    table = Table(show_header=False)
    table.add_row("key", Text(text_of(letter.packet.key) or "-"))
    for name, value in headers_of(letter.packet):
        table.add_row(name, Text(value or "-"))
    console.print(table)
    for line in hex_lines(letter.packet.value[:_HEAD_BYTES]):
        console.print(line, markup=False, highlight=False)
    style = "yellow" if today["rejected"] else "green"
    console.print(f"Today: {escape(today['says'])}", style=style, highlight=False)
    if out is not None:
        console.print(f"Bytes: {out}", highlight=False)


def position_of(text: str, settings: Settings) -> topics.Position:
    """Understand where a person says that a letter is.

    Parameters
    ----------
    text : str
        ``topic/partition/offset``, ``partition/offset``, or an offset if there is one partition.
    settings : Settings
        Name the dead-letter topic.

    Returns
    -------
    Position
        The whole of it.

    Raises
    ------
    ConfigError
        If it is none of these, or an offset alone does not suffice.
    """
    topic = settings.kafka.dead_letter_topic
    if text.isascii() and text.isdigit():
        count = kafka.partitions(settings.kafka, [topic]).get(topic, 1)
        if count > 1:
            raise ConfigError(
                f"{topic} has {count} partitions, so an offset alone names no letter.",
                remedy=f"Say which partition: 0/{text}, say; `stream-vae dlq ls` shows whole positions.",
            )
        text = f"0/{text}"
    found = topics.Position.parse(text) or topics.Position.parse(f"{topic}/{text}")
    if found is None:
        raise ConfigError(f"{text!r} is no offset and no topic/partition/offset.", remedy="Such as 17 or 2/17.")
    return found


def decode_today(packet: Packet, settings: Settings) -> dict[str, Any]:
    """Decode a dead letter again, with today's settings and code.

    Parameters
    ----------
    packet : Packet
        The letter; its bytes are the original's.
    settings : Settings
        Framing, schemas, survey.

    Returns
    -------
    dict
        ``rejected`` and ``reason``, and ``says`` for a person.
    """
    try:
        reading = reader_of(settings).read(packet)
    except RejectedAlertError as error:
        return {"rejected": True, "reason": error.reason.value, "says": f"still refused as {error.reason}: {error}"}
    except RetriableError as error:
        return {"rejected": True, "reason": None, "says": f"cannot be told: {error}"}
    alert_id = reading.alert.alert_id
    stage = letter_of(packet).stage
    if stage not in {None, "decode"}:
        return {
            "rejected": False,
            "reason": None,
            "says": f"it decodes, as it did then: alert {alert_id} was refused by the stage {stage}.",
        }
    says = f"it decodes now: alert {alert_id}. `stream-vae dlq replay` sends it back."
    return {"rejected": False, "reason": None, "says": says}


def hex_lines(data: bytes) -> list[str]:
    """Write bytes as hexadecimal numbers and ASCII, 16 a line.

    Parameters
    ----------
    data : bytes
        The beginning of a message.

    Returns
    -------
    list of str
        Offset, numbers, and characters with a dot for what is not printable.
    """
    lines = []
    for start in range(0, len(data), _LINE_BYTES):
        part = data[start : start + _LINE_BYTES]
        characters = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
        lines.append(f"{start:08x}  {part.hex(' '):<{3 * _LINE_BYTES}} {characters}")
    return lines or ["(no bytes)"]


@group.command("replay")
def replay_command(
    settings: SettingsFile = None,
    reason: OneReason = None,
    to: Annotated[str | None, typer.Option("--to", metavar="TOPIC", help="Absent: where each came from.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also what was sent back before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to where they came from, each once, with their bytes, key, timestamp and headers.

    Examples:

        stream-vae dlq replay --settings ztf.toml --dry-run

        stream-vae dlq replay --settings ztf.toml --reason schema --yes

        stream-vae dlq replay --settings ztf.toml --to ztf-debug
    """
    section = load(settings).kafka
    choice = Choice(reason.value if reason else None, to, again)
    with closing(Memory(section, to)) as memory:
        with _progress(f"Reading {section.dead_letter_topic}") as progress:
            plan = plan_replay(section, memory, choice, progress)
        if not as_json:
            _show_plan(plan)
        sent = 0
        if plan.total and not dry_run:
            if not yes:
                typer.confirm(f"Send {plan.total:,} letters?", abort=True, err=True)
            with _progress("Sending") as progress:
                sent = replay(section, memory, plan, choice, progress)
    if as_json:
        answer(_document(plan, sent))
    elif sent:
        console.print(f"[green]Sent {sent:,} letters.[/green]")


def _document(plan: Plan, sent: int) -> dict[str, Any]:
    letters = [{"reason": reason, "to": topic, "letters": n} for (reason, topic), n in plan.to_send.items()]
    return {
        "letters": letters,
        "sent": sent,
        "already_sent": plan.already_sent,
        "without_origin": plan.without_origin,
    }


def _show_plan(plan: Plan) -> None:
    if plan.total:
        table = Table("reason", "to", "letters")
        table.columns[2].justify = "right"
        for (reason, topic), number in sorted(plan.to_send.items()):
            table.add_row(reason, topic, f"{number:,}")
        console.print(table)
    else:
        console.print("Nothing to send.")
    if plan.already_sent:
        console.print(f"{plan.already_sent:,} were sent back before; --again sends them again.")
    if plan.without_origin:
        console.print(f"{plan.without_origin:,} do not say where they came from; --to TOPIC sends them.")
