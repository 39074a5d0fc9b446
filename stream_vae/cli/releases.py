"""``stream-vae releases``: what is in a store, and which of it is served."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from stream_vae.cli import EXIT_NO, app, console
from stream_vae.cli.options import AsJson, Store, answer
from stream_vae.model.challenger import Mode
from stream_vae.model.release import ReleaseCard, problems
from stream_vae.model.store import ReleaseStore

group = typer.Typer(no_args_is_help=True, help="List, show, verify, try, promote and roll back releases.")
app.add_typer(group, name="releases")

ReleaseId = Annotated[str | None, typer.Argument(metavar="ID", help="An id or an unambiguous end of one.")]


@group.command("list")
def list_releases(store: Store, as_json: AsJson = False) -> None:
    """List the releases of a store, oldest first.

    Examples:

        stream-vae releases list --store releases
    """
    opened = ReleaseStore(store)
    cards, current, trial = opened.cards(), opened.current(), opened.challenger()
    challenger = trial.release if trial else None
    if as_json:
        marks = [{"current": card.id == current, "challenger": card.id == challenger} for card in cards]
        answer([card.model_dump(mode="json") | mark for card, mark in zip(cards, marks, strict=True)])
        return
    table = Table("", Column("release", no_wrap=True), "made", "latents", "cutouts", "latent space", "AUC")
    for card in cards:
        table.add_row(
            "*" if card.id == current else "?" if card.id == challenger else "",
            card.id,
            f"{card.created_at:%Y-%m-%d %H:%M}",
            str(card.latent_size),
            ", ".join(card.preprocessing.cutouts),
            card.latent_space,
            _auc(card),
        )
    console.print(table if cards else f"No releases in {store}.")
    if trial:
        console.print(f"? on trial since {trial.since:%Y-%m-%d %H:%M}, {trial.mode}, {trial.share:.0%} of the alerts")


def _auc(card: ReleaseCard) -> str:
    score = card.metrics.get("score") or {}
    return f"{score['auc']:.3f}" if isinstance(score.get("auc"), float) else ""


@group.command()
def show(store: Store, release: ReleaseId = None, as_json: AsJson = False) -> None:
    """Show the card of a release; absent: the current one.

    Examples:

        stream-vae releases show --store releases
    """
    opened = ReleaseStore(store)
    card = opened.load(release).card
    if as_json:
        answer(card.model_dump(mode="json"))
    else:
        console.print_json(card.model_dump_json())
        if isinstance(verdict := card.metrics.get("verdict"), dict):
            _print_verdict(verdict)
        for event in opened.history():
            if event["release"] == card.id:
                console.print(f"{event['time']}  {event['event']}  {event.get('reason', '')}", highlight=False)


_OUTCOMES = {"passed": "green", "failed": "red", "undecided": "yellow", "not_judged": "dim"}


def _print_verdict(verdict: dict[str, Any]) -> None:
    """Print what the gates said of a release that was trained to replace another."""
    console.print(f"\nVerdict: [bold]{verdict.get('decision', 'none')}[/bold]", highlight=False)
    for reason in verdict.get("reasons", ()):
        console.print(f"  {reason}", markup=False, highlight=False, soft_wrap=True)
    if isinstance(continuity := verdict.get("continuity"), dict):
        stays = "stays" if continuity.get("same") else "is a new one"
        console.print(f"  the latent space {stays}: {continuity.get('reason')}", highlight=False, soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    for gate in verdict.get("gates", ()):
        outcome = str(gate.get("outcome", "-"))
        word = Text(outcome.replace("_", " "), style=_OUTCOMES.get(outcome, ""))
        table.add_row(word, str(gate.get("name", "")), Text(str(gate.get("reason", ""))))
    console.print(table)


@group.command()
def verify(store: Store, release: ReleaseId = None, as_json: AsJson = False) -> None:
    """Check the digests of a release, or of all; exit 1 if any file is not what was released.

    Examples:

        stream-vae releases verify --store releases
    """
    opened = ReleaseStore(store)
    names = opened.folders() if release is None else [opened.resolve(release)]
    found = {name: problems(opened.fetch(name)) for name in names}
    if as_json:
        answer(found)
    for name, faults in {} if as_json else found.items():
        console.print(f"{name}: {'[red]damaged[/red]: ' + '; '.join(faults) if faults else '[green]good[/green]'}")
    if any(found.values()):
        raise typer.Exit(EXIT_NO)


@group.command()
def promote(
    release: Annotated[str, typer.Argument(metavar="ID", help="An id or an unambiguous end of one.")],
    store: Store,
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "by hand",
    as_json: AsJson = False,
) -> None:
    """Serve a release from now on; workers take it up when they start.

    Examples:

        stream-vae releases promote quick-20260101-0123456789ab --store releases
    """
    name = ReleaseStore(store).promote(release, reason=reason)
    if as_json:
        answer({"current": name})
    else:
        console.print(f"Current release: {name}")


@group.command()
def rollback(
    store: Store,
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "by hand",
    as_json: AsJson = False,
) -> None:
    """Serve the release again that was current before this one.

    Examples:

        stream-vae releases rollback --store releases --reason "scores drifted"
    """
    name = ReleaseStore(store).rollback(reason=reason)
    if as_json:
        answer({"current": name})
    else:
        console.print(f"Current release: {name}")


@group.command()
def challenge(
    release: Annotated[str, typer.Argument(metavar="ID", help="An id or an unambiguous end of one.")],
    store: Store,
    mode: Annotated[
        Mode, typer.Option(help="shadow: scores alerts too, publishes none; canary: publishes a share of them.")
    ] = "shadow",
    share: Annotated[float, typer.Option(help="Of the alerts, chosen by their ids: above 0, up to 1.")] = 0.1,
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "by hand",
    as_json: AsJson = False,
) -> None:
    """Put a release on trial beside the current one; running workers take it up.

    Examples:

        stream-vae releases challenge 0123456789ab --store releases --mode canary --share 0.1
    """
    found = ReleaseStore(store).challenge(release, mode, share, reason=reason)
    if as_json:
        answer(found.model_dump(mode="json"))
    else:
        console.print(f"On trial: {found.release}, {found.mode}, {found.share:.0%} of the alerts", highlight=False)


@group.command()
def withdraw(
    store: Store,
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "by hand",
    as_json: AsJson = False,
) -> None:
    """End the trial of a release; the current one goes on as it was.

    Examples:

        stream-vae releases withdraw --store releases --reason "scores differ too much"
    """
    name = ReleaseStore(store).withdraw(reason)
    if as_json:
        answer({"withdrawn": name})
    else:
        console.print(f"Withdrawn: {name}" if name else "Nothing was on trial.", highlight=False)


@group.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The old release: an id or an unambiguous end of one.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The new one.")],
    store: Store,
    data: Annotated[
        str | None,
        typer.Option(metavar="sim|PATH", help="Stamps to compare on; absent: A's anchor stamps.", show_default=False),
    ] = None,
    survey: Annotated[str | None, typer.Option(help="Profile of a folder's alerts.", show_default=False)] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Write there how A's vectors are carried over to B's space, and back."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold release B against release A on the same stamps: codes, neighbours, scores, reconstructions.

    Examples:

        stream-vae releases compare 0123456789ab ba9876543210 --store releases

        stream-vae releases compare 0123456789ab ba9876543210 --store releases --data stamps.npz --json

        stream-vae releases compare 0123456789ab ba9876543210 --store releases --mapping old-to-new.npz
    """
    from stream_vae.learning.compare import common_stamps, look
    from stream_vae.learning.compare import compare as compare_releases
    from stream_vae.learning.mapping import write_mapping

    opened = ReleaseStore(store)
    old, new = opened.load(a), opened.load(b)
    found = compare_releases(old, new, data=data, survey=survey)
    if mapping is not None:
        stamps, _ = common_stamps(old, new, data, survey)
        spaces = old.card.latent_space, new.card.latent_space
        write_mapping(mapping, stamps, look(old, stamps).z_mean, look(new, stamps).z_mean, spaces=spaces)
    if as_json:
        answer(asdict(found))
        return
    console.print(f"A  {found.a}\nB  {found.b}\non {found.stamps} stamps ({found.stamps_from})", highlight=False)
    scores, near = found.scores, found.retrieval
    rows: list[tuple[str, float | None]] = [
        ("scores: Pearson correlation", scores.pearson if scores else None),
        ("scores: Spearman correlation", scores.spearman if scores else None),
        ("scores: mean absolute difference", scores.mean_absolute_difference if scores else None),
        ("squared error of A", found.squared_error_a),
        ("squared error of B", found.squared_error_b),
        ("codes: residual as they are", found.unaligned_residual),
        ("codes: residual after Procrustes", found.procrustes_residual),
        (f"recall@{near.neighbours}, A against A", near.old_against_old),
        (f"recall@{near.neighbours}, B against B", near.new_against_new),
        (f"recall@{near.neighbours}, B against A", near.new_against_old),
        (f"recall@{near.neighbours}, B turned against A", near.aligned_against_old),
        (f"recall@{near.neighbours} by chance", near.chance),
        ("A's neighbours that B finds", near.shared),
    ]
    table = Table("figure", "value")
    table.add_row("same latent space, by the cards", "yes" if found.same_latent_space else "no")
    for name, value in rows:
        table.add_row(name, "-" if value is None else f"{value:.4g}")
    console.print(table)
