"""One retraining at a time and survey: a lock in Redis that its holder renews, and that outlives no crash.

The lock is Redis' own recipe for a single server, a random token with an expiry, by redis-py. It keeps two trainings
from the same work; it does not fence: who lost it finds out at the next renewal, asks `held` before anything is
promoted, and what is promoted is checked against the incumbent all the same.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.exceptions import LockError

from stream_vae.errors import RetriableError

log = logging.getLogger(__name__)


class BusyError(RetriableError):
    """Another retraining of this survey runs.

    Parameters
    ----------
    message : str
        What happened.
    remedy : str
        What the reader can do about it.
    """


class Lease:
    """A lock that is held and renewed.

    Parameters
    ----------
    lock : redis.lock.Lock
        Acquired.
    every_s : float
        How often it is renewed.
    """

    def __init__(self, lock: Any, every_s: float) -> None:
        self._lock = lock
        self._every_s = every_s
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="retraining lock", daemon=True)
        self._thread.start()

    def held(self) -> bool:
        """Ask whether nobody else can have it.

        Returns
        -------
        bool
            False too if Redis does not answer.
        """
        if self._lost:
            return False
        try:
            return bool(self._lock.owned())
        except redis.RedisError:
            return False

    def _renew(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._lock.reacquire()
            except LockError as error:
                self._lost = True
                log.warning("the lock of this retraining is lost: %s. It will not promote anything.", error)
                return
            except redis.RedisError as error:
                log.warning("the lock of this retraining cannot be renewed now: %s", error)

    def close(self) -> None:
        """Give it back; may be called twice."""
        self._stop.set()
        self._thread.join(timeout=5.0)
        try:
            self._lock.release()
        except redis.RedisError as error:  # expired, another's, or Redis is gone
            log.debug("the lock was not given back: %s", error)


@contextmanager
def locked(client: Any, survey: str, *, expires_s: float) -> Iterator[Lease]:
    """Hold the survey's lock for as long as the block runs.

    Parameters
    ----------
    client : redis.Redis
        Of the reservoir.
    survey : str
        The profile's name.
    expires_s : float
        How long it outlives its holder.

    Yields
    ------
    Lease
        Held at the beginning.

    Raises
    ------
    BusyError
        If another retraining holds it.
    RetriableError
        If Redis does not answer.
    """
    lock = client.lock(f"{{vae}}:{survey}:retraining", timeout=expires_s, blocking=False, thread_local=False)
    try:
        taken = lock.acquire(blocking=False)
    except redis.RedisError as error:
        raise RetriableError(f"The lock of {survey}'s retraining cannot be had: {error}.") from error
    if not taken:
        raise BusyError(
            f"Another retraining of {survey} runs.",
            remedy=f"Wait for it. If it was killed, its lock ends by itself within {expires_s:g} s.",
        )
    lease = Lease(lock, expires_s / 3)
    try:
        yield lease
    finally:
        lease.close()
