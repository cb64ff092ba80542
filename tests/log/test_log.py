"""Where the log goes, and what a line carries."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from phi4d import events
from phi4d import log as logs
from phi4d.errors import ConfigError
from phi4d.job import Fingerprint, Job, Kind
from phi4d.log import targets

JOB = Job(7, "in", b"a\n.jpg", Kind.IMAGE, Fingerprint(1, 2, 3))


@pytest.fixture(autouse=True)
def _no_handlers_yet(environment: pytest.MonkeyPatch) -> None:
    logging.getLogger().handlers = []


def be_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stderr is what the service manager connected to the journal."""
    stat = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")


class TestPlain:
    def test_lines_on_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        logs.configure()
        logging.getLogger("phi4d.x").info("käse")
        logging.getLogger("phi4d.x").debug("not this")
        logging.getLogger("other").info("nor this")
        logging.getLogger("other").warning("but this")
        first, second = capsys.readouterr().err.splitlines()
        assert first.endswith("INFO    käse")
        assert second.endswith("WARNING but this")

    @pytest.mark.parametrize(
        ("level", "said"),
        [
            ("debug", ["debug", "info", "warning", "error"]),
            ("info", ["info", "warning", "error"]),
            ("warning", ["warning", "error"]),
            ("error", ["error"]),
        ],
    )
    def test_from_a_level_on(
        self, level: str, said: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        logs.configure(log_level=level)
        for name in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger("phi4d.x"), name)("it is %s", name)
        lines = capsys.readouterr().err.splitlines()
        assert [line.rpartition(" ")[2] for line in lines] == said

    def test_configured_again_things_are_said_once_and_as_now(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        logs.configure(log_level="debug")
        logs.configure(log_format="json")
        logging.getLogger("phi4d").warning("once")
        logging.getLogger("phi4d").debug("never")
        (line,) = capsys.readouterr().err.splitlines()
        assert json.loads(line)["message"] == "once"


def test_a_line_about_a_job_carries_it(caplog: pytest.LogCaptureFixture) -> None:
    adapter = logs.for_job(logging.getLogger("phi4d.x"), JOB, "cuda:0")
    with caplog.at_level(logging.INFO):
        adapter.error("no good", extra={"PHI4D_FAULT": "file"})
    (record,) = caplog.records
    fields = {k: v for k, v in vars(record).items() if k.startswith("PHI4D_")}
    assert fields == {
        "PHI4D_JOB": 7,
        "PHI4D_INBOX": "in",
        "PHI4D_FILE": r"a\n.jpg",
        "PHI4D_DEVICE": "cuda:0",
        "PHI4D_FAULT": "file",
    }


class TestJson:
    def test_a_line_is_an_object_with_the_fields(self, capsys: pytest.CaptureFixture[str]) -> None:
        logs.configure(log_format="json")
        adapter = logs.for_job(logging.getLogger("phi4d.x"), JOB, "cuda:0")
        adapter.error("too\n%s", "bad", extra=events.FILE_FAILED(fault="file"))
        (line,) = capsys.readouterr().err.splitlines()
        told = json.loads(line)
        assert datetime.fromisoformat(told.pop("ts")).tzinfo is not None
        assert told == {
            "level": "error",
            "message": "too\nbad",
            "job": 7,
            "inbox": "in",
            "file": r"a\n.jpg",
            "device": "cuda:0",
            "event": "file-failed",
            "fault": "file",
        }

    def test_an_error_that_nobody_foresaw_has_its_traceback(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        logs.configure(log_format="json")
        try:
            raise KeyError("x")
        except KeyError:
            logging.getLogger("phi4d").exception("unexpected")
        (line,) = capsys.readouterr().err.splitlines()
        assert json.loads(line)["traceback"].startswith("Traceback")


class TestJournal:
    def test_without_its_module_lines_carry_their_priority(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        be_the_journal(monkeypatch)  # capfd has put a file in stderr's place
        monkeypatch.setitem(sys.modules, "systemd.journal", None)
        logs.configure(log_level="debug")
        logger = logging.getLogger("phi4d")
        logger.critical("!")
        logger.error("a\nb")
        logger.warning("c")
        logger.info("d")
        logger.debug("e")
        assert capfd.readouterr().err == "<2>!\n<3>a\n<3>b\n<4>c\n<6>d\n<7>e\n"

    def test_with_it_the_fields_go_to_the_journal(
        self, journal: type[PlayedJournal], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        be_the_journal(monkeypatch)
        monkeypatch.setattr(targets, "JOURNAL_SOCKET", tmp_path)
        logs.configure()
        adapter = logs.for_job(logging.getLogger("phi4d.x"), JOB, "cpu")
        adapter.info("done", extra=events.FILE_DONE(tokens=3))
        assert journal.made_with == {"SYSLOG_IDENTIFIER": "phi4d"}
        assert journal.sent == [
            {
                "MESSAGE": "done",
                "MESSAGE_ID": events.FILE_DONE.id,
                "PHI4D_EVENT": "file-done",
                "PHI4D_JOB": 7,
                "PHI4D_INBOX": "in",
                "PHI4D_FILE": r"a\n.jpg",
                "PHI4D_DEVICE": "cpu",
                "PHI4D_TOKENS": 3,
            }
        ]

    def test_what_it_cannot_take_goes_to_stderr(
        self,
        journal: type[PlayedJournal],
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        be_the_journal(monkeypatch)
        socket = tmp_path / "socket"
        socket.touch()
        monkeypatch.setattr(targets, "JOURNAL_SOCKET", socket)
        logs.configure()
        socket.unlink()  # its daemon has died
        logging.getLogger("phi4d").info("seen")
        assert capfd.readouterr().err == "<6>seen\n"
        assert journal.sent == []

    @pytest.mark.parametrize(
        ("log_format", "line"), [("auto", "<6>seen\n"), ("plain", "<6>seen\n")]
    )
    def test_without_its_socket_nothing_is_lost_in_it(
        self,
        log_format: str,
        line: str,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        be_the_journal(monkeypatch)
        monkeypatch.setattr(targets, "JOURNAL_SOCKET", tmp_path / "none")
        logs.configure(log_format=log_format)
        logging.getLogger("phi4d").info("seen")
        assert capfd.readouterr().err == line

    def test_json_lines_have_their_priority_as_well(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        be_the_journal(monkeypatch)
        logs.configure(log_format="json")
        logging.getLogger("phi4d").warning("seen")
        priority, _, line = capfd.readouterr().err.partition(">")
        assert (priority, json.loads(line)["message"]) == ("<4", "seen")


class PlayedJournal(logging.Handler):
    """What systemd-python gives, as far as it is used here."""

    made_with: ClassVar[dict[str, str]] = {}
    sent: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, sender_function: Any, **fields: str) -> None:
        super().__init__()
        self.made_with.update(fields)
        self._sender = sender_function

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._sender(self.format(record), **vars(record))
        except Exception:
            self.handleError(record)


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> type[PlayedJournal]:
    PlayedJournal.made_with.clear()
    PlayedJournal.sent.clear()

    def send(message: str, **fields: Any) -> None:
        PlayedJournal.sent.append({"MESSAGE": message, **fields})

    module = ModuleType("systemd.journal")
    module.JournalHandler = PlayedJournal  # type: ignore[attr-defined]
    module.send = send  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "systemd", ModuleType("systemd"))
    monkeypatch.setitem(sys.modules, "systemd.journal", module)
    return PlayedJournal


class TestWhatNobodyHandled:
    def test_warnings_of_python_are_lines_of_the_log(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logs.configure()
            warnings.warn("that is old", DeprecationWarning, stacklevel=1)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.split()[2] == "WARNING"
        assert line.endswith("DeprecationWarning: that is old")

    def test_an_error_that_ends_a_thread_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        logs.configure()
        thread = threading.Thread(target=lambda: {}["x"], name="watcher")
        thread.start()
        thread.join()
        said = capsys.readouterr().err
        assert "CRITICAL thread watcher ends: an error that nobody foresaw" in said
        assert "KeyError: 'x'" in said

    def test_a_thread_may_leave(self, capsys: pytest.CaptureFixture[str]) -> None:
        logs.configure()
        thread = threading.Thread(target=sys.exit)
        thread.start()
        thread.join()
        assert capsys.readouterr().err == ""

    def test_an_error_that_ends_the_process_is_told(self, environment: Any) -> None:
        done = run("from phi4d import log; log.configure(); {}['x']")
        assert done.returncode == 1
        assert b"CRITICAL phi4d ends: an error that nobody foresaw" in done.stderr
        assert done.stderr.endswith(b"KeyError: 'x'\n")

    def test_ctrl_c_is_none(self, environment: Any) -> None:
        done = run("from phi4d import log; log.configure(); raise KeyboardInterrupt")
        assert b"CRITICAL" not in done.stderr


def test_a_closed_stderr_is_no_fault(environment: pytest.MonkeyPatch) -> None:
    done = run(
        "import os, logging; os.close(2); from phi4d import log; log.configure();"
        "logging.getLogger('phi4d').error('x'); print('fine')"
    )
    assert done.stdout == b"fine\n"


def run(script: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)


def test_a_file_that_cannot_be_is_refused_and_nothing_changes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    logs.configure()
    with pytest.raises(ConfigError, match=r"log_file: .*/none/log cannot be written: No such file"):
        logs.configure(log_level="error", log_file=tmp_path / "none/log")
    logging.getLogger("phi4d").info("as before")
    assert capsys.readouterr().err.endswith("as before\n")


def test_counts_that_are_left_are_said_at_the_end(environment: pytest.MonkeyPatch) -> None:
    done = run(
        "import logging; from phi4d import log; log.configure()\n"
        "for _ in range(3): logging.getLogger('phi4d').warning('mind')"
    )
    first, last = done.stderr.decode().splitlines()
    assert first.endswith("WARNING mind")
    assert last.endswith("WARNING said 2 times more in the last 1 s: mind")


def test_counts_are_said_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    logs.tick()  # nothing is configured, and nothing is said
    logs.settle()
    logs.configure()
    for _ in range(2):
        logging.getLogger("phi4d").warning("mind")
    logs.tick()
    assert capsys.readouterr().err.count("\n") == 1
    logs.settle()
    assert "said 1 time more" in capsys.readouterr().err


def test_a_disk_behind_stderr_that_has_room_again_gets_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Disk(io.StringIO):
        """It is full for the first write."""

        is_full = True

        def write(self, text: str) -> int:
            if self.is_full:
                self.is_full = False
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", Disk())
    logs.configure()

    logging.getLogger("phi4d").error("meanwhile")
    logging.getLogger("phi4d").error("after")

    (line,) = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert line.endswith("ERROR   after")
