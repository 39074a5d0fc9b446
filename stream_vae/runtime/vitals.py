"""What workers tell of the releases that they score with: reported to Redis, and read by who watches over releases.

One hash of a survey, `{vae}:<survey>:vitals`, has a field for each worker, which the worker writes over every some
seconds: JSON with the counts of the last alerts of each release. The hash expires when nobody writes any more, and an
entry that is too old counts for nothing. Whoever can write there is trusted no further than that what is no report is
left out.
"""

import json
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import time
from typing import Any

import redis

from stream_vae.drift import Counts
from stream_vae.metrics import Metrics
from stream_vae.runtime.offering import Circuit

log = logging.getLogger(__name__)

_INTERVALS = 3
"""Reports that may be missed before a worker counts as gone."""
_FRESH_AT_LEAST_S = 5.0
"""A busy machine is late by as much, however often it is to report."""
_LONGEST = 4 * 2**20
"""Bytes of a report, which has some kilobytes."""
_FORGOTTEN_S = 3600.0


@dataclass(frozen=True)
class ReleaseVitals:
    """How a release fared with the last alerts that it scored.

    Parameters
    ----------
    counts : Counts
        Of them, in the bins of the release's reference.
    alerts : int
        How many they were.
    dead_lettered : int
        Of these, those that its encoder failed on.
    not_finite : int
        Those that its encoder gave NaN or infinity for.
    """

    counts: Counts
    alerts: int
    dead_lettered: int
    not_finite: int

    def __add__(self, other: "ReleaseVitals") -> "ReleaseVitals":
        """Join with those of other alerts."""
        return ReleaseVitals(
            self.counts + other.counts,
            self.alerts + other.alerts,
            self.dead_lettered + other.dead_lettered,
            self.not_finite + other.not_finite,
        )

    def to_plain(self) -> dict[str, Any]:
        """Write for another process.

        Returns
        -------
        dict
            For JSON.
        """
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {"counts": self.counts.to_plain(), **numbers}

    @classmethod
    def from_plain(cls, document: Mapping[str, Any]) -> "ReleaseVitals":
        """Read what `to_plain` wrote.

        Parameters
        ----------
        document : Mapping
            From outside.

        Returns
        -------
        ReleaseVitals
            The same.

        Raises
        ------
        ValueError
            If it is none.
        """
        numbers = {name: document.get(name) for name in _NUMBERS}
        for name, value in numbers.items():
            if type(value) is not int or value < 0:
                raise ValueError(f"these are no vitals: {name} is {value!r}")
        return cls(Counts.from_plain(document["counts"]), **numbers)  # type: ignore[arg-type]


_NUMBERS = ("alerts", "dead_lettered", "not_finite")


@dataclass(frozen=True)
class Vitals:
    """Of all workers of a survey.

    Parameters
    ----------
    releases : dict of str to ReleaseVitals
        By release id: those that score, are on trial or did so shortly before.
    workers : int
        That reported lately.
    damaged : int
        Entries that are no reports.
    """

    releases: dict[str, ReleaseVitals] = field(default_factory=dict)
    workers: int = 0
    damaged: int = 0


def key_of(survey: str) -> str:
    """Name the hash.

    Parameters
    ----------
    survey : str
        The profile's name.

    Returns
    -------
    str
        Its key.
    """
    return f"{{vae}}:{survey}:vitals"


def read(client: Any, survey: str, *, now: float | None = None) -> Vitals:
    """Join what the workers reported lately, release by release.

    Parameters
    ----------
    client : redis.Redis
        From `stream_vae.reservoir.connect`.
    survey : str
        The profile's name.
    now : float, optional
        Seconds since 1970 UTC; absent: this machine's clock, which must be about right, as the workers' must.

    Returns
    -------
    Vitals
        Empty where none reported.

    Raises
    ------
    redis.RedisError
        If Redis cannot be reached.
    """
    now = time() if now is None else now
    releases: dict[str, ReleaseVitals] = {}
    workers = damaged = 0
    for name, text in client.hgetall(key_of(survey)).items():
        try:
            at, fresh_s, found = _parse(text)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += 1
            continue
        if now - at > max(fresh_s, _FORGOTTEN_S):
            with suppress(redis.RedisError):  # a reader need not have the right to
                client.hdel(key_of(survey), name)
        if now - at > fresh_s:
            continue
        workers += 1
        for release, vitals in found.items():
            try:
                releases[release] = releases[release] + vitals if release in releases else vitals
            except ValueError:  # in other bins: no report of this release
                damaged += 1
    return Vitals(releases, workers, damaged)


def _parse(text: bytes) -> tuple[float, float, dict[str, ReleaseVitals]]:
    if len(text) > _LONGEST:
        raise ValueError("too long")
    document = json.loads(text)
    found = {str(name): ReleaseVitals.from_plain(each) for name, each in document["releases"].items()}
    return float(document["time"]), float(document["fresh_s"]), found


class Poster:
    """Reports one worker's vitals; called in the background, as it waits for Redis.

    Parameters
    ----------
    client : redis.Redis
        That times out soon; closed with this.
    survey : str
        The profile's name.
    slot : int
        The worker's number.
    metrics : Metrics
        Where to count.
    interval_s : float
        How often it reports.
    """

    def __init__(self, client: Any, survey: str, slot: int, metrics: Metrics, *, interval_s: float) -> None:
        self._client = client
        self._survey = survey
        self._name = f"{socket.gethostname()}:{slot}"
        self._metrics = metrics
        self._interval_s = interval_s
        self._circuit = Circuit(interval_s)
        self._complaint = ""
        self._posted = False

    def post(self, releases: Mapping[str, ReleaseVitals]) -> None:
        """Write the report over the last one; never raises.

        Parameters
        ----------
        releases : Mapping
            By release id.
        """
        if self._circuit.state == "open":
            self._count("skipped")
            return
        fresh_s = max(_INTERVALS * self._interval_s, _FRESH_AT_LEAST_S)
        document = {
            "time": time(),
            "fresh_s": fresh_s,
            "releases": {name: vitals.to_plain() for name, vitals in releases.items()},
        }
        try:
            self._client.hset(key_of(self._survey), self._name, json.dumps(document, separators=(",", ":")))
            self._client.expire(key_of(self._survey), max(1, round(10 * fresh_s)))
        except (redis.RedisError, OSError) as error:
            self._circuit.failed()
            self._count("failed")
            if str(error) != self._complaint:  # told when it begins, and not again while it lasts
                log.warning("vitals are not reported: %s", error)
            self._complaint = str(error)
        else:
            self._circuit.succeeded()
            self._posted = True
            self._count("posted")
            self._complaint = ""

    def close(self) -> None:
        """Take the report back and leave; may be called twice."""
        if self._posted and self._circuit.state == "closed":
            self._posted = False
            with suppress(redis.RedisError, OSError):
                self._client.hdel(key_of(self._survey), self._name)
        self._client.close()

    def _count(self, outcome: str) -> None:
        self._metrics.vitals_posts.labels(self._metrics.survey, outcome).inc()
