"""The command line starts fast: it imports what the command needs, and for the list of commands next to nothing."""

import json
import subprocess
import sys

import pytest
from stream_vae import cli

HEAVY = {"numpy", "numba", "onnxruntime", "confluent_kafka", "redis", "httpx", "tensorflow"}

WHAT_IS_IMPORTED = f"""
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted({HEAVY} & set(sys.modules))), file=sys.stderr))
from stream_vae.cli import main
main()
"""

THE_LINES = """
import inspect, json
import stream_vae.cli as cli
from importlib import import_module
from typer.main import get_command
for module, _ in cli._COMMANDS.values():
    import_module(f"stream_vae.cli.{module}")
lines = {name: inspect.cleandoc(each.help).split("\\n\\n")[0] for name, each in get_command(cli.app).commands.items()}
print(json.dumps({name: line.replace("\\n", " ") for name, line in lines.items()}))
"""


def run(program, *arguments):
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)


def test_the_list_of_commands_has_each_command_with_the_line_that_its_own_page_begins_with():
    done = run(THE_LINES)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: line for name, (_, line) in cli._COMMANDS.items()}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["config", "init", "--help"], ["train", "--help"]])
def test_what_needs_no_heavy_library_imports_none(arguments):
    done = run(WHAT_IS_IMPORTED, *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr) == []
    assert "usage" in done.stdout.lower() or "stream-vae" in done.stdout


def test_the_list_of_commands_is_whole():
    done = run(WHAT_IS_IMPORTED, "--help")
    for name in cli._COMMANDS:
        assert f" {name} " in done.stdout


def test_an_unknown_command_is_refused_by_name():
    done = run(WHAT_IS_IMPORTED, "--quiet", "evaluat")
    assert done.returncode == 2
    assert "No such command 'evaluat'" in done.stderr
    assert "evaluate" in done.stderr
