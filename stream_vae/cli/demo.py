"""``stream-vae demo``: the whole path in one process, with nothing to install or start."""

import logging
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.live import Live
from rich.table import Table

from stream_vae.cli import EXIT_NO, app, console, notes
from stream_vae.cli.options import AsJson, answer
from stream_vae.learning.measures import roc_auc
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore

if TYPE_CHECKING:
    from stream_vae.tools.demo import Story

_SAY_EVERY_S = 2.0


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Gets the release store and the picture.")] = Path(
        "demo"
    ),
    alerts: Annotated[int, typer.Option(min=100, help="Simulated alerts.")] = 3000,
    corrupt: Annotated[float, typer.Option(min=0, max=0.4, help="Share that is damaged.")] = 0.03,
    duplicates: Annotated[float, typer.Option(min=0, max=0.5, help="Share that is sent twice.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Another night.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Train a small model, stream simulated alerts through an embedded Kafka, and check the books.

    Needs no broker, no GPU and no network. Exits 1 if a single alert is unaccounted for.

    Examples:

        stream-vae demo

        stream-vae demo --alerts 20000 --corrupt 0.1 --seed 7
    """
    from stream_vae.tools.demo import stream
    from stream_vae.tools.demo_picture import draw

    logging.getLogger("stream_vae.dead_letter").setLevel(logging.ERROR)  # they are damaged on purpose here
    out.mkdir(parents=True, exist_ok=True)
    store = ReleaseStore(str(out / "releases"))
    release = _release(store)
    notes.rule(f"Streaming {alerts:,} simulated alerts through Kafka, decode, encode, score, Kafka")
    with Live(console=notes, auto_refresh=False, transient=True) as live:
        story = stream(
            out / "releases",
            alerts=alerts,
            corrupt=corrupt,
            duplicates=duplicates,
            seed=seed,
            watch=_Watcher(live, alerts),
        )
    picture = out / "demo.png"
    draw(story, release, picture)
    if as_json:
        answer(_document(story) | {"picture": str(picture), "release": release.id})
    else:
        _summarise(story, release, picture, store)
    if not story.balanced or story.surprises:
        raise typer.Exit(EXIT_NO)


def _release(store: ReleaseStore) -> Release:
    current = store.current()
    if current is None:
        notes.rule("Training a small CVAE on simulated stamps (once; about 40 s)")
        from stream_vae.learning.train import train

        train("quick", "sim", store, promote=True)
    return store.load()


class _Watcher:
    """Shows how the stream goes: a live table on a terminal, a line now and then elsewhere."""

    def __init__(self, live: Live, alerts: int) -> None:
        self._live = live
        self._alerts = alerts
        self._said = self._shown = self._started = monotonic()

    def __call__(self, story: "Story") -> None:
        now = monotonic()
        done = story.published + story.dead_lettered
        rate = done / max(now - self._started, 1e-3)
        if notes.is_terminal and now - self._shown > 0.2:
            self._shown = now
            table = Table("sent", "scored", "unscored", "dead letters", "on the way", "alerts/s", min_width=70)
            on_the_way = max(story.sent - done, 0)
            numbers = (story.sent, story.scored, story.unscored, story.dead_lettered, on_the_way, round(rate))
            table.add_row(*(f"{number:,}" for number in numbers))
            self._live.update(table, refresh=True)
        elif not notes.is_terminal and now - self._said > _SAY_EVERY_S:
            self._said = now
            notes.print(f"{done:,} of about {self._alerts:,} back, {rate:,.0f} a second", highlight=False)


def _auc(story: "Story") -> float | None:
    """Area under the ROC curve of the stream; None where it has none."""
    real = np.array([story.truth[candid] == 1 for candid in story.candids])
    scores = np.array(story.scores)
    if not real.any() or real.all() or np.isnan(scores).any():
        return None
    return roc_auc(scores, real)


def _document(story: "Story") -> dict[str, object]:
    return {
        "balanced": story.balanced,
        "sent": story.sent,
        "damaged": story.damaged,
        "duplicates": story.duplicates,
        "published": story.published,
        "scored": story.scored,
        "unscored": story.unscored,
        "dead_lettered": story.dead_lettered,
        "dead_letters": dict(story.dead_letters),
        "filtered": 0,
        "surprises": story.surprises,
        "reservoir_stamps": story.kept,
        "offset_gaps": story.gaps,
        "seconds": round(story.seconds, 2),
        "alerts_per_second": round(story.sent / story.seconds, 1),
        "auc": _auc(story),
    }


def _summarise(story: "Story", release: Release, picture: Path, store: ReleaseStore) -> None:
    table = Table("what became of them", "alerts", title="The books", title_justify="left")
    table.columns[1].justify = "right"
    table.add_row(f"sent ({story.damaged} damaged on purpose, {story.duplicates} twice)", f"{story.sent:,}")
    table.add_section()
    table.add_row("published with scores", f"{story.scored:,}")
    table.add_row("published unscored, with the reason in the quality flags", f"{story.unscored:,}")
    table.add_row("dead-lettered, bytes unchanged, with the reason", f"{story.dead_lettered:,}")
    for reason, count in story.dead_letters.most_common():
        table.add_row(f"    {reason}", f"[dim]{count:,}[/dim]")
    table.add_section()
    verdict = "[green]yes[/green]" if story.balanced else "[red]NO[/red]"
    table.add_row("consumed = published + dead-lettered + filtered", verdict)
    console.print(table)
    console.print(f"{story.kept:,} of the scored stamps are kept in the reservoir, for retraining.", highlight=False)
    for surprise in story.surprises:
        console.print(f"[red]Not as it should be:[/red] {surprise}")
    rate = story.sent / story.seconds
    console.print(f"{rate:,.0f} alerts a second, simulation and reading back included.", highlight=False)
    if (auc := _auc(story)) is not None:
        console.print(f"AUC of the scores against the simulation's truth: {auc:.3f}.", highlight=False)
    console.print(f"\nLook at   {picture}", highlight=False)
    console.print(f"          stream-vae releases show --store {store.url}", highlight=False, soft_wrap=True)
    console.print(f"          {store.url}/releases/{release.id}/report/report.html", highlight=False, soft_wrap=True)
    console.print("Your own  stream-vae config init ztf.toml, then stream-vae doctor and run", highlight=False)
