"""librdkafka's options: ours, the settings', and which of them win."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer
from stream_vae import kafka
from stream_vae.errors import ConfigError, FatalError, RetriableError
from stream_vae.settings import DeliverySettings

from stage_parts import kafka_settings

AT_LEAST_ONCE, EXACTLY_ONCE = DeliverySettings(), DeliverySettings(mode="exactly_once")


def consumer(**changes: Any) -> dict[str, Any]:
    return kafka.consumer_options(kafka_settings(**changes))


def producer(delivery: DeliverySettings = AT_LEAST_ONCE, slot: int = 0, **changes: Any) -> dict[str, Any]:
    return kafka.producer_options(kafka_settings(**changes), delivery, slot)


def test_the_settings_win_over_our_choices_and_the_clients_own_over_the_common_ones() -> None:
    common = {"session.timeout.ms": 1, "linger.ms": 1, "client.id": "mine"}
    options = consumer(options=common, consumer_options={"session.timeout.ms": 2})
    assert (options["session.timeout.ms"], options["client.id"]) == (2, "mine")
    options = producer(options=common, producer_options={"linger.ms": 2})
    assert (options["linger.ms"], options["client.id"]) == (2, "mine")


def test_options_of_one_client_do_not_reach_the_other() -> None:
    settings = {"consumer_options": {"fetch.wait.max.ms": 7}, "producer_options": {"batch.size": 7}}
    assert "batch.size" not in consumer(**settings)
    assert producer(**settings)["batch.size"] == 7
    assert "fetch.wait.max.ms" not in producer(**settings)


def test_secrets_among_the_options_reach_the_client_in_clear() -> None:
    given = {"sasl_username": "me", "sasl_password": "secret"}
    options = consumer(**given, options={"ssl.key.password": "hush", "sasl.mechanism": "PLAIN"})
    assert (options["sasl.username"], options["sasl.password"]) == ("me", "secret")
    assert (options["ssl.key.password"], options["sasl.mechanism"]) == ("hush", "PLAIN")


@pytest.mark.parametrize("where", ["options", "consumer_options"])
@pytest.mark.parametrize("name", ["enable.auto.commit", "enable.auto.offset.store", "group.id", "isolation.level"])
def test_what_delivery_depends_on_cannot_be_set_for_the_consumer(where: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"kafka\.{where} sets {name}.*kafka\.group_id"):
        consumer(**{where: {name: "x"}})


@pytest.mark.parametrize("where", ["options", "producer_options"])
@pytest.mark.parametrize("delivery", [AT_LEAST_ONCE, EXACTLY_ONCE], ids=lambda delivery: delivery.mode)
@pytest.mark.parametrize("name", ["enable.idempotence", "transactional.id", "acks", "request.required.acks"])
def test_what_delivery_depends_on_cannot_be_set_for_the_producer(
    where: str, delivery: DeliverySettings, name: str
) -> None:
    with pytest.raises(ConfigError, match=rf"kafka\.{where} sets {name}.*delivery\.mode"):
        producer(delivery, **{where: {name: "x"}})


@pytest.mark.parametrize("name", ["max.in.flight", "max.in.flight.requests.per.connection"])
def test_requests_in_flight_are_ours_where_order_depends_on_them(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        producer(AT_LEAST_ONCE, options={name: 5})
    assert producer(EXACTLY_ONCE, options={name: 3})[name] == 3


def test_at_least_once_waits_for_all_replicas_one_request_at_a_time_and_without_idempotence() -> None:
    options = producer()
    assert (options["acks"], options["enable.idempotence"]) == ("all", False)
    assert options["max.in.flight.requests.per.connection"] == 1
    assert "transactional.id" not in options


def test_exactly_once_has_a_stable_id_of_its_own_for_every_worker() -> None:
    assert producer(EXACTLY_ONCE, 0, group_id="g")["transactional.id"] == "g-0"
    assert producer(EXACTLY_ONCE, 3, group_id="g")["transactional.id"] == "g-3"
    named = DeliverySettings(mode="exactly_once", transactional_id="mine")
    assert producer(named, 1)["transactional.id"] == "mine-1"


def test_a_message_of_a_transaction_is_given_up_before_the_transaction_is() -> None:
    options = producer(EXACTLY_ONCE)
    assert options["message.timeout.ms"] < options["transaction.timeout.ms"]


def test_only_what_is_committed_is_read_and_only_we_commit() -> None:
    options = consumer()
    assert options["isolation.level"] == "read_committed"
    assert options["enable.auto.commit"] is False
    assert options["enable.auto.offset.store"] is False


@pytest.mark.parametrize("delivery", [AT_LEAST_ONCE, EXACTLY_ONCE], ids=lambda delivery: delivery.mode)
def test_librdkafka_takes_our_options(delivery: DeliverySettings) -> None:
    kafka.make(Producer, producer(delivery)).flush(0)
    kafka.make(Consumer, consumer()).close()


@pytest.mark.parametrize("options", [{"no.such.option": 1}, {"session.timeout.ms": "soon"}, {"security.protocol": "X"}])
def test_an_option_that_librdkafka_refuses_is_told_with_the_remedy(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=rf"librdkafka refuses the settings: .*{name}.*kafka\.options"):
        kafka.make(Consumer, consumer(options=options))


def test_consumers_for_looking_never_commit_nor_join_the_workers_group() -> None:
    made: list[dict[str, Any]] = []

    def capture(options: dict[str, Any], **_: Any) -> Any:
        made.append(options)

    original = kafka.Consumer
    try:
        kafka.Consumer = capture  # type: ignore[assignment, misc]
        kafka.plain_consumer(kafka_settings(group_id="g"), enable_partition_eof=True)
    finally:
        kafka.Consumer = original  # type: ignore[misc]
    (options,) = made
    assert options["group.id"] != "g"
    assert options["enable.auto.commit"] is False
    assert options["enable.partition.eof"] is True


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: KafkaError(KafkaError.NOT_ENOUGH_REPLICAS, retriable=True), RetriableError),
        (lambda: KafkaError(KafkaError._ALL_BROKERS_DOWN, fatal=True, retriable=True), FatalError),
        (lambda: KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), ConfigError),
    ],
    ids=["passing", "fatal", "forbidden"],
)
def test_an_error_of_kafka_is_sorted_by_what_helps(make: Callable[[], KafkaError], kind: type[Exception]) -> None:
    error = kafka.as_error(make(), "publishing")
    assert type(error) is kind
    assert str(error).startswith("Kafka, publishing: ")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own bytes
