"""Whether a retrained release may take the incumbent's place: gates on frozen sets, and a verdict with its reasons.

Both are held against the same stamps, which no training sees. A gate asks that the challenger be *not inferior*: where
a figure has an interval (95%, paired bootstrap), the whole interval has to lie within the margin. If it lies outside,
the gate has failed; if it straddles the margin the stamps do not tell, and the gate is undecided. Any failure rejects;
anything undecided asks for a look at the live stream first.

References
----------
Efron & Tibshirani 1993, chapter 13 (percentile intervals of paired differences).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning import measures
from stream_vae.learning.compare import View, look
from stream_vae.learning.data.stamps import BOGUS, REAL
from stream_vae.learning.representation import sampled
from stream_vae.model.reconstruct import DECODER, Reconstructor
from stream_vae.model.release import Release
from stream_vae.stages.encode import Encoder
from stream_vae.stages.score import Scorer

Array = NDArray[np.float32]
Outcome = Literal["passed", "undecided", "failed", "not_judged"]
Decision = Literal["promote", "shadow", "reject"]

ERROR_MARGIN = 0.02
"""Share of the incumbent's squared error; likewise in the bound, which has half a nat a pixel for each e-fold of it."""
AUC_MARGIN = 0.01
MDR_MARGIN = 0.05
CALIBRATION_MARGIN = 0.03
UNITS_SHARE = 0.9
INFORMATION_SHARE = 0.9
LEAST_INFORMATION_NATS = 1.0
"""A code with less is collapsed, whatever the incumbent's had."""
LATENCY_SHARE = 1.5
LATENCY_US = 20.0
"""An eighth of what an alert costs at least: so much more is let pass in any case."""
LEAST_STAMPS = 64
LEAST_OF_A_CLASS = 20
LEAST_FOR_RATES = 100
"""Stamps of each class."""
_TIMED_STAMPS, _TIMES = 256, 40


@dataclass(frozen=True)
class FrozenSet:
    """Stamps that releases are judged on and never trained on.

    Parameters
    ----------
    name : str
        `recent`, `uniform`, `simulated` and so on.
    stamps : ndarray, shape (n, size, size, channels)
        Scaled.
    labels : ndarray of int8, shape (n,)
        1 real, 0 bogus, -1 unknown.
    natural : bool
        Of the survey itself: reconstruction is judged on these only.
    ranked : bool
        Labels only rank: 0 stands for anything that is not known to be real, so that neither a rate nor a frequency
        can be told from them. A larger AUC is better all the same (it falls short of the true one in proportion).
    """

    name: str
    stamps: Array
    labels: NDArray[np.int8]
    natural: bool = True
    ranked: bool = False


@dataclass(frozen=True)
class Gate:
    """One figure of both releases, and whether the challenger's will do."""

    name: str
    """What is measured, and on which set."""
    outcome: Outcome
    challenger: float | None
    incumbent: float | None
    low: float | None
    high: float | None
    """Of the difference, challenger minus incumbent; None where there is no interval."""
    limit: float | None
    """Of the difference, or of the challenger's own figure: the reason says which."""
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What the gates say together."""

    decision: Decision
    reasons: tuple[str, ...]
    """Of what failed, else of what is undecided, else one line for all."""
    gates: tuple[Gate, ...]

    def document(self) -> dict[str, Any]:
        """Give plain values, for a release's card.

        Returns
        -------
        dict
            `decision`, `reasons` and `gates`.
        """
        gates = [asdict(gate) | {"passed": gate.outcome == "passed"} for gate in self.gates]
        return {"decision": self.decision, "reasons": list(self.reasons), "gates": gates}


@dataclass(frozen=True)
class _Seen:
    """What one release makes of one set."""

    view: View
    elbo: NDArray[np.float64] | None
    """(n,) nats; None without a posterior or a decoder."""
    pixels: int
    """Of a stamp, over all channels."""


def judge(challenger: Release, incumbent: Release, sets: Sequence[FrozenSet]) -> Verdict:
    """Hold a challenger against the incumbent.

    Parameters
    ----------
    challenger, incumbent : Release
        That prepare stamps alike.
    sets : sequence of FrozenSet
        At least one that is natural, of at least `LEAST_STAMPS`.

    Returns
    -------
    Verdict
        With every gate.

    Raises
    ------
    ConfigError
        If there is nothing to judge by.
    """
    natural = [each for each in sets if each.natural and len(each.stamps) >= LEAST_STAMPS]
    if not natural:
        raise ConfigError(
            f"No set of at least {LEAST_STAMPS} held-out stamps is there to judge a release by.",
            remedy="Let the workers score more alerts first.",
        )
    gates: list[Gate] = []
    for each in sets:
        if len(each.stamps) < LEAST_STAMPS:
            gates.append(_not_judged(f"all, {each.name}", f"{len(each.stamps)} stamps are too few"))
            continue
        new, old = _see(challenger, each.stamps), _see(incumbent, each.stamps)
        gates.append(_finite(each.name, new.view))
        if gates[-1].outcome == "failed":
            break  # no other figure means anything
        if each.natural:
            gates += _of_the_model(each.name, new, old)
        gates += _of_the_score(each, new.view, old.view)
    gates.append(_latency(challenger, incumbent, natural[0].stamps))
    return verdict_of(gates)


def verdict_of(gates: Sequence[Gate]) -> Verdict:
    """Decide.

    Parameters
    ----------
    gates : sequence of Gate
        All.

    Returns
    -------
    Verdict
        Rejected if any failed, to be looked at if any is undecided, else to be promoted.
    """
    failed = tuple(f"{gate.name}: {gate.reason}" for gate in gates if gate.outcome == "failed")
    undecided = tuple(f"{gate.name}: {gate.reason}" for gate in gates if gate.outcome == "undecided")
    if failed:
        return Verdict("reject", failed, tuple(gates))
    if undecided:
        return Verdict("shadow", undecided, tuple(gates))
    passed = sum(gate.outcome == "passed" for gate in gates)
    return Verdict("promote", (f"all {passed} gates passed",), tuple(gates))


def _see(release: Release, stamps: Array) -> _Seen:
    view, pixels = look(release, stamps), stamps[0].size
    variance = (release.card.metrics.get("reconstruction") or {}).get("decoder_variance")
    if variance is None or not release.path(DECODER) or not np.isfinite(view.z_mean).all():
        return _Seen(view, None, pixels)
    if not (view.z_log_var > -19.0).any():  # the code of an autoencoder is a point
        return _Seen(view, None, pixels)
    decoder = Reconstructor(release)
    codes = sampled(view.z_mean, view.z_log_var, seed=1)
    error = np.empty(len(stamps))
    for start in range(0, len(stamps), 1024):
        some = slice(start, start + 1024)
        error[some] = np.square(decoder.reconstruct(codes[some]) - stamps[some]).sum(axis=(1, 2, 3))
    likelihood = error / (2.0 * variance) + 0.5 * pixels * np.log(2.0 * np.pi * variance)
    log_var = view.z_log_var.astype(np.float64)
    kl = 0.5 * (np.exp(log_var) + np.square(view.z_mean, dtype=np.float64) - 1.0 - log_var).sum(axis=1)
    return _Seen(view, -likelihood - kl, pixels)


def _not_judged(name: str, reason: str) -> Gate:
    return Gate(name, "not_judged", None, None, None, None, None, reason)


def _finite(on: str, view: View) -> Gate:
    broken = int((~np.isfinite(view.z_mean).all(axis=1)).sum())
    broken += int((~np.isfinite(view.real_score)).sum()) if np.isfinite(view.real_score).any() else 0
    reason = f"{broken} codes or scores are not finite" if broken else "all codes and scores are finite"
    return Gate(f"finite, {on}", "failed" if broken else "passed", float(broken), None, None, None, 0.0, reason)


def _of_the_model(on: str, new: _Seen, old: _Seen) -> Iterator[Gate]:
    if new.elbo is not None and old.elbo is not None:
        margin = 0.5 * ERROR_MARGIN * new.pixels
        yield _compared(f"ELBO in nats, {on}", _mean_of, new.elbo, old.elbo, limit=-margin)
    else:
        yield _not_judged(f"ELBO in nats, {on}", "a release has no posterior, decoder or decoder variance")
    if new.view.squared_error is not None and old.view.squared_error is not None:
        margin = ERROR_MARGIN * float(old.view.squared_error.mean())
        errors = new.view.squared_error, old.view.squared_error
        yield _compared(f"squared error, {on}", _mean_of, *errors, limit=margin)
    else:
        yield _not_judged(f"squared error, {on}", "a release has no decoder.onnx")
    ours, theirs = (measures.active_units(seen.view.z_mean) for seen in (new, old))
    yield _at_least(f"active units, {on}", ours, theirs, floor=max(1.0, UNITS_SHARE * theirs))
    informed = [measures.mutual_information(seen.view.z_mean, seen.view.z_log_var)[0] for seen in (new, old)]
    floor = max(LEAST_INFORMATION_NATS, INFORMATION_SHARE * informed[1])
    yield _at_least(f"mutual information in nats, {on}", *informed, floor=floor)


def _of_the_score(each: FrozenSet, new: View, old: View) -> Iterator[Gate]:
    known = (each.labels == REAL) | (each.labels == BOGUS)
    real = each.labels[known] == REAL
    few = min(int(real.sum()), int((~real).sum()))
    if few < LEAST_OF_A_CLASS:
        if each.natural:
            yield _not_judged(f"AUC, {each.name}", f"it has {few} labels of one class; {LEAST_OF_A_CLASS} are needed")
        return
    scores = new.real_score[known], old.real_score[known]
    if not all(np.isfinite(score).all() for score in scores):
        yield _not_judged(f"AUC, {each.name}", "a release has no scorer")
        return
    strata = real.astype(np.int8)
    yield _compared(f"AUC, {each.name}", measures.roc_auc, *scores, real, limit=-AUC_MARGIN, strata=strata)
    if few >= LEAST_FOR_RATES and not each.ranked:
        name = f"missed at 1% false positives, {each.name}"
        yield _compared(name, measures.missed_detection_rate, *scores, real, limit=MDR_MARGIN, strata=strata)
        yield _compared(
            f"calibration error, {each.name}",
            measures.expected_calibration_error,
            *scores,
            real,
            limit=CALIBRATION_MARGIN,
            strata=strata,
        )


def _mean_of(values: NDArray[Any]) -> float:
    return float(values.mean())


def _compared(
    name: str,
    statistic: Callable[..., float],
    new: NDArray[Any],
    old: NDArray[Any],
    *shared: NDArray[Any],
    limit: float,
    strata: NDArray[np.int8] | None = None,
) -> Gate:
    """A limit below zero is the lowest difference that will do, one above the highest."""
    difference = measures.paired_bootstrap(statistic, new, old, *shared, strata=strata, draws=400)
    low, high = difference.low, difference.high
    if limit < 0:
        passed, failed, sign = low >= limit, high < limit, ">="
    else:
        passed, failed, sign = high <= limit, low > limit, "<="
    outcome: Outcome = "passed" if passed else "failed" if failed else "undecided"
    values = statistic(new, *shared), statistic(old, *shared)
    reason = (
        f"{values[0]:.4g} against {values[1]:.4g}, difference {difference.value:+.3g} ({low:+.3g} to {high:+.3g}), "
        f"wanted {sign} {limit:+.3g}"
    )
    return Gate(name, outcome, values[0], values[1], low, high, limit, reason)


def _at_least(name: str, new: float, old: float, *, floor: float) -> Gate:
    reason = f"{new:.4g} against {old:.4g}, wanted at least {floor:.4g}"
    return Gate(name, "passed" if new >= floor else "failed", float(new), float(old), None, None, floor, reason)


def _latency(challenger: Release, incumbent: Release, stamps: Array) -> Gate:
    """Time both in turns, by this thread's own clock; the least of several is what the machine can do undisturbed."""
    some = np.ascontiguousarray(stamps[:_TIMED_STAMPS])
    parts = [(Encoder(release), Scorer(release)) for release in (challenger, incumbent)]
    best = [np.inf, np.inf]
    for _ in range(_TIMES):
        for which, (encoder, scorer) in enumerate(parts):
            began = time.thread_time()
            scorer.score(encoder.run(some))
            best[which] = min(best[which], time.thread_time() - began)
    ours, theirs = (1e6 * seconds / len(some) for seconds in best)
    limit = max(LATENCY_SHARE * theirs, theirs + LATENCY_US)
    reason = f"{ours:.3g} us a stamp against {theirs:.3g}, wanted at most {limit:.3g}"
    outcome: Outcome = "passed" if ours <= limit else "failed"
    return Gate("latency in microseconds", outcome, ours, theirs, None, None, limit, reason)
