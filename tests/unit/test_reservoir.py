"""Ranks, records and messages of the reservoir: what needs no Redis."""

import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.model.release import Preprocessing
from stream_vae.reservoir import Reservoir, address, connect
from stream_vae.sampling import (
    HELD_OUT_SHARE,
    RANKS,
    Capacities,
    digest_of,
    held_out,
    memory_bound,
    pack,
    ranks,
    record_bytes,
    unpack,
)

CHI_SQUARE_19_AT_0_1_PERCENT = 43.82
"""What 20 equally likely classes exceed once in a thousand times."""
IDS = [str(2_000_000_000_000_000_000 + i) for i in range(20_000)]


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def test_ranks_of_numbers_in_a_row_are_uniform():
    counts = np.bincount(ranks("ztf", IDS) * 20 // RANKS, minlength=20)
    assert chi_square(counts, len(IDS) / 20) < CHI_SQUARE_19_AT_0_1_PERCENT


def test_a_rank_depends_on_the_survey_and_the_id_alone():
    again = ranks("ztf", IDS[::-1])[::-1]
    assert (ranks("ztf", IDS) == again).all()
    assert (ranks("ztf", IDS) != ranks("lsst", IDS)).mean() > 0.999
    assert ranks("ztf", []).shape == (0,)


def test_what_is_held_out_has_nothing_to_do_with_the_rank():
    apart, order = held_out("ztf", IDS), ranks("ztf", IDS)
    low = order < np.median(order)
    # Three standard deviations of a share of 10,000.
    for chosen in (low, ~low):
        assert apart[chosen].mean() == pytest.approx(HELD_OUT_SHARE, abs=0.012)


@pytest.mark.parametrize("factor", [1.0, 1e-12, 3e30])
def test_records_keep_stamps_to_float16_whatever_their_scale(factor):
    preprocessing = Preprocessing(stamp_size=9, cutouts=("science", "difference"))
    stamps = np.random.default_rng(1).normal(size=(7, 9, 9, 2)).astype(np.float32) * np.float32(factor)
    records = pack(stamps)
    assert {len(record) for record in records} == {record_bytes(preprocessing)}
    assert np.abs(unpack(records, preprocessing) - stamps).max() <= np.abs(stamps).max() * 2**-11


def test_a_blank_stamp_survives_its_record():
    preprocessing = Preprocessing()
    assert not unpack(pack(np.zeros((1, 21, 21, 1), np.float32)), preprocessing).any()


@pytest.mark.parametrize("record", [b"", b"short", bytes(record_bytes(Preprocessing()) + 1)])
def test_a_record_of_another_length_is_refused(record):
    with pytest.raises(ConfigError, match=r"wrong length.*reservoir clear"):
        unpack([record], Preprocessing())


def test_a_record_that_is_not_finite_is_refused():
    with pytest.raises(ConfigError, match="not finite"):
        unpack([b"\xff" * record_bytes(Preprocessing())], Preprocessing())


def test_each_setting_of_the_preprocessing_counts_in_its_digest():
    others = [Preprocessing(stamp_size=23), Preprocessing(cutouts=("science",)), Preprocessing(fill=0.5)]
    assert len({digest_of(each) for each in [Preprocessing(), *others]}) == 4
    assert digest_of(Preprocessing()) == digest_of(Preprocessing(stamp_size=21))


def test_memory_grows_with_the_capacity_and_the_channels():
    one, three = Preprocessing(), Preprocessing(cutouts=("difference", "science", "template"))
    assert 50e6 < memory_bound(Capacities(50_000), one) < 80e6
    assert memory_bound(Capacities(50_000), three) > 2 * memory_bound(Capacities(50_000), one)


def test_messages_tell_where_redis_is_and_not_who_asks():
    assert address("redis://user:secret@example.org:6379/2") == "redis://example.org:6379/2"
    assert address("unix://user@/run/valkey.sock?password=secret") == "unix:///run/valkey.sock"


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@example.org",
        "redis://example.org/0?password=secret&nonsense=1",
        "rediss://user:secret@example.org/0?ssl_cert_reqs=nonsense",
        "redis://:secret@example.org:port/0",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_before_it_is_and_without_its_password(url):
    with pytest.raises(ConfigError, match=r"reservoir\.url") as caught:
        connect(url, timeout_s=1)
    assert "secret" not in str(caught.value)


def test_a_redis_that_is_not_there_is_told_with_its_address(unused_port):
    url = f"redis://user:secret@127.0.0.1:{unused_port}/0"
    reservoir = Reservoir(connect(url, timeout_s=0.2), "ztf", where=address(url))
    for question in (reservoir.stats, reservoir.clear, lambda: reservoir.draw(1, np.random.default_rng())):
        with pytest.raises(ConfigError, match=rf"No Redis answers at .*127\.0\.0\.1:{unused_port}") as caught:
            question()
        assert "secret" not in str(caught.value)
    reservoir.close()


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))  # bound and never listening: connections are refused as long as it is open
        yield one.getsockname()[1]


def test_the_url_comes_from_the_environment_too_and_never_prints(tmp_path, monkeypatch):
    from stream_vae import settings

    file = tmp_path / "settings.toml"
    file.write_text(
        'survey = "ztf"\n[kafka]\nbootstrap_servers = "127.0.0.1:1"\ninput_topics = ["a"]\noutput_topic = "b"\n'
        'dead_letter_topic = "c"\n[release]\nstore = "store"\n[reservoir]\ncapacity = 123\n'
    )
    assert settings.load(file).reservoir.url is None
    monkeypatch.setenv("STREAM_VAE_RESERVOIR__URL", "redis://user:secret@example.org")
    loaded = settings.load(file)
    assert loaded.reservoir.capacity == 123
    assert loaded.reservoir.url.get_secret_value() == "redis://user:secret@example.org"
    assert "secret@" not in repr(loaded) + loaded.model_dump_json()
