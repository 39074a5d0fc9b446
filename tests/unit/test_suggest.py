"""Which stamps to label next."""

import math
import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from scipy.special import digamma
from stream_vae.learning import suggest
from stream_vae.learning.suggestions import Suggestion, Suggestions
from stream_vae.tools.label_keys import ask, single_keys
from stream_vae.tools.label_sheet import panel_of, write_label_sheet
from stream_vae.tools.pictures import terminal_picture

RANDOM = 5


def codes(count=400, size=4):
    """Two classes that a plane parts, and posteriors of a tenth of their spread."""
    random = np.random.default_rng(RANDOM)
    z = random.standard_normal((count, size))
    return z, np.full((count, size), 2 * math.log(0.1)), z[:, 0] > 0


def test_a_coin_has_the_entropy_of_a_coin_and_what_every_draw_agrees_on_teaches_nothing():
    found = suggest.uncertainty(np.array([[0.5, 0.5], [0.0, 1.0], [1.0, 1.0]]))
    assert found.entropy == pytest.approx([math.log(2), math.log(2), 0.0], abs=1e-9)
    assert found.information == pytest.approx([0.0, math.log(2), 0.0], abs=1e-9)
    assert found.mean.tolist() == [0.5, 0.5, 1.0]


def test_moments_tell_the_information_of_a_beta_distribution():
    random = np.random.default_rng(RANDOM)
    shapes = [(0.5, 0.5), (2.0, 3.0), (8.0, 1.0), (40.0, 60.0)]
    draws = np.array([random.beta(a, b, 200_000) for a, b in shapes])
    told = suggest.from_moments(draws.mean(axis=1), draws.std(axis=1))
    sampled = suggest.uncertainty(draws)
    assert told.information == pytest.approx(sampled.information, abs=2e-3)
    assert told.entropy == pytest.approx(sampled.entropy, abs=1e-9)


def test_without_a_spread_or_a_score_there_is_no_information():
    told = suggest.from_moments(np.array([0.3, np.nan, 1.0, 0.5]), np.array([0.0, np.nan, 0.0, 0.5]))
    assert told.information[:3] == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert told.information[3] == pytest.approx(math.log(2), abs=1e-4)  # as wide as can be: all or nothing
    assert told.entropy[1] == pytest.approx(math.log(2))


def test_our_digamma_is_that_of_scipy():
    x = np.geomspace(1e-3, 1e6, 200)
    assert suggest._digamma(x) == pytest.approx(digamma(x), rel=1e-7, abs=1e-7)


def test_a_probe_is_the_penalised_maximum_and_surest_far_from_its_boundary():
    from sklearn.linear_model import LogisticRegression

    z, log_var, real = codes()
    probe = suggest.fit_probe(z, z[:60], real[:60])
    standard = (z - probe.center) / probe.spread
    usual = LogisticRegression(C=1.0, max_iter=1000, tol=1e-8).fit(standard[:60], real[:60])
    # The usual one does not hold its constant down at all, ours by a thousandth.
    assert probe.weights[:-1] == pytest.approx(usual.coef_[0], abs=2e-3)
    random = np.random.default_rng(RANDOM)
    weights = probe.draw(200, random)
    found = suggest.uncertainty(probe.probabilities(suggest.draw_codes(z, log_var, 200, random), weights))
    near, far = np.abs(z[:, 0]) < 0.1, np.abs(z[:, 0]) > 1.5
    assert found.entropy[near].min() > found.entropy[far].max()
    assert np.isfinite(probe.factor).all()
    assert np.allclose(weights.mean(axis=0), probe.weights, atol=0.5)


def test_classes_that_lie_apart_leave_the_weights_finite():
    z = np.array([[-100.0], [-90.0], [90.0], [100.0]])
    probe = suggest.fit_probe(z, z, np.array([False, False, True, True]))
    assert np.isfinite(probe.weights).all()
    assert probe.weights[0] > 0


def test_the_most_uncertain_comes_first_and_what_is_nearly_the_same_last():
    z = np.array([[0.0], [0.01], [5.0], [-5.0]])
    value = np.array([1.0, 0.99, 0.5, 0.4])
    assert suggest.choose(z, value, 3).tolist() == [0, 2, 3]
    assert suggest.choose(z, value, 9).tolist() == [0, 2, 3, 1]


def test_an_outlier_is_not_chosen_for_being_one():
    z = np.array([[0.0], [0.6], [100.0]])
    assert suggest.choose(z, np.array([1.0, 0.9, 0.8]), 2).tolist() == [0, 1]


def test_of_held_out_stamps_only_so_many_are_chosen():
    z, _, _ = codes(200)
    limited = np.arange(200) % 2 == 0
    value = np.where(limited, 1.0, 0.1)
    rows = suggest.choose(z, value, 20, limited=limited, most_limited=6)
    assert (len(rows), limited[rows].sum()) == (20, 6)
    assert suggest.choose(z, value, 20, limited=limited).size == 20
    assert suggest.choose(z[limited], value[limited], 5, limited=limited[limited], most_limited=2).size == 2


def test_of_copies_one_is_chosen_and_no_stamp_twice():
    z = np.repeat(np.array([[0.0], [1.0], [2.0]]), 50, axis=0)
    rows = suggest.choose(z, np.ones(150), 6)
    assert len(set(rows.tolist())) == 6
    assert sorted(z[rows[:3], 0].tolist()) == [0.0, 1.0, 2.0]


class Keys:
    """A reader that has all keys already."""

    def __init__(self, keys):
        self._keys = list(keys)

    def __call__(self):
        return self._keys.pop(0) if self._keys else ""


def asked(keys, count=5):
    shown, sent = [], []
    counts = ask(count, shown.append, Keys(keys), lambda number, value: sent.append((number, value)))
    return shown, sent, dict(counts)


def test_keys_label_stamps_in_their_order():
    shown, sent, counts = asked("rbusr")
    assert shown == [0, 1, 2, 3, 4]
    assert sent == [(0, 1), (1, 0), (2, -1), (4, 1)]
    assert counts == {"r": 2, "b": 1, "u": 1, "s": 1}


def test_backspace_takes_the_last_answer_back_before_anybody_has_it():
    shown, sent, _ = asked(["r", "\x7f", "b", "r", "q"])
    assert sent == [(0, 0), (1, 1)]
    assert shown == [0, 1, 0, 1, 2]


def test_backspace_goes_back_one_answer_and_no_further():
    _, sent, _ = asked(["r", "b", "\x7f", "\x7f", "r", "q"])
    assert sent == [(0, 1), (1, 1)]


def test_quitting_sends_what_was_answered_and_other_keys_do_nothing():
    assert asked(["x", "7", "b", "q"])[1] == [(0, 0)]
    assert asked(["q"])[1] == []
    assert asked([])[1] == []  # the terminal is gone


def test_an_interruption_loses_no_answer():
    sent = []

    def interrupted():
        if sent or keys:
            return keys.pop()
        raise KeyboardInterrupt

    keys = ["r"]
    with pytest.raises(KeyboardInterrupt):
        ask(3, lambda _: None, interrupted, lambda *answer: sent.append(answer))
    assert sent == [(0, 1)]


def test_keys_are_read_from_a_terminal_without_enter_and_the_terminal_is_as_before():
    import termios

    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        with single_keys(theirs) as read_key:
            os.write(ours, b"Rb")
            assert (read_key(), read_key()) == ("r", "b")
        assert termios.tcgetattr(theirs)[3] == before[3]
    finally:
        os.close(ours)
        os.close(theirs)


def suggestions(count=10, channels=1):
    random = np.random.default_rng(RANDOM)
    items = tuple(
        Suggestion(
            alert_id=f"15494733621150150{number:02d}",
            stamp=random.uniform(-1, 1, (21, 21, channels)).astype(np.float32),
            real_score=math.nan if number == 3 else 0.5,
            real_score_std=math.nan if number == 3 else 0.1,
            novelty=0.25,
            entropy=0.69,
            information=0.1,
            held_out=number == 1,
            band="g",
            stratum="rare",
        )
        for number in range(count)
    )
    return Suggestions(items, "test-1", 100, 7, "scorer")


@pytest.mark.parametrize("colours", [True, False])
def test_stamps_are_shown_side_by_side_with_id_score_and_novelty(colours):
    found = suggestions(3)
    panels = [panel_of(item, number) for number, item in enumerate(found.items, 1)]
    console = Console(width=160, record=True, force_terminal=colours, color_system="truecolor" if colours else None)
    with console.capture() as captured:
        console.print(terminal_picture(panels, width=160, colours=colours))
    text = captured.get()
    assert "1549473362115015000" in text
    assert "score 0.50 ± 0.10" in text
    assert "novelty 0.25" in text
    assert "2. g (held out)" in text
    assert ("▀" in text) is colours
    assert ("\x1b[" in text) is colours
    heads = next(line for line in text.splitlines() if "1. g" in line)
    assert "3. g" in heads  # side by side


def test_a_score_that_there_is_not_is_a_dash_and_null_in_json():
    item = suggestions(4).items[3]
    assert panel_of(item, 4).below[1] == "score -"
    document = item.document()
    assert (document["real_score"], document["novelty"], document["held_out"]) == (None, 0.25, False)
    assert "stamp" not in document


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_is_written(tmp_path, channels):
    write_label_sheet(suggestions(10, channels), tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert panel_of(suggestions(1, channels).items[0], 1).pixels.shape == (21, 21 * channels)


def test_ranking_needs_numpy_alone():
    code = "import sys, stream_vae.learning.suggest; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "numpy" in loaded
    assert not {"sklearn", "scipy", "tensorflow", "keras", "onnxruntime", "redis", "confluent_kafka"} & loaded
