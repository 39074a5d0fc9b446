"""`stream-vae train --unless-served`: a first release for a store, however often somebody asks for it."""

import json

import pytest
from stream_vae.cli import app, train
from stream_vae.errors import ConfigError
from stream_vae.model.store import ReleaseStore
from typer.testing import CliRunner

from releases import make_release


@pytest.fixture
def trainings(monkeypatch):
    """Where each training that was asked for would have put its release; nothing is trained."""
    asked = []

    class Card:
        id = "new"

        def model_dump(self, **_):
            return {"id": self.id}

    def pretend(recipe, data, store, **options):
        asked.append(store)
        return Card()

    monkeypatch.setattr("stream_vae.learning.train.train", pretend)
    return asked


@pytest.fixture
def store(tmp_path):
    return ReleaseStore(str(tmp_path / "store"))


def first_release(store, *more):
    return CliRunner().invoke(app, ["train", "--store", store.url, "--promote", "--unless-served", *more])


def test_a_store_without_a_current_release_gets_one(store, tmp_path, trainings):
    make_release(store, tmp_path / "made", promote=False)
    done = first_release(store)
    assert (done.exit_code, trainings) == (0, [store.url])


def test_a_store_with_a_current_release_is_left_as_it_is(store, tmp_path, trainings):
    made = make_release(store, tmp_path / "made")
    before = sorted((tmp_path / "store").rglob("*"))
    said, answered = first_release(store), first_release(store, "--json")
    assert (said.exit_code, answered.exit_code, trainings) == (0, 0, [])
    assert f"Release {made.id} is current: nothing to train." in said.stdout
    assert json.loads(answered.stdout)["id"] == made.id
    assert sorted((tmp_path / "store").rglob("*")) == before


def test_a_current_release_that_is_damaged_is_named_and_not_replaced(store, tmp_path, trainings):
    made = make_release(store, tmp_path / "made")
    (tmp_path / "store" / "releases" / made.id / "encoder.onnx").write_bytes(b"no graph")
    done = first_release(store)
    assert isinstance(done.exception, ConfigError)
    assert made.id in str(done.exception)
    assert trainings == []


def test_a_first_release_that_would_not_be_served_is_refused(store, trainings):
    with pytest.raises(ConfigError, match="--unless-served is for a first release"):
        train.train(store.url, unless_served=True)
    assert store.current() is None
    assert trainings == []
