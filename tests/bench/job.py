"""What one process of the benchmark is told, and what it measures of itself.

CPU time counts from the moment before the consumer subscribes until it has left its group, over all threads of the
process: fetching ahead, acknowledgements and commits are in it. Start-up is not: the interpreter, imports, compilation
and the first sight of each schema lie before, because every way goes once over all distinct packets in memory.
"""

import json
import resource
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

from stream_vae.settings import Settings


@dataclass(frozen=True)
class Job:
    """One run of one way."""

    way: str
    survey: str
    bootstrap_servers: str
    input_topic: str
    output_topic: str
    dead_letter_topic: str
    group_id: str
    alerts: int
    corpus: str
    store: str
    core: int | None
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings by section, for trying others than the defaults."""

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Job":
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def settings(self) -> Settings:
        """The settings as a user would have them: all that is not named here is the default."""
        sections: dict[str, dict[str, Any]] = {
            "kafka": {
                "bootstrap_servers": self.bootstrap_servers,
                "input_topics": [self.input_topic],
                "output_topic": self.output_topic,
                "dead_letter_topic": self.dead_letter_topic,
                "group_id": self.group_id,
            },
            "release": {"store": self.store},
        }
        for name, values in self.overrides.items():
            sections[name] = sections.get(name, {}) | values
        return Settings(survey=self.survey, **sections)  # type: ignore[arg-type]


class Meter:
    """CPU time, wall clock, page faults and memory of this process between `start` and `stop`."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.last = 0.0

    def start(self) -> None:
        self._thread = thread_time()
        self._usage = resource.getrusage(resource.RUSAGE_SELF)

    def batch(self, began: float) -> None:
        """Note a batch that was read at `began` or later, for the rate."""
        self.first = began if self.first is None else self.first
        self.last = perf_counter()

    def stop(self) -> dict[str, float]:
        usage, before = resource.getrusage(resource.RUSAGE_SELF), self._usage
        assert self.first is not None, "nothing was read"
        user, system = usage.ru_utime - before.ru_utime, usage.ru_stime - before.ru_stime
        return {
            "cpu_s": user + system,
            "user_s": user,
            "system_s": system,
            "main_thread_s": thread_time() - self._thread,
            "wall_s": self.last - self.first,
            "page_faults": usage.ru_minflt - before.ru_minflt,
            "context_switches": usage.ru_nvcsw - before.ru_nvcsw,
            "peak_rss_bytes": peak_rss_bytes(),
        }


def peak_rss_bytes(process: int | None = None) -> int:
    """Peak resident memory of this process or another; ru_maxrss would count the parent's pages from before exec."""
    status = Path("/proc") / str(process or "self") / "status"
    for line in status.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no VmHWM in {status}")
