"""The gates between a retrained release and the stream."""

import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning.compare import look
from stream_vae.learning.gates import LEAST_STAMPS, FrozenSet, Gate, judge, verdict_of
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore

from releases import make_release


@pytest.fixture
def store(tmp_path):
    return ReleaseStore(str(tmp_path / "store"))


@pytest.fixture
def release(store, tmp_path):
    return store.load(make_release(store, tmp_path / "one").id)


def frozen(count=300, seed=1, **options):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count).astype(np.int8)
    stamps = random.uniform(-1, 1, (count, 21, 21, 1)).astype(np.float32)
    stamps[labels == 1, 10, 10] += 3.0
    return FrozenSet("held out", stamps, labels, **options)


def gate(outcome):
    return Gate(f"a {outcome} one", outcome, 1.0, 1.0, None, None, 0.0, "because")


def named(verdict, name):
    (found,) = (each for each in verdict.gates if each.name == name)
    return found


@pytest.mark.parametrize(
    ("outcomes", "decision"),
    [
        (("passed", "passed"), "promote"),
        (("passed", "not_judged"), "promote"),
        (("passed", "undecided"), "shadow"),
        (("passed", "failed"), "reject"),
        (("undecided", "failed"), "reject"),
    ],
)
def test_any_failure_rejects_and_anything_undecided_asks_for_a_trial(outcomes, decision):
    verdict = verdict_of([gate(outcome) for outcome in outcomes])
    assert verdict.decision == decision
    blamed = {"reject": "failed", "shadow": "undecided"}.get(decision)
    assert len(verdict.reasons) == (outcomes.count(blamed) if blamed else 1)


def test_a_release_is_not_inferior_to_itself(release):
    verdict = judge(release, release, [frozen()])
    assert named(verdict, "AUC, held out").outcome == "passed"
    assert named(verdict, "AUC, held out").low == named(verdict, "AUC, held out").high == 0.0
    assert verdict.decision in ("promote", "reject")  # the latency of both is a race between equals
    assert {each.name for each in verdict.gates if each.outcome == "failed"} <= {"latency in microseconds"}


def test_what_cannot_be_measured_is_said_and_passes_no_gate(release):
    verdict = judge(release, release, [frozen()])
    for name in ("ELBO in nats, held out", "squared error, held out"):  # these releases have no decoder
        assert named(verdict, name).outcome == "not_judged"
        assert "decoder" in named(verdict, name).reason
    unlabelled = frozen()
    unlabelled.labels[:] = -1
    assert named(judge(release, release, [unlabelled]), "AUC, held out").outcome == "not_judged"


def as_scored_by(release, count=300):
    """Stamps whose truth is what this release says: no other can be as good."""
    plain = frozen(count)
    score = look(release, plain.stamps).real_score
    return FrozenSet("held out", plain.stamps, (score > np.median(score)).astype(np.int8))


def test_a_worse_scorer_is_rejected_with_both_figures(store, tmp_path, release):
    other = store.load(make_release(store, tmp_path / "other", seed=3, promote=False).id)
    verdict = judge(other, release, [as_scored_by(release)])
    auc = named(verdict, "AUC, held out")
    assert (verdict.decision, auc.outcome, auc.incumbent) == ("reject", "failed", 1.0)
    assert auc.high < auc.limit < 0
    assert any(f"{auc.challenger:.4g} against 1" in reason for reason in verdict.reasons)
    better = named(judge(release, other, [as_scored_by(release)]), "AUC, held out")
    assert (better.outcome, better.challenger) == ("passed", 1.0)


def test_few_stamps_leave_it_undecided_which_of_two_scorers_is_better(store, tmp_path, release):
    other = store.load(make_release(store, tmp_path / "other", seed=3, promote=False).id)
    few = frozen(LEAST_STAMPS)
    gates = [named(judge(*pair, [few]), "AUC, held out") for pair in ((other, release), (release, other))]
    assert "undecided" in [each.outcome for each in gates]
    assert "passed" in [each.outcome for each in gates] or all(each.low < each.limit < each.high for each in gates)


def test_codes_that_are_not_finite_are_rejected_and_nothing_else_is_looked_at(store, tmp_path, release):
    folder = tmp_path / "broken"
    card = make_release(store, folder, seed=4, promote=False)
    broken = store.load(card.id)
    stamps = frozen()
    stamps.stamps[5] = np.nan
    verdict = judge(Release(broken.card, broken.folder), release, [stamps])
    assert verdict.decision == "reject"
    assert "not finite" in verdict.reasons[0]
    assert [each.name for each in verdict.gates] == ["finite, held out", "latency in microseconds"]


def test_labels_that_only_rank_say_nothing_of_rates(release):
    names = [each.name for each in judge(release, release, [frozen(1000), frozen(1000, ranked=True)]).gates]
    assert names.count("AUC, held out") == 2
    assert names.count("calibration error, held out") == 1


def test_a_set_that_is_too_small_is_named(release):
    with pytest.raises(ConfigError, match=f"at least {LEAST_STAMPS}"):
        judge(release, release, [frozen(10)])
    small = FrozenSet("recent", *(column[:10] for column in (frozen().stamps, frozen().labels)))
    assert named(judge(release, release, [frozen(), small]), "all, recent").outcome == "not_judged"


def test_a_verdict_is_plain_values_for_a_card(release):
    document = judge(release, release, [frozen()]).document()
    assert set(document) == {"decision", "reasons", "gates"}
    assert all(isinstance(each["passed"], bool) for each in document["gates"])
