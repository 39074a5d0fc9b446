"""Programs that tests run: those that `make setup` puts beside Python come before any that this machine has."""

import shutil
import subprocess
import sys
from pathlib import Path

from servers import REPOSITORY, MissingServiceError


def program(name: str) -> str:
    """Find a program that the development extra brings."""
    beside_python = Path(sys.executable).parent  # the virtual environment's, whose Python is a link
    if found := shutil.which(name, path=beside_python) or shutil.which(name):
        return found
    raise MissingServiceError(f"no {name}: make setup installs it")


def run(name: str, *arguments: object, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run one in the repository's root, and give its exit status and what it says."""
    command = [program(name), *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s)
