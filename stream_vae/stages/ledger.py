"""The books: for every partition, what was consumed and what became of it.

The page of a partition travels in the metadata of its committed offset. So the counts are committed in the
same request, or the same transaction, as the offset that they belong to, survive any crash, and follow the
partition to whichever worker owns it next. ``stream-vae audit`` reads them from the broker.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from stream_vae.alert import Fate

Partition = tuple[str, int]
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Page:
    """What happened to one partition since a group began to read it."""

    since: int
    """First offset that was read."""
    next_offset: int
    consumed: int = 0
    published: int = 0
    dead_lettered: int = 0
    filtered: int = 0

    @property
    def balanced(self) -> bool:
        """Whether every message that was read ended in exactly one way."""
        return self.consumed == self.published + self.dead_lettered + self.filtered

    @property
    def gaps(self) -> int:
        """Offsets that the broker skipped: transaction markers, compaction, retention."""
        return self.next_offset - self.since - self.consumed

    def metadata(self) -> str:
        """Write the page for an offset commit.

        Returns
        -------
        str
            Compact JSON, far below Kafka's limit of 4096 bytes.
        """
        numbers = [self.since, self.consumed, self.published, self.dead_lettered, self.filtered]
        return json.dumps({"stream_vae": _VERSION, "page": numbers}, separators=(",", ":"))

    @classmethod
    def read(cls, offset: int, metadata: str | None) -> "Page":
        """Read the page of a committed offset.

        Parameters
        ----------
        offset : int
            The committed offset.
        metadata : str or None
            What was committed with it.

        Returns
        -------
        Page
            A new page that begins at `offset` when the commit was not made by stream_vae.
        """
        try:
            document = json.loads(metadata or "")
            if document["stream_vae"] != _VERSION:
                return cls(offset, offset)
            since, consumed, published, dead_lettered, filtered = map(int, document["page"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return cls(offset, offset)
        return cls(since, offset, consumed, published, dead_lettered, filtered)


Pages = dict[Partition, Page]
_COLUMN: dict[Fate, int] = {"published": 3, "dead_lettered": 4, "filtered": 5}
"""Where a fate is counted among a page's fields."""


class Ledger:
    """The pages of the partitions that this worker owns."""

    def __init__(self) -> None:
        self._pages: dict[Partition, Page] = {}

    def open(self, partition: Partition, page: Page) -> None:
        """Begin or continue a page.

        Parameters
        ----------
        partition : tuple of str and int
            Topic and partition.
        page : Page
            From the committed offset, or new.
        """
        self._pages[partition] = page

    def close(self, partition: Partition) -> None:
        """Forget a partition that another worker owns now.

        Parameters
        ----------
        partition : tuple of str and int
            Topic and partition.
        """
        self._pages.pop(partition, None)

    def page(self, partition: Partition) -> Page | None:
        """Return a partition's page.

        Parameters
        ----------
        partition : tuple of str and int
            Topic and partition.

        Returns
        -------
        Page or None
            None if the partition is not owned.
        """
        return self._pages.get(partition)

    def snapshot(self) -> Pages:
        """Copy the pages, to go back to when a transaction is aborted.

        Returns
        -------
        dict
            Pages are immutable: the copy is shallow.
        """
        return dict(self._pages)

    def restore(self, pages: Pages) -> None:
        """Go back to earlier pages of the partitions that are still owned.

        Parameters
        ----------
        pages : dict
            From `snapshot`.
        """
        self._pages.update({partition: page for partition, page in pages.items() if partition in self._pages})

    def owns(self, partition: Partition) -> bool:
        """Tell whether a partition is this worker's.

        Parameters
        ----------
        partition : tuple of str and int
            Topic and partition.

        Returns
        -------
        bool
            True between open and close.
        """
        return partition in self._pages

    def settle(self, read: Iterable[tuple[Partition, int]], fates: Iterable[tuple[Partition, int, Fate]]) -> Pages:
        """Enter a batch whose every outcome is acknowledged.

        What was read and what became of it are counted apart, so that a stage that loses an alert shows.

        Parameters
        ----------
        read : iterable
            Partition and offset of every message of the batch, as the source gave them.
        fates : iterable
            Partition, offset and fate of every outcome of the batch.

        Returns
        -------
        dict
            The new page of every partition that changed and is still owned.
        """
        # Plain lists while counting: a page is built once a partition, not twice an alert.
        counts: dict[Partition, list[int]] = {}
        starts: dict[Partition, int] = {}
        for partition, offset in read:
            count = counts.get(partition)
            if count is None:
                page = self._pages.get(partition)
                if page is None or offset < page.next_offset:
                    continue  # revoked meanwhile, or entered before
                since = page.since if page.consumed else offset
                starts[partition] = offset
                count = [since, offset, page.consumed, page.published, page.dead_lettered, page.filtered]
                counts[partition] = count
            elif offset < count[1]:
                continue
            count[1] = offset + 1
            count[2] += 1
        for partition, offset, fate in fates:
            if partition in counts and offset >= starts[partition]:
                counts[partition][_COLUMN[fate]] += 1
        changed = {partition: Page(*count) for partition, count in counts.items()}
        self._pages.update(changed)
        return changed
