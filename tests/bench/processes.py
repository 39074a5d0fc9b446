"""Who uses what: processes by the part that they play, and what each holds and has used of the machine."""

import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

WORKER = "ray::WorkerActor"
IDLE = "ray::IDLE"


@dataclass(frozen=True)
class Reading:
    """One process at one moment."""

    cpu_s: float
    """User and system time since it began, all threads."""
    threads: int
    descriptors: int = 0
    rss_bytes: int = 0
    uss_bytes: int = 0
    """What would be free if it ended: its own pages, not those that it shares."""


class Household:
    """A fleet's processes below its supervisor, and others beside it, each under a name that lasts.

    Workers and Ray's helpers are numbered in the order in which they are first seen: a worker that is started anew
    comes under a new name.
    """

    def __init__(self, supervisor: int, others: Mapping[str, int]) -> None:
        self._supervisor = psutil.Process(supervisor)
        self._fixed = {psutil.Process(pid): name for name, pid in others.items()} | {self._supervisor: "supervisor"}
        self._numbered: dict[tuple[psutil.Process, str], str] = {}
        self._seen: Counter[str] = Counter()
        self._last: dict[str, Reading] = {}

    def read(self, *, memory: bool = False) -> dict[str, Reading]:
        """Look at all of them; one that ended is as it was last. Memory and descriptors take some milliseconds each."""
        for process, name in self._named():
            with suppress(psutil.NoSuchProcess):
                self._last[name] = _reading(process, memory=memory)
        return dict(self._last)

    def workers(self) -> list[psutil.Process]:
        """Give the workers' processes that there are."""
        return [process for process, name in self._named() if name.startswith("worker")]

    def _named(self) -> Iterator[tuple[psutil.Process, str]]:
        yield from self._fixed.items()
        with suppress(psutil.NoSuchProcess):
            for process in self._supervisor.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if (kind := _kind(process)) is not None:
                        yield process, self._name(process, kind)

    def _name(self, process: psutil.Process, kind: str) -> str:
        """Name it by what it is now: Ray's processes take other titles when they are given something to do."""
        if (process, kind) not in self._numbered:
            self._seen[kind] += 1
            alone = self._seen[kind] == 1 and kind != "worker"
            self._numbered[process, kind] = kind if alone else f"{kind} {self._seen[kind]}"
        return self._numbered[process, kind]


def _kind(process: psutil.Process) -> str | None:
    """Tell what a process below the supervisor is; None of one that only starts or has nothing to do."""
    title: str = (process.cmdline() or [process.name()])[0]
    if title.startswith(WORKER):
        return "worker"
    if title.startswith(IDLE):
        return None
    if title.startswith("ray::"):
        return "Ray " + title.removeprefix("ray::").split()[0]
    name: str = process.name()
    if not name.startswith("python"):
        return f"Ray {name}"
    scripts: list[str] = [part for part in process.cmdline() if part.endswith(".py")]
    started = scripts and "default_worker" not in scripts[0]
    return "Ray " + scripts[0].rsplit("/", 1)[-1].removesuffix(".py") if started else None


def _reading(process: psutil.Process, *, memory: bool) -> Reading:
    times = process.cpu_times()
    cpu_s = float(times.user + times.system)
    if not memory:
        return Reading(cpu_s, process.num_threads())
    held = process.memory_full_info()
    return Reading(cpu_s, process.num_threads(), process.num_fds(), held.rss, held.uss)


def child(*names: str) -> int | None:
    """Find a process that was started here by its name: a server whose helper does not tell its id."""
    for process in psutil.Process().children():
        if process.name() in names:
            return int(process.pid)
    return None


@contextmanager
def on_cores(cores: Collection[int]) -> Iterator[None]:
    """Keep this thread on some cores; what it starts meanwhile inherits them and stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Cores:
    """CPU time of a set of cores: all that ran, and what lay idle; time that the host took is in neither."""

    busy_s: float
    idle_s: float
    disk_s: float
    """Of the idle time: while something waited for a disk."""

    @classmethod
    def read(cls, cores: set[int]) -> "Cores":
        times = [each for core, each in enumerate(psutil.cpu_times(percpu=True)) if core in cores]
        return cls(
            busy_s=sum(each.user + each.nice + each.system + each.irq + each.softirq for each in times),
            idle_s=sum(each.idle + each.iowait for each in times),
            disk_s=sum(each.iowait for each in times),
        )

    def since(self, before: "Cores") -> "Cores":
        return Cores(self.busy_s - before.busy_s, self.idle_s - before.idle_s, self.disk_s - before.disk_s)


@dataclass(frozen=True)
class Moment:
    """CPU time of everything at one time."""

    at: float
    """On the monotonic clock."""
    processes: Mapping[str, Reading]
    machine: Cores

    @classmethod
    def of(cls, household: Household, cores: set[int]) -> "Moment":
        return cls(time.monotonic(), household.read(), Cores.read(cores))

    def since(self, before: "Moment") -> "Span":
        none = Reading(0, 0)
        used = {
            name: reading.cpu_s - before.processes.get(name, none).cpu_s for name, reading in self.processes.items()
        }
        return Span(self.at - before.at, used, self.machine.since(before.machine))


@dataclass(frozen=True)
class Span:
    """What happened between two moments."""

    wall_s: float
    cpu_s: Mapping[str, float]
    machine: Cores

    def of(self, kind: str) -> float:
        """CPU seconds of all processes whose names begin so."""
        return sum(seconds for name, seconds in self.cpu_s.items() if name.startswith(kind))

    @property
    def parts_s(self) -> dict[str, float]:
        """Where the machine's time went, by kind of process; what is nobody's here is `other`."""
        parts = {kind: self.of(kind) for kind in ("worker", "broker", "generator", "supervisor", "Ray", "this program")}
        return parts | {"other": max(self.machine.busy_s - sum(parts.values()), 0.0), "idle": self.machine.idle_s}
