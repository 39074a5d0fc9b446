"""Where results go: a terminal, and a JSON file."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console


def terminal() -> Console:
    """As wide as it is; wide enough for every table where it is a file."""
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def save(document: dict[str, Any], path: Path) -> None:
    """Write a document, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
