"""Checks of the Redis or Valkey that holds the reservoir."""

from typing import Any

import redis

from stream_vae import assembly
from stream_vae.errors import ConfigError, StreamVaeError
from stream_vae.model.release import Preprocessing
from stream_vae.reservoir import address, connect
from stream_vae.settings import Settings
from stream_vae.tools.checkup import Check, Finding, State

_NAME = "reservoir"
_RIGHTS = (
    "ACL SETUSER USER ~{vae}:* -@all +evalsha +script|load +hmget +hset +hdel +zcard +zrange +zpopmax +zadd "
    "is what a worker needs."
)


def checks(settings: Settings) -> list[Check]:
    """List the checks.

    Parameters
    ----------
    settings : Settings
        ``[reservoir]``.

    Returns
    -------
    list of Check
        One.
    """
    return [Check(_NAME, lambda: check_reservoir(settings))]


def check_reservoir(settings: Settings) -> list[Finding]:
    """Ask whether the server answers, keeps what it is given, and holds keys that we can read.

    Parameters
    ----------
    settings : Settings
        ``[reservoir]``.

    Returns
    -------
    list of Finding
        One or two. None of them is bad: workers publish at full rate without a reservoir.

    Raises
    ------
    ConfigError
        If the URL is wrong.
    """
    url = settings.reservoir.url
    if url is None:
        return [Finding(_NAME, State.SKIPPED, "none is set; only retraining needs one")]
    where = address(url.get_secret_value())
    reservoir = assembly.reservoir_of(settings, timeout_s=5.0)
    client = connect(url.get_secret_value(), timeout_s=5.0, ca_file=settings.reservoir.ca_file)
    try:
        try:
            stats = reservoir.stats()
        except ConfigError as error:
            if not isinstance(error.__cause__, redis.exceptions.NoPermissionError):
                raise
            # A worker's user need not look: ask what a worker asks.
            reservoir.add((), (), (), preprocessing=Preprocessing(), capacity=settings.reservoir.capacity)
            return [Finding(_NAME, State.GOOD, f"{where}: this user may offer stamps, and not look at them")]
        policy = _eviction_policy(client)
    except (redis.RedisError, StreamVaeError) as error:
        remedy = "Until this is mended alerts are published and none is kept for retraining."
        if isinstance(error, redis.exceptions.NoPermissionError):
            remedy = f"{_RIGHTS} {remedy}"
        elif isinstance(error, StreamVaeError) and error.remedy:
            remedy = f"{error.remedy} {remedy}"
        return [Finding(_NAME, State.WARNING, str(error.args[0]), remedy)]
    finally:
        reservoir.close()
        client.close()
    capacity = f" of {stats.capacity:,}" if stats.capacity else ""
    found = [Finding(_NAME, State.GOOD, f"{where}: {stats.stamps:,}{capacity} stamps of {stats.survey}")]
    if policy not in (None, "noeviction"):
        remedy = "Set maxmemory-policy noeviction: a sample from which the server takes stamps is no sample."
        found.append(Finding(_NAME, State.WARNING, f"{where} has maxmemory-policy {policy}", remedy))
    return found


def _eviction_policy(client: Any) -> str | None:
    """Read the policy; None where an ACL forbids to ask."""
    try:
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy")
    except redis.ResponseError:
        return None
    return policy.decode() if isinstance(policy, bytes) else policy
