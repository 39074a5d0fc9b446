"""``stream-vae fleet``: how the workers are."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.table import Column, Table

from stream_vae.cli import EXIT_NO, app, console
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.tools.fleet_status import FleetStatus, fleet_status, page_url

fleet = typer.Typer(no_args_is_help=True, help="Show the workers of a running fleet.")
app.add_typer(fleet, name="fleet")


@fleet.command()
def status(
    settings: SettingsFile = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The metrics page; absent: as the settings say.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show each worker: partitions, lag, what it did, memory; exit 1 if some that are wanted do not run.

    Examples:

        stream-vae fleet status --settings ztf.toml

        stream-vae fleet status --url http://127.0.0.1:9464/metrics --json
    """
    found = fleet_status(url or page_url(load(settings).metrics))
    if as_json:
        answer(asdict(found))
    else:
        console.print(_table(found))
        if found.wanted is not None:
            console.print(f"{found.alive} of {found.wanted} workers run.")
    if found.wanted is not None and (found.alive or 0) < found.wanted:
        raise typer.Exit(EXIT_NO)


def _table(found: FleetStatus) -> Table:
    names = ["partitions", "lag", "in flight", "published", "dead letters", "restarts", "MB"]
    table = Table(Column("worker", no_wrap=True), "consumes", *names, "release", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[2:-1]:
        column.justify = "right"
    for line in found.lines:
        counts = [line.partitions, line.lag, line.in_flight, line.published, line.dead_lettered, line.restarts]
        works = "-" if line.consumes is None else "[green]yes[/green]" if line.consumes else "[red]no[/red]"
        shown = (f"{n:,.0f}" for n in (*counts, line.memory_bytes / 1e6))
        table.add_row(line.worker or "alone", works, *shown, line.release)
    return table
