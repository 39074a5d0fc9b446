"""The compose files without Docker: they are valid, fit what they mount, and give each user what it needs."""

import functools
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from stream_vae import settings
from stream_vae.tools.checks_reservoir import WORKERS_RIGHTS

import compose
import dockerfile
import programs
from compose import BASE, FOLDER, OVERLAYS, STACKS
from monitoring import DASHBOARDS, promtool
from servers import REPOSITORY

OURS = ("first-release", "worker", "trainer", "replayer")
READS_SETTINGS = ("worker", "trainer", "replayer")
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
EXAMPLE_LINE = re.compile(r"^#([A-Z_]+)=(\S+)", re.MULTILINE)
GRAFANA = REPOSITORY / "deploy" / "grafana" / "provisioning"

stacks = pytest.mark.parametrize("files", STACKS, ids="+".join)


def complaints(path):
    """What the compose specification says of a file."""
    done = programs.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    return "" if done.returncode == 0 else done.stdout + done.stderr


# The specification


@pytest.mark.usefixtures("linters")
@pytest.mark.parametrize("name", [BASE, *OVERLAYS])
def test_a_compose_file_is_what_the_specification_says(name):
    assert complaints(FOLDER / name) == ""


@pytest.mark.usefixtures("linters")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [("restart: unless-stopped", "restrat: always"), ("retries: 6", "retries: [6]"), ("shm_size: 256m", "shm-size: 1")],
)
def test_a_field_that_compose_does_not_know_would_be_found(right, wrong, tmp_path):
    text = (FOLDER / BASE).read_text()
    assert right in text
    (tmp_path / BASE).write_text(text.replace(right, wrong))
    assert complaints(tmp_path / BASE) != ""


@functools.cache
def compose_is_missing():
    if shutil.which("docker") is None:
        return "no docker"
    return "" if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0 else "no compose"


@pytest.fixture
def composed(tmp_path):
    """Have Docker merge files, with nothing but their defaults."""
    if missing := compose_is_missing():
        pytest.skip(f"{missing}: files are merged by Docker's compose where it is installed")

    def merge(files, variables=""):
        (tmp_path / "env").write_text(variables)
        arguments = ["--env-file", str(tmp_path / "env"), *(part for file in files for part in ("--file", file))]
        done = subprocess.run(
            ["docker", "compose", *arguments, "--profile", "*", "config", "--format", "json"],
            cwd=FOLDER,
            env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", "compose warns"
        return json.loads(done.stdout)

    return merge


@stacks
@pytest.mark.usefixtures("linters")
def test_docker_merges_the_files_to_what_these_tests_take_them_for(files, composed, tmp_path):
    merged, own = composed(files), compose.model(*files)
    (tmp_path / "merged.json").write_text(json.dumps(merged))
    assert complaints(tmp_path / "merged.json") == ""
    assert merged["services"].keys() == own["services"].keys()
    for name, service in merged["services"].items():
        for part in (compose.environment, compose.secrets, compose.configs):
            assert part(service) == part(own["services"][name]), (name, part.__name__)
        for key in ("image", "profiles", "read_only", "cap_drop"):
            assert service.get(key) == own["services"][name].get(key), (name, key)
        assert service.get("build", {}).get("target") == own["services"][name].get("build", {}).get("target")


def test_a_variable_that_env_example_shows_changes_nothing_as_it_stands(composed):
    shown = dict(EXAMPLE_LINE.findall((FOLDER / ".env.example").read_text()))
    plain = composed((BASE,))
    of_compose = {name for name in shown if name.startswith("COMPOSE_")}
    assert composed((BASE,), "\n".join(f"{name}={shown[name]}" for name in shown.keys() - of_compose)) == plain
    assert composed((BASE,), "KAFKA_PORT=1") != plain


# Variables, images, files


def test_env_example_names_each_variable_that_the_files_read_with_its_default():
    shown = dict(EXAMPLE_LINE.findall((FOLDER / ".env.example").read_text()))
    read = {}
    for name in (BASE, *OVERLAYS):
        for variable, default in compose.variables((FOLDER / name).read_text()).items():
            assert read.setdefault(variable, default) == default, f"{variable} has two defaults"
    assert {"COMPOSE_FILE", "COMPOSE_PROFILES"} <= shown.keys(), "these Compose reads itself"
    assert {name: value for name, value in shown.items() if not name.startswith("COMPOSE_")} == read
    assert all((FOLDER / name).is_file() for name in shown["COMPOSE_FILE"].split(":"))
    profiles = {p for service in compose.model(BASE)["services"].values() for p in service.get("profiles", ())}
    assert set(shown["COMPOSE_PROFILES"].split(",")) <= profiles


@pytest.mark.parametrize("name", [BASE, *OVERLAYS])
def test_no_variable_is_read_in_a_way_that_these_tests_do_not_see(name):
    text = (FOLDER / name).read_text().replace("$$", "")
    assert text.count("$") == len(re.findall(r"\$\{[A-Z_]+:-[^}]+\}", text)), "a variable without a default"


@stacks
def test_every_image_has_a_tag_that_stays(files):
    for name, service in compose.model(*files)["services"].items():
        _, _, tag = service["image"].rpartition("/")[2].partition(":")
        assert tag not in {"", "latest"}, (name, service["image"])


@stacks
def test_what_compose_mounts_is_in_the_repository(files):
    for path in compose.host_files(files):
        assert compose.is_secret(path) or (FOLDER / path).exists(), path


@stacks
def test_every_secret_is_one_that_make_secrets_makes(files, tmp_path):
    script = (FOLDER / "make-secrets").read_text()
    made = {f"{name}_password" for name in re.search(r"^for name in (.+); do$", script, re.MULTILINE)[1].split()}
    made |= set(re.findall(r"> (kafka_\w+\.\w+)", script)) | set(re.findall(r"-out (kafka_ca\.pem)", script))
    document = compose.model(*files)
    assert {Path(path).name for path in compose.host_files(files) if compose.is_secret(path)} <= made
    for service in document["services"].values():
        assert set(compose.secrets(service).values()) <= document["secrets"].keys()
        assert set(compose.configs(service).values()) <= document["configs"].keys()


@stacks
def test_our_containers_are_built_from_targets_of_the_dockerfile_and_tagged_as_it_says(files):
    tags = dockerfile.tags()
    for name in OURS:
        service = compose.model(*files)["services"][name]
        build = service["build"]
        assert (FOLDER / build["context"]).resolve() == REPOSITORY
        assert (REPOSITORY / build["dockerfile"]) == dockerfile.FILE
        assert service["image"] == f"stream-vae:{tags[build['target']]}"
    assert tags["serve"] == VERSION


@stacks
def test_our_containers_may_do_no_more_than_they_need(files):
    for name in OURS:
        service = compose.model(*files)["services"][name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name


@stacks
def test_ports_are_open_on_this_machine_alone(files):
    ports = [port for service in compose.model(*files)["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports), ports


# The settings, and what is made for them


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Read the settings file as a container would: with its variables, those of its image, and its secrets."""

    def read(service):
        folder = tmp_path / "secrets"
        folder.mkdir(exist_ok=True)
        for file in compose.secrets(service):
            (folder / file).write_text("word")
        given = dockerfile.environment() | compose.environment(service)
        # A folder that is named has to be there, and compose makes it where there is a secret to put into it.
        has_secrets = bool(compose.secrets(service))
        assert given.get(settings.SECRETS_DIR_VARIABLE) == ("/run/secrets" if has_secrets else None)
        given |= {settings.SECRETS_DIR_VARIABLE: str(folder)} if has_secrets else {}
        for name, value in given.items():
            if name.startswith("STREAM_VAE_"):
                monkeypatch.setenv(name, value)
        return settings.load(FOLDER / compose.model(BASE)["configs"]["settings"]["file"])

    return read


@stacks
@pytest.mark.parametrize("name", READS_SETTINGS)
def test_the_settings_are_read_by_stream_vae(files, name, load):
    service = compose.model(*files)["services"][name]
    assert compose.configs(service)["/etc/stream-vae/settings.toml"] == "settings"
    assert "/etc/stream-vae/settings.toml" in dockerfile.command() + str(service.get("command"))
    loaded = load(service)
    is_secure = "compose.secure.yaml" in files
    assert (loaded.kafka.sasl_username, loaded.kafka.sasl_password is not None) == (
        (name, True) if is_secure else (None, False)
    )
    assert is_secure == (loaded.kafka.options.get("security.protocol") == "SASL_SSL")
    if name != "replayer":
        assert loaded.reservoir.url.get_secret_value().startswith(f"redis://{name}@valkey:")
        assert loaded.reservoir.password.get_secret_value() == "word"
    assert loaded.metrics.port == 9400
    assert loaded.encoder.device == ("gpu" if "compose.gpu.yaml" in files and name == "worker" else "cpu")


@stacks
def test_a_container_has_longer_to_end_than_a_worker_takes_to_drain(files, load):
    service = compose.model(*files)["services"]["worker"]
    assert int(service["stop_grace_period"].removesuffix("s")) > load(service).delivery.drain_timeout_s


@pytest.fixture
def run_script(tmp_path):
    """Run a script of a container with its folders under one of this test's own, and pretended programs."""

    def run(name, **variables):
        text = (FOLDER / name).read_text()
        for folder in ("opt/kafka/bin", "run/secrets", "tmp"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        text = re.sub(r"(?<![\w.])/(opt/kafka/bin|run/secrets|tmp)/", rf"{tmp_path}/\1/", text)
        log = tmp_path / "log"
        for program in ("kafka-topics.sh", "kafka-acls.sh", "valkey-server"):
            file = tmp_path / "opt/kafka/bin" / program
            file.write_text(f'#!/bin/sh\necho "{program}" "$@" >> {log}\n')
            file.chmod(0o755)
        (tmp_path / name).write_text(text)
        shell = text.partition("\n")[0].rpartition("/")[2].removeprefix("env ")
        environment = {"PATH": f"{tmp_path}/opt/kafka/bin:{os.environ['PATH']}"} | variables
        done = subprocess.run([shell, name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return [line.split() for line in log.read_text().splitlines()]  # what was started

    return run


def _option(line, name):
    return [line[index + 1] for index, word in enumerate(line) if word == name]


@pytest.fixture
def plain(load):
    return load(compose.model(BASE)["services"]["worker"])


def test_make_topics_makes_the_topics_of_the_settings(run_script, plain):
    lines = run_script("make-topics", BOOTSTRAP="kafka:9092", PARTITIONS="7")
    assert {line[0] for line in lines} == {"kafka-topics.sh"}
    made = {_option(line, "--topic")[0]: int(_option(line, "--partitions")[0]) for line in lines}
    kafka = plain.kafka
    of_alerts = {*kafka.input_topics, kafka.output_topic, kafka.lite_topic, kafka.dead_letter_topic}
    assert made == dict.fromkeys(of_alerts, 7) | {plain.labels.topic: 1}
    largest = compose.environment(compose.model(BASE)["services"]["kafka"])["KAFKA_MESSAGE_MAX_BYTES"]
    sizes = {_option(line, "--topic")[0]: _option(line, "--config") for line in lines}
    assert {sizes[topic][0] for topic in of_alerts} == {f"max.message.bytes={largest}"}


def test_make_topics_gives_each_user_the_rights_that_it_needs_and_no_more(run_script, plain):
    lines = run_script("make-topics", BOOTSTRAP="kafka:9092", PARTITIONS="4", ADMIN="/run/secrets/admin")
    granted = set()
    for line in (line for line in lines if line[0] == "kafka-acls.sh"):
        pattern = (_option(line, "--resource-pattern-type") or ["literal"])[0]
        for kind in ("topic", "group", "transactional-id"):
            for resource in _option(line, f"--{kind}"):
                for operation in _option(line, "--operation"):
                    (user,) = _option(line, "--allow-principal")
                    granted.add((user.removeprefix("User:"), operation, kind, resource, pattern))
    kafka, labels = plain.kafka, plain.labels
    assert granted == {
        *(("worker", "Read", "topic", topic, "literal") for topic in kafka.input_topics),
        ("worker", "Write", "topic", kafka.output_topic, "literal"),
        ("worker", "Write", "topic", kafka.lite_topic, "literal"),
        ("worker", "Write", "topic", kafka.dead_letter_topic, "literal"),
        ("worker", "Read", "group", kafka.group_id, "literal"),
        ("worker", "Write", "transactional-id", kafka.group_id, "prefixed"),
        ("worker", "Describe", "transactional-id", kafka.group_id, "prefixed"),
        ("trainer", "Read", "topic", labels.topic, "literal"),
        ("trainer", "Read", "group", plain.labels_group_id, "literal"),
        ("trainer", "Write", "topic", kafka.dead_letter_topic, "literal"),
        *(("replayer", "Write", "topic", topic, "literal") for topic in kafka.input_topics),
    }


@pytest.fixture
def passwords(tmp_path):
    """The secrets of Valkey, for run_script."""
    (tmp_path / "run/secrets").mkdir(parents=True)
    files = {user: tmp_path / f"run/secrets/valkey_{user}_password" for user in ("worker", "trainer")}
    for user, file in files.items():
        file.write_text(f"word-of-{user}")
    return files


@pytest.mark.parametrize("user", ["worker", "trainer"])
def test_valkey_does_not_start_without_a_password(user, run_script, passwords):
    passwords[user].unlink()
    with pytest.raises(AssertionError, match=f"valkey_{user}_password"):
        run_script("start-valkey", MAXMEMORY="512mb")


@pytest.mark.usefixtures("passwords")
def test_valkey_gives_a_worker_the_rights_that_doctor_names(run_script):
    (line,) = run_script("start-valkey", MAXMEMORY="512mb")
    assert _option(line, "--maxmemory") == ["512mb"]
    users = {}
    for rule in Path(_option(line, "--aclfile")[0]).read_text().splitlines():
        _, name, *rest = rule.split()
        users[name] = rest
    assert users["default"] == ["off"]
    assert users["worker"] == ["on", ">word-of-worker", "~{vae}:*", *WORKERS_RIGHTS]
    assert users["trainer"][:3] == ["on", ">word-of-trainer", "~{vae}:*"]
    assert set(users["trainer"]) >= {"-@all", "-@dangerous"}
    assert users["probe"] == ["on", "nopass", "-@all", "+ping"]


def test_the_readme_of_deploy_names_the_same_rights():
    page = (REPOSITORY / "deploy" / "README.md").read_text()
    (said,) = re.findall(r"`ACL SETUSER worker on >PASSWORD ~\{vae\}:\* ([^`]+)`", page)
    assert said.split() == WORKERS_RIGHTS


# What watches


def test_prometheus_finds_every_process_that_has_metrics():
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    services = compose.model(BASE)["services"]
    mounted = compose.configs(services["prometheus"])
    assert mounted["/etc/prometheus/prometheus.yml"] == "prometheus"
    assert {mounted[file] for file in config["rule_files"]} == {"rules"}
    found = {name: each for job in config["scrape_configs"] for each in job["dns_sd_configs"] for name in each["names"]}
    assert found.keys() == {"worker", "trainer"} <= services.keys()
    port = int(dockerfile.environment()["STREAM_VAE_METRICS__PORT"])
    assert {each["port"] for each in found.values()} == {port}
    for name in found:
        assert f":{port}/readyz" in " ".join(services[name]["healthcheck"]["test"])


@pytest.mark.usefixtures("monitoring_tools")
def test_prometheus_takes_its_configuration():
    promtool("check", "config", "--syntax-only", FOLDER / "prometheus.yaml")


def test_grafana_finds_prometheus_and_the_dashboards():
    services = compose.model(BASE)["services"]
    grafana = services["grafana"]
    given = compose.configs(grafana)
    assert given == {
        "/etc/grafana/provisioning/datasources/stream-vae.yaml": "grafana-datasources",
        "/etc/grafana/provisioning/dashboards/stream-vae.yaml": "grafana-dashboards",
    }
    for name in ("datasources", "dashboards"):
        file = compose.model(BASE)["configs"][f"grafana-{name}"]["file"]
        assert (FOLDER / file).resolve() == GRAFANA / f"{name}.yaml"
    (source,) = yaml.safe_load((GRAFANA / "datasources.yaml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert "prometheus" in services
    assert source["url"] == "http://prometheus:9090"
    assert services["prometheus"]["ports"][0].endswith(":9090")
    mounts = {volume.split(":")[1]: volume.split(":")[0] for volume in grafana["volumes"]}
    (provider,) = yaml.safe_load((GRAFANA / "dashboards.yaml").read_text())["providers"]
    path = provider["options"]["path"]
    assert (FOLDER / mounts[path]).resolve() == DASHBOARDS
    home = Path(compose.environment(grafana)["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == path
    assert (DASHBOARDS / home.name).is_file()
    password = compose.environment(grafana)["GF_SECURITY_ADMIN_PASSWORD__FILE"]
    assert Path(password).name in compose.secrets(grafana)
