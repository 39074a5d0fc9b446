"""One thread, two threads and two processes: the rate of all, and what an alert costs in CPU time and waiting.

Each worker has stages of its own and goes over the same real ZTF alerts in batches of 128. Linux says how long a
thread was ready without a core (schedstat): with that taken off, the rate is the one of workers that have a core each,
whatever else runs here. What is neither CPU time nor that is waiting for the interpreter's lock.
"""

import multiprocessing
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from stream_vae.alert import Packet
from stream_vae.metrics import Metrics
from stream_vae.pipeline import enriched
from stream_vae.runtime.process import settle_memory
from summary import Spread

from alternatives.real_alerts import packets_of, stages_for
from alternatives.rounds import Skipped

BATCH = 128
BATCHES = 60
"""Of one worker in a turn: half a second."""
WARM_UP = 5
SCHEDULED = Path("/proc/thread-self/schedstat")


class Turn(NamedTuple):
    """Seconds of one worker's thread in a turn."""

    wall: float
    cpu: float
    without_core: float

    @property
    def with_core(self) -> float:
        return self.wall - self.without_core

    @property
    def blocked(self) -> float:
        return max(self.with_core - self.cpu, 0.0)


Way = Callable[[], list[Turn]]


class _Path:
    """What one worker does with its batches."""

    def __init__(self, packets: Sequence[Packet], work: str) -> None:
        self._stages, self._metrics, self._work = stages_for("ztf"), Metrics("ztf"), work
        endless = cycle(packets)
        self._batches = [list(islice(endless, BATCH)) for _ in range(BATCHES)]
        self.go(WARM_UP)
        settle_memory()

    def go(self, batches: int = BATCHES) -> Turn:
        waited, cpu, wall = _without_core(), time.thread_time(), time.perf_counter()
        for batch in self._batches[:batches]:
            if self._work == "whole path":
                enriched(batch, self._stages, self._metrics)
            else:
                self._stages.stamper.cut(self._stages.decoder.decode(batch).alerts)
        return Turn(time.perf_counter() - wall, time.thread_time() - cpu, _without_core() - waited)


def _without_core() -> float:
    """Seconds in which this thread was ready and had no core, up to now."""
    return int(SCHEDULED.read_text(encoding="ascii").split()[1]) / 1e9


class _Processes(AbstractContextManager["_Processes"]):
    """Workers in processes of their own, which wait for a word."""

    def __init__(self, count: int, work: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, ends = zip(*(context.Pipe() for _ in range(count)), strict=True)
        self._processes = [context.Process(target=_serve, args=(end, work), daemon=True) for end in ends]
        for process in self._processes:
            process.start()
        for pipe in self._pipes:
            pipe.recv()

    def turn(self) -> list[Turn]:
        for pipe in self._pipes:
            pipe.send(True)
        return [pipe.recv() for pipe in self._pipes]

    def __exit__(self, *_: object) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(False)
            process.join()


def _serve(pipe: Connection, work: str) -> None:
    path = _Path(packets_of("ztf"), work)
    pipe.send(None)
    while pipe.recv():
        pipe.send(path.go())


def measure(options: Namespace) -> dict[str, list[dict[str, Any]]]:
    """Tables by title."""
    if not SCHEDULED.exists():
        raise Skipped("this kernel does not say how long a thread waits for a core")
    packets, tables = packets_of("ztf"), {}
    for work in ("decoder and stamper", "whole path"):
        paths = [_Path(packets, work) for _ in range(2)]
        with _Processes(2, work) as processes, ThreadPoolExecutor(2) as pool:
            ways: dict[str, Way] = {
                "1 thread": lambda pool=pool, paths=paths: _threads(pool, paths[:1]),
                "2 threads": lambda pool=pool, paths=paths: _threads(pool, paths),
                "2 processes": processes.turn,
            }
            turns: dict[str, list[list[Turn]]] = {name: [] for name in ways}
            for _ in range(options.rounds):
                for name, way in ways.items():
                    turns[name].append(way())
        tables[f"{work[0].upper()}{work[1:]} for real ZTF alerts, {BATCH} a batch"] = [
            _row(name, found, turns["1 thread"]) for name, found in turns.items()
        ]
    return tables


def _threads(pool: ThreadPoolExecutor, paths: Sequence[_Path]) -> list[Turn]:
    return [future.result() for future in [pool.submit(path.go) for path in paths]]


def _row(name: str, rounds: Sequence[Sequence[Turn]], single: Sequence[Sequence[Turn]]) -> dict[str, Any]:
    alerts = BATCHES * BATCH
    rates = [len(turns) * alerts / max(turn.with_core for turn in turns) for turns in rounds]
    cpu = [mean(turn.cpu for turn in turns) for turns in rounds]
    alone = [turn for (turn,) in single]
    return {
        "way": name,
        "alerts/s, wall": Spread.of([len(turns) * alerts / max(turn.wall for turn in turns) for turns in rounds]),
        "alerts/s, a core each": Spread.of(rates),
        "rate / one thread's": Spread.of([r * one.with_core / alerts for r, one in zip(rates, alone, strict=True)]),
        "CPU us/alert": Spread.of([1e6 * value / alerts for value in cpu]),
        "CPU / one thread's": Spread.of([value / one.cpu for value, one in zip(cpu, alone, strict=True)]),
        "blocked us/alert": Spread.of([1e6 * mean(turn.blocked for turn in turns) / alerts for turns in rounds]),
    }
