"""Many labels: which of them holds where several speak of one alert, and where they disagree."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import NamedTuple

from stream_vae.labels.label import UNKNOWN, Label

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Conflict(NamedTuple):
    """Labels of one alert that disagree."""

    alert_id: str
    labels: tuple[Label, ...]
    """All that say real or bogus, most trusted first."""
    winner: Label
    """The most trusted; its `label` is -1 where the most trusted disagree among themselves."""


@dataclass(frozen=True)
class LabelTable:
    """Labels in any order, several of one alert among them.

    Parameters
    ----------
    labels : tuple of Label
        As they were read.
    """

    labels: tuple[Label, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    @classmethod
    def merged(cls, tables: Iterable["LabelTable"]) -> "LabelTable":
        """Put tables together; what they say twice in the same words is kept once.

        Parameters
        ----------
        tables : iterable of LabelTable
            In any order.

        Returns
        -------
        LabelTable
            All labels, conflicts included.
        """
        return cls(tuple(dict.fromkeys(label for table in tables for label in table)))

    def resolve(self) -> dict[str, Label]:
        """Choose one label an alert.

        The most trusted provenance wins (the order of `Provenance`); within one, agreeing labels give the most
        confident and then the latest, and disagreeing ones -1: of two people who disagree none is right by rank.
        A label of -1 says nothing: it gives way to any other.

        Returns
        -------
        dict of str to Label
            By alert id, in the order in which the alerts first appear.
        """
        return dict(self._resolved[0])

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """Alerts of which some labels say real and others bogus."""
        return self._resolved[1]

    def counts(self) -> dict[str, dict[int, int]]:
        """Count labels.

        Returns
        -------
        dict of str to dict of int to int
            By provenance and label; provenances without any are left out.
        """
        counted = Counter((label.provenance, label.label) for label in self.labels)
        found: dict[str, dict[int, int]] = {}
        for (provenance, value), number in sorted(counted.items(), key=lambda item: (item[0][0].rank, -item[0][1])):
            found.setdefault(str(provenance), {})[value] = number
        return found

    @cached_property
    def _resolved(self) -> tuple[dict[str, Label], tuple[Conflict, ...]]:
        by_alert: defaultdict[str, list[Label]] = defaultdict(list)
        for label in self.labels:
            by_alert[label.alert_id].append(label)
        chosen: dict[str, Label] = {}
        conflicts = []
        for alert_id, labels in by_alert.items():
            spoken = sorted((label for label in labels if label.label != UNKNOWN), key=_trust)
            chosen[alert_id] = _winner(spoken) if spoken else min(labels, key=_trust)
            if len({label.label for label in spoken}) > 1:
                conflicts.append(Conflict(alert_id, tuple(spoken), chosen[alert_id]))
        return chosen, tuple(conflicts)


def _trust(label: Label) -> tuple[int, float, float]:
    """Sorts the most trusted first."""
    confidence = 0.0 if label.confidence is None else label.confidence
    return label.provenance.rank, -confidence, -((label.labelled_at or _LONG_AGO) - _LONG_AGO).total_seconds()


def _winner(spoken: list[Label]) -> Label:
    first = spoken[0]
    equals = [label for label in spoken if label.provenance is first.provenance]
    if len({label.label for label in equals}) == 1:
        return first
    return Label(first.alert_id, UNKNOWN, first.provenance, comment=f"{len(equals)} labels of equal trust disagree")
