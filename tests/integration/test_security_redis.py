"""The reservoir over TLS with a user that may do little; and that alerts are published whatever is wrong with it."""

import contextlib
import uuid
from urllib.parse import urlsplit

import pytest
import redis
from stream_vae import assembly
from stream_vae.errors import StreamVaeError
from stream_vae.metrics import Metrics
from stream_vae.reservoir import connect
from stream_vae.runtime.vitals import Poster, read
from stream_vae.settings import from_plain, to_plain
from stream_vae.sky.packets import simulate_packets
from stream_vae.tools.checks_reservoir import WORKERS_RIGHTS, check_reservoir
from stream_vae.tools.checkup import State

from certificates import NoOpensslError, make_certificates
from deployment import deploy
from flow import total, work
from tls_proxy import tls_before

PASSWORD = "password-of-the-worker"  # noqa: S105 - of a server that lives for a test run
ALERTS = 12


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    try:
        return make_certificates(tmp_path_factory.mktemp("certificates"))
    except NoOpensslError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def port(redis_server, certificates):
    with tls_before(redis_server.url, certificates) as port:
        yield port


@pytest.fixture(scope="module")
def user(redis_server):
    """A user with the rights that a worker needs."""
    name = f"worker-{uuid.uuid4().hex[:8]}"
    with redis_server.client() as client:
        try:
            client.execute_command("ACL", "SETUSER", name, "on", f">{PASSWORD}", "~{vae}:*", *WORKERS_RIGHTS)
        except redis.ResponseError as error:
            pytest.skip(f"this Redis lets no users be made: {error}")
        yield name
        client.acl_deluser(name)


@pytest.fixture(scope="module")
def deployment(embedded_kafka, port, user, certificates, tmp_path_factory):
    url = f"rediss://{user}:{PASSWORD}@127.0.0.1:{port}/0"
    reservoir = {"url": url, "ca_file": str(certificates.authority)}
    made = deploy(embedded_kafka, tmp_path_factory.mktemp("redis"), survey="candidate", reservoir=reservoir)
    made.publish(each.packet for each in simulate_packets(ALERTS, seed=5, shape="candidate"))
    return made


def with_reservoir(deployment, *, group=None, **changes):
    document = to_plain(deployment.settings)
    document["reservoir"] = document["reservoir"] | changes
    document["kafka"]["group_id"] = group or f"group-{uuid.uuid4().hex[:8]}"
    return from_plain(document)


def test_stamps_enter_over_tls_by_a_user_with_the_least_rights(deployment, redis_server):
    whole = with_reservoir(deployment, url=redis_server.url, ca_file=None)
    with contextlib.closing(assembly.reservoir_of(whole)) as reservoir:
        reservoir.clear()
        metrics = work(with_reservoir(deployment))
        assert total(metrics, "stream_vae_alerts_published_total") == ALERTS
        assert total(metrics, "stream_vae_reservoir_circuit_open") == 0
        assert reservoir.stats().stamps == total(metrics, "stream_vae_reservoir_entered_total") > 0
        reservoir.clear()


def test_the_password_may_be_a_secret_of_its_own(deployment, redis_server):
    parts = urlsplit(deployment.settings.reservoir.url.get_secret_value())
    url = f"{parts.scheme}://{parts.username}@{parts.hostname}:{parts.port}{parts.path}"
    metrics = work(with_reservoir(deployment, url=url, password=parts.password))
    assert total(metrics, "stream_vae_reservoir_circuit_open") == 0
    assert total(metrics, "stream_vae_reservoir_offered_total") > 0
    with (
        contextlib.closing(
            assembly.reservoir_of(with_reservoir(deployment, url=url, password=PASSWORD[::-1]))
        ) as other,
        pytest.raises(StreamVaeError, match="does not accept our user and password"),
    ):
        other.seen()
    with contextlib.closing(
        assembly.reservoir_of(with_reservoir(deployment, url=redis_server.url, ca_file=None))
    ) as all_:
        all_.clear()


def test_a_worker_reports_on_its_releases_with_the_least_rights(deployment, redis_server):
    url = deployment.settings.reservoir.url.get_secret_value()
    metrics = Metrics("candidate")
    client = connect(url, timeout_s=5, ca_file=deployment.settings.reservoir.ca_file)
    poster = Poster(client, "candidate", 0, metrics, interval_s=10)
    poster.post({})
    with redis_server.client() as reader:
        assert read(reader, "candidate").workers == 1
        poster.close()
        assert read(reader, "candidate").workers == 0
    assert total(metrics, "stream_vae_vitals_posts_total") == 1


def test_the_doctor_is_content_with_the_least_rights(deployment):
    (finding,) = check_reservoir(deployment.settings)
    assert finding.state is State.GOOD
    assert "may offer stamps" in finding.says


WRONG = {
    "password": ({"password": "hunter2-wrong"}, "invalid username-password", "reservoir.url"),
    "name": ({"host": "localhost"}, "Hostname mismatch", "reservoir.ca_file"),
    "authority": ({"ca_file": "other_authority"}, "certificate verify failed", "reservoir.ca_file"),
    "rights": ({"user": "nothing"}, "permission", "ACL SETUSER"),
}


@pytest.mark.parametrize("what", WRONG)
def test_whatever_is_wrong_alerts_are_published_and_the_reason_is_logged_once(
    what, deployment, redis_server, port, user, certificates, caplog
):
    changes, says, remedy = WRONG[what]
    parts = {"user": user, "password": PASSWORD, "host": "127.0.0.1", "ca_file": "authority"} | changes
    url = f"rediss://{parts['user']}:{parts['password']}@{parts['host']}:{port}/0"
    settings = with_reservoir(deployment, url=url, ca_file=str(getattr(certificates, parts["ca_file"])))
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "nothing", "on", f">{PASSWORD}", "~{vae}:*", "-@all")
        metrics = work(settings)
        (finding,) = check_reservoir(settings)
        client.acl_deluser("nothing")
    assert total(metrics, "stream_vae_alerts_published_total") == ALERTS
    assert total(metrics, "stream_vae_reservoir_circuit_open") == 1
    assert total(metrics, "stream_vae_reservoir_dropped_total") > 0
    told = [record.getMessage() for record in caplog.records if "Publishing goes on" in record.getMessage()]
    assert len(told) == 1
    assert says in told[0]
    assert finding.state is State.WARNING
    assert says in finding.says
    assert remedy in finding.remedy
    assert parts["password"] not in caplog.text + finding.says + finding.remedy


def test_a_file_of_an_authority_without_tls_is_a_wrong_setting(deployment, redis_server):
    from stream_vae.errors import ConfigError

    with pytest.raises(ConfigError, match="rediss://"):
        assembly.reservoir_of(with_reservoir(deployment, url="redis://127.0.0.1:1/0"))
