"""Every `stream-vae` command that the documents show is one that the command line takes: names, options and values."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer
from stream_vae.cli import app

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
    return [(name, rest) for name, rest in plain if rest and rest not in ("-h", "--help")]


@pytest.fixture(scope="module")
def tool() -> click.Command:
    from stream_vae.cli import main  # noqa: F401 - what it imports makes the commands

    return typer.main.get_command(app)


def parse(command: click.Command, arguments: list[str]) -> None:
    """Parse what a shell would hand over, and run nothing."""
    context = command.make_context(command.name, arguments)
    if isinstance(command, click.Group) and context._protected_args + context.args:
        _, inner, rest = command.resolve_command(context, context._protected_args + context.args)
        parse(inner, rest)


@pytest.mark.parametrize(("document", "command"), commands())
def test_a_command_in_a_document_is_one(tool, document, command):
    parse(tool, shlex.split(command))
