"""Ways of doing one thing, measured in turn: times as ratios to the first way's in the same round."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from time import thread_time
from typing import Any

from summary import Spread

Work = Callable[[], object]


class Skipped(Exception):  # noqa: N818 - no error: something that is not installed
    """Why a part was not measured."""


def interleaved(
    ways: Mapping[str, Work], rounds: int, clock: Callable[[], float] = thread_time
) -> dict[str, list[float]]:
    """Seconds of each way in each round; who begins moves on, and the first turn of each is not counted."""
    names, found = list(ways), {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            before = clock()
            ways[name]()
            if turn:
                found[name].append(clock() - before)
    return found


def compare(seconds: Mapping[str, Sequence[float]], units: int, unit: str) -> list[dict[str, Any]]:
    """A row a way: microseconds a unit, and the ratio to the first way's in the same round."""
    first = next(iter(seconds.values()))
    return [
        {
            "way": name,
            f"us/{unit}": Spread.of([1e6 * value / units for value in values]),
            "ratio": Spread.of([value / default for value, default in zip(values, first, strict=True)]),
        }
        for name, values in seconds.items()
    ]


def markdown(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A table; a column that a row lacks stays empty there."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([_text(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join([f"\n**{title}**\n", *("| " + " | ".join(line) + " |" for line in lines)])


def plain(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same for JSON."""
    return [
        {name: asdict(value) if isinstance(value, Spread) else value for name, value in row.items()} for row in rows
    ]


def _text(value: object) -> str:
    if isinstance(value, Spread):
        places = 2 if value.median < 10 else 0
        return f"{value.median:.{places}f} ({value.low:.{places}f} to {value.high:.{places}f})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
