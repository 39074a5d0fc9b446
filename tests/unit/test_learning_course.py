import csv
import json
import shutil

import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning import course
from stream_vae.learning.course import write_history
from stream_vae.learning.data.stamps import StampSet
from stream_vae.learning.fit import fit_model
from stream_vae.learning.recipe import build_recipe

TINY = {
    "model": {"filters": 4, "latent_size": 4},
    "loss": {"anneal": "linear", "anneal_epochs": 3},
    "fit": {"epochs": 4, "batch_size": 16, "patience": 10},
}


class KilledError(Exception):
    """What a test stops a run with."""


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(3)
    y, x = np.mgrid[-10:11, -10:11]
    stamps = np.exp(-0.5 * (x**2 + y**2) / random.uniform(2, 12, (96, 1, 1))) + random.normal(0, 0.05, (96, 21, 21))
    return StampSet(
        stamps[..., np.newaxis].astype(np.float32),
        np.full(96, -1, np.int8),
        np.arange(96),
        {"name": "blobs", "sha256": "abc"},
    )


def fit(data, content=TINY, rows=96, **options):
    return fit_model(build_recipe(content), data, np.arange(32, rows), np.arange(32), **options)


def killed_after(epochs):
    def report(step, done, total, note=""):
        if step == "fit" and done == epochs + 1:  # the epoch has run, its checkpoint is not yet written
            raise KilledError

    return report


@pytest.fixture(scope="module")
def killed_run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(KilledError):
        fit(data, checkpoint=folder, report=killed_after(2))
    return folder


@pytest.fixture
def interrupted(killed_run, tmp_path):
    """A copy of what a run left that was killed in its third epoch."""
    return shutil.copytree(killed_run, tmp_path / "run")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run that nobody stopped, and its folder; it was asked to resume where nothing was."""
    folder = tmp_path_factory.mktemp("finished") / "new"
    return fit(data, checkpoint=folder, resume=True), folder


def weights(fitted):
    return [np.array(variable.numpy()) for variable in fitted.model.variables]


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_never_stopped(data, interrupted, finished):
    whole, resumed = finished[0], fit(data, checkpoint=interrupted, resume=True)
    assert len(whole.history["loss"]) == 4
    assert resumed.best_epoch == whole.best_epoch
    assert resumed.history["val_loss"] == pytest.approx(whole.history["val_loss"], rel=1e-4)
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert other == pytest.approx(one, abs=2e-4)  # sums of several threads round as they come


def test_resuming_a_finished_run_trains_no_more_and_gives_its_model(data, finished):
    first, folder = finished
    again = fit(data, checkpoint=folder, resume=True)
    assert again.history == first.history
    for one, other in zip(weights(first), weights(again), strict=True):
        assert np.array_equal(one, other)


def test_a_run_does_not_write_over_another_ones_checkpoint(data, interrupted):
    with pytest.raises(ConfigError, match="Add --resume"):
        fit(data, checkpoint=interrupted)


def test_a_checkpoint_of_another_recipe_is_refused_and_the_keys_are_named(data, interrupted):
    other = TINY | {"model": {"filters": 4, "latent_size": 5}}
    with pytest.raises(ConfigError, match=r"another recipe \(model\.latent_size\)"):
        fit(data, other, checkpoint=interrupted, resume=True)


def test_a_checkpoint_of_other_stamps_or_another_split_is_refused(data, interrupted):
    with pytest.raises(ConfigError, match="other stamps"):
        fit(data, rows=80, checkpoint=interrupted, resume=True)


def test_a_recipes_name_is_no_reason_to_refuse(data, finished):
    again = fit(data, TINY | {"name": "renamed"}, checkpoint=finished[1], resume=True)
    assert again.history == finished[0].history


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_checkpoint_is_refused_with_what_to_do(content, data, interrupted):
    path = interrupted / course.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(ConfigError, match="begin anew"):
        fit(data, checkpoint=interrupted, resume=True)


def test_a_checkpoint_holds_plain_arrays_only_and_replaces_the_last_as_a_whole(data, interrupted):
    assert [path.name for path in interrupted.iterdir()] == [course.CHECKPOINT]
    with np.load(interrupted / course.CHECKPOINT, allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "fiu" for name in file.files)
        assert len(json.loads(file["state"].tobytes())["history"]["val_loss"]) == 2


def test_resuming_needs_a_folder_to_resume_from(data):
    with pytest.raises(ConfigError, match="--checkpoint DIR"):
        fit(data, resume=True)


def test_a_checkpoint_folder_that_cannot_be_made_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made a folder"):
        fit(data, checkpoint=tmp_path / "file")


def test_the_history_is_a_table_of_one_row_an_epoch(tmp_path):
    write_history(tmp_path / "history.csv", {"loss": [2.0, 1.5], "val_loss": [3.0, 2.5]})
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["val_loss"]) == 2.5
