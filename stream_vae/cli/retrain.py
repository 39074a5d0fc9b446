"""``stream-vae retrain``: train on what the reservoir kept, judge, promote."""

from dataclasses import asdict
from typing import Annotated

import typer

from stream_vae.cli import app, console, notes
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.errors import ConfigError


@app.command()
def retrain(
    settings: SettingsFile = None,
    now: Annotated[bool, typer.Option("--now", help="Once, in this process.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Absent: that of the release that is served.", show_default=False),
    ] = None,
    promote: Annotated[
        bool, typer.Option("--promote/--no-promote", help="Serve the new release if it is no worse.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Train a release on the stamps that the reservoir kept.

    It is promoted if, on held-out stamps, its reconstruction error is no larger than that of the release that is
    served and it has no fewer active units; if not, it stays in the store and the history says why.

    Examples:

        stream-vae retrain --settings ztf.toml --now

        stream-vae retrain --settings ztf.toml --now --recipe survey --no-promote
    """
    loaded = load(settings)
    if not now:
        raise ConfigError(
            "Retraining on a timer, on drift or on a count of new stamps comes with the worker fleet later.",
            remedy="`stream-vae retrain --now` retrains once.",
        )
    from stream_vae.learning.retrain import retrain_now

    verdict = retrain_now(loaded, recipe, promote=promote, progress=not as_json)
    if as_json:
        answer(asdict(verdict) | {"release": verdict.release.id, "data": verdict.release.data})
        return
    fate = "now current" if verdict.promoted else f"not promoted; {verdict.incumbent} stays"
    console.print(f"Release {verdict.release.id}: {fate}.", highlight=False, soft_wrap=True)
    console.print(f"On {verdict.held_out} held-out stamps: {verdict.reason}.", highlight=False, soft_wrap=True)
    if verdict.promoted and loaded.release.id is not None:
        notes.print(f"The settings pin release.id = {loaded.release.id}: workers with them will not take it.")
