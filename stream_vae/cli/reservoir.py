"""``stream-vae reservoir``: the samples of stamps and the labels that retraining draws from."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Column, Table

from stream_vae import assembly
from stream_vae.cli import app, console
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.labels.label import BOGUS, REAL, UNKNOWN
from stream_vae.reservoir import Reservoir, Stats, address, connect
from stream_vae.sampling import STRATA

group = typer.Typer(no_args_is_help=True, help="Look at the sample of stamps kept for retraining, save it, clear it.")
app.add_typer(group, name="reservoir")


@contextmanager
def _opened(file: Path | None) -> Iterator[Reservoir]:
    reservoir = assembly.reservoir_of(load(file))
    try:
        yield reservoir
    finally:
        reservoir.close()


@group.command()
def stats(settings: SettingsFile = None, as_json: AsJson = False) -> None:
    """Show how full it is, what it is a sample of, and which labels it has.

    Examples:

        stream-vae reservoir stats --settings ztf.toml
    """
    with _opened(settings) as reservoir:
        found = reservoir.stats()
    if as_json:
        strata = [stratum._asdict() for stratum in found.strata]
        answer(asdict(found) | {"strata": strata})
        return
    console.print(f"{found.survey}: {found.stamps:,} stamps in {found.memory_bytes / 2**20:.1f} MiB", highlight=False)
    if found.preprocessing:
        cutouts, size = found.preprocessing["cutouts"], found.preprocessing["stamp_size"]
        console.print(f"{size} x {size} pixels of {', '.join(cutouts)}", highlight=False)
    console.print(_strata_table(found))
    if found.labels:
        console.print(_labels_table(found))
    notes = {
        "alerts with contradictory labels": found.conflicts,
        "labelled alerts wait for their stamps": found.waiting,
        "labels were refused for want of room": found.refused,
    }
    for note, number in notes.items():
        if number:
            console.print(f"{number:,} {note}", highlight=False)


def _strata_table(found: Stats) -> Table:
    table = Table("stratum", *(Column(name, justify="right") for name in ("stamps", "capacity", "of about", "ranks")))
    for stratum in found.strata:
        seen = "" if stratum.seen is None else f"{stratum.seen:,}"
        memory = f"{stratum.memory_bytes / 2**20:.1f} MiB"
        table.add_row(stratum.stratum, f"{stratum.stamps:,}", f"{stratum.capacity:,}", seen, memory)
    return table


def _labels_table(found: Stats) -> Table:
    table = Table("labels", *(Column(name, justify="right") for name in ("real", "bogus", "unknown")))
    for provenance, counts in found.labels.items():
        table.add_row(provenance, *(f"{counts.get(label, 0):,}" for label in (REAL, BOGUS, UNKNOWN)))
    return table


OfStrata = Annotated[
    list[str] | None,
    typer.Option("--stratum", metavar="NAME", help=f"Only from {', '.join(STRATA)}; may be given several times."),
]


@group.command()
def draw(
    settings: SettingsFile = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many at most.")] = 10,
    stratum: OfStrata = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and reservoir give the same stamps.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.npz", help="Save stamps, labels, alert_ids and more there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw stamps at random, none twice; they stay in the reservoir.

    Labelled alerts come first, then known asteroids and injected sources, then the others.

    Examples:

        stream-vae reservoir draw --settings ztf.toml -n 500 --stratum rare --out some.npz
    """
    _save(settings, count, stratum, seed, out, as_json=as_json)


@group.command()
def export(
    settings: SettingsFile = None,
    stratum: OfStrata = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npz", help="Where to.")] = Path("reservoir.npz"),
    as_json: AsJson = False,
) -> None:
    """Save all stamps to a file that `train --data`, `encode` and `evaluate` take.

    Examples:

        stream-vae reservoir export --settings ztf.toml --stratum uniform --out stamps.npz
    """
    _save(settings, None, stratum, 0, out, as_json=as_json)


def _save(
    settings: Path | None,
    count: int | None,
    strata: list[str] | None,
    seed: int,
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    with _opened(settings) as reservoir:
        sample = reservoir.draw(count, np.random.default_rng(seed), strata=strata or None)
    if out is not None:
        sample.save(out)
    if as_json:
        ids = {"alert_ids": list(sample.alert_ids)} if count is not None else {}
        counts = {name: int(sample.within(name).sum()) for name in STRATA}
        drawn = {name: count for name, count in counts.items() if count}
        labelled = int((sample.labels != UNKNOWN).sum())
        place = None if out is None else str(out)
        answer({"stamps": len(sample.stamps), "strata": drawn, "labelled": labelled, "out": place, **ids})
    elif out is not None:
        console.print(f"Wrote {len(sample.stamps):,} stamps to {out}.", highlight=False, soft_wrap=True)
    else:
        for alert_id in sample.alert_ids:
            console.print(alert_id, markup=False, highlight=False)


@group.command()
def merge(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the other server: redis://HOST:PORT/0")],
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Take in another server's reservoir of the same survey, as if all its alerts had been offered here.

    Examples:

        stream-vae reservoir merge redis://other:6379/0 --settings ztf.toml
    """
    with _opened(settings) as reservoir:
        client = connect(url, timeout_s=10.0, ca_file=load(settings).reservoir.ca_file if _secure(url) else None)
        with closing(Reservoir(client, reservoir.survey, where=address(url))) as other:
            merged = reservoir.merge(other)
    if as_json:
        answer(merged._asdict())
    else:
        console.print(f"{merged.entered:,} alerts are new here, and {merged.labels:,} labels were read.")
        if merged.refused:
            console.print(f"{merged.refused:,} labels were refused for want of room.")


def _secure(url: str) -> bool:
    return url.startswith("rediss")


@group.command()
def clear(
    settings: SettingsFile = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget all stamps and labels of the survey; running workers begin to fill it again.

    Examples:

        stream-vae reservoir clear --settings ztf.toml --yes
    """
    with _opened(settings) as reservoir:
        if not yes and sys.stdin.isatty():
            typer.confirm(f"Forget the reservoir of {reservoir.survey} at {reservoir.where}?", abort=True)
        count = reservoir.clear()
    if as_json:
        answer({"cleared": count})
    else:
        console.print(f"Forgot {count:,} stamps.")
