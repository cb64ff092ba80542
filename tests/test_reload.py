"""The configuration is read again while the daemon runs: what changes, what is refused."""

from __future__ import annotations

import json
import logging
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemonkit import SCRIPT, read_until, running

from phi4d import config as configuration
from phi4d import control, events
from phi4d import daemon as house
from phi4d.config import Config
from phi4d.daemon import Daemon
from phi4d.engine import Engine
from phi4d.engine.fake import FakeEngine
from phi4d.errors import EnvironmentFault, Stopped
from phi4d.job import Arrival, Fingerprint, Job, Kind, Result
from phi4d.reload import Outcome

WAIT_SECONDS = 60.0  # until a test gives up
Picture = Callable[..., Path]


class Home:
    """A configuration file, and a daemon in this process that reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "phi4d.toml"
        self.engine = FakeEngine()
        self.ended: list[str] = []
        self._changed = threading.Condition()
        self.write()

    def write(self, more: str = "", **inboxes: str) -> None:
        """Configure inboxes, by their names, with more keys of each; none given: in."""
        text = f'state_dir = "state"\nsettle_seconds = 0.05\npause_seconds = 600\n{more}\n'
        for name, keys in (inboxes or {"in": ""}).items():
            (self.folder / name).mkdir(exist_ok=True)
            text += f'[[inbox]]\npath = "{name}"\n{keys}\n'
            if "outbox" not in keys:
                text += f'outbox = "{name}-out"\n'
        self.file.write_text(text)

    def read(self) -> Config:
        return configuration.load(config=self.file, environ={})

    def make(self) -> Daemon:
        def engines(_: Config) -> Iterator[Engine]:
            yield self.engine

        return Daemon(self.read(), engines=engines, on_result=self._on_result, read=self.read)

    def _on_result(self, job: Job, _: Result | None, words: str) -> None:
        with self._changed:
            self.ended.append(job.display_name)
            self._changed.notify_all()

    def wait_for(self, *names: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(names) <= set(self.ended), WAIT_SECONDS), (
                self.ended
            )


@pytest.fixture
def home(tmp_path: Path, environment: pytest.MonkeyPatch) -> Home:
    return Home(tmp_path)


@pytest.fixture
def daemon(home: Home) -> Iterator[Daemon]:
    daemon = home.make()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture(autouse=True)
def _log_as_before(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:  # written to till then
    loggers = [logging.getLogger(), logging.getLogger("phi4d")]
    before = [(logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        for handler in [each for each in logger.handlers if each not in handlers]:
            logger.removeHandler(handler)
            handler.close()
        logger.handlers = handlers


class TestTakenUp:
    def test_nothing_new(self, daemon: Daemon) -> None:
        assert daemon.reload() == Outcome()

    def test_prompts_and_limits(
        self, home: Home, daemon: Daemon, tmp_path: Path, make_picture: Picture
    ) -> None:
        home.write('image_prompt = "What is it?"\nmax_new_tokens = 7\nseed = 3')
        # when
        assert daemon.reload() == Outcome((), "max_new_tokens, seed, image_prompt")
        make_picture(tmp_path / "in/a.png")
        home.wait_for("in/a.png")
        # then
        (call,) = home.engine.calls
        assert (call[0].prompt, call[0].max_new_tokens) == ("What is it?", 7)
        assert call[0].sampling.seed == 3

    def test_an_inbox_that_is_new_is_worked_off_and_watched(
        self, home: Home, daemon: Daemon, tmp_path: Path, make_picture: Picture
    ) -> None:
        home.write("", **{"in": "", "scans": ""})
        make_picture(tmp_path / "scans/old.png")
        # when
        assert daemon.reload() == Outcome((), 'inbox "scans" added')
        make_picture(tmp_path / "scans/new.png")
        make_picture(tmp_path / "in/other.png")
        # then
        home.wait_for("scans/old.png", "scans/new.png", "in/other.png")
        assert (tmp_path / "scans-out/old.png.txt").exists()

    def test_an_inbox_that_is_left_out_waits_until_it_is_back(
        self, home: Home, daemon: Daemon, tmp_path: Path, make_picture: Picture
    ) -> None:
        home.write("", **{"in": "", "scans": ""})
        daemon.reload()
        home.write()
        # when
        assert daemon.reload() == Outcome((), 'inbox "scans" removed')
        make_picture(tmp_path / "scans/a.png")
        make_picture(tmp_path / "in/b.png")
        home.wait_for("in/b.png")
        assert daemon._watcher
        assert "scans" not in daemon._watcher.modes()
        # then
        home.write("", **{"in": "", "scans": ""})
        daemon.reload()
        home.wait_for("scans/a.png")
        assert home.ended == ["in/b.png", "scans/a.png"]

    def test_a_priority_counts_for_what_waits(
        self, home: Home, daemon: Daemon, tmp_path: Path, make_picture: Picture
    ) -> None:
        # given files that wait in two inboxes
        home.write("batch_size = 1", **{"in": "", "scans": ""})
        daemon.reload()
        control.ask(tmp_path / "state/control", "pause")
        files = [
            (box, make_picture(tmp_path / f"{box}/{n}.png"))
            for box in ("in", "scans")
            for n in range(3)
        ]
        daemon._store.add(
            Arrival(box, os.fsencode(file.name), Kind.IMAGE, Fingerprint.of(file.stat()))
            for box, file in files
        )
        # when the second is to go first
        home.write("batch_size = 1", **{"in": "", "scans": 'priority = "high"'})
        assert daemon.reload() == Outcome((), 'inbox "scans" (priority)')
        control.ask(tmp_path / "state/control", "resume")
        # then it does, as far as files are not decoded side by side
        home.wait_for(*(f"{box}/{file.name}" for box, file in files))
        order = [name.partition("/")[0] for name in home.ended]
        assert order[0] == "scans"
        places = {box: [n for n, each in enumerate(order) if each == box] for box in order}
        assert sum(places["scans"]) < sum(places["in"])

    def test_another_outbox_is_tried_at_once(
        self, home: Home, daemon: Daemon, tmp_path: Path, make_picture: Picture
    ) -> None:
        # given an inbox that pauses for ten minutes, for its outbox is no folder
        (tmp_path / "file").touch()
        home.write("", **{"in": 'outbox = "file/out"'})
        daemon.reload()
        assert daemon._pauses.paused(time.monotonic()) == ["in"]
        make_picture(tmp_path / "in/a.png")
        # when
        home.write("", **{"in": 'outbox = "elsewhere"'})
        assert daemon.reload() == Outcome((), 'inbox "in" (outbox)')
        # then
        home.wait_for("in/a.png")
        assert (tmp_path / "elsewhere/a.png.txt").exists()

    def test_what_becomes_of_originals(
        self, home: Home, daemon: Daemon, tmp_path: Path, make_picture: Picture
    ) -> None:
        home.write("", **{"in": 'originals = "delete"'})
        daemon.reload()
        path = make_picture(tmp_path / "in/a.png")
        while path.exists():
            time.sleep(0.01)

    def test_the_log(
        self, home: Home, daemon: Daemon, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        home.write('log_level = "debug"\nlog_format = "json"\nlog_file = "phi4d.log"')
        daemon.reload()
        logging.getLogger("phi4d").debug("in detail")
        lines = [json.loads(line) for line in (tmp_path / "phi4d.log").read_text().splitlines()]
        assert "reloaded" in [line.get("event") for line in lines]
        assert "in detail" in [line["message"] for line in lines]
        # a file that something else rotated away is made anew
        (tmp_path / "phi4d.log").rename(tmp_path / "phi4d.log.old")
        daemon.reload()
        assert "nothing has changed" in (tmp_path / "phi4d.log").read_text()
        home.write()
        capfd.readouterr()
        daemon.reload()
        assert "reloaded: log_level, log_format, log_file\n" in capfd.readouterr().err

    def test_the_metrics(self, home: Home, daemon: Daemon) -> None:
        def scrape(path: Path) -> bytes:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(WAIT_SECONDS)
                sock.connect(str(path))
                sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                return b"".join(iter(lambda: sock.recv(65536), b""))

        first, second = home.folder / "first.sock", home.folder / "second.sock"
        home.write(f'metrics_listen = "unix:{first}"')
        assert daemon.reload() == Outcome((), "metrics_listen")
        assert b"phi4d_" in scrape(first)
        home.write(f'metrics_listen = "unix:{second}"')
        daemon.reload()
        assert b"phi4d_" in scrape(second)
        assert not first.exists()
        home.write()
        daemon.reload()
        assert not second.exists()

    def test_decode_processes(
        self, home: Home, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert daemon._pool
        pool = daemon._pool
        home.write("decode_processes = 3\ndecode_seconds = 7")
        daemon.reload()
        assert (len(pool._all), pool.timeout_s) == (3, 7)
        home.write("decode_processes = 1")
        daemon.reload()
        assert len(pool._all) == 1
        # and where no more can be started, the others work
        home.write("decode_processes = 2\nseed = 9")

        def refuse() -> None:
            raise EnvironmentFault("no more processes")

        monkeypatch.setattr(pool, "_start", refuse)
        assert daemon.reload() == Outcome((), "seed, decode_processes")
        assert daemon._workers[0]._sampling.seed == 9

    def test_what_wants_a_restart_is_named_each_time(
        self, home: Home, daemon: Daemon, capfd: pytest.CaptureFixture[str]
    ) -> None:
        home.write('device = "cuda:7"\nseed = 1')
        assert daemon.reload() == Outcome((), "seed", ("device",))
        assert daemon.reload() == Outcome((), "", ("device",))
        assert "device: taken up at the next start" in capfd.readouterr().err

    def test_an_inbox_that_hangs_is_not_waited_for_for_ever(
        self,
        home: Home,
        daemon: Daemon,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        assert daemon._watcher
        monkeypatch.setattr(house, "RELOAD_SECONDS", 0.0)
        monkeypatch.setattr(daemon._watcher, "change", lambda *_, **__: threading.Event())
        assert daemon.reload() == Outcome()
        assert 'inbox "in" does not answer' in capfd.readouterr().err


class TestRefused:
    def test_every_fault_is_told_and_the_old_configuration_stays(
        self,
        home: Home,
        daemon: Daemon,
        tmp_path: Path,
        make_picture: Picture,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        home.write('image_prompt = "New?"\nmax_new_tokens = -1\nbach_size = 2')
        # when
        outcome = daemon.reload()
        # then
        assert len(outcome.faults) == 2
        assert f"{home.file}:6: bach_size" in outcome.faults[1]
        assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
            *outcome.faults,
            "the configuration is refused, and the old one stays in force: mend it, and reload "
            "again",
        ]
        ids = {getattr(r, "MESSAGE_ID", "") for r in caplog.records if r.levelno == logging.ERROR}
        assert ids == {events.RELOAD_REFUSED.id}
        make_picture(tmp_path / "in/a.png")
        home.wait_for("in/a.png")
        assert home.engine.calls[0][0].prompt != "New?"
        # and when it is mended
        home.write('image_prompt = "New?"')
        assert daemon.reload() == Outcome((), "image_prompt")

    @pytest.mark.parametrize(
        ("more", "fault"),
        [
            ('log_file = "no/folder/phi4d.log"', "log_file: "),
            (f'metrics_listen = "unix:{__file__}"', "metrics_listen: "),
            (
                'metrics_listen = "unix:{folder}/m.sock"\nlog_file = "no/folder/phi4d.log"',
                "log_file: ",
            ),
            ("[[inbox]]\n", ""),
        ],
    )
    def test_what_cannot_be_had_refuses_the_whole(
        self, home: Home, daemon: Daemon, more: str, fault: str
    ) -> None:
        home.write(f"seed = 1\n{more.replace('{folder}', str(home.folder))}")
        (first, *_) = daemon.reload().faults
        assert fault in first
        assert daemon._workers[0]._sampling.seed != 1
        assert not (home.folder / "m.sock").exists()

    def test_no_inbox(self, home: Home, daemon: Daemon) -> None:
        home.file.write_text('state_dir = "state"\n')
        assert daemon.reload().faults == (
            "inbox: none configured; stop phi4d if it is to do nothing",
        )

    def test_before_it_is_ready_and_when_it_stops(self, home: Home) -> None:
        daemon = home.make()
        assert "still loading" in daemon.reload().faults[0]
        daemon.stop()
        with pytest.raises(Stopped, match="stopping"):
            daemon.reload()


class TestSignal:
    def test_the_service_manager_is_told_when_it_begins_and_ends(
        self, home: Home, tmp_path: Path
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            manager.settimeout(WAIT_SECONDS)
            env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
            with running(home.file, env=env) as process:
                read_until(process, "ready:")
                home.write("seed = 1")
                before = time.monotonic_ns() // 1000
                process.send_signal(signal.SIGHUP)
                log = read_until(process, "reloaded: ")
                assert log[-1].endswith("reloaded: seed\n")
                told = []
                while "READY=1" not in told:
                    told.append(manager.recv(1000).decode())
                process.send_signal(signal.SIGTERM)
                assert process.wait(WAIT_SECONDS) == 0
        reloading, ready = [
            words for words in told if not words.startswith(("STATUS", "READY=1\n"))
        ]
        assert ready == "READY=1"
        state, when = reloading.split("\n")
        assert state == "RELOADING=1"
        assert before < int(when.removeprefix("MONOTONIC_USEC=")) < time.monotonic_ns() // 1000

    def test_a_terminal_that_is_closed_ends_it(self, home: Home, tmp_path: Path) -> None:
        home.write('log_file = "phi4d.log"')
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, str(SCRIPT), str(home.file)])  # noqa: S606
        log = tmp_path / "phi4d.log"
        while not log.exists() or "ready:" not in log.read_text():
            time.sleep(0.01)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        # when nothing but a signal comes, it reloads
        os.kill(pid, signal.SIGHUP)
        while "reloaded: nothing has changed" not in log.read_text():
            time.sleep(0.01)
        # when the terminal is gone
        os.close(terminal)
        # then
        assert os.waitpid(pid, 0) == (pid, 0)
        assert log.read_text().endswith("stopped\n")


class TestCommand:
    @pytest.fixture
    def reload(self, home: Home) -> Callable[..., tuple[int, list[str]]]:
        def run(*words: str) -> tuple[int, list[str]]:
            words = words or ("--config", str(home.file))
            command = [sys.executable, "-m", "phi4d", "reload", *words]
            told = subprocess.run(command, capture_output=True, text=True, check=False)
            return told.returncode, (told.stdout + told.stderr).splitlines()

        return run

    def test_it_tells_what_is_otherwise(
        self, home: Home, daemon: Daemon, reload: Callable[..., Any]
    ) -> None:
        home.write('seed = 1\ndtype = "float32"', **{"in": "", "scans": ""})
        assert reload() == (
            0,
            ['reloaded: seed, inbox "scans" added', "only at the next start of phi4d: dtype"],
        )

    def test_it_tells_every_fault(
        self, home: Home, daemon: Daemon, reload: Callable[..., Any]
    ) -> None:
        home.write("seed = -1\nbach_size = 2")
        code, lines = reload()
        assert code == 78
        assert len(lines) == 3
        assert lines[0].startswith(f"phi4d: {home.file}:4: seed")
        assert lines[-1] == "phi4d: refused; the old configuration stays in force"

    def test_a_file_that_is_no_toml_tells_not_where_the_daemon_is(
        self,
        home: Home,
        tmp_path: Path,
        environment: pytest.MonkeyPatch,
        reload: Callable[..., Any],
    ) -> None:
        # given the service, whose socket is in its runtime folder
        asked = []

        def refuse(_: object) -> dict[str, Any]:
            asked.append(True)
            return Outcome(("is no TOML",)).fields()

        environment.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
        environment.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        own = configuration.user_file()
        own.parent.mkdir(parents=True)
        own.write_text("state_dir = \n")
        server = control.Server(tmp_path / "run/control", {"reload": refuse})
        server.start()
        try:
            code, lines = reload("--set", "seed=1")
        finally:
            server.stop()
            server.join()
        assert (code, asked) == (78, [True])
        assert lines[0] == "phi4d: is no TOML"

    def test_no_daemon(self, home: Home, reload: Callable[..., Any]) -> None:
        assert reload() == (3, ["phi4d: no daemon runs; the next start reads the configuration"])
        home.write("seed = -1")
        code, lines = reload()
        assert code == 78
        assert "seed" in lines[0]
