"""Passwords, certificates and rights on a real Kafka: alerts go through, and whatever is wrong is told at the start."""

import json
import re
import threading
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from stream_vae.errors import ConfigError
from stream_vae.kafka import cluster
from stream_vae.runtime.start_up import check_surroundings
from stream_vae.settings import from_plain, to_plain
from stream_vae.sky.packets import simulate_packets

from deployment import Deployment, command, deploy
from flow import Record, check_books, read, running, send, until, work
from servers import MTLS_USER, SCRAM_PASSWORD, SCRAM_USER, Kafka, SecureListeners

WITHIN_S = 40
WRONG = "surely-not-the-password"
Right = tuple[ResourceType, str, AclOperation]


class Rights:
    """Grants to a user what a test wants it to have, and takes it back."""

    def __init__(self, kafka: Kafka, user: str) -> None:
        self._admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
        self._user = user

    def _binding(self, kind: type, right: Right) -> Any:
        what, name, operation = right
        pattern = ResourcePatternType.PREFIXED if what is ResourceType.TRANSACTIONAL_ID else ResourcePatternType.LITERAL
        return kind(what, name, pattern, f"User:{self._user}", "*", operation, AclPermissionType.ALLOW)

    def grant(self, *rights: Right) -> None:
        for future in self._admin.create_acls([self._binding(AclBinding, right) for right in rights]).values():
            future.result(20)

    def revoke(self, *rights: Right) -> None:
        for future in self._admin.delete_acls([self._binding(AclBindingFilter, right) for right in rights]).values():
            future.result(20)


def wanted(deployment: Deployment) -> dict[str, Right]:
    """What a worker needs, by a name for it."""
    return {
        "input": (ResourceType.TOPIC, deployment.input, AclOperation.READ),
        "output": (ResourceType.TOPIC, deployment.output, AclOperation.WRITE),
        "lite": (ResourceType.TOPIC, deployment.lite, AclOperation.WRITE),
        "dead letters": (ResourceType.TOPIC, deployment.dead_letters, AclOperation.WRITE),
        "group": (ResourceType.GROUP, deployment.settings.kafka.group_id, AclOperation.READ),
        "transactions": (ResourceType.TRANSACTIONAL_ID, deployment.settings.kafka.group_id, AclOperation.WRITE),
    }


@pytest.fixture(scope="module", params=["scram", "mtls"])
def secured(request, secure_kafka: tuple[Kafka, SecureListeners], tmp_path_factory) -> Deployment:
    """A deployment whose user has the rights that it needs, and no more."""
    kafka, secure = secure_kafka
    section = getattr(secure, request.param)
    deployment = deploy(
        kafka, tmp_path_factory.mktemp("secured"), survey="candidate", kafka=section, delivery={"mode": "exactly_once"}
    )
    user = SCRAM_USER if request.param == "scram" else f"CN={MTLS_USER}"
    Rights(kafka, user).grant(*wanted(deployment).values())
    return deployment


def changed(deployment: Deployment, section: str = "kafka", /, **changes: Any) -> Any:
    document = to_plain(deployment.settings)
    document[section] = document[section] | changes
    return from_plain(document)


def with_options(deployment: Deployment, **changes: str | None) -> Any:
    names = {name.replace("_", "."): value for name, value in changes.items()}
    options = to_plain(deployment.settings)["kafka"]["options"] | names
    return changed(deployment, options={name: value for name, value in options.items() if value is not None})


def refused(settings: Any, *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_surroundings(settings)
    assert caught.value.remedy
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert SCRAM_PASSWORD not in str(caught.value)


def test_alerts_go_through_exactly_once(secured, secure_kafka):
    kafka, _ = secure_kafka
    packets = [each.packet for each in simulate_packets(20, seed=3, shape="candidate")]
    send(kafka, secured.input, [*(Record(packet) for packet in packets), Record(b"junk")])
    check_surroundings(secured.settings)
    work(secured.settings)
    assert len(read(kafka, secured.output)) == len(packets)
    assert [each.value for each in read(kafka, secured.dead_letters)] == [b"junk"]
    check_books(secured.settings.model_copy(update={"kafka": in_clear(secured, kafka)}), consumed=21, dead_lettered=1)


def in_clear(deployment: Deployment, kafka: Kafka) -> Any:
    """The same topics, by the listener that asks nothing: an audit reads outputs, which a worker need not."""
    return changed(
        deployment, bootstrap_servers=kafka.bootstrap_servers, options={}, sasl_username=None, sasl_password=None
    ).kafka


def test_the_doctor_finds_nothing_wrong_with_the_least_rights(secured):
    report = json.loads(command("doctor", "--settings", secured.file, "--json").stdout)
    assert [check for check in report["checks"] if check["state"] == "bad"] == []


def test_an_authority_that_did_not_sign_is_not_trusted(secured, secure_kafka):
    other = str(secure_kafka[1].certificates.other_authority)
    refused(with_options(secured, ssl_ca_location=other), "kafka.bootstrap_servers", "not trusted", "ssl.ca.location")


def test_a_certificate_for_another_name_is_not_trusted(secured):
    servers = secured.settings.kafka.bootstrap_servers.replace("127.0.0.1", "localhost")
    refused(changed(secured, bootstrap_servers=servers), servers, "another name", "advertised.listeners")


@pytest.fixture(scope="module")
def by_password(secure_kafka, tmp_path_factory) -> Deployment:
    kafka, secure = secure_kafka
    return deploy(kafka, tmp_path_factory.mktemp("password"), survey="candidate", kafka=secure.scram)


@pytest.mark.parametrize("changes", [{"sasl_password": WRONG}, {"sasl_username": "nobody"}])
def test_wrong_credentials_are_told_with_their_keys(by_password, changes):
    refused(changed(by_password, **changes), "credentials", "kafka.sasl_username", "kafka.sasl_password")


def test_a_mechanism_that_brokers_do_not_have_is_told_with_those_that_they_have(by_password):
    refused(with_options(by_password, sasl_mechanism="PLAIN"), "SCRAM-SHA-512", "sasl.mechanism")


@pytest.mark.parametrize(("listener", "protocol"), [("passwords", "PLAINTEXT"), ("bootstrap_servers", "SASL_SSL")])
def test_a_listener_of_another_protocol_hangs_up_and_the_key_for_it_is_named(
    by_password, secure_kafka, listener, protocol
):
    kafka, secure = secure_kafka
    servers = secure.passwords if listener == "passwords" else kafka.bootstrap_servers
    settings = with_options(by_password, security_protocol=protocol)
    section = settings.kafka.model_copy(update={"bootstrap_servers": servers})
    with pytest.raises(ConfigError, match=r"hangs up: .*security\.protocol"):
        cluster(section, timeout_s=5)


def test_a_wrong_password_ends_run_and_is_not_shown_even_with_a_traceback(by_password, tmp_path):
    wrong = {"STREAM_VAE_KAFKA__SASL_PASSWORD": WRONG}
    with running(tmp_path / "log", "-v", "run", "-s", by_password.file, environment=wrong) as process:
        assert process.wait(WITHIN_S) == 2, process.text
    assert "ConfigError" in process.text
    assert "kafka.sasl_password" in process.text
    assert WRONG not in process.text


@pytest.fixture(scope="module")
def by_certificate(secure_kafka, tmp_path_factory) -> Deployment:
    kafka, secure = secure_kafka
    return deploy(kafka, tmp_path_factory.mktemp("certificate"), survey="candidate", kafka=secure.mtls)


def test_brokers_that_want_a_certificate_and_get_none_are_told_so(by_certificate):
    nothing = {"ssl_certificate_location": None, "ssl_key_location": None, "ssl_key_password": None}
    refused(with_options(by_certificate, **nothing), "our certificate", "ssl.certificate.location")


def test_a_certificate_that_brokers_do_not_trust_is_told_so(by_certificate, secure_kafka):
    certificates = secure_kafka[1].certificates
    own = {"ssl_certificate_location": certificates.other_authority, "ssl_key_location": certificates.key("other")}
    settings = with_options(by_certificate, ssl_key_password=None, **{key: str(path) for key, path in own.items()})
    refused(settings, "our certificate", "ssl.certificate.location")


def test_a_wrong_password_of_the_key_is_told_by_its_key(by_certificate):
    refused(with_options(by_certificate, ssl_key_password=WRONG), "ssl.key.location", "ssl.key.password")


@pytest.mark.parametrize("lacking", ["input", "output", "dead letters", "group"])
def test_a_right_that_is_missing_is_named_at_the_start_and_by_the_doctor(by_password, secure_kafka, lacking):
    rights, needed = Rights(secure_kafka[0], SCRAM_USER), wanted(by_password)
    name, operation = needed[lacking][1:]
    given = [right for key, right in needed.items() if key != lacking]
    rights.grant(*given)
    try:
        refused(by_password.settings, name, operation.name, "kafka-acls.sh --add")
        report = json.loads(command("doctor", "--settings", by_password.file, "--json").stdout)
    finally:
        rights.revoke(*given)
    bad = [check for check in report["checks"] if check["state"] == "bad"]
    assert any(name in check["says"] and operation.name in check["remedy"] for check in bad), bad


def test_a_right_to_see_is_not_a_right_to_write(by_password, secure_kafka):
    rights, needed = Rights(secure_kafka[0], SCRAM_USER), wanted(by_password)
    given = [*needed.values(), (ResourceType.TOPIC, by_password.output, AclOperation.DESCRIBE)]
    given.remove(needed["output"])
    rights.grant(*given)
    try:
        refused(by_password.settings, f"no right to WRITE {by_password.output}", "kafka-acls.sh --add")
    finally:
        rights.revoke(*given)


def test_a_missing_right_to_transactions_ends_the_worker(by_password, secure_kafka):
    rights, needed = Rights(secure_kafka[0], SCRAM_USER), wanted(by_password)
    given = [right for key, right in needed.items() if key != "transactions"]
    rights.grant(*given)
    try:
        with pytest.raises(ConfigError, match=r"delivery\.transactional_id.*--transactional-id"):
            work(changed(by_password, "delivery", mode="exactly_once"))
    finally:
        rights.revoke(*given)


def test_a_right_that_is_taken_away_while_alerts_flow_stops_the_worker_with_offsets_untouched(
    by_password, secure_kafka
):
    kafka, _ = secure_kafka
    rights, needed = Rights(kafka, SCRAM_USER), wanted(by_password)
    rights.grant(*needed.values())
    packets = [each.packet for each in simulate_packets(4, seed=4, shape="candidate")]
    failures: list[Exception] = []

    def run_worker() -> None:
        try:
            work(by_password.settings, idle_s=60)
        except ConfigError as error:
            failures.append(error)

    try:
        send(kafka, by_password.input, [Record(packet) for packet in packets[:2]])
        worker = threading.Thread(target=run_worker, daemon=True)
        worker.start()
        until(lambda: len(read(kafka, by_password.output)) == 2, what="the first alerts")
        rights.revoke(needed["output"])
        send(kafka, by_password.input, [Record(packet) for packet in packets[2:]])
        worker.join(WITHIN_S)
        (failure,) = failures
        assert re.search(r"publishing the alert of .*kafka-acls\.sh --add", str(failure)), failure
        rights.grant(needed["output"])
        work(by_password.settings)
    finally:
        rights.revoke(*needed.values())
    assert sorted({each.origin[2] for each in read(kafka, by_password.output)}) == [0, 1, 2, 3]
