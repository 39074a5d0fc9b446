"""What stream_vae costs and how fast it is, Kafka to Kafka, measured in one run; some 25 minutes on two cores.

    .venv/bin/python tests/bench/run.py [--only cost,growth] [--alerts 4000] [--repeats 5] [--json OUT]

The parts, one after the other, each with a real Apache Kafka of its own:

    cost      CPU time, rate and memory of stream_vae, the usual way and the floor, by kind of input
    growth    the same of stream_vae and the floor, by batch size and number of partitions
    latency   from Kafka to Kafka through a fleet of two, at 200 alerts a second and in a burst of 40,000
    scaling   what two workers do against one

README.md beside this file says what is measured and how to read it.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import burst  # noqa: E402 - needs the path above
import corpus  # noqa: E402
import cost  # noqa: E402
import scaling  # noqa: E402
import sizes  # noqa: E402
from report import save, terminal  # noqa: E402
from rich.console import Console, RenderableType  # noqa: E402
from runner import Cores  # noqa: E402

from servers import MissingServiceError  # noqa: E402

RESULTS = HERE / "results"


@dataclass(frozen=True)
class Part:
    """One question that the benchmark answers."""

    measure: Callable[[argparse.Namespace, Path, Console], Any]
    show: Callable[[Any], Iterator[RenderableType]]


def _cost(options: argparse.Namespace, work: Path, console: Console) -> Any:
    cases = [cost.Case(survey, cutouts) for survey in options.survey or ["ztf"] for cutouts in options.cutouts or [1]]
    if not options.survey and not options.cutouts:
        cases = [case for case in cost.EVERYTHING if corpus.can_be_had(case.survey)]
    given = _given(alerts=options.alerts, rounds=options.repeats, ways=options.ways)
    return cost.measure(
        work, cost.Plan(cases, partitions=options.partitions, settings=options.settings, **given), console
    )


def _growth(options: argparse.Namespace, work: Path, console: Console) -> Any:
    given = _given(survey=_survey(options), alerts=options.alerts, rounds=options.repeats)
    return sizes.measure(work, sizes.Plan(settings=options.settings, **given), console)


def _latency(options: argparse.Namespace, work: Path, _: Console) -> Any:
    plan = burst.Plan(**_given(survey=_survey(options)))
    return burst.measure(work, plan if options.alerts is None else plan.lessened(options.alerts))


def _scaling(options: argparse.Namespace, work: Path, _: Console) -> Any:
    given = _given(survey=_survey(options), alerts=options.alerts, rounds=options.repeats)
    return scaling.measure(work, scaling.Plan(**given))


PARTS = {
    "cost": Part(_cost, cost.show),
    "growth": Part(_growth, sizes.show),
    "latency": Part(_latency, burst.show),
    "scaling": Part(_scaling, scaling.show),
}


def _survey(options: argparse.Namespace) -> str | None:
    return options.survey[0] if options.survey else None


def _given(**options: Any) -> dict[str, Any]:
    """Leave to a part's plan what was not asked for."""
    return {name: value for name, value in options.items() if value is not None}


def machine() -> dict[str, Any]:
    """Describe where this ran."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def _setting(text: str) -> tuple[str, str, Any]:
    key, _, value = text.partition("=")
    section, _, name = key.partition(".")
    return section, name, json.loads(value)


def _parts(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(PARTS):
        raise argparse.ArgumentTypeError(
            f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}"
        )
    return [name for name in PARTS if name in text.split(",")]


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        type=_parts,
        metavar="PARTS",
        help=f"of {','.join(PARTS)} (all; cost alone if --survey, --cutouts or --ways is given)",
    )
    parser.add_argument(
        "--alerts",
        type=int,
        help="messages a run (cost 4000, growth 3000, scaling 12000), in the burst and before it (40000)",
    )
    parser.add_argument("--repeats", type=int, help="rounds (cost 5, growth 3, scaling 3)")
    parser.add_argument("--partitions", type=int, default=4, help="of each topic, in cost (4)")
    parser.add_argument(
        "--survey",
        action="append",
        help="ztf, ztf_wire, lsst, lsst_wire, pgir; may be repeated, for cost; other parts take the first",
    )
    parser.add_argument(
        "--cutouts",
        type=int,
        action="append",
        choices=(1, 2, 3),
        help="may be repeated, for cost (1); with no --survey and no --cutouts: "
        + "; ".join(case.name for case in cost.EVERYTHING),
    )
    parser.add_argument(
        "--ways",
        type=lambda text: text.split(","),
        help="which to run, for cost, in this order (stream_vae,usual,floor); exactly_once too",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=JSON", help="another setting, in cost and growth"
    )
    parser.add_argument("--json", type=Path, help="where to write the results (tests/bench/results/TIME.json)")
    options = parser.parse_args()
    if options.only is None:
        options.only = ["cost"] if options.survey or options.cutouts or options.ways else list(PARTS)
    options.settings = {}
    for section, name, value in map(_setting, options.set):
        options.settings.setdefault(section, {})[name] = value
    return options


def main() -> None:
    """Measure part by part; print tables, and write JSON after each."""
    options, console = arguments(), terminal()
    path = options.json or RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    document: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["tests/bench/run.py", *sys.argv[1:]]),
        "machine": machine(),
        "broker_on_its_own_core": Cores.choose().broker is not None and "KAFKA_BOOTSTRAP" not in os.environ,
    }
    missing = []
    for name in options.only:
        console.rule(f"{name}, since {datetime.now(UTC):%H:%M} UTC")
        try:
            with tempfile.TemporaryDirectory(prefix="stream-vae-bench-") as work:
                document[name] = PARTS[name].measure(options, Path(work), console)
        except MissingServiceError as error:
            console.print(f"{name} cannot be measured: {error}", style="red", markup=False)
            missing.append(name)
            continue
        console.print(*PARTS[name].show(document[name]), sep="\n")
        save(document, path)
    if len(missing) < len(options.only):
        console.print(f"Written to {path}")
    if missing:
        raise SystemExit(f"Not measured, for want of a service: {', '.join(missing)}.")


if __name__ == "__main__":
    main()
