"""One worker: source, stages and sink, and the loop between them."""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from time import monotonic

from stream_vae import assembly, cutting, kafka
from stream_vae.alert import Outcome, Packet
from stream_vae.avro.walker import warm_up
from stream_vae.backends import OpenNetwork
from stream_vae.errors import ConfigError, FatalError, RetriableError
from stream_vae.metrics import Metrics
from stream_vae.model.release import Release
from stream_vae.pipeline import Stages, enriched
from stream_vae.runtime.status import Standing
from stream_vae.runtime.swap import Prepared, ReleaseWatch, Trial
from stream_vae.runtime.trial import Running, together
from stream_vae.settings import Settings
from stream_vae.stages.batch import by_bytes
from stream_vae.stages.ledger import Ledger, Partition
from stream_vae.stages.sink import AtLeastOnceSink, Sink
from stream_vae.stages.source import Source
from stream_vae.stages.transaction import ExactlyOnceSink

log = logging.getLogger(__name__)

_LONGEST_BACKOFF_S = 30.0
_RATIO_WINDOW_S = 60.0
_RATIO_LEAST = 100
"""Messages in the window before their dead-letter ratio means anything."""


class Worker:
    """Owns its consumer, stages and producer; `run` returns when it is told to stop or has nothing left.

    Parameters
    ----------
    settings : Settings
        Everything.
    metrics : Metrics
        Where to count.
    slot : int
        The worker's number, stable over restarts.
    release : Release, optional
        Absent: the one that the settings name; where they name none, the one that the store calls current, and
        each that becomes current later.
    open_network : callable, optional
        Makes a release's network; absent: in this process, as ``[encoder]`` says.

    Raises
    ------
    ConfigError
        If anything that the worker needs is missing or wrong; nothing was consumed then.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        slot: int = 0,
        release: Release | None = None,
        open_network: OpenNetwork | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._stop = threading.Event()
        self._ready = False
        self._reason = "starting"
        self._heartbeat = monotonic()
        self._member_id = ""
        self._partitions: frozenset[Partition] = frozenset()
        self._idle_since: float | None = None
        self._progressed = False
        self._gave_up = False
        self._fates: deque[tuple[float, int, int]] = deque()
        check_topics(settings)
        follow = release is None and settings.release.id is None
        self.release = release or assembly.release_of(settings)
        warm_up()
        cutting.warm_up()
        self._registry = assembly.registry_of(settings.registry)
        self._open_network = open_network
        self._stages: Stages = assembly.stages_of(settings, self.release, self._registry, open_network=open_network)
        self._ledger = Ledger()
        statistics = settings.metrics.statistics_interval_s
        self._sink: Sink
        if settings.delivery.mode == "exactly_once":
            self._sink = ExactlyOnceSink(
                settings.kafka, settings.delivery, metrics, self._ledger, slot=slot, statistics_interval_s=statistics
            )
        else:
            self._sink = AtLeastOnceSink(
                settings.kafka,
                settings.delivery,
                metrics,
                self._ledger,
                max_in_flight=settings.batch.max_in_flight,
                slot=slot,
                statistics_interval_s=statistics,
            )
        self._source = Source(
            settings.kafka,
            settings.batch,
            metrics,
            self._ledger,
            before_revoke=self._before_revoke,
            on_lost=self._sink.abandon,
            statistics_interval_s=statistics,
        )
        self._sink.source = self._source
        self._offering = assembly.offering_of(settings, self.release, metrics)
        self._monitor = assembly.monitor_of(settings, metrics, slot=slot)
        self._trial: Running | None = None
        self._own_stages = self._stages
        self._score_with(self.release, self._stages)
        self._watch = self._follow() if follow else None

    def _score_with(self, release: Release, stages: Stages) -> None:
        self.release, self._own_stages = release, stages
        self._gauge = self._monitor.gauge(release, current=True) if self._monitor else None
        self._arm()
        survey, space = self._metrics.survey, release.card.latent_space
        self._metrics.release_info.info({"survey": survey, "release": release.id, "latent_space": space})
        self._metrics.release_made.labels(survey).set(release.card.created_at.timestamp())
        log.info("release %s scores, encoded by %s", release.id, stages.encoder.network.name)

    def _arm(self) -> None:
        """Score with the current release, shown to whoever observes, and let the trial have its share."""
        observers = [self._offering.observe] if self._offering else []
        own = [*observers, self._gauge.observe] if self._gauge else observers
        if self._trial is None:
            self._stages = replace(self._own_stages, observe=together(own))
        else:
            self._stages = self._trial.arm(self._own_stages, own)

    def _try(self, new: Trial) -> None:
        """Take a challenger on from the next batch on, instead of the one that there was."""
        if self._trial is not None:
            self._end_trial()
        fits = new.prepared and new.prepared.release.card.preprocessing == self.release.card.preprocessing
        if new.challenger is not None and new.prepared is not None and fits:
            gauge = self._monitor.gauge(new.prepared.release) if self._monitor else None
            self._trial = Running(
                new.challenger,
                new.prepared,
                self._metrics,
                gauge=gauge,
                observers=[self._offering.observe] if self._offering else [],
                most_in_shadow=self._settings.release.shadow_share,
            )
        self._arm()

    def _end_trial(self) -> None:
        assert self._trial is not None
        log.info("release %s is not on trial any more", self._trial.release.id)
        self._metrics.trials.labels(self._metrics.survey, "ended").inc()
        self._trial.close()
        self._trial = None

    def _follow(self) -> ReleaseWatch:
        def prepare(release: Release) -> Stages:
            stages, network = self._own_stages, self._open_network
            return assembly.stages_of(self._settings, release, self._registry, before=stages, open_network=network)

        section = self._settings.release
        return ReleaseWatch(section.store, self.release, prepare, self._metrics, interval_s=section.poll_s)

    def _swap(self, new: Prepared) -> None:
        """Score with a new release from the next batch on."""
        before = self.release
        if self._trial is not None:
            self._end_trial()  # it was against the old one; if there is one against this, it comes by itself
        if self._offering is not None and new.release.card.preprocessing != before.card.preprocessing:
            self._offering.close(timeout_s=0)  # what it holds was prepared in the old way
            self._offering = assembly.offering_of(self._settings, new.release, self._metrics)
        self._score_with(new.release, new.stages)
        self._metrics.release_swaps.labels(self._metrics.survey, "taken").inc()
        log.info("it does so instead of %s, from this batch on", before.id)

    def stop(self) -> None:
        """Ask the loop to finish its batch and return; safe from signal handlers and other threads."""
        self._stop.set()

    def ready(self) -> tuple[bool, str]:
        """Tell whether the worker consumes.

        Returns
        -------
        ready : bool
            True once partitions are assigned.
        reason : str
            One line.
        """
        return self._ready, self._reason

    def alive(self) -> tuple[bool, str]:
        """Tell whether the loop still turns.

        Returns
        -------
        alive : bool
            False if no batch was finished for two minutes.
        reason : str
            One line.
        """
        silent = monotonic() - self._heartbeat
        return silent < 120, f"last turn of the loop {silent:.0f} s ago"

    def run(self, *, exit_when_idle_s: float | None = None) -> None:
        """Consume until told to stop.

        Parameters
        ----------
        exit_when_idle_s : float, optional
            Return once the input is caught up, all is settled and nothing came for this long.

        Raises
        ------
        FatalError
            If the worker cannot go on; offsets are where the last settled batch left them.
        ConfigError
            If it may not read or write.
        """
        backoff = 1.0
        try:
            self._source.subscribe()
            while not self._stop.is_set():
                try:
                    self._turn()
                except RetriableError as error:
                    self._back_off(error, backoff)
                    backoff = min(backoff * 2, _LONGEST_BACKOFF_S)
                    continue
                backoff = 1.0
                if exit_when_idle_s is not None and self._partitions and self._idle_for(exit_when_idle_s):
                    log.info("caught up, and nothing came for %g s", exit_when_idle_s)
                    break
            self._drain()
        except BaseException:
            # Leaving the group must not settle a batch that may be why we stop; it will be read again.
            self._sink.abandon()
            raise
        finally:
            self._set_ready(ready=False, reason="stopped")
            self.close()

    def standing(self) -> Standing:
        """Tell where the worker stands; safe from other threads.

        Returns
        -------
        Standing
            As of the loop's last turn.
        """
        since = self._idle_since
        idle_s = None if since is None else monotonic() - since
        return Standing(self._member_id, self._partitions, idle_s, self._progressed)

    def _idle_for(self, seconds: float) -> bool:
        idle_s = self.standing().idle_s
        return idle_s is not None and idle_s >= seconds

    def _turn(self) -> None:
        packets = self._source.read()
        if self._watch is not None and (new := self._watch.take()) is not None:
            self._swap(new)  # before the batch at hand, which is then scored by it
        if self._watch is not None and (trial := self._watch.take_trial()) is not None:
            self._try(trial)
        self._heartbeat = monotonic()
        if self._gave_up:
            self._gave_up = False
            raise RetriableError("Partitions left before all alerts were acknowledged.")
        partitions = self._source.assignment
        if packets or partitions != self._partitions:
            self._idle_since = None
        self._member_id, self._partitions = self._source.member_id, partitions
        assigned = len(partitions)
        self._metrics.assigned.labels(self._metrics.survey).set(assigned)
        self._set_ready(ready=assigned > 0, reason="consuming" if assigned else "no partitions assigned")
        if packets:
            self._process(packets)
        self._sink.settle()
        self._metrics.in_flight.labels(self._metrics.survey).set(self._sink.in_flight)
        self._source.commit_again()
        behind = bool(partitions) and not self._source.caught_up()
        if packets or behind or self._sink.in_flight or not self._source.committed:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = monotonic()
        self._progressed |= self._sink.settled > 0 or (bool(partitions) and self._idle_since is not None)

    def _process(self, packets: Sequence[Packet]) -> None:
        self._metrics.batch_alerts.labels(self._metrics.survey).observe(len(packets))
        for part in by_bytes(packets, self._settings.batch.max_bytes):
            outcomes = enriched(part, self._stages, self._metrics)
            with self._metrics.stage("publish"):
                self._sink.publish(part, outcomes)
            self._watch_dead_letters(outcomes)

    def _watch_dead_letters(self, outcomes: Sequence[Outcome]) -> None:
        """Stop when most of a minute's messages are refused: the schema changed, the alerts are not bad."""
        now = monotonic()
        dead = sum(outcome.fate == "dead_lettered" for outcome in outcomes)
        self._fates.append((now, dead, len(outcomes)))
        while self._fates[0][0] < now - _RATIO_WINDOW_S:
            self._fates.popleft()
        refused, total = sum(entry[1] for entry in self._fates), sum(entry[2] for entry in self._fates)
        limit = self._settings.limits.max_dead_letter_ratio
        if total >= _RATIO_LEAST and refused > limit * total:
            self._drain()
            raise FatalError(
                f"{refused} of the last {total} messages went to {self._settings.kafka.dead_letter_topic}, more than "
                f"limits.max_dead_letter_ratio = {limit:g}.",
                remedy="The survey's schema probably changed: `stream-vae dlq ls` shows the reasons.",
            )

    def _back_off(self, error: RetriableError, seconds: float) -> None:
        log.warning("%s Trying again in %g s.", error, seconds)
        self._idle_since = None
        self._set_ready(ready=False, reason=str(error))
        self._sink.abandon()
        self._source.rewind()
        self._stop.wait(seconds)
        self._heartbeat = monotonic()

    def _before_revoke(self) -> None:
        """Settle what is in flight; if that fails, what stays here must be read again as well as what leaves."""
        self._gave_up |= not self._drain()

    def _drain(self) -> bool:
        """Settle and commit everything in flight, as long as the settings allow; tell whether all was settled."""
        self._sink.settle(timeout_s=self._settings.delivery.drain_timeout_s, everything=True)
        if unsettled := self._sink.in_flight:
            log.warning("%d alerts are not acknowledged; they will be read again", unsettled)
            self._sink.abandon()
        if not self._source.committed:
            self._source.commit({}, wait=True)
        return not unsettled

    def _set_ready(self, *, ready: bool, reason: str) -> None:
        self._ready, self._reason = ready, reason
        self._metrics.ready.labels(self._metrics.survey).set(ready)

    def close(self) -> None:
        """Leave the group and release the clients; may be called twice."""
        if self._watch is not None:
            self._watch.close()
        self._source.close()
        self._sink.close()
        if self._registry is not None:
            self._registry.close()
        if self._offering is not None:
            self._offering.close()
        if self._trial is not None:
            self._trial.close()
        if self._monitor is not None:
            self._monitor.close()


def check_topics(settings: Settings) -> None:
    """Check that brokers answer and every topic is there.

    Parameters
    ----------
    settings : Settings
        ``[kafka]``.

    Raises
    ------
    ConfigError
        Naming what is missing and how to make it.
    """
    section = settings.kafka
    inputs = [topic for topic in section.input_topics if not topic.startswith("^")]
    outputs = [topic for topic in (section.output_topic, section.lite_topic, section.dead_letter_topic) if topic]
    found = kafka.partitions(section, [*inputs, *outputs])
    missing = [topic for topic in (*inputs, *outputs) if topic not in found]
    if not missing:
        return
    if hidden := kafka.hidden(section, missing):
        raise ConfigError(
            f"Kafka does not show us these topics: {', '.join(sorted(hidden))}.",
            remedy="Grant our user READ on the input topics and WRITE on the others: kafka-acls.sh --add.",
        )
    if not section.create_topics:
        raise ConfigError(
            f"These topics do not exist: {', '.join(missing)}.",
            remedy="Create them (kafka-topics.sh --create), or set kafka.create_topics = true.",
        )
    count = max((found[topic] for topic in inputs if topic in found), default=1)
    kafka.create_topics(section, dict.fromkeys(missing, count))
