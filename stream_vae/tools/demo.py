"""The whole alert path in one process: simulated alerts, an embedded Kafka and Valkey, a worker, and the books.

The embedded broker keeps 5 MB a partition and drops the rest without a word, so no more alerts are on their
way at a time than fit; an offset that was skipped makes the run fail.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import SecretStr

from stream_vae import assembly, kafka, surveys
from stream_vae.alert import Packet
from stream_vae.embedded.kafka import CONSUMER_OPTIONS, EmbeddedKafka
from stream_vae.embedded.valkey import EmbeddedValkey
from stream_vae.errors import FatalError
from stream_vae.faults import corpus as faults
from stream_vae.metrics import Metrics
from stream_vae.quality import UNSCOREABLE
from stream_vae.runtime.worker import Worker
from stream_vae.settings import BatchSettings, KafkaSettings, ReleaseSettings, ReservoirSettings, Settings
from stream_vae.sky.packets import simulate_packets
from stream_vae.stages.dead_letter import REASON
from stream_vae.tools.audit import Line, audit_of
from stream_vae.tools.messages import Reader
from stream_vae.tools.replay import FAULT_HEADER, Sent, send, spoiled
from stream_vae.tools.topics import as_packet

if TYPE_CHECKING:
    from confluent_kafka import Consumer

IN, OUT, DEAD = "ztf-alerts", "ztf-enriched", "ztf-dead-letters"
_PARTITIONS = 16
_ON_THE_WAY = 200
"""Alerts between the replayer and the reader: 13 a partition on average, of the 80 that the broker would keep."""
_PATIENCE_S = 60.0
_RESERVOIR = 500
"""Stamps that the reservoir's uniform stratum keeps of the stream, and five times as many as each other one: fewer than
there are, so that it has to choose."""
_KEPT = 400
"""Enriched packets that are kept for the picture."""


@dataclass
class Story:
    """What a demonstration did; filled while it runs."""

    sent: int = 0
    damaged: int = 0
    duplicates: int = 0
    scored: int = 0
    unscored: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    """Damaged messages that did not end as they should."""
    truth: dict[int, int] = field(default_factory=dict)
    """1 real, 0 bogus, by candid."""
    candids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    codes: list[npt.NDArray[np.float32]] = field(default_factory=list)
    packets: dict[int, bytes] = field(default_factory=dict)
    """Some enriched packets, for the picture."""
    books: list[Line] = field(default_factory=list)
    kept: int = 0
    """Stamps in the reservoir at the end."""
    gaps: int = 0
    seconds: float = 0.0
    metrics: Metrics | None = None

    @property
    def published(self) -> int:
        """Alerts that were read back from the enriched topic."""
        return self.scored + self.unscored

    @property
    def dead_lettered(self) -> int:
        """Messages that were read back from the dead-letter topic."""
        return self.dead_letters.total()

    @property
    def balanced(self) -> bool:
        """Whether every message that was sent was read back, once, and the books say so too."""
        pages = [line.page for line in self.books if line.page is not None]
        return (
            self.sent == self.published + self.dead_lettered
            and self.sent == sum(page.consumed for page in pages)
            and self.published == sum(page.published for page in pages)
            and self.dead_lettered == sum(page.dead_lettered for page in pages)
            and all(line.balanced and line.lag == 0 for line in self.books)
            and self.gaps == 0
        )


def settings_for(broker: EmbeddedKafka, valkey: EmbeddedValkey, store: Path) -> Settings:
    """Return the settings of the demonstration's worker.

    Parameters
    ----------
    broker : EmbeddedKafka
        With the topics made.
    valkey : EmbeddedValkey
        Holds the reservoir.
    store : Path
        Holds a current release.

    Returns
    -------
    Settings
        For ZTF-shaped alerts.
    """
    return Settings(
        survey="ztf",
        kafka=KafkaSettings(
            bootstrap_servers=broker.bootstrap_servers,
            input_topics=(IN,),
            output_topic=OUT,
            dead_letter_topic=DEAD,
            options={"log.connection.close": False},
            consumer_options=dict(CONSUMER_OPTIONS),
        ),
        release=ReleaseSettings(store=str(store)),
        batch=BatchSettings(max_alerts=64, max_wait_s=0.05),
        reservoir=ReservoirSettings(
            url=SecretStr(valkey.url),
            capacity=_RESERVOIR,
            recent_capacity=_RESERVOIR // 5,
            rare_capacity=_RESERVOIR // 5,
            known_capacity=_RESERVOIR // 5,
        ),
    )


def stream(
    store: Path,
    *,
    alerts: int,
    corrupt: float,
    duplicates: float,
    seed: int,
    watch: Callable[[Story], None],
) -> Story:
    """Stream simulated alerts through the whole path and read everything back.

    Parameters
    ----------
    store : Path
        Release store with a current release.
    alerts : int
        How many alerts are simulated.
    corrupt, duplicates : float
        Shares that are damaged, and sent twice.
    seed : int
        Fixes the sky and what is damaged.
    watch : callable
        Called several times a second with the story so far.

    Returns
    -------
    Story
        Complete.

    Raises
    ------
    FatalError
        If the worker stopped or something did not come back.
    """
    story = Story()
    with EmbeddedKafka() as broker, EmbeddedValkey() as valkey:
        for topic in (IN, OUT, DEAD):
            broker.create_topic(topic, _PARTITIONS)
        settings = settings_for(broker, valkey, store)
        story.metrics = Metrics("ztf")
        worker = Worker(settings, story.metrics)
        failure: list[BaseException] = []
        threads = [
            threading.Thread(target=_guarded, args=(worker.run, failure), name="worker", daemon=True),
            threading.Thread(
                target=_guarded,
                args=(lambda: _replay(story, settings.kafka, alerts, corrupt, duplicates, seed), failure),
                name="replay",
                daemon=True,
            ),
        ]
        started = monotonic()
        for thread in threads:
            thread.start()
        try:
            _read_back(story, settings.kafka, threads[1], failure, watch)
        finally:
            worker.stop()
            threads[0].join(30)
        story.seconds = monotonic() - started
        if failure:
            raise failure[0]
        story.books = audit_of(settings.kafka)
        story.kept = _kept(settings)
        story.gaps = _total(story.metrics, "stream_vae_offset_gaps_total")
    return story


def _kept(settings: Settings) -> int:
    with closing(assembly.reservoir_of(settings)) as reservoir:
        return reservoir.stats().stamps


def _guarded(work: Callable[[], object], failure: list[BaseException]) -> None:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
        failure.append(error)


def _replay(story: Story, settings: KafkaSettings, alerts: int, corrupt: float, duplicates: float, seed: int) -> None:
    def packets() -> Iterator[Sent]:
        for each in simulate_packets(alerts, shape="ztf", seed=seed):
            story.truth[each.candid] = each.label
            yield Sent(each.key, each.packet)

    def pace(sent: int) -> None:
        story.sent = sent
        deadline = monotonic() + _PATIENCE_S
        while sent - story.published - story.dead_lettered >= _ON_THE_WAY:
            if monotonic() > deadline:
                raise FatalError(f"{_ON_THE_WAY} alerts are on their way and none arrives.")
            sleep(0.005)

    tally = send(spoiled(packets(), duplicates=duplicates, corrupt=corrupt, seed=seed), settings, IN, pace=pace)
    story.sent, story.damaged, story.duplicates = tally.sent, tally.corrupted, tally.duplicates


def _read_back(
    story: Story,
    settings: KafkaSettings,
    replay: threading.Thread,
    failure: list[BaseException],
    watch: Callable[[Story], None],
) -> None:
    consumer: Consumer = kafka.plain_consumer(settings, group_id="demo-reader", **_dotted(CONSUMER_OPTIONS))
    consumer.subscribe([OUT, DEAD])
    witness = _Witness(story)
    heard = monotonic()
    try:
        while replay.is_alive() or story.published + story.dead_lettered < story.sent:
            messages = consumer.consume(100, 0.1)
            for message in messages:
                if message.error() is None:
                    witness.take(as_packet(message))
                    heard = monotonic()
            watch(story)
            if failure:
                return
            if monotonic() - heard > _PATIENCE_S:
                raise FatalError(f"Nothing came back for {_PATIENCE_S:g} s.")
    finally:
        consumer.close()


def _dotted(options: Any) -> dict[str, Any]:
    return {name.replace(".", "_"): value for name, value in options.items()}


class _Witness:
    """Reads enriched alerts and dead letters as any consumer would, and compares them with what was sent."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._reader = Reader(surveys.load("ztf"))

    def take(self, packet: Packet) -> None:
        headers = dict(packet.headers)
        fault = (headers.get(FAULT_HEADER) or b"").decode()
        if packet.topic == DEAD:
            self._dead_letter((headers[REASON] or b"").decode(), fault)
        else:
            self._enriched(packet, fault)

    def _dead_letter(self, reason: str, fault: str) -> None:
        self._story.dead_letters[reason] += 1
        if not fault:
            self._story.surprises.append(f"a good alert was dead-lettered: {reason}")
        elif faults.EXPECTED[fault].outcome is not faults.Outcome.DEAD_LETTER:
            self._story.surprises.append(f"{fault} was dead-lettered: {reason}")

    def _enriched(self, packet: Packet, fault: str) -> None:
        story, reading = self._story, self._reader.read(packet)
        found = reading.enrichment
        if found is None:
            story.surprises.append(f"{packet.origin} has no enrichment")
            return
        unscoreable = bool(found.quality & UNSCOREABLE)
        expected = faults.EXPECTED[fault].outcome if fault else faults.Outcome.SCORED
        if expected is not (faults.Outcome.FLAGGED if unscoreable else faults.Outcome.SCORED) and fault:
            story.surprises.append(f"{fault} was published with quality {found.quality}")
        if unscoreable or found.latent_mean is None:
            story.unscored += 1
            return
        story.scored += 1
        if fault:
            return  # scored, as it should be, but its truth is another's
        candid = int(reading.alert.alert_id)
        story.candids.append(candid)
        story.scores.append(float("nan") if found.real_score is None else found.real_score)
        story.codes.append(found.latent_mean)
        if len(story.packets) < _KEPT:
            story.packets[candid] = packet.value


def _total(metrics: Metrics, name: str) -> int:
    return int(sum(s.value for family in metrics.registry.collect() for s in family.samples if s.name == name))
