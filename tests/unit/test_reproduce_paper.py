"""What `training/reproduce_paper.py` decides before it fits anything."""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning.data.stamps import StampSet


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "training" / "reproduce_paper.py"
    spec = importlib.util.spec_from_file_location("reproduce_paper", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce_paper"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["reproduce_paper"]


def _set(groups):
    count = len(groups)
    return StampSet(
        np.zeros((count, 9, 9, 1), np.float32),
        (np.arange(count) % 2).astype(np.int8),
        np.asarray(groups, np.int64),
        {"name": "x.npz", "sha256": "0" * 64, "groups": len(np.unique(groups))},
    )


@pytest.mark.parametrize("name", ["small", "medium", "full"])
def test_every_scale_compares_the_papers_models(script, name):
    found = script.recipes(script.SCALES[name], latent_size=13, seed=7)
    assert list(found) == ["CVAE, annealed", "CVAE, no annealing", "CVAE, calibrated", "CVAE, labels too", "SCAE"]
    for recipe, _ in found.values():
        assert (recipe.seed, recipe.model.latent_size) == (7, 13)
    annealed, sudden, calibrated, labelled, sparse = (recipe for recipe, _ in found.values())
    assert (annealed.loss.sigma, annealed.loss.anneal) == (1.0, "linear")
    assert (sudden.loss.sigma, sudden.loss.anneal) == (1.0, "none")
    assert calibrated.loss.sigma == "analytic"
    assert calibrated.loss.label_weight == 0.0 < labelled.loss.label_weight  # only one of them sees labels
    assert sparse.model.kind == "scae"


def test_full_scale_keeps_the_recipes_own_fit(script):
    recipe, _ = script.recipes(script.SCALES["full"], latent_size=21, seed=1)["CVAE, annealed"]
    assert recipe.fit == script.load_recipe("paper").fit


def test_stamps_and_epochs_may_be_chosen(script):
    arguments = argparse.Namespace(scale="small", stamps=500, epochs=3)
    scale = script.chosen_scale(arguments)
    assert (scale.simulated, scale.epochs, scale.supervised_epochs) == (500, 3, 3)


def test_one_image_can_be_kept_for_judging(script):
    data = _set(np.arange(300) // 100)
    split = script.part(data, 1, seed=1)
    assert set(data.groups[split.test]) == {1}
    assert sorted([*split.train, *split.validation]) == np.flatnonzero(data.groups != 1).tolist()


def test_an_image_that_is_not_there_is_refused_with_the_ones_that_are(script):
    with pytest.raises(ConfigError, match=r"--test-group 3.*Give one from 0 to 2"):
        script.part(_set(np.arange(300) // 100), 3, seed=1)


def test_the_report_sees_labelled_training_stamps_and_test_stamps_apart(script):
    data = _set(np.arange(400) // 20)
    data.labels[::3] = -1
    split = script.part(data, None, seed=1)
    shown, parts = script.shown_rows(data, split, seed=1)
    assert (shown.labels[parts.fitted] >= 0).all()
    assert not set(shown.groups[parts.fitted]) & set(shown.groups[parts.judged])
    assert len(parts.judged) == len(split.test)


def test_full_scale_wants_data_of_ones_own(script, tmp_path):
    arguments = argparse.Namespace(
        scale="full", stamps=None, epochs=None, data="sim", out=tmp_path, seed=1, latent_size=21, test_group=None
    )
    with pytest.raises(ConfigError, match=r"--scale full wants your own stamps.*--data"):
        script.run(arguments)
