"""Samples of the stamps that were ever scored, and the stamps that have labels, in Redis or Valkey to train on.

Strata of bottom-k sampling, each with a capacity of its own:

``uniform``
    of all alerts that there ever were, with equal chances;
``recent``
    of all, with chances that decay exponentially with their age;
``rare``
    of all, with chances that grow with their novelty;
``known``
    of those that label themselves: known asteroids, injected sources;
``anchors``
    no sample: every stamp that somebody labelled, for good.

Every alert has a rank in a stratum that its id, time and novelty decide, and the k smallest ranks stay. So an alert
that is delivered twice counts once, any number of workers may offer in any order, and the union of two reservoirs of
one survey is again a reservoir. Nothing is ever unpickled: a record is a fixed header and float16 pixels, a label
a line of JSON.

Keys, all in one hash slot, for one survey::

    {vae}:<survey>:meta             hash: layout, name, capacities, preprocessing and its digest, counters
    {vae}:<survey>:stamps           hash: alert id -> record, once for all strata
    {vae}:<survey>:labels           hash: alert id -> labels, one JSON object a line
    {vae}:<survey>:waiting          sorted set: labelled alerts whose stamp never came -> since when
    {vae}:<survey>:<stratum>:ranks  sorted set: alert id -> rank

`stream_vae.sampling` has the ranks and the records; `stream_vae.runtime.offering` sends in the background.

References
----------
Cohen & Kaplan 2007, Summarizing data using bottom-k sketches (sampling, and the estimate of how many were seen).
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import time
from typing import Any, Literal, NamedTuple

import numpy as np
import redis

from stream_vae.errors import ConfigError, RetriableError
from stream_vae.labels.label import REAL, UNKNOWN, Label, LabelError, Provenance, parse_record
from stream_vae.labels.table import LabelTable
from stream_vae.model.release import Preprocessing
from stream_vae.redis_client import address, answering, connect
from stream_vae.reservoir_scripts import LAYOUT, Answer, Batch, Script, layout_error, parse_answer
from stream_vae.sample import Sample
from stream_vae.sampling import (
    ANCHORS,
    KNOWN,
    LABEL_BYTES,
    LONGEST_ID,
    PRECEDENCE,
    PROVENANCES,
    RANKS,
    SAMPLED,
    STRATA,
    UNIFORM,
    Capacities,
    Heads,
    canonical,
    damaged,
    digest_of,
    record_bytes,
    shape_of,
    unpack,
    unpack_heads,
    waiting_most,
)

__all__ = ["LAYOUT", "Answer", "Batch", "Reservoir", "Sample", "Stats", "address", "connect", "layout_error"]

LONGEST_LABEL = 4096
"""Bytes of a label as JSON."""
_AT_A_TIME = 512
_SETS = (ANCHORS, *SAMPLED)
"""The sorted sets in the order of the scripts."""

Outcome = Literal["anchored", "added", "repeated", "waiting", "full"]


class Stratum(NamedTuple):
    """How full one stratum is."""

    stratum: str
    stamps: int
    capacity: int
    seen: int | None
    """Alerts that it is a sample of: counted until it is full, then estimated within about 1 / sqrt(capacity). None
    for a full one whose chances are not equal, and for anchors, which are no sample."""
    memory_bytes: int
    """Of its ranks; records are held once for all strata."""


@dataclass(frozen=True, slots=True)
class Stats:
    """How full a reservoir is."""

    survey: str
    stamps: int
    """In all strata, each once."""
    capacity: int | None
    """Of the uniform stratum; None where nothing was ever offered."""
    seen: int
    """Alerts that the uniform stratum is a sample of."""
    memory_bytes: int
    """What Redis says that all keys take."""
    preprocessing: dict[str, Any] | None
    strata: tuple[Stratum, ...]
    labels: dict[str, dict[int, int]]
    """How many, by provenance and label; those of known alerts among them."""
    conflicts: int
    """Alerts that some labels call real and others bogus."""
    waiting: int
    """Labelled alerts whose stamp never came."""
    refused: int
    """Labels for which there was no room."""


class Merged(NamedTuple):
    """What became of another reservoir's content."""

    entered: int
    """Alerts that are new in at least one stratum."""
    labels: int
    """That the other one had."""
    refused: int
    """Of these, for which there was no room."""


class Reservoir:
    """One survey's reservoir.

    Parameters
    ----------
    client : redis.Redis
        From `connect`; closed with this.
    survey : str
        The profile's name.
    where : str
        The server, for messages: from `address`.
    anchor_capacity : int
        Labelled stamps that `label` may keep.
    """

    def __init__(self, client: Any, survey: str, *, where: str, anchor_capacity: int = 10_000) -> None:
        self._client = client
        self.survey = survey
        self.where = where
        self._anchor_capacity = anchor_capacity
        prefix = f"{{vae}}:{survey}"
        single = tuple(f"{prefix}:{name}" for name in ("meta", "stamps", "labels", "waiting"))
        self._meta, self._stamps, self._labels, self._waiting = single
        self._ranks = {stratum: f"{prefix}:{stratum}:ranks" for stratum in _SETS}
        self._keys = (*single, *self._ranks.values())
        self._older_keys = (f"{prefix}:{UNIFORM}:stamps",)
        self._offer, self._label = Script("reservoir.lua"), Script("label.lua")

    def add(
        self,
        batch: Batch,
        *,
        preprocessing: Preprocessing,
        capacities: Capacities,
        recent_days: float = 7.0,
        waiting_version: str | None = None,
    ) -> Answer:
        """Offer a batch to all strata, in one call.

        Parameters
        ----------
        batch : Batch
            May be empty: then only the answer counts.
        preprocessing : Preprocessing
            How the stamps were prepared.
        capacities : Capacities
            How many stamps to keep.
        recent_days : float
            That the ranks in the recent stratum were made with.
        waiting_version : str, optional
            Of the waiting ids that the caller has, to be told them if there are others; absent: it does not ask.

        Returns
        -------
        Answer
            What became of it.

        Raises
        ------
        redis.RedisError
            If Redis does not answer, or refuses.
        """
        rows: list[str | bytes] = []
        for alert_id, record, ranks in zip(batch.alert_ids, batch.records, batch.ranks.tolist(), strict=True):
            rows += [alert_id, record, *("" if rank == np.inf else repr(rank) for rank in ranks)]
        found = self._offer.run(
            self._client,
            self._keys,
            LAYOUT,
            digest_of(preprocessing),
            canonical(preprocessing),
            repr(float(recent_days)),
            secrets.token_hex(8),
            "-" if waiting_version is None else waiting_version,
            *(getattr(capacities, stratum) for stratum in _SETS),
            *rows,
        )
        return parse_answer(found, asked=waiting_version)

    def label(self, label: Label, stamp_record: bytes | None = None) -> Outcome:
        """Keep a label, and for good the stamp of the alert that it is of.

        Parameters
        ----------
        label : Label
            What somebody says of an alert. All labels of an alert are kept; `LabelTable.resolve` chooses.
        stamp_record : bytes, optional
            The alert's stamp as `stream_vae.sampling.pack` writes it, where the caller has it.

        Returns
        -------
        str
            ``anchored``: the stamp was here or was given, and stays from now on; ``added``: it stayed already;
            ``repeated``: the same label was there; ``waiting``: no stamp yet, a worker will send it should the alert
            come; ``full``: refused, since labels or stamps have no more room.

        Raises
        ------
        ConfigError
            If the reservoir is another version's, or the record is none of its stamps.
        LabelError
            If the id or the label is too long.
        RetriableError
            If Redis does not answer now, or has no memory.
        """
        line = json.dumps(label.record(), sort_keys=True, separators=(",", ":"))
        if len(line) > LONGEST_LABEL or len(label.alert_id.encode()) > LONGEST_ID:
            column = "comment" if len(line) > LONGEST_LABEL else "alert_id"
            raise LabelError(
                f"is too long: {LONGEST_LABEL} bytes of JSON are kept, {LONGEST_ID} of them the id", column=column
            )
        most = self._anchor_capacity
        try:
            with answering(self.where):
                if stamp_record is not None:
                    self._check_record(stamp_record)
                found = self._label.run(
                    self._client,
                    self._keys,
                    LAYOUT,
                    label.alert_id,
                    line,
                    stamp_record or b"",
                    most,
                    waiting_most(most),
                    most * LABEL_BYTES,
                    repr(time()),
                    secrets.token_hex(8),
                )
        except ConfigError as error:
            passing = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.OutOfMemoryError, OSError)
            if isinstance(error.__cause__, passing) and not isinstance(error.__cause__, redis.AuthenticationError):
                raise RetriableError(str(error.args[0]), remedy=error.remedy) from error
            raise
        if isinstance(found, list):
            raise layout_error(self.survey, self.where, found[1].decode())
        outcome: Outcome = found.decode()
        return outcome

    def _check_record(self, record: bytes) -> None:
        meta = self._read_meta()
        if "preprocessing" not in meta:
            raise ConfigError(
                f"The reservoir of {self.survey} at {self.where} does not know yet how stamps are prepared.",
                remedy="Give labels without stamps until a worker has offered some.",
            )
        if len(record) != record_bytes(self._prepared(meta, None)):
            raise ConfigError(
                f"The record is no stamp as the reservoir of {self.survey} holds them: its length differs."
            )

    @property
    def client(self) -> Any:
        """Of the server, for what else of this survey is kept there."""
        return self._client

    def seen(self) -> int:
        """Say how many alerts the uniform stratum is a sample of; much less work than `stats`.

        Returns
        -------
        int
            Counted until it is full, then estimated.

        Raises
        ------
        ConfigError
            If Redis does not answer, or holds another version's keys.
        """
        with answering(self.where):
            return self._stratum(UNIFORM, self._read_meta()).seen or 0

    def labels(self) -> LabelTable:
        """Read all labels: those that were given, and those of alerts that label themselves.

        Returns
        -------
        LabelTable
            Several of one alert among them, as they were given.

        Raises
        ------
        ConfigError
            If Redis does not answer, or holds another version's keys.
        """
        with answering(self.where):
            meta = self._read_meta()
            given = [label for lines in self._all_labels().values() for label in _parse(lines)]
            if "preprocessing" in meta:
                known = self._client.zrange(self._ranks[KNOWN], 0, -1)
                for ids, records in self._records(known):
                    given += _own_labels(ids, unpack_heads(records, self._prepared(meta, None)))
        return LabelTable(tuple(given))

    def _all_labels(self) -> dict[bytes, bytes]:
        return dict(self._client.hscan_iter(self._labels, count=_AT_A_TIME))  # which may give one twice

    def stats(self) -> Stats:
        """Say how full it is.

        Returns
        -------
        Stats
            Of now.

        Raises
        ------
        ConfigError
            If Redis does not answer, or holds another version's keys.
        """
        labels = self.labels()
        with answering(self.where):
            meta = self._read_meta()
            strata = tuple(self._stratum(stratum, meta) for stratum in STRATA)
            stamps = int(self._client.hlen(self._stamps))
            memory = sum(self._client.memory_usage(key) or 0 for key in self._keys)
            waiting = int(self._client.zcard(self._waiting))
        return Stats(
            self.survey,
            stamps,
            strata[0].capacity if "preprocessing" in meta else None,
            strata[0].seen or 0,
            memory,
            json.loads(meta["preprocessing"]) if "preprocessing" in meta else None,
            strata,
            labels.counts(),
            len(labels.conflicts),
            waiting,
            int(meta.get("refused", 0)),
        )

    def _stratum(self, stratum: str, meta: dict[str, str]) -> Stratum:
        key = self._ranks[stratum]
        size, capacity = int(self._client.zcard(key)), int(meta.get(f"capacity:{stratum}", 0))
        seen: int | None = size
        if stratum == ANCHORS:
            seen = None
        elif size and size >= capacity:
            largest = self._client.zrange(key, -1, -1, withscores=True)[0][1]
            # Of k ranks that are uniform in [0, 1) the largest is about k / n.
            seen = round((size - 1) * RANKS / largest) if stratum in {UNIFORM, KNOWN} and size > 1 else None
        return Stratum(stratum, size, capacity, seen, self._client.memory_usage(key) or 0)

    def draw(
        self,
        count: int | None,
        random: np.random.Generator,
        *,
        preprocessing: Preprocessing | None = None,
        strata: Sequence[str] | None = None,
    ) -> Sample:
        """Draw stamps at random, none twice.

        An alert in several strata comes once. Where there are more than `count`, all anchors come before any known
        alert, and all of these before the others, which are drawn from together.

        Parameters
        ----------
        count : int or None
            How many at most; None for all.
        random : numpy.random.Generator
            The same state and the same reservoir give the same sample.
        preprocessing : Preprocessing, optional
            What they must have been prepared with.
        strata : sequence of str, optional
            Which to draw from; absent: all.

        Returns
        -------
        Sample
            Fewer than `count` where there are no more.

        Raises
        ------
        ConfigError
            If Redis does not answer, or holds nothing, another version's keys, or stamps prepared in another way.
        """
        chosen = _checked(strata)
        with answering(self.where):
            meta = self._read_meta()
            members: dict[bytes, list[str]] = {}
            for stratum in chosen if meta else ():
                for alert_id in self._client.zrange(self._ranks[stratum], 0, -1):
                    members.setdefault(alert_id, []).append(stratum)
            if not members:
                which = "" if strata is None else f" in {', '.join(chosen)}"
                raise ConfigError(
                    f"The reservoir of {self.survey} at {self.where} is empty{which}.",
                    remedy="Run a worker with these settings first: it fills the reservoir as it scores.",
                )
            found = self._prepared(meta, preprocessing)
            return self._fetch(_shuffled(members, random), len(members) if count is None else count, found, members)

    def _prepared(self, meta: dict[str, str], wanted: Preprocessing | None) -> Preprocessing:
        try:
            found = Preprocessing.model_validate_json(meta["preprocessing"])
        except (KeyError, ValueError) as error:
            raise damaged("a preprocessing that does not parse") from error
        if wanted is not None and wanted != found:
            raise ConfigError(
                f"The reservoir of {self.survey} holds stamps prepared as {canonical(found)}; "
                f"{canonical(wanted)} is wanted.",
                remedy="Use a recipe with that preprocessing, or export and clear the reservoir and let it fill again.",
            )
        return found

    def _records(self, ids: Sequence[bytes]) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Read records in this order, some at a time; what was evicted meanwhile is passed over."""
        for start in range(0, len(ids), _AT_A_TIME):
            some = ids[start : start + _AT_A_TIME]
            pairs = zip(some, self._client.hmget(self._stamps, some), strict=True)
            present = [(alert_id, record) for alert_id, record in pairs if record is not None]
            yield [alert_id for alert_id, _ in present], [record for _, record in present]

    def _fetch(
        self, ids: Sequence[bytes], count: int, preprocessing: Preprocessing, members: dict[bytes, list[str]]
    ) -> Sample:
        kept: list[bytes] = []
        stamps = [np.empty((0, *shape_of(preprocessing)), np.float32)]
        heads = [Heads.empty(0)]
        labels: list[tuple[int, str]] = []
        for found, records in self._records(ids):
            missing = count - len(kept)
            if missing <= 0:
                break
            kept += found[:missing]
            stamps.append(unpack(records[:missing], preprocessing))
            heads.append(unpack_heads(records[:missing], preprocessing))
            labels += self._resolved(found[:missing], heads[-1])
        columns = Heads._make(np.concatenate(column) for column in zip(*heads, strict=True))
        return Sample(
            np.concatenate(stamps),
            tuple(_text(alert_id) for alert_id in kept),
            preprocessing,
            np.array([label for label, _ in labels], np.int8),
            tuple(provenance for _, provenance in labels),
            columns.time_s,
            columns.novelty,
            columns.quality,
            tuple(band.decode("utf-8", "ignore") for band in columns.bands.tolist()),
            tuple("+".join(members[alert_id]) for alert_id in kept),
        )

    def _resolved(self, ids: Sequence[bytes], heads: Heads) -> list[tuple[int, str]]:
        """Choose the label of each alert, and tell where it comes from."""
        given = [_parse(lines) for lines in self._client.hmget(self._labels, ids) if lines] if ids else []
        chosen = LabelTable((*(label for each in given for label in each), *_own_labels(ids, heads))).resolve()
        found = (chosen.get(_text(alert_id)) for alert_id in ids)
        return [(UNKNOWN, "") if label is None else (label.label, str(label.provenance)) for label in found]

    def merge(self, other: "Reservoir") -> Merged:
        """Take in another server's reservoir of the same survey: as if all alerts had been offered to this one.

        Parameters
        ----------
        other : Reservoir
            Only read.

        Returns
        -------
        Merged
            What became of its alerts and labels.

        Raises
        ------
        ConfigError
            If one of the two servers does not answer, or what they hold does not fit together.
        RetriableError
            If this server fails while labels are written; to merge again does no harm.
        """
        with answering(other.where):
            meta = other._read_meta()  # noqa: SLF001 - of our own class
            entered = self._take(other, meta) if "preprocessing" in meta else 0
            outcomes = [self.label(*each) for each in other._labelled()]  # noqa: SLF001
        return Merged(entered, len(outcomes), outcomes.count("full"))

    def _labelled(self) -> Iterator[tuple[Label, bytes | None]]:
        """Give every label, with the stamp if it is here."""
        lines = self._all_labels()
        ids = list(lines)
        for start in range(0, len(ids), _AT_A_TIME):
            some = ids[start : start + _AT_A_TIME]
            for alert_id, record in zip(some, self._client.hmget(self._stamps, some), strict=True):
                yield from ((label, record) for label in _parse(lines[alert_id]))

    def _take(self, other: "Reservoir", meta: dict[str, str]) -> int:
        preprocessing = self._prepared(meta, None)
        capacities = Capacities(*(int(meta.get(f"capacity:{stratum}", 0)) for stratum in STRATA))
        days = float(meta["recent_days"])
        ranks: dict[bytes, list[float]] = {}
        for column, stratum in enumerate(SAMPLED):
            for alert_id, rank in other._client.zrange(other._ranks[stratum], 0, -1, withscores=True):  # noqa: SLF001
                ranks.setdefault(alert_id, [np.inf] * len(SAMPLED))[column] = rank
        entered = 0
        for ids, records in other._records(list(ranks)):  # noqa: SLF001
            table = np.array([ranks[alert_id] for alert_id in ids]).reshape(-1, len(SAMPLED))
            batch = Batch([_text(alert_id) for alert_id in ids], table, records)
            with answering(self.where):
                answer = self.add(batch, preprocessing=preprocessing, capacities=capacities, recent_days=days)
            if answer.status == "layout":
                raise layout_error(self.survey, self.where, answer.found)
            if answer.status != "ok" or answer.recent_days != days:
                raise ConfigError(
                    f"The reservoirs at {self.where} and {other.where} do not fit together: their stamps were "
                    "prepared, or their recent alerts chosen, in different ways.",
                    remedy="Merge reservoirs of releases with the same preprocessing and the same recent_days.",
                )
            entered += answer.entered
        return entered

    def clear(self) -> int:
        """Forget everything, whatever version wrote it.

        Returns
        -------
        int
            How many stamps there were.

        Raises
        ------
        ConfigError
            If Redis does not answer.
        """
        with answering(self.where):
            stamps = 0
            for key in (self._stamps, *self._older_keys):
                stamps += self._client.hlen(key) if self._client.type(key) == b"hash" else 0
            self._client.unlink(*self._keys, *self._older_keys)
        return int(stamps)

    def close(self) -> None:
        """Close the connections; more than once does no harm."""
        self._client.close()

    def _read_meta(self) -> dict[str, str]:
        meta = {key.decode(): value.decode() for key, value in self._client.hgetall(self._meta).items()}
        layout = meta.get("layout", "")
        if layout != LAYOUT and (meta or self._client.exists(*self._keys)):
            raise layout_error(self.survey, self.where, layout)
        return meta


def _text(alert_id: bytes) -> str:
    return alert_id.decode("utf-8", "replace")


def _parse(lines: bytes) -> list[Label]:
    try:
        return [parse_record(line) for line in lines.split(b"\n")]
    except LabelError as error:
        raise damaged(f"a label that {error}") from error


def _own_labels(ids: Sequence[bytes], heads: Heads) -> list[Label]:
    rows = np.flatnonzero(heads.labels == REAL).tolist()
    return [Label(_text(ids[row]), REAL, Provenance(PROVENANCES[heads.provenances[row]])) for row in rows]


def _checked(strata: Sequence[str] | None) -> tuple[str, ...]:
    if unknown := [stratum for stratum in strata or () if stratum not in STRATA]:
        raise ConfigError(f"There is no stratum {', '.join(unknown)}.", remedy=f"Name some of {', '.join(STRATA)}.")
    return tuple(stratum for stratum in PRECEDENCE if strata is None or stratum in strata)


def _shuffled(members: dict[bytes, list[str]], random: np.random.Generator) -> list[bytes]:
    """Order alerts at random: anchors, then known ones, then the others."""
    order: list[bytes] = []
    for group in ((ANCHORS,), (KNOWN,), PRECEDENCE[2:]):
        ids = [alert_id for alert_id, strata in members.items() if strata[0] in group]
        order += [ids[i] for i in random.permutation(len(ids))] if ids else []
    return order
