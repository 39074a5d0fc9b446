"""One row of the table: a deployment, a load, faults again and again, and the verdict.

The assertions are those of Apache Kafka's own test of transactions: nothing is lost, every partition is in order,
and duplicates are none where exactly once is promised, for a reader at the end and for one that reads all the while.
"""

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from stream_vae.tools.audit import audit_of

from chaos.backends import Redis, Releases
from chaos.faults import (
    Fault,
    Kill,
    KillBroker,
    KillLeader,
    KillRedis,
    KillSupervisor,
    LeaveLeader,
    MoveLeaders,
    OfferDamaged,
    Scale,
    Scene,
    SlowRedis,
    Stop,
    StopRedis,
    SwapRelease,
    Terminate,
)
from chaos.load import Load, Place, Sent, clean, spoiled
from chaos.witness import Findings, Witness
from chaos.workers import START_TIMEOUT_S, Fleet, Processes, RayFleet
from deployment import Deployment, deploy
from servers import Broker, Cluster

MODES = ("at_least_once", "exactly_once")
PARTITIONS = 4
PASSING = (3, 4)
"""Exit codes that say: start it again."""
RECOVERY_TIMEOUT_S = 150
"""Above a transaction's time-out of 30 s, the group's session and a start, several times over."""
SETTLE_TIMEOUT_S = 150
"""Longest standstill while the rest is worked off."""
CALM_AFTER_S = 1.0
"""From a recovery until what comes out counts as of calm times."""
SLOWER, SLOWER_S = 1.25, 0.08
"""What a fault beside the path may make of the median latency: so much of that of calm times, and so much more. To wait
for a slow Redis costs 0.15 s a batch, and half as long for what comes meanwhile."""
PATIENCE = 3.0
"""How much longer than planned a row goes on until all of its messages are sent."""


@dataclass(frozen=True)
class Row:
    """What happens to a deployment, again and again."""

    name: str
    faults: tuple[Fault, ...]
    every_s: float = 5.0
    """From one recovery to the next fault."""
    workers: int = 2
    ray: bool = False
    spoiled: bool = False
    redis: bool = False
    steady: bool = False
    """Whether alerts must come out as fast as without the faults."""
    brokers: int = 1
    """One, or three."""
    pace: float = 1.0
    """Of the rate: three brokers on one disk write everything three times."""
    releases: int = 1
    """More than one: in the workers' store, and one of them damaged."""
    may_exit: bool = False
    """Whether workers may end by themselves and be started anew: when the broker is away for long, say."""
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


ROWS = (
    Row("workers killed", (Kill(),)),
    Row("workers drained", (Terminate(),)),
    Row("workers stopped past session", (Stop(), Stop(lasts_s=40.0, name="SIGSTOP 40 s")), may_exit=True),
    Row("broker killed", (KillBroker(),), may_exit=True),
    Row(
        "leader of three brokers killed",
        (KillLeader(), MoveLeaders(), LeaveLeader(), MoveLeaders()),
        brokers=3,
        pace=0.5,
        may_exit=True,
    ),
    Row(
        "Redis killed, stopped, slow",
        (KillRedis(), StopRedis(), SlowRedis()),
        redis=True,
        steady=True,
        sections={"batch": {"max_wait_s": 0.1}},  # to wait 0.15 s for each is to be late
    ),
    Row("release swapped, corrupt one offered", (SwapRelease(), SwapRelease(), OfferDamaged()), releases=4),
    Row("bad input, killed", (Kill(),), spoiled=True),
    Row("scaled under load", (Scale(),), workers=1),
    Row("Ray: all killed", (Kill(), KillSupervisor()), ray=True, every_s=10.0),
)


@dataclass(frozen=True)
class Amount:
    """How much is sent."""

    seconds: float = 60.0
    a_second: float = 100.0
    messages: int = 0
    """At least; the load goes on until they are sent."""


@dataclass(frozen=True)
class Verdict:
    """What one row came to."""

    row: str
    mode: str
    faults: int
    kills: int
    messages: int
    dead_letters: int
    lost: int
    duplicated: int
    differing: int
    disordered: int
    recovery_s: list[float]
    """By fault: from its end until of every partition something came out that was sent later."""
    silence_s: float
    """The longest time for which nothing came of some partition."""
    a_second: float
    """Messages that were sent and acknowledged in a second of the load."""
    latency_s: dict[str, float | None]
    """Median from sending to reading, in calm times and by fault while it lasted."""
    exits: list[int]
    seconds: float
    problems: list[str]

    @property
    def recovery(self) -> str:
        if not self.recovery_s:
            return "-"
        return f"{statistics.median(self.recovery_s):.1f} / {max(self.recovery_s):.1f}"


def play(
    row: Row,
    mode: str,
    broker: Broker | Cluster,
    packets: Sequence[bytes],
    folder: Path,
    *,
    amount: Amount,
    survey: str = "ztf",
    lite: bool = False,
    limit_s: float | None = None,
) -> Verdict:
    """Run one row in one mode; what is wrong with the outcome is in the verdict and raises nothing.

    With `limit_s` a recovery that takes as long is wrong, too.
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        redis = stack.enter_context(closing(Redis(folder))) if row.redis else None
        deployment = _deployed(row, mode, broker, folder, survey, redis, lite=lite)
        stack.callback(_delete_topics, deployment)
        releases = Releases(deployment.settings.release.store, folder, row.releases) if row.releases > 1 else None
        fleet = stack.enter_context(closing((RayFleet if row.ray else Processes)(deployment, folder, row.workers)))
        witness = Witness(deployment)
        stack.callback(witness.stop)
        items = (spoiled if row.spoiled else clean)(packets)
        load = Load(deployment, items, a_second=row.pace * amount.a_second, partitions=PARTITIONS)
        topics = [deployment.input, deployment.lite if lite else deployment.output]
        chance = random.Random(f"{row.name} {mode}")
        scene = Scene(broker, redis, releases, fleet, load, witness, topics, PARTITIONS, chance)
        recoveries, windows = _strike(row, scene, amount)
        silence_s = witness.silence_s
        load.stop()
        _work_off(scene)
        stuck = _drain(fleet)
        witness.stop()
        last = Witness(deployment, to_the_end=True)
        last.stop()
        found, problems = _judge(mode, deployment, load.sent, witness, last)
        problems += stuck + scene.problems
        if releases is not None and (wrong := last.releases - set(releases.good)):
            problems.append(f"scored by releases that nobody could use: {wrong}")
        if len(load.sent) < amount.messages:
            problems.append(f"only {len(load.sent)} of {amount.messages} messages could be sent")
        latency_s = {name: witness.latency_s(each) for name, each in windows.items()}
        if row.steady:
            problems += _slower(latency_s)
        recovered = [each for each in recoveries if each is not None]
        if limit_s is not None and (slow := [each for each in recovered if each >= limit_s]):
            problems.append(f"{len(slow)} recoveries took {limit_s:g} s or more")
        if len(recovered) < len(recoveries):
            problems.append(f"after {len(recoveries) - len(recovered)} faults it did not recover")
        if unexpected := [code for code in fleet.exits if not row.may_exit or code not in PASSING]:
            problems.append(f"workers ended by themselves, or after SIGTERM, with {unexpected}")
    return Verdict(
        row=row.name,
        mode=mode,
        faults=len(recoveries),
        kills=scene.kills,
        messages=len(load.sent),
        dead_letters=sum(fate.dead_crc is not None for fate in last.fates.values()),
        lost=found.lost,
        duplicated=found.duplicated,
        differing=found.differing,
        disordered=found.disordered,
        recovery_s=[round(each, 2) for each in recovered],
        silence_s=round(silence_s, 2),
        a_second=round(load.a_second, 1),
        latency_s={name: each and round(each, 3) for name, each in latency_s.items()},
        exits=fleet.exits,
        seconds=round(time.monotonic() - began, 1),
        problems=problems,
    )


def _deployed(
    row: Row, mode: str, broker: Broker | Cluster, folder: Path, survey: str, redis: Redis | None, *, lite: bool
) -> Deployment:
    sections: dict[str, dict[str, Any]] = {name: dict(values) for name, values in row.sections.items()}
    sections.setdefault("delivery", {})["mode"] = mode
    sections.setdefault("kafka", {})["output_topic" if lite else "lite_topic"] = None
    if row.releases > 1:
        sections["release"] = {"poll_s": 0.5}
    if redis is not None:
        sections["reservoir"] = {"url": redis.url, "capacity": 2_000}
    return deploy(broker.kafka, folder, survey=survey, partitions=PARTITIONS, **sections)


def _delete_topics(deployment: Deployment) -> None:
    section = deployment.settings.kafka
    topics = [deployment.input, section.output_topic, section.lite_topic, section.dead_letter_topic]
    deployment.kafka.delete_topics(topic for topic in topics if topic)


Windows = dict[str, list[tuple[float, float]]]
"""Of the monotonic clock: `calm`, and each fault from its injection to its end."""


def _strike(row: Row, scene: Scene, amount: Amount) -> tuple[list[float | None], Windows]:
    """Inject faults as long as the load lasts; give the recovery after each, and when they were."""
    _await_all(scene)
    start, recoveries = time.monotonic(), []
    windows: Windows = {"calm": []}
    for fault in cycle(row.faults):
        calm_from = time.monotonic() + CALM_AFTER_S
        scene.tend(scene.chance.uniform(0.5, 1.5) * row.every_s)
        if len(recoveries) >= len(row.faults) and _enough(scene, amount, time.monotonic() - start):
            break
        injected_at = time.monotonic()
        if recoveries:  # before the first the workers still share the partitions out
            windows["calm"].append((calm_from, injected_at))
        fault.inject(scene)
        scene.tend(fault.lasts_s)
        if fault.lasts_s:
            windows.setdefault(fault.name, []).append((injected_at, time.monotonic()))
        fault.heal(scene)
        began = injected_at if fault.from_the_start else time.monotonic()
        recoveries.append(_await_flow(scene, time.time() * 1000, began))
        fault.after(scene)
        if recoveries[-1] is None:
            break
    return recoveries, windows


def _await_all(scene: Scene) -> None:
    """Wait until every worker has its share, and what waited meanwhile is worked off."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if _await_flow(scene, time.time() * 1000, time.monotonic(), 1.0) is not None:
            workers = scene.fleet.running()
            if workers and all(worker.working() for worker in workers):
                break
    _await_flow(scene, time.time() * 1000, time.monotonic(), START_TIMEOUT_S)


def _enough(scene: Scene, amount: Amount, lasted_s: float) -> bool:
    if lasted_s >= PATIENCE * amount.seconds:
        return True
    return lasted_s >= amount.seconds and len(scene.load.sent) >= amount.messages


def _slower(latency_s: Mapping[str, float | None]) -> list[str]:
    """Tell which faults, while they lasted, made alerts come out later than without."""
    calm = latency_s["calm"]
    if calm is None:
        return ["nothing came in calm times"]
    found = []
    for name, during in latency_s.items():
        if during is None:
            found.append(f"nothing came while there was {name}")
        elif during > SLOWER * calm + SLOWER_S:
            found.append(f"alerts took {during:.2f} s while there was {name}, and {calm:.2f} s otherwise")
    return found


def _await_flow(scene: Scene, since_ms: float, start: float, timeout_s: float = RECOVERY_TIMEOUT_S) -> float | None:
    """Wait until what was sent since a time comes out of every partition; give how long after `start` that was."""
    while not scene.flows_since(since_ms):
        if time.monotonic() - start > timeout_s:
            return None
        scene.tend(0.1)
    return time.monotonic() - start


def _work_off(scene: Scene) -> None:
    """Wait until all that was sent came out, as long as anything does."""
    before, since = -1, time.monotonic()
    while len(scene.witness.fates) < len(scene.load.sent) and time.monotonic() - since < SETTLE_TIMEOUT_S:
        if len(scene.witness.fates) != before:
            before, since = len(scene.witness.fates), time.monotonic()
        scene.tend(0.5)


def _drain(fleet: Fleet) -> list[str]:
    """Let the fleet leave; give what is wrong with how it does."""
    try:
        fleet.drain()
    except AssertionError as error:
        return [str(error)]
    return []


def _judge(
    mode: str, deployment: Deployment, sent: Mapping[Place, Sent], witness: Witness, last: Witness
) -> tuple[Findings, list[str]]:
    problems = []
    for reader, name in ((witness, "concurrent"), (last, "final")):
        found = reader.findings(sent)
        wrong = ["lost", "invented", "differing", "misplaced", "disordered", "mixed"]
        if mode == "exactly_once":
            wrong += ["duplicated", "steps_back"]
        problems += [f"{getattr(found, each)} {each} for the {name} reader" for each in wrong if getattr(found, each)]
    if (witness.read, witness.fingerprint) != (last.read, last.fingerprint):
        problems.append(f"the readers disagree: {witness.read} messages then, {last.read} at the end")
    lines = audit_of(deployment.settings.kafka, deep=True)
    pages = [line.page for line in lines if line.page is not None]
    if not all(line.balanced and line.lag == 0 for line in lines) or len(pages) < len(lines):
        problems.append(f"the books do not balance: {lines}")
    if sum(page.consumed for page in pages) != len(sent):
        problems.append(f"the books have {sum(page.consumed for page in pages)} messages of {len(sent)}")
    if sum(line.duplicates or 0 for line in lines) != found.duplicated:
        problems.append(f"the audit sees other duplicates: {lines}")
    return found, problems
