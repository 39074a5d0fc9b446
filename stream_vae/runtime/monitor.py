"""Watching over the releases of one worker beside the alert path: windows, drift, and the report to Redis.

The worker's thread only counts: it puts each batch into bins, and now and then sets a few stamps aside. A thread of
its own decodes those, compares windows with the release's reference when they end, exports the figures and reports.
What fails here is said once and costs no alert.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic

import numpy as np
import numpy.typing as npt

from stream_vae.alert import Alert, Codes, FloatArray, Scores, field_of_each
from stream_vae.drift import ALL, FIGURES, LEAST_REFERENCE, DriftReference, Figure, Limits, Tally, drift, summed_square
from stream_vae.errors import StreamVaeError
from stream_vae.metrics import Metrics
from stream_vae.model.reconstruct import DECODER, Reconstructor
from stream_vae.model.release import Release
from stream_vae.quality import Quality
from stream_vae.runtime.vitals import Poster, ReleaseVitals
from stream_vae.settings import DriftSettings
from stream_vae.stages.stamp import Stamps
from stream_vae.surveys import Profile

log = logging.getLogger(__name__)

_DECODED_AT_A_TIME = 8
_DECODED_EVERY_S = 0.4
"""Eight stamps of a batch, twenty a second: a thousandth of a core."""
_KEPT_RELEASES = 4
"""Reported on: what scores, what is on trial, and what scored before, to compare with."""
_TICK_S = 0.5


class Gauge:
    """Counts what one release says; its methods may be called from several threads.

    Parameters
    ----------
    release : Release
        Verified.
    profile : Profile
        The survey.

    Raises
    ------
    ConfigError
        If the release's reference cannot be used.
    """

    def __init__(self, release: Release, profile: Profile) -> None:
        self.release = release
        self.reference = DriftReference.of(release)
        self._profile = profile
        self._bands = tuple(dict.fromkeys(profile.band_names.values()))
        self._tally = Tally(self.reference, self._bands)
        self._numbers = [0, 0]
        self._last: ReleaseVitals | None = None
        self._began = monotonic()
        self._aside: deque[tuple[npt.NDArray[np.intp], FloatArray, FloatArray]] = deque(maxlen=4)
        self._next_aside = 0.0
        self._decodes = release.path(DECODER) is not None and len(self.reference.error_edges) > 0
        self._decoder: Reconstructor | None = None
        self._random = np.random.default_rng()
        self._lock = threading.Lock()
        self._complained = False

    def observe(self, alerts: Sequence[Alert], stamps: Stamps, codes: Codes, scores: Scores) -> None:
        """Count a batch; the pipeline calls this.

        Parameters
        ----------
        alerts : sequence of Alert
            One a row.
        stamps : Stamps
            As they were encoded.
        codes : Codes
            NaN where an alert has none.
        scores : Scores
            NaN where an alert has none.
        """
        try:
            self.count(self.bands_of(alerts), stamps, codes, scores)
        except Exception as error:  # noqa: BLE001 - whatever is wrong here, the alerts must be published
            self._complain(error)

    def bands_of(self, alerts: Sequence[Alert]) -> list[str | None]:
        """Read the bands of alerts.

        Parameters
        ----------
        alerts : sequence of Alert
            Any.

        Returns
        -------
        list of str or None
            One an alert; None where it does not say.
        """
        return [*map(self._profile.band, field_of_each(alerts, "band"))]

    def count(self, bands: Sequence[str | None], stamps: Stamps, codes: Codes, scores: Scores) -> None:
        """Count a batch whose bands are known.

        Parameters
        ----------
        bands : sequence of str or None
            One a row.
        stamps : Stamps
            As they were encoded.
        codes : Codes
            NaN where an alert has none.
        scores : Scores
            NaN where an alert has none.
        """
        if not bands:
            return
        quality, coded = stamps.quality, np.isfinite(codes.z_mean[:, 0])
        not_finite = int(np.count_nonzero(quality & np.uint32(Quality.ENCODER_OUTPUT_NOT_FINITE)))
        failed = int(np.count_nonzero(stamps.scoreable & ~coded))  # neither code nor flag: a dead letter
        with self._lock:
            numbers = self._tally.numbers(bands)
            self._tally.add(numbers, codes.z_mean, scores.real_score, quality)
            self._numbers[0] += failed
            self._numbers[1] += not_finite
        if self._decodes and monotonic() >= self._next_aside:
            self._next_aside = monotonic() + _DECODED_EVERY_S
            usable = np.flatnonzero(coded)
            some = self._random.permutation(usable)[:_DECODED_AT_A_TIME]
            self._aside.append((numbers[some], stamps.stamps[some], codes.z_mean[some]))

    def decode(self) -> None:
        """Reconstruct the stamps that were set aside; slow."""
        while self._aside:
            numbers, stamps, z_mean = self._aside.popleft()
            try:
                if self._decoder is None:
                    self._decoder = Reconstructor(self.release)
                errors = summed_square(stamps, self._decoder.reconstruct(z_mean))
            except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
                self._decodes = False
                self._complain(error)
                return
            with self._lock:
                self._tally.add_errors(numbers, errors)

    def end_window(self, section: DriftSettings) -> ReleaseVitals | None:
        """End the window if it is time.

        Parameters
        ----------
        section : DriftSettings
            ``[drift]``.

        Returns
        -------
        ReleaseVitals or None
            Of the window that ended.
        """
        with self._lock:
            alerts, age_s = self._tally.alerts, monotonic() - self._began
            if alerts < section.window_alerts and not (age_s >= section.window_s and alerts >= section.least_alerts):
                return None
            self._last = self._open()
            # Squared errors are few: those of a window that ends before there are enough count in the next one.
            self._tally.clear(errors=self._tally.errors >= LEAST_REFERENCE)
            self._numbers = [0, 0]
            self._began = monotonic()
            return self._last

    def vitals(self) -> ReleaseVitals:
        """Give the last window and what came since.

        Returns
        -------
        ReleaseVitals
            Of the latest alerts.
        """
        with self._lock:
            return self._open() if self._last is None else self._last + self._open()

    def _open(self) -> ReleaseVitals:
        dead_lettered, not_finite = self._numbers
        return ReleaseVitals(self._tally.counts(), self._tally.alerts, dead_lettered, not_finite)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            log.warning("drift of %s is not measured: %r", self.release.id, error)
        self._complained = True


class Monitor:
    """Watches over the releases that one worker scores with.

    Parameters
    ----------
    section : DriftSettings
        ``[drift]``.
    profile : Profile
        The survey.
    metrics : Metrics
        Where figures go.
    poster : Poster, optional
        Reports to Redis; closed with this.
    """

    def __init__(
        self, section: DriftSettings, profile: Profile, metrics: Metrics, poster: Poster | None = None
    ) -> None:
        self._section = section
        self._profile = profile
        self._metrics = metrics
        self._poster = poster
        self._limits = Limits(section.psi_limit, section.least_alerts)
        self._gauges: dict[str, Gauge] = {}
        self._current = ""
        self._alarms: frozenset[tuple[str, str]] = frozenset()
        self._complaint = ""
        self._changed = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)
        self._thread.start()

    def gauge(self, release: Release, *, current: bool = False) -> Gauge | None:
        """Make or find what counts for a release.

        Parameters
        ----------
        release : Release
            Verified.
        current : bool
            Its figures are the ones to export from now on.

        Returns
        -------
        Gauge or None
            None where its reference cannot be used, which is said.
        """
        try:
            gauge = self._gauges.get(release.id) or Gauge(release, self._profile)
        except (StreamVaeError, ValueError) as error:
            log.warning("drift of %s is not measured: %s", release.id, error)
            return None
        finally:
            if current and release.id != self._current:
                self._current = release.id
                self._forget_figures()
        with self._changed:
            gauges = {name: each for name, each in self._gauges.items() if name != release.id} | {release.id: gauge}
            while len(gauges) > _KEPT_RELEASES:
                del gauges[next(name for name in gauges if name not in (self._current, release.id))]
            self._gauges = gauges
        return gauge

    def close(self) -> None:
        """Stop watching; may be called twice."""
        self._stop.set()
        self._thread.join(1.0)
        if self._poster is not None:
            self._poster.close()

    def _run(self) -> None:
        next_post = monotonic() + self._section.post_interval_s
        while not self._stop.wait(min(_TICK_S, self._section.post_interval_s)):
            self._safely(self._look)
            if self._poster is not None and monotonic() >= next_post:
                next_post = monotonic() + self._section.post_interval_s
                self._safely(self._post)

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the thread must outlive it
            if repr(error) != self._complaint:  # told when it begins, and not again while it lasts
                log.warning("watching over releases fails: %r", error)
            self._complaint = repr(error)

    def _post(self) -> None:
        assert self._poster is not None
        self._poster.post({name: gauge.vitals() for name, gauge in self._gauges.items()})

    def _look(self) -> None:
        for name, gauge in self._gauges.items():
            gauge.decode()
            ended = gauge.end_window(self._section)
            if ended is not None and name == self._current:
                self._export(drift(gauge.reference, ended.counts, self._limits), ended.alerts)

    def _export(self, figures: Sequence[Figure], alerts: int) -> None:
        survey = self._metrics.survey
        self._metrics.drift_window.labels(survey).set(alerts)
        for figure in figures:
            self._metrics.drift_psi.labels(survey, figure.band, figure.name).set(figure.psi)
        for name in FIGURES:
            if judged := [figure for figure in figures if figure.name == name]:
                self._metrics.drift_alarm.labels(survey, name).set(any(figure.alarm for figure in judged))
        alarms = frozenset((figure.name, figure.band) for figure in figures if figure.alarm)
        for figure in figures:
            if (figure.name, figure.band) in alarms - self._alarms:
                what = figure.name if figure.unit is None else f"{figure.name} {figure.unit}"
                of = "all alerts" if figure.band == ALL else f"band {figure.band}"
                log.warning("drift: %s of %s, PSI %.2f, KS at least %.2f", what, of, figure.psi, figure.ks)
        if self._alarms and not alarms:
            log.info("drift: within limits again")
        self._alarms = alarms

    def _forget_figures(self) -> None:
        """Another release has other figures."""
        for family in (self._metrics.drift_psi, self._metrics.drift_alarm, self._metrics.drift_window):
            family.clear()
        self._alarms = frozenset()
