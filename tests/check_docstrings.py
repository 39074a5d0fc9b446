"""Validate every public docstring of the package by numpydoc's rules, as [tool.numpydoc_validation] chooses them."""

import inspect
import pkgutil
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import stream_vae
from numpydoc.validate import validate

ROOT = Path(__file__).resolve().parent.parent


def public_names() -> Iterator[str]:
    """Yield the dotted name of every public module, class, function, method and property."""
    for info in pkgutil.walk_packages(stream_vae.__path__, "stream_vae."):
        module = import_module(info.name)
        if not info.ispkg:  # numpydoc cannot find the first line of a package's docstring
            yield info.name
        yield from _members(module, info.name)


def _members(owner: ModuleType | type, prefix: str) -> Iterator[str]:
    home = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
    for name, member in vars(owner).items():
        target = inspect.unwrap(member.fget if isinstance(member, property) else getattr(member, "__func__", member))
        documented = inspect.isclass(target) or inspect.isfunction(target)
        if name.startswith("_") or not documented or getattr(target, "__module__", "") != home:
            continue
        yield f"{prefix}.{name}"
        if inspect.isclass(target):
            yield from _members(target, f"{prefix}.{name}")


def is_record(name: str) -> bool:
    """Tell classes whose fields are documented beside them: dataclasses, named tuples, settings, enums, protocols."""
    parts = name.split(".")
    found: object = stream_vae
    for part in parts[1:]:
        found = getattr(found, part)
    marks = ("__dataclass_fields__", "_fields", "model_fields", "__members__", "_is_protocol")
    return inspect.isclass(found) and any(hasattr(found, mark) for mark in marks)


def findings() -> Iterator[str]:
    """Yield one line a problem."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["numpydoc_validation"]
    checks, exclude = set(rules["checks"]), re.compile("|".join(rules["exclude"]))
    for name in public_names():
        if not exclude.search(name):
            waived = {"PR01", "PR02"} if is_record(name) else set()
            for code, message in validate(name)["errors"]:
                if code in checks - waived:
                    yield f"{name}: {code} {message}"


def main() -> int:
    """Print the problems; exit 1 if there are any."""
    found = list(findings())
    print("\n".join(found) if found else "docstrings: no problems")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
