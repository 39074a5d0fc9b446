"""Prometheus for tests: promtool, which checks, and a server of a test's own that scrapes what runs.

Both are Debian's package `prometheus`. What is missing is told by `MissingServiceError`, as for other servers.
"""

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from servers import REPOSITORY, START_ATTEMPTS, START_TIMEOUT_S, STOP_TIMEOUT_S, MissingServiceError, free_ports

PROMETHEUS_FILES = REPOSITORY / "deploy" / "prometheus"
RULES = PROMETHEUS_FILES / "rules.yaml"
DASHBOARDS = REPOSITORY / "deploy" / "grafana" / "dashboards"
RUNBOOK = REPOSITORY / "deploy" / "README.md"
_DURATION = re.compile(r"(\d+)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def program(name: str) -> str:
    """Find promtool or prometheus."""
    if found := shutil.which(name):
        return found
    raise MissingServiceError(f"no {name} (Debian's package prometheus); run tests/install_services")


def promtool(*arguments: object, stdin: str | None = None) -> str:
    """Run promtool, and give what it says; fails with that where it finds something wrong."""
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def alerts(rules: Path = RULES) -> dict[str, dict[str, Any]]:
    """Give the alerts of a rule file, by name."""
    groups = yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def hastened(rules: Path, factor: int) -> dict[str, Any]:
    """Give a rule file with every `for` and every range (`[5m]`, `offset 1h`) so many times shorter.

    Nothing else changes but the ends of names of recorded series that hold a range, which stay as they are. Thresholds
    of counts within a range therefore mean more than they do in the file: a test that wants them sends enough.
    """

    def shorter(duration: str) -> str:
        seconds = sum(int(number) * _SECONDS[unit] for number, unit in _DURATION.findall(duration))
        return f"{max(1, round(seconds / factor))}s"

    document: dict[str, Any] = yaml.safe_load(rules.read_text(encoding="utf-8"))
    for rule in (rule for group in document["groups"] for rule in group["rules"]):
        rule["expr"] = re.sub(r"(\[|offset )((?:\d+[smhd])+)", lambda m: m[1] + shorter(m[2]), rule["expr"])
        if "for" in rule:
            rule["for"] = shorter(rule["for"])
    return document


def dashboards() -> dict[str, dict[str, Any]]:
    """Give the dashboards that are in the repository, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give a dashboard's panels, without the headings of its rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def filled(expression: str, *, survey: str = "ztf", job: str = ".*", interval: str = "1m", span: str = "1h") -> str:
    """Put values in the place of Grafana's variables."""
    values = {"survey": survey, "job": job, "__rate_interval": interval, "__range": span}
    found = re.sub(r"\$(\w+)", lambda match: values[match[1]], expression)
    assert "$" not in found, found
    return found


def metric_names(expression: str) -> set[str]:
    """Give the names of the metrics that an expression asks for: all of ours and those with a known beginning."""
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"(?<![\w:])(?:stream_vae_|process_|ray_|job:|up\b|ALERTS\b)[\w:]*", bare))


@dataclass(frozen=True)
class Prometheus:
    """A server that runs."""

    url: str

    def get(self, page: str, **query: str) -> Any:
        """Ask its API, and give the data of the answer."""
        answer = httpx.get(f"{self.url}/api/v1/{page}", params=query, timeout=30, trust_env=False).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate an expression now: labels and value of each series."""
        found = self.get("query", query=expression)["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def firing(self) -> dict[str, dict[str, Any]]:
        """Give the alerts that fire, by name."""
        found = self.get("alerts")["alerts"]
        return {each["labels"]["alertname"]: each for each in found if each["state"] == "firing"}


@contextlib.contextmanager
def prometheus(
    jobs: Mapping[str, Sequence[str]], rules: Mapping[str, Any], *, interval_s: int = 1, folder: Path | None = None
) -> Iterator[Prometheus]:
    """Start a Prometheus on loopback that scrapes some addresses by job, for as long as the block lasts."""
    binary = program("prometheus")
    with contextlib.ExitStack() as stack:
        home = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stream-vae-prometheus-")))
        home.mkdir(parents=True, exist_ok=True)
        (home / "rules.yaml").write_text(yaml.safe_dump(dict(rules)), encoding="utf-8")
        config = {
            "global": {"scrape_interval": f"{interval_s}s", "evaluation_interval": f"{interval_s}s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(targets)}]} for job, targets in jobs.items()
            ],
        }
        (home / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        promtool("check", "config", home / "prometheus.yaml")
        yield stack.enter_context(_running(binary, home))


@contextlib.contextmanager
def _running(binary: str, home: Path) -> Iterator[Prometheus]:
    for _ in range(START_ATTEMPTS):
        (port,) = free_ports(1)
        command = [binary, f"--config.file={home}/prometheus.yaml", f"--storage.tsdb.path={home}/data"]
        with (home / "prometheus.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{port}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            if _is_ready(process, server := Prometheus(f"http://127.0.0.1:{port}")):
                yield server
                return
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            process.kill()
            process.wait()
    raise MissingServiceError(f"prometheus did not start: {(home / 'prometheus.log').read_text()[-2000:]}")


def _is_ready(process: subprocess.Popen[bytes], server: Prometheus) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{server.url}/-/ready", timeout=5, trust_env=False).status_code == 200:
                return True
        time.sleep(0.1)
    return False
