"""The worker's loop on the embedded Kafka: what makes it stop, what it waits for, and where the offsets are then."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from stream_vae.errors import ConfigError, FatalError, RetriableError
from stream_vae.metrics import Metrics
from stream_vae.runtime import worker as worker_module
from stream_vae.runtime.worker import Worker, check_topics
from stream_vae.sky.packets import packet_schema, simulate_packets
from stream_vae.stages.batch import by_bytes

from deployment import Deployment, deploy
from flow import Record, read, send, work
from schema_registry import Registry
from servers import Kafka
from stage_parts import avro_file, candidate, kafka_settings, packet

GOOD = [Record(avro_file(candidate(n))) for n in range(40)]
BAD = Record(b"Obj\x01 but no more")


def pages(deployment: Deployment) -> dict[str, Any]:
    """What is committed for the only partition, by the group's next reader."""
    from confluent_kafka import Consumer, TopicPartition

    options = {"bootstrap.servers": deployment.kafka.bootstrap_servers, "group.id": deployment.settings.kafka.group_id}
    consumer = Consumer(options)
    (entry,) = consumer.committed([TopicPartition(deployment.input, 0)], timeout=10)
    consumer.close()
    return {"offset": entry.offset, "page": json.loads(entry.metadata)["page"] if entry.metadata else None}


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry({7: packet_schema("candidate")})
    thread = threading.Thread(target=registry.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield registry
    registry.shutdown()
    registry.server_close()
    thread.join()


@pytest.fixture
def confluent(embedded_kafka: Kafka, tmp_path: Path, registry: Registry) -> Deployment:
    """A deployment whose alerts are in Confluent's wire format, eight of them waiting."""
    deployment = deploy(embedded_kafka, tmp_path, survey="candidate", registry={"url": registry.url})
    simulated = simulate_packets(8, shape="candidate", seed=1, schema_id=7)
    send(embedded_kafka, deployment.input, [Record(each.packet) for each in simulated])
    return deployment


# by_bytes


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 100))
def test_a_batch_is_split_in_order_and_no_part_is_too_large_unless_one_message_is(sizes: list[int], most: int) -> None:
    packets = [packet(bytes(size), offset) for offset, size in enumerate(sizes)]
    parts = by_bytes(packets, most)
    assert [each for part in parts for each in part] == packets
    for part in parts:
        assert sum(len(each.value) for each in part) <= most or len([each for each in part if each.value]) == 1


def test_a_batch_is_split_no_more_than_it_must_be() -> None:
    packets = [packet(bytes(40), offset) for offset in range(5)]
    assert [len(part) for part in by_bytes(packets, 100)] == [2, 2, 1]
    assert [len(part) for part in by_bytes(packets, 200)] == [5]
    assert [len(part) for part in by_bytes(packets, 1)] == [1, 1, 1, 1, 1]


# what makes it stop


def test_too_many_dead_letters_in_a_minute_stop_the_worker_with_its_books_in_order(
    embedded_kafka: Kafka, tmp_path: Path
) -> None:
    deployment = deploy(embedded_kafka, tmp_path, survey="candidate", batch={"max_alerts": 20})
    send(embedded_kafka, deployment.input, [*GOOD, *[BAD] * 100])
    worker = Worker(deployment.settings, Metrics("candidate"))
    with pytest.raises(FatalError, match=r"limits\.max_dead_letter_ratio = 0\.5.*dlq ls"):
        worker.run(exit_when_idle_s=5)
    # 40 good and 60 bad of the first hundred: over a half. What was published is settled; the rest is not read.
    committed = pages(deployment)
    assert committed["offset"] == 100
    assert committed["page"] == [0, 100, 40, 60, 0]
    assert len(read(embedded_kafka, deployment.dead_letters)) == 60
    assert worker.ready() == (False, "stopped")


@pytest.mark.parametrize(("ratio", "bad"), [(0.8, 60), (0.5, 40), (0.5, 50)])
def test_dead_letters_up_to_the_limit_do_not_stop_it(
    embedded_kafka: Kafka, tmp_path: Path, ratio: float, bad: int
) -> None:
    limits = {"max_dead_letter_ratio": ratio}
    deployment = deploy(embedded_kafka, tmp_path, survey="candidate", limits=limits)
    good = 100 - bad
    send(embedded_kafka, deployment.input, [*(GOOD * 2)[:good], *[BAD] * bad])
    work(deployment.settings)
    assert pages(deployment)["page"] == [0, 100, good, bad, 0]


def test_a_few_bad_messages_alone_do_not_stop_it(embedded_kafka: Kafka, tmp_path: Path) -> None:
    deployment = deploy(embedded_kafka, tmp_path, survey="candidate")
    send(embedded_kafka, deployment.input, [BAD] * 99)
    work(deployment.settings)
    assert pages(deployment)["page"] == [0, 99, 0, 99, 0]


def test_dead_letters_of_an_hour_ago_are_forgotten(
    embedded_kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_RATIO_WINDOW_S", 0.0)
    deployment = deploy(embedded_kafka, tmp_path, survey="candidate", batch={"max_alerts": 60})
    send(embedded_kafka, deployment.input, [BAD] * 180)
    work(deployment.settings)
    assert pages(deployment)["page"] == [0, 180, 0, 180, 0]


@pytest.mark.parametrize(
    ("credentials", "words"), [("someone:else", "answers 401"), ("user:password", None)], ids=["refused", "accepted"]
)
def test_a_registry_that_refuses_us_stops_the_worker_and_nothing_is_lost(
    confluent: Deployment, registry: Registry, credentials: str, words: str | None
) -> None:
    registry.credentials = credentials
    settings = confluent.settings.model_copy(
        update={
            "registry": confluent.settings.registry.model_validate(
                {"url": registry.url, "username": "user", "password": "password"}
            )
        }
    )
    if words is not None:
        with pytest.raises(ConfigError, match=words):
            work(settings)
        assert pages(confluent)["offset"] < 0
        assert read(confluent.kafka, confluent.dead_letters) == []
        registry.credentials = "user:password"
    work(settings)
    assert pages(confluent)["page"] == [0, 8, 8, 0, 0]
    assert len(read(confluent.kafka, confluent.output)) == 8


def test_an_output_schema_that_the_registry_refuses_stops_the_worker_with_the_remedy(
    confluent: Deployment, registry: Registry
) -> None:
    find = registry.RequestHandlerClass._find  # type: ignore[attr-defined]

    class Incompatible(registry.RequestHandlerClass):  # type: ignore[name-defined, misc]
        def _find(self, parts: list[str], body: Any) -> tuple[int, object]:
            refused = (409, {"error_code": 409, "message": "incompatible"})
            return refused if self.command == "POST" else find(self, parts, body)

    registry.RequestHandlerClass = Incompatible
    with pytest.raises(ConfigError, match=r"incompatible with subject.*choose another output topic"):
        work(confluent.settings)
    assert pages(confluent)["offset"] < 0


# what it waits for


def test_a_registry_that_does_not_answer_at_first_is_waited_for_and_no_alert_is_lost(
    confluent: Deployment, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.instead = (503, {"error_code": 50301, "message": "starting"})
    worker = Worker(confluent.settings, Metrics("candidate"))

    def answers_soon() -> None:
        until(lambda: "Trying again" in caplog.text)
        assert worker.ready()[0] is False
        registry.instead = None

    helper = threading.Thread(target=answers_soon)
    with caplog.at_level(logging.WARNING):
        helper.start()
        worker.run(exit_when_idle_s=0.4)
        helper.join()
    assert pages(confluent)["page"] == [0, 8, 8, 0, 0]
    sources = [record.header("stream_vae.source") for record in read(confluent.kafka, confluent.output)]
    assert sources == [f"{confluent.input}/0/{n}".encode() for n in range(8)]


def until(done: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_wait_doubles_up_to_half_a_minute_and_begins_anew_after_a_success(
    embedded_kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(deploy(embedded_kafka, tmp_path, survey="candidate").settings, Metrics("candidate"))
    turns = iter([*[RetriableError("x")] * 7, None, RetriableError("x")])
    waits: list[float] = []

    def turn() -> None:
        error = next(turns, FatalError("enough"))
        if error is not None:
            raise error

    monkeypatch.setattr(worker, "_turn", turn)
    monkeypatch.setattr(worker, "_back_off", lambda _error, seconds: waits.append(seconds))
    with pytest.raises(FatalError, match="enough"):
        worker.run()
    assert waits == [1, 2, 4, 8, 16, 30, 30, 1]


def test_a_worker_that_is_told_to_stop_settles_what_it_has_and_leaves(embedded_kafka: Kafka, tmp_path: Path) -> None:
    deployment = deploy(embedded_kafka, tmp_path, survey="candidate")
    send(embedded_kafka, deployment.input, GOOD)
    worker = Worker(deployment.settings, Metrics("candidate"))
    runner = threading.Thread(target=worker.run)
    runner.start()
    until(lambda: len(read(embedded_kafka, deployment.output)) == len(GOOD))
    assert worker.ready() == (True, "consuming")
    assert worker.alive()[0]
    worker.stop()
    runner.join(20)
    assert not runner.is_alive()
    assert pages(deployment)["page"] == [0, 40, 40, 0, 0]
    worker.close()  # twice is harmless


# the topics it needs


def test_topics_that_do_not_exist_are_named_with_the_remedy(
    embedded_kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = deploy(embedded_kafka, tmp_path, survey="candidate").settings
    # The embedded Kafka makes any topic that is asked for.
    monkeypatch.setattr(worker_module.kafka, "partitions", lambda _, topics: dict.fromkeys(list(topics)[:2], 3))
    with pytest.raises(ConfigError, match=r"do not exist: .*-lite, .*-dead\..*kafka\.create_topics = true"):
        check_topics(settings)


def test_missing_topics_are_made_with_the_inputs_partitions_if_asked_for(
    embedded_kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = deploy(embedded_kafka, tmp_path, survey="candidate", kafka={"create_topics": True}).settings
    made: dict[str, int] = {}
    monkeypatch.setattr(worker_module.kafka, "partitions", lambda _, topics: dict.fromkeys(list(topics)[:1], 12))
    monkeypatch.setattr(worker_module.kafka, "create_topics", lambda _, topics: made.update(topics))
    check_topics(settings)
    section = settings.kafka
    assert made == dict.fromkeys((section.output_topic, section.lite_topic, section.dead_letter_topic), 12)


def test_a_broker_that_is_not_there_is_told_with_the_address(tmp_path: Path) -> None:
    from stream_vae import kafka

    with pytest.raises(ConfigError, match=r"kafka\.bootstrap_servers = '127\.0\.0\.1:9'.*doctor"):
        kafka.partitions(kafka_settings(), ["in"], timeout_s=0.3)


# what is in flight when partitions go


class Holding:
    """A producer whose acknowledgements are held back."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self.held = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def poll(self, timeout_s: float) -> int:
        return 0 if self.held else self._producer.poll(timeout_s)


@pytest.fixture
def waiting(embedded_kafka: Kafka, tmp_path: Path) -> Iterator[tuple[Worker, Holding, Deployment]]:
    """A worker with two batches of 20 on their way."""
    delivery = {"drain_timeout_s": 0.2}
    deployment = deploy(embedded_kafka, tmp_path, survey="candidate", batch={"max_alerts": 20}, delivery=delivery)
    send(embedded_kafka, deployment.input, GOOD)
    worker = Worker(deployment.settings, Metrics("candidate"))
    producer = worker._sink._producer = Holding(worker._sink._producer)
    worker._source.subscribe()
    turn_until(worker, lambda: worker._sink.in_flight == 40)
    yield worker, producer, deployment
    worker.close()


def turn_until(worker: Worker, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        try:
            worker._turn()
        except RetriableError as error:
            worker._back_off(error, 0)


def test_what_was_on_its_way_when_all_was_lost_is_read_again_and_entered_once(
    waiting: tuple[Worker, Holding, Deployment],
) -> None:
    worker, producer, deployment = waiting
    source, partitions = worker._source, worker._source._consumer.assignment()
    first, second = worker._sink._waiting
    producer.held = False
    while first.missing or second.missing:
        producer.poll(0.1)
    second.missing, late = 1, second  # its last acknowledgement comes when the partition is here again
    source._on_lost(source._consumer, partitions)
    worker._sink.settle()
    source._on_assign(source._consumer, partitions)
    late.missing = 0
    worker._sink.settle()
    source._consumer.seek(TopicPartition(deployment.input, 0, 0))  # as a new assignment begins where the group stands
    turn_until(worker, lambda: worker._sink.in_flight == 0 and source.caught_up())
    worker._drain()
    assert pages(deployment) == {"offset": 40, "page": [0, 40, 40, 0, 0]}


def test_a_worker_has_got_on_only_once_something_that_it_read_is_settled(
    waiting: tuple[Worker, Holding, Deployment],
) -> None:
    worker, producer, _ = waiting
    worker._turn()
    assert not worker.standing().progressed
    producer.held = False
    turn_until(worker, lambda: worker._sink.in_flight < 40)
    assert worker.standing().progressed


def test_what_was_not_acknowledged_before_other_partitions_left_is_read_again(
    waiting: tuple[Worker, Holding, Deployment],
) -> None:
    worker, producer, deployment = waiting
    worker._source._on_revoke(worker._source._consumer, [])
    assert worker._sink.in_flight == 0
    producer.held = False
    send(deployment.kafka, deployment.input, GOOD[:20])
    turn_until(worker, lambda: worker._metrics.registry.get_sample_value(*published(deployment)) == 60)
    worker._drain()
    assert pages(deployment) == {"offset": 60, "page": [0, 60, 60, 0, 0]}


def published(deployment: Deployment) -> tuple[str, dict[str, str]]:
    return "stream_vae_alerts_published_total", {"survey": "candidate", "topic": deployment.input, "partition": "0"}
