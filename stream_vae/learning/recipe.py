"""What a training run is made of: a `Recipe`, read from TOML and checked before anything starts.

Some come with the package (``recipes/*.toml``): `quick` for a demo, `survey` to use, `paper` to do what the paper
did, `scae` for its sparse autoencoder, `iwae` and `triplet` for what it left to the future. Everything has a default,
so a recipe says only where it differs.
"""

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stream_vae.errors import ConfigError
from stream_vae.model.release import Preprocessing

MIN_STAMP_SIZE = 9


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSection(_Section):
    """Which stamps to train on, and how to part them."""

    simulated_stamps: int = Field(default=6000, ge=64)
    """How many to simulate when the data are `sim`, or when the scorer has no labels of its own."""
    add_simulated: int = Field(default=0, ge=0)
    """So many labelled simulated stamps join the training part of other data than `sim`; never validation or test."""
    fading: float = Field(default=0.0, ge=0.0, le=0.9)
    """Share of simulated sources that are fainter than in the template, whose peaks are negative: some where a survey
    cuts these from science minus template, as LSST does; none where it turns them positive, as ZTF does."""
    max_stamps: int | None = Field(default=None, ge=64)
    """A larger set is thinned at random to this many. Memory needs no bound: a large set is spooled to disk."""
    min_stamps: int = Field(default=64, ge=16)
    """Fewer usable stamps than this are refused."""
    validation_fraction: float = Field(default=0.15, gt=0.0, lt=0.5)
    test_fraction: float = Field(default=0.15, gt=0.0, lt=0.5)
    augment: bool = True
    """Turn and mirror stamps at random while fitting."""


class ModelSection(_Section):
    """Which model, and its sizes."""

    kind: Literal["cvae", "scae"] = "cvae"
    """The paper's VAE, or the sparse autoencoder that it compares with."""
    latent_size: int = Field(default=21, ge=2, le=256)
    filters: int = Field(default=32, ge=4, le=256)
    linear_skip: bool = False
    """Linear paths from pixels to the mean code, and from the code to pixels."""
    linear_start: Literal["random", "pca"] = "random"
    """Where these begin: `pca` at the principal components of the training stamps and their mirror images."""
    prior: Literal["normal", "vamp"] = "normal"
    """Of the codes: standard normal, or a learned mixture (VampPrior)."""
    pseudo_inputs: int = Field(default=100, ge=2, le=4096)
    """Components of a learned prior."""

    @model_validator(mode="after")
    def _has_what_it_starts(self) -> "ModelSection":
        if self.linear_start != "random" and not self.linear_skip:
            raise ValueError("model.linear_start needs model.linear_skip = true")
        return self


class LossSection(_Section):
    """What is minimised, and its schedule."""

    objective: Literal["elbo", "geco", "iwae"] = "elbo"
    """The bound; the least KL at a `tolerance` of reconstruction; the bound of several `importance_samples`."""
    sigma: float | Literal["analytic"] = "analytic"
    """The decoder's standard deviation per pixel of a normalised stamp, or fitted (sigma-VAE)."""
    kl_weight: float = Field(default=1.0, gt=0.0, le=10.0)
    anneal: Literal["none", "linear", "sigmoid", "cyclical"] = "none"
    anneal_epochs: int = Field(default=0, ge=0)
    cycles: int = Field(default=4, ge=1, le=100)
    """Of cyclical annealing, within `anneal_epochs`."""
    tolerance: float | None = Field(default=None, gt=0.0)
    """`geco`: the mean squared error of a pixel that is aimed at."""
    importance_samples: int = Field(default=8, ge=1, le=1000)
    """`iwae`: draws a stamp; fitting takes about as many times as long."""
    noise_map: bool = False
    """Weigh each pixel by its own noise, where the stamps bring it."""
    label_weight: float = Field(default=0.0, ge=0.0, le=1e4)
    """Nats of a labelled stamp's cross-entropy in the loss; 0 learns without labels."""
    sparsity: float = Field(default=0.005, ge=0.0)
    """`scae`: weight of the code's l1 norm."""

    @field_validator("sigma")
    @classmethod
    def _positive(cls, sigma: float | str) -> float | str:
        if not isinstance(sigma, str) and sigma <= 0:
            raise ValueError("must be above zero, or 'analytic'")
        return sigma

    @model_validator(mode="after")
    def _go_together(self) -> "LossSection":
        if (self.objective == "geco") != (self.tolerance is not None):
            raise ValueError("loss.tolerance belongs to loss.objective = 'geco', which needs it")
        if self.objective == "geco" and (self.noise_map or self.sigma != "analytic"):
            raise ValueError(
                "loss.objective = 'geco' sets the variance itself: leave loss.sigma and loss.noise_map out"
            )
        if self.objective != "elbo" and (self.kl_weight != 1.0 or self.anneal != "none"):
            raise ValueError("loss.kl_weight and loss.anneal belong to loss.objective = 'elbo'")
        if self.anneal != "none" and self.anneal_epochs == 0:
            raise ValueError("loss.anneal needs loss.anneal_epochs: over how many epochs the weight rises")
        return self


class FitSection(_Section):
    """The optimiser and when to stop."""

    optimizer: Literal["adam", "nadam"] = "nadam"
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    decay: Literal["none", "cosine"] = "cosine"
    batch_size: int = Field(default=128, ge=8, le=8192)
    epochs: int = Field(default=60, ge=1)
    patience: int = Field(default=10, ge=1)
    """Epochs without a better validation loss before training stops."""


class ScorerSection(_Section):
    """The classifier on the latent code."""

    hidden: int = Field(default=32, ge=2, le=1024)
    draws: Literal[8, 16, 32, 64, 128] = 32
    """Points at which the expectation over the posterior is taken (half of them mirror the others)."""
    epochs: int = Field(default=60, ge=1)
    patience: int = Field(default=8, ge=1)
    positive_unlabelled: bool = False
    """Learn from real stamps against unlabelled ones, some of which are real too (see `prior`)."""
    prior: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Share of real ones among the unlabelled; absent: estimated."""

    @model_validator(mode="after")
    def _prior_is_of_unlabelled(self) -> Self:
        if self.prior is not None and not self.positive_unlabelled:
            raise ValueError("scorer.prior says something only with scorer.positive_unlabelled = true")
        return self


class RetrainSection(_Section):
    """How a fit goes on from a release that is served."""

    epochs: int = Field(default=12, ge=1)
    patience: int = Field(default=12, ge=1)
    """As long as the course: its first, steepest epochs lose what the last ones win back."""
    learning_rate: float = Field(default=5e-4, gt=0.0, le=1.0)
    distillation: float = Field(default=1.0, ge=0.0, le=1e4)
    """Nats charged for each nat by which a posterior diverges from the incumbent's, on stamps that it knows the like
    of; 0 lets codes drift."""


class Recipe(_Section):
    """Everything that decides a training run, apart from the data themselves."""

    name: str = Field(default="custom", pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Begins the ids of the releases that it makes."""
    description: str = ""
    seed: int = Field(default=1, ge=0, lt=2**31)
    data: DataSection = DataSection()
    preprocessing: Preprocessing = Preprocessing()
    """How alerts become stamps; goes into the release, where serving reads it."""
    model: ModelSection = ModelSection()
    loss: LossSection = LossSection()
    fit: FitSection = FitSection()
    scorer: ScorerSection = ScorerSection()
    retrain: RetrainSection = RetrainSection()

    @model_validator(mode="after")
    def _suits_the_model(self) -> "Recipe":
        # By value: a recipe that comes back from a release names every key.
        own = {key for key, value in self.loss if key != "sparsity" and value != LossSection.model_fields[key].default}
        if self.model.kind == "scae" and (own or self.model.prior != "normal"):
            named = ", ".join(sorted(f"loss.{key}" for key in own) or ["model.prior"])
            raise ValueError(f"{named} mean nothing to model.kind = 'scae', whose loss has loss.sparsity alone")
        return self

    @field_validator("preprocessing")
    @classmethod
    def _large_enough(cls, preprocessing: Preprocessing) -> Preprocessing:
        if preprocessing.stamp_size < MIN_STAMP_SIZE:
            raise ValueError(f"stamp_size must be at least {MIN_STAMP_SIZE}, or three halvings leave no image")
        return preprocessing


def recipe_names() -> list[str]:
    """List the recipes that come with the package.

    Returns
    -------
    list of str
        Names that `load_recipe` takes.
    """
    folder = resources.files("stream_vae.learning") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe by the name of one that comes with the package, or from a TOML file.

    Parameters
    ----------
    name_or_path : str
        One of `recipe_names`, or the path of a file.

    Returns
    -------
    Recipe
        Checked; its name is the file's unless the file says otherwise.

    Raises
    ------
    ConfigError
        If there is no such recipe, or it does not parse, or holds an unknown key or a bad value.
    """
    if name_or_path in recipe_names():
        text = (resources.files("stream_vae.learning") / "recipes" / f"{name_or_path}.toml").read_text("utf-8")
        return parse_recipe(text, name=name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"There is no recipe {name_or_path!r}: neither a file nor one of {', '.join(recipe_names())}.",
            remedy="Name one of these, or give the path of a .toml file.",
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The recipe {path} cannot be read: {error}.", remedy="Give a readable UTF-8 file."
        ) from error
    return parse_recipe(text, name=path.stem)


def parse_recipe(text: str, *, name: str) -> Recipe:
    """Check a recipe's TOML.

    Parameters
    ----------
    text : str
        The TOML.
    name : str
        The recipe's name if the text gives none.

    Returns
    -------
    Recipe
        Checked.

    Raises
    ------
    ConfigError
        Names every offending key, and the known ones where a key is unknown.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The recipe {name!r} is not TOML: {error}.", remedy="Mend the line it names.") from error
    return build_recipe({"name": name, **content})


def build_recipe(content: Mapping[str, Any]) -> Recipe:
    """Check a recipe given as nested mappings.

    Parameters
    ----------
    content : mapping
        Sections and their keys.

    Returns
    -------
    Recipe
        Checked.

    Raises
    ------
    ConfigError
        Names every offending key, and the known ones where a key is unknown.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_explain(problem) for problem in error.errors())
        raise ConfigError(
            f"The recipe {content.get('name', 'custom')!r} is wrong: {problems}.", remedy="Mend these keys."
        ) from error


def _explain(problem: Mapping[str, Any]) -> str:
    # A union's branches appear in the location after the key; what is no field name is no part of the key.
    where = [str(part) for part in problem["loc"]]
    key = ".".join(where[:2])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(where[:-1])
        return f"unknown key {key!r} (known: {', '.join(known)})"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if (where[-1:] in (["loss"], ["model"]) and problem["type"] == "value_error") or not where:
        return message  # of keys that do not go together, which it names
    return f"{key!r}: {message}, not {problem['input']!r}"


def _known_keys(section: list[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for name in section:
        model = cast("type[BaseModel]", model.model_fields[name].annotation)
    return sorted(model.model_fields)
