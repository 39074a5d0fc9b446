"""Actors as others see them: the supervisor, which never waits for one, and a worker, which waits for its encoder."""

import logging
from time import monotonic
from typing import Any

from prometheus_client import Metric

from stream_vae.alert import FloatArray
from stream_vae.errors import RetriableError, StreamVaeError
from stream_vae.runtime.encoder_pool import Failure, Packed
from stream_vae.runtime.status import Status

log = logging.getLogger(__name__)

_LONGEST_REASON = 300


class WorkerLostError(StreamVaeError):
    """An actor is gone: its process was killed, its node lost, or it could not be made.

    Parameters
    ----------
    message : str
        What Ray says of it.
    remedy : str
        What the reader can do about it.
    """


class RemoteEncoder:
    """One `EncoderActor`, as workers see it; goes to them as an argument.

    Parameters
    ----------
    actor : ActorHandle
        Of an `EncoderActor`.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

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
        answer: str | StreamVaeError = self._answer(self._actor.load.remote(release_id), timeout_s)
        if isinstance(answer, StreamVaeError):
            raise answer
        return answer

    def encode(self, release_id: str, stamps: Packed, timeout_s: float) -> FloatArray | Failure:
        """Encode stamps.

        Parameters
        ----------
        release_id : str
            Whose encoder.
        stamps : ndarray
            (n, size, size, channels).
        timeout_s : float
            Longest wait.

        Returns
        -------
        ndarray or Failure
            (n, 2 * latent size).

        Raises
        ------
        RetriableError
            If the actor does not answer.
        """
        answer: FloatArray | Failure = self._answer(self._actor.encode.remote(release_id, stamps), timeout_s)
        return answer

    @staticmethod
    def _answer(asked: Any, timeout_s: float) -> Any:
        import ray

        try:
            return ray.get(asked, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(asked)
            raise RetriableError(f"The encoder pool did not answer within {timeout_s:.3g} s.") from None
        except ray.exceptions.RayError as error:
            raise RetriableError(f"The encoder pool does not answer: {gist(error)}.") from None


class RemoteWorker:
    """One `WorkerActor` or `EncoderActor`, as the supervisor sees it.

    Parameters
    ----------
    ray : module
        Ray.
    actor : ActorHandle
        Of either.
    """

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray = ray
        self.actor = actor
        self._asked: Any = None
        self._sampled: Any = None
        self._families: list[Metric] = []
        self.status: Status | None = None
        """The last answer."""
        self.answered_at = monotonic()
        """When it came, on the monotonic clock."""

    def poll(self) -> Status | None:
        """Take the answer to the last question, if it is there, and ask anew.

        Returns
        -------
        Status or None
            The last answer so far.

        Raises
        ------
        WorkerLostError
            If the actor is gone.
        """
        if self._asked is not None and self._ray.wait([self._asked], timeout=0)[0]:
            asked, self._asked = self._asked, None
            try:
                self.status = self._ray.get(asked)
                self.answered_at = monotonic()
            except self._ray.exceptions.ActorUnavailableError as error:
                log.warning("a worker cannot be reached for now: %s", gist(error))
            except self._ray.exceptions.RayError as error:
                raise WorkerLostError(gist(error)) from None
        if self._asked is None:
            self._asked = self.actor.status.remote()
        return self.status

    def ask_metrics(self) -> Any:
        """Ask for a sample of the worker's metrics.

        Returns
        -------
        ObjectRef
            To wait for, together with others'.
        """
        self._sampled = self.actor.metrics.remote()
        return self._sampled

    def metrics(self) -> list[Metric]:
        """Take the sample that `ask_metrics` asked for.

        Returns
        -------
        list of Metric
            The one before, if it is not there yet.
        """
        try:
            if self._sampled is not None and self._ray.wait([self._sampled], timeout=0)[0]:
                self._families = self._ray.get(self._sampled)
        except self._ray.exceptions.RayError as error:
            log.debug("no metrics: %s", gist(error))
        return self._families

    def stop(self) -> None:
        """Ask the worker to settle what it has and leave."""
        self.actor.stop.remote()

    def kill(self) -> None:
        """End the worker's process at once; what it had not settled will be read again."""
        self._ray.kill(self.actor, no_restart=True)


def gist(error: BaseException) -> str:
    """Take the line that tells the reason out of Ray's many.

    Parameters
    ----------
    error : BaseException
        Ray's.

    Returns
    -------
    str
        One line, not too long.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((line for line in lines if "because" in line), lines[0])
    return line.partition(" Some common causes")[0][:_LONGEST_REASON]
