"""The chart's values.schema.json: the part of `settings` is stream_vae's own, so that helm refuses what a worker would.

``python tests/chart_schema.py`` writes it anew.
"""

import json
from pathlib import Path
from typing import Any

from stream_vae import settings
from stream_vae.settings import Settings

FILE = Path(__file__).parents[1] / "deploy/helm/stream-vae/values.schema.json"

Schema = dict[str, Any]

# A ConfigMap is no place for them: they come as files of a Secret.
SECRETS = {"KafkaSettings": ["sasl_password"], "RegistrySettings": ["password"], "ReservoirSettings": ["password"]}
SECRET_OPTIONS = settings._SECRET_OPTION.pattern

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
ANY: Schema = {"type": "object"}  # Kubernetes' own, and checked by it
SIZE: Schema = {"type": "string", "pattern": r"^[0-9.]+(Ki|Mi|Gi|Ti)?$"}


def count(least: int = 0) -> Schema:
    return {"type": "integer", "minimum": least}


def choice(*words: str) -> Schema:
    return {"enum": list(words)}


def each(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def table(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    made = {"type": "object", "additionalProperties": False, "properties": properties}
    return made | ({"required": list(required)} if required else {})


def labels() -> Schema:
    return {"type": "object", "additionalProperties": TEXT}


def resources() -> Schema:
    amounts = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
    return table(requests=amounts, limits=amounts, claims=each(ANY))


PLACEMENT = {
    "resources": resources(),
    "nodeSelector": labels(),
    "tolerations": each(ANY),
    "affinity": ANY,
    "topologySpreadConstraints": each(ANY),
    "priorityClassName": TEXT,
}


COMPONENT = {"gpus": count(), "image": TEXT, **PLACEMENT}

GROUP = table(
    ("name", "replicas", "cpus"),
    name={"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$"},
    replicas=count(),
    minReplicas=count(),
    maxReplicas=count(1),
    cpus=count(),
    **COMPONENT,
)


def claim(**more: Schema) -> Schema:
    return table(enabled=FLAG, existingClaim=TEXT, storageClass=TEXT, size=SIZE, **more)


def settings_definitions() -> dict[str, Schema]:
    """Every section of the settings, without what would be a secret in clear."""
    schema = Settings.model_json_schema()
    definitions = schema.pop("$defs") | {"Settings": schema}
    for section, secrets in SECRETS.items():
        for secret in secrets:
            del definitions[section]["properties"][secret]
    # A user may be named, a password not; RE2 knows no lookahead.
    user_at_most = r"^([^@]*|[a-z+]+://[^:@/]*@[^@]*)$"
    definitions["ReservoirSettings"]["properties"]["url"] = {"type": "string", "pattern": user_at_most}
    for name in ("options", "consumer_options", "producer_options"):
        options = definitions["KafkaSettings"]["properties"][name]
        options["additionalProperties"] = {"type": ["string", "number", "boolean"]}
        options["propertyNames"] = {"not": {"pattern": SECRET_OPTIONS}}
    return {name: _bare(definition) for name, definition in sorted(definitions.items())}


def _bare(schema: Any) -> Any:
    """Leave out what refuses nothing."""
    if isinstance(schema, list):
        return [_bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _bare(value) for key, value in schema.items() if key not in {"title", "default", "format"}}
    if "properties" in schema:  # a property may be called like one of these
        kept["properties"] = {name: _bare(each) for name, each in schema["properties"].items()}
    return kept


def make() -> Schema:
    """The whole schema."""
    values = table(
        ("settings", "mode"),
        **{"global": ANY},
        mode=choice("deployment", "raycluster", "rayjob"),
        nameOverride=TEXT,
        fullnameOverride=TEXT,
        image=table(
            repository={"type": "string", "minLength": 1},
            tag=TEXT,
            pullPolicy=choice("Always", "IfNotPresent", "Never"),
            pullSecrets=each(table(("name",), name=TEXT)),
        ),
        settings={"$ref": "#/$defs/Settings"},
        secrets=each(
            table(("name",), name=TEXT, optional=FLAG, items=each(table(("key", "path"), key=TEXT, path=TEXT)))
        ),
        extraEnv=each(table(("name",), name=TEXT, value=TEXT, valueFrom=ANY)),
        extraVolumes=each(ANY),
        extraVolumeMounts=each(ANY),
        podLabels=labels(),
        podAnnotations=labels(),
        podSecurityContext=ANY,
        serviceAccount=table(create=FLAG, name=TEXT, annotations=labels()),
        releaseStore=table(persistence=claim(accessModes=each(TEXT))),
        worker=table(
            replicas=count(),
            readiness=choice("partitions", "process"),
            podDisruptionBudget=table(enabled=FLAG, maxUnavailable={"type": ["integer", "string"]}),
            **COMPONENT,
        ),
        keda=table(
            enabled=FLAG,
            minReplicas=count(),
            maxReplicas=count(1),
            pollingInterval=count(1),
            cooldownPeriod=count(),
            triggerMetadata=labels(),
            authenticationRef=TEXT,
            secretTargetRef=each(table(("parameter", "name", "key"), parameter=TEXT, name=TEXT, key=TEXT)),
        ),
        ray=table(
            version=TEXT,
            workers=count(1),
            existingTokenSecret=TEXT,
            exposeDashboard=FLAG,
            objectStoreBytes=count(78643200),  # Ray's least
            autoscaling=table(enabled=FLAG, idleTimeoutSeconds=count(1), resources=resources()),
            head=table(**PLACEMENT),
            supervisor=table(resources=resources()),
            groups=each(GROUP) | {"minItems": 1},
        ),
        rayJob=table(
            exitWhenIdleSeconds={"type": "number", "minimum": 0},
            ttlSecondsAfterFinished=count(),
            activeDeadlineSeconds={"type": ["integer", "null"], "minimum": 1},
            submitter=table(resources=resources()),
        ),
        trainer=table(enabled=FLAG, work=table(persistence=claim()), **COMPONENT),
        firstRelease=table(enabled=FLAG, recipe=TEXT, data=TEXT, image=TEXT, **PLACEMENT),
        networkPolicy=table(
            enabled=FLAG,
            monitoring=each(ANY),
            kuberayOperator=each(ANY),
            extraIngress=each(ANY),
            egress=table(enabled=FLAG, rules=each(ANY)),
        ),
        monitoring=table(
            serviceMonitor=table(enabled=FLAG, interval=TEXT, labels=labels()),
            podMonitor=table(enabled=FLAG, interval=TEXT, labels=labels()),
            prometheusRule=table(enabled=FLAG, labels=labels()),
            runbookBase=TEXT,
            dashboards=table(enabled=FLAG, labels=labels(), annotations=labels()),
        ),
        tests=table(resources=resources()),
    )
    return {"$schema": "http://json-schema.org/draft-07/schema#", **values, "$defs": settings_definitions()}


def text() -> str:
    return json.dumps(make(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
