"""Taking a new release while alerts go on: looked for, verified and warmed up beside the path, put in between batches.

A thread asks the store which release is current. When that is another one than what scores, it fetches, verifies,
builds and tries it; the worker's loop only takes the finished thing. Whatever is wrong with a release costs no
alert: it is refused and reported, and the old one goes on.
"""

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from stream_vae.errors import StreamVaeError
from stream_vae.metrics import Metrics
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore
from stream_vae.pipeline import Stages

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """A release that is ready to score."""

    release: Release
    stages: Stages
    """Warmed up."""


class ReleaseWatch:
    """Follows what a store calls current.

    Parameters
    ----------
    url : str
        The store's.
    release : Release
        What scores now.
    prepare : callable
        Makes a release ready, in this watch's thread; raises where it cannot.
    metrics : Metrics
        Where to count.
    interval_s : float
        How often the store is asked.
    """

    def __init__(
        self, url: str, release: Release, prepare: Callable[[Release], Stages], metrics: Metrics, *, interval_s: float
    ) -> None:
        self._url = url
        self._serving = release.id
        self._prepare = prepare
        self._metrics = metrics
        self._interval_s = interval_s
        self._complaint = ""
        self._ready: Prepared | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="releases", daemon=True)
        self._thread.start()

    def take(self) -> Prepared | None:
        """Take the new release, if there is one; costs nothing where there is none.

        Returns
        -------
        Prepared or None
            Given once; the caller scores with it from now on.
        """
        if self._ready is None:
            return None
        prepared, self._ready = self._ready, None
        return prepared

    def close(self) -> None:
        """Look no more; may be called twice. A release that is being prepared is left to itself."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        name = "the current one"
        try:
            # A store object of its own each time: a remote release's local copy goes with it when it is replaced.
            store = ReleaseStore(self._url)
            current = store.current()
            if current is None or current == self._serving:
                self._calm()
                return
            name = current
            release = store.load(current)
            stages = self._prepare(release)
        except StreamVaeError as error:
            self._refuse(name, str(error))
        except Exception as error:  # noqa: BLE001 - nothing in a release may end the thread that looks for the next
            self._refuse(name, f"{type(error).__name__}: {error}")
        else:
            self._serving = release.id
            self._ready = Prepared(release, stages)
            self._calm()

    def _calm(self) -> None:
        self._complaint = ""
        self._metrics.release_refused.labels(self._metrics.survey).set(0)

    def _refuse(self, name: str, why: str) -> None:
        """Say it when it begins, and not again while it lasts; it is tried again, as a store can be mended."""
        self._metrics.release_refused.labels(self._metrics.survey).set(1)
        complaint = f"release {name} of {self._url} is not taken: {why}"
        if complaint != self._complaint:
            log.error("%s Scoring goes on with %s.", complaint, self._serving)
            self._metrics.release_swaps.labels(self._metrics.survey, "refused").inc()
        self._complaint = complaint
