"""The books of a partition balance, whatever order batches come in and whoever owns the partition meanwhile."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from stream_vae.alert import Fate
from stream_vae.stages.ledger import Ledger, Page

HERE, THERE = ("alerts", 0), ("alerts", 1)
FATES: tuple[Fate, ...] = ("published", "dead_lettered", "filtered")
COUNTS = st.integers(0, 2**62)


def settle(ledger: Ledger, *entries: tuple[int, Fate], where: tuple[str, int] = HERE) -> dict[tuple[str, int], Page]:
    read = [(where, offset) for offset, _ in entries]
    return ledger.settle(read, [(where, offset, fate) for offset, fate in entries])


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    ledger.open(HERE, Page(10, 10))
    return ledger


def test_a_batch_is_entered_by_its_fates(ledger: Ledger) -> None:
    pages = settle(ledger, (10, "published"), (11, "dead_lettered"), (12, "published"), (13, "filtered"))
    assert pages == {HERE: Page(10, 14, consumed=4, published=2, dead_lettered=1, filtered=1)}
    assert ledger.page(HERE) == pages[HERE]
    assert pages[HERE].balanced


def test_only_the_pages_that_changed_are_given_back(ledger: Ledger) -> None:
    ledger.open(THERE, Page(0, 0))
    assert settle(ledger, (5, "published"), where=THERE).keys() == {THERE}
    assert ledger.settle([], []) == {}


def test_an_alert_that_a_stage_lost_shows(ledger: Ledger) -> None:
    read = [(HERE, 10), (HERE, 11)]
    pages = ledger.settle(read, [(HERE, 10, "published")])
    assert not pages[HERE].balanced


def test_an_alert_that_came_out_twice_shows(ledger: Ledger) -> None:
    pages = ledger.settle([(HERE, 10)], [(HERE, 10, "published"), (HERE, 10, "dead_lettered")])
    assert not pages[HERE].balanced


def test_offsets_that_the_broker_skipped_are_gaps_and_not_losses(ledger: Ledger) -> None:
    settle(ledger, (10, "published"), (15, "published"))
    page = settle(ledger, (20, "filtered"))[HERE]
    assert (page.consumed, page.gaps) == (3, 8)
    assert page.balanced


def test_a_partition_read_from_its_middle_begins_there() -> None:
    ledger = Ledger()
    ledger.open(HERE, Page.read(-1, None))
    page = settle(ledger, (500, "published"))[HERE]
    assert (page.since, page.next_offset, page.gaps) == (500, 501, 0)


def test_an_offset_that_was_entered_before_is_not_entered_again(ledger: Ledger) -> None:
    settle(ledger, (10, "published"), (11, "published"))
    page = settle(ledger, (10, "published"), (11, "dead_lettered"), (12, "published"))[HERE]
    assert page == Page(10, 13, consumed=3, published=3)


def test_offsets_before_the_committed_one_are_not_entered_for_a_page_that_is_new() -> None:
    ledger = Ledger()
    ledger.open(HERE, Page.read(100, "someone else's"))
    page = settle(ledger, *((offset, "published") for offset in range(95, 105)))[HERE]
    assert page.balanced
    assert (page.since, page.next_offset, page.consumed) == (100, 105, 5)


def test_a_partition_that_left_is_not_entered(ledger: Ledger) -> None:
    ledger.close(HERE)
    assert settle(ledger, (10, "published")) == {}
    assert ledger.page(HERE) is None
    assert not ledger.owns(HERE)
    ledger.close(HERE)  # twice is harmless


def test_an_aborted_batch_is_undone_for_the_partitions_that_are_still_owned(ledger: Ledger) -> None:
    ledger.open(THERE, Page(0, 0))
    kept = ledger.snapshot()
    settle(ledger, (10, "published"))
    settle(ledger, (0, "published"), where=THERE)
    ledger.close(THERE)
    ledger.restore(kept)
    assert ledger.page(HERE) == Page(10, 10)
    assert ledger.page(THERE) is None


@given(st.builds(Page, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS))
def test_a_page_survives_the_offsets_metadata(page: Page) -> None:
    assert Page.read(page.next_offset, page.metadata()) == page
    assert len(page.metadata().encode()) < 4096


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        "",
        "someone else's",
        "null",
        "3",
        "[]",
        "{}",
        '{"stream_vae": 1}',
        '{"stream_vae": 99, "page": [0, 1, 1, 0, 0]}',
        '{"stream_vae": 1, "page": [0, 1, 1, 0]}',
        '{"stream_vae": 1, "page": [0, 1, 1, 0, 0, 0]}',
        '{"stream_vae": 1, "page": "01100"}x',
        '{"stream_vae": 1, "page": [null, 1, 1, 0, 0]}',
        '{"stream_vae": 1, "page": 5}',
        '{"stream_vae": 1, "page": [0, 1e999, 1, 0, 0]}',
        "[" * 5000,
    ],
)
def test_metadata_of_others_or_damaged_begins_a_new_page(metadata: str | None) -> None:
    assert Page.read(42, metadata) == Page(42, 42)


@given(st.text(max_size=60) | st.recursive(st.integers() | st.text(), st.lists).map(json.dumps))
def test_no_metadata_does_worse_than_begin_a_new_page(metadata: str) -> None:
    assert Page.read(7, metadata).next_offset == 7


class Group(RuleBasedStateMachine):
    """Two workers share a partition: batches are read, settled late or abandoned, and the partition changes hands.

    The broker keeps what was committed last, as metadata; its messages have gaps, as transactions leave them.
    """

    @initialize(gaps=st.sets(st.integers(0, 60), max_size=20), start=st.integers(0, 5))
    def begin(self, gaps: set[int], start: int) -> None:
        self.offsets = [offset for offset in range(start, 100) if offset not in gaps]
        self.committed: tuple[int, str | None] = (-1, None)
        self.fate_of: dict[int, Fate] = {}
        self.assign()

    def assign(self) -> None:
        self.ledger = Ledger()
        offset, metadata = self.committed
        self.ledger.open(HERE, Page.read(offset, metadata))
        self.position = offset
        self.waiting: list[list[int]] = []

    @rule(count=st.integers(1, 8))
    def read(self, count: int) -> None:
        batch = [offset for offset in self.offsets if offset >= self.position][:count]
        if batch:
            self.waiting.append(batch)
            self.position = batch[-1] + 1

    @rule(fates=st.lists(st.sampled_from(FATES), min_size=8, max_size=8))
    def settle_the_oldest(self, fates: list[Fate]) -> None:
        if not self.waiting:
            return
        batch = self.waiting.pop(0)
        chosen = dict(zip(batch, fates, strict=False))
        outcomes = sorted(chosen.items(), key=lambda entry: entry[1])  # outcomes come in an order of their own
        pages = self.ledger.settle(
            [(HERE, offset) for offset in batch], [(HERE, offset, fate) for offset, fate in outcomes]
        )
        self.fate_of |= chosen
        self.committed = (pages[HERE].next_offset, pages[HERE].metadata())

    @rule()
    def lose_the_partition(self) -> None:
        late = self.waiting
        self.ledger.close(HERE)
        for batch in late:
            assert self.ledger.settle([(HERE, n) for n in batch], [(HERE, n, "published") for n in batch]) == {}
        self.assign()

    @rule()
    def rewind(self) -> None:
        page = self.ledger.page(HERE)
        assert page is not None
        self.waiting, self.position = [], page.next_offset

    @invariant()
    def the_books_say_what_became_of_every_message_once(self) -> None:
        if not hasattr(self, "fate_of"):
            return
        page = self.ledger.page(HERE)
        assert page is not None
        assert page.balanced
        assert page.consumed == len(self.fate_of)
        for fate in FATES:
            assert getattr(page, fate) == list(self.fate_of.values()).count(fate)
        if page.consumed:
            assert page.next_offset == max(self.fate_of) + 1
            assert page.gaps == page.next_offset - page.since - len(self.fate_of)
            assert page.since == self.offsets[0]


TestGroup = Group.TestCase
