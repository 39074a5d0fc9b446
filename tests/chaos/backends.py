"""A Redis that can be killed, stopped and slowed, for the reservoir beside the alert path."""

import contextlib
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from servers import free_ports, redis_binary, start_redis


class Redis:
    """A server, and before it a relay that can be slow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._binary = redis_binary()
        (self._port,) = free_ports(1)
        self._process = self._started()
        self._relay = Relay(self._port)
        self.url = f"redis://127.0.0.1:{self._relay.port}/0"

    def _started(self) -> subprocess.Popen[bytes]:
        return start_redis(self._binary, self._port, self._folder)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        self._process = self._started()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def slow(self, seconds: float) -> None:
        self._relay.delay_s = seconds

    def close(self) -> None:
        self._relay.close()
        self.kill()


class Relay:
    """Passes bytes on between clients and a port, each time after `delay_s`."""

    def __init__(self, port: int) -> None:
        self.delay_s = 0.0
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(("127.0.0.1", self._to), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):  # either end is gone
            while data := one.recv(65_536):
                if self.delay_s:
                    time.sleep(self.delay_s)
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        self._listening.close()
