"""Do the books balance? Two witnesses are asked.

The ledger: the page that every offset commit carries (`stream_vae.stages.ledger`). The topics: when asked to
look deep, the output and dead-letter topics are read, and every offset that the ledger says was consumed must
be found there, by its ``stream_vae.source`` header.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaException, TopicPartition

from stream_vae import kafka
from stream_vae.errors import ConfigError, RetriableError
from stream_vae.settings import KafkaSettings
from stream_vae.stages.enrich import SOURCE_HEADER
from stream_vae.stages.ledger import Page, Partition
from stream_vae.tools.topics import looking, read_spans, spans


@dataclass(frozen=True, slots=True)
class Line:
    """The books of one partition."""

    topic: str
    partition: int
    end: int
    """Where the partition ends now."""
    page: Page | None
    """None if the group never committed here."""
    found: int | None = None
    """Distinct offsets of this partition in the output and dead-letter topics; None if not looked for."""
    duplicates: int | None = None

    @property
    def lag(self) -> int:
        """Messages that are not yet settled."""
        return self.end - self.page.next_offset if self.page else self.end

    @property
    def balanced(self) -> bool:
        """Whether both witnesses agree that nothing is missing."""
        if self.page is None:
            return True
        deep = self.found is None or self.found == self.page.published + self.page.dead_lettered
        return self.page.balanced and self.page.gaps >= 0 and deep


Watch = Callable[[int, int], None]
"""Told how many messages of how many were read."""


def audit_of(settings: KafkaSettings, *, deep: bool = False, watch: Watch | None = None) -> list[Line]:
    """Read the books from the broker.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    deep : bool
        Whether to read the output and dead-letter topics too.
    watch : callable, optional
        For a progress bar over the deep reading.

    Returns
    -------
    list of Line
        One a partition of the input topics.

    Raises
    ------
    ConfigError
        If no broker answers or an input topic is missing.
    RetriableError
        If a broker stops answering.
    """
    counts = kafka.partitions(settings, settings.input_topics)
    if missing := [topic for topic in settings.input_topics if topic not in counts]:
        raise ConfigError(f"There is no topic {', '.join(missing)}.", remedy="Check kafka.input_topics.")
    wanted = [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]
    # Asked as one who reads committed, the broker would not tell before a transaction that a dead worker left open
    # has timed out; asked like this, it tells what was committed before.
    books = kafka.plain_consumer(settings, group_id=settings.group_id, isolation_level="read_uncommitted")
    ends = kafka.plain_consumer(settings, group_id=settings.group_id)
    try:
        lines = [_line(ends, entry) for entry in books.committed(wanted, timeout=30)]
    except KafkaException as error:
        raise RetriableError(f"The committed offsets cannot be read: {error.args[0].str()}.") from error
    finally:
        books.close()
        ends.close()
    if not deep:
        return lines
    seen = _sources(settings, watch)
    return [_with_witness(line, seen.get((line.topic, line.partition), Counter())) for line in lines]


def _line(consumer: Consumer, entry: TopicPartition) -> Line:
    _, end = consumer.get_watermark_offsets(TopicPartition(entry.topic, entry.partition), timeout=30)
    page = None if entry.offset == OFFSET_INVALID else Page.read(entry.offset, entry.metadata)
    return Line(entry.topic, entry.partition, end, page)


def _with_witness(line: Line, offsets: Mapping[int, int]) -> Line:
    if line.page is None:
        return line
    covered = [count for offset, count in offsets.items() if line.page.since <= offset < line.page.next_offset]
    return Line(line.topic, line.partition, line.end, line.page, len(covered), sum(covered) - len(covered))


def _sources(settings: KafkaSettings, watch: Watch | None) -> dict[Partition, Counter[int]]:
    """Count the source offsets that the outputs name; of two output topics each must name all."""
    outputs = [topic for topic in (settings.output_topic, settings.lite_topic) if topic]
    found = [_sources_in(settings, (topic, settings.dead_letter_topic), watch) for topic in outputs]
    merged: dict[Partition, Counter[int]] = {}
    for partition in {partition for sources in found for partition in sources}:
        everywhere = set.intersection(*(set(sources.get(partition, ())) for sources in found))
        merged[partition] = Counter({offset: found[0][partition][offset] for offset in everywhere})
    return merged


def _sources_in(settings: KafkaSettings, topics: Iterable[str], watch: Watch | None) -> dict[Partition, Counter[int]]:
    sources: dict[Partition, Counter[int]] = {}
    with looking(settings) as consumer:
        wanted = [span for topic in topics for span in spans(settings, topic, consumer)]
        total = sum(span.high - span.low for span in wanted)
        for done, packet in enumerate(read_spans(consumer, wanted)):
            if watch and done % 500 == 0:
                watch(done, total)
            origin = dict(packet.headers).get(SOURCE_HEADER)
            if origin is None:
                continue  # not ours: the topic is shared
            topic, partition, offset = origin.decode().rsplit("/", 2)
            sources.setdefault((topic, int(partition)), Counter())[int(offset)] += 1
    return sources
