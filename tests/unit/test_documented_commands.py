"""Every `stream-vae` command that the documents show is one that the command line takes: names, options and values."""

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from stream_vae import cli
from typer._click.exceptions import MissingParameter

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [
    "README.md",
    "deploy/README.md",
    "deploy/helm/stream-vae/README.md",
    "schemas/README.md",
    "training/README.md",
]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
IN_BLOCK = re.compile(r"(?:^|\s|bin/)stream-vae +(?P<rest>(?:\\\n|[^\n|;&)#])+)")
IN_TEXT = re.compile(r"`stream-vae\s+(?P<rest>[^`]+)`")


def commands() -> list[tuple[str, str]]:
    found = []
    for name in DOCUMENTS:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        for block in FENCE.findall(text):
            if block.startswith(("```console", "```bash", "```sh")):
                found += [(name, match["rest"]) for match in IN_BLOCK.finditer(block)]
        found += [(name, match["rest"]) for match in IN_TEXT.finditer(FENCE.sub("", text))]
    plain = [(name, " ".join(rest.replace("\\\n", " ").split())) for name, rest in found]
    return [(name, rest) for name, rest in plain if rest not in ("", "-h", "--help") and "|" not in rest]


@pytest.fixture(scope="module")
def tool() -> Any:
    for module, _ in cli._COMMANDS.values():
        import_module(f"stream_vae.cli.{module}")
    return typer.main.get_command(cli.app)


def parse(command: Any, arguments: list[str]) -> None:
    """Parse what a shell would hand over, and run nothing; a command that is only named lacks what it needs."""
    try:
        context = command.make_context(command.name, arguments)
    except MissingParameter:
        return
    if hasattr(command, "resolve_command") and context._protected_args + context.args:  # a family of commands
        _, inner, rest = command.resolve_command(context, context._protected_args + context.args)
        parse(inner, rest)


@pytest.mark.parametrize(("document", "command"), commands())
def test_a_command_in_a_document_is_one(tool, document, command):
    parse(tool, shlex.split(command))
