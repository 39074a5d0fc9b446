"""Labels through Kafka into the reservoir: kept before they are committed, once however often they come."""

import contextlib
import json
import signal
import uuid

import numpy as np
import pytest
from confluent_kafka import Consumer, TopicPartition
from stream_vae import settings as settings_module
from stream_vae.errors import ConfigError, RetriableError
from stream_vae.labels.intake import Intake
from stream_vae.labels.label import Label, Provenance
from stream_vae.learning.trainer import Trainer
from stream_vae.metrics import TrainerMetrics
from stream_vae.model.release import Preprocessing
from stream_vae.model.store import ReleaseStore
from stream_vae.reservoir import Reservoir, address, connect
from stream_vae.sampling import Capacities

from flow import Record, read, running, send, until
from releases import make_release
from reservoirs import batch_of
from servers import real_redis

PREPROCESSING = Preprocessing()


@pytest.fixture
def survey(redis_server):
    """A survey that no other test knows, so that its keys are its own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    with redis_server.client() as client:
        if keys := list(client.scan_iter(f"{{vae}}:{name}:*")):
            client.unlink(*keys)


@pytest.fixture
def reservoir(redis_server, survey):
    with contextlib.closing(open_reservoir(redis_server.url, survey)) as opened:
        fill(opened)
        yield opened


def open_reservoir(url, survey, *, anchors=1000):
    return Reservoir(connect(url, timeout_s=5.0), survey, where=address(url), anchor_capacity=anchors)


def fill(reservoir, count=30):
    stamps = np.random.default_rng(1).uniform(-1, 1, (count, 21, 21, 1)).astype(np.float32)
    batch = batch_of(reservoir.survey, [f"alert-{number}" for number in range(count)], stamps)
    reservoir.add(batch, preprocessing=PREPROCESSING, capacities=Capacities(1000, anchors=1000))


@pytest.fixture
def topics(kafka):
    """The labels topic and the dead letters."""
    return kafka.create_topic(kafka.topic("labels"), 2), kafka.create_topic(kafka.topic("dead"))


@pytest.fixture
def settings(kafka, topics, survey):
    """All that the intake needs."""
    return configured(kafka, *topics)


def configured(kafka, labels, dead, **sections):
    stem = kafka.topic("alerts")
    section = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "input_topics": [f"{stem}-in"],
        "output_topic": f"{stem}-out",
        "dead_letter_topic": dead,
        "group_id": stem,
        "consumer_options": kafka.consumer_options,
    }
    about = {"survey": "candidate", "kafka": section, "release": {"store": "nowhere"}, "labels": {"topic": labels}}
    return settings_module.from_plain(about | sections)


@contextlib.contextmanager
def intake(settings, reservoir):
    metrics = TrainerMetrics("test")
    with contextlib.closing(Intake(settings, reservoir, metrics)) as opened:
        yield opened, metrics


def counted(metrics, outcome):
    labels = {"survey": "test", "outcome": outcome}
    return metrics.registry.get_sample_value("stream_vae_labels_total", labels) or 0


def message(alert_id, label="real", **more):
    record = {"alert_id": alert_id, "label": label, "provenance": "human", **more}
    return Record(json.dumps(record).encode(), alert_id.encode())


def take_until(opened, condition, what):
    def turned():
        opened()
        return condition()

    until(turned, what=what)


def committed(kafka, settings, topic):
    """Offsets that the group has committed, in all."""
    options = {"bootstrap.servers": kafka.bootstrap_servers, "group.id": settings.labels_group_id}
    with contextlib.closing(Consumer(options)) as consumer:
        found = consumer.committed([TopicPartition(topic, number) for number in range(2)], timeout=30)
    return sum(max(entry.offset, 0) for entry in found)


def test_labels_of_a_topic_come_into_the_reservoir(kafka, topics, settings, reservoir):
    send(kafka, topics[0], [message(f"alert-{n}") for n in range(20)] + [message("elsewhere", "bogus")], partitions=2)
    with intake(settings, reservoir) as (opened, metrics):
        take_until(opened, lambda: committed(kafka, settings, topics[0]) == 21, "all labels are committed")
    stats = reservoir.stats()
    assert stats.labels == {"human": {1: 20, 0: 1}}
    assert (stats.waiting, stats.conflicts) == (1, 0)
    assert (counted(metrics, "anchored"), counted(metrics, "waiting")) == (20, 1)
    sample = reservoir.draw(None, np.random.default_rng(0), strata=["anchors"])
    assert set(sample.alert_ids) == {f"alert-{n}" for n in range(20)}
    assert (sample.labels == 1).all()


def test_a_redelivered_label_changes_nothing(kafka, topics, settings, reservoir):
    same = message("alert-3", labelled_at="2026-11-24T14:46:56Z")
    send(kafka, topics[0], [same, same, same])
    with intake(settings, reservoir) as (opened, metrics):
        take_until(opened, lambda: committed(kafka, settings, topics[0]) == 3, "all three are committed")
    assert (counted(metrics, "anchored"), counted(metrics, "repeated")) == (1, 2)
    assert len(reservoir.labels()) == 1


def test_what_is_no_label_goes_to_the_dead_letters_and_holds_nobody_up(kafka, topics, settings, reservoir):
    wrong = {
        b"{": "no_label",
        b"[1, 2]": "no_label",
        b"\xff\xfe": "no_label",
        b"[" * 60_000: "no_label",
        b"x" * 70_000: "no_label",
        b'{"alert_id": "alert-1", "label": "perhaps", "provenance": "human"}': "no_label",
        b'{"alert_id": "alert-1", "label": true, "provenance": "human"}': "no_label",
        b'{"alert_id": 1.5, "label": 1, "provenance": "human"}': "no_label",
        b'{"alert_id": "alert-1", "label": 1, "provenance": "nobody"}': "no_label",
        b'{"alert_id": "alert-1", "label": 1, "provenance": "human", "confidence": "high"}': "no_label",
        b'{"alert_id": "alert-1", "label": 1, "provenance": "human", "labelled_at": 17}': "no_label",
        json.dumps({"alert_id": "i" * 300, "label": 1, "provenance": "human"}).encode(): "no_label",
        json.dumps(
            {"alert_id": "alert-1", "label": 1, "provenance": "human", "comment": "c" * 5000}
        ).encode(): "no_label",
        b"": "empty",
    }
    records = [Record(value, f"key-{number}".encode()) for number, value in enumerate(wrong)]
    send(kafka, topics[0], [*records, message("alert-2")])
    with intake(settings, reservoir) as (opened, metrics):
        take_until(opened, lambda: committed(kafka, settings, topics[0]) == len(wrong) + 1, "all are committed")
    assert counted(metrics, "malformed") == len(wrong)
    assert counted(metrics, "anchored") == 1
    letters = read(kafka, topics[1])
    assert {each.value: each.header("stream_vae.reason").decode() for each in letters} == wrong
    first = letters[0]
    assert first.header("stream_vae.stage") == b"label"
    assert first.header("stream_vae.source").decode() == f"{topics[0]}/0/0"
    assert first.header("stream_vae.alert_id") == b"key-0"
    assert len(reservoir.labels()) == 1


def test_two_people_who_disagree_are_both_kept_and_counted(kafka, topics, settings, reservoir):
    send(kafka, topics[0], [message("alert-5", "real", comment="a"), message("alert-5", "bogus", comment="b")])
    with intake(settings, reservoir) as (opened, metrics):
        take_until(opened, lambda: committed(kafka, settings, topics[0]) == 2, "both are committed")
        opened()
    assert metrics.registry.get_sample_value("stream_vae_label_conflicts", {"survey": "test"}) == 1
    assert (len(reservoir.labels()), reservoir.stats().conflicts) == (2, 1)
    sample = reservoir.draw(None, np.random.default_rng(0), strata=["anchors"])
    assert (sample.labels.tolist(), sample.provenances) == ([-1], ("human",))


def test_a_label_without_room_is_kept_as_a_dead_letter(kafka, topics, settings, reservoir, redis_server):
    send(kafka, topics[0], [message("alert-1"), message("alert-2"), message("alert-3")])
    small = open_reservoir(redis_server.url, reservoir.survey, anchors=2)
    with contextlib.closing(small), intake(settings, small) as (opened, metrics):
        take_until(opened, lambda: committed(kafka, settings, topics[0]) == 3, "all are committed")
    assert (counted(metrics, "anchored"), counted(metrics, "full")) == (2, 1)
    (letter,) = read(kafka, topics[1])
    assert (letter.header("stream_vae.reason"), letter.key) == (b"no_room", b"alert-3")
    assert b"anchor_capacity" in letter.header("stream_vae.error")


def test_while_redis_is_down_offsets_stay_and_nothing_is_lost(kafka, topics, settings):
    send(kafka, topics[0], [message(f"alert-{n}") for n in range(10)], partitions=2)
    with real_redis() as own, contextlib.closing(open_reservoir(own.url, "down")) as opened_reservoir:
        fill(opened_reservoir)
        with intake(settings, opened_reservoir) as (opened, metrics):
            with own.client() as client:
                client.config_set("maxmemory", 1)  # as good as a full one: it takes nothing more
                client.config_set("maxmemory-policy", "noeviction")
            with pytest.raises(RetriableError):
                take_until(opened, lambda: False, "never")
            assert committed(kafka, settings, topics[0]) == 0
            with pytest.raises(RetriableError):
                opened()
            with own.client() as client:
                client.config_set("maxmemory", 0)
            take_until(opened, lambda: committed(kafka, settings, topics[0]) == 10, "all are committed")
            assert counted(metrics, "anchored") == 10
        assert read(kafka, topics[1]) == []


def test_where_going_back_fails_a_new_consumer_begins_at_what_is_done(kafka, topics, settings, reservoir, monkeypatch):
    send(kafka, topics[0], [message(f"alert-{n}") for n in range(8)])
    refuses = [True]

    class Moody:
        """Of the reservoir, with a fault in the middle of the first batch."""

        def __init__(self):
            self.labels = reservoir.labels
            self.asked = 0

        def label(self, label):
            self.asked += 1
            if refuses[0] and self.asked == 4:
                raise RetriableError("Redis went away.")
            return reservoir.label(label)

    with intake(settings, Moody()) as (opened, metrics):
        unassigned = opened._consumer
        real_go_back = opened._go_back

        def fails(packets):
            if packets:
                unassigned.incremental_unassign(unassigned.assignment())  # now librdkafka refuses to seek
            real_go_back(packets)

        monkeypatch.setattr(opened, "_go_back", fails)
        with pytest.raises(RetriableError, match="went away"):
            take_until(opened, lambda: False, "never")
        assert opened._consumer is not unassigned
        assert committed(kafka, settings, topics[0]) == 3
        refuses[0] = False
        take_until(opened, lambda: committed(kafka, settings, topics[0]) == 8, "all are committed")
    assert counted(metrics, "anchored") == 8
    assert counted(metrics, "repeated") == 0


def test_a_redis_that_does_not_answer_is_no_hang(kafka, topics, settings):
    send(kafka, topics[0], [message("alert-1")])
    gone = open_reservoir("redis://127.0.0.1:1", "gone")
    with contextlib.closing(gone), intake(settings, gone) as (opened, _):
        with pytest.raises((RetriableError, ConfigError), match="No Redis answers"):
            take_until(opened, lambda: False, "never")
        assert committed(kafka, settings, topics[0]) == 0


def test_one_that_is_killed_between_redis_and_commit_leaves_each_label_once(
    kafka, topics, survey, reservoir, redis_server, tmp_path
):
    make_release(ReleaseStore(str(tmp_path / "store")), tmp_path / "release")
    settings = configured(kafka, *topics, release={"store": str(tmp_path / "store")})
    profile = tmp_path / "profile.toml"
    alert = 'time_format = "mjd"\n[fields]\nalert_id = "id"\nra_deg = "ra"\ndec_deg = "dec"\ntime = "mjd"\n'
    profile.write_text(f'name = "{survey}"\n{alert}[cutouts]\ndifference = "d"\n', "utf-8")
    file = tmp_path / "settings.toml"
    section = settings.kafka
    options = ", ".join(f'"{name}" = {value}' for name, value in kafka.consumer_options.items())
    file.write_text(
        f'survey = "{profile}"\n[kafka]\nbootstrap_servers = "{section.bootstrap_servers}"\n'
        f'input_topics = ["{section.input_topics[0]}"]\noutput_topic = "{section.output_topic}"\n'
        f'dead_letter_topic = "{topics[1]}"\ngroup_id = "{section.group_id}"\n[kafka.consumer_options]\n'
        f'{options.replace(", ", chr(10))}\n[release]\nstore = "{tmp_path / "store"}"\n'
        f'[reservoir]\nurl = "{redis_server.url}"\n[labels]\ntopic = "{topics[0]}"\n[retrain]\npoll_s = 0.2\n',
        "utf-8",
    )
    send(kafka, topics[0], [message(f"alert-{n}") for n in range(12)], partitions=2)
    # Dies when Redis has the labels and before Kafka knows.
    dies = (
        "import os, signal\nfrom stream_vae.labels.intake import Intake\n"
        "Intake._commit = lambda self: self._uncommitted and os.kill(os.getpid(), signal.SIGKILL)"
    )
    with running(tmp_path / "first.log", "retrain", "--settings", file, before=dies) as first:
        assert first.wait() == -signal.SIGKILL, first.text
    had = len(reservoir.labels())
    assert had > 0
    assert committed(kafka, settings, topics[0]) == 0
    with running(tmp_path / "second.log", "retrain", "--settings", file) as second:
        until(lambda: committed(kafka, settings, topics[0]) == 12, what="all labels are committed")
        second.signal(signal.SIGTERM)
        assert second.wait() == 0, second.text
    labels = list(reservoir.labels())
    assert len(labels) == 12
    assert {label.alert_id for label in labels} == {f"alert-{n}" for n in range(12)}
    assert reservoir.stats().conflicts == 0


def test_a_missing_topic_is_named_at_the_start(kafka, topics, reservoir):
    with pytest.raises(ConfigError, match=r"no topic labels.topic = 'absent'.*kafka-topics.sh --create --topic absent"):
        Intake(configured(kafka, "absent", topics[1]), reservoir, TrainerMetrics("test"))
    with pytest.raises(ConfigError, match=r"no topic kafka.dead_letter_topic = 'absent'"):
        Intake(configured(kafka, topics[0], "absent"), reservoir, TrainerMetrics("test"))


def test_a_trainer_takes_labels_before_it_looks_whether_to_retrain(kafka, topics, settings, reservoir, tmp_path):
    make_release(ReleaseStore(str(tmp_path / "store")), tmp_path / "release")
    whole = settings.model_copy(
        update={"release": settings.release.model_copy(update={"store": str(tmp_path / "store")})}
    )
    send(kafka, topics[0], [message("alert-1"), Record(b"no label")])
    with intake(settings, reservoir) as (opened, metrics):
        trainer = Trainer(whole, lambda *_: pytest.fail("nothing asks for it"), reservoir, metrics, intake=opened)

        def turned():
            trainer.turn()
            return counted(metrics, "anchored")

        until(turned, what="the label is there")
        assert trainer.ready() == (True, "waiting")
        trainer.close()
    assert list(reservoir.labels()) == [Label("alert-1", 1, Provenance.HUMAN)]
