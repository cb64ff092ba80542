"""Where the log goes, and what a line carries."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

from phi4d import log as logs
from phi4d.job import Fingerprint, Job, Kind

JOB = Job(7, "in", b"a\n.jpg", Kind.IMAGE, Fingerprint(1, 2, 3))


@pytest.fixture(autouse=True)
def _no_handlers_yet(environment: pytest.MonkeyPatch) -> None:
    logging.getLogger().handlers = []


@pytest.fixture
def journal(environment: pytest.MonkeyPatch) -> None:
    """Stderr is what the service manager connected to the journal."""
    stat = os.fstat(2)
    environment.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")


def test_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup()
    logging.getLogger("phi4d.x").info("käse")
    logging.getLogger("phi4d.x").debug("not this")
    logging.getLogger("other").info("nor this")
    line = capsys.readouterr().err
    assert line.endswith("INFO    käse\n")
    assert line.count("\n") == 1


def test_debug_is_more(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(logging.DEBUG)
    logging.getLogger("phi4d.x").debug("detail")
    assert "detail" in capsys.readouterr().err


def test_setting_up_twice_says_things_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup()
    logs.setup()
    logging.getLogger("phi4d").warning("once")
    assert capsys.readouterr().err.count("once") == 1


def test_a_line_about_a_job_carries_it(caplog: pytest.LogCaptureFixture) -> None:
    adapter = logs.for_job(logging.getLogger("phi4d.x"), JOB, "cuda:0")
    with caplog.at_level(logging.INFO):
        adapter.error("no good", extra={"PHI4D_FAULT": "file"})
    (record,) = caplog.records
    fields = {k: v for k, v in vars(record).items() if k.startswith("PHI4D_")}
    assert fields == {
        "PHI4D_JOB": "7",
        "PHI4D_INBOX": "in",
        "PHI4D_FILE": r"a\n.jpg",
        "PHI4D_DEVICE": "cuda:0",
        "PHI4D_FAULT": "file",
    }


@pytest.mark.usefixtures("journal")
class TestJournal:
    def test_without_its_module_lines_carry_their_priority(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # capfd has put a file in stderr's place
        stat = os.fstat(2)
        monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
        monkeypatch.setitem(sys.modules, "systemd", None)
        logs.setup(logging.DEBUG)
        logger = logging.getLogger("phi4d")
        logger.error("a\nb")
        logger.warning("c")
        logger.info("d")
        logger.debug("e")
        assert capfd.readouterr().err == "<3>a\n<3>b\n<4>c\n<6>d\n<7>e\n"

    def test_with_it_the_fields_go_to_the_journal(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        sent: list[logging.LogRecord] = []

        class JournalHandler(logging.Handler):
            made_with: ClassVar[dict[str, str]] = {}

            def __init__(self, **fields: str) -> None:
                super().__init__()
                self.made_with.update(fields)

            def emit(self, record: logging.LogRecord) -> None:
                sent.append(record)

        journal = ModuleType("systemd.journal")
        journal.JournalHandler = JournalHandler  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "systemd", ModuleType("systemd"))
        monkeypatch.setitem(sys.modules, "systemd.journal", journal)
        monkeypatch.setattr(logs, "JOURNAL_SOCKET", tmp_path)
        logs.setup()
        logs.for_job(logging.getLogger("phi4d.x"), JOB, "cpu").info("done")
        assert JournalHandler.made_with == {"SYSLOG_IDENTIFIER": "phi4d"}
        assert sent[0].PHI4D_FILE == r"a\n.jpg"  # type: ignore[attr-defined]

    def test_without_the_journals_socket_nothing_is_lost_in_it(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        stat = os.fstat(2)
        monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
        monkeypatch.setattr(logs, "JOURNAL_SOCKET", tmp_path / "none")
        logs.setup()
        logging.getLogger("phi4d").info("seen")
        assert capfd.readouterr().err == "<6>seen\n"


def test_a_closed_stderr_is_no_fault(environment: pytest.MonkeyPatch) -> None:
    script = "import os; os.close(2); from phi4d import log; log.setup(); print('fine')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"fine\n"
