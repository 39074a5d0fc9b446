import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning.recipe import build_recipe, load_recipe, parse_recipe, recipe_names


def test_the_recipes_of_the_package_are_found_by_name_and_are_valid():
    assert recipe_names() == ["iwae", "paper", "quick", "scae", "survey", "triplet"]
    assert [load_recipe(name).name for name in recipe_names()] == recipe_names()


def test_the_paper_recipe_says_what_the_paper_did():
    recipe = load_recipe("paper")
    assert (recipe.loss.sigma, recipe.loss.kl_weight, recipe.loss.anneal) == (1.0, 1.0, "linear")
    assert (recipe.model.latent_size, recipe.model.filters, recipe.model.linear_skip) == (21, 32, False)


def test_the_survey_recipe_fits_the_variance_and_anneals_to_a_weight_below_one():
    recipe = load_recipe("survey")
    assert (recipe.loss.sigma, recipe.loss.kl_weight, recipe.loss.anneal) == ("analytic", 0.1, "linear")
    assert (recipe.model.linear_skip, recipe.model.linear_start) == (True, "pca")
    assert recipe.loss.label_weight > 0
    assert recipe.data.add_simulated > 0  # or data without labels would leave that weight without effect


def test_a_recipe_from_a_file_is_named_after_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[fit]\nepochs = 3\n")
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.fit.epochs) == ("mine", 3)


def test_an_unknown_key_is_refused_with_its_name_and_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown key 'loss\.sgima' \(known: anneal, anneal_epochs, cycles, .*sigma"):
        parse_recipe("[loss]\nsgima = 1.0", name="r")


def test_an_unknown_section_is_refused_with_its_name_and_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown key 'los' \(known: data, description, fit, loss, model"):
        parse_recipe("[los]\nsigma = 1.0", name="r")


def test_an_unknown_preprocessing_key_is_refused_too():
    with pytest.raises(ConfigError, match=r"unknown key 'preprocessing\.stampsize'"):
        parse_recipe("[preprocessing]\nstampsize = 21", name="r")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("fit", "epochs", 0),
        ("fit", "optimizer", "sgd"),
        ("loss", "sigma", -1.0),
        ("loss", "sigma", "fitted"),
        ("loss", "sigma", float("nan")),
        ("loss", "sigma", float("inf")),
        ("loss", "sparsity", float("inf")),
        ("loss", "kl_weight", 0.0),
        ("scorer", "draws", 12),
        ("data", "validation_fraction", 0.9),
        ("model", "latent_size", "many"),
        ("preprocessing", "cutouts", []),
        ("preprocessing", "stamp_size", 5),
    ],
)
def test_a_bad_value_is_refused_with_its_key(section, key, value):
    with pytest.raises(ConfigError) as error:
        build_recipe({section: {key: value}})
    assert section in str(error.value)
    assert key in str(error.value)


def test_a_section_that_is_no_table_is_refused():
    with pytest.raises(ConfigError, match="'fit'"):
        parse_recipe("fit = 3", name="r")


def test_text_that_is_not_toml_is_refused():
    with pytest.raises(ConfigError, match="is not TOML"):
        parse_recipe("[fit\nepochs = 3", name="r")


def test_a_recipe_that_is_nowhere_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match="neither a file nor one of iwae, paper, quick, scae"):
        load_recipe("no-such-recipe")


def test_a_recipe_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(str(path))


def test_two_recipes_share_nothing_that_can_change():
    recipe = load_recipe("quick")
    with pytest.raises(ValueError, match="frozen"):
        recipe.fit.epochs = 1


@pytest.mark.parametrize(
    ("section", "content", "named"),
    [
        ("loss", {"objective": "geco"}, "loss.tolerance"),
        ("loss", {"tolerance": 0.01}, "loss.objective"),
        ("loss", {"objective": "geco", "tolerance": 0.01, "sigma": 1.0}, "loss.sigma"),
        ("loss", {"objective": "iwae", "kl_weight": 0.3}, "loss.kl_weight"),
        ("loss", {"anneal": "linear"}, "loss.anneal_epochs"),
        ("model", {"linear_start": "pca"}, "model.linear_skip"),
    ],
)
def test_keys_that_do_not_go_together_are_refused_by_name(section, content, named):
    with pytest.raises(ConfigError, match=named):
        build_recipe({section: content})


def test_a_sparse_autoencoder_takes_no_kl_weight_and_no_prior():
    with pytest.raises(ConfigError, match=r"loss.kl_weight mean nothing to model.kind = 'scae'"):
        build_recipe({"model": {"kind": "scae"}, "loss": {"kl_weight": 0.3}})
    with pytest.raises(ConfigError, match=r"model.prior"):
        build_recipe({"model": {"kind": "scae", "prior": "vamp"}})


def test_a_recipe_that_comes_back_from_a_release_is_the_same():
    for name in recipe_names():
        recipe = load_recipe(name)
        assert build_recipe(recipe.model_dump(mode="json")) == recipe
