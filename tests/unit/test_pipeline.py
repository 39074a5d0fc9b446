"""The whole way of an alert without a broker: every packet that goes in comes out with exactly one fate."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_vae import assembly
from stream_vae.alert import Outcome
from stream_vae.avro.framing import FrameReader
from stream_vae.avro.registry import FolderRegistry, HttpRegistry
from stream_vae.errors import ConfigError, Reason, RetriableError
from stream_vae.faults.corpus import EXPECTED, corrupt, kinds_for
from stream_vae.faults.corpus import Outcome as Expected
from stream_vae.metrics import Metrics
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore
from stream_vae.pipeline import Stages, enriched
from stream_vae.quality import UNSCOREABLE, Quality
from stream_vae.settings import RegistrySettings
from stream_vae.sky.packets import packet_schema, simulate_packets

from releases import make_release
from stage_parts import avro_file, candidate, complete_settings, kafka_settings, packet

GOOD = [avro_file(candidate(n)) for n in range(6)]
ZTF = [each.packet for each in simulate_packets(4, shape="ztf", seed=9)]
FAULTS = {kind: corrupt(ZTF[0], kind, np.random.default_rng(0)) for kind in kinds_for(ZTF[0]) if "bomb" not in kind}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ReleaseStore:
    folder = tmp_path_factory.mktemp("releases")
    store = ReleaseStore(str(folder / "store"))
    make_release(store, folder / "new")
    return store


@pytest.fixture(scope="module")
def release(store: ReleaseStore) -> Release:
    return store.load()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("candidate")


def stages(release: Release, survey: str = "candidate", **sections: Any) -> Stages:
    return assembly.stages_of(complete_settings(survey, **sections), release, None)


def run(values: list[bytes], stages: Stages, metrics: Metrics) -> list[Outcome]:
    return enriched([packet(value, offset) for offset, value in enumerate(values)], stages, metrics)


def fates(outcomes: list[Outcome]) -> dict[int, str]:
    by_offset = {outcome.packet.offset: outcome.fate for outcome in outcomes}
    assert len(by_offset) == len(outcomes)
    return by_offset


def found(outcome: Outcome) -> dict[str, Any]:
    (record,) = fastavro.reader(io.BytesIO(outcome.messages[0].value))
    return record["stream_vae"]  # type: ignore[index, call-overload, no-any-return]


def reason(outcome: Outcome) -> str:
    value = dict(outcome.messages[0].headers)["stream_vae.reason"]
    assert value is not None
    return value.decode()


def test_every_packet_has_one_fate_and_published_ones_keep_their_order(release: Release, metrics: Metrics) -> None:
    values = [GOOD[0], b"junk", GOOD[1], b"", avro_file(candidate(9, difference=None)), GOOD[2]]
    outcomes = run(values, stages(release), metrics)
    assert fates(outcomes) == {
        0: "published",
        1: "dead_lettered",
        2: "published",
        3: "dead_lettered",
        4: "published",
        5: "published",
    }
    published = [outcome.packet.offset for outcome in outcomes if outcome.fate == "published"]
    assert published == [0, 2, 4, 5]


def test_a_scored_alert_says_so_and_an_unscoreable_one_says_why(release: Release, metrics: Metrics) -> None:
    scored, unscored = run([GOOD[0], avro_file(candidate(9, difference=None))], stages(release), metrics)
    assert found(scored)["quality"] == 0
    assert 0 <= found(scored)["real_score"] <= 1
    assert len(found(scored)["latent_mean"]) == release.card.latent_size
    assert found(unscored)["quality"] == Quality.MISSING_CUTOUT
    assert found(unscored)["latent_mean"] is None
    assert found(unscored)["real_score"] is None
    for each in (scored, unscored):
        assert found(each)["release"] == release.id
        assert found(each)["latent_space"] == release.card.latent_space


@pytest.mark.parametrize("values", [[], [b"junk"], [b"", b"\x00", b"Obj\x01"]])
def test_a_batch_without_a_single_good_packet_is_no_fault(
    release: Release, metrics: Metrics, values: list[bytes]
) -> None:
    outcomes = run(values, stages(release), metrics)
    assert len(outcomes) == len(values)
    assert all(outcome.fate == "dead_lettered" for outcome in outcomes)


def test_the_neighbours_of_a_bad_packet_get_the_bytes_they_would_have_had_without_it(
    release: Release, metrics: Metrics
) -> None:
    parts = stages(release)
    alone = [found(run([value], parts, metrics)[0]) for value in GOOD]
    mixed = [value for good in GOOD for value in (b"junk", good, avro_file(candidate(9, difference=b"odd")))]
    together = [
        found(outcome)
        for outcome in run(mixed, parts, metrics)
        if outcome.fate == "published" and outcome.packet.offset % 3 == 1
    ]
    for first, second in zip(alone, together, strict=True):
        first.pop("scored_at")
        second.pop("scored_at")
        assert first == second


def test_a_release_without_a_scorer_publishes_the_code_and_flags_it(
    store: ReleaseStore, tmp_path: Path, metrics: Metrics
) -> None:
    card = make_release(store, tmp_path / "new", scorer=False, promote=False, seed=4)
    (outcome,) = run(GOOD[:1], stages(store.load(card.id)), metrics)
    assert found(outcome)["quality"] == Quality.NO_SCORER
    assert found(outcome)["latent_mean"] is not None
    assert found(outcome)["real_score"] is None


class Fails:
    """An encoder's session that cannot bear one stamp."""

    def __init__(self, session: Any, poison: np.ndarray) -> None:
        self._session = session
        self._poison = poison

    def run(self, names: Any, inputs: dict[str, np.ndarray]) -> Any:
        if any((stamp == self._poison).all() for stamp in inputs["stamp"]):
            raise RuntimeError("cannot encode this")
        return self._session.run(names, inputs)


def test_the_alert_on_which_the_encoder_fails_is_dead_lettered_alone(release: Release, metrics: Metrics) -> None:
    parts = stages(release)
    alerts, _ = parts.decoder.decode([packet(GOOD[3])])
    poison = parts.stamper.cut(alerts).stamps[0]
    parts.encoder.network._session = Fails(parts.encoder.network._session, poison)  # type: ignore[attr-defined]
    outcomes = run(GOOD, parts, metrics)
    assert [offset for offset, fate in fates(outcomes).items() if fate == "dead_lettered"] == [3]
    dead = outcomes[-1]
    assert dead.messages[0].value == GOOD[3]
    assert reason(dead) == Reason.POISON
    assert dict(dead.messages[0].headers)["stream_vae.alert_id"] == b"3"
    flagged = metrics.registry.get_sample_value(
        "stream_vae_alerts_flagged_total", {"survey": "candidate", "flag": "encoder_output_not_finite"}
    )
    assert not flagged


def test_filtered_alerts_are_counted_and_not_published(release: Release, metrics: Metrics) -> None:
    scores = [found(outcome)["real_score"] for outcome in run(GOOD, stages(release), metrics)]
    limit = sorted(scores)[3]
    outcomes = run(GOOD, stages(release, filter={"min_real_score": limit}), metrics)
    assert [fates(outcomes)[n] for n in range(6)] == ["published" if score >= limit else "filtered" for score in scores]
    assert all(not outcome.messages for outcome in outcomes if outcome.fate == "filtered")


def test_three_cutouts_of_a_fits_survey_are_scored(store: ReleaseStore, tmp_path: Path, metrics: Metrics) -> None:
    cutouts = ("difference", "science", "template")
    card = make_release(store, tmp_path / "new", cutouts=cutouts, promote=False, seed=5)
    outcomes = run(ZTF, stages(store.load(card.id), "ztf"), metrics)
    for outcome in outcomes:
        assert found(outcome)["quality"] & UNSCOREABLE == 0
        assert np.isfinite(found(outcome)["latent_mean"]).all()


def test_the_observer_is_shown_every_alert_with_its_stamp_code_and_scores(release: Release, metrics: Metrics) -> None:
    seen: list[tuple[int, tuple[int, ...], int, bool]] = []
    parts = stages(release)
    watched = Stages(
        parts.decoder,
        parts.stamper,
        parts.encoder,
        parts.scorer,
        parts.enricher,
        "dead",
        observe=lambda alerts, stamps, codes, scores: seen.append(
            (len(alerts), stamps.stamps.shape, len(codes.z_mean), bool(np.isfinite(scores.novelty).all()))
        ),
    )
    run([*GOOD, b"junk"], watched, metrics)
    assert seen == [(6, (6, 21, 21, 1), 6, True)]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([None, *sorted(FAULTS)]), max_size=12))
def test_any_mixture_of_good_and_bad_packets_balances_and_ends_as_expected(
    release: Release, kinds: list[str | None]
) -> None:
    values = [ZTF[1] if kind is None else FAULTS[kind] for kind in kinds]
    outcomes = run(values, stages(release, "ztf"), Metrics("ztf"))
    got = fates(outcomes)
    assert sorted(got) == list(range(len(kinds)))
    for offset, kind in enumerate(kinds):
        dead = kind is not None and EXPECTED[kind].outcome is Expected.DEAD_LETTER
        assert got[offset] == ("dead_lettered" if dead else "published"), kind


@given(st.binary(max_size=400), st.integers(0, 3000), st.integers(0, 400))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_a_packet_stops_the_pipeline(release: Release, junk: bytes, at: int, cut: int) -> None:
    value = GOOD[0][:at] + junk + GOOD[0][at + cut :]
    (outcome,) = run([value], _STAGES.setdefault(release.id, stages(release)), Metrics("candidate"))
    assert outcome.fate in ("published", "dead_lettered")


_STAGES: dict[str, Stages] = {}


# putting the parts together


def test_a_release_that_needs_cutouts_which_the_survey_lacks_is_refused(store: ReleaseStore, tmp_path: Path) -> None:
    card = make_release(store, tmp_path / "new", cutouts=("difference", "template"), promote=False, seed=6)
    profile = {"fields": {"alert_id": "id"}, "cutouts": {"difference": "d"}}
    with pytest.raises(ConfigError, match=r"survey mine has no template.*Train a release on the cutouts"):
        stages(store.load(card.id), "mine", survey_profile=profile)


def test_schemaless_packets_are_read_with_the_configured_schema(
    release: Release, metrics: Metrics, tmp_path: Path
) -> None:
    file = tmp_path / "writer.avsc"
    file.write_text(packet_schema("candidate"))
    kafka = kafka_settings(framing="schemaless", schema_file=file)
    body = bytes(FrameReader().open(GOOD[0]).body)
    (outcome,) = run([body], stages(release, kafka=kafka), metrics)
    assert outcome.fate == "published"
    assert outcome.messages[0].value.startswith(body)


@pytest.mark.parametrize("content", [None, b"{", b"\xff", b"[]", b'"int"', b'{"type": "record"}'])
def test_a_wrong_schema_file_is_refused_by_its_setting(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "writer.avsc"
    if content is not None:
        file.write_bytes(content)
    settings = complete_settings(kafka=kafka_settings(framing="schemaless", schema_file=file))
    with pytest.raises(ConfigError, match=r"kafka\.schema_file = .*writer\.avsc"):
        assembly.decoder_of(settings, None)


def test_confluent_framing_without_a_registry_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Set \[registry\] url"):
        assembly.decoder_of(complete_settings(kafka=kafka_settings(framing="confluent")), None)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (lambda _: None, type(None)),
        (str, FolderRegistry),
        (lambda folder: f"file://{folder}", FolderRegistry),
        (lambda _: "http://127.0.0.1:9", HttpRegistry),
        (lambda _: "mock://tests", HttpRegistry),
    ],
    ids=["none", "folder", "file url", "http", "mock"],
)
def test_a_registry_is_what_its_url_says(tmp_path: Path, url: Callable[[Path], str | None], kind: type) -> None:
    assert type(assembly.registry_of(RegistrySettings(url=url(tmp_path)))) is kind


@pytest.mark.parametrize("url", ["ftp://host", "/nowhere/at/all", "http://"])
def test_a_registrys_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"\[registry\]"):
        assembly.registry_of(RegistrySettings(url=url))


def test_an_unreachable_registry_is_for_later_and_the_batch_is_whole(release: Release, metrics: Metrics) -> None:
    settings = complete_settings(registry={"url": "http://127.0.0.1:9"})
    parts = assembly.stages_of(settings, release, assembly.registry_of(settings.registry))
    with pytest.raises(RetriableError):
        run([GOOD[0], b"\x00\x00\x00\x00\x07body"], parts, metrics)


def test_a_schema_that_grew_is_read_by_its_own_header(release: Release, metrics: Metrics) -> None:
    schema = json.loads(packet_schema("candidate"))
    schema["fields"].insert(0, {"name": "new_first", "type": ["null", "string"], "default": None})
    grown = avro_file(candidate(5) | {"new_first": "x"}, fastavro.parse_schema(schema))
    outcomes = run([GOOD[0], grown, GOOD[1]], stages(release), metrics)
    assert set(fates(outcomes).values()) == {"published"}
    (record,) = fastavro.reader(io.BytesIO(outcomes[1].messages[0].value))
    assert record["new_first"] == "x"  # type: ignore[index, call-overload]
    assert record["candidate_id"] == 5  # type: ignore[index, call-overload]
