"""The Dockerfile as Docker reads it: stages, what they copy, and what .dockerignore lets through."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from servers import REPOSITORY

FILE = REPOSITORY / "deploy" / "Dockerfile"
IGNORE = REPOSITORY / ".dockerignore"


def instructions(text: str) -> list[tuple[str, str]]:
    """Split a Dockerfile into instructions and their arguments; comments go and lines that continue are joined."""
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    parts = [line.partition(" ") for line in lines if line.strip()]
    return [(name.upper(), rest.strip()) for name, _, rest in parts]


@dataclass(frozen=True)
class Stage:
    """What one FROM begins."""

    name: str
    base: str


def stages() -> list[Stage]:
    froms = [rest for name, rest in instructions(FILE.read_text(encoding="utf-8")) if name == "FROM"]
    return [Stage(name=name, base=base) for base, name in (re.split(r"\s+AS\s+", each) for each in froms)]


def tags() -> dict[str, str]:
    """Give the tag of each target, as the Dockerfile's first lines have it."""
    head = FILE.read_text(encoding="utf-8").partition("\nARG ")[0]
    return dict(re.findall(r"--target (\S+) -t stream-vae:(\S+) \.", head))


def copied(text: str) -> list[str]:
    """Give what is copied from the build's context."""
    found: list[str] = []
    for name, rest in instructions(text):
        if name in {"COPY", "ADD"} and "--from=" not in rest:
            found += [word for word in shlex.split(rest)[:-1] if not word.startswith("--")]
    return found


def environment() -> dict[str, str]:
    """Give the variables of the images."""
    words = [
        word
        for name, rest in instructions(FILE.read_text(encoding="utf-8"))
        if name == "ENV"
        for word in shlex.split(rest)
    ]
    return dict(word.split("=", 1) for word in words)


def command() -> str:
    """Give the images' command."""
    (found,) = (rest for name, rest in instructions(FILE.read_text(encoding="utf-8")) if name == "CMD")
    return found


def lets_through(path: Path, ignore: str) -> bool:
    """Tell whether a .dockerignore leaves a path of the repository in the context: the last line that fits decides."""
    through = True
    for line in ignore.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        is_exception = pattern.startswith("!")
        if _fits(pattern.lstrip("!").strip("/"), path):
            through = is_exception
    return through


def _fits(pattern: str, path: Path) -> bool:
    """Tell whether a pattern names a path or a folder that it lies in."""
    expression = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    return any(re.fullmatch(expression, each.as_posix()) for each in (path, *path.parents[:-1]))
