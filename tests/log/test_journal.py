"""What `journalctl` reads back of the log, from a real journal.

It is private: a systemd-journald of the test's own, in a mount namespace where /run is empty.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from phi4d import events

TOP = Path(__file__).parents[2]
JOURNALD = Path("/lib/systemd/systemd-journald")
PROGRAMS = ("journalctl", "systemd-cat", "unshare", "nsenter")
# What is in these three folders is the machine's: within, they begin empty
SURROUNDINGS = f"""
set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/systemd
mount -t tmpfs tmpfs /usr/lib/systemd/catalog
mkdir -p /run/systemd/journald.conf.d /var/lib/systemd/catalog
cp {TOP}/systemd/phi4d.catalog /usr/lib/systemd/catalog
journalctl --update-catalog
cat >/run/systemd/journald.conf.d/test.conf <<WORDS
[Journal]
Storage=volatile
Audit=no
ReadKMsg=no
RateLimitIntervalSec=0
WORDS
"""
# as the service manager does it for a unit's standard error
UNDER_IT = (
    "systemd-cat", "sh", "-c",
    'JOURNAL_STREAM=$(stat --dereference --format=%d:%i /proc/self/fd/2) exec "$@"', "sh",
)  # fmt: skip
Entry = dict[str, Any]


class Journal:
    """A systemd-journald, its namespace, and what it has."""

    def __init__(self, pid: int) -> None:
        self._within = ("nsenter", f"--target={pid}", "--mount", f"--wd={TOP}")

    def run(self, *words: object) -> str:
        """Run a command within, and give back its standard output."""
        done = subprocess.run(
            [*self._within, *map(str, words)],
            capture_output=True,
            check=False,
            encoding="utf-8",
            timeout=60,
            env={k: v for k, v in os.environ.items() if not k.startswith("PHI4_")},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log(self, script: str) -> list[Entry]:
        """What the journal has of a process that logs with phi4d's log."""
        mark = self.run("journalctl", "--show-cursor", "--lines=0").rpartition("-- cursor: ")[2]
        begin = "import logging; from phi4d import events, log; log.configure(log_level='debug')\n"
        self.run(*UNDER_IT, sys.executable, "-c", begin + script)
        return self.read(f"--after-cursor={mark.strip()}")

    def read(self, *words: object) -> list[Entry]:
        """The entries that match."""
        self.run("journalctl", "--sync")
        lines = self.run("journalctl", "--output=json", "--all", "--quiet", *words).splitlines()
        return [json.loads(line) for line in lines]


def _why_not() -> str:
    """Why there can be no private journal here; nothing if there can."""
    if os.geteuid() != 0:
        return "a private journald wants root"
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing or not JOURNALD.exists():
        return f"systemd or util-linux is not installed: no {(missing or [JOURNALD])[0]}"
    tried = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SURROUNDINGS],
        capture_output=True,
        check=False,
        text=True,
    )
    return f"no mounts of its own here: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.fixture(scope="module")
def journal() -> Iterator[Journal]:
    if reason := _why_not():
        pytest.skip(reason)
    name = f"phi4d-journal-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(30)
        with subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f"{SURROUNDINGS}\nexec {JOURNALD}"],
            env={**os.environ, "NOTIFY_SOCKET": f"@{name}"},
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                while b"READY=1" not in manager.recv(4096):
                    pass
                yield Journal(process.pid)
            finally:
                process.terminate()


@pytest.fixture(scope="module")
def fields(journal: Journal) -> Journal:
    """A journal that gets fields."""
    if not importlib.util.find_spec("systemd.journal"):
        pytest.skip("systemd-python is not installed; it wants libsystemd-dev, pkg-config and cc")
    return journal


JOB = """
from phi4d.job import Fingerprint, Job, Kind
job = Job(7, "in", b"2024/\\xff k\\xc3\\xa4se\\n.jpg", Kind.IMAGE, Fingerprint(1, 2, 3))
told = log.for_job(logging.getLogger("phi4d.worker"), job, "cuda:0")
"""


def test_every_field_of_a_line_about_a_file_is_read_back(fields: Journal) -> None:
    reason = "two lines:\n  as a library says it\n\tdone"
    (entry,) = fields.log(
        JOB + f"told.error('failed %s: %s', job.name, {reason!r},"
        f" extra=events.FILE_FAILED(fault='file', phase='decode', reason={reason!r}))"
    )

    name = r"2024/\xff käse\n.jpg"
    assert {k: v for k, v in entry.items() if k.startswith("PHI4D_")} == {
        "PHI4D_JOB": "7",
        "PHI4D_INBOX": "in",
        "PHI4D_FILE": name,
        "PHI4D_DEVICE": "cuda:0",
        "PHI4D_EVENT": "file-failed",
        "PHI4D_FAULT": "file",
        "PHI4D_PHASE": "decode",
        "PHI4D_REASON": reason,
    }
    assert entry["MESSAGE"] == f"failed {name}: {reason}"
    assert entry["MESSAGE_ID"] == events.FILE_FAILED.id
    assert entry["SYSLOG_IDENTIFIER"] == "phi4d"


def test_a_path_that_is_no_utf_8_keeps_no_line_from_the_journal(fields: Journal) -> None:
    (entry,) = fields.log(
        "logging.getLogger('phi4d').info('watching %s', '/in/\\udcff',"
        " extra=events.READY(output='/out/\\udcff'))"
    )

    assert entry["_TRANSPORT"] == "journal"
    assert entry["MESSAGE"] == r"watching /in/\udcff"
    assert entry["PHI4D_OUTPUT"] == r"/out/\udcff"


def test_an_error_that_nobody_foresaw_has_its_traceback_in_one_entry(fields: Journal) -> None:
    (entry,) = fields.log(
        "try: {}['x']\nexcept KeyError: logging.getLogger('phi4d').exception('unexpected')"
    )

    assert entry["MESSAGE"].startswith("unexpected\nTraceback (most recent call last):\n")
    assert entry["PRIORITY"] == "3"


def test_a_file_is_found_by_its_name(fields: Journal) -> None:
    fields.log(JOB + "told.info('done %s', job.name, extra=events.FILE_DONE(tokens=3))")

    found = fields.read(r"PHI4D_FILE=2024/\xff käse\n.jpg", "PHI4D_EVENT=file-done")

    assert [entry["PHI4D_TOKENS"] for entry in found] == ["3"]


LEVELS = "for say in ('critical', 'error', 'warning', 'info', 'debug'):\n getattr({}, say)(say)"
PRIORITIES = {"critical": "2", "error": "3", "warning": "4", "info": "6", "debug": "7"}


def test_every_level_has_its_priority(fields: Journal) -> None:
    entries = fields.log(LEVELS.format("logging.getLogger('phi4d.x')"))

    assert {entry["MESSAGE"]: entry["PRIORITY"] for entry in entries} == PRIORITIES
    assert {entry["_TRANSPORT"] for entry in entries} == {"journal"}


def test_without_its_library_the_lines_come_by_stderr_with_their_priorities(
    journal: Journal,
) -> None:
    entries = journal.log(
        "import sys; sys.modules['systemd.journal'] = None; log.configure(log_level='debug')\n"
        + LEVELS.format("logging.getLogger('phi4d.x')")
    )

    assert {entry["MESSAGE"]: entry["PRIORITY"] for entry in entries} == PRIORITIES
    assert {entry["_TRANSPORT"] for entry in entries} == {"stdout"}


def test_journalctl_explains_an_event(fields: Journal) -> None:
    fields.log(
        "logging.getLogger('phi4d.x').error('inbox \"scans\" pauses: no space',"
        " extra=events.INBOX_PAUSED(inbox='scans', fault='environment', reason='no space'))"
    )

    said = fields.run("journalctl", "--catalog", "--quiet", "PHI4D_INBOX=scans").splitlines()

    assert said[0].endswith(': inbox "scans" pauses: no space')
    assert said[1].endswith("Subject: An inbox pauses")
    assert any("shows every inbox that pauses and why" in line for line in said)


def test_a_daemon_under_the_service_manager(
    fields: Journal, tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    # given an inbox with files that are good and bad, and a name that is no UTF-8
    make_picture(tmp_path / "inbox/a/good.png")
    odd = os.fsdecode(b"inbox/\xe4.png")
    make_picture(tmp_path / "inbox/plain.png", (40, 40)).rename(tmp_path / odd)
    (tmp_path / "inbox/bad.jpg").write_bytes(b"no picture")
    (tmp_path / "phi4d.toml").write_text(
        'device = "cpu"\nstate_dir = "state"\nsettle_seconds = 0.1\n'
        '[[inbox]]\npath = "inbox"\noutbox = "outbox"\n'
    )
    # when it works them off, its stderr the journal's
    daemon = TOP / "tests/fake_daemon.py"
    fields.run(*UNDER_IT, sys.executable, daemon, tmp_path / "phi4d.toml", "once")
    # then each is found by its fields
    done = fields.read("PHI4D_EVENT=file-done", "PHI4D_DEVICE=cpu")
    assert {entry["PHI4D_FILE"] for entry in done} == {"a/good.png", r"\xe4.png"}
    assert {entry["PHI4D_OUTPUT"] for entry in done} == {
        f"{tmp_path}/outbox/a/good.png.txt",
        rf"{tmp_path}/outbox/\xe4.png.txt",
    }
    (failed,) = fields.read("PHI4D_FAULT=file", "PHI4D_FILE=bad.jpg")
    assert failed["PRIORITY"] == "3"
    assert failed["PHI4D_INBOX"] == "inbox"
    assert failed["PHI4D_REASON"] in failed["MESSAGE"]
    # and so are the daemon's own, in their order
    ids = [entry.get("MESSAGE_ID") for entry in fields.read("SYSLOG_IDENTIFIER=phi4d")]
    assert ids.index(events.READY.id) < ids.index(events.STOPPED.id)
