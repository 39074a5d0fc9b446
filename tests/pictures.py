"""Draw a Grafana dashboard without Grafana: every panel from what a Prometheus holds, one PNG a dashboard.

    python tests/pictures.py http://127.0.0.1:9090 --minutes 60 --survey ztf --out pictures/

Not how Grafana looks, but where it puts things, with the same queries, legends, units and limits: enough to see that a
panel is empty, has the wrong unit, or too much in it.
"""

import argparse
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from monitoring import Prometheus, dashboards, filled

mpl.use("agg")

COLORS = {"green": "#37872d", "yellow": "#e0b400", "red": "#c4162a", "blue": "#1f60c4", "transparent": "none"}
_POINTS = 240
_GRID_INCH = 0.75, 0.36
"""Of a Grafana grid's cell."""
_SERIES_MOST = 14


def draw(
    server: Prometheus, dashboard: Mapping[str, Any], start: float, end: float, file: Path, *, survey: str = "ztf"
) -> None:
    """Draw a dashboard of some time."""
    from matplotlib.figure import Figure

    panels = dashboard["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(24 * _GRID_INCH[0], height * _GRID_INCH[1]), facecolor="#f4f5f5")
    for panel in panels:
        at = panel["gridPos"]
        left, top = at["x"] / 24, 1 - at["y"] / height
        if panel["type"] == "row":
            figure.text(left + 0.004, top - 0.8 / height, panel["title"], fontsize=11, weight="bold")
            continue
        wide, high = at["w"] / 24, at["h"] / height
        edge = 0.9 / height
        axes = figure.add_axes((left + 0.03, top - high + edge, wide - 0.035, high - 2 * edge))
        axes.set_title(panel["title"], fontsize=9, loc="left", pad=3)
        if panel["type"] in {"stat", "table"}:
            axes.set_position((left + 0.004, top - high + 0.2 * edge, wide - 0.008, high - 1.2 * edge))
        _PANELS[panel["type"]](axes, panel, _Source(server, start, end, survey))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=75)


class _Source:
    """What a panel's queries give."""

    def __init__(self, server: Prometheus, start: float, end: float, survey: str) -> None:
        self.start, self.end = start, end
        self._server, self._survey = server, survey
        self._step = max(1.0, (end - start) / _POINTS)

    def _filled(self, target: Mapping[str, Any]) -> str:
        interval, span = f"{max(10, math.ceil(4 * self._step))}s", f"{math.ceil(self.end - self.start)}s"
        return filled(target["expr"], survey=self._survey, interval=interval, span=span)

    def curves(self, panel: Mapping[str, Any]) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """The legend, times and values of each series."""
        found = []
        for target in panel["targets"]:
            query = {"query": self._filled(target), "start": str(self.start), "end": str(self.end)}
            for series in self._server.get("query_range", step=f"{self._step:.3f}", **query)["result"]:
                times, values = np.array(series["values"], dtype=float).T
                found.append((_legend(target, series["metric"]), times - self.start, values))
        return found

    def now(self, target: Mapping[str, Any]) -> list[tuple[dict[str, str], float]]:
        result = self._server.get("query", query=self._filled(target), time=str(self.end))["result"]
        return [(each["metric"], float(each["value"][1])) for each in result]


def _legend(target: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), target["legendFormat"]).strip()


def text_of(value: float, unit: str) -> str:
    """Write a value in its unit, about as Grafana does."""
    if math.isnan(value):
        return "NaN"
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "percent":
        return f"{value:.3g}%"
    if unit == "s":
        for size, name in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "us")):
            if abs(value) >= size or size == 1e-6:
                return f"{value / size:.3g} {name}"
    if unit in {"bytes", "binBps"}:
        power = min(4, int(math.log2(abs(value)) // 10)) if abs(value) >= 1 else 0
        return f"{value / 2 ** (10 * power):.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}{'/s' * (unit == 'binBps')}"
    short = (
        f"{value / 1e6:.3g} M" if abs(value) >= 1e6 else f"{value / 1e3:.3g} K" if abs(value) >= 1e4 else f"{value:.4g}"
    )
    return f"{short}/s" if unit == "cps" else short


def _empty(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, "no data", ha="center", va="center", color="#888888", transform=axes.transAxes)


def _words(panel: Mapping[str, Any]) -> dict[str, Mapping[str, str]]:
    return {
        value: word
        for mapping in panel["fieldConfig"]["defaults"].get("mappings", [])
        for value, word in mapping["options"].items()
    }


def _color(panel: Mapping[str, Any], value: float) -> str:
    color = "blue"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step.get("value") is None or value >= step["value"]:
            color = step["color"]
    return COLORS[color]


def _curves(axes: Any, panel: Mapping[str, Any], source: _Source) -> None:
    curves, defaults = source.curves(panel), panel["fieldConfig"]["defaults"]
    if not curves:
        _empty(axes)
        return
    unit, custom = defaults["unit"], defaults["custom"]
    axes.set_prop_cycle(color=[*mpl.colormaps["tab10"].colors, *mpl.colormaps["Set2"].colors])
    most = [max(values[~np.isnan(values)], default=math.nan) for _, _, values in curves]
    names = [
        f"{name}  {text_of(values[-1], unit)} | {text_of(each, unit)}"
        for each, (name, _, values) in zip(most, curves, strict=True)
    ]
    if custom.get("stacking", {}).get("mode") == "normal":
        times = np.unique(np.concatenate([times for _, times, _ in curves]))
        table = [np.interp(times, own, values, left=0, right=0) for _, own, values in curves]
        axes.stackplot(times, np.nan_to_num(table, posinf=0.0, neginf=0.0), labels=names, alpha=0.7)
    else:
        for name, (_, times, values) in zip(names, curves, strict=True):
            breaks = np.flatnonzero(np.diff(times) > 1.5 * np.min(np.diff(times))) + 1 if len(times) > 1 else []
            axes.plot(np.insert(times, breaks, np.nan), np.insert(values, breaks, np.nan), lw=1, label=name)
            axes.lines[-1].set_drawstyle("steps-post" if custom.get("drawStyle") == "bars" else "default")
    for step in defaults["thresholds"]["steps"]:
        if step.get("value") is not None:
            axes.axhline(step["value"], color=COLORS[step["color"]], lw=0.8, ls="--")
    if defaults.get("min") is not None:
        axes.set_ylim(bottom=defaults["min"])
    axes.set_xlim(0, source.end - source.start)
    axes.yaxis.set_major_formatter(lambda value, _: text_of(value, unit))
    axes.tick_params(labelsize=7)
    box = axes.get_position()
    axes.set_position((box.x0, box.y0, box.width * 0.64, box.height))
    handles, labels = axes.get_legend_handles_labels()
    more = f"and {len(labels) - _SERIES_MOST} more" if len(labels) > _SERIES_MOST else None
    axes.legend(
        *(handles[:_SERIES_MOST], labels[:_SERIES_MOST]),
        title=more or "last | max",
        title_fontsize=6,
        fontsize=6.5,
        loc="upper left",
        bbox_to_anchor=(1.005, 1.03),
        frameon=False,
    )


def _number(axes: Any, panel: Mapping[str, Any], source: _Source) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    (target,) = panel["targets"]
    found = source.now(target)
    if not found:
        text, color = panel["fieldConfig"]["defaults"].get("noValue", "No data"), "#bbbbbb"
    else:
        value = found[0][1]
        word = _words(panel).get(f"{value:g}")
        text = word["text"] if word else text_of(value, panel["fieldConfig"]["defaults"]["unit"])
        color = COLORS[word["color"]] if word else _color(panel, value)
        if panel["options"].get("textMode") == "name":
            text = " ".join(_legend(target, each) for each, _ in found)
    axes.set_facecolor(color)
    size = 20 if len(text) < 12 else 11
    axes.text(0.5, 0.5, text, ha="center", va="center", color="white", fontsize=size, transform=axes.transAxes)


def _states(axes: Any, panel: Mapping[str, Any], source: _Source) -> None:
    curves, words = source.curves(panel), _words(panel)
    if not curves:
        _empty(axes)
        return
    for row, (_, times, values) in enumerate(curves):
        width = np.min(np.diff(times)) if len(times) > 1 else 1.0
        colors = [COLORS[words[f"{value:g}"]["color"]] if f"{value:g}" in words else "#bbbbbb" for value in values]
        axes.barh([row] * len(times), [width * 1.05] * len(times), left=times, color=colors, height=0.8)
    axes.set_yticks(range(len(curves)), [name for name, _, _ in curves], fontsize=7)
    axes.set_xlim(0, source.end - source.start)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=7)
    box = axes.get_position()
    axes.set_position((box.x0 + 0.09, box.y0, box.width - 0.09, box.height))


def _heat(axes: Any, panel: Mapping[str, Any], source: _Source) -> None:
    curves = sorted(source.curves(panel), key=lambda curve: float(curve[0]))
    if not curves:
        _empty(axes)
        return
    times = curves[0][1]
    table = np.array([np.interp(times, own, values) for _, own, values in curves])
    table[1:] -= table[:-1].copy()
    axes.pcolormesh(times, np.arange(len(curves)), table, cmap="YlOrRd", shading="nearest")
    axes.set_yticks(range(len(curves)), [f"up to {name}" for name, _, _ in curves], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)


def _table(axes: Any, panel: Mapping[str, Any], source: _Source) -> None:
    organize = panel["transformations"][-1]["options"]
    columns = sorted(organize["indexByName"], key=organize["indexByName"].__getitem__)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    single = len(panel["targets"]) == 1
    for target in panel["targets"]:
        for labels, value in source.now(target):
            row = rows.setdefault(tuple(labels.get(name, "") for name in columns), dict(labels))
            row["Value" if single else f"Value #{target['refId']}"] = f"{value:.4g}"
    axes.axis("off")
    if not rows:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", color="#888888", transform=axes.transAxes)
        return
    words = {
        value: word["text"]
        for override in panel["fieldConfig"]["overrides"]
        for each in override["properties"]
        if each["id"] == "mappings"
        for value, word in each["value"][0]["options"].items()
    }
    cells = [
        [
            words.get(row.get(name, ""), row.get(name, "")) if name == columns[-1] else row.get(name, "")
            for name in columns
        ]
        for row in rows.values()
    ]
    drawn = axes.table(cells, colLabels=[organize["renameByName"][name] for name in columns], loc="upper left")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)


_PANELS = {"timeseries": _curves, "stat": _number, "state-timeline": _states, "heatmap": _heat, "table": _table}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="of a Prometheus")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--survey", default="ztf")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    given = parser.parse_args()
    end = time.time()
    for name, dashboard in dashboards().items():
        file = given.out / f"{name}.png"
        draw(Prometheus(given.url), dashboard, end - 60 * given.minutes, end, file, survey=given.survey)
        print(file)


if __name__ == "__main__":
    main()
