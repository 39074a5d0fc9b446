"""Every metric that stream_vae exports, in one place.

Base units, labels from closed lists (partitions and topics of the settings, `Reason`, stages), never an
alert's id. A `Metrics` owns its registry, so that two pipelines in one process do not mix.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)

from stream_vae import __version__
from stream_vae.alert import Rejected, Scores
from stream_vae.errors import ConfigError, FatalError, RetriableError, StreamVaeError
from stream_vae.quality import UNSCOREABLE, Quality

log = logging.getLogger("stream_vae.dead_letter")

STAGES = ("decode", "stamp", "encode", "score", "observe", "enrich", "publish")
TRAINER_LOOKS = ("labels", "releases", "retraining")
"""What the trainer looks at by turns."""
LABEL_OUTCOMES = ("anchored", "added", "repeated", "waiting", "full", "malformed")
"""What becomes of a label that the trainer reads."""
_PARTITION = ("survey", "topic", "partition")
_GATE = ("gate", "release")
_OUTCOMES = {"passed": 1.0, "undecided": 0.0, "failed": -1.0}


class Metrics:
    """The metrics of one worker.

    Parameters
    ----------
    survey : str
        Labels everything.
    registry : CollectorRegistry, optional
        Where they are registered; absent: a new one with process metrics.
    """

    def __init__(  # noqa: PLR0915 - one declaration after another, and nothing to follow
        self, survey: str, registry: CollectorRegistry | None = None
    ) -> None:
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
        self.registry = registry
        self.survey = survey

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            made = Counter(f"stream_vae_{name}", text, ("survey", *labels), registry=registry)
            if not labels:
                made.labels(survey)  # there from the start: Prometheus' increase() does not see a first value of 1
            return made

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"stream_vae_{name}", text, ("survey", *labels), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"stream_vae_{name}", text, ("survey", *labels), buckets=buckets, registry=registry)

        # The audit: consumed = published + dead-lettered + filtered. Counted when a batch is settled, apart.
        self.consumed = counter("alerts_consumed_total", "Messages read, once their batch is settled", _PARTITION[1:])
        self.published = counter("alerts_published_total", "Messages whose output is acknowledged", _PARTITION[1:])
        self.dead_lettered = counter(
            "alerts_dead_lettered_total", "Messages acknowledged in the dead-letter topic", _PARTITION[1:]
        )
        self.filtered = counter("alerts_filtered_total", "Messages that the filter settings left out", _PARTITION[1:])
        self.in_flight = gauge("alerts_in_flight", "Messages read whose outcome is not yet committed")
        self.offset_gaps = counter(
            "offset_gaps_total",
            "Offsets that were skipped by the broker: compacted, aborted or expired",
            _PARTITION[1:],
        )

        self.rejected = counter("alerts_rejected_total", "Dead letters by reason", ("stage", "reason"))
        self.unscored = counter("alerts_unscored_total", "Alerts published without a code, by quality flag", ("flag",))
        self.flagged = counter("alerts_flagged_total", "Alerts by quality flag, scored or not", ("flag",))
        self.input_bytes = counter("input_bytes_total", "Bytes of messages read")
        self.output_bytes = counter("output_bytes_total", "Bytes of messages produced")

        self.stage_seconds = counter("stage_seconds_total", "Wall-clock time by stage", ("stage",))
        self.stage_cpu_seconds = counter(
            "stage_cpu_seconds_total", "CPU time of the worker's own thread by stage", ("stage",)
        )
        self.batch_alerts = histogram("batch_alerts", "Alerts in a batch", (1, 4, 16, 32, 64, 128, 256, 512, 1024))
        self.latency = histogram(
            "latency_seconds",
            "From the message's Kafka timestamp to the acknowledgement of its output",
            (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600),
        )
        self.real_score = histogram("real_score", "Scores published", tuple(i / 10 for i in range(1, 11)))
        self.novelty = histogram("novelty", "Novelty published", (0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0))

        self.reservoir_offered = counter("reservoir_offered_total", "Stamps shown to the reservoir")
        self.reservoir_entered = counter("reservoir_entered_total", "Stamps that the reservoir took in")
        self.reservoir_dropped = counter(
            "reservoir_dropped_total", "Stamps that could have entered and were not sent or not taken", ("reason",)
        )
        self.reservoir_lost = counter(
            "reservoir_lost_total", "Times that a reservoir with stamps in it was found empty"
        )
        self.reservoir_stamps = gauge("reservoir_stamps", "Stamps in the reservoir, by its last answer")
        self.reservoir_stratum_stamps = gauge(
            "reservoir_stratum_stamps", "Stamps in each stratum of the reservoir, by its last answer", ("stratum",)
        )
        self.reservoir_waiting = gauge("reservoir_waiting_alerts", "Labelled alerts whose stamp is wanted")
        self.reservoir_circuit_open = gauge("reservoir_circuit_open", "1 while Redis is left alone after a failure")

        self.assigned = gauge("assigned_partitions", "Partitions that this worker consumes")
        self.lag = gauge("lag_messages", "Messages behind the end of the partition", _PARTITION[1:])
        self.producer_queue = gauge("producer_queue_messages", "Messages that librdkafka holds for producing")
        self.consumer_queue_bytes = gauge("consumer_queue_bytes", "Bytes that librdkafka fetched ahead")
        self.broker_rtt = gauge(
            "broker_rtt_seconds", "Mean round trip by librdkafka's statistics", ("client", "broker")
        )
        self.kafka_errors = counter("kafka_errors_total", "Errors that librdkafka reported", ("client", "code"))
        self.commits = counter("commits_total", "Offset commits", ("outcome",))
        self.rebalances = counter("rebalances_total", "Partition assignments and revocations", ("event",))
        self.ready = gauge("ready", "1 while the worker consumes, else 0")
        self.release_info = Info("stream_vae_release", "The release that scores", registry=registry)
        self.release_made = gauge("release_made_timestamp_seconds", "When the release that scores was made")
        self.release_swaps = counter(
            "release_swaps_total", "Releases that became current while the worker ran, by what it did", ("outcome",)
        )
        for outcome in ("taken", "refused"):
            self.release_swaps.labels(survey, outcome)
        self.release_refused = gauge(
            "release_refused", "1 while the store's current release cannot be had or used and an older one scores"
        )
        self.trials = counter(
            "challenger_trials_total",
            "Releases that were put on trial beside the current one, by what became",
            ("outcome",),
        )
        self.canary_alerts = counter("canary_alerts_total", "Alerts that a challenger scored and published")
        self.shadow_alerts = counter(
            "shadow_alerts_total", "Alerts that a challenger scored beside the current release"
        )
        self.shadow_skipped = counter("shadow_skipped_alerts_total", "Alerts that it had no time for")
        self.shadow_difference = histogram(
            "shadow_score_difference",
            "Absolute difference between the challenger's score and the one that was published",
            (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
        )
        self.shadow_disagreements = counter(
            "shadow_disagreements_total", "Alerts on the other side of a score of 0.5 by the challenger"
        )

        self.drift_psi = gauge(
            "drift_psi", "Population stability index of the last window against the release", ("band", "figure")
        )
        self.drift_alarm = gauge("drift_alarm", "1 while the last window is over the limit", ("figure",))
        self.drift_window = gauge("drift_window_alerts", "Alerts in the last window that was judged")
        self.vitals_posts = counter(
            "vitals_posts_total", "Reports to Redis for who watches over releases", ("outcome",)
        )
        _tell_build(survey, registry)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a stage.

        CPU time is the calling thread's: librdkafka's threads work meanwhile, and not for the stage.

        Parameters
        ----------
        name : str
            One of `STAGES`.

        Yields
        ------
        None
            Nothing.
        """
        wall, cpu = perf_counter(), thread_time()
        try:
            yield
        finally:
            self.stage_seconds.labels(self.survey, name).inc(perf_counter() - wall)
            self.stage_cpu_seconds.labels(self.survey, name).inc(thread_time() - cpu)

    def count_quality(self, quality: npt.NDArray[np.uint32], scores: Scores) -> None:
        """Count the quality flags and scores of a batch.

        Parameters
        ----------
        quality : ndarray
            (n,) `Quality` bits.
        scores : Scores
            (n,) each, NaN where unknown.
        """
        if len(quality) == 0:
            return
        for flag in Quality:
            if count := int(np.count_nonzero(quality & np.uint32(flag))):
                self.flagged.labels(self.survey, str(flag.name).lower()).inc(count)
                if flag & UNSCOREABLE:
                    self.unscored.labels(self.survey, str(flag.name).lower()).inc(count)
        observe_each(self.real_score.labels(self.survey), scores.real_score)
        observe_each(self.novelty.labels(self.survey), scores.novelty)

    def count_rejected(self, rejected: Sequence[Rejected]) -> None:
        """Count and log what goes to the dead-letter topic.

        Parameters
        ----------
        rejected : sequence of Rejected
            Of one batch.
        """
        for each in rejected:
            self.rejected.labels(self.survey, each.stage, each.reason.value).inc()
            log.warning("dead letter %s at %s (%s): %s", each.packet.origin, each.stage, each.reason.value, each.error)

    def take_statistics(self, client: str, document: str) -> None:
        """Export what matters of librdkafka's statistics.

        Parameters
        ----------
        client : str
            ``consumer`` or ``producer``.
        document : str
            librdkafka's JSON.
        """
        statistics: dict[str, Any] = json.loads(document)
        for name, broker in statistics.get("brokers", {}).items():
            if broker.get("nodeid", -1) >= 0 and (rtt := broker.get("rtt", {}).get("avg")):
                self.broker_rtt.labels(self.survey, client, name).set(rtt / 1e6)
        if client == "producer":
            self.producer_queue.labels(self.survey).set(statistics.get("msg_cnt", 0))
            return
        queued = 0
        for topic, details in statistics.get("topics", {}).items():
            for partition, numbers in details.get("partitions", {}).items():
                queued += numbers.get("fetchq_size", 0)
                lag = numbers.get("consumer_lag", -1)
                if numbers.get("fetch_state") != "active":
                    with suppress(KeyError):  # another worker's now: it would be counted twice
                        self.lag.remove(self.survey, topic, partition)
                elif lag >= 0:
                    self.lag.labels(self.survey, topic, partition).set(lag)
        self.consumer_queue_bytes.labels(self.survey).set(queued)


class EncoderMetrics:
    """The metrics of one actor of the encoder pool.

    Parameters
    ----------
    survey : str
        Labels everything.
    """

    def __init__(self, survey: str) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        label = ("survey",)
        seconds = Counter(
            "stream_vae_encoder_seconds_total", "Time that batches took to encode", label, registry=registry
        )
        stamps = Histogram(
            "stream_vae_encoder_batch_stamps",
            "Stamps encoded together",
            label,
            buckets=(16, 64, 128, 256, 512, 1024, 2048, 4096, 16_384),
            registry=registry,
        )
        waiting = Gauge("stream_vae_encoder_waiting_stamps", "Stamps that wait for a batch", label, registry=registry)
        self._seconds, self._stamps = seconds.labels(survey), stamps.labels(survey)
        self.waiting_stamps = waiting.labels(survey)

    @contextmanager
    def batch(self, stamps: int) -> Iterator[None]:
        """Count a batch and the time that it takes.

        Parameters
        ----------
        stamps : int
            How many are in it.

        Yields
        ------
        None
            Nothing.
        """
        began = perf_counter()
        yield
        self._seconds.inc(perf_counter() - began)
        self._stamps.observe(stamps)


class FleetMetrics:
    """What only the supervisor of a fleet knows; the workers' own metrics stand beside it.

    Parameters
    ----------
    survey : str
        Labels everything.
    registry : CollectorRegistry
        Where they are registered.
    """

    def __init__(self, survey: str, registry: CollectorRegistry) -> None:
        wanted = Gauge("stream_vae_fleet_workers_wanted", "Workers asked for", ("survey",), registry=registry)
        alive = Gauge("stream_vae_fleet_workers_alive", "Workers that run", ("survey",), registry=registry)
        restarts = Counter(
            "stream_vae_fleet_restarts_total", "Workers started anew", ("survey", "worker"), registry=registry
        )
        self.wanted = wanted.labels(survey)
        self.alive = alive.labels(survey)
        self._restarts, self._survey = restarts, survey

    def restarts(self, worker: str) -> Counter:
        """Return the count of one slot.

        Parameters
        ----------
        worker : str
            The worker's number, or an encoder's name.

        Returns
        -------
        Counter
            How often a new one took it.
        """
        return self._restarts.labels(self._survey, worker)


class TrainerMetrics:
    """The metrics of the process that retrains.

    Parameters
    ----------
    survey : str
        Labels everything.
    registry : CollectorRegistry, optional
        Where they are registered; absent: a new one with process metrics.
    """

    def __init__(self, survey: str, registry: CollectorRegistry | None = None) -> None:
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
        self.registry = registry
        self.survey = survey

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"stream_vae_{name}", text, ("survey", *labels), registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"stream_vae_{name}", text, ("survey", *labels), registry=registry)

        self.retrainings = counter("retrainings_total", "Retrainings that ended with a release", "trigger", "fate")
        self.failures = counter("retraining_failures_total", "Retrainings that ended without one", "error")
        self.running = gauge("retraining_running", "1 while a retraining runs")
        self.last = gauge("retraining_last_timestamp_seconds", "When the last retraining's release was made")
        self.new_alerts = gauge("retraining_new_alerts", "Alerts since the last retraining, about")
        self.trials = counter("trials_total", "Trials of releases beside the one that is served, by their end", "end")
        self.rollbacks = counter("rollbacks_total", "Releases that were taken back because they did harm")
        self.labels = counter("labels_total", "Labels that were read, by what became of them", "outcome")
        self.label_conflicts = gauge("label_conflicts", "Alerts that some labels call real and others bogus")
        self.looks_failed = counter("trainer_looks_failed_total", "Looks at store, Redis or labels that failed", "what")
        # What the gates of the newest retrained release said, by the names that `releases show` prints.
        self.gate_figure = gauge(
            "gate_figure", "A gate's figure, of the last retraining's release and of the one it was to replace", *_GATE
        )
        self.gate_outcome = gauge("gate_outcome", "1 if the gate passed, 0 undecided, -1 failed", "gate")
        # There from the start, with 0: Prometheus' increase() does not see a first value of 1.
        self.rollbacks.labels(survey)
        self.running.labels(survey)
        for error in (StreamVaeError, ConfigError, RetriableError, FatalError):
            self.failures.labels(survey, error.__name__)
        for what in TRAINER_LOOKS:
            self.looks_failed.labels(survey, what)
        for outcome in LABEL_OUTCOMES:
            self.labels.labels(survey, outcome)
        _tell_build(survey, registry)

    def show_gates(self, verdict: Mapping[str, Any]) -> None:
        """Export what the gates said, instead of what they said before.

        Parameters
        ----------
        verdict : Mapping
            As a release's card has it: `stream_vae.learning.gates.Verdict.document`. A gate that was not judged is
            not shown.
        """
        figures: dict[tuple[str, ...], float] = {}
        outcomes: dict[tuple[str, ...], float] = {}
        for gate in verdict.get("gates", ()):
            if gate["outcome"] not in _OUTCOMES:
                continue
            outcomes[self.survey, gate["name"]] = _OUTCOMES[gate["outcome"]]
            for release in ("challenger", "incumbent"):
                if gate[release] is not None:
                    figures[self.survey, gate["name"], release] = gate[release]
        _replace(self.gate_figure, figures)
        _replace(self.gate_outcome, outcomes)


def _tell_build(survey: str, registry: CollectorRegistry) -> None:
    Info("stream_vae_build", "The software", registry=registry).info({"survey": survey, "version": __version__})


def _replace(gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
    """Set some series and remove all others, so that a scrape meanwhile sees either."""
    before = [tuple(sample.labels.values()) for family in gauge.collect() for sample in family.samples]
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
    for labels in before:
        if labels not in values:
            gauge.remove(*labels)


def observe_each(histogram: Histogram, values: npt.NDArray[np.floating[Any]]) -> None:
    """Observe a batch at once: `Histogram.observe` goes through the buckets for each value.

    Parameters
    ----------
    histogram : Histogram
        One with its labels.
    values : ndarray, shape (n,)
        What is not finite is left out.
    """
    values = values[np.isfinite(values)].astype(np.float64)
    # prometheus_client has no call for many values, and these three attributes in all of its versions.
    counts = np.bincount(np.searchsorted(histogram._upper_bounds, values))  # noqa: SLF001
    for bucket in np.flatnonzero(counts).tolist():
        histogram._buckets[bucket].inc(int(counts[bucket]))  # noqa: SLF001
    histogram._sum.inc(float(values.sum()))  # noqa: SLF001
