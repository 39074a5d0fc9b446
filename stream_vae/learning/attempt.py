"""One retraining beside the process that asked for it: as a task of a Ray cluster, or in a process of its own.

Either way the asker is not kept from its other work, and TensorFlow's memory goes with the attempt. What comes back is
plain: an answer, or an error by its class and its words. One that dies without a word is an error too.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from stream_vae import errors
from stream_vae.errors import FatalError, StreamVaeError
from stream_vae.settings import Settings, from_plain, to_plain

log = logging.getLogger(__name__)

_PATIENCE_S = 10.0
"""Between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class Ended:
    """How an attempt ended: with one of these."""

    found: dict[str, Any] | None = None
    """`stream_vae.learning.retrain.Retrained`, as a document."""
    error: StreamVaeError | None = None


class Attempt(Protocol):
    """A retraining that runs somewhere."""

    def poll(self) -> Ended | None:
        """Look whether it has ended.

        Returns
        -------
        Ended or None
            None while it runs.
        """

    def stop(self) -> None:
        """End it where it stands; what it left goes on next time. May be called twice."""


Launch = Callable[[Settings, str], Attempt]
"""Begins an attempt, given the settings and what asked for it."""


def carry_out(document: dict[str, Any], trigger: str, level: int) -> dict[str, Any]:
    """Retrain once, wherever this is called.

    Parameters
    ----------
    document : dict
        From `stream_vae.settings.to_plain`.
    trigger : str
        What asked for it.
    level : int
        Of the log.

    Returns
    -------
    dict
        `found`, or `error`, `message` and `remedy`.
    """
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("stream_vae").setLevel(level)
    from stream_vae.learning.retrain import retrain_now

    try:
        return {"found": retrain_now(from_plain(document), trigger=trigger, progress=False).document()}
    except StreamVaeError as error:
        # By the class that says what to do next: a subclass may be known to its own module alone.
        kind = next(each.__name__ for each in type(error).__mro__ if each.__module__ == errors.__name__)
        return {"error": kind, "message": error.args[0], "remedy": error.remedy}
    except Exception as error:
        log.exception("a retraining failed")
        return {"error": "FatalError", "message": f"{type(error).__name__}: {error}", "remedy": ""}


def _ended(answer: dict[str, Any]) -> Ended:
    if "found" in answer:
        return Ended(found=answer["found"])
    kind: type[StreamVaeError] = getattr(errors, answer["error"])
    return Ended(error=kind(answer["message"], remedy=answer["remedy"]))


def _died(how: str) -> Ended:
    return Ended(
        error=FatalError(
            f"The retraining died without a word ({how}).",
            remedy="Out of memory, perhaps: lower data.max_stamps in the recipe, or give it more.",
        )
    )


class ProcessAttempt:
    """A retraining in a process of its own on this machine.

    Parameters
    ----------
    settings : Settings
        Everything; they go through a pipe, secrets too.
    trigger : str
        What asked for it.
    """

    def __init__(self, settings: Settings, trigger: str) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._answers, theirs = context.Pipe(duplex=False)
        arguments = (theirs, to_plain(settings), trigger, _level())
        self._process = context.Process(target=_in_process, args=arguments, name="retraining", daemon=True)
        self._process.start()
        theirs.close()
        self._ended: Ended | None = None

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    def poll(self) -> Ended | None:
        """Look whether it has ended.

        Returns
        -------
        Ended or None
            None while it runs.
        """
        if self._ended is None:
            try:
                if self._answers.poll(0):
                    self._ended = _ended(self._answers.recv())
            except (EOFError, OSError):
                self._process.join(timeout=_PATIENCE_S)
                self._ended = _died(f"exit code {self._process.exitcode}")
        return self._ended

    def stop(self) -> None:
        """End it where it stands."""
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(timeout=_PATIENCE_S)
            if self._process.is_alive():
                self._process.kill()
        self._process.join(timeout=_PATIENCE_S)
        self._answers.close()
        self._ended = self._ended or _died("stopped")


def _in_process(answers: Connection, document: dict[str, Any], trigger: str, level: int) -> None:
    threading.Thread(target=_end_with_parent, name="orphan watch", daemon=True).start()
    answers.send(carry_out(document, trigger, level))
    answers.close()


def _end_with_parent() -> None:
    """End at once when the asker is gone: nobody would take the answer, and the next one goes on from here."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


class RayAttempt:
    """A retraining as a Ray task with its own resources.

    Parameters
    ----------
    ray : module
        Ray, connected.
    settings : Settings
        Everything; `[retrain]` says what Ray sets aside.
    trigger : str
        What asked for it.
    """

    def __init__(self, ray: Any, settings: Settings, trigger: str) -> None:
        self._ray = ray
        section = settings.retrain
        # No retries by Ray: one that died goes on from its checkpoint when it is asked for again, under its own lock.
        task = ray.remote(carry_out).options(
            num_cpus=section.cpus, num_gpus=section.gpus, max_retries=0, name=f"retraining of {settings.survey}"
        )
        self._ref = task.remote(to_plain(settings), trigger, _level())
        self._since = time.monotonic()
        self._ended: Ended | None = None

    def poll(self) -> Ended | None:
        """Look whether it has ended.

        Returns
        -------
        Ended or None
            None while it runs, or waits for its place in the cluster.
        """
        if self._ended is None and self._ray.wait([self._ref], timeout=0)[0]:
            try:
                self._ended = _ended(self._ray.get(self._ref))
            except Exception as error:  # noqa: BLE001 - Ray's errors share no base class with ours
                self._ended = _died(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return self._ended

    def stop(self) -> None:
        """End it where it stands."""
        if self._ended is None:
            self._ray.cancel(self._ref, force=True)
            self._ended = _died("stopped")


def _level() -> int:
    return logging.getLogger("stream_vae").getEffectiveLevel()
