"""The fleet: processes in one consumer group, by slot, or one supervisor with its workers in Ray."""

import signal
import time
from pathlib import Path

import psutil

from deployment import Deployment
from flow import Process, until

RESTART_AFTER_S = 1.0
"""As an orchestrator would, or systemd."""
START_TIMEOUT_S = 180
WORKER = "ray::Worker"
"""What the name of an actor's process begins with."""


class Slot:
    """The place of one process, which is started again whenever it ends; its transactional id stays."""

    def __init__(self, deployment: Deployment, folder: Path, number: int) -> None:
        self.wanted = False
        self.exits: list[int] = []
        """Codes of those that ended though nobody asked them to, or left with another than 0 when asked."""
        self._deployment, self._number = deployment, number
        self._log = folder / f"worker-{number}.log"
        self._process: Process | None = None
        self._next_start_at = 0.0
        self._log_began = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.running else None

    def working(self) -> bool:
        """Tell whether it has had partitions: before, a SIGTERM ends it as it does any program that starts."""
        if self.pid is None:
            return False
        with self._log.open(encoding="utf-8", errors="replace") as log:
            log.seek(self._log_began)
            return f"partitions assigned: {self._deployment.input}" in log.read()

    def turn(self) -> None:
        """Look after it: see that it ended, or start it."""
        if self._process is not None and not self._process.running:
            self.exits.append(self._process.wait())
            self._leave()
        if self._process is None and self.wanted and time.monotonic() >= self._next_start_at:
            slot = {
                "STREAM_VAE_DELIVERY__TRANSACTIONAL_ID": f"{self._deployment.settings.kafka.group_id}-{self._number}"
            }
            arguments = ("run", "--settings", self._deployment.file, "--workers", 0)
            self._log_began = self._log.stat().st_size if self._log.exists() else 0
            self._process = Process(self._log, *arguments, environment=slot)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._leave()

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.signal(number)

    def terminate(self) -> None:
        """Ask it to drain; that it leaves with 0 is part of the promise, once it is no longer starting."""
        if self._process is None:
            return
        promised = {0} if self.working() else {0, -signal.SIGTERM}
        self._process.signal(signal.SIGTERM)
        code = self._process.wait(120)
        if code not in promised:
            self.exits.append(code)
        self._leave()

    def _leave(self) -> None:
        assert self._process is not None
        self._process.close()
        self._process, self._next_start_at = None, time.monotonic() + RESTART_AFTER_S

    def close(self) -> None:
        self.wanted = False
        if self._process is not None:
            self._process.close()


class Processes:
    """`stream-vae run --workers 0`, several times in one group."""

    def __init__(self, deployment: Deployment, folder: Path, count: int) -> None:
        self._deployment, self._folder = deployment, folder
        self._slots: list[Slot] = []
        self.scale(count)

    def scale(self, count: int) -> None:
        """Start some more, or let the last ones drain."""
        while len(self._slots) < count:
            self._slots.append(Slot(self._deployment, self._folder, len(self._slots)))
        for number, slot in enumerate(self._slots):
            slot.wanted = number < count
            if not slot.wanted:
                slot.terminate()
        self.turn()

    def turn(self) -> None:
        for slot in self._slots:
            slot.turn()

    def running(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.pid is not None]

    @property
    def exits(self) -> list[int]:
        return [code for slot in self._slots for code in slot.exits]

    def drain(self) -> None:
        self.scale(0)

    def close(self) -> None:
        for slot in self._slots:
            slot.close()


class RayFleet:
    """`stream-vae run --workers N`: the supervisor starts anew whatever dies below it, and we the supervisor."""

    def __init__(self, deployment: Deployment, folder: Path, count: int) -> None:
        self._arguments = ("run", "--settings", deployment.file, "--workers", count)
        self._log = folder / "fleet.log"
        self._family: list[psutil.Process] = []
        self.exits: list[int] = []
        self._process = Process(self._log, *self._arguments)

    def turn(self) -> None:
        if not self._process.running:
            self.exits.append(self._process.wait())
            self._restart()

    def _restart(self) -> None:
        self._process.close()
        self._end_family()
        self._process = Process(self._log, *self._arguments)

    def running(self) -> list["RayWorker"]:
        return [RayWorker(each) for each in self._descendants() if each.name().startswith(WORKER)]

    def _descendants(self) -> list[psutil.Process]:
        try:
            found = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._family += [each for each in found if each not in self._family]
        return [each for each in found if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]

    def kill_supervisor(self) -> None:
        """Kill the supervisor, and start another once its workers have ended with it: Ray sees to that."""
        workers = [each for each in self._descendants() if each.name().startswith(WORKER)]
        self._process.kill()
        until(lambda: not any(map(alive, workers)), what="the workers end with the supervisor", timeout_s=120)
        time.sleep(RESTART_AFTER_S)
        self._restart()  # Ray's agents would be there for a minute still

    def _end_family(self) -> None:
        """End what was started by the supervisor and is left, each by its id."""
        for each in self._family:
            if alive(each):
                each.kill()
        self._family = []

    def drain(self) -> None:
        self._descendants()
        self._process.signal(signal.SIGTERM)
        if (code := self._process.wait(120)) != 0:
            self.exits.append(code)

    def close(self) -> None:
        self._descendants()
        self._process.close()
        self._end_family()


class RayWorker:
    """One worker's process below the supervisor."""

    def __init__(self, process: psutil.Process) -> None:
        self.pid = process.pid
        self._process = process

    def working(self) -> bool:
        return True

    def kill(self) -> None:
        self._process.kill()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


Worker = Slot | RayWorker
Fleet = Processes | RayFleet
