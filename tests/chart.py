"""Rendering the chart, and what may be asked of what comes out; shared by the chart's tests."""

import json
import os
import re
import subprocess
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry, Resource

import programs

REPOSITORY = Path(__file__).parents[1]
CHART = REPOSITORY / "deploy/helm/stream-vae"
CRDS = Path(os.environ.get("CRD_DIR", REPOSITORY.parent / "shared/crds"))
EXAMPLES = sorted(path.stem for path in (CHART / "examples").glob("*.yaml"))
OLDEST, NEWEST = "1.27.0", "1.34.0"

Document = dict[str, Any]


class StrictLoader(yaml.CSafeLoader):
    """Refuses a key that stands twice, of which YAML libraries take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return programs.run("helm", *arguments)


def render(values: Path | str, *arguments: str, name: str = "night", kubernetes: str = NEWEST) -> list[Document]:
    """Render an example by its name, or values by their path."""
    file = values if isinstance(values, Path) else CHART / f"examples/{values}.yaml"
    done = helm("template", name, str(CHART), "--kube-version", kubernetes, "--values", str(file), *arguments)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, StrictLoader) if document]


def refused(values: Path, *arguments: str) -> str:
    """What helm says of values that it must not take."""
    done = helm("template", "night", str(CHART), "--kube-version", NEWEST, "--values", str(values), *arguments)
    assert done.returncode != 0, "helm took them"
    return done.stderr


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def settings_file(documents: list[Document]) -> str:
    (found,) = (d["data"]["settings.toml"] for d in of_kind(documents, "ConfigMap") if "settings.toml" in d["data"])
    return found


@dataclass(frozen=True)
class Pod:
    """A pod as Kubernetes would get it: with what KubeRay adds."""

    where: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: Document

    def containers(self) -> list[Document]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def pods(documents: list[Document]) -> list[Pod]:
    return [pod for document in documents for pod in _pods_of(document)]


def _pods_of(document: Document) -> Iterator[Pod]:
    kind, spec = document["kind"], document.get("spec", {})
    where = f"{kind} {document['metadata']['name']}"
    if kind == "Pod":
        yield _pod(where, document)
    elif kind in {"Deployment", "StatefulSet", "Job"}:
        yield _pod(where, spec["template"])
    elif kind == "RayCluster":
        yield from _pods_of_cluster(where, spec)
    elif kind == "RayJob":
        yield _pod(f"{where} submitter", spec["submitterPodTemplate"])
        yield from _pods_of_cluster(where, spec["rayClusterSpec"])


def _pod(where: str, template: Document) -> Pod:
    metadata = template["metadata"]
    return Pod(where, metadata["labels"], metadata.get("annotations", {}), template["spec"])


def _pods_of_cluster(where: str, spec: Document) -> Iterator[Pod]:
    """The autoscaler's container, and the one that waits for the head with the security context of the first."""
    head = json.loads(json.dumps(spec["headGroupSpec"]["template"]))
    if spec.get("enableInTreeAutoscaling"):
        image = head["spec"]["containers"][0]["image"]
        head["spec"]["containers"].append({"name": "autoscaler", "image": image} | spec["autoscalerOptions"])
    yield _pod(f"{where} head", head)
    for group in spec["workerGroupSpecs"]:
        template = json.loads(json.dumps(group["template"]))
        ray = template["spec"]["containers"][0]
        waits = {key: ray[key] for key in ("image", "securityContext", "env", "volumeMounts") if key in ray}
        template["spec"].setdefault("initContainers", []).append({"name": "wait-gcs-ready"} | waits)
        yield _pod(f"{where} {group['groupName']}", template)


_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}


def less_than_restricted(pod: Pod) -> list[str]:
    """What the restricted Pod Security Standard would refuse, and roots that can be written."""
    spec, found = pod.spec, []
    own = spec.get("securityContext", {})
    found += [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    for volume in spec.get("volumes", ()):
        found += [f"volume {volume['name']}: {kind}" for kind in set(volume) - {"name"} - _VOLUMES]
    for container in pod.containers():
        context = own | container.get("securityContext", {})
        capabilities = context.get("capabilities", {})
        wrong = {
            "privileged": context.get("privileged", False),
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is not False,
            "runAsNonRoot": context.get("runAsNonRoot") is not True,
            "runAsUser": context.get("runAsUser") == 0,
            "seccompProfile": context.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"},
            "capabilities": "ALL" not in capabilities.get("drop", ()) or bool(capabilities.get("add")),
            "readOnlyRootFilesystem": context.get("readOnlyRootFilesystem") is not True,
            "hostPort": any("hostPort" in port for port in container.get("ports", ())),
        }
        found += [f"{container['name']}: {name}" for name, is_wrong in wrong.items() if is_wrong]
    return found


def problems(document: Document, kubernetes: str = NEWEST) -> list[str]:
    """What the API server would say of a document: unknown fields, wrong types, missing ones."""
    found = _validator(document["apiVersion"], document["kind"], kubernetes).iter_errors(document)
    name = f"{document['kind']} {document['metadata']['name']}"
    return [f"{name}: {error.json_path}: {error.message}" for error in found]


def is_custom(document: Document) -> bool:
    """Tell whether an operator brings a document's kind, and not Kubernetes itself."""
    group = document["apiVersion"].rpartition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


@cache
def _validator(api_version: str, kind: str, kubernetes: str) -> jsonschema.Draft202012Validator:
    group, _, version = api_version.rpartition("/")
    if is_custom({"apiVersion": api_version}):
        return jsonschema.Draft202012Validator(custom_schema(group, version, kind))
    minor = kubernetes.rpartition(".")[0]
    folder = files("kubernetes_validate") / f"kubernetes-json-schema/v{minor}.0-local-strict"
    file = f"{kind}-{group.split('.')[0]}-{version}.json" if group else f"{kind}-{version}.json"
    schema = json.loads((folder / file.lower()).read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema, registry=_definitions(minor))


@cache
def _definitions(minor: str) -> Registry:
    file = files("kubernetes_validate") / f"kubernetes-json-schema/v{minor}.0-local-strict/_definitions.json"
    return Resource.from_contents(json.loads(file.read_text(encoding="utf-8"))) @ Registry()


@cache
def custom_schema(group: str, version: str, kind: str) -> Document:
    """A custom resource's schema, which takes no field that it does not name."""
    for file in sorted(CRDS.glob(f"{group}_*.yaml")):
        spec = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)["spec"]
        if spec["names"]["kind"] == kind:
            (found,) = (each["schema"]["openAPIV3Schema"] for each in spec["versions"] if each["name"] == version)
            made = strict(found)
            made["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
            return made | {"required": ["apiVersion", "kind", "metadata", "spec"]}
    raise LookupError(f"no definition of {kind} in {CRDS}")


def strict(schema: Document) -> Document:
    """Make JSON Schema of a definition's schema as the API server reads it: unknown fields are refused.

    What stands under `allOf`, `anyOf` and `oneOf` stays: conditions, whose fields are named elsewhere.
    """
    made = dict(schema)
    if "properties" in schema:
        made["properties"] = {name: strict(each) for name, each in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(key), dict):
            made[key] = strict(inner)
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if schema.get("nullable"):
        return {"anyOf": [{"type": "null"}, made]}
    return made


def leaves(values: Any, path: str = "") -> Iterator[str]:
    """The dotted names of all values; one that is free to hold anything counts as one."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path


def longest_label(document: Document) -> str:
    labels = document["metadata"].get("labels", {})
    return max(labels.values(), key=len, default="")


def documented(readme: str) -> set[str]:
    """The values that the README's tables explain: the first cells of their rows."""
    cells = re.findall(r"^\| (`.+?) \|", readme, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)}
