"""What flows between the stages: packets in, alerts, and messages out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from stream_vae.errors import Reason

if TYPE_CHECKING:
    from stream_vae.avro.framing import Frame, Pieces
    from stream_vae.layout import Layout

Headers = Sequence[tuple[str, bytes | None]]
Fate = Literal["published", "dead_lettered", "filtered"]
FloatArray = npt.NDArray[np.float32]

# Named tuples and not dataclasses: one of each is made per alert, and these cost a third.


class Packet(NamedTuple):
    """One Kafka message as it came."""

    value: bytes
    topic: str
    partition: int
    offset: int
    key: bytes | None = None
    timestamp_ms: int | None = None
    """Kafka's timestamp; None where the topic has none."""
    headers: Headers = ()

    @property
    def origin(self) -> str:
        """``topic/partition/offset``, as headers and logs write it."""
        return f"{self.topic}/{self.partition}/{self.offset}"


class Alert(NamedTuple):
    """A packet whose record was walked: byte spans of its fields, nothing decoded yet."""

    packet: Packet
    frame: "Frame"
    layout: "Layout"
    spans: npt.NDArray[np.int64]
    """(number of paths, 2): start and end in the body; -1 where the value is null or absent."""
    alert_id: str

    def field(self, name: str) -> Any:
        """Decode one field of the survey profile.

        Parameters
        ----------
        name : str
            A field of `stream_vae.surveys.Fields`, or ``height`` or ``width``.

        Returns
        -------
        int, float, str, bytes or None
            None where the alert does not say.
        """
        return self.layout.value(name, self.frame.body, self.spans)

    def cutout(self, name: str) -> memoryview | None:
        """Return the bytes of one cutout.

        Parameters
        ----------
        name : str
            ``difference``, ``science`` or ``template``.

        Returns
        -------
        memoryview or None
            A view of the body; None where the alert has no such cutout.
        """
        return self.layout.cutout(name, self.frame.body, self.spans)


def field_of_each(alerts: Sequence[Alert], name: str) -> list[Any]:
    """Decode one field of a batch: integers of one schema in one compiled call.

    Parameters
    ----------
    alerts : sequence of Alert
        Any.
    name : str
        As for `Alert.field`.

    Returns
    -------
    list of int, float, str, bytes or None
        One an alert.
    """
    if alerts:
        layout = alerts[0].layout
        where = np.array([alert.frame.address for alert in alerts], np.uintp)
        if where.all() and all(alert.layout is layout for alert in alerts):
            found = layout.integers(name, where, np.array([alert.spans for alert in alerts]))
            if found is not None:
                return found
    return [alert.field(name) for alert in alerts]


class Rejected(NamedTuple):
    """A packet that ends in the dead-letter topic."""

    packet: Packet
    reason: Reason
    stage: str
    error: str
    alert_id: str | None = None


class Codes(NamedTuple):
    """Latent posteriors of a batch; rows of NaN where an alert was not scored."""

    z_mean: FloatArray
    """(n, latent size)."""
    z_log_var: FloatArray
    """(n, latent size), natural logarithm of the variance."""


class Scores(NamedTuple):
    """Scores of a batch; NaN where an alert was not scored or the release cannot tell."""

    real_score: FloatArray
    """(n,), probability of being real, expected over the posterior."""
    real_score_std: FloatArray
    """(n,), its standard deviation over the posterior."""
    reference_distance: FloatArray
    """(n,), to the nearest known real transients in latent space, as `stream_vae.learning.search` measures it."""
    novelty: FloatArray
    """(n,), share of the training stamps that lie closer to their centre."""


class Outgoing(NamedTuple):
    """A message to produce."""

    topic: str
    pieces: "Pieces"
    """Of the value, in order."""
    key: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp_ms: int | None

    @property
    def value(self) -> bytes:
        """Join the pieces: just before it is sent, so that the copy is still in the processor's cache when it is."""
        return b"".join(self.pieces)

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return sum(map(len, self.pieces))


class Outcome(NamedTuple):
    """What became of one packet: exactly one of published, dead-lettered and filtered."""

    packet: Packet
    messages: tuple[Outgoing, ...]
    fate: Fate
