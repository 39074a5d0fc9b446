"""Settings of the whole process are tried in one of its own."""

import subprocess
import sys

SCRIPT = """
import ctypes, gc, sys
from stream_vae.runtime.process import settle_memory
assert gc.get_freeze_count() == 0
done = settle_memory()
assert gc.get_freeze_count() > 1000, "what the imports made is exempt from collection"
assert gc.isenabled(), "what the alerts make is not"
assert done == hasattr(ctypes.CDLL(None), "mallopt"), "the C library takes every value"
"""


def test_a_worker_process_freezes_its_imports_and_keeps_its_heap() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)
