"""The vigil: when it feeds the watchdog, and what it says of threads that hang."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from phi4d import events
from phi4d.notices import Notices
from phi4d.vigil import Vigil

HANG_SECONDS = 300.0
LONG_AGO, JUST_NOW = 1000.0, 1500.0
NOW = JUST_NOW + 1.0


@dataclass
class Thread:
    """What the vigil sees of a worker, or of the watcher."""

    name: str = "worker cuda:0"
    last_beat: float = JUST_NOW
    looks_at: str = ""


class Manager:
    """A service manager that wants signs of life."""

    def __init__(self, address: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(address))

    def heard(self) -> list[str]:
        """What it was told since it was last asked."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(1000).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, environment: pytest.MonkeyPatch) -> Iterator[Manager]:
    environment.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    environment.setenv("WATCHDOG_USEC", "60000000")
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def notices() -> Notices:
    return Notices()


@pytest.fixture
def vigil(notices: Notices) -> Vigil:
    return Vigil(notices, lambda: HANG_SECONDS)


def test_the_watchdog_is_fed_while_every_worker_lives(manager: Manager, vigil: Vigil):
    vigil.look(NOW, [Thread(), Thread("worker cuda:1")], Thread("watcher"))

    assert manager.heard() == ["WATCHDOG=1"]


def test_it_is_not_fed_where_none_is_wanted(
    manager: Manager, vigil: Vigil, environment: pytest.MonkeyPatch
):
    environment.setenv("WATCHDOG_PID", str(os.getppid()))  # it is another's

    vigil.look(NOW, [Thread()], Thread("watcher"))

    assert manager.heard() == []


def test_one_worker_that_hangs_starves_it_and_is_named_once(
    manager: Manager, vigil: Vigil, caplog: pytest.LogCaptureFixture
):
    workers = [Thread(), Thread("worker cuda:1", LONG_AGO)]
    # when
    vigil.look(NOW, workers, Thread("watcher"))
    vigil.look(NOW + 1, workers, Thread("watcher"))
    # then
    assert manager.heard() == []
    (line,) = caplog.records
    assert line.getMessage() == (
        "worker cuda:1: no sign of life for 501 s; the service manager is left to restart phi4d"
    )
    assert vars(line).items() >= events.WORKER_HUNG(device="cuda:1").items()


def test_a_worker_that_goes_on_is_fed_for_again_and_told_of_again_if_it_hangs_anew(
    manager: Manager, vigil: Vigil, caplog: pytest.LogCaptureFixture
):
    worker = Thread(last_beat=LONG_AGO)
    vigil.look(NOW, [worker], Thread("watcher"))
    # when
    worker.last_beat = NOW
    vigil.look(NOW + 1, [worker], Thread("watcher"))
    # then
    assert manager.heard() == ["WATCHDOG=1"]
    # and when it hangs anew
    vigil.look(NOW + HANG_SECONDS + 1, [worker], Thread("watcher", NOW + HANG_SECONDS))
    assert manager.heard() == []
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("silence", "fed"), [(HANG_SECONDS, True), (HANG_SECONDS + 0.5, False)])
def test_hang_seconds_are_to_the_letter(manager: Manager, vigil: Vigil, silence: float, fed: bool):
    vigil.look(NOW, [Thread(last_beat=NOW - silence)], Thread("watcher"))

    assert manager.heard() == (["WATCHDOG=1"] if fed else [])


def test_hang_seconds_may_change_while_it_watches(manager: Manager, notices: Notices):
    patience = [HANG_SECONDS]
    vigil = Vigil(notices, lambda: patience[0])
    vigil.look(NOW, [Thread(last_beat=LONG_AGO)], Thread("watcher"))
    assert manager.heard() == []
    # when
    patience[0] = 10 * HANG_SECONDS
    vigil.look(NOW, [Thread(last_beat=LONG_AGO)], Thread("watcher"))
    # then
    assert manager.heard() == ["WATCHDOG=1"]


def test_an_inbox_whose_file_system_does_not_answer_is_told_and_the_watchdog_fed(
    manager: Manager, vigil: Vigil, notices: Notices, caplog: pytest.LogCaptureFixture
):
    watcher = Thread("watcher", LONG_AGO, looks_at="scans")
    # when
    vigil.look(NOW, [Thread()], watcher)
    vigil.look(NOW + 1, [Thread()], watcher)
    # then it is said once, and `phi4d status` knows
    assert manager.heard() == ["WATCHDOG=1", "WATCHDOG=1"]
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.ERROR
    assert vars(caplog.records[0]).items() >= events.INBOX_TROUBLED(inbox="scans").items()
    (text,) = notices.about("silence").values()
    assert text.startswith("its file system has not answered for 501 s; see that its server runs")


def test_when_it_answers_again_that_is_said_and_the_notice_goes(
    vigil: Vigil, notices: Notices, caplog: pytest.LogCaptureFixture
):
    assert vigil.listen_to(Thread("watcher", LONG_AGO, looks_at="scans"), NOW) == "scans"
    caplog.clear()
    # when
    assert vigil.listen_to(Thread("watcher", NOW, looks_at="scans"), NOW) == ""
    # then
    (line,) = caplog.records
    assert (line.levelno, line.getMessage()) == (
        logging.WARNING,
        'inbox "scans": its file system answers again',
    )
    assert vars(line).items() >= events.INBOX_HEALED(inbox="scans").items()
    assert notices.about("silence") == {}


def test_the_notice_is_of_the_inbox_that_is_waited_for_now(vigil: Vigil, notices: Notices):
    vigil.listen_to(Thread("watcher", LONG_AGO, looks_at="scans"), NOW)
    vigil.listen_to(Thread("watcher", LONG_AGO + 1, looks_at="photos"), NOW)

    assert list(notices.about("silence")) == ["photos"]


def test_a_watcher_that_waits_for_no_inbox_is_nobody_s_fault(
    vigil: Vigil, notices: Notices, caplog: pytest.LogCaptureFixture
):
    assert vigil.listen_to(Thread("watcher", LONG_AGO), NOW) == ""
    assert (caplog.records, notices.about("silence")) == ([], {})
