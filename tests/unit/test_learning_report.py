"""The report: hand-made studies give known numbers, the page needs nothing else, what is not known is left out."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning import merits
from stream_vae.learning.merits import judge, predicted_active_units
from stream_vae.learning.report import latent, paper, write_evaluation, write_report
from stream_vae.learning.report.numbers import look_up, numbers, plain, summary_table, verdicts
from stream_vae.learning.report.page import Picture, render, text
from stream_vae.learning.report.style import new_figure, short, styles
from stream_vae.learning.resample import LEAST_GROUPS, resample
from stream_vae.learning.study import ModelView, Study, measure

RANDOM = np.random.default_rng(5)
COUNT, SIDE = 240, 9
HISTORY = {
    key: [3.0, 2.0, 1.5] for name in ("loss", "elbo", "reconstruction_loss", "kl_loss") for key in (name, f"val_{name}")
}


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer draws than a report takes: the ways are the same."""
    patch = pytest.MonkeyPatch()
    patch.setattr(merits, "COUNTS", (20, 50))
    patch.setattr(merits, "LABEL_DRAWS", 2)
    patch.setattr(merits, "FOUND", 20)
    patch.setattr(merits, "SEEDS", 30)
    patch.setattr(merits, "IWAE_STAMPS", 20)
    yield
    patch.undo()


def _stamps():
    labels = (np.arange(COUNT) % 2).astype(np.int8)
    peak = np.exp(-0.5 * np.square(np.arange(SIDE) - SIDE // 2) / 2.0)
    stamps = 0.1 * RANDOM.normal(size=(COUNT, SIDE, SIDE, 1))
    stamps += (
        np.where(labels == 1, RANDOM.uniform(0.3, 1.0, COUNT), 0.0)[:, None, None, None]
        * np.outer(peak, peak)[None, :, :, None]
    )
    return stamps.astype(np.float32), labels


def _linear(stamps, name, units, **more):
    flat = stamps.reshape(len(stamps), -1)
    _, _, directions = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    codes = (flat - flat.mean(axis=0)) @ directions[:units].T
    back = lambda z: (z @ directions[:units] + flat.mean(axis=0)).reshape(-1, SIDE, SIDE, 1).astype(np.float32)  # noqa: E731
    error = np.square(stamps - back(codes)).sum(axis=(1, 2, 3))
    return ModelView(name, codes.astype(np.float32), None, back(codes), error, error, decode=back, **more)


@pytest.fixture(scope="module")
def study():
    stamps, labels = _stamps()
    vae = replace(
        _linear(stamps, "survey-20261124-0123456789ab", 4, note="a release", variance=0.01),
        z_log_var=np.full((COUNT, 4), -4.0, np.float32),
        real_score=np.clip(0.5 * labels + RANDOM.uniform(0, 0.5, COUNT), 0, 1).astype(np.float32),
        history=HISTORY,
        prior_stamps=stamps[:16],
    )
    return Study(
        stamps,
        labels,
        (vae, _linear(stamps, "PCA-2", 2), ModelView("supervised CNN", real_score=vae.real_score)),
        fitted=np.arange(0, 100),
        judged=np.arange(100, COUNT),
        groups=(np.arange(COUNT) // 10).astype(np.int64),
        kinds=np.where(labels == 1, "transient", np.where(np.arange(COUNT) % 4 == 0, "trail", "dipole")),
        snr=RANDOM.uniform(5, 60, COUNT).astype(np.float32),
    )


@pytest.fixture(scope="module")
def evaluation(study):
    return judge(study)


@pytest.fixture(scope="module")
def written(evaluation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    metrics = write_evaluation(
        folder,
        evaluation,
        title="A <title>",
        headline={"release": "r"},
        provenance={"command": "stream-vae evaluate", "seed": "1"},
        warnings=["seen before"],
    )
    return folder, metrics


def test_the_page_refers_to_nothing_outside_of_itself(written):
    page = (written[0] / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", re.sub(r'"data:[^"]*"', "", page))
    assert "<script" not in page
    assert "A &lt;title&gt;" in page
    assert "seen before" in page


def test_every_figure_is_on_the_page_and_lies_beside_it_as_png_and_svg(written):
    folder, _ = written
    names = {
        "dnmse", "reconstructions", "roc", "cost", "collapse", "few_labels", "reliability", "breakdown", "latent_map",
        "prior_samples", "errors",
    }  # fmt: skip
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("png", "svg")
    }
    page = (folder / "report.html").read_text()
    assert set(re.findall(r'<h2 id="(\w+)"', page)) == names | {"provenance"}
    assert page.count("<img") == page.count("<figcaption>") == len(names)


def test_the_csv_holds_the_numbers_of_the_json(written):
    folder, metrics = written
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    with (folder / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    found = {(line["model"], line["measure"]): float(line["value"]) for line in lines}
    assert found == {(item.model, item.measure): item.value for item in numbers(metrics["models"])}
    auc = metrics["models"]["PCA-2"]["classifier"]["auc"]
    line = next(line for line in lines if (line["model"], line["measure"]) == ("PCA-2", "classifier.auc"))
    assert [float(line[key]) for key in ("value", "low_95", "high_95")] == [auc["value"], *auc["interval_95"]]
    assert len({(line["model"], line["measure"]) for line in lines}) == len(lines)


def test_the_numbers_are_those_of_the_arrays(study, evaluation):
    merit = evaluation.judgements[0].merits
    error = study.views[0].squared_error[study.judged]
    assert merit["reconstruction"]["squared_error"]["value"] == pytest.approx(error.mean())
    assert merit["latent"]["active_units"] == int((study.views[0].z_mean[study.judged].var(axis=0) > 0.01).sum())
    assert merit["own_score"]["auc"]["value"] == 1.0
    assert evaluation.judgements[2].merits["classifier"]["auc"]["value"] == 1.0
    difference = merit["minus_pca"]["squared_error"]["value"]
    assert difference == pytest.approx((error - study.views[1].squared_error[study.judged]).mean())
    assert (merit["own_score"]["real"], merit["own_score"]["bogus"]) == (70, 70)


def test_a_better_model_is_said_to_be_better_and_never_more_than_the_interval_allows(evaluation):
    looks = styles([item.view.name for item in evaluation.judgements])
    (sentence,) = [text for text in verdicts(evaluation, looks) if text.startswith("survey")]
    assert "better in reconstruction" in sentence
    item = replace(evaluation.judgements[0], merits={"minus_pca": {"auc": {"value": 0.1, "interval_95": [-0.1, 0.2]}}})
    (sentence,) = verdicts(replace(evaluation, judgements=(item,)), looks)
    assert sentence == "survey 0123, held against PCA: not to be told apart in classification."


def test_the_page_fits_a_phone_and_a_dark_screen(written):
    page = (written[0] / "report.html").read_text()
    assert '<meta name="viewport" content="width=device-width,initial-scale=1">' in page
    assert "prefers-color-scheme:dark" in page
    for kind in ("summary", "numbers"):
        tables = page.count(f'<table class="{kind}">')
        assert tables == page.count(f'<div class="wide"><table class="{kind}">') > 0


def test_what_stands_between_backticks_is_code_and_the_rest_is_escaped():
    assert text("give `labels` < 3") == "give <code>labels</code> &lt; 3"


def test_a_model_alone_is_not_the_best_of_anything(study, evaluation):
    alone = judge(replace(study, views=study.views[:1]))
    assert "<b>" not in summary_table(alone, styles([alone.judgements[0].view.name]))
    names = [item.view.name for item in evaluation.judgements]
    assert "<b>" in summary_table(evaluation, styles(names))


def test_what_is_missed_at_one_percent_is_in_brackets_where_no_bogus_stamp_would_pass(evaluation):
    assert not paper.tells_one_percent(evaluation.study.real(evaluation.labelled))
    names = [item.view.name for item in evaluation.judgements]
    merit = evaluation.judgements[0].merits["classifier"]["mdr_at_1pct_fpr"]
    assert f"({merit['value']:.3f}<br>" in summary_table(evaluation, styles(names))


def test_a_handful_of_labels_leaves_map_and_examples_to_all_stamps(study):
    labels = np.full(COUNT, -1, np.int8)
    labels[[120, 130, 141]] = [1, 0, 1]
    few = replace(study, labels=labels)
    assert len(latent.mapped(few)) > 100
    assert len(paper.examples(few, 12)) > 3
    assert not merits.searches_with_real(few)


def test_a_cost_of_one_epoch_is_drawn_as_a_point(study):
    once = replace(study.views[0], history={key: values[:1] for key, values in HISTORY.items()})
    figure = paper.draw_cost([once], styles([once.name]))
    assert {line.get_marker() for line in figure.axes[1].get_lines()} == {"o"}


def test_intervals_hold_their_value(evaluation):
    for item in evaluation.judgements:
        for number in numbers({item.view.name: plain(item.merits)}):
            # ECE is biased upwards in resamples, as every absolute deviation is.
            if number.low_95 is not None and not number.measure.endswith("ece"):
                assert number.low_95 - 0.02 <= number.value <= number.high_95 + 0.02, number.measure


def test_predicted_active_units_are_the_directions_above_sigma_squared_times_the_kl_weight():
    view = ModelView("a", z_mean=np.zeros((3, 4), np.float32), variance=0.5, kl_weight=2.0)
    assert predicted_active_units(np.array([3.0, 1.5, 0.9, 0.1]), view) == 2
    assert predicted_active_units(np.array([3.0] * 9), view) == 4


def test_without_labels_the_sections_go_and_a_sentence_stays(study, tmp_path):
    views = tuple(replace(view, real_score=None) for view in study.views[:2])
    bare = replace(study, labels=np.full(COUNT, -1, np.int8), views=views, kinds=None, snr=None)
    metrics = write_evaluation(tmp_path, judge(bare), title="t", headline={}, provenance={})
    assert set(metrics["missing"]) == {"classification", "breakdown"}
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert not names & {"roc", "few_labels", "reliability", "breakdown"}
    page = (tmp_path / "report.html").read_text()
    assert "No ROC, calibration or few-label curves" in page
    assert "No confusion by kind or S/N" in page


def test_with_nothing_to_fit_on_only_the_models_own_scores_are_shown(study):
    found = judge(replace(study, fitted=np.arange(0), views=study.views[:2]))
    assert "probes" in found.missing
    assert "own_score" in found.judgements[0].merits
    assert "classifier" not in found.judgements[0].merits
    assert found.judgements[1].score is None


def test_kinds_without_snr_still_give_a_breakdown(study):
    found = judge(replace(study, snr=None, views=study.views[:1]))
    rows = found.judgements[0].merits["classifier"]["by_kind"]
    assert {row["name"]: row["real"] for row in rows} == {"transient": True, "trail": False, "dipole": False}
    assert sum(row["stamps"] for row in rows) == 140
    assert "by_snr" not in found.judgements[0].merits["classifier"]


def test_a_study_that_cannot_be_judged_is_refused(study):
    with pytest.raises(ConfigError, match="too few to judge"):
        judge(replace(study, judged=np.arange(1)))
    with pytest.raises(ConfigError, match="Two models have one name"):
        judge(replace(study, views=(study.views[0], study.views[0])))


def test_images_are_drawn_whole_where_there_are_enough():
    groups = np.repeat(np.arange(LEAST_GROUPS), 5)
    samples = resample(groups, np.zeros(len(groups), np.int8), draws=20)
    assert samples.unit == "images"
    for rows in samples.rows:
        assert (np.bincount(groups[rows], minlength=LEAST_GROUPS) % 5 == 0).all()
    few = resample(groups[:25], np.repeat([0, 1], [20, 5]).astype(np.int8), draws=20)
    assert few.unit == "stamps"
    assert all((rows >= 20).sum() == 5 for rows in few.rows)


def test_the_interval_of_a_mean_is_about_two_standard_errors():
    values = RANDOM.normal(size=400)
    merit = resample(None, np.zeros(400, np.int8), draws=400).mean(values)
    low, high = merit["interval_95"]
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.2)


def test_a_model_has_one_look_and_no_two_models_share_it():
    looks = styles(["survey-20261124-0123456789ab", "paper", "PCA-21", "SDL-21", "raw pixels", "supervised CNN"])
    assert len({look.colour for look in looks.values()}) == len(looks)
    assert styles(["PCA-21"])["PCA-21"].colour == looks["PCA-21"].colour
    assert short("survey-20261124-0123456789ab") == "survey 0123"


def test_a_figure_of_a_few_label_curve_is_found_by_its_number_of_labels():
    merits_ = {"few_labels": {"on_mean": [{"labels": 100, "auc": {"value": 0.9, "interval_95": [0.8, 1.0]}}]}}
    assert look_up(merits_, ("few_labels", "on_mean", "100"))["value"] == 0.9
    assert look_up(merits_, ("few_labels", "on_mean", "200")) is None


def test_the_training_report_is_one_page(study, tmp_path):
    whole = replace(study, judged=np.arange(COUNT), fitted=np.arange(0), views=study.views[:2])
    metrics = measure(whole)
    write_report(tmp_path, whole, metrics, title="Recipe x", history=HISTORY)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 6
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_the_same_figure_is_the_same_file(tmp_path):
    def draw():
        figure, axes = new_figure(1)
        axes[0, 0].plot([1, 2], [1, 2])
        return figure

    pages = [
        render("t", lead=(), pictures=[Picture("a", "A", "c", draw)], folder=tmp_path / name) for name in ("one", "two")
    ]
    assert pages[0] == pages[1]
    assert (tmp_path / "one" / "a.png").read_bytes() == (tmp_path / "two" / "a.png").read_bytes()
