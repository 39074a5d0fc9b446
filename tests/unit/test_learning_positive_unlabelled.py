"""A scorer from real and unlabelled stamps, against one that knows all labels and one that calls the rest bogus."""

from pathlib import Path

import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning import measures
from stream_vae.learning.classifier import Posterior, fit_scorer
from stream_vae.learning.positive_unlabelled import (
    NonNegativeRisk,
    calibrate_positive_unlabelled,
    check_labels,
    corrected_auc,
    estimate_prior,
    fit_positive_unlabelled,
    positive_unlabelled_loss,
)
from stream_vae.learning.recipe import ScorerSection, build_recipe
from stream_vae.learning.reference import principal_components
from stream_vae.model.backend import keras
from stream_vae.model.release import Preprocessing
from stream_vae.stages.stamp import normalise

PRIOR = 0.4
KNOWN = ScorerSection(hidden=16, draws=8, epochs=30, positive_unlabelled=True, prior=PRIOR)


def posterior(z_mean, real):
    return Posterior(z_mean.astype(np.float32), np.full(z_mean.shape, -3.0, np.float32), real)


def clouds(count, seed, *, real_share, distance=2.0):
    random = np.random.default_rng(seed)
    real = random.random(count) < real_share
    z_mean = random.normal(size=(count, 5))
    z_mean[:, 0] += distance * real
    return z_mean, real


def unlabelled_part(positives, unlabelled, seed, *, prior=PRIOR, distance=2.0):
    """Some real stamps and many unlabelled ones: as positive-unlabelled data, and with all labels."""
    known, _ = clouds(positives, seed, real_share=1.0, distance=distance)
    others, truth = clouds(unlabelled, seed + 1000, real_share=prior, distance=distance)
    codes = np.concatenate([known, others])
    return (
        posterior(codes, np.arange(len(codes)) < positives),
        posterior(codes, np.concatenate([np.ones(positives, np.bool_), truth])),
    )


@pytest.fixture(scope="module")
def toy():
    (train, train_truth), (held_out, held_out_truth) = unlabelled_part(300, 1500, 1), unlabelled_part(400, 1500, 2)
    supervised = fit_scorer(
        train_truth, Posterior(*(column[400:] for column in vars(held_out_truth).values())), KNOWN, seed=1
    )
    return {
        "parts": (train, held_out),
        "test": posterior(*clouds(4000, 3, real_share=PRIOR)),
        "supervised": supervised,
        "naive": fit_scorer(train, held_out, KNOWN, seed=1),
        "unlabelled": fit_positive_unlabelled(train, held_out, KNOWN, seed=1),
    }


def judged(scorer, test):
    score, _ = scorer.score(test.z_mean, test.z_log_var)
    return measures.roc_auc(score, test.real), measures.expected_calibration_error(score, test.real), score.mean()


def test_it_parts_the_classes_nearly_as_well_as_one_that_knows_all_labels(toy):
    known, found = (judged(each, toy["test"])[0] for each in (toy["supervised"], toy["unlabelled"].scorer))
    assert found > known - 0.02


def test_its_scores_are_frequencies_where_those_of_the_naive_one_are_far_too_low(toy):
    _, error, mean = judged(toy["unlabelled"].scorer, toy["test"])
    _, naive_error, naive_mean = judged(toy["naive"], toy["test"])
    assert error < 0.08
    assert naive_error > 2 * error
    assert mean == pytest.approx(toy["test"].real.mean(), abs=0.05)
    assert naive_mean < toy["test"].real.mean() - 0.15


def test_the_same_seed_gives_the_same_scorer_and_another_seed_another(toy):
    train, held_out = toy["parts"]
    short = KNOWN.model_copy(update={"epochs": 2})
    first, again, other = (fit_positive_unlabelled(train, held_out, short, seed=seed).scorer for seed in (1, 1, 2))
    assert np.array_equal(first.hidden_weights, again.hidden_weights)
    assert first.output_bias == again.output_bias
    assert not np.array_equal(first.hidden_weights, other.hidden_weights)


def test_a_batch_whose_negative_part_is_negative_is_stepped_against():
    risk = NonNegativeRisk(0.5)
    target = np.array([[1.0], [1.0], [0.0], [0.0]], np.float32)
    overfitted = keras.ops.convert_to_tensor([[4.0], [4.0], [-4.0], [-4.0]])  # as if no unlabelled one were real
    softplus = np.log1p(np.exp([4.0, -4.0]))
    negative = (softplus[1] - 0.5 * softplus[0]) / 0.5
    assert negative < 0
    assert float(risk.call(target, overfitted)) == pytest.approx(-0.5 * negative, rel=1e-5)
    assert float(risk.corrected(target, overfitted)) == 1.0
    undecided = keras.ops.zeros((4, 1))
    assert float(risk.call(target, undecided)) == pytest.approx(np.log(2), rel=1e-5)
    assert float(risk.corrected(target, undecided)) == 0.0


def test_a_tolerance_lets_the_negative_part_fall_that_far():
    target = np.array([[1.0], [0.0]], np.float32)
    logits = keras.ops.convert_to_tensor([[4.0], [-4.0]])
    negative = (np.log1p(np.exp(-4.0)) - 0.5 * np.log1p(np.exp(4.0))) / 0.5
    assert float(NonNegativeRisk(0.5, beta=-negative + 0.1).corrected(target, logits)) == 0.0
    assert float(NonNegativeRisk(0.5, beta=-negative - 0.1).corrected(target, logits)) == 1.0


def test_the_correction_is_needed_where_the_network_can_learn_few_stamps_by_heart():
    train, held_out = unlabelled_part(20, 120, 5, distance=3.0)[0], unlabelled_part(20, 100, 6, distance=3.0)[0]
    section = ScorerSection(hidden=256, draws=8, epochs=30, patience=30, positive_unlabelled=True, prior=PRIOR)
    assert fit_positive_unlabelled(train, held_out, section, seed=1).corrected > 0.05


@pytest.mark.parametrize("prior", [0.1, 0.2, 0.4, 0.7])
def test_the_prior_of_a_known_mixture_is_found_and_rather_too_high_than_too_low(prior):
    random = np.random.default_rng(int(prior * 100))
    estimates = []
    for _ in range(20):
        real = random.normal(3.0, size=600)
        others = np.where(random.random(3000) < prior, random.normal(3.0, size=3000), random.normal(size=3000))
        estimates.append(estimate_prior(real, others))
    assert np.mean(estimates) == pytest.approx(prior, abs=0.06)
    assert np.mean(estimates) > prior - 0.02


def test_where_no_score_is_of_real_stamps_alone_the_prior_comes_out_too_high():
    random = np.random.default_rng(1)
    real = random.normal(0.5, size=2000)  # hardly parted from bogus: the known bias of the estimate
    others = np.where(random.random(8000) < 0.2, random.normal(0.5, size=8000), random.normal(size=8000))
    assert estimate_prior(real, others) > 0.4


def test_an_estimated_prior_is_said_to_be_one(toy):
    train, held_out = toy["parts"]
    found = fit_positive_unlabelled(train, held_out, KNOWN.model_copy(update={"prior": None}), seed=1)
    assert found.estimated
    assert PRIOR - 0.05 < found.prior < PRIOR + 0.2  # these clouds overlap, which makes it too high
    assert found.describe()["prior_estimated"]
    assert not toy["unlabelled"].estimated


def test_stamps_known_to_be_bogus_help(toy):
    """Where no unlabelled stamp says much, known artefacts do."""
    train, held_out = toy["parts"]
    bogus = posterior(*clouds(600, 9, real_share=0.0))
    found = fit_positive_unlabelled(train, held_out, KNOWN, bogus=bogus, seed=1)
    auc, error, _ = judged(found.scorer, toy["test"])
    assert auc > judged(toy["unlabelled"].scorer, toy["test"])[0] - 0.01
    assert error < 0.1  # still of a stamp like the unlabelled ones: known artefacts are no part of that mix


def test_the_loss_estimates_the_one_with_all_labels():
    random = np.random.default_rng(4)
    truth = random.random(200_000) < PRIOR
    score = np.clip(random.normal(0.35 + 0.3 * truth, 0.1), 0.01, 0.99)
    known = np.clip(random.normal(0.65, 0.1, 50_000), 0.01, 0.99)
    scores, labelled = np.concatenate([known, score]), np.arange(250_000) < 50_000
    full = -np.where(truth, np.log(score), np.log1p(-score)).mean()
    assert positive_unlabelled_loss(scores, labelled, PRIOR) == pytest.approx(full, rel=0.01)


def test_the_corrected_auc_is_that_of_real_against_bogus():
    random = np.random.default_rng(5)
    truth = random.random(60_000) < PRIOR
    score, known = random.normal(size=60_000) + truth, random.normal(1.0, size=60_000)
    against = measures.roc_auc(np.concatenate([known, score]), np.arange(120_000) < 60_000)
    assert corrected_auc(against, PRIOR) == pytest.approx(measures.roc_auc(score, truth), abs=0.005)


def test_calibration_brings_a_shifted_scorer_to_the_prior(toy):
    _, held_out = toy["parts"]
    found = toy["unlabelled"].scorer
    shifted = type(found)(*(*list(vars(found).values())[:3], found.output_bias + 3.0, found.offsets))
    mean = judged(calibrate_positive_unlabelled(shifted, held_out, PRIOR), toy["test"])[2]
    assert judged(shifted, toy["test"])[2] > mean + 0.1
    assert mean == pytest.approx(PRIOR, abs=0.06)


def test_perfectly_parted_kinds_do_not_lead_to_certainty():
    train, held_out = unlabelled_part(50, 200, 7, distance=30.0)[0], unlabelled_part(30, 100, 8, distance=30.0)[0]
    found = fit_positive_unlabelled(train, held_out, KNOWN, seed=1)
    score, _ = found.scorer.score(held_out.z_mean, held_out.z_log_var)
    assert 0.0 < score.min() < 0.1
    assert 0.9 < score.max() < 1.0


@pytest.mark.parametrize("counts", [(0, 100), (100, 0)])
def test_data_without_one_of_both_kinds_are_refused_with_what_to_do(counts):
    with pytest.raises(ConfigError, match=r"night.npz has .* needs both. Label real stamps 1 and unlabelled ones -1"):
        check_labels(*counts, "night.npz")


def test_a_handful_of_real_stamps_is_refused(toy):
    _, held_out = toy["parts"]
    few = unlabelled_part(3, 100, 1)[0]
    with pytest.raises(ConfigError, match="training part has 3 real and 100 unlabelled stamps; a scorer needs 5"):
        fit_positive_unlabelled(few, held_out, KNOWN, seed=1)


def test_a_prior_without_its_switch_is_refused():
    with pytest.raises(ConfigError, match=r"scorer.prior says something only with scorer.positive_unlabelled"):
        build_recipe({"scorer": {"prior": 0.2}})
    with pytest.raises(ConfigError, match=r"scorer.prior"):
        build_recipe({"scorer": {"prior": 1.0, "positive_unlabelled": True}})


def test_on_real_codes_it_is_calibrated_where_the_naive_one_is_not(alerts_dir: Path):
    """LCO stamps as 21 principal components: injected sources among real detections, 40% of the unlabelled."""
    with np.load(alerts_dir / "stamps" / "lco_pydia_21px.npz") as file:
        raw, real = file["stamps"], file["labels"] == 1
    stamps = normalise(raw[..., np.newaxis].astype(np.float32), Preprocessing())[0]
    mean, components = principal_components(stamps, 21)
    codes = (stamps.reshape(len(stamps), -1) - mean) @ components.T
    random = np.random.default_rng(1)
    bogus, injected = random.permutation(np.flatnonzero(~real)), random.permutation(np.flatnonzero(real))
    # Training, validation, test: bogus ones, and two real ones to every three of them; then the known real ones.
    cuts = [220, 300, 444]
    edges = zip([0, *cuts[:2]], cuts, strict=True)
    mixed = [np.concatenate([bogus[a:b], injected[a * 2 // 3 : b * 2 // 3]]) for a, b in edges]
    known = injected[300:600], injected[600:750]
    train, held_out = (
        posterior(codes[np.concatenate([some, rest])], np.arange(len(some) + len(rest)) < len(some))
        for some, rest in zip(known, mixed[:2], strict=True)
    )
    test = posterior(codes[mixed[2]], real[mixed[2]])
    section = KNOWN
    auc, error, average = judged(fit_positive_unlabelled(train, held_out, section, seed=1).scorer, test)
    naive_error = judged(fit_scorer(train, held_out, section, seed=1), test)[1]
    supervised = fit_scorer(
        posterior(codes[mixed[0]], real[mixed[0]]), posterior(codes[mixed[1]], real[mixed[1]]), section, seed=1
    )
    assert auc > judged(supervised, test)[0] - 0.03
    assert error < 0.75 * naive_error
    assert average == pytest.approx(PRIOR, abs=0.06)
