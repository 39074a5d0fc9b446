"""``stream-vae label``: say what an alert is, or be shown the stamps that are worth it."""

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from stream_vae import assembly
from stream_vae.cli import EXIT_NO, app, console, notes
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.errors import ConfigError
from stream_vae.labels.files import read_labels
from stream_vae.labels.label import Label, LabelError, Provenance
from stream_vae.labels.sending import MEANINGS, Sender, sender_of
from stream_vae.settings import Settings
from stream_vae.tools.pictures import terminal_picture

if TYPE_CHECKING:
    from stream_vae.learning.suggestions import Suggestions

_WORDS = {1: "real", 0: "bogus", -1: "unknown"}
_JUDGES = {
    "probe": "a probe on the labels that the reservoir has tells where it is unsure",
    "scorer": "there are too few labels for a probe: the release's scorer tells where it is unsure",
    "nothing": "neither labels nor a scorer tell what is unsure: these are of the highest novelty",
}


@app.command("label")
def label_command(
    alert_id: Annotated[str | None, typer.Argument(metavar="ALERT_ID", help="The survey's id of the alert.")] = None,
    value: Annotated[str | None, typer.Argument(metavar="real|bogus|unknown", help="What it is.")] = None,
    settings: SettingsFile = None,
    comment: Annotated[str, typer.Option(help="Why, for others.")] = "",
    confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Probability that the label is right; absent: nobody says.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="TABLE", help="Labels to send: .csv, .parquet or .jsonl.")
    ] = None,
    suggest: Annotated[
        int | None,
        typer.Option("--suggest", metavar="N", min=1, max=1000, help="Show the N stamps whose labels teach most."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --suggest: what the same seed and reservoir give.")] = 0,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="FILE.png", help="Of --suggest: draw them there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Label an alert, a table of them, or stamps of the reservoir that are worth it.

    Labels go to the topic `labels.topic`, or straight into the reservoir where none is set. What was given is kept
    beside what others gave; people who disagree make an unknown.

    With --suggest in a terminal a key answers each stamp: r real, b bogus, u cannot tell, s skip, backspace takes the
    last answer back, q ends.

    Exit 1 if the reservoir has no room for a label.

    Examples:

        stream-vae label 1549473362115015004 bogus --settings ztf.toml --comment "diffraction spike"

        stream-vae label --file asteroids.csv --settings ztf.toml

        stream-vae label --suggest 20 --settings ztf.toml --sheet to-label.png
    """
    _check(alert_id, value, file, suggest, sheet)
    loaded = load(settings)
    if suggest is not None:
        _suggest(loaded, suggest, seed, sheet, as_json=as_json)
        return
    if file is not None:
        labels: Sequence[Label] = tuple(read_labels(file))
    else:
        labels = [_label(str(alert_id), str(value), comment, confidence)]
    with sender_of(loaded) as sender:
        outcomes = sender.send(labels)
    _tell(labels, outcomes, as_json=as_json)


def _check(alert_id: str | None, value: str | None, file: Path | None, suggest: int | None, sheet: Path | None) -> None:
    ways = [alert_id is not None, file is not None, suggest is not None]
    if sum(ways) != 1:
        raise ConfigError(
            "Give one of ALERT_ID and its label, --file and --suggest.", remedy="`stream-vae label -h` has examples."
        )
    if alert_id is not None and value is None:
        raise ConfigError(f"What is {alert_id}?", remedy="Say real, bogus or unknown after it.")
    if sheet is not None and suggest is None:
        raise ConfigError("--sheet is for --suggest.", remedy="Leave it out, or add --suggest N.")


def _label(alert_id: str, value: str, comment: str, confidence: float | None) -> Label:
    record = {"alert_id": alert_id, "label": value, "provenance": Provenance.HUMAN, "comment": comment}
    try:
        return Label.of({**record, "confidence": confidence, "labelled_at": datetime.now(UTC)})
    except LabelError as error:
        raise ConfigError(
            f"{error.column}: {error}.", remedy="Give the alert's id, and real, bogus or unknown."
        ) from error


def _tell(labels: Sequence[Label], outcomes: Sequence[str], *, as_json: bool) -> None:
    counts = Counter(outcomes)
    if as_json:
        told = [
            {"alert_id": label.alert_id, "label": label.label, "outcome": outcome}
            for label, outcome in zip(labels, outcomes, strict=True)
        ]
        answer({"labels": told, "outcomes": dict(counts)})
    elif len(labels) == 1:
        label = labels[0]
        what = f"{label.alert_id} {_WORDS[label.label]}: {outcomes[0]}: {MEANINGS[outcomes[0]]}."
        console.print(what, markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(f"{len(labels):,} labels.", highlight=False)
        for outcome, count in counts.most_common():
            console.print(f"{count:,} {outcome}: {MEANINGS[outcome]}.", highlight=False, soft_wrap=True)
    if counts["full"]:
        raise typer.Exit(EXIT_NO)


def _suggest(settings: Settings, count: int, seed: int, sheet: Path | None, *, as_json: bool) -> None:
    from stream_vae.learning.suggestions import suggest

    with closing(assembly.reservoir_of(settings)) as reservoir:
        found = suggest(reservoir, assembly.release_of(settings), count, np.random.default_rng(seed))
    if sheet is not None:
        from stream_vae.tools.label_sheet import write_label_sheet

        write_label_sheet(found, sheet)
    asked = not as_json and sys.stdin.isatty() and console.is_terminal
    if as_json:
        about = {"release": found.release, "looked_at": found.looked_at, "labelled": found.labelled}
        about |= {"judge": found.judge, "sheet": None if sheet is None else str(sheet)}
        answer({**about, "suggestions": [item.document() for item in found.items]})
    else:
        _introduce(found, sheet)
        if not asked:
            _show(found, range(len(found.items)))
            notes.print("No terminal to answer in: label them with `stream-vae label ALERT_ID real|bogus|unknown`.")
    if asked:
        _ask(settings, found)


def _introduce(found: "Suggestions", sheet: Path | None) -> None:
    apart = sum(item.held_out for item in found.items)
    console.print(
        f"{len(found.items)} of {found.looked_at:,} stamps without a label ({found.labelled:,} have one); "
        f"{_JUDGES[found.judge]}. {apart} are held out: no training sees them, their labels judge releases.",
        highlight=False,
    )
    if sheet is not None:
        notes.print(f"Sheet: {sheet}", highlight=False)


def _show(found: "Suggestions", rows: Sequence[int]) -> None:
    from stream_vae.tools.label_sheet import panel_of

    panels = [panel_of(found.items[row], row + 1) for row in rows]
    colours = console.color_system is not None and console.encoding.lower().startswith("utf")
    console.print(terminal_picture(panels, width=console.width, colours=colours))


def _ask(settings: Settings, found: "Suggestions") -> None:
    from stream_vae.tools.label_keys import HELP, ask, single_keys

    _show(found, range(len(found.items)))
    outcomes: Counter[str] = Counter()
    with sender_of(settings) as sender, single_keys(sys.stdin.fileno()) as read_key:
        console.print(HELP, highlight=False)  # from here on keys count
        answers = ask(
            len(found.items),
            lambda row: _show(found, [row]),
            read_key,
            lambda row, value: outcomes.update(_send(sender, found.items[row].alert_id, value)),
        )
    given = sum(answers.values()) - answers["s"]
    console.print(f"{given} labels, {answers['s']} skipped.", highlight=False)
    for outcome, number in outcomes.most_common():
        console.print(f"{number:,} {outcome}: {MEANINGS[outcome]}.", highlight=False, soft_wrap=True)
    if outcomes["full"]:
        raise typer.Exit(EXIT_NO)


def _send(sender: Sender, alert_id: str, value: int) -> list[str]:
    label = _label(alert_id, _WORDS[value], "suggested", None)
    outcomes = sender.send([label])
    console.print(f"{alert_id} {_WORDS[value]}: {outcomes[0]}.", markup=False, highlight=False)
    return outcomes
