"""Offering never waits and never fails, whatever Redis does."""

import contextlib
import socket
import threading
import time

import numpy as np
import pytest
import redis
from stream_vae import surveys
from stream_vae.embedded.valkey import EmbeddedValkey
from stream_vae.metrics import Metrics
from stream_vae.model.release import Preprocessing
from stream_vae.reservoir import Answer, Reservoir, address, connect
from stream_vae.runtime.offering import TIMEOUT_S, Circuit, Offering
from stream_vae.sampling import RANKS, STRATA, Capacities, unpack

from reservoirs import named, observed

STAMPS = np.random.default_rng(1).uniform(-1, 1, (128, 21, 21, 1)).astype(np.float32)


PROFILE = surveys.load("ztf")
OK = Answer("ok", capacities=Capacities(1000))


class FakeReservoir:
    """Answers as it is told, and remembers what it was asked."""

    survey, where = "ztf", "redis://fake"

    def __init__(self, answer=None):
        self.answer = answer or OK
        self.batches = []
        self.asked = []
        self.closed = False

    def add(self, batch, **arguments):
        self.batches.append(batch)
        self.asked.append(arguments["waiting_version"])
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self):
        self.closed = True

    @property
    def received(self):
        return [alert_id for batch in self.batches for alert_id in batch.alert_ids]


def names(batch, count=128):
    return [str(batch * 1000 + i) for i in range(count)]


def offer(one, ids, stamps, **fields):
    one.observe(*observed(named(ids, **fields), stamps))


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"stream_vae_reservoir_{name}", {"survey": "ztf", **labels}) or 0.0


@pytest.fixture
def metrics():
    return Metrics("ztf")


@contextlib.contextmanager
def offering(reservoir, metrics, **arguments):
    one = Offering(reservoir, Preprocessing(), Capacities(1000), metrics, profile=PROFILE, **arguments)
    try:
        yield one
    finally:
        one.close()


def wait_for(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def test_what_is_offered_arrives_with_its_stamps(metrics):
    reservoir = FakeReservoir()
    with offering(reservoir, metrics) as one:
        offer(one, names(1), STAMPS)
        assert one.flush(5)
    assert reservoir.received == names(1)
    records = [record for batch in reservoir.batches for record in batch.records]
    assert np.abs(unpack(records, Preprocessing()) - STAMPS).max() < 1e-3
    assert value(metrics, "offered_total") == 128


def test_only_what_could_enter_is_sent_once_the_threshold_is_known(metrics):
    reservoir = FakeReservoir(OK._replace(thresholds=(RANKS / 4, -np.inf, -np.inf, -np.inf)))
    with offering(reservoir, metrics) as one:
        wait_for(lambda: reservoir.batches)
        assert not reservoir.batches[0].alert_ids  # the first question is for the threshold
        for batch in range(40):
            offer(one, names(batch), STAMPS)
        assert one.flush(5)
        sent = [rank for batch in reservoir.batches for rank in batch.ranks[:, 0]]
    assert max(sent) < RANKS / 4
    assert len(sent) == pytest.approx(40 * 128 / 4, rel=0.15)


def held_up(reservoir):
    """Make it answer only once the event that is given is set."""
    answers, add = threading.Event(), reservoir.add
    reservoir.add = lambda *args, **kw: (answers.wait(), add(*args, **kw))[1]
    return answers


def test_batches_that_wait_are_joined_to_one_call(metrics):
    reservoir = FakeReservoir()
    answers = held_up(reservoir)
    with offering(reservoir, metrics) as one:
        for batch in range(4):
            offer(one, names(batch, 8), STAMPS[:8])
        answers.set()
        assert one.flush(5)
    assert len(reservoir.batches) <= 3
    assert len(reservoir.received) == 32


def test_a_queue_that_is_full_drops_and_counts(metrics):
    reservoir = FakeReservoir()
    answers = held_up(reservoir)
    with offering(reservoir, metrics, queue_stamps=256) as one:
        for batch in range(10):
            offer(one, names(batch), STAMPS)  # returns, though the reservoir does not
        answers.set()
        assert one.flush(5)
    dropped = value(metrics, "dropped_total", reason="queue_full")
    assert dropped >= 6 * 128
    assert len(reservoir.received) + dropped == value(metrics, "offered_total") == 1280


def test_an_error_in_offering_is_counted_and_not_raised(metrics, caplog):
    with offering(FakeReservoir(), metrics) as one:
        one.observe(*observed([None, None], STAMPS[:2]))
    assert value(metrics, "dropped_total", reason="error") == 2
    assert "offering to the reservoir fails" in caplog.text


def test_an_endless_id_is_not_kept(metrics):
    reservoir = FakeReservoir()
    with offering(reservoir, metrics) as one:
        offer(one, ["x" * 1000, "short"], STAMPS[:2])
        assert one.flush(5)
    assert reservoir.received == ["short"]
    assert value(metrics, "dropped_total", reason="id_too_long") == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer("layout", "0"), "layout '0'"),
        (Answer("preprocessing", "0123"), "prepared in another way"),
        (redis.ResponseError("WRONGTYPE"), "WRONGTYPE"),
        (ValueError("a bug"), "a bug"),
    ],
)
def test_a_refusal_is_told_once_and_tried_again_later(metrics, caplog, answer, message):
    reservoir = FakeReservoir(answer)
    with offering(reservoir, metrics, retry_after_s=0.05) as one:
        wait_for(lambda: value(metrics, "circuit_open"))
        for batch in range(6):
            offer(one, names(batch), STAMPS)
            time.sleep(0.03)
        assert one.flush(5)
        assert sum(message in record.message for record in caplog.records) == 1
        reservoir.answer = OK
        time.sleep(0.06)
        offer(one, names(9), STAMPS)
        assert one.flush(5)
        assert not value(metrics, "circuit_open")
    assert set(names(9)) <= set(reservoir.received)


def test_closing_sends_what_waits_and_is_idempotent(metrics):
    reservoir = FakeReservoir()
    one = Offering(reservoir, Preprocessing(), Capacities(1000), metrics, profile=PROFILE)
    offer(one, names(1), STAMPS)
    one.close()
    one.close()
    offer(one, names(2), STAMPS)
    assert reservoir.closed
    assert reservoir.received == names(1)
    assert value(metrics, "dropped_total", reason="closing") == 128


def test_a_circuit_lets_one_call_through_after_its_pause():
    now = 100.0
    circuit = Circuit(5.0, clock=lambda: now)
    assert circuit.state == "closed"
    circuit.failed()
    assert (circuit.state, circuit.wait_s) == ("open", 5.0)
    now = 105.0
    assert circuit.state == "half_open"
    circuit.failed()
    assert circuit.state == "open"
    now = 111.0
    circuit.succeeded()
    assert circuit.state == "closed"


def offer_much(url, metrics, batches=100):
    """Offer batches as fast as they come; seconds that the caller spent, and that closing took."""
    with contextlib.closing(
        Offering(
            Reservoir(connect(url, timeout_s=TIMEOUT_S), "ztf", where=address(url)),
            Preprocessing(),
            Capacities(50_000),
            metrics,
            profile=PROFILE,
            retry_after_s=0.3,
        )
    ) as one:
        started = time.perf_counter()
        for batch in range(batches):
            offer(one, names(batch), STAMPS)
        spent = time.perf_counter() - started
        started = time.perf_counter()
    return spent, time.perf_counter() - started


# A call that waited for the time-out would take 20 s for the 100 batches; they take about 0.1.
MUCH_LESS_THAN_WAITING_S = 2.0


def test_a_dead_redis_costs_the_alert_path_nothing(metrics):
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        spent, closing = offer_much(f"redis://127.0.0.1:{refusing.getsockname()[1]}", metrics)
    assert spent < MUCH_LESS_THAN_WAITING_S
    assert closing < 1.5
    assert sum(value(metrics, "dropped_total", reason=why) for why in REASONS) == 12_800


def test_a_hung_redis_costs_the_alert_path_nothing(metrics):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # the kernel accepts, and nobody ever answers
        spent, closing = offer_much(f"redis://127.0.0.1:{silent.getsockname()[1]}", metrics)
    assert spent < MUCH_LESS_THAN_WAITING_S
    assert closing < 1.5
    assert sum(value(metrics, "dropped_total", reason=why) for why in REASONS) == 12_800


def test_a_full_redis_costs_the_alert_path_nothing(metrics, caplog):
    with EmbeddedValkey(max_memory="3mb") as valkey:
        spent, _ = offer_much(valkey.url, metrics)
        with redis.Redis.from_url(valkey.url) as client:
            size = client.zcard("{vae}:ztf:uniform:ranks")
            assert size == client.hlen("{vae}:ztf:stamps") > 0  # never half an entry
    assert spent < MUCH_LESS_THAN_WAITING_S
    assert value(metrics, "entered_total") == size
    assert size + sum(value(metrics, "dropped_total", reason=why) for why in REASONS) == 12_800
    assert sum("maxmemory" in record.message for record in caplog.records) == 1


REASONS = ("queue_full", "circuit_open", "redis_error", "closing")


def test_stamps_of_waiting_alerts_are_sent_though_every_stratum_is_full(metrics):
    full = OK._replace(thresholds=(-np.inf,) * 4, waiting=frozenset({"1003"}), waiting_version="1")
    reservoir = FakeReservoir(full)
    with offering(reservoir, metrics) as one:
        wait_for(lambda: reservoir.batches)
        assert one.flush(5)
        offer(one, names(1), STAMPS)
        offer(one, names(2), STAMPS)
        assert one.flush(5)
    assert reservoir.received == ["1003"]
    assert value(metrics, "waiting_alerts") == 1
    assert reservoir.asked[0] == ""  # nothing is known yet
    assert set(reservoir.asked[1:]) == {None}  # and it does not ask again at once


def test_a_reservoir_that_lost_everything_is_told_once_and_filled_again(metrics, caplog):
    reservoir = FakeReservoir(OK._replace(name="one", stamps=77))
    with offering(reservoir, metrics) as one:
        wait_for(lambda: value(metrics, "stamps") == 77)
        for name, stamps in (("", 0), ("", 0), ("two", 5), ("two", 6)):
            reservoir.answer = OK._replace(name=name, stamps=stamps)
            offer(one, names(stamps), STAMPS)
            assert one.flush(5)
    assert value(metrics, "lost_total") == 1
    assert sum("lost all it had, 77 stamps" in record.message for record in caplog.records) == 1
    assert value(metrics, "stamps") == 6


def test_a_reservoir_that_is_kept_by_other_settings_is_told_once(metrics, caplog):
    smaller = OK._replace(capacities=Capacities(500, 10), recent_days=3.0)
    reservoir = FakeReservoir(smaller)
    capacities = Capacities(1000, 20)
    with contextlib.closing(Offering(reservoir, Preprocessing(), capacities, metrics, profile=PROFILE)) as one:
        for batch in range(3):
            offer(one, names(batch), STAMPS)
            assert one.flush(5)
        expected = (
            "500 stamps and not reservoir.capacity = 1000; 10 stamps and not reservoir.recent_capacity = 20; "
            "recent alerts for 3 days and not reservoir.recent_days = 7"
        )
        assert [expected in each.message for each in caplog.records if "cannot grow" in each.message] == [True]
        assert one._nominator.recent_days == 3.0


def test_each_stratum_is_counted(metrics):
    reservoir = FakeReservoir(OK._replace(sizes=Capacities(5, 4, 3, 2, 1), entered=2))
    with offering(reservoir, metrics) as one:
        assert one.flush(5)
        wait_for(lambda: value(metrics, "entered_total"))
    sizes = {stratum: value(metrics, "stratum_stamps", stratum=stratum) for stratum in STRATA}
    assert sizes == {"uniform": 5, "recent": 4, "rare": 3, "known": 2, "anchors": 1}


def test_a_worker_whose_reservoir_is_flushed_says_so_and_fills_it_again(metrics, caplog):
    with EmbeddedValkey() as valkey:
        reservoir = Reservoir(connect(valkey.url, timeout_s=5.0), "ztf", where=address(valkey.url))
        capacities = Capacities(1000, 100, 100, 100, 100)
        with (
            contextlib.closing(Offering(reservoir, Preprocessing(), capacities, metrics, profile=PROFILE)) as one,
            redis.Redis.from_url(valkey.url) as client,
        ):
            offer(one, names(1), STAMPS)
            assert one.flush(5)
            client.flushall()
            offer(one, names(2), STAMPS)
            assert one.flush(5)
            assert client.hlen("{vae}:ztf:stamps") == 128
    assert value(metrics, "lost_total") == 1
    assert sum("lost all it had, 128 stamps" in record.message for record in caplog.records) == 1
    assert value(metrics, "offered_total") == 256
    assert not any(value(metrics, "dropped_total", reason=why) for why in REASONS)


def test_keys_of_another_version_stop_the_offers_and_no_alert(metrics, caplog):
    with EmbeddedValkey() as valkey, redis.Redis.from_url(valkey.url) as client:
        client.hset("{vae}:ztf:meta", mapping={"layout": "1", "capacity": "50000"})
        spent, _ = offer_much(valkey.url, metrics)
        assert client.hgetall("{vae}:ztf:meta") == {b"layout": b"1", b"capacity": b"50000"}
        assert client.dbsize() == 1
    assert spent < MUCH_LESS_THAN_WAITING_S
    assert value(metrics, "circuit_open") == 1
    assert sum("layout '1'" in record.message for record in caplog.records) == 1
    assert sum(value(metrics, "dropped_total", reason=why) for why in (*REASONS, "refused")) == 12_800
