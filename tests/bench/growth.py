"""Does a process grow? Samples of a run, and medians of two stretches of it compared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

ALLOWED = 0.05
"""Of a median of memory. Only upwards: the kernel takes mapped pages from every process when others need memory."""
Sample = dict[str, Any]
"""What was seen at one time: at_s, and processes by name with the fields of `processes.Reading`."""


@dataclass(frozen=True)
class Windows:
    """What is compared: a stretch after the warm-up with one as long at the end, in seconds of the run."""

    warm_up_s: float
    width_s: float
    end_s: float

    @classmethod
    def of(cls, end_s: float) -> "Windows":
        return cls(min(300.0, end_s / 6), min(600.0, end_s / 4), end_s)

    def first(self, at: float) -> bool:
        return self.warm_up_s <= at < self.warm_up_s + self.width_s

    def last(self, at: float) -> bool:
        return self.end_s - self.width_s <= at <= self.end_s


@dataclass(frozen=True)
class Growth:
    """Medians of one process in the first window and in the last."""

    process: str
    ours: bool
    """A supervisor or worker, which must not grow; else Ray's, a server or this program, which is only told."""
    rss_bytes: tuple[float, float]
    uss_bytes: tuple[float, float]
    descriptors: tuple[float, float]
    threads: tuple[float, float]
    cpu_cores: tuple[float, float]

    def problems(self) -> Iterator[str]:
        for name, (first, last) in {"RSS": self.rss_bytes, "USS": self.uss_bytes}.items():
            if last / first - 1 > ALLOWED:
                yield f"{self.process}: {name} went from {first / 1e6:.1f} to {last / 1e6:.1f} MB"
        for name, (first, last) in {"descriptors": self.descriptors, "threads": self.threads}.items():
            if last > first:
                yield f"{self.process}: {name} went from {first:g} to {last:g}"


def grown(samples: Sequence[Sample], windows: Windows) -> list[Growth]:
    """Compare the two windows for every process that was there in both."""
    first = [each for each in samples if windows.first(each["at_s"])]
    last = [each for each in samples if windows.last(each["at_s"])]
    if len(first) < 2 or len(last) < 2:
        return []
    there = (name for name in last[-1]["processes"] if all(name in each["processes"] for each in (*first, *last)))
    names = sorted(there, key=lambda name: (not is_ours(name), name))

    def medians(name: str, field: str) -> tuple[float, float]:
        one, other = ([each["processes"][name][field] for each in window] for window in (first, last))
        return median(one), median(other)

    def cores(name: str) -> tuple[float, float]:
        spans = [(window[0], window[-1]) for window in (first, last)]
        used = [
            (b["processes"][name]["cpu_s"] - a["processes"][name]["cpu_s"]) / (b["at_s"] - a["at_s"]) for a, b in spans
        ]
        return used[0], used[1]

    fields = ("rss_bytes", "uss_bytes", "descriptors", "threads")
    return [
        Growth(name, is_ours(name), **{field: medians(name, field) for field in fields}, cpu_cores=cores(name))
        for name in names
    ]


def is_ours(process: str) -> bool:
    return process == "supervisor" or process.startswith("worker")
