"""Who uses what: processes by the part that they play, and what each holds and has used of the machine."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psutil

WORKER = "ray::WorkerActor"
STARTING = "starting"


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
        self._names = {psutil.Process(pid): name for name, pid in others.items()}
        self._names[self._supervisor] = "supervisor"
        self._seen: Counter[str] = Counter()
        self._last: dict[str, Reading] = {}

    def read(self, *, memory: bool = False) -> dict[str, Reading]:
        """Look at all of them; one that ended is as it was last. Memory and descriptors take some milliseconds each."""
        for process in self._processes():
            try:
                self._last[self._name(process)] = _reading(process, memory=memory)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return dict(self._last)

    def workers(self) -> list[psutil.Process]:
        """Give the workers' processes that there are."""
        return [each for each in self._processes() if self._name(each).startswith("worker")]

    def _processes(self) -> Iterator[psutil.Process]:
        try:
            below = self._supervisor.children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        for process in {*below, *self._names}:
            try:
                known = self._name(process) != STARTING
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if known and process.is_running():
                yield process

    def _name(self, process: psutil.Process) -> str:
        if process not in self._names:
            kind = _kind(process)
            if kind == STARTING:
                return kind
            self._seen[kind] += 1
            alone = self._seen[kind] == 1 and kind != "worker"
            self._names[process] = kind if alone else f"{kind} {self._seen[kind]}"
        return str(self._names[process])


def _kind(process: psutil.Process) -> str:
    """Tell what a process below the supervisor is; Ray's processes take their titles some time after they begin."""
    title: str = (process.cmdline() or [process.name()])[0]
    if title.startswith(WORKER):
        return "worker"
    if title.startswith("ray::"):
        return "Ray " + title.removeprefix("ray::").split()[0].split(".")[0]
    name: str = process.name()
    if name.startswith("python"):
        scripts = [part for part in process.cmdline() if part.endswith(".py")]
        if scripts and "default_worker" not in scripts[0]:
            return "Ray " + scripts[0].rsplit("/", 1)[-1].removesuffix(".py")
        return STARTING
    return f"Ray {name}"


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


@dataclass(frozen=True)
class Cores:
    """CPU time of a set of cores: all that ran, and what lay idle; time that the host took is in neither."""

    busy_s: float
    idle_s: float

    @classmethod
    def read(cls, cores: set[int]) -> "Cores":
        times = [each for core, each in enumerate(psutil.cpu_times(percpu=True)) if core in cores]
        idle = sum(each.idle + each.iowait for each in times)
        return cls(sum(each.user + each.nice + each.system + each.irq + each.softirq for each in times), idle)

    def since(self, before: "Cores") -> "Cores":
        return Cores(self.busy_s - before.busy_s, self.idle_s - before.idle_s)


@dataclass(frozen=True)
class Moment:
    """Everything at one time."""

    at: float
    processes: Mapping[str, Reading]
    machine: Cores

    @classmethod
    def of(cls, household: Household, cores: set[int]) -> "Moment":
        return cls(time.time(), household.read(), Cores.read(cores))

    def cpu_since(self, before: "Moment") -> dict[str, float]:
        """CPU seconds of each process between two moments."""
        none = Reading(0, 0)
        return {
            name: reading.cpu_s - before.processes.get(name, none).cpu_s for name, reading in self.processes.items()
        }
