"""Could the gate count instructions instead of time? What this machine lets a process count, and what callgrind says.

Hardware counters are asked for through perf_event_open and perf. Under callgrind a process runs both halves of the
gate's round (gate.py) on the same simulated alerts several times over, and a second process does so again: seven
minutes. It needs valgrind with its headers and a C compiler.
"""

import ctypes
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

import gate
from stream_vae.runtime.process import settle_memory
from stream_vae.sky.packets import simulate_packets
from summary import Spread

PERF_EVENT_OPEN = 298
"""The system call's number on x86-64."""
EVENTS = {"instructions": (0, 1), "processor cycles": (0, 0), "task clock, of the kernel's own": (1, 1)}
"""Type and number."""
ATTRIBUTE_BYTES = 128
DISABLED = 1
HEADER = Path("/usr/include/valgrind/callgrind.h")
MARKS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_ZERO_STATS; }
void end(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }
"""
PROCESSES = 2
ROUNDS = 4
BATCHES_BEFORE = 2
TOTALS = re.compile(r"^desc: Trigger: Client Request: (\S+)$.*^(?:totals|summary): (\d+)", re.MULTILINE | re.DOTALL)
# One processor for both runs: callgrind hides instructions that it does not know, and numba would compile anew for it.
NUMBA = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+bmi,+bmi2"}


def measure(options: Namespace) -> dict[str, list[dict[str, Any]]]:
    """Tables by title."""
    del options
    rows = [{"what": f"perf_event_open: {name}", "answer": _perf_event(*event)} for name, event in EVENTS.items()]
    if shutil.which("perf"):
        stat = ["perf", "stat", "-x,", "-e", "instructions", "true"]
        said = subprocess.run(stat, check=False, capture_output=True, text=True).stderr.strip()
        rows.append({"what": "perf stat -e instructions", "answer": said.partition(",")[0]})
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not (shutil.which("valgrind") and HEADER.exists() and compiler):
        rows.append({"what": "valgrind --tool=callgrind", "answer": "not here, or without its headers or a C compiler"})
        return {"Counters": rows}
    rows.append({"what": "valgrind --tool=callgrind", "answer": "counts: see below"})
    return {"Counters": rows, "Instructions of the gate's two halves under callgrind": _callgrind(compiler)}


def _perf_event(kind: int, number: int) -> str:
    """Try to open a counter of this process."""
    attribute = bytearray(ATTRIBUTE_BYTES)
    struct.pack_into("IIQ", attribute, 0, kind, ATTRIBUTE_BYTES, number)
    struct.pack_into("Q", attribute, 40, DISABLED)
    libc = ctypes.CDLL(None, use_errno=True)
    opened = libc.syscall(PERF_EVENT_OPEN, (ctypes.c_char * ATTRIBUTE_BYTES).from_buffer(attribute), 0, -1, -1, 0)
    if opened < 0:
        return os.strerror(ctypes.get_errno())
    os.close(opened)
    return "counts"


def _callgrind(compiler: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="stream-vae-counts-") as name:
        folder = Path(name)
        (folder / "marks.c").write_text(MARKS, encoding="utf-8")
        library = ["-shared", "-fPIC", "-O1", "-o", str(folder / "marks.so"), str(folder / "marks.c")]
        subprocess.run([compiler, *library], check=True)
        (folder / "packets").mkdir()
        for number, each in enumerate(simulate_packets(gate.ALERTS, seed=1, shape="ztf")):
            (folder / "packets" / f"{number:04d}").write_bytes(each.packet)
        environment = os.environ | NUMBA | {"NUMBA_CACHE_DIR": str(folder / "numba"), "PYTHONHASHSEED": "0"}
        run = [sys.executable, "-m", "alternatives.counts", str(folder)]
        subprocess.run([*run, "compile"], check=True, env=environment)
        found = []
        for process in range(PROCESSES):
            out = folder / f"out{process}"
            out.mkdir()
            tool = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}/counts"]
            subprocess.run([*tool, *run, "count"], check=True, env=environment, capture_output=True)
            dumps = (TOTALS.search(path.read_text(encoding="utf-8", errors="replace")) for path in out.iterdir())
            found.append({each[1]: int(each[2]) / gate.BATCH for each in dumps if each})
        return [_row(f"process {number + 1}", counts) for number, counts in enumerate(found)]


def _row(name: str, counts: dict[str, float]) -> dict[str, Any]:
    path = [counts[f"path-{turn}"] for turn in range(ROUNDS)]
    calls = [counts[f"calls-{turn}"] for turn in range(ROUNDS)]
    return {
        "run": name,
        "path, instructions/alert": Spread.of(path),
        "library calls": Spread.of(calls),
        "ratio": Spread.of([one / other for one, other in zip(path, calls, strict=True)]),
        "range of the path, %": 100 * (max(path) / min(path) - 1),
        "median ratio": f"{median(one / other for one, other in zip(path, calls, strict=True)):.4f}",
    }


def _count(folder: Path, *, marked: bool) -> None:
    """Run the gate's halves; under callgrind each turn's instructions go into a file of their own."""
    marks = ctypes.CDLL(str(folder / "marks.so"))
    packets = [path.read_bytes() for path in sorted((folder / "packets").iterdir())]
    with tempfile.TemporaryDirectory(dir=folder) as work:
        case = gate.Case(1, packets, Path(work))
    settle_memory()  # as the gate does
    rows = list(range(gate.BATCH))  # the same each time: what differs then is not the work
    for turn in range(-BATCHES_BEFORE, ROUNDS):
        for name, half in (("path", case._path), ("calls", case._calls)):
            marks.begin()
            half(rows)
            if marked and turn >= 0:
                marks.end(f"{name}-{turn}".encode())


if __name__ == "__main__":
    _count(Path(sys.argv[1]), marked=sys.argv[2] == "count")
