"""The walk over real records, compiled by numba and by Cython with a C compiler: its cost, and what start-up takes."""

import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stream_vae.alert import Alert
from stream_vae.avro import kernel
from summary import Spread

from alternatives.real_alerts import packets_of, stages_for
from alternatives.rounds import Skipped, Work, compare, interleaved

if TYPE_CHECKING:
    from stream_vae.layout import Layout

SOURCE = Path(__file__).with_name("walk_each.pyx")
FLAGS = {"any x86-64": ["-O3"], "this processor": ["-O3", "-march=native"]}
"""As a wheel would be built, and as numba does."""
SURVEYS = ("ztf", "lsst")
LEAST_RECORDS = 500
"""Walked in a turn."""
STARTS = {
    "numba and the walk, compiled earlier": "from stream_vae.avro import walker; walker.warm_up()",
    "of it, importing the walk": "from stream_vae.avro import walker",
    "of it, importing numba": "import numba",
    "Cython's extension": "import numpy, walk_each",
}
STARTS_TIMED = 5
CLOCK = "import time; before = time.process_time(); {}; print(time.process_time() - before)"


def measure(options: Namespace) -> dict[str, list[dict[str, Any]]]:
    """Tables by title."""
    with tempfile.TemporaryDirectory(prefix="stream-vae-alternatives-") as name:
        extensions = {target: build(Path(name) / str(at), flags) for at, (target, flags) in enumerate(FLAGS.items())}
        tables = {}
        for survey in SURVEYS:
            alerts = stages_for(survey).decoder.decode(packets_of(survey)).alerts
            batches = _batches(alerts)
            ways: dict[str, Work] = {"numba": partial(_walk, kernel.walk_each, batches)}
            for target, path in extensions.items():
                ways[f"Cython, for {target}"] = partial(_walk, _load(path).walk_each, batches)
            found = [_results(way, batches) for way in ways.values()]
            for other in found[1:]:
                assert all(map(np.array_equal, found[0], other))
            times = -(-LEAST_RECORDS // len(alerts))
            many = {way: partial(_repeat, work, times) for way, work in ways.items()}
            rows = compare(interleaved(many, options.rounds), times * len(alerts), "record")
            tables[f"Walk over {len(alerts)} real {survey} records: spans are the same"] = rows
        tables["CPU time of a start, in a process of its own"] = _starts(extensions["any x86-64"].parent)
    return tables


def build(folder: Path, flags: Sequence[str]) -> Path:
    """Compile the extension in a folder."""
    if not (shutil.which("cc") or shutil.which("gcc")):
        raise Skipped("there is no C compiler")
    try:
        from Cython.Build import cythonize
        from setuptools import Distribution, Extension
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed") from error
    folder.mkdir()
    source = shutil.copy(SOURCE, folder)
    modules = cythonize([Extension("walk_each", [source], extra_compile_args=list(flags))], quiet=True)
    command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    command.run()
    return next(folder.glob("walk_each*.so"))


def _load(path: Path) -> Any:
    spec = spec_from_file_location("walk_each", path, loader=ExtensionFileLoader("walk_each", str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _batches(alerts: Sequence[Alert]) -> list[tuple[Any, ...]]:
    """Arguments of a call, one for each writer schema, and room for what it gives."""
    of_layout: dict[Layout, list[Alert]] = {}
    for alert in alerts:
        of_layout.setdefault(alert.layout, []).append(alert)
    return [
        (
            np.array([alert.frame.address for alert in group], np.uintp),
            np.array([len(alert.frame.body) for alert in group], np.int64),
            layout.plan._table,
            np.empty((len(group), len(layout.plan.paths), 2), np.int64),
            np.empty(len(group), np.int64),
        )
        for layout, group in of_layout.items()
    ]


def _walk(walk_each: Any, batches: Sequence[tuple[Any, ...]]) -> None:
    for batch in batches:
        walk_each(*batch)


def _results(work: Work, batches: Sequence[tuple[Any, ...]]) -> list[Any]:
    for *_, spans, ends in batches:
        spans.fill(-2)
        ends.fill(-2)
    work()
    return [array.copy() for *_, spans, ends in batches for array in (spans, ends)]


def _repeat(work: Work, times: int) -> None:
    for _ in range(times):
        work()


def _starts(extension: Path) -> list[dict[str, Any]]:
    found: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(STARTS_TIMED):
        for name, code in STARTS.items():
            run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(extension)!r}); " + CLOCK.format(code)]
            found[name].append(float(subprocess.run(run, check=True, capture_output=True).stdout))
    return [{"what": name, "ms": Spread.of([1e3 * value for value in values])} for name, values in found.items()]
