"""``stream-vae labels``: find labels for alerts, put tables of them together, look at them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from stream_vae.cli import app, console, notes
from stream_vae.cli.options import AsJson, answer
from stream_vae.labels import Conflict, Label, LabelTable, read_labels, write_labels
from stream_vae.labels.files import write_rows

group = typer.Typer(no_args_is_help=True, help="Find labels for alerts, merge tables of labels, tell conflicts.")
app.add_typer(group, name="labels")

_CONFLICT = ("alert_id", "winner", "labels")
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="Table to write: .csv, .parquet or .jsonl.")]


@group.command()
def match(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of alert packets, one a file.")],
    survey: Annotated[str, typer.Option(metavar="NAME|FILE", help="Profile of these alerts.")],
    out: Out,
    catalog: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Known positions: ra_deg, dec_deg, and perhaps mjd, name, label."),
    ] = None,
    radius_arcsec: Annotated[float, typer.Option(help="How near an entry of the catalog has to be.")] = 1.5,
    within_s: Annotated[
        float | None, typer.Option(help="How near in time, for entries with mjd; absent: time does not count.")
    ] = None,
    catalog_time_scale: Annotated[str, typer.Option(metavar="SCALE", help="Of mjd: utc, tai or tdb.")] = "utc",
    asteroid_arcsec: Annotated[float, typer.Option(help="How near the alert's own asteroid has to be.")] = 5.0,
    asteroid_mag: Annotated[float, typer.Option(help="How equally bright, where the alert says.")] = 2.0,
    solar_system: Annotated[bool, typer.Option(help="Label by the asteroids that alerts name.")] = True,
    as_json: AsJson = False,
) -> None:
    """Label alerts by the asteroids that they name, and by a table of known positions.

    Examples:

        stream-vae labels match --data alerts/ --survey ztf --out labels.csv

        stream-vae labels match --data alerts/ --survey lsst --catalog known.parquet --within-s 60 --out labels.csv
    """
    from stream_vae.labels.finding import find_labels
    from stream_vae.labels.solar_system import Tolerances
    from stream_vae.learning.progress import reporter

    with reporter(show=not as_json) as report:
        found = find_labels(
            data,
            survey,
            catalog=catalog,
            radius_arcsec=radius_arcsec,
            within_s=within_s,
            time_scale=catalog_time_scale,
            asteroids=Tolerances(asteroid_arcsec, asteroid_mag) if solar_system else None,
            at=datetime.now(UTC).replace(microsecond=0),
            report=report,
        )
    write_labels(out, found.table)
    ambiguous = [one.label.alert_id for one in found.ambiguous]
    if as_json:
        answer({**_summary(found.table), **found.counts(), "ambiguous_alerts": ambiguous, "out": str(out)})
        return
    _show(found.table)
    for name, count in found.counts().items():
        console.print(f"{name.replace('_', ' '):36} {count:>9,}", highlight=False)
    for one in found.ambiguous[:10]:
        notes.print(f"{one.label.alert_id}: {one.label.comment}", markup=False, highlight=False)
    console.print(f"Wrote {len(found.table):,} labels to {out}.", highlight=False, soft_wrap=True)


@group.command()
def merge(
    tables: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Label tables.")],
    out: Out,
    conflicts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write there which alerts' labels disagree, and who won.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put tables together and keep one label an alert.

    The most trusted wins: human, injection, solar_system, crossmatch, simulation, classifier;
    those of equal trust that disagree make an unknown (-1).

    Examples:

        stream-vae labels merge asteroids.csv people.jsonl known.parquet --out all.csv --conflicts conflicts.csv
    """
    merged = LabelTable.merged(read_labels(path) for path in tables)
    resolved = LabelTable(tuple(merged.resolve().values()))
    write_labels(out, resolved)
    if conflicts is not None:
        write_rows(conflicts, _CONFLICT, [_conflict(one) for one in merged.conflicts])
    if as_json:
        answer({**_summary(merged), "alerts": len(resolved), "out": str(out)})
        return
    _show(merged)
    console.print(f"Wrote the labels of {len(resolved):,} alerts to {out}.", highlight=False, soft_wrap=True)


@group.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A label table.")],
    as_json: AsJson = False,
) -> None:
    """Count labels by where they come from, and tell which disagree.

    Examples:

        stream-vae labels show labels.csv
    """
    table = read_labels(file)
    if as_json:
        answer(_summary(table))
    else:
        _show(table)


def _show(table: LabelTable) -> None:
    if not len(table):
        console.print("No labels.")
        return
    grid = Table("provenance", *("real", "bogus", "unknown"))
    for provenance, counts in table.counts().items():
        grid.add_row(provenance, *(f"{counts.get(label, 0):,}" for label in (1, 0, -1)))
    console.print(grid)
    if not table.conflicts:
        console.print(f"{len(table.resolve()):,} alerts, no conflicts.", highlight=False)
        return
    console.print(f"{len(table.resolve()):,} alerts, of which {len(table.conflicts):,} have labels that disagree:")
    for conflict in table.conflicts[:10]:
        told = _conflict(conflict)
        console.print(f"  {told['alert_id']}: {told['labels']}; {told['winner']}", markup=False, highlight=False)


def _summary(table: LabelTable) -> dict[str, Any]:
    counts = {provenance: {str(label): n for label, n in found.items()} for provenance, found in table.counts().items()}
    return {"labels": len(table), "counts": counts, "conflicts": [_conflict(one) for one in table.conflicts]}


def _conflict(conflict: Conflict) -> dict[str, str]:
    winner = conflict.winner
    told = "unknown: equal trust" if winner.label == -1 else f"{_word(winner)} by {winner.provenance}"
    labels = ", ".join(f"{_word(label)} by {label.provenance}" for label in conflict.labels)
    return {"alert_id": conflict.alert_id, "winner": told, "labels": labels}


def _word(label: Label) -> str:
    return {1: "real", 0: "bogus"}.get(label.label, "unknown")
