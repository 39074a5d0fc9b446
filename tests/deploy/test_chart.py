"""The Helm chart without a cluster: what it makes of its examples, what it refuses, and whether it says so."""

import copy
import json
import os
import re
import tomllib

import jsonschema
import pytest
import yaml
from stream_vae import settings

import chart
import chart_schema
from chart import CHART, EXAMPLES, NEWEST, OLDEST, REPOSITORY, Pod, of_kind, pods, problems, refused, render

pytestmark = pytest.mark.usefixtures("helm")  # every test here renders

RAY = ["raycluster", "gpu", "backfill"]
LEAST = {
    "settings": {
        "survey": "ztf",
        "kafka": {
            "bootstrap_servers": "kafka:9092",
            "input_topics": ["ztf"],
            "output_topic": "out",
            "dead_letter_topic": "dead",
        },
    }
}


@pytest.fixture
def definitions():
    """The definitions of the operators' resources; this repository holds none."""
    if chart.CRDS.is_dir():
        return
    if "CRD_DIR" in os.environ:
        pytest.fail(f"CRD_DIR={chart.CRDS} is no folder")
    # In CI too: nothing installs them, so their absence is no fault of that machine.
    pytest.skip(f"{chart.CRDS} is absent; set CRD_DIR to a folder with the definitions of KubeRay, Prometheus and KEDA")


@pytest.fixture
def values(tmp_path):
    """Write values beside the least that a deployment has to say."""

    def write(**more):
        document = copy.deepcopy(LEAST)
        for key, value in more.items():
            document[key] = document.get(key, {}) | value if isinstance(value, dict) else value
        file = tmp_path / f"values-{len(list(tmp_path.iterdir()))}.yaml"
        file.write_text(yaml.safe_dump(document))
        return file

    return write


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Read a rendered settings file as a worker in its pod would: with the variables and secrets of that pod."""

    def read(documents):
        file = tmp_path / "settings.toml"
        file.write_text(chart.settings_file(documents))
        for container in pods(documents)[0].containers():
            for variable in container["env"]:
                if variable["name"].startswith("STREAM_VAE_") and variable["name"] != settings.SECRETS_DIR_VARIABLE:
                    monkeypatch.setenv(variable["name"], variable["value"])
        return settings.load(file)

    return read


# What comes out


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_passes_lint_without_a_warning(example):
    file = CHART / f"examples/{example}.yaml"
    done = chart.helm("lint", "--strict", str(CHART), "--values", str(file), "--kube-version", NEWEST)
    assert done.returncode == 0, done.stdout


def _problems(example, kubernetes, *, custom):
    documents = [each for each in render(example, kubernetes=kubernetes) if chart.is_custom(each) is custom]
    return [problem for document in documents for problem in problems(document, kubernetes)]


@pytest.mark.parametrize("kubernetes", [OLDEST, NEWEST])
@pytest.mark.parametrize("example", EXAMPLES)
def test_kubernetes_knows_every_field_of_what_an_example_becomes(example, kubernetes):
    assert _problems(example, kubernetes, custom=False) == []


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize("example", EXAMPLES)
def test_operators_know_every_field_of_what_an_example_becomes(example):
    assert _problems(example, NEWEST, custom=True) == []


def _set(document, path, value):
    *way, last = path
    for key in way:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "imagePullSecret"), "x"),
        ("Deployment", ("spec", "replicas"), "two"),
        ("Service", ("spec", "ports", 0, "prot"), 1),
    ],
)
def test_a_field_that_kubernetes_does_not_know_would_be_found(kind, path, value):
    document = of_kind(render("ztf"), kind)[0]
    assert problems(document) == []
    _set(document, path, value)
    assert problems(document) != []


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize(
    ("example", "kind", "path", "value"),
    [
        ("raycluster", "RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("raycluster", "RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "enw"), []),
        ("backfill", "RayJob", ("spec", "submitterPodTemplate", "spec", "volumes", 0, "emptydir"), {}),
        ("backfill", "RayJob", ("spec", "backoffLimit"), "2"),
        ("everything", "ScaledObject", ("spec", "minReplicas"), 1),
        ("everything", "ScaledObject", ("spec", "triggers", 0, "metadata", "lagThreshold"), 5000),
        ("everything", "PrometheusRule", ("spec", "groups", 0, "rules", 0, "summary"), "x"),
        ("everything", "PrometheusRule", ("spec", "groups", 0, "rules", 0, "expr"), 1.5),
        ("everything", "ServiceMonitor", ("spec", "selectors"), {}),
        ("everything", "ServiceMonitor", ("spec", "endpoints"), None),
    ],
)
def test_a_field_that_an_operator_does_not_know_would_be_found(example, kind, path, value):
    document = of_kind(render(example), kind)[0]
    assert problems(document) == []
    _set(document, path, value)
    assert problems(document) != []


@pytest.mark.parametrize(
    ("schema", "takes", "refuses"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}}, [{}, {"a": "x"}], [{"b": 1}, {"a": None}]),
        ({"type": "object"}, [{}], [{"a": 1}, None]),
        ({"type": "object", "x-kubernetes-preserve-unknown-fields": True}, [{"a": 1}], [None]),
        ({"type": "object", "additionalProperties": {"type": "object"}}, [{"a": {}}], [{"a": {"b": 1}}]),
        ({"type": "array", "items": {"type": "object"}}, [[{}]], [[{"b": 1}]]),
        ({"x-kubernetes-int-or-string": True}, [1, "1"], [1.5, None]),
        ({"type": "string", "enum": ["x"], "nullable": True}, ["x", None], ["y"]),
        ({"type": "object", "properties": {"properties": {"type": "integer"}}}, [{"properties": 1}], [{"a": 1}]),
    ],
)
def test_a_definition_is_read_as_the_api_server_reads_it(schema, takes, refuses):
    validator = jsonschema.Draft202012Validator(chart.strict(schema))
    assert all(validator.is_valid(value) for value in takes)
    assert not any(validator.is_valid(value) for value in refuses)


def test_a_key_that_stands_twice_would_be_found():
    with pytest.raises(yaml.constructor.ConstructorError, match="twice: name"):
        chart.StrictLoader("env: [{name: a, name: b}]").get_single_data()


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_pod_satisfies_the_restricted_standard_and_cannot_write_its_root(example):
    found = {pod.where: chart.less_than_restricted(pod) for pod in pods(render(example))}
    assert found
    assert not any(found.values()), found


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("hostNetwork",), True, "hostNetwork"),
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}, "worker: seccompProfile"),
        (("securityContext", "runAsUser"), 0, "worker: runAsUser"),
        (("containers", 0, "securityContext", "capabilities"), {"drop": ["ALL"], "add": ["NET_RAW"]}, "capabilities"),
        (("containers", 0, "securityContext", "runAsNonRoot"), False, "worker: runAsNonRoot"),
        (("containers", 0, "securityContext"), {}, "worker: allowPrivilegeEscalation"),
        (("containers", 0, "securityContext", "readOnlyRootFilesystem"), False, "readOnlyRootFilesystem"),
        (("initContainers", 0, "securityContext", "privileged"), True, "wait-for-release: privileged"),
        (("containers", 0, "ports"), [{"containerPort": 1, "hostPort": 1}], "worker: hostPort"),
        (("volumes", 0), {"name": "root", "hostPath": {"path": "/"}}, "volume root: hostPath"),
    ],
)
def test_a_pod_that_the_standard_refuses_would_be_found(path, value, says):
    (pod,) = (pod for pod in pods(render("ztf")) if pod.where.startswith("Deployment"))
    assert chart.less_than_restricted(pod) == []
    _set(pod.spec, path, value)
    assert any(says in found for found in chart.less_than_restricted(pod))


@pytest.mark.parametrize("example", EXAMPLES)
def test_no_container_has_a_token_of_kubernetes_but_rays_autoscaler(example):
    for pod in pods(render(example)):
        assert pod.spec["automountServiceAccountToken"] is False, pod.where
        mounted = [
            container["name"]
            for container in pod.containers()
            if any("serviceaccount" in mount["mountPath"] for mount in container.get("volumeMounts", ()))
        ]
        assert set(mounted) <= {"autoscaler"}, pod.where


@pytest.mark.parametrize("example", EXAMPLES)
def test_no_variable_of_a_service_is_taken_for_a_setting(example):
    assert all(pod.spec["enableServiceLinks"] is False for pod in pods(render(example)))


@pytest.mark.parametrize("example", EXAMPLES)
def test_names_are_short_enough_where_the_releases_name_is_as_long_as_helm_takes(example):
    documents = render(example, name="a" * 53)
    limits = {"RayCluster": 53, "RayJob": 47, "StatefulSet": 52}
    for document in documents:
        name = document["metadata"]["name"]
        assert len(name) <= limits.get(document["kind"], 63), document["kind"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
        assert len(chart.longest_label(document)) <= 63
    assert len({(document["kind"], document["metadata"]["name"]) for document in documents}) == len(documents)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_rendered_settings_are_read_by_stream_vae(example, load):
    loaded = load(render(example))
    given = yaml.safe_load((CHART / f"examples/{example}.yaml").read_text())["settings"]
    assert loaded.survey == given["survey"]
    assert list(loaded.kafka.input_topics) == given["kafka"]["input_topics"]
    assert loaded.metrics.port == 9400


def test_whole_numbers_stay_whole_and_dots_in_keys_stay_dots(values, load):
    more = {
        "limits": {"max_packet_bytes": 16777216, "max_body_bytes": 4294967296, "max_dead_letter_ratio": 0.25},
        "survey_profile": {"time_format": "mjd", "sizes": [63, 0.5, 30]},
        "fleet": {"max_workers": None},
    }
    options = {"socket.timeout.ms": 60000, "queued.max.messages.kbytes": 2097151, "log_level": 3, "api": 1.5}
    document = LEAST["settings"] | more | {"kafka": LEAST["settings"]["kafka"] | {"options": options}}
    rendered = render(values(settings=document))
    written = tomllib.loads(chart.settings_file(rendered))
    assert written["survey_profile"]["sizes"] == [63, 0.5, 30]
    assert [type(number) for number in written["survey_profile"]["sizes"]] == [int, float, int]
    assert written["fleet"] == {}
    loaded = load(rendered)
    assert {key: str(value) for key, value in loaded.kafka.options.items()} == {
        "socket.timeout.ms": "60000",
        "queued.max.messages.kbytes": "2097151",
        "log_level": "3",
        "api": "1.5",
    }
    assert (loaded.limits.max_body_bytes, loaded.limits.max_dead_letter_ratio) == (2**32, 0.25)


# What belongs to a mode


def test_at_least_once_is_a_deployment_that_never_has_a_pod_too_many():
    (worker,) = of_kind(render("ztf"), "Deployment", "StatefulSet")
    assert worker["kind"] == "Deployment"
    assert worker["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_exactly_once_is_a_stateful_set_whose_pods_have_transactional_ids_of_their_own():
    (worker,) = of_kind(render("exactly-once"), "Deployment", "StatefulSet")
    assert (worker["kind"], worker["spec"]["podManagementPolicy"]) == ("StatefulSet", "Parallel")
    variables = {each["name"]: each for each in worker["spec"]["template"]["spec"]["containers"][0]["env"]}
    names = list(variables)
    assert variables["POD_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert variables["STREAM_VAE_DELIVERY__TRANSACTIONAL_ID"]["value"] == "ztf-$(POD_NAME)"  # begins with the group
    assert names.index("POD_NAME") < names.index("STREAM_VAE_DELIVERY__TRANSACTIONAL_ID")  # or it is not expanded


@pytest.mark.parametrize("example", EXAMPLES)
def test_kubernetes_waits_longer_than_a_worker_takes_to_drain(example, load):
    documents = render(example)
    drain_s = load(documents).delivery.drain_timeout_s
    drained = [pod for pod in pods(documents) if re.search("worker|head$|^Stateful|encoders", pod.where)]
    for pod in drained:
        assert pod.spec["terminationGracePeriodSeconds"] >= drain_s + 30, pod.where


@pytest.mark.parametrize("example", ["raycluster", "gpu"])
def test_every_process_of_a_ray_cluster_has_the_token(example):
    for pod in pods(render(example)):
        for container in pod.containers():
            env = {each["name"]: each for each in container["env"]}
            assert env["RAY_AUTH_MODE"]["value"] == "token", container["name"]
            assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "night-stream-vae-ray-token"


@pytest.mark.parametrize("example", RAY)
def test_ray_tells_nobody_that_it_is_used(example):
    env = [each for pod in pods(render(example)) for container in pod.containers() for each in container["env"]]
    told = [each["value"] for each in env if each["name"] == "RAY_USAGE_STATS_ENABLED"]
    assert set(told) == {"0"}


def _cluster(documents):
    (document,) = of_kind(documents, "RayCluster", "RayJob")
    return document["spec"].get("rayClusterSpec", document["spec"])


@pytest.mark.parametrize(("example", "host"), [("raycluster", "127.0.0.1"), ("backfill", "0.0.0.0")])  # noqa: S104
def test_rays_dashboard_is_heard_outside_only_where_kuberay_asks_it(example, host):
    assert _cluster(render(example))["headGroupSpec"]["rayStartParams"]["dashboard-host"] == host


def test_the_supervisor_shares_the_heads_sessions_and_no_actor_runs_there():
    head = _cluster(render("raycluster"))["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert [container["name"] for container in head["template"]["spec"]["containers"]] == ["ray-head", "supervisor"]
    for container in head["template"]["spec"]["containers"]:
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert (mounts["/tmp/ray"], mounts["/dev/shm"]) == ("ray-logs", "shared-mem")  # noqa: S108
    assert head["template"]["spec"]["shareProcessNamespace"] is True


def test_every_pod_of_a_fleet_reaches_store_and_secrets(values):
    documents = render(values(mode="raycluster", secrets=[{"name": "kafka"}]))
    for pod in pods(documents):
        for container in pod.containers():
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts >= {"/releases", "/etc/stream-vae/secrets"}, (pod.where, container["name"])


def test_a_change_makes_a_new_ray_cluster_and_another_number_of_pods_does_not(values):
    def name(**more):
        return of_kind(render(values(mode="raycluster", **more)), "RayCluster")[0]["metadata"]["name"]

    group = yaml.safe_load((CHART / "values.yaml").read_text())["ray"]["groups"][0]
    before = name()
    assert name() == before
    assert name(ray={"groups": [group | {"replicas": 5}]}) == before
    assert name(ray={"groups": [group | {"cpus": 2}]}) != before
    assert name(image={"tag": "0.2.0"}) != before
    assert name(settings={"drift": {"enabled": False}}) != before


def test_a_change_of_the_settings_rolls_the_pods(values):
    def checksums(**more):
        return {pod.annotations.get("checksum/settings") for pod in pods(render(values(**more))) if "Dep" in pod.where}

    assert checksums() == checksums()
    assert checksums().isdisjoint(checksums(settings={"drift": {"enabled": False}}))


def test_images_have_what_their_pods_need(values):
    def image(documents, where):
        (found,) = {pod.spec["containers"][0]["image"] for pod in pods(documents) if re.search(where, pod.where)}
        return found.removeprefix("stream-vae:")

    plain = render(
        values(trainer={"enabled": True, "gpus": 1}, firstRelease={"enabled": True}, extraEnv=[{"name": "A"}])
    )
    assert image(plain, "Deployment night-stream-vae$") == "0.1.0"
    assert image(plain, "trainer$") == "0.1.0-train-gpu"
    assert image(plain, "^Job") == "0.1.0-train"
    assert image(render(values(worker={"gpus": 1})), "^Deployment") == "0.1.0-gpu"
    gpu = render("gpu", "--set-string", "image.tag=9")
    assert (image(gpu, "head$"), image(gpu, "workers$"), image(gpu, "encoders$")) == ("9", "9", "9-gpu")


def test_only_what_trains_may_write_the_store(values):
    documents = render(values(trainer={"enabled": True}, firstRelease={"enabled": True}, extraEnv=[{"name": "A"}]))
    for pod in pods(documents):
        for container in pod.containers():
            (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "releases")
            assert mount["readOnly"] is (container["name"] not in {"trainer", "train"}), container["name"]


def test_a_trainer_works_where_the_settings_say_or_on_its_own_volume(values):
    given = {"trainer": {"enabled": True}, "extraEnv": [{"name": "A"}]}
    for retrain, work in (({}, "/work"), ({"work": "/data"}, None)):
        (pod,) = (pod for pod in pods(render(values(**given, settings={"retrain": retrain}))) if "trainer" in pod.where)
        env = {each["name"]: each.get("value") for each in pod.spec["containers"][0]["env"]}
        assert env.get("STREAM_VAE_RETRAIN__WORK") == work


def test_the_chart_has_the_versions_of_what_it_deploys():
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    ray = re.search(r"^ray==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert about["appVersion"] == project["version"]
    assert yaml.safe_load((CHART / "values.yaml").read_text())["ray"]["version"] == ray[1]


# What is watched


def test_alert_rules_and_dashboards_are_those_of_the_repository_with_another_runbook():
    documents = render("everything")
    (rules,) = of_kind(documents, "PrometheusRule")
    written = yaml.safe_load((CHART / "files/rules.yaml").read_text())
    count = sum(len(group["rules"]) for group in written["groups"])
    assert sum(len(group["rules"]) for group in rules["spec"]["groups"]) == count > 0
    assert "deploy/README.md#" not in json.dumps(rules).replace("stream-vae/deploy/README.md#", "")
    boards = [d for d in of_kind(documents, "ConfigMap") if "grafana_dashboard" in d["metadata"]["labels"]]
    files = sorted((CHART / "files/dashboards").glob("*.json"))
    shown = {name: json.loads(text) for board in boards for name, text in board["data"].items()}
    assert shown == {file.name: json.loads(file.read_text()) for file in files}


def test_the_autoscaler_of_kubernetes_follows_the_lag_of_every_topic():
    (scaled,) = of_kind(render("everything"), "ScaledObject")
    triggers = [trigger["metadata"] for trigger in scaled["spec"]["triggers"]]
    assert [trigger["topic"] for trigger in triggers] == ["skymapper", "skymapper-late"]
    assert {(trigger["consumerGroup"], trigger["lagThreshold"]) for trigger in triggers} == {("stream-vae", "5000")}
    (worker,) = (d for d in of_kind(render("everything"), "Deployment") if d["metadata"]["name"] == "night-stream-vae")
    assert "replicas" not in worker["spec"]


# What is refused


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mode": "rayjobs"}, "/mode"),
        ({"replicas": 3}, "replicas"),
        ({"worker": {"replica": 3}}, "replica"),
        ({"worker": {"replicas": "three"}}, "/worker/replicas"),
        ({"worker": {"readiness": "maybe"}}, "/worker/readiness"),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
        ({"ray": {"objectStoreBytes": 1000}}, "/ray/objectStoreBytes"),
        ({"ray": {"groups": []}}, "/ray/groups"),
        ({"secrets": ["kafka"]}, "/secrets/0"),
        ({"settings": {"kafka": {"bootstrap_servers": "kafka:9092"}}}, "input_topics"),
        ({"settings": {"batch": {"max_alert": 3}}}, "max_alert"),
        ({"settings": {"batch": {"max_alerts": 0}}}, "/settings/batch/max_alerts"),
        ({"settings": {"kafka": LEAST["settings"]["kafka"] | {"sasl_password": "x"}}}, "sasl_password"),
        ({"settings": {"reservoir": {"password": "x"}}}, "password"),
        ({"settings": {"reservoir": {"url": "redis://me:word@valkey"}}}, "/settings/reservoir/url"),
        (
            {"settings": {"kafka": LEAST["settings"]["kafka"] | {"options": {"ssl.key.password": "x"}}}},
            "ssl.key.password",
        ),
        ({"settings": {"encoder": {"actors": 1}}}, "settings.encoder.actors"),
        ({"settings": {"release": {"store": "s3://alerts/releases"}}}, "settings.release.store"),
        ({"trainer": {"enabled": True}}, "settings.reservoir.url"),
        ({"mode": "raycluster", "keda": {"enabled": True}}, "keda.enabled"),
        ({"mode": "rayjob", "networkPolicy": {"enabled": False}}, "networkPolicy.enabled"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(wrong, says, values):
    said = refused(values(**wrong))
    assert says in said or says.removeprefix("/").replace("/", ".") in said, said


def test_without_settings_the_chart_says_which_it_wants(tmp_path):
    nothing = tmp_path / "nothing.yaml"
    nothing.write_text("{}")
    assert re.search("survey.*kafka|kafka.*survey", refused(nothing), re.DOTALL)


def test_the_schema_is_that_of_the_settings():
    assert chart_schema.FILE.read_text() == chart_schema.text(), "python tests/chart_schema.py writes it anew"


def test_the_readme_explains_every_value_and_no_other():
    in_file = yaml.safe_load((CHART / "values.yaml").read_text())
    leaves = {leaf for leaf in chart.leaves(in_file) if not leaf.startswith("settings.")} | {"settings"}
    explained = chart.documented((CHART / "README.md").read_text())
    covered = {leaf for leaf in leaves if any(leaf == name or leaf.startswith(f"{name}.") for name in explained)}
    assert leaves - covered == set()
    of_groups = {f"ray.groups.{key}" for key in chart_schema.GROUP["properties"]}
    beyond = {name for name in explained if not any(f"{leaf}.".startswith(f"{name}.") for leaf in leaves)}
    assert beyond == of_groups


def test_a_pod_is_found_wherever_it_hides():
    kinds = {pod.where.split()[0] for example in EXAMPLES for pod in pods(render(example))}
    assert kinds == {"Deployment", "StatefulSet", "Job", "Pod", "RayCluster", "RayJob"}
    assert isinstance(pods(render("ztf"))[0], Pod)
