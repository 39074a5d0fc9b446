"""``stream-vae reservoir``: the sample of stamps that retraining draws from."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stream_vae import assembly
from stream_vae.cli import app, console
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.reservoir import Reservoir

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
    """Show how full it is and what it is a sample of.

    Examples:

        stream-vae reservoir stats --settings ztf.toml
    """
    with _opened(settings) as reservoir:
        found = reservoir.stats()
    if as_json:
        answer(asdict(found))
        return
    capacity = "nothing was offered yet" if found.capacity is None else f"of {found.capacity:,}"
    console.print(f"{found.survey}, {found.stratum}: {found.stamps:,} stamps ({capacity})", highlight=False)
    console.print(f"a sample of about {found.seen:,} alerts, in {found.memory_bytes / 2**20:.1f} MiB", highlight=False)
    if found.preprocessing:
        cutouts, size = found.preprocessing["cutouts"], found.preprocessing["stamp_size"]
        console.print(f"{size} x {size} pixels of {', '.join(cutouts)}", highlight=False)


@group.command()
def draw(
    settings: SettingsFile = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many at most.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and reservoir give the same stamps.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.npz", help="Save stamps, labels and alert_ids there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw stamps at random, none twice; they stay in the reservoir.

    Examples:

        stream-vae reservoir draw --settings ztf.toml -n 500 --out some.npz
    """
    _save(settings, count, seed, out, as_json=as_json)


@group.command()
def export(
    settings: SettingsFile = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npz", help="Where to.")] = Path("reservoir.npz"),
    as_json: AsJson = False,
) -> None:
    """Save all stamps to a file that `train --data`, `encode` and `evaluate` take.

    Examples:

        stream-vae reservoir export --settings ztf.toml --out stamps.npz
    """
    _save(settings, None, 0, out, as_json=as_json)


def _save(settings: Path | None, count: int | None, seed: int, out: Path | None, *, as_json: bool) -> None:
    with _opened(settings) as reservoir:
        sample = reservoir.draw(count, np.random.default_rng(seed))
    if out is not None:
        sample.save(out)
    if as_json:
        ids = {"alert_ids": list(sample.alert_ids)} if count is not None else {}
        answer({"stamps": len(sample.stamps), "out": None if out is None else str(out), **ids})
    elif out is not None:
        console.print(f"Wrote {len(sample.stamps):,} stamps to {out}.", highlight=False, soft_wrap=True)
    else:
        for alert_id in sample.alert_ids:
            console.print(alert_id, markup=False, highlight=False)


@group.command()
def clear(
    settings: SettingsFile = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget all stamps of the survey; running workers begin to fill it again.

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
