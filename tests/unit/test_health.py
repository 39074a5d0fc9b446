import contextlib
import http.client
import logging
import socket
import threading
import time

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from stream_vae.errors import ConfigError
from stream_vae.runtime import health
from stream_vae.runtime.health import HealthServer


def yes():
    return True, "all well"


@pytest.fixture
def registry():
    registry = CollectorRegistry()
    Counter("stream_vae_alerts", "Alerts.", ["outcome"], registry=registry).labels("published").inc(3)
    return registry


@pytest.fixture
def server(registry):
    with HealthServer(registry, ready=yes, alive=yes) as server:
        yield server


def ask(server, path, *, method="GET", **headers):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode(), response.getheader("Content-Type")


def test_metrics_come_as_prometheus_text_by_default(server):
    status, body, content_type = ask(server, "/metrics")
    assert status == 200
    assert 'stream_vae_alerts_total{outcome="published"} 3.0' in body
    assert content_type.startswith("text/plain")


def test_metrics_come_as_openmetrics_to_who_asks_for_it(server):
    status, body, content_type = ask(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert status == 200
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


@pytest.mark.parametrize(("path", "other"), [("/healthz", "/readyz"), ("/readyz", "/healthz")])
def test_each_check_has_its_own_page(registry, path, other):
    checks = {"/healthz": "alive", "/readyz": "ready"}
    answers = {checks[path]: lambda: (False, "no partitions\nyet"), checks[other]: yes}
    with HealthServer(registry, **answers) as server:
        assert ask(server, path)[:2] == (503, "no partitions yet\n")
        assert ask(server, other)[:2] == (200, "all well\n")


def test_a_check_is_asked_anew_each_time(registry):
    answers = iter([(False, "starting"), (True, "consuming"), (False, "draining")])
    with HealthServer(registry, ready=lambda: next(answers), alive=yes) as server:
        assert [ask(server, "/readyz")[:2] for _ in range(3)] == [
            (503, "starting\n"),
            (200, "consuming\n"),
            (503, "draining\n"),
        ]


def test_a_check_that_raises_does_not_hold(registry, caplog):
    def broken():
        raise ValueError("out of order")

    with HealthServer(registry, ready=broken, alive=yes) as server:
        assert ask(server, "/readyz")[:2] == (503, "ValueError: out of order\n")
    assert "a health check failed" in caplog.text


def test_a_collector_that_raises_is_an_error_and_not_a_hang(registry, caplog):
    class Broken(Collector):
        def describe(self):
            return [CounterMetricFamily("broken", "Never collected.")]

        def collect(self):
            raise ValueError("out of order")

    registry.register(Broken())
    with HealthServer(registry, ready=yes, alive=yes) as server:
        assert ask(server, "/metrics")[0] == 500
        assert ask(server, "/healthz")[0] == 200
    assert "/metrics failed" in caplog.text


def test_a_query_does_not_change_the_page(server):
    assert ask(server, "/healthz?verbose")[0] == 200


def test_an_unknown_page_is_not_found_and_names_those_there_are(server):
    status, body, _ = ask(server, "/")
    assert status == 404
    assert "/metrics" in body


def test_head_gives_no_body(server):
    assert ask(server, "/healthz", method="HEAD")[:2] == (200, "")


def test_other_methods_are_refused(server):
    assert ask(server, "/metrics", method="DELETE")[0] == 501


def test_a_port_in_use_names_the_key_and_the_remedy(server, registry):
    with pytest.raises(ConfigError, match=rf"metrics\.port: port {server.port} .* in use.*0 for any"):
        HealthServer(registry, port=server.port, ready=yes, alive=yes)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("192.0.2.1", 0)])
def test_an_address_that_cannot_be_listened_on_is_an_error_of_settings(registry, host, port):
    with pytest.raises(ConfigError, match=r"metrics\.port"):
        HealthServer(registry, host=host, port=port, ready=yes, alive=yes)


def test_it_listens_on_this_machine_alone_by_default(server):
    assert server._server.server_address[0] == "127.0.0.1"


def test_closing_twice_does_no_harm_and_frees_the_port(registry):
    server = HealthServer(registry, ready=yes, alive=yes)
    server.close()
    server.close()
    with HealthServer(registry, port=server.port, ready=yes, alive=yes) as second:
        assert ask(second, "/healthz")[0] == 200


def test_nothing_is_written_to_stderr(server, capfd):
    ask(server, "/metrics")
    ask(server, "/nowhere")
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"\x00\xff nonsense\r\n\r\n")
    assert ask(server, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""


def test_clients_that_say_nothing_hold_up_nobody(server):
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        started = time.monotonic()
        assert ask(server, "/healthz")[0] == 200
        assert time.monotonic() - started < 2


def test_a_client_that_drips_is_cut_off(monkeypatch, registry):
    monkeypatch.setattr(health, "_CONNECTION_LIFE_S", 0.3)
    with (
        HealthServer(registry, ready=yes, alive=yes) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as client,
    ):
        started = time.monotonic()
        with pytest.raises(OSError, match=r"reset|pipe|closed"):
            drip(client)
        assert time.monotonic() - started < 3


def drip(client):
    """Send a request line one byte at a time, until the server has had enough."""
    for _ in range(100):
        client.sendall(b"G")
        time.sleep(0.05)


def test_closing_ends_what_is_still_connected(registry):
    server = HealthServer(registry, ready=yes, alive=yes)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(b"GET /healthz HTTP/1.0\r\n")  # never finished
        until(lambda: len(server._server._connections) == 1)
        server.close()
        assert client.recv(1) == b""
    until(lambda: not any("process_request_thread" in thread.name for thread in threading.enumerate()))


def until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_requests_are_logged_at_debug_only(server, caplog):
    with caplog.at_level(logging.INFO):
        ask(server, "/metrics")
    assert caplog.text == ""
