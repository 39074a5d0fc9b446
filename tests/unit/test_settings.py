"""Where settings come from, which source wins, and what is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from stream_vae import settings
from stream_vae.errors import ConfigError
from stream_vae.settings import ENV_PREFIX, SECRETS_DIR_VARIABLE, KafkaSettings, Settings

FILE = """\
survey = "ztf"
[kafka]
bootstrap_servers = "toml:9092"
input_topics = ["alerts"]
output_topic = "enriched"
dead_letter_topic = "dead"
group_id = "toml"
sasl_password = "from-toml"
[release]
store = "releases"
"""
SECRET = "hunter2-the-secret"  # noqa: S105 - what must never be shown


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    folder = tmp_path / "secrets"

    def write(**contents: str) -> None:
        folder.mkdir()
        for name, content in contents.items():
            (folder / name).write_text(content)
        monkeypatch.setenv(SECRETS_DIR_VARIABLE, str(folder))

    return write


def refused(path: Path | None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        settings.load(path, **flags)
    return str(caught.value)


def test_flags_win_over_variables_over_secrets_over_the_file(
    file: Path, secrets: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def password(**flags: Any) -> str:
        secret = settings.load(file, **flags).kafka.sasl_password
        assert secret is not None
        return secret.get_secret_value()

    assert password() == "from-toml"
    secrets(kafka__sasl_password="from-secrets\n")  # noqa: S106
    assert password() == "from-secrets"
    monkeypatch.setenv("STREAM_VAE_KAFKA__SASL_PASSWORD", "from-environment")
    assert password() == "from-environment"
    assert password(kafka={"sasl_password": "from-flag"}) == "from-flag"


def test_a_source_that_sets_one_key_leaves_the_others_of_its_section(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAM_VAE_KAFKA__BOOTSTRAP_SERVERS", "env:9092")
    loaded = settings.load(file, kafka={"group_id": "flag"}).kafka
    assert (loaded.bootstrap_servers, loaded.group_id, loaded.input_topics) == ("env:9092", "flag", ("alerts",))


def test_everything_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SURVEY": "lsst",
        "KAFKA__BOOTSTRAP_SERVERS": "a:1,b:2",
        "KAFKA__INPUT_TOPICS": "one, two,",
        "KAFKA__LITE_TOPIC": "lite",
        "KAFKA__DEAD_LETTER_TOPIC": "dead",
        "KAFKA__OPTIONS": '{"security.protocol": "SSL"}',
        "RELEASE__STORE": "s3://releases",
        "METRICS__PORT": "0",
    }.items():
        monkeypatch.setenv(ENV_PREFIX + name, value)
    loaded = settings.load()
    assert loaded.kafka.input_topics == ("one", "two")
    assert loaded.kafka.bootstrap_servers == "a:1,b:2"
    assert loaded.kafka.options == {"security.protocol": "SSL"}
    assert loaded.metrics.port == 0


def test_variables_are_read_in_any_case(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("stream_vae_kafka__group_id", "lower")
    assert settings.load(file).kafka.group_id == "lower"


def test_settings_cannot_be_changed(file: Path) -> None:
    loaded = settings.load(file)
    with pytest.raises(ValidationError, match="frozen"):
        loaded.survey = "lsst"
    with pytest.raises(ValidationError, match="frozen"):
        loaded.kafka.group_id = "other"


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("[kafka]\ngroupid = 'x'", "kafka.groupid", "group_id"),
        ("[batch]\nmax_alert = 3", "batch.max_alert", "max_alerts"),
        ("[delivry]\nmode = 'x'", "delivry", "delivery"),
        ("survy = 'ztf'", "survy", "survey"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path, text: str, key: str, near: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    assert f"{key}: is no setting; did you mean {near}?" in refused(path)


def test_an_unknown_key_without_a_neighbour_is_refused_with_all_that_are_known(file: Path) -> None:
    with file.open("a") as out:
        out.write("[delivery]\nquux = 1\n")
    assert "delivery.quux: is no setting; known here: mode, " in refused(file)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("STREAM_VAE_KAFKA__GROUPID", "STREAM_VAE_KAFKA__GROUP_ID"),
        ("STREAM_VAE_SURVEYS", "STREAM_VAE_SURVEY"),
        ("STREAM_VAE_KAFKA__OPTIONS__ACKS", "STREAM_VAE_KAFKA__OPTIONS"),
        ("stream_vae_kafka_group_id", "STREAM_VAE_KAFKA__GROUP_ID"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str, near: str
) -> None:
    monkeypatch.setenv(name, "x")
    message = refused(file)
    assert f"variable {name} is not a setting" in message
    assert f"Did you mean {near}?" in message


def test_an_unknown_variable_without_a_neighbour_is_refused_with_all_that_are_known(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAM_VAE_ZZZZZZ", "x")
    assert "KAFKA__BOOTSTRAP_SERVERS" in refused(file)


def test_variables_of_others_are_no_business_of_ours(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_VAULT_TOKEN", "x")
    assert settings.load(file).survey == "ztf"


@pytest.mark.parametrize("text", ["{not json", "[1]", "security.protocol=SSL"])
def test_a_table_in_a_variable_that_is_no_json_object_is_refused_by_name(
    file: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("STREAM_VAE_KAFKA__OPTIONS", text)
    message = refused(file)
    assert "STREAM_VAE_KAFKA__OPTIONS" in message
    assert text not in message


def test_an_unknown_secrets_file_is_refused_with_the_nearest_name(file: Path, secrets: Callable[..., None]) -> None:
    secrets(kafka__sasl_pasword=SECRET)
    message = refused(file)
    assert "Did you mean kafka__sasl_password?" in message
    assert SECRET not in message


def test_the_links_that_kubernetes_puts_among_secrets_are_passed_over(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "volume" / "..2026_01_01"
    data.mkdir(parents=True)
    (data / "registry__password").write_text(SECRET)
    (data.parent / "..data").symlink_to(data.name)
    (data.parent / "registry__password").symlink_to("..data/registry__password")
    monkeypatch.setenv(SECRETS_DIR_VARIABLE, str(data.parent))
    password = settings.load(file).registry.password
    assert password is not None
    assert password.get_secret_value() == SECRET


def test_a_secrets_folder_that_is_absent_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS_DIR_VARIABLE, "/nowhere/at/all")
    assert f"{SECRETS_DIR_VARIABLE} is '/nowhere/at/all'" in refused(file)


def test_a_secrets_file_that_is_no_text_is_refused_by_name(
    file: Path, secrets: Callable[..., None], tmp_path: Path
) -> None:
    secrets()
    (tmp_path / "secrets" / "registry__password").write_bytes(b"\xff\xfe")
    assert "registry__password cannot be read" in refused(file)


@pytest.fixture
def with_secrets(file: Path) -> Settings:
    options = {
        "sasl.password": SECRET,
        "ssl.key.pem": SECRET,
        "ssl.key.password": SECRET,
        "sasl.oauthbearer.client.secret": SECRET,
        "sasl.oauthbearer.assertion.private.key.passphrase": SECRET,
        "sasl.oauthbearer.token.endpoint.url": f"https://me:{SECRET}@host/token",
        "client.id": "shown",
    }
    return settings.load(
        file,
        kafka={"sasl_password": SECRET, "options": options, "producer_options": {"sasl.oauthbearer.config": SECRET}},
        registry={"username": "me", "password": SECRET},
        reservoir={"url": f"redis://me:{SECRET}@host"},
    )


@pytest.mark.parametrize("show", [repr, str, lambda s: s.model_dump_json(), lambda s: str(s.model_dump(mode="json"))])
def test_secrets_are_never_shown(with_secrets: Settings, show: Callable[[Settings], str]) -> None:
    shown = show(with_secrets)
    assert SECRET not in shown
    assert "client.id" in shown


def test_secrets_go_to_another_process_of_ours_whole(with_secrets: Settings) -> None:
    document = json.loads(json.dumps(settings.to_plain(with_secrets)))
    assert document["kafka"]["options"]["sasl.password"] == SECRET
    again = settings.from_plain(document)
    assert again.model_dump() == with_secrets.model_dump()


def test_what_another_process_sent_is_not_changed_by_this_ones_environment(
    with_secrets: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = settings.to_plain(with_secrets)
    monkeypatch.setenv("STREAM_VAE_KAFKA__LITE_TOPIC", "elsewhere")
    assert settings.from_plain(document).kafka.lite_topic is None


def test_a_secret_of_the_wrong_type_is_not_shown_by_the_error(file: Path) -> None:
    assert SECRET not in refused(file, kafka={"sasl_password": [SECRET]}, registry={"password": {"x": SECRET}})


def test_a_password_in_the_registrys_url_is_refused_without_being_shown(file: Path) -> None:
    message = refused(file, registry={"url": f"http://me:{SECRET}@registry:8081"})
    assert "registry.username" in message
    assert SECRET not in message


@pytest.mark.parametrize("url", [f"sftp://me:{SECRET}@host/releases", f"ftp://:{SECRET}@host"])
def test_a_password_in_the_stores_url_is_refused_without_being_shown(file: Path, url: str) -> None:
    message = refused(file, release={"store": url})
    assert "release.store" in message
    assert SECRET not in message


def test_a_password_in_the_second_of_several_registries_is_refused_too(file: Path) -> None:
    assert SECRET not in refused(file, registry={"url": f"http://one:8081,http://me:{SECRET}@two:8081"})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"batch": {"max_alerts": 0}}, "batch.max_alerts"),
        ({"batch": {"max_alerts": "many"}}, "batch.max_alerts"),
        ({"batch": {"max_wait_s": -1}}, "batch.max_wait_s"),
        ({"delivery": {"mode": "twice"}}, "delivery.mode: Input should be 'at_least_once' or 'exactly_once'"),
        ({"metrics": {"port": 70_000}}, "metrics.port"),
        ({"limits": {"max_dead_letter_ratio": 2}}, "limits.max_dead_letter_ratio"),
        ({"filter": {"min_real_score": 1.5}}, "filter.min_real_score"),
        ({"survey": " ztf"}, "survey: must not be empty or padded"),
        ({"kafka": {"input_topics": []}}, "kafka.input_topics"),
        ({"kafka": {"dead_letter_topic": ""}}, "kafka.dead_letter_topic"),
        ({"kafka": {"output_topic": None}}, "set kafka.output_topic, kafka.lite_topic or both"),
        ({"kafka": {"framing": "protobuf"}}, "kafka.framing"),
        ({"kafka": {"framing": "schemaless"}}, "needs kafka.schema_file"),
        ({"kafka": {"input_topics": ["dead"]}}, "dead is both read and written"),
        ({"kafka": {"input_topics": ["alerts", "^enri.*"]}}, "enriched is both read and written"),
        ({"kafka": {"input_topics": ["^("]}}, "'^(' is no pattern of topics"),
        ({"kafka": {"lite_topic": "enriched"}}, "must differ"),
        ({"kafka": "a table"}, "kafka: must be a table: [kafka]."),
        ({"labels": {"topic": ""}}, "labels.topic"),
        ({"labels": {"topic": "alerts"}}, "labels.topic = alerts is read by workers"),
        ({"labels": {"topic": "dead"}}, "labels.topic = dead is written by workers"),
        ({"labels": {"topic": "labels", "group_id": "toml"}}, "labels.group_id is that of the workers"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(file: Path, flags: dict[str, Any], words: str) -> None:
    assert words in refused(file, **flags)


def test_all_wrong_values_are_named_at_once(file: Path) -> None:
    message = refused(file, batch={"max_alerts": 0, "max_bytes": 0}, survey="")
    assert all(key in message for key in ("batch.max_alerts", "batch.max_bytes", "survey"))
    assert str(file) in message


def test_what_is_required_and_absent_is_named_with_the_variable_for_it(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[kafka]\n")
    message = refused(path)
    assert (
        "kafka.bootstrap_servers: is required; set it in the file or as STREAM_VAE_KAFKA__BOOTSTRAP_SERVERS" in message
    )
    assert "release: is required: set at least release.store." in message
    assert "no settings file was given" in refused(None)


def test_a_pattern_of_topics_that_takes_in_no_output_is_fine(file: Path) -> None:
    assert settings.load(file, kafka={"input_topics": ["^alerts_\\d+"]}).kafka.input_topics == ("^alerts_\\d+",)


@pytest.mark.parametrize("content", [b"survey = ", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    assert f"{path} is not valid TOML" in refused(path)


def test_a_file_that_cannot_be_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        assert f"Cannot read the settings file {path}" in refused(path)
        assert "stream-vae config init" in refused(path)


def test_labels_are_read_by_a_group_of_their_own(file: Path) -> None:
    assert settings.load(file).labels_group_id == "toml-labels"
    own = settings.load(file, labels={"topic": "labels", "group_id": "own"})
    assert (own.labels.topic, own.labels_group_id) == ("labels", "own")


def test_a_stage_gets_a_section_and_no_section_holds_another() -> None:
    assert not any(
        isinstance(field.annotation, type) and issubclass(field.annotation, settings.Section)
        for field in KafkaSettings.model_fields.values()
    )
