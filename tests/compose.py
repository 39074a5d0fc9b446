"""The compose files as Compose reads them, without Docker: merged, and every variable with its default."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from servers import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "compose"
BASE = "compose.yaml"
OVERLAYS = sorted(path.name for path in FOLDER.glob("compose.*.yaml"))
STACKS = [(BASE,), *((BASE, overlay) for overlay in OVERLAYS)]
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_REPLACED = {"command", "entrypoint", "test"}  # lists that Compose does not append to

Document = dict[str, Any]


def read(name: str) -> Document:
    document: Document = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return document


def variables(text: str) -> dict[str, str | None]:
    """Give the variables that a file asks for, and their defaults."""
    return {name: default or None for name, default in _VARIABLE.findall(text)}


def model(*files: str) -> Document:
    """Merge files, each over those before it."""
    merged: Document = {}
    for name in files:
        merged = _merged(merged, _with_defaults(read(name)))
    return merged


def environment(service: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in service.get("environment", {}).items()}


def secrets(service: Mapping[str, Any]) -> dict[str, str]:
    """Give the files of a service's secrets, and the secrets that they are."""
    given = [{"source": each, "target": each} if isinstance(each, str) else each for each in service.get("secrets", ())]
    return {Path(each["target"]).name: each["source"] for each in given}


def configs(service: Mapping[str, Any]) -> dict[str, str]:
    """Give where a service finds its configs, and the configs that they are."""
    return {each["target"]: each["source"] for each in service.get("configs", ())}


def host_files(files: tuple[str, ...]) -> set[str]:
    """Give every path of this machine that a container gets, as written."""
    document = model(*files)
    named = {each["file"] for kind in ("configs", "secrets") for each in document[kind].values()}
    volumes = [volume for service in document["services"].values() for volume in service.get("volumes", ())]
    return named | {volume.partition(":")[0] for volume in volumes if volume.startswith((".", "/", "~"))}


def is_secret(path: str) -> bool:
    """Tell whether make-secrets makes a file."""
    return Path(path).parts[0] == "secrets"


def _with_defaults(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_defaults(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_defaults(inner) for inner in value]
    return _VARIABLE.sub(lambda found: found[2] or "", value) if isinstance(value, str) else value


def _merged(below: Any, above: Any, key: str = "") -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        shared = below.keys() & above.keys()
        return below | above | {name: _merged(below[name], above[name], name) for name in shared}
    if isinstance(below, list) and isinstance(above, list) and key not in _REPLACED:
        return below + above
    return above
