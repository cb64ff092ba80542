"""sd_notify, against a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import Clock

from phi4d.notify import GettingOn, notify, watchdog_seconds


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, environment: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@phi4d-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0"))
        sock.settimeout(5)
        environment.setenv("NOTIFY_SOCKET", name)
        yield sock


def test_the_manager_hears_a_state(manager: socket.socket) -> None:
    assert notify("READY=1\nSTATUS=käse")
    assert manager.recv(100).decode() == "READY=1\nSTATUS=käse"


def test_without_a_manager_nothing_happens(environment: pytest.MonkeyPatch) -> None:
    assert not notify("READY=1")
    environment.setenv("NOTIFY_SOCKET", "relative")
    assert not notify("READY=1")


def test_a_manager_that_is_gone_is_no_fault(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        (None, None, None),
        ("30000000", None, 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("much", None, None),
    ],
)
def test_the_watchdogs_wish_is_read(
    environment: pytest.MonkeyPatch, usec: str | None, pid: str | None, seconds: float | None
) -> None:
    if usec:
        environment.setenv("WATCHDOG_USEC", usec)
    if pid:
        environment.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert watchdog_seconds() == seconds


def test_more_time_is_asked_for_once_a_second_while_something_gets_on(
    manager: socket.socket, clock: Clock
) -> None:
    getting_on = GettingOn(clock)
    for seconds in (0.0, 0.5, 0.6, 0.1):
        clock.advance(seconds)
        getting_on()
    assert manager.recv(100) == b"EXTEND_TIMEOUT_USEC=300000000"
    assert manager.recv(100) == b"EXTEND_TIMEOUT_USEC=300000000"
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)
