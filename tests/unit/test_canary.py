"""A challenger that scores a share of the alerts: the same ones each time, in order, and at no risk to any."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_vae import assembly
from stream_vae.alert import Codes, FloatArray, Outcome, Scores
from stream_vae.canary import Canary, chosen
from stream_vae.errors import RetriableError
from stream_vae.metrics import Metrics
from stream_vae.model.store import ReleaseStore
from stream_vae.pipeline import Stages, enriched

from releases import make_release
from stage_parts import avro_file, candidate, complete_settings, packet

VALUES = [avro_file(candidate(n)) for n in range(60)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stages, str, Stages, str]:
    """The current release's stages and id, then the challenger's."""
    folder = tmp_path_factory.mktemp("pair")
    store = ReleaseStore(str(folder / "store"))
    both = [store.load(make_release(store, folder / str(seed), seed=seed).id) for seed in (1, 2)]
    first = assembly.stages_of(complete_settings(), both[0], None)
    second = assembly.stages_of(complete_settings(), both[1], None, before=first)
    return first, both[0].id, second, both[1].id


class Broken:
    """A network that raises what it is told to."""

    name = "broken"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def run(self, stamps: FloatArray) -> Codes:
        del stamps
        raise self.error


def run(stages: Stages, values: list[bytes] = VALUES, metrics: Metrics | None = None) -> list[Outcome]:
    packets = [packet(value, offset) for offset, value in enumerate(values)]
    return enriched(packets, stages, metrics or Metrics("candidate"))


def releases(outcomes: list[Outcome]) -> list[str]:
    headers = (dict(outcome.messages[0].headers)["stream_vae.release"] for outcome in outcomes)
    return [(header or b"").decode() for header in headers]


def found(outcome: Outcome) -> dict[str, Any]:
    (record,) = fastavro.reader(io.BytesIO(outcome.messages[0].value))
    return {name: value for name, value in record["stream_vae"].items() if name != "scored_at"}  # type: ignore[index, call-overload]


@given(st.lists(st.text(max_size=20), max_size=50), st.floats(0, 1))
def test_the_choice_depends_on_the_id_alone(ids: list[str], share: float) -> None:
    whole = chosen("a-release", ids, share)
    assert whole.tolist() == [bool(chosen("a-release", [one], share)[0]) for one in ids]


def test_the_choice_has_the_share_that_was_asked_for_and_is_each_challengers_own() -> None:
    ids = [str(number) for number in range(20_000)]
    first, second = chosen("first", ids, 0.1), chosen("second", ids, 0.1)
    deviation = np.sqrt(0.1 * 0.9 * 20_000)
    assert abs(first.sum() - 2_000) < 5 * deviation
    assert abs((first & second).sum() - 200) < 5 * np.sqrt(200)
    assert not chosen("first", ids, 0.0).any()
    assert chosen("first", ids, 1.0).all()


def test_each_alert_is_scored_by_one_release_says_so_and_keeps_its_place(pair: tuple[Stages, str, Stages, str]) -> None:
    first, first_id, second, second_id = pair
    outcomes = run(replace(first, canary=Canary(second_id, second, 0.4)))
    assert [outcome.packet.offset for outcome in outcomes] == list(range(60))
    picked = chosen(second_id, [str(n) for n in range(60)], 0.4)
    assert releases(outcomes) == [second_id if theirs else first_id for theirs in picked]
    assert 5 < picked.sum() < 55
    alone = {first_id: run(first), second_id: run(second)}
    for outcome, name in zip(outcomes, releases(outcomes), strict=True):
        assert found(outcome) == found(alone[name][outcome.packet.offset])  # whatever batch it comes in


def test_dead_letters_of_a_divided_batch_balance(pair: tuple[Stages, str, Stages, str]) -> None:
    first, _, second, second_id = pair
    values = [*VALUES[:10], b"junk", *VALUES[10:20]]
    outcomes = run(replace(first, canary=Canary(second_id, second, 0.5)), values)
    assert sorted(outcome.packet.offset for outcome in outcomes) == list(range(21))
    assert Counter(outcome.fate for outcome in outcomes) == {"published": 20, "dead_lettered": 1}


@pytest.mark.parametrize("error", [ValueError("a stamp's fault"), RetriableError("the pool is away"), MemoryError()])
def test_a_challenger_that_fails_is_dropped_and_its_alerts_go_by_the_current_release(
    pair: tuple[Stages, str, Stages, str], error: Exception
) -> None:
    first, first_id, second, second_id = pair
    told: list[str] = []
    encoder = second.encoder
    network, encoder.network = encoder.network, Broken(error)
    try:
        canary = Canary(second_id, second, 0.4, told.append)
        outcomes = run(replace(first, canary=canary))
    finally:
        encoder.network = network
    assert set(releases(outcomes)) == {first_id}
    assert len(outcomes) == 60
    assert canary.dropped
    assert len(told) == 1
    assert set(releases(run(replace(first, canary=canary)))) == {first_id}  # dropped for good, though it would work


class Odd:
    """A scorer whose scores are tables."""

    flag = np.uint32(0)

    def score(self, codes: Codes) -> Scores:
        return Scores(*[np.full((len(codes.z_mean), 2), 0.5, np.float32)] * 4)


def test_a_challenger_whose_answers_cannot_be_published_is_dropped_too(pair: tuple[Stages, str, Stages, str]) -> None:
    first, first_id, second, second_id = pair
    canary = Canary(second_id, replace(second, scorer=Odd()), 0.4)  # type: ignore[arg-type]
    outcomes = run(replace(first, canary=canary))
    assert canary.dropped
    assert releases(outcomes) == [first_id] * 60


def test_a_share_of_one_leaves_the_current_release_nothing(pair: tuple[Stages, str, Stages, str]) -> None:
    first, _, second, second_id = pair
    assert set(releases(run(replace(first, canary=Canary(second_id, second, 1.0))))) == {second_id}


def test_both_releases_show_their_alerts_to_their_own_observer(
    pair: tuple[Stages, str, Stages, str], tmp_path: Path
) -> None:
    first, _, second, second_id = pair
    ours: list[str] = []
    theirs: list[str] = []
    watched = replace(second, observe=lambda alerts, *_: theirs.extend(each.alert_id for each in alerts))
    stages = replace(
        first,
        observe=lambda alerts, *_: ours.extend(each.alert_id for each in alerts),
        canary=Canary(second_id, watched, 0.4),
    )
    run(stages)
    assert sorted([*ours, *theirs], key=int) == [str(n) for n in range(60)]
    assert len(theirs) == chosen(second_id, [str(n) for n in range(60)], 0.4).sum()
