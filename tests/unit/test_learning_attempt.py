"""Retrainings beside the process that asks for them: answers, errors, and deaths without a word."""

import os
import signal
import time

import pytest
from stream_vae.errors import ConfigError, FatalError
from stream_vae.learning.attempt import ProcessAttempt, carry_out
from stream_vae.learning.lock import BusyError
from stream_vae.model.store import ReleaseStore
from stream_vae.settings import KafkaSettings, ReleaseSettings, ReservoirSettings, Settings, to_plain

from ray_attempts import attempted
from releases import make_release

TIMEOUT_S = 120


@pytest.fixture
def settings(tmp_path):
    """Settings of which a retraining says at once what is missing."""
    store = ReleaseStore(str(tmp_path / "store"))
    make_release(store, tmp_path / "release")
    kafka = KafkaSettings(
        bootstrap_servers="127.0.0.1:1", input_topics=("in",), output_topic="o", dead_letter_topic="d"
    )
    return Settings(survey="ztf", kafka=kafka, release=ReleaseSettings(store=store.url))


def end_of(attempt):
    deadline = time.monotonic() + TIMEOUT_S
    while (ended := attempt.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return ended


def test_an_error_comes_back_by_its_class_and_its_words(settings):
    attempt = ProcessAttempt(settings, "hand")
    ended = end_of(attempt)
    attempt.stop()
    assert ended.found is None
    assert type(ended.error) is ConfigError
    assert "No reservoir is configured" in str(ended.error)
    assert "[reservoir]" in ended.error.remedy


def test_a_secret_in_the_settings_reaches_the_process_and_no_message(settings):
    secret = ReservoirSettings(url="redis://user:secret@127.0.0.1:1/0")
    attempt = ProcessAttempt(settings.model_copy(update={"reservoir": secret}), "hand")
    ended = end_of(attempt)
    attempt.stop()
    assert "No Redis answers" in str(ended.error)
    assert "secret" not in str(ended.error)


def test_a_process_that_is_killed_is_an_error_that_says_so(settings):
    attempt = ProcessAttempt(settings, "hand")
    os.kill(attempt.pid, signal.SIGKILL)
    ended = end_of(attempt)
    attempt.stop()
    assert type(ended.error) is FatalError
    assert "died without a word" in str(ended.error)


def test_one_that_is_stopped_ends_at_once(settings):
    attempt = ProcessAttempt(settings, "hand")
    attempt.stop()
    attempt.stop()
    assert attempt.poll().error is not None
    with pytest.raises(ProcessLookupError):
        os.kill(attempt.pid, 0)


def test_a_retraining_that_finds_another_one_running_is_a_passing_fault(settings, monkeypatch):
    from stream_vae.learning import retrain

    def busy(*_, **__):
        raise BusyError("Another retraining of ztf runs.", remedy="Wait for it.")

    monkeypatch.setattr(retrain, "retrain_now", busy)
    answer = carry_out(to_plain(settings), "hand", 30)
    assert answer == {"error": "RetriableError", "message": "Another retraining of ztf runs.", "remedy": "Wait for it."}


def test_what_nobody_expected_is_an_error_too(settings, monkeypatch):
    from stream_vae.learning import retrain

    monkeypatch.setattr(retrain, "retrain_now", lambda *_, **__: 1 / 0)
    assert carry_out(to_plain(settings), "hand", 30) == {
        "error": "FatalError",
        "message": "ZeroDivisionError: division by zero",
        "remedy": "",
    }


@pytest.mark.slow
def test_a_ray_task_gives_the_same_answers_and_waits_for_its_place(settings, tmp_path):
    ended, waiting, stopped = attempted(settings, tmp_path, "hand", cpus=64)
    assert ended["error"] == "ConfigError"
    assert "No reservoir is configured" in ended["message"]
    assert waiting == {"waiting": True}
    assert "stopped" in stopped["message"]
