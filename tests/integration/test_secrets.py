"""Secrets come from files, variables or settings, and appear nowhere else: not at the most verbose level either."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from stream_vae.sky.packets import simulate_packets

from deployment import Deployment, deploy
from flow import running, until
from schema_registry import Registry

WITHIN_S = 60
MARK = "s3cr3t"
"""In every secret below, and in nothing else."""
OPTIONS = {
    "ssl.key.password": f"{MARK}-of-the-key",
    "ssl.keystore.password": f"{MARK}-of-the-keystore",
    "sasl.oauthbearer.client.secret": f"{MARK}-of-the-client",
    "sasl.oauthbearer.config": f"principal={MARK}",
    "sasl.oauthbearer.token.endpoint.url": f"https://me:{MARK}-of-the-endpoint@127.0.0.1:1/token",
    "debug": "all",
}
CRASH = """
import stream_vae.runtime.worker as worker
def process(self, packets):
    settings, registry, reservoir = self._settings, self._registry, self._offering
    raise RuntimeError(f"a bug that shows what it has: {settings!r} {settings}")
worker.Worker._process = process
"""


@pytest.fixture(scope="module")
def registry() -> Any:
    with Registry() as server:
        server.credentials = f"me:{MARK}-of-the-registry"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def deployment(embedded_kafka, registry, tmp_path_factory) -> Deployment:
    kafka = {"sasl_username": "me", "sasl_password": f"{MARK}-of-kafka", "options": OPTIONS}
    made = deploy(
        embedded_kafka,
        tmp_path_factory.mktemp("secrets"),
        survey="candidate",
        kafka=kafka,
        registry={"url": registry.url, "username": "me", "password": f"{MARK}-of-the-registry"},
        reservoir={"url": f"redis://me:{MARK}-of-redis@127.0.0.1:1/0"},
        metrics={"port": 0},
    )
    made.publish(each.packet for each in simulate_packets(5, seed=1, shape="candidate"))
    return made


def said(folder: Path, *arguments: object, **how: Any) -> str:
    with running(folder / "log", *arguments, **how) as process:
        process.wait(WITHIN_S)
        return process.text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("config", "show"), "**********"),
        (("config", "show", "--json"), "**********"),
        (("doctor",), "reservoir"),
        (("doctor", "--json"), "127.0.0.1:1"),
        (("reservoir", "stats"), "ConfigError"),
        (("run", "--exit-when-idle", "0.5"), "127.0.0.1:1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_no_command_shows_a_secret(deployment, tmp_path, arguments, word):
    # A run that says all: librdkafka's own debugging, too.
    group = {"STREAM_VAE_KAFKA__GROUP_ID": "-".join(arguments)}
    text = said(tmp_path, "-vv", *arguments, "--settings", deployment.file, environment=group)
    assert word in text
    assert MARK not in text


def test_a_crash_shows_no_secret(deployment, tmp_path):
    group = {"STREAM_VAE_KAFKA__GROUP_ID": "crash"}
    text = said(tmp_path, "-vv", "run", "--settings", deployment.file, before=CRASH, environment=group)
    assert "a bug that shows what it has" in text
    assert "Traceback" in text
    assert MARK not in text


def test_metrics_and_health_show_no_secret(deployment, tmp_path):
    group = {"STREAM_VAE_KAFKA__GROUP_ID": "metrics"}
    with running(tmp_path / "log", "-v", "run", "--settings", deployment.file, environment=group) as process:
        address = until(lambda: re.search(r"http://[\d.:]+/", process.text), what="the address").group()
        until(lambda: b"alerts_published_total{" in httpx.get(f"{address}metrics").content, what="alerts")
        pages = [httpx.get(address + page).text for page in ("metrics", "healthz", "readyz", "no-such-page")]
    assert MARK not in "".join(pages)


def test_secrets_from_files_are_shown_no_more_than_others(deployment, tmp_path):
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name in ("kafka__sasl_password", "registry__password", "reservoir__url"):
        (secrets / name).write_text(f"redis://me:{MARK}@127.0.0.1:1/0", encoding="utf-8")
    file = {"STREAM_VAE_SECRETS_DIR": str(secrets)}
    assert MARK not in said(tmp_path, "-vv", "config", "show", "-s", deployment.file, environment=file)
    (secrets / "kafka__sasl_pasword").write_text(MARK, encoding="utf-8")
    text = said(tmp_path, "-vv", "config", "show", "-s", deployment.file, environment=file)
    assert "Did you mean kafka__sasl_password?" in text
    assert MARK not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RELEASE__STORE", f"sftp://me:{MARK}@host/releases"),
        ("REGISTRY__URL", f"http://me:{MARK}@127.0.0.1:1"),
        ("REGISTRY__URL", f"http://127.0.0.1:1,http://me:{MARK}@127.0.0.1:2"),
        ("RESERVOIR__URL", f"http://me:{MARK}@127.0.0.1:1"),
        ("RESERVOIR__URL", f"redis://me:{MARK}@127.0.0.1:port/0"),
        ("KAFKA__OPTIONS", f'{{"sasl.password": "{MARK}"'),
        ("KAFKA__OPTIONS", f'{{"sasl.password": ["{MARK}"]}}'),
        ("KAFKA__OPTIONS", f'{{"sasl.oauthbearer.client.secret": "{MARK}", "security.protocol": "nonsense"}}'),
        ("KAFKA__OPTIONS", f'{{"ssl.key.pem": "{MARK}", "security.protocol": "SSL"}}'),
    ],
)
def test_a_wrong_setting_with_a_secret_in_it_is_told_without_it(deployment, tmp_path, name, value):
    wrong = {f"STREAM_VAE_{name}": value}
    with running(tmp_path / "log", "-vv", "run", "-s", deployment.file, environment=wrong) as process:
        assert process.wait(WITHIN_S) == 2, process.text
    assert "ConfigError" in process.text
    assert MARK not in process.text


def test_a_registrys_password_is_used_and_a_wrong_one_ends_the_start(deployment, registry, tmp_path):
    wrong = {"STREAM_VAE_REGISTRY__PASSWORD": f"{MARK}-of-somebody-else", "STREAM_VAE_KAFKA__GROUP_ID": "wrong"}
    with running(tmp_path / "log", "run", "-s", deployment.file, environment=wrong) as process:
        assert process.wait(WITHIN_S) == 2, process.text
    assert "the schema registry answers 401" in process.text
    assert "registry.username" in process.text
    assert MARK not in process.text
    (tmp_path / "log").unlink()
    text = said(tmp_path, "-q", "doctor", "--json", "-s", deployment.file, environment=wrong)
    report = json.loads(text[text.index("{") :])
    (found,) = (check for check in report["checks"] if check["name"] == "registry")
    assert found["state"] == "bad"
