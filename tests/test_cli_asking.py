"""What is asked and ordered of a daemon by the command line: status, cancel, rescan."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clikit import call, daemon, invoke
from kit import unprivileged

import phi4d
from phi4d import control, status
from phi4d.desk import telling
from phi4d.job import Arrival, Fingerprint, Kind
from phi4d.store import Store

HOLDS_THE_LOCK = """
import socket, sys
from pathlib import Path
from phi4d.lock import Lock
lock = Lock(Path(sys.argv[1]) / "lock")
if "mute" in sys.argv:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1] + "/control")
    listener.listen()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A configuration of one inbox, with a store."""
    (tmp_path / "in").mkdir()
    (tmp_path / "state").mkdir()
    Store(tmp_path / "state/jobs.sqlite3").close()
    file = tmp_path / "phi4d.toml"
    file.write_text(
        'device = "cpu"\nstate_dir = "state"\nruntime_dir = "state"\nsettle_seconds = 0.05\n'
        '[[inbox]]\npath = "in"\noutbox = "out"\n'
    )
    return file


@contextlib.contextmanager
def holder(folder: Path, *how: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the daemon's lock."""
    command = [sys.executable, "-c", HOLDS_THE_LOCK, str(folder), *how]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process


class TestStatus:
    def test_without_a_store_it_is_down(self, tmp_path: Path) -> None:
        words = ("--set", f"state_dir={tmp_path}", "--set", f"runtime_dir={tmp_path}")
        done = invoke("status", *words)
        assert (done.exit_code, done.stdout.splitlines()[0]) == (3, "phi4d is not running")
        assert "there is no store; phi4d has not run with this configuration" in done.stderr
        done = invoke("status", "--json", *words)
        assert done.exit_code == 3
        assert json.loads(done.stdout)["health"] == "down"

    def test_one_that_runs(self, config_file: Path, tmp_path: Path) -> None:
        with daemon(config_file):
            done = call("status", "--config", config_file)
            assert done.returncode == 0, done.stderr
            assert ": ready\n" in done.stdout
            told = json.loads(call("status", "--json", "--config", config_file).stdout)
            assert (told["schema"], told["health"]) == (status.JSON_SCHEMA, "healthy")
            assert [slot["device"] for slot in told["daemon"]["slots"]] == ["cpu"]
            assert call("pause", "--config", config_file).returncode == 0
            done = call("status", "--config", config_file)
            assert done.returncode == 0
            assert ": paused\n" in done.stdout

    def test_one_whose_inbox_is_held_up_is_degraded(
        self, config_file: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out").write_text("in the way of the outbox")
        with daemon(config_file):
            # what holds it up is written down within a second
            while (done := call("status", "--config", config_file)).returncode == 0:
                pass
            assert done.returncode == 1
            assert "held up since" in done.stdout
            assert f"{tmp_path}/out" in done.stdout

    def test_one_that_does_not_answer_is_degraded(self, config_file: Path, tmp_path: Path) -> None:
        with holder(tmp_path / "state", "mute") as process:
            done = invoke("status", "--config", config_file)
            told = json.loads(invoke("status", "--json", "--config", config_file).stdout)
        assert done.exit_code == 1
        assert done.stdout.startswith(f"phi4d runs, but does not answer, pid {process.pid}\n")
        assert "the daemon did not answer within 1 s" in done.stderr
        assert (told["health"], told["state"], told["daemon"]) == ("degraded", "silent", None)

    def test_one_that_has_just_begun_is_loading(self, config_file: Path, tmp_path: Path) -> None:
        with holder(tmp_path / "state") as process:
            done = invoke("status", "--config", config_file)
        assert done.exit_code == 0
        assert done.stdout.startswith(f"phi4d is starting, pid {process.pid}\n")

    def test_who_may_ask_the_daemon_needs_no_store(self) -> None:
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            # given a store that this user cannot read, and a socket that it may use
            folder, state = Path(name), Path(name) / "state"
            folder.chmod(0o755)
            state.mkdir()
            config = folder / "phi4d.toml"
            config.write_text('state_dir = "state"\nruntime_dir = "."\n')
            with Store(state / "jobs.sqlite3") as store:
                store.add([Arrival("in", b"a.jpg", Kind.IMAGE, Fingerprint(1, 1, 1))])
            answer = {
                "state": "ready", "pid": 42, "version": phi4d.__version__,
                "uptime_seconds": 1.0, "files_per_minute": 1.0, "times_real_time": 0.0,
                "eta_seconds": None, "slots": [], "inboxes": {}, "hung": [], "dead": [],
                "stored": telling.read(state / "jobs.sqlite3"),
            }  # fmt: skip
            server = control.Server(folder / "control", {"status": lambda _: answer})
            server.start()
            stack.callback(server.join)
            stack.callback(server.stop)
            (folder / "control").chmod(0o666)
            # then everything is told
            with unprivileged(state):
                done = invoke("status", "--config", config)
            assert (done.exit_code, done.stderr) == (0, "")
            assert f"phi4d {phi4d.__version__}, pid 42" in done.stdout
            assert done.stdout.splitlines()[-1].split()[-6:-2] == ["1", "0", "0", "0"]
            # and when the daemon has ended, as much as can be known
            server.stop()
            server.join()
            with unprivileged(state):
                done = invoke("status", "--config", config)
            assert done.exit_code == 3
            assert done.stdout.startswith("phi4d is not running\n")
            assert "be the daemon's user, or in its group" in done.stderr

    def test_a_daemon_of_another_version_is_to_be_restarted(
        self, config_file: Path, tmp_path: Path
    ) -> None:
        server = control.Server(
            tmp_path / "state/control", {"status": lambda _: {"version": "0.0.1", "pid": 42}}
        )
        server.start()
        try:
            done = invoke("status", "--config", config_file)
        finally:
            server.stop()
            server.join()
        assert done.exit_code == 1
        assert done.stdout.startswith("phi4d runs, but does not answer, pid 42\n")
        assert f"the daemon is phi4d 0.0.1, this command {phi4d.__version__}" in done.stderr

    def test_it_is_drawn_anew_on_a_terminal_until_ctrl_c(self, config_file: Path) -> None:
        # given a terminal of 80 columns
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        before = termios.tcgetattr(theirs)
        with subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "phi4d", "status", "--watch",
             "--interval", "0.1", "--config", str(config_file)],
            stdin=theirs, stdout=theirs, stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color"},
        ) as watching:  # fmt: skip
            try:
                seen = b""
                while seen.count(b"phi4d is not running") < 3:
                    seen += os.read(ours, 65_536)
                # when somebody presses Ctrl-C
                os.write(ours, b"\x03")
                while watching.poll() is None or watching.wait():
                    seen += os.read(ours, 65_536) if _is_readable(ours) else b""
                while _is_readable(ours):
                    seen += os.read(ours, 65_536)
            finally:
                watching.kill()
        # then it ends well, and leaves the terminal as it was: its screen, its cursor, its modes
        assert watching.returncode == 0
        assert b"Traceback" not in seen
        assert seen.rfind(b"\x1b[?1049l") > seen.rfind(b"\x1b[?1049h") >= 0
        assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l") >= 0
        assert termios.tcgetattr(theirs) == before
        os.close(theirs)
        os.close(ours)

    def test_elsewhere_it_is_told_again_and_again_until_it_is_interrupted(
        self, config_file: Path
    ) -> None:
        command = [sys.executable, "-u", "-m", "phi4d", "status", "--watch", "--interval", "0.1"]
        with subprocess.Popen(
            [*command, "--config", str(config_file)], stdout=subprocess.PIPE, text=True
        ) as watching:
            try:
                assert watching.stdout
                seen = watching.stdout.readline()
                watching.send_signal(signal.SIGINT)
                rest = watching.stdout.read()
                assert watching.wait(60) == 0
            finally:
                watching.kill()
        assert "phi4d is not running" in seen + rest

    def test_watching_as_json_is_refused(self, tmp_path: Path) -> None:
        done = invoke("status", "--watch", "--json", "--set", f"state_dir={tmp_path}")
        assert done.exit_code == 2

    def test_with_something_else_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "jobs.sqlite3").write_bytes(b"no database, and long enough to be read" * 200)
        done = invoke("status", "--set", f"state_dir={tmp_path}")
        assert done.exit_code == 1
        assert "the store is damaged" in done.stderr

    def test_what_the_store_tells_without_a_daemon(self, tmp_path: Path) -> None:
        with Store(tmp_path / "jobs.sqlite3") as store:
            store.add(
                Arrival("photos", b"%d.jpg" % n, Kind.IMAGE, Fingerprint(n, n, n)) for n in range(6)
            )
            jobs = store.claim([1, 2, 3], "cuda:0")
            store.finish(jobs[0])
            store.fail(jobs[1], "file", "is empty")
            store.notice("photos", "outbox", "/out: cannot be written")
            store.requeue(jobs[2], count=False, wait=60, reason="cannot be read now")
            store.claim([4], "cuda:0")
            done = invoke("status", "--set", f"state_dir={tmp_path}")
        assert done.exit_code == 3
        lines = done.stdout.splitlines()
        assert lines[0] == "phi4d is not running"
        assert lines[3].split()[-6:] == ["3", "1", "1", "1", "0", "s"]
        assert "photos/3.jpg  on cuda:0" in done.stdout
        assert "photos: /out: cannot be written" in done.stdout
        assert "photos/2.jpg: cannot be read now" in done.stdout
        assert "photos/1.jpg: is empty" in done.stdout


def _is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0.05)[0])


class TestCancel:
    def test_what_a_daemon_works_on_and_what_waits(
        self, config_file: Path, tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        with daemon(config_file, "slow"):
            # given a file that is worked on without an end
            make_picture(tmp_path / "in/a.png")
            while (told := _told(config_file))["inboxes"]["in"]["running"] != 1:
                pass
            assert told["daemon"]["slots"][0]["files"][0]["file"] == "in/a.png"
            # when all that waits is cancelled, there is nothing
            done = call("cancel", "--waiting", "--config", config_file)
            assert (done.returncode, done.stdout) == (1, "0 cancelled\n")
            # when it is named, it stops, and its slot is free
            done = call("cancel", "in/a.png", "in/none.png", "--config", config_file)
            assert (done.returncode, done.stdout) == (0, "1 being worked on: told to stop\n")
            assert done.stderr.endswith("in/none.png: neither waits nor is being worked on\n")
            while (told := _told(config_file))["inboxes"]["in"]["cancelled"] != 1:
                pass
            assert told["daemon"]["slots"][0]["files"] == []
            assert (told["inboxes"]["in"]["failed"], told["failures"]) == (0, [])
            done = call("explain", "in/a.png", "--config", config_file)
            assert "cancelled by" in done.stdout

    def test_without_a_daemon_the_store_is_changed(self, config_file: Path, tmp_path: Path) -> None:
        with Store(tmp_path / "state/jobs.sqlite3") as store:
            store.add(
                Arrival("in", b"%d.jpg" % n, Kind.IMAGE, Fingerprint(n, 2, 3)) for n in range(3)
            )
            store.claim([1], "cpu")  # as it was when a daemon was killed
        done = invoke("cancel", "in", "--config", config_file)
        assert (done.exit_code, done.stdout) == (0, "3 cancelled\n")

    @pytest.mark.parametrize("words", [[], ["a", "--waiting"]])
    def test_a_wrong_call(self, config_file: Path, words: list[str]) -> None:
        done = invoke("cancel", *words, "--config", config_file)
        assert done.exit_code == 2
        assert "name files or folders, or give --waiting" in done.stderr


class TestRescan:
    def test_a_daemon_looks_through_its_inboxes(self, config_file: Path) -> None:
        with daemon(config_file):
            done = call("rescan", "--config", config_file)
            assert (done.returncode, done.stdout) == (0, "looking through in\n")
            done = call("rescan", "out", "--config", config_file)
            assert done.returncode == 1
            assert "no inbox is named 'out'; there are: in" in done.stderr

    def test_without_a_daemon(self, config_file: Path) -> None:
        done = invoke("rescan", "--config", config_file)
        assert done.exit_code == 1
        assert "no daemon runs; it looks through all inboxes when it starts" in done.stderr


def _told(config_file: Path) -> dict[str, Any]:
    return json.loads(invoke("status", "--json", "--config", config_file).stdout)  # type: ignore[no-any-return]
