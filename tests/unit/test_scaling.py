"""How many workers the lag asks for, and how a fleet grows and shrinks."""

import pytest
from prometheus_client import CollectorRegistry
from stream_vae.errors import ConfigError
from stream_vae.metrics import FleetMetrics
from stream_vae.runtime import fleet as module
from stream_vae.runtime.fleet import Fleet
from stream_vae.runtime.scaling import Scaling
from stream_vae.settings import FleetSettings, Settings

from pretended import RUNNING, Pretended

SECTION = FleetSettings(max_workers=8, lag_per_worker=100, scale_down_after_s=60)


def test_every_so_many_waiting_messages_ask_for_a_worker():
    for lag, wanted in ((0, 2), (200, 2), (201, 3), (600, 6), (10_000, 6)):
        assert Scaling(SECTION, 2, 6).wanted(lag, 0.0) == wanted


def test_there_are_never_more_workers_than_partitions_unless_so_many_were_asked_for():
    assert Scaling(SECTION, 1, 3).most == 3
    assert Scaling(SECTION, 4, 3).most == 4
    assert Scaling(SECTION, 4, 3).fixed


def test_a_fleet_without_a_most_has_a_fixed_size():
    scaling = Scaling(FleetSettings(), 3, 16)
    assert scaling.fixed
    assert scaling.wanted(10**9, 0.0) == 3


def test_it_grows_at_once_and_shrinks_to_the_most_that_was_asked_for_in_a_while():
    scaling = Scaling(SECTION, 1, 8)
    lags = [(0, 0), (5, 450), (10, 300), (20, 700), (30, 250), (40, 0), (79, 0), (81, 0), (91, 0), (101, 0)]
    assert [scaling.wanted(lag, now) for now, lag in lags] == [1, 5, 5, 7, 7, 7, 7, 3, 1, 1]


def test_a_lag_that_swings_does_not_make_workers_come_and_go():
    scaling = Scaling(SECTION, 1, 8)
    assert {scaling.wanted(lag, 10.0 * i) for i, lag in enumerate([500, 0] * 20)} == {5}


def test_a_most_below_the_least_is_refused():
    with pytest.raises(ConfigError, match=r"fleet.max_workers = 8 is less than --workers 9"):
        Scaling(SECTION, 9, 16)


class Bench:
    """A fleet whose workers and lag are pretended, with a clock of its own."""

    def __init__(self, monkeypatch):
        self.now, self.lag, self.made = 1000.0, 0, {}
        monkeypatch.setattr(module, "monotonic", lambda: self.now)
        monkeypatch.setattr("stream_vae.runtime.slot.monotonic", lambda: self.now)
        settings = Settings(
            survey="candidate",
            kafka={
                "bootstrap_servers": "nowhere:9092",
                "input_topics": ["in"],
                "output_topic": "out",
                "dead_letter_topic": "dead",
            },
            release={"store": "nowhere"},
            fleet=SECTION,
            delivery={"drain_timeout_s": 30},
        )
        self.registry = CollectorRegistry()
        group = type("Group", (), {"lag": lambda _: self.lag})()
        self.fleet = Fleet(settings, Scaling(SECTION, 1, 4), group, FleetMetrics("candidate", self.registry))
        self.fleet._cluster = self

    def launch(self, number):
        worker = Pretended()
        worker.next, worker.answered_at = RUNNING, self.now
        self.made.setdefault(number, []).append(worker)
        return worker

    def turn(self, seconds=5.0):
        self.now += seconds
        for workers in self.made.values():
            workers[-1].answered_at = self.now
        self.fleet._turn()

    @property
    def wanted(self):
        return self.registry.get_sample_value("stream_vae_fleet_workers_wanted", {"survey": "candidate"})


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


def test_a_fleet_grows_with_the_lag_and_lets_the_last_workers_leave_when_it_is_gone(bench):
    bench.turn()
    assert sorted(bench.made) == [0]
    bench.lag = 330
    bench.turn()
    assert sorted(bench.made) == [0, 1, 2, 3]
    assert bench.wanted == 4
    bench.lag = 0
    for _ in range(13):
        bench.turn()
    assert bench.wanted == 1
    bench.turn()
    assert bench.fleet._leaving == {}
    assert not bench.made[0][0].killed
    assert all(bench.made[number][0].killed for number in (1, 2, 3)), "their processes are ended, after they left"
    bench.lag = 150
    bench.turn()
    assert len(bench.made[1]) == 2


def test_a_number_is_not_given_away_while_its_last_worker_settles(bench):
    """Two of one number would have one transactional id, and fence each other."""
    bench.lag = 200
    bench.turn()
    slow = bench.made[1][0]
    slow.stop = lambda: None  # it takes its time
    bench.lag = 0
    for _ in range(13):
        bench.turn()
    assert [slot.number for slot in bench.fleet._leaving] == [1]
    bench.lag = 400
    bench.turn()
    assert sorted(bench.made) == [0, 1]
    assert len(bench.made[1]) == 1
    for _ in range(9):
        bench.turn()
    assert slow.killed, "after its time to settle"
    assert len(bench.made[1]) == 2
    assert sorted(bench.made) == [0, 1, 2, 3]


def test_brokers_that_do_not_tell_the_lag_change_nothing(bench):
    bench.lag = 330
    bench.turn()
    bench.lag = None
    for _ in range(20):
        bench.turn()
    assert bench.wanted == 4
