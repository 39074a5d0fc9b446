"""What is done to a running deployment: each fault is injected, lasts, and is healed."""

import random
import signal
import time
from dataclasses import dataclass, field
from typing import Protocol

from confluent_kafka import ElectionType, TopicPartition
from confluent_kafka.admin import AdminClient

from chaos.backends import Redis, Releases
from chaos.load import Load
from chaos.witness import Witness
from chaos.workers import START_TIMEOUT_S, Fleet, RayFleet, Worker
from servers import Broker, Cluster

TURN_S = 0.1
ANSWER_TIMEOUT_S = 60


@dataclass
class Scene:
    """Everything that a fault may touch."""

    broker: Broker | Cluster
    redis: Redis | None
    releases: Releases | None
    fleet: Fleet
    load: Load
    witness: Witness
    topics: list[str]
    """Of the input and the output, with so many partitions each:"""
    partitions: int
    chance: random.Random
    kills: int = 0
    problems: list[str] = field(default_factory=list)

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
        self.witness.check()
        newest = self.witness.newest_ms
        return all(newest.get(partition, 0) >= sent_ms for partition in range(self.partitions))


class Fault(Protocol):
    """One thing that goes wrong."""

    @property
    def name(self) -> str: ...

    @property
    def lasts_s(self) -> float:
        """From injecting to healing."""

    @property
    def from_the_start(self) -> bool:
        """Whether recovery counts from the injection, as healing is part of it."""

    def inject(self, scene: Scene) -> None: ...

    def heal(self, scene: Scene) -> None: ...

    def after(self, scene: Scene) -> None:
        """Make good what must not count as recovery, once alerts flow again."""


@dataclass(frozen=True)
class Nothing:
    """What a row begins with: the same measurement without a fault."""

    name: str = "nothing"
    lasts_s: float = 0.0
    from_the_start: bool = False

    def inject(self, scene: Scene) -> None:
        pass

    def heal(self, scene: Scene) -> None:
        pass

    def after(self, scene: Scene) -> None:
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
    from_the_start: bool = True

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
        assert isinstance(scene.broker, Broker)
        scene.broker.kill()
        scene.kills += 1

    def heal(self, scene: Scene) -> None:
        assert isinstance(scene.broker, Broker)
        scene.broker.start()


@dataclass(frozen=True)
class KillLeader(Nothing):
    """SIGKILL one of three brokers, a leader of the input's or the output's; it comes back once alerts flow without it.

    Its recovery counts from the kill.
    """

    name: str = "leader SIGKILL"
    _away: list[int] = field(default_factory=list)

    def inject(self, scene: Scene) -> None:
        assert isinstance(scene.broker, Cluster)
        leaders = Topics(scene).leaders()
        node = leaders[scene.chance.choice(sorted(leaders))]
        self._away[:] = [node]
        self._end(scene, scene.broker, node)

    def _end(self, scene: Scene, brokers: Cluster, node: int) -> None:
        brokers.kill(node)
        scene.kills += 1

    def after(self, scene: Scene) -> None:
        assert isinstance(scene.broker, Cluster)
        for node in self._away:
            scene.broker.start(node)
        Topics(scene).await_replicas()


@dataclass(frozen=True)
class LeaveLeader(KillLeader):
    """SIGTERM one of three brokers, which hands over what it leads, as in a rolling restart."""

    name: str = "leader SIGTERM"

    def _end(self, scene: Scene, brokers: Cluster, node: int) -> None:
        del scene
        brokers.terminate(node)


@dataclass(frozen=True)
class MoveLeaders(Nothing):
    """Give every partition back to the broker that is to lead it: others do since that one was away."""

    name: str = "leaders moved"

    def inject(self, scene: Scene) -> None:
        if not Topics(scene).elect():
            scene.problems.append("there was no leader to move")


class Topics:
    """The topics of a scene, and Kafka's own, as its brokers know them."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._admin = AdminClient({"bootstrap.servers": scene.broker.kafka.bootstrap_servers, "log_level": 0})

    def leaders(self) -> dict[tuple[str, int], int]:
        """Give the leading node of each partition that alerts go through."""
        own = self._scene.topics
        topics = self._admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics
        return {(name, number): each.leader for name in own for number, each in topics[name].partitions.items()}

    def await_replicas(self) -> None:
        """Wait until every partition has all its replicas, so that the next node may go."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            topics = self._admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics.values()
            partitions = [each for topic in topics for each in topic.partitions.values()]
            if all(len(each.isrs) == len(each.replicas) for each in partitions):
                return
            self._scene.tend(0.5)
        self._scene.problems.append("a broker that came back did not catch up")

    def elect(self) -> int:
        """Let the first replica of every partition lead it; give how many do who did not before."""
        topics = self._admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics
        wanted = [
            TopicPartition(name, number)
            for name, topic in topics.items()
            for number, each in topic.partitions.items()
            if each.leader != each.replicas[0]
        ]
        if not wanted:
            return 0
        answers = self._admin.elect_leaders(ElectionType.PREFERRED, wanted).result(ANSWER_TIMEOUT_S)
        for entry, error in answers.items():
            if error is not None:
                self._scene.problems.append(f"{entry.topic}/{entry.partition} gets no leader: {error}")
        return len(wanted)


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
    delay_s: float = 0.15  # below the reservoir's time-out of 0.2 s, so that it is not given up

    def inject(self, scene: Scene) -> None:
        assert scene.redis is not None
        scene.redis.slow(self.delay_s)

    def heal(self, scene: Scene) -> None:
        assert scene.redis is not None
        scene.redis.slow(0)


@dataclass(frozen=True)
class SwapRelease(Nothing):
    """Promote another release, which all workers must take."""

    name: str = "release swapped"

    def inject(self, scene: Scene) -> None:
        assert scene.releases is not None
        others = [name for name in scene.releases.good if name != scene.releases.current]
        scene.releases.promote(scene.chance.choice(others))

    def after(self, scene: Scene) -> None:
        assert scene.releases is not None
        wanted = {scene.releases.current.encode()}
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while set(scene.witness.scoring.values()) != wanted:
            if time.monotonic() > deadline:
                scene.problems.append(f"not all partitions are scored by {wanted}: {scene.witness.scoring}")
                return
            scene.tend(0.2)


@dataclass(frozen=True)
class OfferDamaged(Nothing):
    """Let the store call a release current whose encoder is damaged, and then the one before again."""

    name: str = "corrupt release offered"
    lasts_s: float = 3.0
    _before: list[str] = field(default_factory=list)

    def inject(self, scene: Scene) -> None:
        assert scene.releases is not None
        self._before[:] = [scene.releases.current]
        scene.releases.offer_damaged()

    def heal(self, scene: Scene) -> None:
        assert scene.releases is not None
        scene.releases.promote(self._before[0])


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
