"""``stream-vae audit``: do the books balance?"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich import box
from rich.progress import Progress
from rich.table import Column, Table

from stream_vae.cli import EXIT_NO, app, console, notes
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.stages.ledger import Page
from stream_vae.tools.audit import Line, audit_of


@app.command()
def audit(
    settings: SettingsFile = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read the output and dead-letter topics and look for every alert.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that consumed = published + dead-lettered + filtered; exit 0 if so, 1 if not.

    Examples:

        stream-vae audit --settings ztf.toml

        stream-vae audit --settings ztf.toml --deep --json
    """
    with Progress(console=notes, transient=True, disable=not (deep and notes.is_terminal)) as progress:
        task = progress.add_task("reading what was published")
        lines = audit_of(
            load(settings).kafka,
            deep=deep,
            watch=lambda done, total: progress.update(task, completed=done, total=total),
        )
    balanced = all(line.balanced for line in lines)
    if as_json:
        answer({"balanced": balanced, "partitions": [_document(line) for line in lines]})
    else:
        console.print(_table(lines, deep=deep))
        console.print("[green]Balanced.[/green]" if balanced else "[red]Out of balance.[/red]")
    if not balanced:
        raise typer.Exit(EXIT_NO)


def _document(line: Line) -> dict[str, Any]:
    return asdict(line) | {"lag": line.lag, "balanced": line.balanced, "gaps": line.page.gaps if line.page else 0}


def _table(lines: Iterable[Line], *, deep: bool) -> Table:
    numbers = ["consumed", "published", "dead", "filtered", "gaps", "lag", *(["found", "dup"] if deep else [])]
    table = Table(Column("partition", no_wrap=True), *numbers, "ok", box=box.SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    for column in table.columns[1:]:
        column.justify = "right"
    for line in lines:
        page = line.page or Page(0, 0)
        counts = [page.consumed, page.published, page.dead_lettered, page.filtered, page.gaps, line.lag]
        witness = [line.found or 0, line.duplicates or 0] if deep else []
        verdict = "[green]yes[/green]" if line.balanced else "[red]no[/red]"
        table.add_row(f"{line.topic}/{line.partition}", *(f"{n:,}" for n in (*counts, *witness)), verdict)
    return table
