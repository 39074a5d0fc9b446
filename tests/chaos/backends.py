"""What stands beside the alert path: a Redis that can be killed, stopped and slowed, and a store of releases."""

import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from stream_vae.model.store import ReleaseStore

from releases import make_release
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


class Releases:
    """A store with some good releases, of other weights each, and a damaged one."""

    def __init__(self, url: str, folder: Path, count: int) -> None:
        self._store = ReleaseStore(url)
        for number in range(1, count + 1):  # one is there already
            make_release(self._store, folder / f"release-{number}", seed=number, promote=False)
        *self.good, self.damaged = sorted(self._store.ids())
        if self.current == self.damaged:
            self.good[0], self.damaged = self.damaged, self.good[0]
        encoder = Path(url) / "releases" / self.damaged / "encoder.onnx"
        encoder.chmod(0o644)
        content = bytearray(encoder.read_bytes())
        content[len(content) // 2] ^= 0xFF
        encoder.write_bytes(content)
        self._pointer = Path(url) / "current.json"

    @property
    def current(self) -> str:
        current = self._store.current()
        assert current is not None
        return current

    def promote(self, name: str) -> None:
        self._store.promote(name)

    def offer_damaged(self) -> None:
        """Make the damaged one current, as a file that is damaged after it was promoted would be."""
        pointer = json.loads(self._pointer.read_text(encoding="utf-8")) | {"release": self.damaged}
        beside = self._pointer.with_suffix(".new")
        beside.write_text(json.dumps(pointer), encoding="utf-8")
        beside.replace(self._pointer)


class Relay:
    """Passes bytes on between clients and a port; what the port answers, each time after `delay_s`."""

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
                arguments = (one, other, one is server)
                threading.Thread(target=self._pass, args=arguments, daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):  # either end is gone
            while data := one.recv(65_536):
                if answers and self.delay_s:
                    time.sleep(self.delay_s)
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        self._listening.close()
