"""How an alert's cost grows or falls with the batch's size and the number of partitions: stream_vae and the floor.

Each size is a setting of its own with all else at its default; sizes take turns within each round.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import summary
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from runner import Kind, Overrides, runner

WAYS = ("stream_vae", "floor")
MAX_ALERTS, PARTITIONS = 128, 4
"""The default of `batch.max_alerts`, and the partitions of every other part."""


@dataclass(frozen=True)
class Size:
    """Of a batch and of the topics."""

    max_alerts: int = MAX_ALERTS
    partitions: int = PARTITIONS


BATCHES = tuple(Size(max_alerts=number) for number in (16, 64, MAX_ALERTS, 512))
TOPICS = tuple(Size(partitions=number) for number in (1, PARTITIONS, 16))


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    survey: str = "ztf"
    alerts: int = 3000
    rounds: int = 3
    settings: Overrides = field(default_factory=dict)

    def settings_of(self, size: Size) -> Overrides:
        return self.settings | {"batch": self.settings.get("batch", {}) | {"max_alerts": size.max_alerts}}


def measure(work: Path, plan: Plan, console: Console) -> dict[str, Any]:
    """Run both ways with every size once a round."""
    sizes = tuple(dict.fromkeys((*BATCHES, *TOPICS)))
    with runner(work) as ways, Progress(console=console, transient=True) as progress:
        task = progress.add_task("filling topics", total=plan.rounds * len(sizes) * len(WAYS))
        kind = Kind.make(plan.survey, 1, work)
        backlogs = {number: ways.fill(kind, number, plan.alerts) for number in {size.partitions for size in sizes}}
        rounds: dict[Size, list[dict[str, Any]]] = {size: [] for size in sizes}
        for number in range(plan.rounds):
            for size, found in rounds.items():
                progress.update(task, description=f"round {number + 1}: {size}")
                backlog, settings = backlogs[size.partitions], plan.settings_of(size)
                found.append({way: ways.run(way, kind, backlog, settings) for way in WAYS})
                progress.advance(task, len(WAYS))
    results = [
        {"size": asdict(size), "rounds": found, "summary": summary.summarise(found)} for size, found in rounds.items()
    ]
    return {"survey": plan.survey, **kind.about(), "sizes": results}


def show(result: dict[str, Any]) -> Iterator[Table]:
    """Show what was measured."""
    found = {Size(**each["size"]): each["rounds"] for each in result["sizes"]}
    about = f"{result['packets']}, {result['mean_packet_bytes'] / 1e3:.1f} kB"
    yield _table(f"{about}, {PARTITIONS} partitions", "batch.max_alerts", {s.max_alerts: found[s] for s in BATCHES})
    yield _table(f"{about}, batch.max_alerts {MAX_ALERTS}", "partitions", {s.partitions: found[s] for s in TOPICS})


def _table(title: str, what: str, found: dict[int, Sequence[dict[str, Any]]]) -> Table:
    table = Table(title=title, caption="medians; the range over the rounds in grey; ratios are taken within each round")
    for column in (what, "way", "CPU us/alert", "over floor", "alerts/s", "peak MB"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for number, rounds in found.items():
        for way in WAYS:
            table.add_row(
                f"{number}" if way == WAYS[0] else "",
                way,
                summary.spread(rounds, way, "cpu_us").show(),
                summary.ratio(rounds, way, "floor").show(2),
                summary.spread(rounds, way, "alerts_per_s").show(),
                f"{summary.spread(rounds, way, 'peak_rss_bytes').median / 1e6:,.0f}",
            )
    return table
