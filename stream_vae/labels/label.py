"""One label of one alert, and how it is read from a record: a line of a file, a message of a topic."""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

REAL, BOGUS, UNKNOWN = 1, 0, -1

_WORDS = {"1": REAL, "0": BOGUS, "-1": UNKNOWN, "real": REAL, "bogus": BOGUS, "unknown": UNKNOWN}
_MANGLED_ID = re.compile(r"\d[.,]\d+[eE]\+?\d+")
"""What a spreadsheet makes of an id of 18 digits."""


class Provenance(StrEnum):
    """Where a label comes from, most trusted first: the closed list that tables use."""

    HUMAN = "human"
    INJECTION = "injection"
    """A source was put there."""
    SOLAR_SYSTEM = "solar_system"
    """The alert says that a known asteroid or comet is there."""
    CROSSMATCH = "crossmatch"
    """A table of positions has something there."""
    SIMULATION = "simulation"
    CLASSIFIER = "classifier"
    """Another classifier said so, such as a low `drb` of ZTF: what learns from it learns that classifier's errors."""

    @property
    def rank(self) -> int:
        """Zero for the most trusted."""
        return list(Provenance).index(self)


class LabelError(ValueError):
    """A record that is no label.

    Parameters
    ----------
    message : str
        What is wrong.
    column : str
        With which of its values.
    """

    def __init__(self, message: str = "", *, column: str = "") -> None:
        super().__init__(message)
        self.column = column


class Label(NamedTuple):
    """What is held to be true of one alert."""

    alert_id: str
    label: int
    """1 real, 0 bogus, -1 unknown: somebody looked and cannot tell."""
    provenance: Provenance
    confidence: float | None = None
    """Probability that the label is right, 0 to 1; None where nobody says."""
    labelled_at: datetime | None = None
    """With a time zone."""
    comment: str = ""

    @classmethod
    def of(cls, record: Mapping[str, object]) -> "Label":
        """Read a label from named values.

        Parameters
        ----------
        record : mapping of str to object
            `alert_id`, `label` and `provenance`, and perhaps `confidence`, `labelled_at` and `comment`, as text or
            as the type that they have; None and empty text are nothing. Other names are ignored.

        Returns
        -------
        Label
            Validated.

        Raises
        ------
        LabelError
            Naming the value that is wrong.
        """
        return cls(
            _alert_id(record.get("alert_id")),
            parse_label(record.get("label")),
            _provenance(record.get("provenance")),
            _confidence(record.get("confidence")),
            _time(record.get("labelled_at")),
            str(record.get("comment") or ""),
        )

    def record(self) -> dict[str, Any]:
        """Give plain values, as files and messages hold them.

        Returns
        -------
        dict
            By column; `labelled_at` as ISO 8601 text.
        """
        time = None if self.labelled_at is None else self.labelled_at.isoformat()
        return {**self._asdict(), "provenance": str(self.provenance), "labelled_at": time}


COLUMNS = Label._fields
REQUIRED = ("alert_id", "label", "provenance")


def parse_record(line: str | bytes) -> Label:
    """Read a label from a line of JSON: of a file of JSON lines, or the value of a message.

    Parameters
    ----------
    line : str or bytes
        One JSON object with the names of `Label`.

    Returns
    -------
    Label
        Validated.

    Raises
    ------
    LabelError
        If it is no JSON object or one of its values is wrong.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LabelError(f"is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise LabelError("is no JSON object")
    return Label.of(record)


def _alert_id(value: object) -> str:
    if isinstance(value, bool | float) or not str("" if value is None else value).strip():
        raise LabelError(f"{value!r} is no id; write whole numbers or text", column="alert_id")
    text = str(value).strip()
    if _MANGLED_ID.fullmatch(text):
        raise LabelError(f"{text} was rounded, as spreadsheets do; save the column as text", column="alert_id")
    return text


def parse_label(value: object) -> int:
    """Read one of the three labels.

    Parameters
    ----------
    value : object
        1, 0, -1, or these or "real", "bogus", "unknown" as text.

    Returns
    -------
    int
        1, 0 or -1.

    Raises
    ------
    LabelError
        If it is none of these.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    found = _WORDS.get(str(value).strip().lower()) if not isinstance(value, bool) else None
    if found is None:
        raise LabelError(f"{value!r} is none of 1 (real), 0 (bogus), -1 (unknown)", column="label")
    return found


def _provenance(value: object) -> Provenance:
    try:
        return Provenance(str(value or "").strip())
    except ValueError:
        raise LabelError(f"{value!r} is none of {', '.join(Provenance)}", column="provenance") from None


def _confidence(value: object) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise LabelError(f"{value!r} is no number from 0 to 1", column="confidence")
    return number


def _time(value: object) -> datetime | None:
    if value is None or value == "":
        return None
    try:
        time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise LabelError(f"{value!r} is no ISO 8601 time such as 2026-11-24T14:46:56Z", column="labelled_at") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
