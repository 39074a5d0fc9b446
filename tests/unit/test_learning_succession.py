"""Going on from a release: codes that may be compared, and a verdict in the card."""

import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning.compare import look
from stream_vae.learning.data.stamps import REAL, Chunk, StampSource
from stream_vae.learning.gates import FrozenSet
from stream_vae.learning.mapping import MAPPING, carried, fit_mapping, retrieval
from stream_vae.learning.recipe import build_recipe
from stream_vae.learning.succession import Succession, first_of_space, space_of
from stream_vae.learning.train import train
from stream_vae.model.release import problems
from stream_vae.model.store import ReleaseStore

from deployment import answered

# TensorFlow's variables do not know numpy 2's `copy` yet; Keras converts them so when it saves.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]

TINY = {
    "name": "tiny",
    "data": {"simulated_stamps": 300, "min_stamps": 32},
    "model": {"filters": 4, "latent_size": 6, "linear_skip": True, "linear_start": "pca"},
    "loss": {"kl_weight": 0.3},
    "fit": {"epochs": 4, "batch_size": 32, "learning_rate": 3e-3},
    "scorer": {"hidden": 8, "draws": 8, "epochs": 3},
    "retrain": {"epochs": 2},
}
PARTS = {"recent": slice(0, 50), "older": slice(50, None)}


def night(count, *, width, seed):
    """Gaussian sources of one seeing, and single hot pixels."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-10:11, -10:11]
    stamps = random.normal(0, 0.1, (count, 21, 21, 1)).astype(np.float32)
    labels = random.integers(0, 2, count).astype(np.int8)
    for row in range(count):
        dy, dx = random.normal(0, 0.5, 2)
        sharp = width * random.uniform(0.9, 1.1) if labels[row] == REAL else 0.4
        stamps[row, ..., 0] += np.exp(-((y - dy) ** 2 + (x - dx) ** 2) / (2 * sharp**2))
    stamps -= np.median(stamps, axis=(1, 2, 3), keepdims=True)
    return stamps / np.abs(stamps).max(axis=(1, 2, 3), keepdims=True), labels


def source(stamps, labels):
    def chunks():
        members = np.arange(len(stamps), dtype=np.int64)
        yield Chunk(stamps, np.zeros(len(stamps), np.uint32), labels, members)

    return StampSource("reservoir", "nights", len(stamps), chunks, grouped=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ReleaseStore(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def first(store):
    card = train(build_recipe(TINY), source(*night(600, width=1.5, seed=1)), store, progress=False)
    return store.load(card.id)


@pytest.fixture(scope="module")
def later():
    """Held-out stamps of a night of wider seeing."""
    stamps, labels = night(200, width=2.0, seed=3)
    return FrozenSet("held out", stamps, labels)


@pytest.fixture(scope="module")
def second(store, first, later):
    succession = Succession(first, (later,), first_of_space(store, first))
    data = source(*night(600, width=2.0, seed=2))
    card = train(build_recipe(TINY), data, store, succession=succession, go_on=True, progress=False)
    return store.load(card.id)


def test_no_stamp_is_its_own_neighbour_through_a_part_of_the_set_that_it_is_in(first, later):
    part, other = (FrozenSet(name, later.stamps[rows], later.labels[rows]) for name, rows in PARTS.items())
    labelled = FrozenSet("labelled", np.concatenate([later.stamps] * 2), np.repeat(later.labels, 2), natural=False)
    stamps = Succession(first, (part, later, other, labelled)).natural
    assert stamps.shape == later.stamps.shape
    assert len(np.unique(stamps.reshape(len(stamps), -1), axis=0)) == len(stamps)


def test_codes_that_go_on_stay_comparable_and_keep_the_name_of_their_space(first, second, later):
    continuity = second.card.metrics["verdict"]["continuity"]
    assert continuity["same"]
    assert second.card.latent_space == first.card.latent_space
    assert second.path(MAPPING) is None
    old, new = (look(release, later.stamps).z_mean for release in (first, second))
    found = retrieval(later.stamps, old, new)
    assert found.lost == pytest.approx(continuity["before"]["lost"], abs=0.01)
    assert found.residual < 0.2


def test_the_anchors_of_the_first_release_are_handed_on(first, second):
    (stamps, codes), (kept, kept_codes) = space_of(first), space_of(second)
    assert (stamps == kept).all()
    assert (codes == kept_codes).all()
    with np.load(second.folder / "reference.npz") as file:
        assert not np.array_equal(file["stamps_z_mean"][: len(codes)], codes[: len(file["stamps_z_mean"])])


def test_what_goes_on_is_a_plain_release_that_fits_the_new_night_better(first, second, later):
    assert problems(second.folder) == []
    assert look(second, later.stamps).squared_error.mean() < look(first, later.stamps).squared_error.mean()
    from stream_vae.model.cvae import CVAE
    from stream_vae.model.reconstruct import load_keras

    assert type(load_keras(second.folder / "cvae.keras", second.id)) is CVAE


def test_the_verdict_stands_in_the_card_with_every_gate_and_its_reason(first, second):
    verdict = second.card.metrics["verdict"]
    assert verdict["incumbent"] == first.id
    assert verdict["decision"] in ("promote", "shadow", "reject")
    names = [gate["name"] for gate in verdict["gates"]]
    for name in ("ELBO in nats, held out", "squared error, held out", "AUC, held out", "latency in microseconds"):
        assert name in names
    assert all(gate["reason"] for gate in verdict["gates"])
    assert verdict["reasons"]


def test_from_scratch_the_space_is_another_one_and_a_mapping_carries_vectors_over(store, first, later):
    recipe = build_recipe(TINY | {"seed": 9, "model": {"filters": 4, "latent_size": 6}})
    card = train(
        recipe, source(*night(600, width=2.0, seed=2)), store, succession=Succession(first, (later,)), progress=False
    )
    release = store.load(card.id)
    assert card.latent_space != first.card.latent_space
    with np.load(release.path(MAPPING)) as file:
        mapping = dict(file)
    assert str(mapping["from_space"]) == first.card.latent_space
    assert str(mapping["to_space"]) == card.latent_space
    old, new = (look(each, later.stamps).z_mean for each in (first, release))
    mapped = carried(old, mapping["matrix"], mapping["offset"])
    assert np.square(mapped - new).mean() < 0.5 * np.square(old - new).mean()
    assert retrieval(later.stamps, new, mapped).new_against_old > retrieval(later.stamps, new, old).new_against_old


def test_a_mapping_between_any_two_releases_is_written_on_demand(store, first, second, tmp_path):
    from stream_vae.cli import releases  # noqa: F401 - its import makes the command

    file = tmp_path / "mapping.npz"
    said = answered("releases", "compare", first.id, second.id, "--store", store.url, "--mapping", file)
    assert said["same_latent_space"]
    with np.load(file) as mapping:
        assert mapping["matrix"].shape == mapping["back_matrix"].shape == (6, 6)
        assert mapping["recall_mapped"] > 0.8 * mapping["recall_new"]  # next to nothing has to be carried over


def test_a_recipe_of_another_size_cannot_go_on(store, first, later):
    wider = build_recipe(TINY | {"model": TINY["model"] | {"filters": 8}})
    with pytest.raises(ConfigError, match=r"filters 4 and 8.*--from-scratch"):
        train(
            wider,
            source(*night(200, width=2.0, seed=2)),
            store,
            succession=Succession(first, (later,)),
            go_on=True,
            progress=False,
        )


def test_an_affine_map_is_found_again():
    random = np.random.default_rng(0)
    codes = random.normal(size=(500, 6)).astype(np.float32)
    matrix, offset = random.normal(size=(6, 4)), random.normal(size=4)
    found = carried(codes, *fit_mapping(codes, (codes @ matrix + offset).astype(np.float32)))
    assert found == pytest.approx(codes @ matrix + offset, abs=0.05)


def test_equal_codes_lose_nothing_and_codes_of_other_length_everything():
    random = np.random.default_rng(0)
    stamps = random.normal(size=(100, 5, 5, 1)).astype(np.float32)
    codes = stamps.reshape(100, -1)[:, :6].copy()
    assert retrieval(stamps, codes, codes).lost == 0.0
    assert retrieval(stamps, codes, codes[:, :4].copy()).lost == 1.0


@pytest.mark.parametrize(("farthest", "known"), [(1e9, 1.0), (0.0, 0.0)])
def test_a_stamp_is_new_to_a_teacher_whose_code_of_it_lies_far_out(farthest, known):
    from stream_vae.learning.continuation import Teacher, _judge
    from stream_vae.model.cvae import CVAE

    model = CVAE(latent_size=6, filters=4, seed=1)
    teacher = Teacher("one", model, np.zeros(6, np.float32), np.eye(6, dtype=np.float32), farthest)
    stamps, _ = night(20, width=1.5, seed=1)
    assert set(np.asarray(_judge(teacher)(stamps)[2]).tolist()) == {known}


def test_each_stamp_is_held_to_the_first_teacher_that_knows_it_and_to_none_that_does_not():
    from stream_vae.learning.continuation import _divergence

    posterior = np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32)

    def teacher(mean, known):
        return lambda _: (np.full((4, 3), mean, np.float32), np.zeros((4, 3), np.float32), np.array(known, np.float32))

    judges = teacher(1.0, [1, 1, 0, 0]), teacher(2.0, [1, 0, 1, 0])
    # Half the squared distance in each of three units: 1.5 from the first, 6 from the second.
    assert np.asarray(_divergence(lambda: judges, None, *posterior)).tolist() == [1.5, 1.5, 6.0, 0.0]
