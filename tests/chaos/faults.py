"""What is done to a running deployment: each fault is injected, lasts, and is healed."""

import random
import signal
import time
from dataclasses import dataclass, field
from typing import Protocol

from chaos.backends import Redis
from chaos.load import Load
from chaos.witness import Witness
from chaos.workers import START_TIMEOUT_S, Fleet, RayFleet, Worker
from servers import Broker

TURN_S = 0.1


@dataclass
class Scene:
    """Everything that a fault may touch."""

    broker: Broker
    redis: Redis | None
    fleet: Fleet
    load: Load
    witness: Witness
    partitions: int
    chance: random.Random
    kills: int = 0

    def tend(self, seconds: float) -> None:
        """Let time pass; what ended is started anew meanwhile."""
        end = time.monotonic() + seconds
        while True:
            self.fleet.turn()
            if (left := end - time.monotonic()) <= 0:
                return
            time.sleep(min(TURN_S, left))

    def flows_since(self, sent_ms: float) -> bool:
        """Tell whether of every partition an alert came out that was sent after a time."""
        newest = self.witness.newest_ms
        return all(newest.get(partition, 0) >= sent_ms for partition in range(self.partitions))


class Fault(Protocol):
    """One thing that goes wrong."""

    @property
    def name(self) -> str: ...

    @property
    def lasts_s(self) -> float:
        """From injecting to healing."""

    def inject(self, scene: Scene) -> None: ...

    def heal(self, scene: Scene) -> None: ...


@dataclass(frozen=True)
class Nothing:
    """What a row begins with: the same measurement without a fault."""

    name: str = "nothing"
    lasts_s: float = 0.0

    def inject(self, scene: Scene) -> None:
        pass

    def heal(self, scene: Scene) -> None:
        pass


@dataclass(frozen=True)
class Kill(Nothing):
    """SIGKILL one worker; whoever looks after it starts another."""

    name: str = "SIGKILL"

    def inject(self, scene: Scene) -> None:
        if workers := scene.fleet.running():
            scene.chance.choice(workers).kill()
            scene.kills += 1


@dataclass(frozen=True)
class Terminate(Nothing):
    """SIGTERM one worker, which must drain and exit 0, and start another."""

    name: str = "SIGTERM"

    def inject(self, scene: Scene) -> None:
        if workers := [worker for worker in scene.fleet.running() if worker.working()]:
            scene.chance.choice(workers).terminate()


@dataclass(frozen=True)
class Stop(Nothing):
    """SIGSTOP one worker for longer than its session, so that others own what it holds, and let it go on."""

    name: str = "SIGSTOP"
    lasts_s: float = 8.0
    _stopped: list[Worker] = field(default_factory=list)

    def inject(self, scene: Scene) -> None:
        self._stopped[:] = scene.fleet.running()[:1]
        for worker in self._stopped:
            worker.signal(signal.SIGSTOP)

    def heal(self, scene: Scene) -> None:
        del scene
        for worker in self._stopped:
            worker.signal(signal.SIGCONT)


@dataclass(frozen=True)
class KillSupervisor(Nothing):
    """SIGKILL the supervisor of a fleet, whose workers end with it, and start it anew."""

    name: str = "SIGKILL supervisor"

    def inject(self, scene: Scene) -> None:
        assert isinstance(scene.fleet, RayFleet)
        scene.fleet.kill_supervisor()
        scene.kills += 1


@dataclass(frozen=True)
class KillBroker(Nothing):
    """SIGKILL the only broker, which comes back with its log."""

    name: str = "broker SIGKILL"
    lasts_s: float = 3.0

    def inject(self, scene: Scene) -> None:
        scene.broker.kill()
        scene.kills += 1

    def heal(self, scene: Scene) -> None:
        scene.broker.start()


@dataclass(frozen=True)
class KillRedis(Nothing):
    """SIGKILL the reservoir's server; another, empty one comes back."""

    name: str = "Redis SIGKILL"
    lasts_s: float = 5.0

    def inject(self, scene: Scene) -> None:
        assert scene.redis is not None
        scene.redis.kill()
        scene.kills += 1

    def heal(self, scene: Scene) -> None:
        assert scene.redis is not None
        scene.redis.start()


@dataclass(frozen=True)
class StopRedis(Nothing):
    """SIGSTOP the reservoir's server: it takes connections and answers nothing."""

    name: str = "Redis SIGSTOP"
    lasts_s: float = 5.0

    def inject(self, scene: Scene) -> None:
        assert scene.redis is not None
        scene.redis.signal(signal.SIGSTOP)

    def heal(self, scene: Scene) -> None:
        assert scene.redis is not None
        scene.redis.signal(signal.SIGCONT)


@dataclass(frozen=True)
class SlowRedis(Nothing):
    """Answers of the reservoir's server take a while, though not as long as would be given up."""

    name: str = "Redis slow"
    lasts_s: float = 5.0
    delay_s: float = 0.08  # each way: below the reservoir's time-out of 0.2 s

    def inject(self, scene: Scene) -> None:
        assert scene.redis is not None
        scene.redis.slow(self.delay_s)

    def heal(self, scene: Scene) -> None:
        assert scene.redis is not None
        scene.redis.slow(0)


@dataclass(frozen=True)
class Scale(Nothing):
    """From one worker to three and back."""

    name: str = "scale 1-3-1"
    lasts_s: float = 5.0

    def inject(self, scene: Scene) -> None:
        scene.fleet.scale(3)
        deadline = time.monotonic() + START_TIMEOUT_S
        while sum(worker.working() for worker in scene.fleet.running()) < 3 and time.monotonic() < deadline:
            scene.tend(0.5)

    def heal(self, scene: Scene) -> None:
        scene.fleet.scale(1)
