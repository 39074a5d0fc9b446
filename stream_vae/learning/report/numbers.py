"""The numbers of a report as files and tables: JSON for programs, CSV for spreadsheets, HTML for readers."""

import csv
import html
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stream_vae.learning.merits import Evaluation
from stream_vae.learning.report.paper import tells_one_percent
from stream_vae.learning.report.style import Style

COLUMNS = ("model", "measure", "value", "low_95", "high_95")


class Number(NamedTuple):
    """One figure of one model."""

    model: str
    measure: str
    value: float
    low_95: float | None
    high_95: float | None


def numbers(models: Mapping[str, Any]) -> Iterator[Number]:
    """Flatten what was measured of models; texts are left out.

    Parameters
    ----------
    models : mapping
        Merits by model, as `metrics.json` has them under ``models``.

    Yields
    ------
    Number
        With a dotted name; list items carry their position, or the name or number of labels that they have.
    """
    for model, merits in models.items():
        for measure, value, interval in _flatten("", merits):
            low, high = interval if interval is not None else (None, None)
            yield Number(model, measure, value, low, high)


def _flatten(prefix: str, content: Any) -> Iterator[tuple[str, float, Sequence[float] | None]]:
    if isinstance(content, Mapping):
        if "value" in content and "interval_95" in content:
            if content["value"] is not None:
                yield prefix, float(content["value"]), content["interval_95"]
            return
        for key, value in content.items():
            if key != "interval_95":
                yield from _flatten(f"{prefix}.{key}".lstrip("."), value)
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from _flatten(f"{prefix}.{_item_name(i, value)}", value)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield prefix, float(content), None


def _item_name(i: int, value: Any) -> str:
    if isinstance(value, Mapping):
        if "labels" in value:
            return str(value["labels"])
        if "name" in value:
            return f"{'real' if value['real'] else 'bogus'} {value['name']}"
    return str(i + 1)


def to_csv(models: Mapping[str, Any]) -> str:
    """Write a line for every number.

    Parameters
    ----------
    models : mapping
        Merits by model.

    Returns
    -------
    str
        With a head line; empty where there is no interval.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if cell is None else cell for cell in number] for number in numbers(models))
    return text.getvalue()


def plain(content: Any) -> Any:
    """Turn numpy's numbers into Python's and what is not finite into None, for JSON.

    Parameters
    ----------
    content : Any
        Nested mappings, sequences, numbers, texts.

    Returns
    -------
    Any
        The same, plain.
    """
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if hasattr(content, "item") and not isinstance(content, str | bytes):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content


class Column(NamedTuple):
    """A measure in the summary."""

    title: str
    path: tuple[str, ...]
    better: int
    """1: more is better; -1: less is; 0: neither."""
    digits: int
    of_pixels: bool = False
    """It measures nearness in pixels, where raw pixels are the yardstick and win by definition."""


SUMMARY = (
    Column("reconstruction: squared error", ("reconstruction", "squared_error"), -1, 2),
    Column("search: DNMSE", ("search", "dnmse"), -1, 3, of_pixels=True),
    Column("AUC, code", ("classifier", "auc"), 1, 4),
    Column("AUC, drawn code", ("classifier_on_draw", "auc"), 1, 4),
    Column("missed at 1% FPR", ("classifier", "mdr_at_1pct_fpr"), -1, 3),
    Column("AUC at 100 labels", ("few_labels", "on_mean", "100"), 1, 4),
    Column("kNN recall", ("neighbourhood", "knn_recall"), 1, 3, of_pixels=True),
    Column("active units", ("latent", "active_units"), 0, 0),
    Column("mutual information (cap)", ("latent", "mutual_information"), 0, 2),
)


def look_up(merits: Mapping[str, Any], path: Sequence[str]) -> Any:
    """Find a figure in what was measured of a model.

    Parameters
    ----------
    merits : mapping
        Of a model.
    path : sequence of str
        Keys; a number of labels where the figure is one of a few-label curve.

    Returns
    -------
    Any
        A mapping with `value` and `interval_95`, a number, or None if it was not measured.
    """
    content: Any = merits
    for key in path:
        if isinstance(content, list):
            content = next((point["auc"] for point in content if str(point["labels"]) == key), None)
        else:
            content = content.get(key) if isinstance(content, Mapping) else None
        if content is None:
            return None
    return content


def summary_table(evaluation: Evaluation, looks: Mapping[str, Style]) -> str:
    """Make the table at the top of the page: models by measures, the best in bold.

    What cannot be told from the best is marked too: a paired comparison with it would be needed to part them.

    Parameters
    ----------
    evaluation : Evaluation
        Measured.
    looks : mapping of Style
        By model.

    Returns
    -------
    str
        HTML.
    """
    items = evaluation.judgements
    columns = [column for column in SUMMARY if any(look_up(item.merits, column.path) is not None for item in items)]
    head = "".join(f"<th>{html.escape(column.title)}{_arrow(column.better)}</th>" for column in columns)
    lines = [f"<tr><th>model</th>{head}</tr>"]
    codes = [item.view.z_mean is None or item.view.reconstruction is not None for item in items]
    few = not tells_one_percent(evaluation.study.real(evaluation.labelled))
    nobody = [False for _ in items]
    cells = {
        column: _cells(
            [item.merits for item in items], column, nobody if few and column.path[-1] == "mdr_at_1pct_fpr" else codes
        )
        for column in columns
    }
    for i, item in enumerate(items):
        look = looks[item.view.name]
        swatch = f'<span class="swatch" style="background:{look.colour}"></span>'
        row = "".join(f"<td>{cells[column][i]}</td>" for column in columns)
        lines.append(f'<tr><td title="{html.escape(item.view.name)}">{swatch}{html.escape(look.short)}</td>{row}</tr>')
    return '<div class="wide"><table class="summary">' + "".join(lines) + "</table></div>"


def _arrow(better: int) -> str:
    return {1: " &uarr;", -1: " &darr;", 0: ""}[better]


def _cells(rows: Sequence[Mapping[str, Any]], column: Column, competing: Sequence[bool]) -> list[str]:
    found = [look_up(merits, column.path) for merits in rows]
    values = [merit["value"] if isinstance(merit, Mapping) else merit for merit in found]
    shut_out = column.of_pixels or not any(competing)
    known = [v for v, may in zip(values, competing, strict=True) if v is not None and (may or not shut_out)]
    best = (max(known) if column.better > 0 else min(known)) if len(known) > 1 and column.better else None
    winner = found[values.index(best)] if best is not None else None
    cells = []
    for merits, merit, value, may in zip(rows, found, values, competing, strict=True):
        text = _cell(merit, value, column.digits)
        if shut_out and not may:
            cells.append(f"({text})" if value is not None else text)
            continue
        if column.path[-1] == "mutual_information" and value is not None:
            text += f" ({merits['latent']['mutual_information_cap']:.2f})"
        if column.path[-1] == "active_units" and value is not None:
            text += f" of {merits['latent']['units']}"
        if best is not None and value == best:
            text = f"<b>{text}</b>"
        elif _overlaps(merit, winner):
            text = f'<span class="tied">{text}</span>'
        cells.append(text)
    return cells


def _cell(merit: Any, value: float | None, digits: int) -> str:
    if value is None:
        return "&ndash;"
    text = f"{value:.{digits}f}"
    if isinstance(merit, Mapping) and merit["interval_95"] is not None:
        low, high = merit["interval_95"]
        text += f"<br><small>{low:.{digits}f} to {high:.{digits}f}</small>"
    return text


def _overlaps(merit: Any, winner: Any) -> bool:
    """Whether two 95% intervals share a value."""
    if not (isinstance(merit, Mapping) and isinstance(winner, Mapping)):
        return False
    one, other = merit["interval_95"], winner["interval_95"]
    return bool(one and other and one[0] <= other[1] and other[0] <= one[1])


def verdicts(evaluation: Evaluation, looks: Mapping[str, Style]) -> list[str]:
    """Say in sentences which models are better or worse than PCA, by paired differences.

    Parameters
    ----------
    evaluation : Evaluation
        Measured.
    looks : mapping of Style
        By model.

    Returns
    -------
    list of str
        One sentence a model, plain text; empty without PCA.
    """
    kinds = {"squared_error": ("reconstruction", -1), "dnmse": ("search", -1), "auc": ("classification", 1)}
    sentences = []
    for item in evaluation.judgements:
        found = item.merits.get("minus_pca")
        if not found:
            continue
        sides: dict[str, list[str]] = {"better": [], "worse": [], "not to be told apart": []}
        for key, (name, sign) in kinds.items():
            if key in found and found[key]["interval_95"] is not None:
                low, high = (sign * value for value in found[key]["interval_95"])
                side = "better" if min(low, high) > 0 else "worse" if max(low, high) < 0 else "not to be told apart"
                sides[side].append(name)
        parts = [f"{side} in {' and '.join(names)}" for side, names in sides.items() if names]
        if parts:
            sentences.append(f"{looks[item.view.name].short}, held against PCA: {'; '.join(parts)}.")
    return sentences
