"""The Helm chart on a real cluster: installed, streamed through, disturbed, upgraded, rolled back and removed.

`make test-kubernetes`; needs kubectl and helm, a KUBECONFIG that may make namespaces, and for the second half the
KubeRay operator. The cluster has to have the images: KUBE_LOAD names a command that is given their names and brings
them there (`kind load docker-image`, say), IMAGE another repository and tag than stream-vae:0.1.0. All goes into a
namespace of its own that enforces the restricted Pod Security Standard, with a Kafka and a Valkey beside the chart.
"""

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flow import until
from servers import REPOSITORY

HERE = Path(__file__).parent
CHART = REPOSITORY / "deploy" / "helm" / "stream-vae"
IMAGE = os.environ.get("IMAGE", "stream-vae:0.1.0")
INSTALL_S = 600
KINDS = (
    "pod,deployment,statefulset,replicaset,job,service,configmap,secret,serviceaccount,pvc,poddisruptionbudget,"
    "networkpolicy,servicemonitor,podmonitor,prometheusrule,raycluster,rayjob"
)


def run(*command: object, stdin: str | None = None, timeout_s: float = 120, check: bool = True) -> str:
    done = subprocess.run(
        [str(each) for each in command], input=stdin, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0 or not check, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


class Cluster:
    """A namespace and a release of the chart in it."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.replays: list[subprocess.Popen[str]] = []

    def kubectl(self, *arguments: object, **more: Any) -> str:
        return run("kubectl", "--namespace", self.namespace, *arguments, **more)

    def helm(self, *arguments: object) -> float:
        """Run helm, and tell how long it took."""
        began = time.monotonic()
        run("helm", "--namespace", self.namespace, *arguments, timeout_s=INSTALL_S + 60)
        return time.monotonic() - began

    def upgrade(self, *more: object) -> float:
        values = ("--values", HERE / "values.yaml", "--set", f"image.repository={IMAGE.rpartition(':')[0]}")
        version = ("--set", f"image.tag={IMAGE.rpartition(':')[2]}")
        return self.helm(
            *("upgrade", "--install", "ztf", CHART, *values, *version, "--wait", "--timeout", f"{INSTALL_S}s", *more)
        )

    def objects(self, kinds: str, selector: str = "app.kubernetes.io/instance=ztf") -> list[dict[str, Any]]:
        return json.loads(self.kubectl("get", kinds, "--selector", selector, "--output", "json"))["items"]

    def pods(self, component: str) -> list[str]:
        """Give the names of a component's pods that are ready and not leaving."""
        found = self.objects("pod", f"app.kubernetes.io/instance=ztf,app.kubernetes.io/component={component}")
        return sorted(
            pod["metadata"]["name"]
            for pod in found
            if "deletionTimestamp" not in pod["metadata"]
            and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
        )

    def tools(self, *command: object, **more: Any) -> str:
        return self.kubectl("exec", "-i", "tools", "--", *command, **more)

    def replay(self, count: int, rate: int, seed: int) -> None:
        """Begin to send simulated alerts, some of them damaged."""
        sending = ("stream-vae", "replay", "sim", "--count", count, "--rate", rate, "--seed", seed, "--corrupt", 0.01)
        command = ["kubectl", "--namespace", self.namespace, "exec", "tools", "--", *map(str, sending)]
        self.replays.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))

    def replayed(self, timeout_s: float = 300) -> None:
        """Wait until all is sent."""
        for sending in self.replays:
            said, _ = sending.communicate(timeout=timeout_s)
            assert sending.returncode == 0, said
        self.replays = []

    def witness(self) -> dict[str, Any]:
        program = (HERE / "witness.py").read_text(encoding="utf-8")
        said = self.tools("python", "-", "kafka:9092", "ztf", "ztf-enriched", "ztf-dead-letters", stdin=program)
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found

    def settled(self) -> dict[str, Any]:
        """Wait until nothing lags, check the books, and give the witness's word."""

        def balanced() -> bool:
            books = json.loads(self.tools("stream-vae", "audit", "--json", check=False))
            return books["balanced"] and sum(each["lag"] for each in books["partitions"]) == 0

        until(balanced, what="all is settled and the books balance", timeout_s=300)
        return self.witness()


def shared_volume(cluster: Cluster) -> list[str]:
    """Make the claim `releases`; where the cluster makes no volumes, a folder of its one node. Gives what to delete."""
    classes = json.loads(run("kubectl", "get", "storageclass", "--output", "json"))["items"]
    mode = "ReadWriteMany" if not classes else os.environ.get("ACCESS_MODE", "ReadWriteOnce")
    claim: dict[str, Any] = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
    made = []
    if not classes:
        name = cluster.namespace
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": [mode],
                "storageClassName": "",
                "hostPath": {"path": f"/tmp/{name}", "type": "DirectoryOrCreate"},  # noqa: S108 - on the node
            },
        }
        run("kubectl", "apply", "-f", "-", stdin=json.dumps(volume))
        claim |= {"storageClassName": "", "volumeName": name}
        made = [name]
    document = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "releases"}, "spec": claim}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(document))
    return made


def on_the_node(cluster: Cluster, volume: str, command: str) -> None:
    """Run a command as root beside the volume's folder, in a namespace that lets one: a node's folder is root's."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{volume}-folder"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "folder",
                    "image": IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", command],
                    "securityContext": {"runAsUser": 0},
                    "volumeMounts": [{"name": "tmp", "mountPath": "/node"}],
                }
            ],
            "volumes": [{"name": "tmp", "hostPath": {"path": "/tmp"}}],  # noqa: S108 - on the node
        },
    }
    run("kubectl", "--namespace", "default", "apply", "-f", "-", stdin=json.dumps(pod))
    wait = ("wait", f"pod/{volume}-folder", "--for", "jsonpath={.status.phase}=Succeeded", "--timeout", "120s")
    run("kubectl", "--namespace", "default", *wait)
    run("kubectl", "--namespace", "default", "delete", "pod", f"{volume}-folder", "--now")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster")
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}")
    if load := os.environ.get("KUBE_LOAD"):
        run(*load.split(), IMAGE, f"{IMAGE}-train", "apache/kafka:4.1.0", "valkey/valkey:9", timeout_s=900)
    one = Cluster(f"stream-vae-test-{uuid.uuid4().hex[:8]}")
    run("kubectl", "create", "namespace", one.namespace)
    volumes: list[str] = []
    try:
        run("kubectl", "label", "namespace", one.namespace, "pod-security.kubernetes.io/enforce=restricted")
        volumes = shared_volume(one)
        for volume in volumes:
            on_the_node(one, volume, f"mkdir -p /node/{volume} && chmod 777 /node/{volume}")
        one.kubectl("apply", "-f", "-", stdin=(HERE / "backing.yaml").read_text("utf-8").replace("${IMAGE}", IMAGE))
        one.kubectl(
            "wait", "pod/kafka", "pod/valkey", "pod/tools", "--for=condition=Ready", "--timeout=180s", timeout_s=200
        )
        topics = "; ".join(
            f"/opt/kafka/bin/kafka-topics.sh --bootstrap-server kafka:9092 --create --topic {name} --partitions 4"
            for name in ("ztf", "ztf-enriched", "ztf-dead-letters")
        )
        one.kubectl("exec", "kafka", "--", "bash", "-c", topics)
        yield one
    finally:
        if os.environ.get("KEEP"):
            print(f"kept: namespace {one.namespace}")
        else:
            run("helm", "--namespace", one.namespace, "uninstall", "ztf", "--ignore-not-found", check=False)
            run("kubectl", "delete", "namespace", one.namespace, "--timeout=180s", timeout_s=200, check=False)
            for volume in volumes:
                run("kubectl", "delete", "pv", volume, "--timeout=60s", check=False)
                on_the_node(one, volume, f"rm -rf /node/{volume}")


def test_an_installation_becomes_ready_and_passes_its_own_test(cluster):
    print(f"\nhelm install --wait, deployment mode, a first release trained: {cluster.upgrade():.0f} s")
    assert len(cluster.pods("worker")) == 2
    cluster.helm("test", "ztf")


def test_pods_carry_no_token_and_cannot_write_their_image(cluster):
    for pod in cluster.objects("pod"):
        for container in pod["spec"]["containers"]:
            mounts = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
            assert not [path for path in mounts if path.startswith("/var/run/secrets")]
    worker = cluster.pods("worker")[0]
    assert cluster.kubectl("exec", worker, "--", "id", "-u").strip() == "10001"
    assert "Read-only" in cluster.kubectl("exec", worker, "--", "sh", "-c", "touch /opt/x 2>&1 || true")


def test_alerts_are_enriched_and_none_is_lost_while_pods_and_releases_change(cluster):
    train = ("stream-vae", "train", "--recipe", "quick", "--data", "sim", "--store", "/releases", "--json")
    another = json.loads(cluster.tools(*train, timeout_s=400))["id"]
    cluster.replay(count=1500, rate=15, seed=1)
    time.sleep(10)
    cluster.kubectl("delete", "pod", cluster.pods("worker")[0], "--wait=false")
    time.sleep(10)
    cluster.tools("stream-vae", "releases", "promote", another, "--store", "/releases")
    until(lambda: len(cluster.pods("worker")) == 2, what="the worker that was deleted is replaced", timeout_s=180)
    print(f"\nupgrade of the settings: {cluster.upgrade('--set', 'settings.batch.max_alerts=64'):.0f} s")
    cluster.replayed()
    found = cluster.settled()
    print(found)
    assert found["sent"] == 1500
    assert found["lost"] == 0
    assert found["dead_letters"] > 0
    assert another in found["releases"]
    assert len(found["releases"]) == 2


def test_a_rollback_takes_the_settings_back_and_loses_nothing(cluster):
    cluster.replay(count=400, rate=20, seed=2)
    print(f"\nrollback: {cluster.helm('rollback', 'ztf', '--wait', '--timeout', f'{INSTALL_S}s'):.0f} s")
    settings = cluster.kubectl("get", "configmap", "ztf-stream-vae", "--output", "jsonpath={.data}")
    assert "max_alerts" not in settings
    cluster.replayed()
    assert cluster.settled()["lost"] == 0


def fleet_is_ready(cluster: Cluster) -> bool:
    return len(cluster.pods("head")) == 1 and len(cluster.pods("ray-worker")) == 2


def test_on_kuberay_a_worker_pod_and_the_head_may_go_and_no_alert_does(cluster):
    if run("kubectl", "api-resources", "--api-group=ray.io", "--output=name", check=False).strip() == "":
        pytest.skip("the cluster has no KubeRay")
    began = time.monotonic()
    cluster.upgrade("--set", "mode=raycluster")
    until(lambda: fleet_is_ready(cluster), what="the fleet is ready", timeout_s=400)
    print(f"\nfrom deployment mode to a fleet on KubeRay: {time.monotonic() - began:.0f} s")
    cluster.helm("test", "ztf")
    cluster.replay(count=1800, rate=15, seed=3)
    time.sleep(10)
    cluster.kubectl("delete", "pod", cluster.pods("ray-worker")[0], "--wait=false")
    time.sleep(20)
    until(lambda: fleet_is_ready(cluster), what="the worker pod is replaced", timeout_s=300)
    head = cluster.pods("head")
    cluster.kubectl("delete", "pod", *head, "--wait=false")
    began = time.monotonic()
    until(
        lambda: cluster.pods("head") not in ([], head) and fleet_is_ready(cluster),
        what="there is a new head",
        timeout_s=400,
    )
    print(f"a new head after {time.monotonic() - began:.0f} s")
    cluster.replayed()
    found = cluster.settled()
    print(found)
    assert found["sent"] == 1500 + 400 + 1800
    assert found["lost"] == 0


def test_back_from_kuberay_nothing_of_ray_is_left(cluster):
    if not cluster.objects("raycluster"):
        pytest.skip("there was no fleet on KubeRay")
    cluster.helm("rollback", "ztf", "--wait", "--timeout", f"{INSTALL_S}s")
    until(lambda: len(cluster.pods("worker")) == 2, what="workers are ready", timeout_s=180)
    until(lambda: cluster.objects("raycluster,pod", "ray.io/is-ray-node=yes") == [], what="Ray is gone", timeout_s=180)
    cluster.replay(count=200, rate=50, seed=4)
    cluster.replayed()
    assert cluster.settled()["lost"] == 0


def test_nothing_is_left_of_what_is_removed(cluster):
    cluster.helm("uninstall", "ztf", "--wait")
    # As the runbook says: what `helm test` started, and volumes.
    cluster.kubectl("delete", "pod,pvc", "--selector", "app.kubernetes.io/instance=ztf")
    left = until(
        lambda: [f"{each['kind']}/{each['metadata']['name']}" for each in cluster.objects(KINDS)] or ["nothing"],
        what="",
    )
    until(lambda: cluster.objects(KINDS) == [], what=f"all is gone but {left}", timeout_s=120)
