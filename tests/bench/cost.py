"""What an alert costs, case by case: all ways in turn, round by round."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import summary
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from runner import Kind, Overrides, Runner, runner

SHARE_OF_USUAL = 4
"""The usual way takes a quarter of the alerts: its cost an alert does not depend on their number, and time is dear."""


@dataclass(frozen=True)
class Case:
    """One kind of input and release."""

    survey: str
    """With `_wire` behind it: in Confluent's wire format."""
    cutouts: int

    @property
    def name(self) -> str:
        return f"{self.survey}, {self.cutouts} cutout{'s' * (self.cutouts > 1)}"


EVERYTHING = (Case("ztf", 1), Case("ztf", 3), Case("ztf_wire", 1), Case("lsst", 1), Case("lsst_wire", 1))
"""What is measured if nothing is asked for; LSST's alerts cannot be simulated."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    cases: Sequence[Case]
    ways: Sequence[str] = ("stream_vae", "usual", "floor")
    alerts: int = 4000
    rounds: int = 5
    partitions: int = 4
    settings: Overrides = field(default_factory=dict)


def measure(work: Path, plan: Plan, console: Console) -> list[dict[str, Any]]:
    """Measure all cases."""
    with runner(work) as ways, Progress(console=console, transient=True) as progress:
        return [_measure(ways, case, work / case.name, plan, progress) for case in plan.cases]


def _measure(ways: Runner, case: Case, folder: Path, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Run every way once a round, in turn."""
    kind = Kind.make(case.survey, case.cutouts, folder)
    numbers = dict.fromkeys(plan.ways, plan.alerts)
    if "usual" in numbers:
        numbers["usual"] = max(1, plan.alerts // SHARE_OF_USUAL)
    task = progress.add_task(f"{case.name}: filling topics", total=plan.rounds * len(numbers))
    backlogs = {count: ways.fill(kind, plan.partitions, count) for count in set(numbers.values())}
    rounds = []
    for number in range(plan.rounds):
        done = {}
        for way, count in numbers.items():
            progress.update(task, description=f"{case.name}: round {number + 1}, {way}")
            done[way] = ways.run(way, kind, backlogs[count], plan.settings)
            progress.advance(task)
        rounds.append(done)
    ways.empty(backlogs.values())
    return {"case": asdict(case) | kind.about(), "rounds": rounds, "summary": summary.summarise(rounds)}


def show(results: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """Show what was measured."""
    for result in results:
        yield from _tables(result)


def _tables(result: dict[str, Any]) -> Iterator[Table]:
    rounds = result["rounds"]
    case = result["case"]
    table = Table(
        title=f"{case['survey']}, {case['cutouts']} cutout(s): {case['packets']}, "
        f"{case['mean_packet_bytes'] / 1e3:.1f} kB, {len(rounds)} rounds",
        caption="medians; the range over the rounds in grey; ratios are taken within each round",
    )
    for column in ("way", "CPU us/alert", "user", "sys", "over stream_vae", "over floor", "alerts/s", "peak MB"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way in rounds[0]:
        ratios = [summary.ratio(rounds, way, to).show(2) if to in rounds[0] else "" for to in ("stream_vae", "floor")]
        table.add_row(
            way,
            summary.spread(rounds, way, "cpu_us").show(),
            f"{summary.spread(rounds, way, 'user_s').median:,.0f}",
            f"{summary.spread(rounds, way, 'system_s').median:,.0f}",
            *ratios,
            summary.spread(rounds, way, "alerts_per_s").show(),
            f"{summary.spread(rounds, way, 'peak_rss_bytes').median / 1e6:,.0f}",
        )
    yield table
    if "stream_vae" in rounds[0]:
        parts = Table(title="stream_vae's CPU time by stage")
        parts.add_column("stage")
        parts.add_column("us/alert", justify="right")
        for name, value in summary.profile(rounds).items():
            parts.add_row(name, value.show(1))
        yield parts
