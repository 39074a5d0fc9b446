"""A release on trial: the store's pointer to it, its history, and the commands."""

from pathlib import Path

import pytest
from stream_vae.cli import releases as _  # noqa: F401 - its import makes the commands
from stream_vae.errors import ConfigError
from stream_vae.model.store import ReleaseStore, write_release

from deployment import answered, command
from releases import make_release


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ReleaseStore:
    return ReleaseStore(str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path.name}")


@pytest.fixture
def ids(store: ReleaseStore, tmp_path: Path) -> list[str]:
    """Three releases; the first is current."""
    found = [make_release(store, tmp_path / str(seed), seed=seed, promote=False).id for seed in range(3)]
    store.promote(found[0])
    return found


def events(store: ReleaseStore) -> list[tuple[str, str]]:
    return [(each["event"], each["release"]) for each in store.history() if each["event"] != "created"]


def test_a_store_has_no_challenger_until_one_is_named(store: ReleaseStore, ids: list[str]) -> None:
    assert store.challenger() is None
    assert store.withdraw() is None
    assert events(store) == [("promoted", ids[0])]


def test_a_challenger_is_named_replaced_and_withdrawn_with_its_reasons(store: ReleaseStore, ids: list[str]) -> None:
    store.challenge(ids[1], reason="gates passed")
    found = ReleaseStore(store.url).challenger()
    assert found is not None
    assert (found.release, found.mode, found.share, found.reason) == (ids[1], "shadow", 0.1, "gates passed")
    store.challenge(ids[2], "canary", 0.25)
    assert (found := store.challenger()) is not None
    assert (found.release, found.mode, found.share) == (ids[2], "canary", 0.25)
    assert store.withdraw("enough was seen") == ids[2]
    assert store.challenger() is None
    assert store.current() == ids[0]
    assert events(store)[1:] == [("challenged", ids[1]), ("challenged", ids[2]), ("withdrawn", ids[2])]
    assert [each.get("reason") for each in store.history()][-3:] == ["gates passed", "by hand", "enough was seen"]


def test_a_challenger_that_is_promoted_is_no_challenger_any_more(store: ReleaseStore, ids: list[str]) -> None:
    store.challenge(ids[1])
    store.promote(ids[1])
    assert store.challenger() is None
    assert events(store)[1:] == [("challenged", ids[1]), ("promoted", ids[1])]


def test_promoting_or_rolling_back_to_another_one_ends_the_trial(store: ReleaseStore, ids: list[str]) -> None:
    store.challenge(ids[1])
    store.promote(ids[2])
    assert store.challenger() is None
    assert events(store)[-2:] == [("promoted", ids[2]), ("withdrawn", ids[1])]
    store.challenge(ids[1])
    store.rollback()
    assert store.challenger() is None
    assert store.current() == ids[0]


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(store: ReleaseStore, ids: list[str], share: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        store.challenge(ids[1], share=share)
    assert store.challenger() is None


def test_what_cannot_be_tried_is_refused(store: ReleaseStore, ids: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot challenge itself"):
        store.challenge(ids[0])
    with pytest.raises(ConfigError, match="is not there"):
        store.challenge("test-20260101-000000000000")
    other = make_release(store, tmp_path / "other", seed=5, max_masked_fraction=0.25, promote=False)
    with pytest.raises(ConfigError, match="prepares stamps in another way"):
        store.challenge(other.id)
    assert store.challenger() is None


def test_a_damaged_pointer_is_told_and_ended_by_withdrawing(tmp_path: Path) -> None:
    store = ReleaseStore(str(tmp_path / "store"))
    first = make_release(store, tmp_path / "first").id
    pointer = tmp_path / "store" / "challenger.json"
    for content in ("{", '{"release": "x", "mode": "loud", "share": 1, "since": "2026-01-01T00:00:00Z"}'):
        pointer.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"challenger\.json .* is damaged"):
            store.challenger()
    assert store.withdraw() is None
    assert store.challenger() is None
    pointer.write_text("{", encoding="utf-8")
    store.promote(first)  # a damaged trial does not stand in its way
    assert store.challenger() is None


def test_the_commands_put_on_trial_mark_and_withdraw(tmp_path: Path) -> None:
    store = ReleaseStore(str(tmp_path / "store"))
    make_release(store, tmp_path / "first", seed=1)
    second = make_release(store, tmp_path / "second", seed=2, promote=False).id
    arguments = ("--store", store.url)
    found = answered("releases", "challenge", second, *arguments, "--mode", "canary", "--share", 0.2)
    assert (found["release"], found["mode"], found["share"]) == (second, "canary", 0.2)
    listed = answered("releases", "list", *arguments)
    assert [(each["current"], each["challenger"]) for each in listed] == [(True, False), (False, True)]
    table = command("releases", "list", *arguments).stdout
    assert next(line for line in table.splitlines() if second in line).lstrip("│ ").startswith("?")
    assert "canary, 20% of the alerts" in table
    assert answered("releases", "withdraw", *arguments) == {"withdrawn": second}
    assert "Nothing was on trial" in command("releases", "withdraw", *arguments).stdout
    assert command("releases", "challenge", second, *arguments, "--mode", "loud").exit_code == 2


def test_the_verdict_of_the_gates_is_shown_a_line_a_gate(tmp_path: Path) -> None:
    store = ReleaseStore(str(tmp_path / "store"))
    first = store.load(make_release(store, tmp_path / "first").id)
    gates = [
        {"name": "AUC", "outcome": "passed", "reason": "0.9876 against 0.98 [all]"},
        {"name": "latency", "outcome": "not_judged", "reason": "no clock"},
        {"name": "finite", "outcome": "failed", "reason": "3 are not"},
    ]
    card = write_release(
        store,
        first.folder,
        name="judged",
        latent_size=first.card.latent_size,
        recipe={},
        data={},
        metrics={"verdict": {"decision": "reject", "reasons": ["finite: 3 are not"], "gates": gates}},
        preprocessing=first.card.preprocessing,
    )
    shown = command("releases", "show", card.id, "--store", store.url).stdout
    assert "Verdict: reject" in shown
    said = shown[shown.index("Verdict") :].splitlines()
    assert said[1].strip() == "finite: 3 are not"
    assert [" ".join(line.split()) for line in said[2:5]] == [
        "passed AUC 0.9876 against 0.98 [all]",
        "not judged latency no clock",
        "failed finite 3 are not",
    ]
