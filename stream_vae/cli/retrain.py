"""``stream-vae retrain``: train on what the reservoir kept, once or whenever it is time; judge, promote."""

from typing import Annotated

import typer

from stream_vae.cli import app, console, notes
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.errors import ConfigError
from stream_vae.settings import Settings


@app.command()
def retrain(
    settings: SettingsFile = None,
    now: Annotated[bool, typer.Option("--now", help="Once, in this process; absent: whenever it is time.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Absent: that of the release that is served.", show_default=False),
    ] = None,
    promote: Annotated[
        bool, typer.Option("--promote/--no-promote", help="Serve or try the new release if it passes all gates.")
    ] = True,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Begin with random weights, and so a new latent space.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Retrain as a task of this Ray cluster; absent: in a process of its own."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a release on the stamps that the reservoir kept, going on from the one that is served.

    With --now once: the verdict of the gates and its reasons stand in the release (`releases show`), and one that
    passed is promoted or tried as retrain.promotion says. Without, this keeps running: it takes labels from their
    topic, retrains as the settings' section retrain says, watches what was promoted, and rolls it back if it does harm.

    Examples:

        stream-vae retrain --settings ztf.toml --now

        stream-vae retrain --settings ztf.toml --now --recipe survey --no-promote

        stream-vae retrain --settings ztf.toml
    """
    loaded = load(settings)
    if not now:
        _keep_running(loaded, recipe, ray_address, promote=promote, from_scratch=from_scratch, as_json=as_json)
        return
    from stream_vae.learning.retrain import retrain_now

    if ray_address is not None:
        raise ConfigError("--now retrains in this process.", remedy="Leave --ray-address out, or --now.")
    found = retrain_now(loaded, recipe, promote=promote, from_scratch=from_scratch, progress=not as_json)
    if as_json:
        answer(found.document())
        return
    fates = {
        "promoted": "now current",
        "on_trial": f"on trial beside {found.incumbent}",
        "not_promoted": f"not promoted; {found.incumbent} stays",
        "superseded": "not promoted",
    }
    console.print(f"Release {found.release.id}: {fates[found.fate]}.", highlight=False, soft_wrap=True)
    console.print(f"Judged on {found.held_out} held-out stamps: {found.reason}.", highlight=False, soft_wrap=True)
    continuity = found.verdict["continuity"]
    space = "stays" if continuity["same"] else "is a new one, and old vectors are carried over by mapping.npz"
    console.print(f"The latent space {space}: {continuity['reason']}.", highlight=False, soft_wrap=True)
    if found.promoted and loaded.release.id is not None:
        notes.print(f"The settings pin release.id = {loaded.release.id}: workers with them will not take it.")


def _keep_running(
    loaded: Settings,
    recipe: str | None,
    ray_address: str | None,
    *,
    promote: bool,
    from_scratch: bool,
    as_json: bool,
) -> None:
    given = {"--recipe": recipe is not None, "--no-promote": not promote, "--from-scratch": from_scratch}
    if wrong := [name for name, is_given in (given | {"--json": as_json}).items() if is_given]:
        raise ConfigError(f"{', '.join(wrong)}: for one retraining only.", remedy="Add --now.")
    from stream_vae.learning.trainer import run_trainer

    run_trainer(loaded, ray_address=ray_address)
