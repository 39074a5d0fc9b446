"""A fleet in a process of its own, what it shows, and a stream for it, for the tests of fleets."""

import contextlib
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployment import Deployment

STREAM_PER_S = 100
LOOPBACK_RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


class Fleet:
    """`stream-vae run` in a process of its own, and what it writes."""

    def __init__(self, deployment: Deployment, folder: Path, *arguments: object) -> None:
        self.log = folder / "fleet.log"
        command = [sys.executable, "-c", "from stream_vae.cli import main; main()", "run", "-s", str(deployment.file)]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | LOOPBACK_RAY,
            )

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def url(self, page: str) -> str:
        address = wait_for(lambda: re.search(r"http://[\d.:]+/", self.said()), "the address", process=self.process)
        return address.group() + page

    def samples(self, name: str) -> dict[str, float]:
        """The value of a metric by worker, summed over other labels."""
        text = httpx.get(self.url("metrics"), timeout=10).text
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name:
                    worker = sample.labels.get("worker", "")
                    values[worker] = values.get(worker, 0) + sample.value
        return values

    def workers(self) -> list[psutil.Process]:
        return [each for each in descendants(self.process.pid) if each.name().startswith("ray::Worker")]

    def wait(self, timeout_s: float = 120) -> int:
        return self.process.wait(timeout_s)


def descendants(pid: int) -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
    return found


def wait_for(
    condition: Callable[[], Any], what: str, *, timeout_s: float = 90, process: subprocess.Popen[bytes] | None = None
) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError, psutil.NoSuchProcess):
            if result := condition():
                return result
        assert process is None or process.poll() is None, f"the process ended while waiting for {what}"
        time.sleep(0.2)
    pytest.fail(f"{what}: not within {timeout_s} s")


def end(process: subprocess.Popen[bytes], family: list[psutil.Process]) -> list[psutil.Process]:
    """End what a test left behind, and tell what that was."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
    if process.poll() is None:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs([each for each in family if each.is_running()], timeout=10)
    left = [each for each in left if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    for each in left:
        each.kill()
    return left


class Stream:
    """Publishes at a steady rate until told to stop."""

    def __init__(self, deployment: Deployment, packets: list[bytes]) -> None:
        self.sent = 0
        self._deployment, self._packets = deployment, itertools.cycle(packets)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            batch = list(itertools.islice(self._packets, STREAM_PER_S // 5))
            self._deployment.publish(batch)
            self.sent += len(batch)

    def end(self) -> int:
        self._stop.set()
        self._thread.join(30)
        return self.sent
