"""``stream-vae audit``: do the books balance?

Two witnesses. The ledger: the page that every offset commit carries (`stream_vae.stages.ledger`). The topics:
with ``--deep`` the output and dead-letter topics are read, and every offset that the ledger says was consumed
must be found there, by its ``stream_vae.source`` header.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaException, TopicPartition
from rich.table import Table

from stream_vae import kafka
from stream_vae.cli import EXIT_NO, app, console
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.cli.reading import read_all
from stream_vae.errors import ConfigError, RetriableError
from stream_vae.settings import KafkaSettings
from stream_vae.stages.enrich import SOURCE_HEADER
from stream_vae.stages.ledger import Page, Partition


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


def audit_of(settings: KafkaSettings, *, deep: bool = False) -> list[Line]:
    """Read the books from the broker.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    deep : bool
        Whether to read the output and dead-letter topics too.

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
    consumer = kafka.plain_consumer(settings, group_id=settings.group_id)
    try:
        lines = [_line(consumer, entry) for entry in consumer.committed(wanted, timeout=30)]
    except KafkaException as error:
        raise RetriableError(f"The committed offsets cannot be read: {error.args[0].str()}.") from error
    finally:
        consumer.close()
    if not deep:
        return lines
    seen = _sources(settings)
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


def _sources(settings: KafkaSettings) -> dict[Partition, Counter[int]]:
    """Count the source offsets that the outputs name; of two output topics each must name all."""
    outputs = [topic for topic in (settings.output_topic, settings.lite_topic) if topic]
    found = [_sources_in(settings, [topic, settings.dead_letter_topic]) for topic in outputs]
    partitions = {partition for sources in found for partition in sources}
    merged: dict[Partition, Counter[int]] = {}
    for partition in partitions:
        everywhere = set.intersection(*(set(sources.get(partition, ())) for sources in found))
        merged[partition] = Counter({offset: found[0][partition][offset] for offset in everywhere})
    return merged


def _sources_in(settings: KafkaSettings, topics: Iterable[str]) -> dict[Partition, Counter[int]]:
    sources: dict[Partition, Counter[int]] = {}
    for message in read_all(settings, topics, what="Reading what was published"):
        origin = dict(message.headers() or ()).get(SOURCE_HEADER)
        if origin is None:
            continue  # not ours: the topic is shared
        topic, partition, offset = origin.decode().rsplit("/", 2)
        sources.setdefault((topic, int(partition)), Counter())[int(offset)] += 1
    return sources


@app.command()
def audit(
    settings: SettingsFile = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read the output and dead-letter topics and look for every alert.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that consumed = published + dead-lettered + filtered; exit 0 if so, 1 if not.

    Examples:

        stream-vae audit --settings ztf.toml

        stream-vae audit --settings ztf.toml --deep --json
    """
    lines = audit_of(load(settings).kafka, deep=deep)
    balanced = all(line.balanced for line in lines)
    if as_json:
        answer({"balanced": balanced, "partitions": [_document(line) for line in lines]})
    else:
        console.print(_table(lines, deep=deep))
        console.print("[green]Balanced.[/green]" if balanced else "[red]Out of balance.[/red]")
    if not balanced:
        raise typer.Exit(EXIT_NO)


def _document(line: Line) -> dict[str, Any]:
    return asdict(line) | {"lag": line.lag, "balanced": line.balanced, "gaps": line.page.gaps if line.page else 0}


def _table(lines: Iterable[Line], *, deep: bool) -> Table:
    columns = ["partition", "consumed", "published", "dead-lettered", "filtered", "gaps", "lag"]
    table = Table(*columns, *(["found", "duplicates"] if deep else []), "balanced")
    for column in table.columns[1:]:
        column.justify = "right"
    for line in lines:
        page = line.page or Page(0, 0)
        numbers = [page.consumed, page.published, page.dead_lettered, page.filtered, page.gaps, line.lag]
        witness = [line.found or 0, line.duplicates or 0] if deep else []
        verdict = "[green]yes[/green]" if line.balanced else "[red]no[/red]"
        table.add_row(f"{line.topic}/{line.partition}", *(f"{n:,}" for n in (*numbers, *witness)), verdict)
    return table
