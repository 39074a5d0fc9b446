"""Where the Avro schemas that stream_vae publishes and reads are: ``schemas/<name>/<version>.avsc``.

They live at the top of the repository, for people of other languages to find, and inside the
package once it is installed.
"""

import json
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from stream_vae.errors import ConfigError


def load(name: str, version: str) -> dict[str, Any]:
    """Read one schema; the caller owns the copy that it gets.

    Parameters
    ----------
    name : str
        A folder of ``schemas/``: ``enrichment`` or ``candidate``.
    version : str
        Its version, such as ``1.0``.

    Returns
    -------
    dict
        The schema as JSON gives it, not yet parsed by any Avro library.

    Raises
    ------
    ConfigError
        There is no such schema.
    """
    schema: dict[str, Any] = json.loads(read(name, version))
    return schema


@lru_cache
def read(name: str, version: str) -> str:
    """Read the text of one schema.

    Parameters
    ----------
    name : str
        A folder of ``schemas/``.
    version : str
        Its version.

    Returns
    -------
    str
        The JSON text as the file has it.

    Raises
    ------
    ConfigError
        There is no such schema.
    """
    installed = files("stream_vae") / "_schemas" / name / f"{version}.avsc"
    if installed.is_file():
        return installed.read_text(encoding="utf-8")
    checkout = Path(__file__).resolve().parent.parent / "schemas" / name / f"{version}.avsc"
    if checkout.is_file():
        return checkout.read_text(encoding="utf-8")
    raise ConfigError(f"There is no schema {name} {version}.", remedy="schemas/README.md lists what there is.")
