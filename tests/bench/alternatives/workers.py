"""One thread, two threads and two processes: alerts a second of wall time, and what an alert costs in CPU time.

Each worker has stages of its own and goes over the same real ZTF alerts in batches of 128. In a round each way takes
its turn for the same number of batches a worker; other work on the machine moves wall time more than anything measured.
"""

import multiprocessing
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import cycle, islice
from multiprocessing.connection import Connection
from typing import Any

from stream_vae.alert import Packet
from stream_vae.metrics import Metrics
from stream_vae.pipeline import enriched
from stream_vae.runtime.process import settle_memory

from alternatives.real_alerts import packets_of, stages_for
from alternatives.rounds import Spread

BATCH = 128
BATCHES = 60
"""Of one worker in a turn: half a second."""
WARM_UP = 5
Turn = tuple[float, float]
"""Seconds of wall and of CPU time."""
Way = Callable[[], Turn]


class _Path:
    """What one worker does with its batches."""

    def __init__(self, packets: Sequence[Packet], work: str) -> None:
        self._stages, self._metrics, self._work = stages_for("ztf"), Metrics("ztf"), work
        endless = cycle(packets)
        self._batches = [list(islice(endless, BATCH)) for _ in range(BATCHES)]
        self.go(WARM_UP)
        settle_memory()

    def go(self, batches: int = BATCHES) -> None:
        for batch in self._batches[:batches]:
            if self._work == "whole path":
                enriched(batch, self._stages, self._metrics)
            else:
                self._stages.stamper.cut(self._stages.decoder.decode(batch).alerts)


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

    def turn(self) -> Turn:
        before = time.perf_counter()
        for pipe in self._pipes:
            pipe.send(True)
        cpu = sum(pipe.recv() for pipe in self._pipes)
        return time.perf_counter() - before, cpu

    def __exit__(self, *_: object) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(False)
            process.join()


def _serve(pipe: Connection, work: str) -> None:
    path = _Path(packets_of("ztf"), work)
    pipe.send(0.0)
    while pipe.recv():
        before = time.process_time()
        path.go()
        pipe.send(time.process_time() - before)


def measure(options: Namespace) -> dict[str, list[dict[str, Any]]]:
    """Tables by title."""
    packets, tables = packets_of("ztf"), {}
    for work in ("decoder and stamper", "whole path"):
        paths = [_Path(packets, work) for _ in range(2)]
        with ExitStack() as stack:
            processes = stack.enter_context(_Processes(2, work))
            ways: dict[str, tuple[int, Way]] = {
                "1 thread": (1, lambda paths=paths: _threads(paths[:1])),
                "2 threads": (2, lambda paths=paths: _threads(paths)),
                "2 processes": (2, processes.turn),
            }
            turns = {name: [] for name in ways}
            for _ in range(options.rounds):
                for name, (_, way) in ways.items():
                    turns[name].append(way())
        tables[f"{work[0].upper()}{work[1:]} for real ZTF alerts, {BATCH} a batch"] = [
            _row(name, ways[name][0] * BATCHES * BATCH, found, turns["1 thread"]) for name, found in turns.items()
        ]
    return tables


def _threads(paths: Sequence[_Path]) -> Turn:
    threads = [threading.Thread(target=path.go) for path in paths]
    wall, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - wall, time.process_time() - cpu


def _row(name: str, alerts: int, turns: Sequence[Turn], one: Sequence[Turn]) -> dict[str, Any]:
    single = BATCHES * BATCH
    pairs = list(zip(turns, one, strict=True))
    return {
        "way": name,
        "alerts/s": Spread.of([alerts / wall for wall, _ in turns]),
        "rate / one thread's": Spread.of([alerts / wall / (single / alone[0]) for (wall, _), alone in pairs]),
        "CPU us/alert": Spread.of([1e6 * cpu / alerts for _, cpu in turns]),
        "CPU / one thread's": Spread.of([cpu / alerts / (alone[1] / single) for (_, cpu), alone in pairs]),
    }
