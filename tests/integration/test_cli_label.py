"""`stream-vae label`: labels by hand, by table and by key, on a real Redis."""

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest
from stream_vae import assembly
from stream_vae.cli import label, reservoir  # noqa: F401 - their import makes the commands
from stream_vae.errors import ConfigError
from stream_vae.labels.intake import Intake
from stream_vae.labels.label import Label, Provenance, parse_record
from stream_vae.learning.suggest import LEAST_OF_A_CLASS
from stream_vae.learning.suggestions import suggest
from stream_vae.metrics import TrainerMetrics
from stream_vae.model.store import ReleaseStore
from stream_vae.reservoir import Reservoir, connect
from stream_vae.sampling import Capacities, held_out
from stream_vae.tools.checks_kafka import KafkaChecks
from stream_vae.tools.checkup import State

from deployment import answered, command, deploy
from flow import read, until
from releases import make_release
from reservoirs import batch_of

PROFILE = {
    "time_format": "mjd",
    "fields": {"alert_id": "id", "ra_deg": "ra", "dec_deg": "dec", "time": "mjd"},
    "cutouts": {"difference": "d"},
}
STAMPS = 200


@pytest.fixture
def deployed(embedded_kafka, redis_server, tmp_path):
    """A deployment without a labels topic, of a survey of its own, whose reservoir has stamps."""
    yield from made(embedded_kafka, redis_server, tmp_path)


@pytest.fixture
def with_topic(embedded_kafka, redis_server, tmp_path):
    """The same with a labels topic."""
    topic = embedded_kafka.create_topic(embedded_kafka.topic("labels"))
    yield from made(embedded_kafka, redis_server, tmp_path, labels={"topic": topic})


def made(kafka, redis_server, folder, **sections):
    survey = f"test-{uuid.uuid4().hex[:12]}"
    about = {"reservoir": {"url": redis_server.url, "anchor_capacity": 20}, "survey_profile": PROFILE}
    deployment = deploy(kafka, folder, survey=survey, **about, **sections)
    with contextlib.closing(assembly.reservoir_of(deployment.settings)) as opened:
        random = np.random.default_rng(1)
        stamps = random.uniform(-1, 1, (STAMPS, 21, 21, 1)).astype(np.float32)
        batch = batch_of(survey, [f"alert-{number}" for number in range(STAMPS)], stamps)
        preprocessing = assembly.release_of(deployment.settings).card.preprocessing
        opened.add(batch, preprocessing=preprocessing, capacities=Capacities(1000, anchors=20))
        yield deployment
        opened.clear()


def labels_of(deployment):
    with contextlib.closing(assembly.reservoir_of(deployment.settings)) as opened:
        return list(opened.labels())


def test_a_label_of_a_stamp_that_is_there_anchors_it(deployed):
    result = command("label", "alert-7", "real", "--settings", deployed.file, "--comment", "sn", "--confidence", "0.9")
    assert result.exit_code == 0, result.exception
    assert "alert-7 real: anchored: its stamp stays in the reservoir" in result.output
    (given,) = labels_of(deployed)
    assert given[:4] == ("alert-7", 1, Provenance.HUMAN, 0.9)
    assert given.comment == "sn"
    assert given.labelled_at is not None


def test_a_label_of_an_alert_that_nobody_saw_is_told_to_wait(deployed):
    result = command("label", "elsewhere", "bogus", "--settings", deployed.file)
    assert result.exit_code == 0
    assert "elsewhere bogus: waiting: the reservoir holds no stamp of this alert" in result.output
    assert answered("reservoir", "stats", "--settings", deployed.file)["waiting"] == 1


def test_two_people_who_disagree_are_told_by_the_reservoirs_stats(deployed):
    for word in ("real", "bogus"):
        answered("label", "alert-1", word, "--settings", deployed.file)
    assert [each.label for each in labels_of(deployed)] == [1, 0]
    assert answered("reservoir", "stats", "--settings", deployed.file)["conflicts"] == 1
    assert "1 " in command("reservoir", "stats", "--settings", deployed.file).output


def test_a_table_of_labels_is_sent_and_what_has_no_room_is_told(deployed, tmp_path):
    table = tmp_path / "labels.jsonl"
    record = {"label": 1, "provenance": "solar_system"}
    table.write_text("".join(json.dumps({"alert_id": f"alert-{n}", **record}) + "\n" for n in range(25)), "utf-8")
    result = command("label", "--file", table, "--settings", deployed.file)
    assert result.exit_code == 1
    assert "20 anchored" in result.output
    assert "5 full: refused" in result.output
    assert len(labels_of(deployed)) == 20


def test_with_a_topic_labels_go_there_and_the_trainers_intake_takes_them(with_topic):
    found = answered("label", "alert-3", "unknown", "--settings", with_topic.file, "--comment", "blend?")
    assert found == {
        "labels": [{"alert_id": "alert-3", "label": -1, "outcome": "sent"}],
        "outcomes": {"sent": 1},
    }
    (message,) = read(with_topic.kafka, with_topic.settings.labels.topic)
    assert message.key == b"alert-3"
    assert parse_record(message.value)[:3] == ("alert-3", -1, Provenance.HUMAN)
    assert labels_of(with_topic) == []
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(contextlib.closing(assembly.reservoir_of(with_topic.settings)))
        intake = Intake(with_topic.settings, opened, TrainerMetrics("test"))
        stack.callback(intake.close)

        def taken():
            intake()
            return labels_of(with_topic)

        (given,) = until(taken, what="the label is in the reservoir")
    assert given.comment == "blend?"


def test_a_missing_topic_is_named(embedded_kafka, redis_server, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path, labels={"topic": "absent"}, reservoir={"url": redis_server.url})
    with pytest.raises(ConfigError, match=r"no topic labels.topic = 'absent'"):
        raise_from(command("label", "1", "real", "--settings", deployment.file))


def test_doctor_tells_whether_the_labels_topic_is_there(embedded_kafka, with_topic):
    def found(settings):
        checks = KafkaChecks(settings)
        assert "labels topic" in [check.name for check in checks.checks()]
        checks.check_brokers()
        (finding,) = checks.check_labels()
        return finding

    assert found(with_topic.settings).state is State.GOOD
    absent = with_topic.settings.labels.model_copy(update={"topic": "absent"})
    missing = found(with_topic.settings.model_copy(update={"labels": absent}))
    assert (missing.state, missing.says) == (State.BAD, "absent does not exist")


def test_without_topic_and_reservoir_there_is_nowhere_to_keep_a_label(embedded_kafka, tmp_path):
    deployment = deploy(embedded_kafka, tmp_path)
    with pytest.raises(ConfigError, match=r"neither labels.topic nor reservoir.url"):
        raise_from(command("label", "1", "real", "--settings", deployment.file))


def raise_from(result):
    assert result.exception is not None, result.output
    raise result.exception


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Give one of ALERT_ID"),
        (("alert-1",), "What is alert-1"),
        (("alert-1", "perhaps"), "none of 1 .real., 0 .bogus."),
        (("alert-1", "real", "--suggest", 3), "Give one of"),
        (("alert-1", "real", "--sheet", "x.png"), "--sheet is for --suggest"),
        (("1.5e+17", "real"), "rounded"),
        (("alert-1", "real", "--comment", "c" * 5000), "Shorten its comment"),
        (("i" * 300, "real"), "more than 256 bytes"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(deployed, arguments, says):
    with pytest.raises(ConfigError, match=says):
        raise_from(command("label", *arguments, "--settings", deployed.file))
    assert labels_of(deployed) == []


def test_suggestions_have_no_label_and_few_of_them_are_held_out(deployed):
    answered("label", "alert-1", "unknown", "--settings", deployed.file)
    found = answered("label", "--suggest", 20, "--settings", deployed.file)
    ids = [each["alert_id"] for each in found["suggestions"]]
    assert (len(ids), len(set(ids))) == (20, 20)
    assert "alert-1" not in ids  # somebody looked already
    assert (found["judge"], found["labelled"], found["looked_at"]) == ("scorer", 1, STAMPS - 1)
    apart = held_out(deployed.settings.survey, ids)
    assert [each["held_out"] for each in found["suggestions"]] == apart.tolist()
    assert apart.sum() <= 6
    assert all(0 <= each["real_score"] <= 1 for each in found["suggestions"])
    assert answered("label", "--suggest", 20, "--settings", deployed.file) == found


def test_enough_labels_make_a_probe_the_judge(deployed, redis_server):
    release = assembly.release_of(deployed.settings)
    client = connect(redis_server.url, timeout_s=5.0)
    with contextlib.closing(Reservoir(client, deployed.settings.survey, where="here")) as opened:
        before = suggest(opened, release, 10, np.random.default_rng(0))
        for number in range(2 * LEAST_OF_A_CLASS):
            opened.label(Label(f"alert-{number}", number % 2, Provenance.HUMAN))
        after = suggest(opened, release, 10, np.random.default_rng(0))
    assert (before.judge, after.judge, after.labelled) == ("scorer", "probe", 2 * LEAST_OF_A_CLASS)
    assert [each.alert_id for each in before.items] != [each.alert_id for each in after.items]
    assert all(each.information > 0 for each in after.items)


def test_without_a_scorer_and_labels_the_most_novel_go_first(deployed, tmp_path):
    store = ReleaseStore(str(tmp_path / "other"))
    make_release(store, tmp_path / "without", scorer=False)
    with contextlib.closing(assembly.reservoir_of(deployed.settings)) as opened:
        found = suggest(opened, store.load(None), 5, np.random.default_rng(0))
        every = suggest(opened, store.load(None), STAMPS, np.random.default_rng(0))
    assert found.judge == "nothing"
    assert found.items[0].novelty == max(each.novelty for each in every.items)
    assert np.isnan(found.items[0].real_score)


def test_without_a_terminal_stamps_are_shown_and_nobody_is_asked(deployed, tmp_path):
    result = command("label", "--suggest", 2, "--settings", deployed.file, "--sheet", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.exception
    assert "No terminal to answer in" in result.stderr
    assert "score 0." in result.output
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    assert labels_of(deployed) == []


def test_in_a_terminal_keys_label_the_suggestions(deployed):
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", "from stream_vae.cli import main; main()", "label", "--suggest", "4"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    arguments = [*program, "--settings", str(deployed.file)]
    with subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        try:
            _wait_for(ours, b"q ends")
            # Real, and that is taken back; bogus; skipped; cannot tell.
            for key, number in ((b"r", 2), (b"\x7f", 1), (b"b", 2), (b"s", 3), (b"u", 4)):
                os.write(ours, key)
                _wait_for(ours, b"\x1b[1m%d." % number)
            os.write(ours, b"q")
            _wait_for(ours, b"2 labels, 1 skipped")
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(ours)
    assert [each.label for each in labels_of(deployed)] == [0, -1]
    assert {each.comment for each in labels_of(deployed)} == {"suggested"}


def _wait_for(terminal, mark, timeout_s=90):
    """Read until a mark is on the screen."""
    seen, deadline = b"", time.monotonic() + timeout_s
    while mark not in seen:
        assert time.monotonic() < deadline, seen.decode()
        if select.select([terminal], [], [], 1.0)[0]:
            seen += os.read(terminal, 65_536)
