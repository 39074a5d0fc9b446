"""A uniform sample of the stamps that were ever scored, kept in Redis or Valkey to train on.

One stratum of bottom-k sampling by a keyed hash: every alert has a rank that its id alone decides, and the k
smallest ranks stay. So an alert that is delivered twice counts once, any number of workers may offer in any order,
and the union of two reservoirs of one survey is again a reservoir. Nothing is ever unpickled: a record is a
float32 scale and float16 pixels.

Keys, all in one hash slot, for one survey::

    {vae}:<survey>:meta             hash: layout, capacity, preprocessing and its digest
    {vae}:<survey>:uniform:ranks    sorted set: alert id -> rank
    {vae}:<survey>:uniform:stamps   hash: alert id -> record

`stream_vae.sampling` has the ranks and the records; `stream_vae.runtime.offering` sends in the background. Not here
yet: strata for recent, rare and labelled alerts, and a client for Redis Cluster.

References
----------
Cohen & Kaplan 2007, Summarizing data using bottom-k sketches (sampling, and the estimate of how many were seen).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from stream_vae.alert import FloatArray
from stream_vae.errors import ConfigError
from stream_vae.model.release import Preprocessing
from stream_vae.sampling import RANKS, canonical, damaged, digest_of, shape_of, unpack

LAYOUT = "1"
"""Of the keys and records above; another version's are refused, never guessed at."""
_AT_A_TIME = 512
_UNKNOWN = -1

Status = Literal["ok", "layout", "preprocessing"]


class Answer(NamedTuple):
    """What Redis says to an offer."""

    status: Status
    """``ok``, or what of the keys does not fit; then nothing was written."""
    found: str = ""
    """The layout or the digest of the preprocessing that is there instead."""
    size: int = 0
    capacity: int = 0
    """In force: the smallest that was ever asked for since the last `Reservoir.clear`."""
    threshold: int = RANKS
    """Alerts of this rank and above cannot enter any more."""
    entered: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """Stamps drawn from a reservoir.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled, float32 with the precision of float16.
    alert_ids : tuple of str
        One a stamp.
    preprocessing : Preprocessing
        How they were prepared.
    """

    stamps: FloatArray
    alert_ids: tuple[str, ...]
    preprocessing: Preprocessing

    def save(self, path: Path) -> None:
        """Write a file that ``--data`` takes.

        Parameters
        ----------
        path : Path
            The .npz: `stamps`, `labels` (all -1: unknown) and `alert_ids`.

        Raises
        ------
        ConfigError
            If it cannot be written.
        """
        labels = np.full(len(self.stamps), _UNKNOWN, np.int8)
        ids = np.array(self.alert_ids, dtype=np.str_)
        try:
            with path.open("wb") as file:
                np.savez(file, stamps=self.stamps, labels=labels, alert_ids=ids)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.", remedy="Name another file.") from error


@dataclass(frozen=True, slots=True)
class Stats:
    """How full a reservoir is."""

    survey: str
    stratum: str
    stamps: int
    capacity: int | None
    """None where nothing was ever offered."""
    seen: int
    """Alerts that it is a sample of: counted until it is full, then estimated within about 1 / sqrt(capacity)."""
    memory_bytes: int
    """What Redis says that the keys take."""
    preprocessing: dict[str, Any] | None


def connect(url: str, *, timeout_s: float, ca_file: Path | None = None) -> Any:
    """Make a client that gives up soon and never tries again by itself; nothing is sent yet.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` (TLS) or ``unix://``, with user and password if need be.
    timeout_s : float
        Of connecting and of each answer.
    ca_file : Path, optional
        PEM file of the authority that signed the server's certificate; absent: the well-known ones.

    Returns
    -------
    redis.Redis
        Safe to use from several threads.

    Raises
    ------
    ConfigError
        If the URL is none, or the file is; the URL's password is not shown.
    """
    if ca_file is not None and not url.startswith("rediss://"):
        raise ConfigError(
            "reservoir.ca_file is for TLS, and reservoir.url does not begin with rediss://.",
            remedy="Write rediss://HOST:PORT/0, or leave reservoir.ca_file out.",
        )
    if ca_file is not None and not ca_file.is_file():
        raise ConfigError(
            f"reservoir.ca_file = {ca_file} is no file.", remedy="Name the PEM file of the server's authority."
        )
    trusting = {} if ca_file is None else {"ssl_ca_certs": str(ca_file)}
    try:
        client = redis.Redis.from_url(
            url,
            **trusting,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            # No client_name: to set one is a right that a worker's user need not have.
        )
        client.connection_pool.make_connection()  # does not connect, but reads what stands after the ?
    except (ValueError, TypeError, redis.RedisError) as error:
        raise ConfigError(
            f"reservoir.url cannot be used: {error}.", remedy="Give redis://HOST:PORT/0, rediss://... or unix:///PATH."
        ) from None
    return client


def address(url: str) -> str:
    """Return where a URL points to, fit for messages.

    Parameters
    ----------
    url : str
        May hold user and password.

    Returns
    -------
    str
        Without them.
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


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
    """

    stratum = "uniform"

    def __init__(self, client: Any, survey: str, *, where: str) -> None:
        self._client = client
        self.survey = survey
        self.where = where
        prefix = f"{{vae}}:{survey}"
        self._meta, self._ranks, self._stamps = self._keys = (
            f"{prefix}:meta",
            f"{prefix}:{self.stratum}:ranks",
            f"{prefix}:{self.stratum}:stamps",
        )
        self._script = (resources.files("stream_vae") / "reservoir.lua").read_text("utf-8")
        self._sha = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()

    def add(
        self,
        alert_ids: Sequence[str],
        alert_ranks: Sequence[int],
        records: Sequence[bytes],
        *,
        preprocessing: Preprocessing,
        capacity: int,
    ) -> Answer:
        """Offer a batch, in one call.

        Parameters
        ----------
        alert_ids : sequence of str
            May be empty: then only the answer counts.
        alert_ranks : sequence of int
            From `ranks`.
        records : sequence of bytes
            From `pack`.
        preprocessing : Preprocessing
            How the stamps were prepared.
        capacity : int
            How many stamps to keep.

        Returns
        -------
        Answer
            What became of it.

        Raises
        ------
        redis.RedisError
            If Redis does not answer, or refuses.
        """
        rows = [part for row in zip(alert_ids, alert_ranks, records, strict=True) for part in row]
        arguments = (LAYOUT, digest_of(preprocessing), canonical(preprocessing), capacity, *rows)
        try:
            answer = self._client.evalsha(self._sha, len(self._keys), *self._keys, *arguments)
        except redis.exceptions.NoScriptError:  # the first call to a server since it started
            self._client.script_load(self._script)
            answer = self._client.evalsha(self._sha, len(self._keys), *self._keys, *arguments)
        if answer[0] != b"ok":
            return Answer("layout" if answer[0] == b"layout" else "preprocessing", answer[1].decode())
        size, kept, largest, entered = (int(value) for value in answer[1:])
        return Answer("ok", "", size, kept, RANKS if largest < 0 else largest, entered)

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
        with self._answering():
            meta = self._read_meta()
            size = self._client.zcard(self._ranks)
            largest = self._client.zrange(self._ranks, -1, -1, withscores=True)
            memory = sum(self._client.memory_usage(key) or 0 for key in self._keys)
        capacity = int(meta["capacity"]) if meta else None
        full = capacity is not None and size >= capacity and size > 1
        seen = round((size - 1) * RANKS / largest[0][1]) if full else size
        preprocessing = json.loads(meta["preprocessing"]) if meta else None
        return Stats(self.survey, self.stratum, size, capacity, seen, memory, preprocessing)

    def draw(
        self, count: int | None, random: np.random.Generator, *, preprocessing: Preprocessing | None = None
    ) -> Sample:
        """Draw stamps at random, none twice.

        Parameters
        ----------
        count : int or None
            How many at most; None for all.
        random : numpy.random.Generator
            The same state and the same reservoir give the same sample.
        preprocessing : Preprocessing, optional
            What they must have been prepared with.

        Returns
        -------
        Sample
            Fewer than `count` where there are no more.

        Raises
        ------
        ConfigError
            If Redis does not answer, or holds nothing, another version's keys, or stamps prepared in another way.
        """
        with self._answering():
            meta = self._read_meta()
            ids = self._client.zrange(self._ranks, 0, -1) if meta else []
            if not ids:
                raise ConfigError(
                    f"The reservoir of {self.survey} at {self.where} is empty.",
                    remedy="Run a worker with these settings first: it fills the reservoir as it scores.",
                )
            found = self._prepared(meta, preprocessing)
            order = random.permutation(len(ids))
            return self._fetch([ids[i] for i in order], len(ids) if count is None else count, found)

    def _prepared(self, meta: dict[str, str], wanted: Preprocessing | None) -> Preprocessing:
        try:
            found = Preprocessing.model_validate_json(meta["preprocessing"])
        except ValueError as error:
            raise damaged("a preprocessing that does not parse") from error
        if wanted is not None and wanted != found:
            raise ConfigError(
                f"The reservoir of {self.survey} holds stamps prepared as {canonical(found)}; "
                f"{canonical(wanted)} is wanted.",
                remedy="Use a recipe with that preprocessing, or export and clear the reservoir and let it fill again.",
            )
        return found

    def _fetch(self, ids: Sequence[bytes], count: int, preprocessing: Preprocessing) -> Sample:
        """Read stamps in this order until there are enough; what was evicted meanwhile is passed over."""
        kept: list[bytes] = []
        parts: list[FloatArray] = []
        for start in range(0, len(ids), _AT_A_TIME):
            missing = count - len(kept)
            if missing <= 0:
                break
            some = ids[start : start + _AT_A_TIME]
            pairs = zip(some, self._client.hmget(self._stamps, some), strict=True)
            present = [(alert_id, record) for alert_id, record in pairs if record is not None][:missing]
            kept += [alert_id for alert_id, _ in present]
            parts.append(unpack([record for _, record in present], preprocessing))
        stamps = np.concatenate(parts) if parts else np.empty((0, *shape_of(preprocessing)), np.float32)
        return Sample(stamps, tuple(alert_id.decode("utf-8", "replace") for alert_id in kept), preprocessing)

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
        with self._answering():
            counted = self._client.type(self._stamps) == b"hash"
            stamps = self._client.hlen(self._stamps) if counted else 0
            self._client.unlink(*self._keys)
        return int(stamps)

    def close(self) -> None:
        """Close the connections; more than once does no harm."""
        self._client.close()

    def _read_meta(self) -> dict[str, str]:
        meta = {key.decode(): value.decode() for key, value in self._client.hgetall(self._meta).items()}
        layout = meta.get("layout", "")
        if layout != LAYOUT and (meta or self._client.exists(self._ranks)):
            raise layout_error(self.survey, self.where, layout)
        return meta

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except redis.AuthenticationError as error:
            raise ConfigError(
                f"Redis at reservoir.url = {self.where} does not accept our user and password: {error}.",
                remedy="Check them in reservoir.url: redis://USER:PASSWORD@HOST:PORT/0.",
            ) from error
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            if "certificate verify failed" in str(error):
                raise ConfigError(
                    f"The certificate of Redis at reservoir.url = {self.where} is not trusted: {error}.",
                    remedy="Set reservoir.ca_file to the PEM file of the authority that signed it, and name the server "
                    "in reservoir.url as its certificate does.",
                ) from error
            raise ConfigError(
                f"No Redis answers at reservoir.url = {self.where}: {error}.",
                remedy="Check that it runs and that address, user and password are right; `stream-vae doctor` helps.",
            ) from error
        except redis.exceptions.NoPermissionError as error:
            raise ConfigError(
                f"Redis at {self.where} refuses: {error}.",
                remedy="Let another user do this, or grant it.",
            ) from error
        except redis.RedisError as error:
            raise ConfigError(f"Redis at {self.where} refuses: {error}.", remedy="See the server's log.") from error


def layout_error(survey: str, where: str, layout: str) -> ConfigError:
    """Say that the keys are another version's.

    Parameters
    ----------
    survey, where : str
        Whose, and on which server.
    layout : str
        What the keys say; empty if they do not.

    Returns
    -------
    ConfigError
        With the remedy.
    """
    said = f"layout {layout!r}" if layout else "an unknown layout"
    return ConfigError(
        f"The reservoir of {survey} at {where} has {said}; this version of stream_vae reads and writes {LAYOUT!r}.",
        remedy="Use the version that wrote it, or start anew with `stream-vae reservoir clear`.",
    )
