"""Clients for Redis and Valkey, and what their errors mean."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import MovedError, RedisClusterException
from redis.retry import Retry

from stream_vae.errors import ConfigError


def connect(url: str, *, timeout_s: float, ca_file: Path | None = None, password: SecretStr | None = None) -> Any:
    """Make a client that gives up soon and never tries again by itself; nothing is sent yet.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` (TLS) or ``unix://``, with user and password if need be; ``redis+cluster://`` and
        ``rediss+cluster://`` for Redis Cluster, of which it names one node.
    timeout_s : float
        Of connecting and of each answer.
    ca_file : Path, optional
        PEM file of the authority that signed the server's certificate; absent: the well-known ones.
    password : SecretStr, optional
        Of the user that the URL names, or of the default one; absent: the URL's, if it has one.

    Returns
    -------
    redis.Redis
        Or what has its methods. Safe to use from several threads.

    Raises
    ------
    ConfigError
        If the URL is none, or the file is; the URL's password is not shown.
    """
    if ca_file is not None and not url.startswith(("rediss://", "rediss+cluster://")):
        raise ConfigError(
            "reservoir.ca_file is for TLS, and reservoir.url does not begin with rediss://.",
            remedy="Write rediss://HOST:PORT/0, or leave reservoir.ca_file out.",
        )
    if ca_file is not None and not ca_file.is_file():
        raise ConfigError(
            f"reservoir.ca_file = {ca_file} is no file.", remedy="Name the PEM file of the server's authority."
        )
    options: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    # No client_name: to set one is a right that a worker's user need not have.
    options |= {} if ca_file is None else {"ssl_ca_certs": str(ca_file)}
    options |= {} if password is None else {"password": password.get_secret_value()}
    single = url.replace("+cluster://", "://", 1)
    try:
        client = redis.Redis.from_url(single, **options, retry=Retry(NoBackoff(), 0))
        client.connection_pool.make_connection()  # does not connect, but reads what stands after the ?
    except (ValueError, TypeError, redis.RedisError) as error:
        raise ConfigError(
            f"reservoir.url cannot be used: {error}.",
            remedy="Give redis://HOST:PORT/0, rediss://..., redis+cluster://... or unix:///PATH.",
        ) from None
    if single == url:
        return client
    client.close()
    return Cluster(lambda: RedisCluster.from_url(single, **options, retry=Retry(NoBackoff(), 0)))


class Cluster:
    """A client for Redis Cluster that connects when it is first used: the library's own does when it is made.

    Parameters
    ----------
    open_client : callable
        Makes the library's client, or raises.
    """

    def __init__(self, open_client: Callable[[], Any]) -> None:
        self._open = open_client
        self._client: Any = None
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        with self._lock:
            if self._client is None:
                try:
                    self._client = self._open()
                except RedisClusterException as error:  # no kind of RedisError
                    raise redis.ConnectionError(str(error)) from error
        return getattr(self._client, name)

    def close(self) -> None:
        """Close the connections, if there are any; more than once does no harm."""
        if self._client is None:
            return
        self._client.close()
        nodes = self._client.nodes_manager
        for node in (*nodes.nodes_cache.values(), *nodes.startup_nodes.values()):
            if node.redis_connection is not None:  # whose pool the library leaves open
                node.redis_connection.connection_pool.disconnect()


def address(url: str) -> str:
    """Return where a URL points to, fit for messages.

    Parameters
    ----------
    url : str
        May hold user and password.

    Returns
    -------
    str
        Without them.
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def answering(where: str) -> Iterator[None]:
    """Turn what a client raises into errors that say what to do.

    Parameters
    ----------
    where : str
        The server, from `address`.

    Yields
    ------
    None
        Nothing.

    Raises
    ------
    ConfigError
        If the server does not answer, or refuses.
    """
    try:
        yield
    except redis.AuthenticationError as error:
        raise ConfigError(
            f"Redis at reservoir.url = {where} does not accept our user and password: {error}.",
            remedy="Check them: reservoir.url = redis://USER@HOST:PORT/0 and reservoir.password.",
        ) from error
    except (redis.ConnectionError, redis.TimeoutError, RedisClusterException, OSError) as error:
        if "certificate verify failed" in str(error):
            raise ConfigError(
                f"The certificate of Redis at reservoir.url = {where} is not trusted: {error}.",
                remedy="Set reservoir.ca_file to the PEM file of the authority that signed it, and name the server "
                "in reservoir.url as its certificate does.",
            ) from error
        raise ConfigError(
            f"No Redis answers at reservoir.url = {where}: {error}.",
            remedy="Check that it runs and that address, user and password are right; `stream-vae doctor` helps.",
        ) from error
    except redis.exceptions.NoPermissionError as error:
        raise ConfigError(
            f"Redis at {where} refuses: {error}.",
            remedy="Let another user do this, or grant it.",
        ) from error
    except MovedError as error:
        raise ConfigError(
            f"Redis at {where} is a node of a cluster: {error}.",
            remedy="Begin reservoir.url with redis+cluster:// or rediss+cluster://.",
        ) from error
    except redis.RedisError as error:
        raise ConfigError(f"Redis at {where} refuses: {error}.", remedy="See the server's log.") from error
