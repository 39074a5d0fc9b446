"""What the outside asks of a worker: `/metrics`, `/healthz` and `/readyz` on a small HTTP server.

A daemon thread listens and gives each connection a thread of its own, so a client that stalls holds up nobody,
and no connection lives for more than some seconds. What ready and alive mean is the caller's business.
"""

import errno
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from stream_vae.errors import ConfigError

Check = Callable[[], tuple[bool, str]]
"""Tells whether a condition holds, and why in one line."""

_READ_TIMEOUT_S = 5.0  # between two bytes of a request
_CONNECTION_LIFE_S = 15.0  # for all of it: longer than Prometheus' own default of 10 s for a scrape
_POLL_S = 0.1  # how soon the listening thread sees a stop, and how often it looks for overdue connections
_TEXT = "text/plain; charset=utf-8"

logger = logging.getLogger(__name__)


class HealthServer:
    """Serve metrics and health over HTTP until closed.

    ============ ====================================================================
    ``/metrics`` the registry, as OpenMetrics or as Prometheus text, as the client asks
    ``/healthz`` 200 while the process is alive; 503 says that it should be restarted
    ``/readyz``  200 while it takes work; 503 says that it should be left in peace
    ============ ====================================================================

    Parameters
    ----------
    registry : prometheus_client.CollectorRegistry
        What ``/metrics`` shows.
    host : str
        The address to listen on; only this machine by default.
    port : int
        The port to listen on; 0 takes any that is free.
    ready, alive : callable
        Give whether the condition holds, and the reason in one line. They are called from other threads and
        should answer at once. One that raises counts as not holding.

    Attributes
    ----------
    port : int
        The port that it listens on.

    Raises
    ------
    ConfigError
        If the address cannot be listened on.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ready: Check,
        alive: Check,
    ) -> None:
        pages: dict[str, Page] = {
            "/metrics": lambda accept: _metrics(registry, accept),
            "/healthz": lambda _: _verdict(alive),
            "/readyz": lambda _: _verdict(ready),
        }
        self._server = _listen(host, port, pages)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="health-server", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening and end what is still connected; more than once does no harm."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.end_connections(older_than_s=0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Reply:
    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT


Page = Callable[[str], _Reply]  # of the request's Accept header


def _metrics(registry: CollectorRegistry, accept: str) -> _Reply:
    encode, content_type = choose_encoder(accept)
    return _Reply(HTTPStatus.OK, encode(registry), content_type)


def _verdict(check: Check) -> _Reply:
    try:
        holds, reason = check()
    except Exception as error:
        logger.exception("a health check failed")
        holds, reason = False, f"{type(error).__name__}: {error}"
    status = HTTPStatus.OK if holds else HTTPStatus.SERVICE_UNAVAILABLE
    line = " ".join(reason.split()) or ("ok" if holds else "no reason given")
    return _Reply(status, f"{line}\n".encode())


class _Handler(BaseHTTPRequestHandler):
    """Answers one request and hangs up."""

    timeout = _READ_TIMEOUT_S
    server_version = "stream-vae"
    sys_version = ""  # no need to tell the world which Python this is
    server: "_Server"

    def do_GET(self) -> None:
        reply = self._reply()
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_HEAD = do_GET  # noqa: N815 - the base class's name

    def _reply(self) -> _Reply:
        path = urlsplit(self.path).path
        page = self.server.pages.get(path)
        if page is None:
            return _Reply(HTTPStatus.NOT_FOUND, f"try {', '.join(self.server.pages)}\n".encode())
        try:
            return page(self.headers.get("Accept") or "")
        except Exception:
            logger.exception("%s failed", path)  # a collector's fault: it must not show as a hung scrape
            return _Reply(HTTPStatus.INTERNAL_SERVER_ERROR, b"this failed; the log says why\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        logger.debug(format, *args)


class _Server(ThreadingHTTPServer):
    """A threading HTTP server that ends overdue connections and is quiet about clients that hang up."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], pages: dict[str, Page]) -> None:
        self.pages = pages
        self._connections: dict[socket.socket, float] = {}  # -> when it was accepted, on the monotonic clock
        self._lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: that asks the name service for this machine's name, which can hang.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        self.end_connections(older_than_s=_CONNECTION_LIFE_S)

    def end_connections(self, *, older_than_s: float) -> None:
        """Cut connections; their threads then see the end of the stream and finish."""
        limit = time.monotonic() - older_than_s
        with self._lock:
            for connection, since in self._connections.items():
                if since <= limit:
                    _cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's arguments
        logger.debug("client %s failed: %r", client_address, sys.exception())


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        logger.debug("a client was gone already")


def _listen(host: str, port: int, pages: dict[str, Page]) -> _Server:
    try:
        return _Server((host, port), pages)
    except (OSError, OverflowError) as error:  # the latter for a port that is no port
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            what, remedy = "is in use", "Set it to a free port, or to 0 for any."
        else:
            what, remedy = f"cannot be listened on ({error})", "Set it to a port from 1024 to 65535, or to 0 for any."
        raise ConfigError(f"metrics.port: port {port} of {host} {what}.", remedy=remedy) from error
