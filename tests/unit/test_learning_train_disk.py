import csv

import numpy as np
import pytest
from stream_vae.learning.data import spool
from stream_vae.learning.data.stamps import StampSource
from stream_vae.learning.progress import silent
from stream_vae.learning.recipe import build_recipe
from stream_vae.learning.train import _added, train
from stream_vae.model.store import ReleaseStore
from stream_vae.sky import simulate_stamps

# TensorFlow's variables do not know numpy 2's `copy` yet; Keras converts them so when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

RECIPE = {
    "name": "disk",
    "data": {"min_stamps": 32, "add_simulated": 64},
    "model": {"filters": 4, "latent_size": 6},
    "fit": {"epochs": 2, "batch_size": 32},
    "scorer": {"hidden": 8, "draws": 8, "epochs": 4},
}


def test_a_folder_of_shards_too_large_for_memory_becomes_a_release(tmp_path, monkeypatch):
    stamps = simulate_stamps(400, seed=11)
    (tmp_path / "shards").mkdir()
    for i in range(4):
        part = slice(100 * i, 100 * i + 100)
        columns = {"stamps": stamps.stamps[part, ..., 0], "labels": stamps.labels[part], "groups": stamps.groups[part]}
        np.savez(tmp_path / "shards" / f"{i}.npz", **columns)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 1000)
    store = ReleaseStore(str(tmp_path / "store"))
    card = train(
        build_recipe(RECIPE),
        str(tmp_path / "shards"),
        store,
        scratch=tmp_path / "scratch",
        checkpoint=tmp_path / "run",
        progress=False,
    )
    assert (card.data["used"], card.data["added_simulated"], card.data["shards"]) == (400, 64, 4)
    parts = card.data["split"]
    assert parts["train"] + parts["validation"] + parts["test"] == 464
    assert parts["test"] + parts["validation"] < 200  # the simulated ones are all in the training part
    assert not list((tmp_path / "scratch").iterdir())
    assert (tmp_path / "run" / "checkpoint.npz").is_file()
    with (store.load(card.id).folder / "report" / "history.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_simulated_stamps_are_not_added_to_simulated_stamps():
    recipe = build_recipe({"data": {"add_simulated": 64}})
    for kind, added in (("simulation", False), ("file", True)):
        source = StampSource(kind, "some", 10, lambda: iter(()), grouped=True)
        assert (_added(recipe, source, silent) is not None) is added
