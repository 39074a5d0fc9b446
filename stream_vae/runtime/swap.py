"""Taking a new release while alerts go on: looked for, verified and warmed up beside the path, put in between batches.

A thread asks the store which release is current, and which is on trial. When that is another one than before, it
fetches, verifies, builds and tries it; the worker's loop only takes the finished thing. Whatever is wrong with a
release costs no alert: it is refused and reported, and the old one goes on.
"""

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from stream_vae.errors import ConfigError, RetriableError, StreamVaeError
from stream_vae.metrics import Metrics
from stream_vae.model.challenger import Challenger
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore
from stream_vae.pipeline import Stages

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """A release that is ready to score."""

    release: Release
    stages: Stages
    """Warmed up."""


class Trial(NamedTuple):
    """What is on trial, if anything is."""

    challenger: Challenger | None = None
    prepared: Prepared | None = None
    """None where nothing is, or where it cannot be used."""


class ReleaseWatch:
    """Follows what a store calls current, and what it calls the challenger.

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
        self._preprocessing = release.card.preprocessing
        self._prepare = prepare
        self._metrics = metrics
        self._interval_s = interval_s
        self._complaint = ""
        self._ready: Prepared | None = None
        self._trial: Trial | None = None
        self._tried: Challenger | None = None
        self._trial_complaint = ""
        self._stop = threading.Event()
        # Before the first alert: one that is delivered again after a restart goes the way it went before.
        self._look_for_challenger()
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

    def take_trial(self) -> Trial | None:
        """Take what became of the trial, if it changed.

        Returns
        -------
        Trial or None
            Given once: the one to hold from now on, or an empty one where none is any more.
        """
        if self._trial is None:
            return None
        trial, self._trial = self._trial, None
        return trial

    def close(self) -> None:
        """Look no more; may be called twice. A release that is being prepared is left to itself."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._look()
            self._look_for_challenger()

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
            self._preprocessing = release.card.preprocessing
            self._tried = None  # whatever is on trial, it is against this one now
            self._ready = Prepared(release, stages)
            self._calm()

    def _look_for_challenger(self) -> None:
        found = None
        name = "of the trial"
        try:
            store = ReleaseStore(self._url)
            found = store.challenger()
            if found == self._tried:
                self._trial_complaint = ""
                return
            if found is not None and found.release != self._serving:
                name = found.release
                prepared = self._challenge(store.load(name))
            else:
                prepared = None
        except RetriableError:
            return  # the store is away for now, which `_look` says
        except Exception as error:  # noqa: BLE001 - nothing in a release may end the thread that looks for the next
            self._refuse_trial(name, str(error) if isinstance(error, StreamVaeError) else repr(error))
        else:
            self._tried, self._trial, self._trial_complaint = found, Trial(found, prepared), ""

    def _challenge(self, release: Release) -> Prepared:
        if release.card.preprocessing != self._preprocessing:
            raise ConfigError("it prepares stamps in another way than the current one.")
        return Prepared(release, self._prepare(release))

    def _refuse_trial(self, name: str, why: str) -> None:
        """End the trial that there was, and try again, as a store can be mended."""
        if self._tried is not None:
            self._tried, self._trial = None, Trial()
        complaint = f"challenger {name} of {self._url} is not tried: {why}"
        if complaint != self._trial_complaint:
            log.error("%s", complaint)
            self._metrics.trials.labels(self._metrics.survey, "refused").inc()
        self._trial_complaint = complaint

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
