"""Real Apache Kafka and redis-server for the integration tests, on free loopback ports.

Each server is an async context manager that keeps its port and its data between `stop` and `start`, so
a restart is the restart of one broker. `kill` is SIGKILL, `pause` and `resume` are SIGSTOP and SIGCONT.
On Linux the kernel kills a server when the test process dies. One broker, in KRaft mode, is broker and
controller at once; its topics must be created, and every internal topic has one replica.
"""

import asyncio
import secrets
import signal
import socket
import subprocess
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import redis.asyncio
import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from worker.embedded import Child

JARS = Path(__file__).resolve().parents[2] / ".cache" / "kafka"
START_S = 60.0
"""Longest start of a server; a broker takes 3 to 6 s on an idle core and the machine may be busy."""
STOP_S = 30.0
"""Longest orderly stop before the server is killed."""


@dataclass(frozen=True)
class Account:
    """A user that a server knows, in every mechanism it offers."""

    username: str
    password: str


@dataclass(frozen=True)
class Certificates:
    """PEM files: the authority that clients trust, and what a server at 127.0.0.1 shows."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def create(cls, directory: Path) -> "Certificates":
        """A new authority and one certificate of it; the key is PKCS#8, which is what Kafka reads."""
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        files = cls(directory / "ca.pem", directory / "server.pem", directory / "server-key.pem")
        authority.cert_pem.write_to_path(files.ca)
        files.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key = load_pem_private_key(issued.private_key_pem.bytes(), password=None)
        files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return files


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [bound.getsockname()[1] for bound in sockets]
    for bound in sockets:
        bound.close()
    return ports


class Server:
    """A child process, ready once `answers` says so.

    Start it in a thread that outlives it: on Linux it dies with the thread that started it.
    """

    def __init__(self, name: str, directory: Path, command: Sequence[str]) -> None:
        self.directory = directory
        self.child = Child(name, command)

    async def answers(self) -> bool:
        raise NotImplementedError

    async def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            RuntimeError: it ended before it answered; the end of its output is in the message.
            TimeoutError: it did not answer in time.
        """
        self.child.start()
        try:
            async with asyncio.timeout(START_S):
                await self._until_answering()
        except BaseException:
            self.kill()
            raise

    async def _until_answering(self) -> None:
        while not await self.answers():
            if not self.child.running:
                raise RuntimeError(f"{self.child.name} ended while starting:\n{self.child.tail()}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """An orderly stop; the data stay. Does nothing when it does not run."""
        await asyncio.to_thread(self.child.stop, STOP_S)

    def kill(self) -> None:
        """SIGKILL; the data stay as they are. Does nothing when it does not run."""
        self.child.kill()

    def pause(self) -> None:
        """Hold the process still: connections stay open and nothing answers."""
        self.child.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.child.signal(signal.SIGCONT)

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()
        self.child.close()


class KafkaServer(Server):
    """Apache Kafka, one node.

    `bootstrap` is the PLAINTEXT listener. With an `account`, `sasl_bootstrap` is a SASL_SSL listener that
    takes PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512 and shows a certificate of `certificates.ca`.
    """

    def __init__(self, directory: Path, account: Account | None = None, **properties: str) -> None:
        self._config = directory / "server.properties"
        super().__init__("kafka", directory, _java("512m", "kafka.Kafka", str(self._config)))
        ports = free_ports(3)
        self.bootstrap, self._controller, self.sasl_bootstrap = (f"127.0.0.1:{port}" for port in ports)
        self.account = account
        self.certificates = Certificates.create(directory) if account else None
        self._properties = (
            self._base() | self._secured() | {k.replace("_", "."): v for k, v in properties.items()}
        )
        self._config.write_text("".join(f"{key}={value}\n" for key, value in self._properties.items()))
        self._config.chmod(0o600)

    def _base(self) -> dict[str, str]:
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{self._controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{self._controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self.directory / "data"),
            "auto.create.topics.enable": "false",
            "num.partitions": "1",
            "default.replication.factor": "1",
            "min.insync.replicas": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            # A killed broker is let in again once its old session has ended; the default is 9 s.
            "broker.session.timeout.ms": "5000",
            "broker.heartbeat.interval.ms": "1000",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "message.max.bytes": str(16 << 20),
            # Records bear the event times of old recordings: retention by time would delete them at once.
            "log.retention.ms": "-1",
            "log.message.timestamp.before.max.ms": str(2**63 - 1),
        }

    def _secured(self) -> dict[str, str]:
        if self.account is None or self.certificates is None:
            return {}
        user, password = self.account.username, self.account.password
        listener = "listener.name.sasl_ssl"
        plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";'
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        base = self._base()
        return {
            "listeners": f"{base['listeners']},SASL_SSL://{self.sasl_bootstrap}",
            "advertised.listeners": f"{base['advertised.listeners']},SASL_SSL://{self.sasl_bootstrap}",
            "listener.security.protocol.map": f"{base['listener.security.protocol.map']},SASL_SSL:SASL_SSL",
            f"{listener}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            f"{listener}.plain.sasl.jaas.config": plain,
            f"{listener}.scram-sha-256.sasl.jaas.config": scram,
            f"{listener}.scram-sha-512.sasl.jaas.config": scram,
            f"{listener}.ssl.keystore.type": "PEM",
            f"{listener}.ssl.keystore.location": str(_joined(self.certificates)),
        }

    async def start(self) -> None:
        if not (self.directory / "data").exists():
            await asyncio.to_thread(self._format)
        await super().start()

    def _format(self) -> None:
        """Prepare an empty data folder: cluster id, and the account's SCRAM credentials."""
        if not list(JARS.glob("kafka_*.jar")):
            raise RuntimeError(f"Apache Kafka's jars are not in {JARS}; `make integration` fetches them")
        arguments = ["format", "-t", _cluster_id(), "-c", str(self._config)]
        if self.account is not None:
            credential = f"[name={self.account.username},password={self.account.password}]"
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                arguments += ["--add-scram", f"{mechanism}={credential}"]
        result = subprocess.run(
            _java("128m", "kafka.tools.StorageTool", *arguments),
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise RuntimeError(f"formatting the Kafka data folder failed:\n{result.stdout}{result.stderr}")

    async def answers(self) -> bool:
        """Whether the port is open and the broker, asked over it, names itself."""
        if not await _connects(self.bootstrap):
            return False
        return await _within(2.0, self._described) is not None

    async def _described(self) -> bool | None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap, request_timeout_ms=2000)
        try:
            await admin.start()
            cluster = await admin.describe_cluster()
            return True if cluster["brokers"] else None
        except (KafkaError, OSError):
            return None
        finally:
            await admin.close()


class RedisServer(Server):
    """redis-server that evicts nothing and appends every write to its log.

    `url` has no password. With an `account`, the default user is off, that user may do everything, and
    `tls_url` is a TLS port that shows a certificate of `certificates.ca`; neither URL holds the password.
    """

    def __init__(self, directory: Path, account: Account | None = None, **directives: str) -> None:
        self._config = directory / "redis.conf"
        super().__init__("redis", directory, ["redis-server", str(self._config)])
        port, tls_port = free_ports(2)
        self.account = account
        self.certificates = Certificates.create(directory) if account else None
        self.url = f"redis://127.0.0.1:{port}/0"
        self.tls_url = f"rediss://127.0.0.1:{tls_port}/0"
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {directory}",
            'save ""',
            "appendonly yes",
            "appendfsync everysec",
            "maxmemory-policy noeviction",
            *(f"{name.replace('_', '-')} {value}" for name, value in directives.items()),
            *self._secured(tls_port),
        ]
        self._config.write_text("\n".join(lines) + "\n")
        self._config.chmod(0o600)

    def _secured(self, tls_port: int) -> list[str]:
        if self.account is None or self.certificates is None:
            return []
        return [
            f"tls-port {tls_port}",
            f"tls-cert-file {self.certificates.cert}",
            f"tls-key-file {self.certificates.key}",
            f"tls-ca-cert-file {self.certificates.ca}",
            "tls-auth-clients no",
            "user default off",
            f"user {self.account.username} on >{self.account.password} ~* &* +@all",
        ]

    def client(self) -> redis.asyncio.Redis:
        """A client of the plain port, as the account where there is one; close it."""
        username = self.account.username if self.account else None
        password = self.account.password if self.account else None
        return redis.asyncio.Redis.from_url(self.url, username=username, password=password)

    async def flush(self) -> None:
        """Forget every key."""
        async with self.client() as client:
            await client.flushall()

    async def answers(self) -> bool:
        return await _within(2.0, self._pinged) is not None

    async def _pinged(self) -> bool | None:
        try:
            async with self.client() as client:
                await client.ping()
        except redis.exceptions.RedisError:
            return None
        return True


def new_account(username: str = "worker") -> Account:
    """An account with a random password."""
    return Account(username, secrets.token_hex(16))


def _java(heap: str, main: str, *arguments: str) -> list[str]:
    quick = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    return ["java", f"-Xmx{heap}", *quick, "-cp", f"{JARS}/*", main, *arguments]


def _cluster_id() -> str:
    """16 random bytes in URL-safe base64; Kafka refuses an id that starts with a dash."""
    return f"R{secrets.token_urlsafe(16)[1:]}"


def _joined(certificates: Certificates) -> Path:
    """Key and chain in one file, which is Kafka's PEM key store."""
    path = certificates.key.with_name("keystore.pem")
    path.write_bytes(certificates.key.read_bytes() + certificates.cert.read_bytes())
    return path


async def _connects(address: str) -> bool:
    host, port = address.split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def _within(seconds: float, probe: Callable[[], Coroutine[Any, Any, bool | None]]) -> bool | None:
    try:
        return await asyncio.wait_for(probe(), seconds)
    except TimeoutError:
        return None
