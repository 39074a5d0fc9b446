"""From runs to numbers: medians over the rounds, their spread, and ratios within each round."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Run = dict[str, Any]
WAYS = ("stream_vae", "exactly_once", "usual", "floor")


@dataclass(frozen=True)
class Spread:
    """A median and the extremes beside it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))

    def show(self, digits: int = 0, unit: str = "") -> str:
        return f"{self.median:,.{digits}f}{unit} [dim]{self.low:,.{digits}f}..{self.high:,.{digits}f}[/]"


def cpu_us(run: Run) -> float:
    return float(run["cpu_s"]) / run["alerts"] * 1e6


def spread(rounds: Sequence[dict[str, Run]], way: str, value: str) -> Spread:
    """One measured value of one way; ``cpu_us``, ``alerts_per_s``, or a key of the runs per alert in us or as it is."""
    runs = [each[way] for each in rounds]
    if value == "cpu_us":
        return Spread.of([cpu_us(run) for run in runs])
    if value == "alerts_per_s":
        return Spread.of([run["alerts"] / run["wall_s"] for run in runs])
    if value.endswith("_s"):
        return Spread.of([run[value] / run["alerts"] * 1e6 for run in runs])
    return Spread.of([run[value] for run in runs])


def ratio(rounds: Sequence[dict[str, Run]], way: str, to: str) -> Spread:
    """CPU time an alert of one way over that of another, each pair from the same round."""
    return Spread.of([cpu_us(each[way]) / cpu_us(each[to]) for each in rounds])


def profile(rounds: Sequence[dict[str, Run]]) -> dict[str, Spread]:
    """Where stream_vae's CPU time goes, us an alert: stages, the rest of the main thread, librdkafka's threads."""
    runs = [each["stream_vae"] for each in rounds]
    parts: dict[str, list[float]] = {}
    for run in runs:
        stages = dict(run["stages"])
        stages["consume, settle, commit (rest of the main thread)"] = run["main_thread_s"] - sum(stages.values())
        stages["librdkafka's own threads"] = run["cpu_s"] - run["main_thread_s"]
        for name, seconds in stages.items():
            parts.setdefault(name, []).append(seconds / run["alerts"] * 1e6)
    return {name: Spread.of(values) for name, values in parts.items()}


def summarise(rounds: Sequence[dict[str, Run]]) -> dict[str, Any]:
    """Everything above as plain numbers, for the JSON file."""

    def plain(value: Spread) -> list[float]:
        return [value.median, value.low, value.high]

    present = [way for way in WAYS if way in rounds[0]]
    result: dict[str, Any] = {
        way: {
            name: plain(spread(rounds, way, name))
            for name in ("cpu_us", "alerts_per_s", "user_s", "system_s", "peak_rss_bytes", "page_faults")
        }
        for way in present
    }
    if "stream_vae" in present:
        result["profile_us"] = {name: plain(value) for name, value in profile(rounds).items()}
        for other in present:
            if other != "stream_vae":
                result[f"stream_vae_over_{other}"] = plain(ratio(rounds, "stream_vae", other))
                result[f"{other}_over_stream_vae"] = plain(ratio(rounds, other, "stream_vae"))
    return result
