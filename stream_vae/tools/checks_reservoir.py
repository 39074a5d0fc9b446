"""Checks of the Redis or Valkey that holds the reservoir."""

from typing import Any

import redis

from stream_vae import assembly
from stream_vae.errors import ConfigError, StreamVaeError
from stream_vae.model.release import Preprocessing
from stream_vae.reservoir import Batch, Stats, address, connect
from stream_vae.sampling import memory_bound
from stream_vae.settings import Settings
from stream_vae.tools.checkup import Check, Finding, State

_NAME = "reservoir"
WORKERS_RIGHTS = [
    "-@all",
    "+evalsha",
    "+script|load",
    "+exists",
    "+hmget",
    "+hget",
    "+hset",
    "+hdel",
    "+hlen",
    "+hincrby",
    "+zcard",
    "+zscore",
    "+zrange",
    "+zadd",
    "+zrem",
    "+zpopmax",
    "+expire",
]
"""Of a worker's user, on keys that begin with {vae}:."""
_RIGHTS = f"ACL SETUSER USER ~{{vae}}:* {' '.join(WORKERS_RIGHTS)} is what a worker needs."


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
    """Ask whether the server answers, has room, keeps what it is given, and holds keys that we can read.

    Parameters
    ----------
    settings : Settings
        ``[reservoir]``.

    Returns
    -------
    list of Finding
        One to three. None of them is bad: workers publish at full rate without a reservoir.

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
    client = connect(
        url.get_secret_value(), timeout_s=5.0, ca_file=settings.reservoir.ca_file, password=settings.reservoir.password
    )
    try:
        try:
            stats = reservoir.stats()
        except ConfigError as error:
            if not isinstance(error.__cause__, redis.exceptions.NoPermissionError):
                raise
            # A worker's user need not look: ask what a worker asks.
            reservoir.add(Batch.empty(), preprocessing=Preprocessing(), capacities=assembly.capacities_of(settings))
            return [Finding(_NAME, State.GOOD, f"{where}: this user may offer stamps, and not look at them")]
        policy, most = _setting(client, "maxmemory-policy"), _setting(client, "maxmemory")
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
    capacity = sum(stratum.capacity for stratum in stats.strata)
    of_many = f" of {capacity:,}" if capacity else ""
    found = [Finding(_NAME, State.GOOD, f"{where}: {stats.stamps:,}{of_many} stamps of {stats.survey}")]
    if policy not in (None, "noeviction"):
        remedy = "Set maxmemory-policy noeviction: a sample from which the server takes stamps is no sample."
        found.append(Finding(_NAME, State.WARNING, f"{where} has maxmemory-policy {policy}", remedy))
    return found + _too_small(settings, stats, where, int(most or 0))


def _too_small(settings: Settings, stats: Stats, where: str, most: int) -> list[Finding]:
    """Compare what the server may take with what a full reservoir needs; 0 is no bound."""
    preprocessing = Preprocessing.model_validate(stats.preprocessing) if stats.preprocessing else Preprocessing()
    needed = memory_bound(assembly.capacities_of(settings), preprocessing)
    if not most or most >= needed:
        return []
    says = f"{where} has maxmemory {most / 2**20:.0f} MiB; the strata of [reservoir] may take {needed / 2**20:.0f} MiB"
    remedy = "Set maxmemory higher or the capacities lower: a server that is full takes no more stamps."
    return [Finding(_NAME, State.WARNING, says, remedy)]


def _setting(client: Any, name: str) -> str | None:
    """Read a setting of the server; None where an ACL forbids to ask."""
    try:
        value = client.config_get(name).get(name)
    except redis.ResponseError:
        return None
    return value.decode() if isinstance(value, bytes) else value
