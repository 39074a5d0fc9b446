"""Retraining before anything is trained: the rule, and every reason not to begin."""

import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from stream_vae import assembly
from stream_vae.embedded.valkey import EmbeddedValkey
from stream_vae.errors import ConfigError
from stream_vae.learning.recipe import build_recipe
from stream_vae.learning.retrain import (
    LEAST_HELD_OUT,
    LEAST_LABELLED,
    LEAST_TYPICAL,
    _labelled,
    _scorer_of,
    _typical,
    retrain_now,
)
from stream_vae.model.release import Preprocessing
from stream_vae.model.store import ReleaseStore
from stream_vae.sample import Sample
from stream_vae.sampling import Capacities
from stream_vae.settings import KafkaSettings, ReleaseSettings, ReservoirSettings, Settings

from deployment import command
from releases import make_release
from reservoirs import batch_of


@pytest.fixture(scope="module")
def valkey():
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
def store(tmp_path):
    opened = ReleaseStore(str(tmp_path / "store"))
    make_release(opened, tmp_path / "release")
    return opened


@pytest.fixture
def settings(store):
    return settings_of(store)


def settings_of(store, url=None):
    kafka = KafkaSettings(
        bootstrap_servers="127.0.0.1:1", input_topics=("in",), output_topic="out", dead_letter_topic="dead"
    )
    reservoir = ReservoirSettings(url=url)
    return Settings(survey="ztf", kafka=kafka, release=ReleaseSettings(store=store.url), reservoir=reservoir)


def fill(settings, count, preprocessing=None):
    preprocessing = preprocessing or Preprocessing()
    shape = (count, preprocessing.stamp_size, preprocessing.stamp_size, len(preprocessing.cutouts))
    ids = [str(number) for number in range(count)]
    reservoir = assembly.reservoir_of(settings)
    reservoir.clear()
    stamps = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    if count:
        reservoir.add(batch_of("ztf", ids, stamps), preprocessing=preprocessing, capacities=Capacities(5000))
    reservoir.close()


def test_without_a_reservoir_it_says_so(settings):
    with pytest.raises(ConfigError, match=r"No reservoir is configured.*\[reservoir\]"):
        retrain_now(settings, progress=False)


def test_without_redis_it_says_so(store):
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        url = f"redis://user:secret@127.0.0.1:{refusing.getsockname()[1]}"
        with pytest.raises(ConfigError, match="No Redis answers") as caught:
            retrain_now(settings_of(store, url), progress=False)
    assert "secret" not in str(caught.value)


def test_an_empty_reservoir_is_told(store, valkey):
    settings = settings_of(store, valkey.url)
    fill(settings, 0)
    with pytest.raises(ConfigError, match="is empty"):
        retrain_now(settings, progress=False)


def test_too_few_stamps_are_told_with_their_number(store, valkey):
    settings = settings_of(store, valkey.url)
    fill(settings, 100)
    with pytest.raises(
        ConfigError, match=rf"holds \d+ stamps to train on.*{LEAST_HELD_OUT} of the second, about \d+ in all"
    ):
        retrain_now(settings, progress=False)


def test_stamps_prepared_for_another_release_are_not_trained_on(store, valkey):
    settings = settings_of(store, valkey.url)
    fill(settings, 1000, Preprocessing(stamp_size=15))
    with pytest.raises(ConfigError, match=r'"stamp_size":15.*is wanted'):
        retrain_now(settings, progress=False)


def test_a_recipe_for_other_stamps_is_refused(settings):
    recipe = build_recipe({"preprocessing": {"stamp_size": 15}})
    with pytest.raises(ConfigError, match="prepares stamps differently"):
        retrain_now(settings, recipe, progress=False)


def test_an_incumbent_that_cannot_be_judged_is_told_before_the_work(store, valkey):
    settings = settings_of(store, valkey.url)
    fill(settings, 1000)
    with pytest.raises(ConfigError, match=r"has no decoder\.onnx and no cvae\.keras"):
        retrain_now(settings, progress=False)
    assert len(store.ids()) == 1


def test_a_store_without_a_release_asks_for_one(tmp_path):
    with pytest.raises(ConfigError, match=r"no current release.*stream-vae train"):
        retrain_now(settings_of(ReleaseStore(str(tmp_path / "nothing"))), progress=False)


def test_what_is_for_one_retraining_is_refused_without_now(tmp_path):
    from stream_vae.cli import retrain  # noqa: F401 - makes the command

    file = tmp_path / "settings.toml"
    file.write_text(
        'survey = "ztf"\n[kafka]\nbootstrap_servers = "127.0.0.1:1"\ninput_topics = ["a"]\noutput_topic = "b"\n'
        'dead_letter_topic = "c"\n[release]\nstore = "store"\n'
    )
    result = command("retrain", "--settings", file, "--no-promote", "--recipe", "quick")
    assert isinstance(result.exception, ConfigError)
    assert result.exception.exit_code == 2
    assert "--recipe, --no-promote: for one retraining only. Add --now." in str(result.exception)
    both = command("retrain", "--settings", file, "--now", "--ray-address", "auto")
    assert "--now retrains in this process" in str(both.exception)


def sample_of(labels):
    count = len(labels)
    nothing = ("",) * count
    return Sample(
        np.zeros((count, 21, 21, 1), np.float32),
        tuple(map(str, range(count))),
        Preprocessing(),
        np.array(labels, np.int8),
        nothing,
        np.zeros(count),
        np.zeros(count, np.float32),
        np.zeros(count, np.uint32),
        nothing,
        ("uniform",) * count,
    )


@pytest.mark.parametrize(
    ("real", "bogus", "asked", "learns", "kept"),
    [
        (LEAST_LABELLED, LEAST_LABELLED, False, False, True),
        (LEAST_LABELLED, LEAST_LABELLED, True, True, True),  # as the recipe wants it
        (LEAST_LABELLED, 0, False, True, True),  # one class only: real ones against unlabelled ones
        (LEAST_LABELLED, LEAST_LABELLED - 1, False, True, True),
        (0, LEAST_LABELLED, False, False, False),  # one class only, and not the one that teaches alone
        (LEAST_LABELLED - 1, LEAST_LABELLED, False, False, False),
        (0, 0, True, False, False),
    ],
)
def test_a_scorer_learns_from_the_labels_that_there_are_and_else_from_simulated_stamps(
    real, bogus, asked, learns, kept, caplog
):
    recipe = build_recipe({"scorer": {"positive_unlabelled": asked}})
    sample = sample_of([1] * real + [0] * bogus + [-1] * 100)
    chosen, labels = _scorer_of(recipe, sample)
    assert chosen.scorer.positive_unlabelled is learns
    assert bool((labels >= 0).any()) is kept
    if (real or bogus) and not kept:
        assert "too few for a scorer" in caplog.text  # what people labelled is not passed over without a word


def test_labelled_stamps_judge_where_there_are_both_classes_and_real_ones_rank_where_there_are_not():
    natural = sample_of([-1] * 200)
    both = _labelled(natural, sample_of([1] * 30 + [0] * 30 + [-1] * 40))
    assert (both.name, both.ranked, len(both.stamps)) == ("labelled", False, 60)
    ranked = _labelled(natural, sample_of([1] * 30 + [-1] * 40))
    assert (ranked.name, ranked.ranked, len(ranked.stamps)) == ("real against unlabelled", True, 230)
    assert _labelled(natural, sample_of([1] * 5 + [-1] * 40)) is None


@pytest.mark.parametrize(
    ("recent", "older", "chosen", "expected"),
    [
        (LEAST_TYPICAL, 300, 50, "recent"),
        (LEAST_TYPICAL - 1, 300, 50, "recent and older"),
        (0, 0, 50, "all"),
    ],
)
def test_drift_is_measured_from_what_the_survey_sees_now_and_not_from_what_was_chosen(recent, older, chosen, expected):
    strata = ("rare+recent",) * recent + ("uniform",) * older + ("anchors",) * chosen
    sample = replace(sample_of([-1] * len(strata)), strata=strata)
    wanted = {"recent": recent, "recent and older": recent + older, "all": chosen}[expected]
    assert _typical(sample).sum() == wanted


def test_nothing_is_loaded_for_training_until_there_is_something_to_train_on():
    program = "import sys, stream_vae.learning.retrain; print({'tensorflow', 'keras'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
