"""Options that several commands share."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stream_vae import settings
from stream_vae.cli import console
from stream_vae.settings import Settings

SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        "-s",
        metavar="FILE",
        help="Settings in TOML; absent: all from STREAM_VAE_ variables.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, for machines.")]
Store = Annotated[str, typer.Option("--store", metavar="URL", help="Release store: a folder or fsspec URL.")]


def load(file: Path | None) -> Settings:
    """Load the settings of a command.

    Parameters
    ----------
    file : Path or None
        From ``--settings``.

    Returns
    -------
    Settings
        Validated.

    Raises
    ------
    ConfigError
        If they are wrong.
    """
    return settings.load(file)


def answer(document: Any) -> None:
    """Print an answer as JSON.

    Parameters
    ----------
    document : Any
        Plain values; what JSON does not know is written as text.
    """
    console.print(json.dumps(document, indent=2, default=str), markup=False, highlight=False, soft_wrap=True)
