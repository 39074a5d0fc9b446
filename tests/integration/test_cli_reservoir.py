"""``stream-vae reservoir`` on a reservoir with strata and labels."""

import contextlib
import json

import numpy as np
import pytest
from stream_vae import assembly, settings
from stream_vae.cli import reservoir as _commands  # noqa: F401 - its import makes the commands
from stream_vae.embedded.valkey import EmbeddedValkey
from stream_vae.errors import ConfigError
from stream_vae.labels import Label, Provenance
from stream_vae.learning.data.stampfile import stamps_from_file
from stream_vae.model.release import Preprocessing
from stream_vae.sampling import SAMPLED, Heads

from deployment import answered, command
from reservoirs import NOW_S, batch_of


def settings_file(folder, url):
    file = folder / "settings.toml"
    file.write_text(
        'survey = "ztf"\n[kafka]\nbootstrap_servers = "127.0.0.1:1"\ninput_topics = ["a"]\noutput_topic = "b"\n'
        'dead_letter_topic = "c"\n[release]\nstore = "store"\n[reservoir]\ncapacity = 40\nrecent_capacity = 30\n'
        f"rare_capacity = 20\nknown_capacity = 10\nanchor_capacity = 8\nurl = {json.dumps(url)}\n"
    )
    return file


def fill(file, first, count):
    loaded = settings.load(file)
    with contextlib.closing(assembly.reservoir_of(loaded)) as opened:
        stamps = np.random.default_rng(first).uniform(-1, 1, (count, 21, 21, 1)).astype(np.float32)
        ids = [str(number) for number in range(first, first + count)]
        heads = Heads.empty(count)
        heads.time_s[:], heads.novelty[:], heads.bands[:] = NOW_S, 0.5, b"g"
        capacities, asked = assembly.capacities_of(loaded), {"preprocessing": Preprocessing()}
        opened.add(batch_of("ztf", ids, stamps, strata=SAMPLED[:3], heads=heads), capacities=capacities, **asked)
        heads.labels[:], heads.provenances[:] = 1, 3
        known = batch_of("ztf", ids[:5], stamps[:5], strata=("known",), heads=Heads(*(each[:5] for each in heads)))
        opened.add(known, capacities=capacities, **asked)
        opened.label(Label(ids[0], 0, Provenance.HUMAN))
        opened.label(Label(ids[7], 1, Provenance.HUMAN))
        opened.label(Label("elsewhere", 1, Provenance.HUMAN))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    with EmbeddedValkey() as valkey:
        file = settings_file(tmp_path_factory.mktemp("cli"), valkey.url)
        fill(file, 0, 200)
        yield file


def test_stats_tell_of_every_stratum_and_label(filled):
    said = answered("reservoir", "stats", "--settings", filled)
    sizes = {stratum["stratum"]: (stratum["stamps"], stratum["capacity"]) for stratum in said["strata"]}
    anchors, of = sizes.pop("anchors")
    assert sizes == {"uniform": (40, 40), "recent": (30, 30), "rare": (20, 20), "known": (5, 10)}
    assert (anchors + said["waiting"], of) == (3, 8)
    assert said["labels"]["human"] == {"1": 2, "0": 1}
    assert said["labels"]["solar_system"] == {"1": 5}
    assert said["conflicts"] == 1
    page = command("reservoir", "stats", "--settings", filled).output
    for word in ("uniform", "anchors", "solar_system", "contradictory", "wait for their stamps"):
        assert word in page


def test_strata_can_be_drawn_from_and_exported_alone(filled, tmp_path):
    drawn = answered("reservoir", "draw", "--settings", filled, "--stratum", "known", "--stratum", "rare", "-n", "100")
    assert set(drawn["strata"]) == {"known", "rare"}
    assert drawn["labelled"] == 5
    out = tmp_path / "known.npz"
    said = answered("reservoir", "export", "--settings", filled, "--stratum", "known", "--out", out)
    assert said["stamps"] == 5
    with np.load(out, allow_pickle=False) as file:
        assert sorted(file["labels"].tolist()) == [0, 1, 1, 1, 1]
        assert set(file["provenances"]) == {"human", "solar_system"}
        assert set(file["bands"]) == {"g"}
        assert set(file["strata"]) == {"known"}
        assert (file["time_s"] == NOW_S).all()
    assert stamps_from_file(out, Preprocessing()).count == 5
    wrong = command("reservoir", "draw", "--settings", filled, "--stratum", "nonsense")
    assert isinstance(wrong.exception, ConfigError)
    assert "There is no stratum nonsense" in str(wrong.exception)


def test_another_servers_reservoir_is_merged(filled, tmp_path):
    with EmbeddedValkey() as other:
        file = settings_file(tmp_path, other.url)
        fill(file, 1000, 200)
        url = settings.load(filled).reservoir.url.get_secret_value()
        said = answered("reservoir", "merge", url, "--settings", file)
        assert said["entered"] > 0
        assert (said["labels"], said["refused"]) == (3, 0)
        stats = answered("reservoir", "stats", "--settings", file)
        assert [stratum["stamps"] for stratum in stats["strata"][:4]] == [40, 30, 20, 10]
        assert "0 alerts are new" in command("reservoir", "merge", url, "--settings", file).output
        assert answered("reservoir", "clear", "--settings", file, "--yes")["cleared"] == stats["stamps"]
