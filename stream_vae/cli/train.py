"""``stream-vae train``, ``encode`` and ``evaluate``: models from stamps, and what they say of stamps."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from stream_vae.cli import app, console, notes
from stream_vae.cli.options import AsJson, Store, answer
from stream_vae.errors import ConfigError

if TYPE_CHECKING:
    from stream_vae.model.release import ReleaseCard

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="sim|PATH",
        help="Simulated stamps, a .npy or .npz file, a folder of such files, or a folder of alerts.",
    ),
]
Labels = Annotated[
    Path | None, typer.Option("--labels", metavar="FILE", help="Labels by alert id, for a folder of alerts.")
]
Survey = Annotated[str | None, typer.Option(help="Profile of a folder's alerts; absent: told from the packets.")]
ReleaseOption = Annotated[str | None, typer.Option("--release", metavar="ID", help="Absent: the current one.")]


@app.command()
def train(
    store: Store,
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE", help="quick, survey, paper, or a TOML file.")] = "quick",
    data: Data = "sim",
    survey: Survey = None,
    labels: Labels = None,
    promote: Annotated[bool, typer.Option("--promote", help="Serve it from now on.")] = False,
    unless_served: Annotated[
        bool, typer.Option("--unless-served", help="Do nothing, and exit 0, if the store has a current release.")
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the fit's state here after every epoch.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    scratch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Disk for a set too large for memory; absent: where temporary files go."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model and write it to a store as a release.

    Examples:

        stream-vae train --recipe quick --data sim --store releases --promote

        stream-vae train --recipe survey --data stamps.npz --store s3://bucket/releases

        stream-vae train --recipe survey --data alerts/ --survey ztf --labels labels.csv --store releases

        stream-vae train --store releases --promote --unless-served    # a first release, however often it is asked for

        stream-vae train --recipe survey --data shards/ --scratch /data/tmp --checkpoint run1 --resume --store releases
    """
    if unless_served and (served := _served(store, promote=promote)) is not None:
        if as_json:
            answer(served.model_dump(mode="json"))
        else:
            console.print(f"Release {served.id} is current: nothing to train.", highlight=False)
        return
    from stream_vae.learning.train import train as train_release

    card = train_release(
        recipe,
        data,
        store,
        survey=survey,
        labels=labels,
        promote=promote,
        checkpoint=checkpoint,
        resume=resume,
        scratch=scratch,
        progress=not as_json,
    )
    if as_json:
        answer(card.model_dump(mode="json"))
        return
    console.print(f"Release {card.id}{', now current' if promote else ''}.", highlight=False)
    console.print(f"Next: stream-vae releases show {card.id} --store {store}", highlight=False, soft_wrap=True)


def _served(store: str, *, promote: bool) -> "ReleaseCard | None":
    """Return the card of the store's current release, verified: a damaged one is an error, for no worker starts."""
    from stream_vae.model.store import ReleaseStore

    if not promote:
        raise ConfigError("--unless-served is for a first release to serve.", remedy="Add --promote.")
    opened = ReleaseStore(store)
    return None if opened.current() is None else opened.load().card


@app.command()
def encode(
    store: Store,
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npz", help="Where to write the arrays.")],
    release: ReleaseOption = None,
    survey: Survey = None,
    as_json: AsJson = False,
) -> None:
    """Write z_mean, z_log_var and real_score of stamps, in input order.

    Examples:

        stream-vae encode --store releases --data stamps.npz --out codes.npz

        stream-vae encode --store releases --data alerts/ --survey ztf --out codes.npz
    """
    from stream_vae.learning.encode import encode_to_npz

    count = encode_to_npz(store, release, data, out, survey=survey, progress=not as_json)
    if as_json:
        answer({"stamps": count, "out": str(out)})
    else:
        console.print(f"Wrote codes of {count:,} stamps to {out}.")


@app.command()
def evaluate(
    store: Store,
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Gets report.html, metrics.json, metrics.csv and figures/.")
    ],
    release: Annotated[
        list[str] | None,
        typer.Option("--release", metavar="ID", help="May be given several times. Absent: the current one."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All releases of the store.")] = False,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help="Fit PCA and a dictionary on part of the data, to compare."),
    ] = True,
    survey: Survey = None,
    labels: Labels = None,
    as_json: AsJson = False,
) -> None:
    """Measure releases on stamps, beside PCA and a dictionary, and write a report.

    Examples:

        stream-vae evaluate --store releases --data stamps.npz --out report

        stream-vae evaluate --store releases --release A --release B --data stamps.npz --out report

        stream-vae evaluate --store releases --all --data alerts/ --labels labels.csv --out report
    """
    from stream_vae.learning.evaluate import evaluate as evaluate_releases

    if every and release:
        raise ConfigError("--all and --release were both given.", remedy="Give one of them.")
    metrics = evaluate_releases(
        store,
        release,
        data,
        out,
        every=every,
        baselines=baselines,
        survey=survey,
        labels=labels,
        command=_asked(),
        progress=not as_json,
    )
    if as_json:
        answer(metrics)
        return
    console.print(_summary(metrics))
    notes.print(f"Report: {out / 'report.html'}")


def _asked() -> str:
    """Say the command as it was typed, for the report's provenance."""
    return shlex.join(["stream-vae", *sys.argv[1:]])


def _summary(metrics: Mapping[str, Any]) -> Table:
    """Show every model's main measures, a line each: as columns they would not fit a terminal."""
    from stream_vae.learning.report.numbers import SUMMARY, look_up
    from stream_vae.learning.report.style import short

    columns = [
        column for column in SUMMARY if any(look_up(m, column.path) is not None for m in metrics["models"].values())
    ]
    table = Table("", *(Column(short(name), justify="right") for name in metrics["models"]), box=None)
    for column in columns:
        found = (look_up(merits, column.path) for merits in metrics["models"].values())
        values = (value["value"] if isinstance(value, Mapping) else value for value in found)
        table.add_row(column.title, *("" if value is None else f"{value:.{column.digits}f}" for value in values))
    return table
