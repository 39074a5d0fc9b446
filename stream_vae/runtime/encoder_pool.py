"""A pool of actors that encode for all workers: one GPU for many CPUs. This is the workers' side of it.

Stamps travel as integers of 16 bits: scaled, they lie within -1 and 1, where steps of 1/32767 are up to ten times finer
than those of float16, at the same two bytes. Codes come out within 1e-4 of what they would be; and the same stamp is
rounded the same way each time, so a redelivered alert gets the same bytes.

A worker waits for its answer before it reads on, so what is on its way is never more than a batch of each. An actor
that does not answer costs no alert: the worker backs off, and asks the next one.
"""

from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stream_vae.alert import Codes, FloatArray
from stream_vae.backends import Network
from stream_vae.errors import RetriableError, StreamVaeError
from stream_vae.model.release import Release
from stream_vae.settings import EncoderSettings

Packed = NDArray[np.int16] | FloatArray
"""(n, size, size, channels)."""

_STEPS = 32767


def pack(stamps: FloatArray) -> NDArray[np.int16]:
    """Round scaled stamps to 16 bits.

    Parameters
    ----------
    stamps : ndarray
        (n, size, size, channels) float32 within -1 and 1.

    Returns
    -------
    ndarray
        (n, size, size, channels) int16, in steps of 1/32767.
    """
    rounded: NDArray[np.int16] = np.rint(stamps * np.float32(_STEPS)).astype(np.int16)
    return rounded


def unpack(packed: Packed) -> FloatArray:
    """Undo `pack`.

    Parameters
    ----------
    packed : ndarray
        (n, size, size, channels) int16; float32 is given back as it is.

    Returns
    -------
    ndarray
        (n, size, size, channels) float32.
    """
    if packed.dtype != np.int16:
        return np.asarray(packed, np.float32)
    stamps: FloatArray = packed.astype(np.float32) * np.float32(1 / _STEPS)
    return stamps


class Failure(NamedTuple):
    """What an actor answers instead of codes; errors travel as values, so that they arrive as what they were."""

    message: str
    error: StreamVaeError | None = None
    """None: a stamp's fault."""


class RemoteEncoder(Protocol):
    """An actor as a worker sees it; `stream_vae.runtime.remote` has the real one."""

    def load(self, release_id: str, timeout_s: float) -> str:
        """Wait until the actor has a release ready.

        Parameters
        ----------
        release_id : str
            A full id.
        timeout_s : float
            Longest wait.

        Returns
        -------
        str
            What runs it.

        Raises
        ------
        StreamVaeError
            Why it cannot be used; RetriableError if the actor does not answer.
        """
        ...

    def encode(self, release_id: str, stamps: Packed, timeout_s: float) -> FloatArray | Failure:
        """Encode stamps.

        Parameters
        ----------
        release_id : str
            Whose encoder.
        stamps : ndarray
            (n, size, size, channels) as `pack` makes them, or float32.
        timeout_s : float
            Longest wait.

        Returns
        -------
        ndarray or Failure
            (n, 2 * latent size) float32: means, then log-variances.

        Raises
        ------
        RetriableError
            If the actor does not answer.
        """
        ...


class Pool:
    """The actors that a worker may ask; shared by its networks, and renewed when the supervisor replaces one.

    Parameters
    ----------
    encoders : sequence of RemoteEncoder
        All of them.
    first : int
        Which one this worker asks first.
    section : EncoderSettings
        ``[encoder]``.
    load_timeout_s : float
        Longest wait until an actor has a release ready.
    """

    def __init__(
        self, encoders: Sequence[RemoteEncoder], first: int, section: EncoderSettings, load_timeout_s: float
    ) -> None:
        self._encoders = tuple(encoders)
        self._next = first
        self._section = section
        self._load_timeout_s = load_timeout_s

    def renew(self, encoders: Sequence[RemoteEncoder]) -> None:
        """Ask these from now on; safe from other threads.

        Parameters
        ----------
        encoders : sequence of RemoteEncoder
            All of them.
        """
        self._encoders = tuple(encoders)

    def open(self, release: Release) -> Network:
        """Make all actors ready for a release.

        Parameters
        ----------
        release : Release
            Verified; the actors fetch it from the store themselves.

        Returns
        -------
        Network
            Encodes by asking one of them.

        Raises
        ------
        ConfigError
            If the release cannot be used there.
        RetriableError
            If an actor does not answer.
        """
        deadline = monotonic() + self._load_timeout_s
        names = [encoder.load(release.id, max(0.1, deadline - monotonic())) for encoder in self._encoders]
        return PooledNetwork(self, release, f"{names[0]}, {len(names)} actor{'s' * (len(names) > 1)}")

    def encode(self, release_id: str, stamps: Packed) -> FloatArray:
        """Let one of the actors encode.

        Parameters
        ----------
        release_id : str
            Whose encoder.
        stamps : ndarray
            (n, size, size, channels).

        Returns
        -------
        ndarray
            (n, 2 * latent size).

        Raises
        ------
        RetriableError
            If it does not answer; another one is asked next time.
        ValueError
            If the encoder fails on these stamps.
        """
        encoder = self._encoders[self._next % len(self._encoders)]
        try:
            answer = encoder.encode(release_id, stamps, self._section.timeout_s)
        except RetriableError:
            self._next += 1
            raise
        if not isinstance(answer, Failure):
            return answer
        if answer.error is not None:
            # It was in use until now: whatever is wrong with the store or the actor, the alerts can wait for it.
            raise RetriableError(answer.error.args[0], remedy=answer.error.remedy)
        raise ValueError(answer.message)

    @property
    def rows(self) -> int:
        """Stamps that are sent at a time."""
        return self._section.max_stamps


class PooledNetwork:
    """A release's encoder in the pool; a `Network`.

    Parameters
    ----------
    pool : Pool
        Whom to ask.
    release : Release
        Whose encoder.
    name : str
        What runs it there.
    """

    def __init__(self, pool: Pool, release: Release, name: str) -> None:
        self.name = name
        self._pool = pool
        self._release_id = release.id
        # Only what fills masked pixels can lie outside -1 and 1, by the way that stamps are scaled.
        self._fits = abs(release.card.preprocessing.fill) <= 1

    def run(self, stamps: FloatArray) -> Codes:
        """Encode stamps.

        Parameters
        ----------
        stamps : ndarray
            (n, size, size, channels) scaled float32, n at least 1.

        Returns
        -------
        Codes
            (n, latent size) each.

        Raises
        ------
        RetriableError
            If the pool does not answer.
        ValueError
            If the encoder fails on these stamps.
        """
        packed: Packed = pack(stamps) if self._fits else stamps
        rows = self._pool.rows
        parts = [self._pool.encode(self._release_id, packed[i : i + rows]) for i in range(0, len(packed), rows)]
        heads = np.concatenate(parts) if len(parts) > 1 else parts[0]
        half = heads.shape[1] // 2
        # Copies: what Ray gives is read-only and belongs to its object store.
        return Codes(heads[:, :half].copy(), heads[:, half:].copy())
