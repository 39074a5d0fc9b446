"""What goes to the reservoir's scripts and what comes back."""

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal, NamedTuple

import numpy as np
import redis

from stream_vae.errors import ConfigError
from stream_vae.sampling import SAMPLED, Capacities, Floats

LAYOUT = "2"
"""Of keys and records; another version's are refused, never guessed at."""

Status = Literal["ok", "layout", "preprocessing"]


class Batch(NamedTuple):
    """Alerts to offer, one row each."""

    alert_ids: Sequence[str]
    ranks: Floats
    """(n, 4) from `stream_vae.sampling.sampled_ranks`; inf where the alert cannot enter a stratum."""
    records: Sequence[bytes]
    """From `stream_vae.sampling.pack`."""

    @classmethod
    def empty(cls) -> "Batch":
        """Make one without alerts: to ask for thresholds.

        Returns
        -------
        Batch
            With no rows.
        """
        return cls((), np.empty((0, len(SAMPLED))), ())


class Answer(NamedTuple):
    """What Redis says to an offer."""

    status: Status
    """``ok``, or what of the keys does not fit; then nothing was written."""
    found: str = ""
    """The layout or the digest of the preprocessing that is there instead."""
    entered: int = 0
    """Alerts that are new in at least one stratum."""
    stamps: int = 0
    """Held in all, each once."""
    sizes: Capacities = Capacities(0)
    capacities: Capacities = Capacities(0)
    """In force: of a sample the smallest that was ever asked for since the last `Reservoir.clear`."""
    thresholds: tuple[float, ...] = (np.inf,) * len(SAMPLED)
    """In the order of `SAMPLED`: alerts of this rank and above cannot enter any more."""
    recent_days: float | None = None
    """In force: what the first worker asked for."""
    name: str = ""
    """Drawn at random when the first alert entered; empty while there is none."""
    waiting_version: str = "0"
    waiting: frozenset[str] | None = None
    """Labelled alerts whose stamp is wanted; None where the caller knows them already, or did not ask."""


class Script:
    """A script beside this module, called by its digest and taught to servers that do not know it.

    Parameters
    ----------
    name : str
        Its file.
    """

    def __init__(self, name: str) -> None:
        self._text = (resources.files("stream_vae") / name).read_text("utf-8")
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: Any, keys: Sequence[str], *arguments: object) -> Any:
        """Call it.

        Parameters
        ----------
        client : redis.Redis
            Whose server is asked.
        keys : sequence of str
            All that it uses.
        *arguments : object
            Text, bytes and numbers.

        Returns
        -------
        object
            What it gives.

        Raises
        ------
        redis.RedisError
            If Redis does not answer, or refuses.
        """
        try:
            return client.evalsha(self._sha, len(keys), *keys, *arguments)
        except redis.exceptions.NoScriptError:  # the first call to a server since it started
            client.script_load(self._text)
            return client.evalsha(self._sha, len(keys), *keys, *arguments)


def parse_answer(found: Sequence[Any], *, asked: str | None) -> Answer:
    """Read what ``reservoir.lua`` gives.

    Parameters
    ----------
    found : sequence
        As the client has it.
    asked : str or None
        The version of the waiting ids that it was given.

    Returns
    -------
    Answer
        With names.
    """
    if found[0] != b"ok":
        return Answer("layout" if found[0] == b"layout" else "preprocessing", found[1].decode())
    entered, stamps = int(found[2]), int(found[3])
    version = found[5].decode()
    waiting = frozenset(alert_id.decode("utf-8", "replace") for alert_id in found[6])
    told = asked is not None and asked != version
    sizes, capacities, thresholds = found[7::3], found[8::3], found[9::3]

    def ordered(numbers: Sequence[int]) -> Capacities:
        return Capacities._make((*numbers[1:], numbers[0]))

    return Answer(
        "ok",
        "",
        entered,
        stamps,
        ordered(sizes),
        ordered(capacities),
        tuple(float(threshold) for threshold in thresholds[1:]),
        float(found[4]),
        found[1].decode(),
        version,
        waiting if told else None,
    )


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
