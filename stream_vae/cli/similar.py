"""``stream-vae similar``: the candidates most like some that one has."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from stream_vae.cli import app, console, notes
from stream_vae.cli.options import AsJson, Store, answer
from stream_vae.cli.train import Data, ReleaseOption, Survey
from stream_vae.errors import ConfigError

if TYPE_CHECKING:
    from stream_vae.learning.search import Answer, Found

_DASH = "-"
_LABELS = {1: "real", 0: "bogus"}


@app.command()
def similar(
    store: Store,
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            metavar="ALERT|FOLDER|FILE[:ROWS]",
            help="What to search with; may be given again. Rows of a stamp file: stamps.npz:3 or stamps.npz:3,7-9.",
        ),
    ],
    data: Data,
    release: ReleaseOption = None,
    top: Annotated[int, typer.Option(min=1, max=10_000, help="How many to find.")] = 20,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.npz|FILE.csv", help="Write what was found there.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", metavar="FILE.png", help="Draw the stamps there.")] = None,
    survey: Survey = None,
    as_json: AsJson = False,
) -> None:
    """Find the candidates most like some others: nearest neighbours in a release's latent space.

    Examples:

        stream-vae similar --store releases --to alert.avro --data alerts/ --sheet similar.png

        stream-vae similar --store releases --to night.npz:3,7-9 --data archive.npz --top 100 --out found.csv
    """
    from stream_vae.learning.search import find_similar

    _check(out, sheet)
    found = find_similar(store, release, to, data, top=top, survey=survey, progress=not as_json)
    if out is not None:
        _write(found, out)
    if sheet is not None:
        from stream_vae.tools.similar_sheet import write_sheet

        write_sheet(found, sheet)
    if as_json:
        answer(_document(found))
        return
    _show(found)
    for what, path in (("Table", out), ("Sheet", sheet)):
        if path is not None:
            notes.print(f"{what}: {path}", highlight=False)


def _check(out: Path | None, sheet: Path | None) -> None:
    """Refuse before the work what could not be written after it."""
    if out is not None and out.suffix not in (".npz", ".csv"):
        raise ConfigError(f"--out {out} is neither .npz nor .csv.", remedy="Name one of these.")
    for option, path in (("--out", out), ("--sheet", sheet)):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{option} {path}: there is no folder {path.parent}.", remedy="Make it first.")


def _rows(found: "Answer") -> list[dict[str, Any]]:
    """One plain mapping a neighbour."""
    return [{"rank": at + 1} | _row(found.neighbours, at) for at in range(len(found.neighbours))]


def _row(found: "Found", at: int) -> dict[str, Any]:
    score, std, label = float(found.real_score[at]), float(found.real_score_std[at]), int(found.label[at])
    about = found.about[at]
    return {
        "row": int(found.row[at]),
        **{name: about.get(name) for name in ("alert", "object", "file")},
        "distance": float(found.distance[at]),
        "seed": int(found.seed[at]),
        "real_score": score if np.isfinite(score) else None,
        "real_score_std": std if np.isfinite(std) else None,
        "label": _LABELS.get(label),
    }


def _document(found: "Answer") -> dict[str, Any]:
    return {
        "release": found.release,
        "searched": found.searched,
        "unscoreable": found.unscoreable,
        "identical": found.identical,
        "seeds": [{"row": row["row"], "alert": row["alert"], "file": row["file"]} for row in _seed_rows(found)],
        "neighbours": _rows(found),
    }


def _seed_rows(found: "Answer") -> list[dict[str, Any]]:
    return [_row(found.seeds, at) for at in range(len(found.seeds))]


def _show(found: "Answer") -> None:
    rows = _rows(found)
    table = Table(title=f"Nearest to {len(found.seeds)} seeds" if len(found.seeds) > 1 else "Nearest")
    # The file is in --out and --json: a path folded into a column helps nobody.
    names = [name for name in ("alert", "object") if any(row[name] for row in rows)] or ["row"]
    seeds = ["seed"] if len(found.seeds) > 1 else []
    labels = ["label"] if any(row["label"] for row in rows) else []
    table.add_column("rank", justify="right")
    for name in (*names, *seeds, *labels):
        table.add_column(name, overflow="fold")
    table.add_column("distance", justify="right")
    table.add_column("real score", justify="right")
    for row in rows:
        score = _DASH if row["real_score"] is None else f"{row['real_score']:.3f} ± {row['real_score_std'] or 0:.3f}"
        cells = (_DASH if row[name] is None else str(row[name]) for name in (*names, *seeds, *labels))
        table.add_row(str(row["rank"]), *cells, f"{row['distance']:.3f}", score)
    console.print(table)
    left = [f"{found.unscoreable:,} could not be scored"] if found.unscoreable else []
    left += [f"{found.identical:,} left out, as they are seeds"] if found.identical else []
    console.print("; ".join([f"{found.searched:,} compared by {found.release}", *left]) + ".", highlight=False)


def _write(found: "Answer", out: Path) -> None:
    rows = _rows(found)
    try:
        if out.suffix == ".csv":
            with out.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else ["rank"])
                writer.writeheader()
                writer.writerows(rows)
            return
        near = found.neighbours
        columns = ("row", "distance", "seed", "real_score", "real_score_std", "label", "z_mean", "z_log_var", "stamps")
        arrays: dict[str, Any] = {name: getattr(near, name) for name in columns}
        arrays |= {name: np.array([row[name] or "" for row in rows]) for name in ("alert", "object")}
        np.savez(out, **arrays)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}.", remedy="Name another.") from error
