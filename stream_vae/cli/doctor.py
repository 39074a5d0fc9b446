"""``stream-vae doctor``: would a worker start here, and if not, what is to be done."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from stream_vae.cli import EXIT_NO, app, console, notes
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.errors import ConfigError
from stream_vae.tools import checks_fleet, checks_reservoir
from stream_vae.tools.checks_kafka import KafkaChecks
from stream_vae.tools.checks_model import ModelChecks
from stream_vae.tools.checkup import Finding, State, examine

_MARKS = {
    State.GOOD: ("good", "green"),
    State.WARNING: ("look", "yellow"),
    State.BAD: ("bad", "bold red"),
    State.SKIPPED: ("-", "dim"),
}


def diagnose(
    file: Path | None,
    watch: Callable[[str], None] = lambda _name: None,
    *,
    workers: int = 0,
    ray_address: str | None = None,
) -> Iterator[Finding]:
    """Check everything that a worker needs.

    Parameters
    ----------
    file : Path or None
        The settings.
    watch : callable
        Told the name of each check before it runs.
    workers, ray_address : int, str or None
        Of a fleet, as `run` has them; without workers Ray is not asked.

    Yields
    ------
    Finding
        In the order of the checks; nothing after settings that are wrong.
    """
    try:
        settings = load(file)
    except ConfigError as error:
        yield Finding(
            "settings", State.BAD, str(error.args[0]), error.remedy or "`stream-vae config check` checks them."
        )
        return
    yield Finding("settings", State.GOOD, str(file) if file else "from the environment")
    model = ModelChecks(settings)
    checks = [*model.first(), *checks_reservoir.checks(settings), *KafkaChecks(settings).checks(), *model.last()]
    checks += checks_fleet.checks(settings, workers, ray_address)
    yield from examine(checks, watch)


@app.command()
def doctor(
    settings: SettingsFile = None,
    workers: Annotated[int, typer.Option(min=0, help="Check Ray too, for a fleet of so many workers.")] = 0,
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of the Ray cluster; absent: one is started here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check settings, release, brokers, topics, registry, Redis and this machine; exit 1 if a worker could not work.

    Examples:

        stream-vae doctor --settings ztf.toml

        stream-vae doctor --settings lsst.toml --workers 16 --ray-address head:6379

        stream-vae doctor --settings ztf.toml --json | jq '.checks[] | select(.state == "bad")'
    """
    # What librdkafka would log is in the findings, with what to do about it.
    logging.getLogger("stream_vae.kafka").setLevel(logging.CRITICAL)
    with notes.status("Checking") as status:
        found = diagnose(
            settings, lambda name: status.update(f"Checking {name}"), workers=workers, ray_address=ray_address
        )
        findings = list(found)
    healthy = not any(finding.state is State.BAD for finding in findings)
    if as_json:
        answer({"healthy": healthy, "checks": [_document(finding) for finding in findings]})
    else:
        console.print(_table(findings))
        bad = sum(finding.state is State.BAD for finding in findings)
        console.print("[green]A worker can start.[/green]" if healthy else f"[red]{bad} to mend.[/red]")
    if not healthy:
        raise typer.Exit(EXIT_NO)


def _document(finding: Finding) -> dict[str, str]:
    return {"name": finding.name, "state": finding.state.value, "says": finding.says, "remedy": finding.remedy}


def _table(findings: list[Finding]) -> Table:
    table = Table("", "check", "finding")
    table.columns[2].overflow = "fold"
    for finding in findings:
        mark, style = _MARKS[finding.state]
        says = Text(finding.says)
        if finding.remedy and finding.state is not State.GOOD:
            says.append(f"\n{finding.remedy}", style="italic")
        table.add_row(Text(mark, style=style), finding.name, says)
    return table
