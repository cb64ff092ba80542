"""The daemon whole: real inotify, SQLite, decode processes and signals; only the GPU is played."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import random
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemonkit import read_until, running

from phi4d import config as configuration
from phi4d import control, errors, vigil
from phi4d import daemon as house
from phi4d.config import Config
from phi4d.daemon import Daemon
from phi4d.engine import Engine
from phi4d.engine.fake import FakeEngine
from phi4d.errors import ConfigError, DeviceLost, EnvironmentFault
from phi4d.inbox import place, watcher
from phi4d.job import Job, Result, Sampling
from phi4d.store import Reader

WAIT_SECONDS = 60.0  # until a test gives up


@pytest.fixture
def write_config(tmp_path: Path, environment: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a configuration of one inbox and returns its path."""

    def write(more: str = "", outbox: str = "out", inbox: str = "") -> Path:
        (tmp_path / "in").mkdir(exist_ok=True)
        path = tmp_path / "phi4d.toml"
        path.write_text(
            'state_dir = "state"\nsettle_seconds = 0.05\npause_seconds = 0.05\n'
            f'{more}\n[[inbox]]\npath = "in"\noutbox = "{outbox}"\n{inbox}\n'
        )
        return path

    return write


class House:
    """A daemon in this process, with a thread that ticks."""

    def __init__(self, config: Config, engine: FakeEngine) -> None:
        self.engine = engine
        self.ended: list[tuple[Job, Result | None, str]] = []
        self._changed = threading.Condition()
        self.daemon = Daemon(config, engines=self._engines, on_result=self._on_result)

    def _engines(self, config: Config) -> Iterator[Engine]:
        yield self.engine

    def _on_result(self, job: Job, result: Result | None, words: str) -> None:
        with self._changed:
            self.ended.append((job, result, words))
            self._changed.notify_all()

    def wait_for(self, n: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.ended) >= n, WAIT_SECONDS), self.ended


@pytest.fixture
def open_house(write_config: Callable[..., Path]) -> Iterator[Callable[..., House]]:
    with contextlib.ExitStack() as stack:

        def start(
            more: str = "", engine: FakeEngine | None = None, outbox: str = "out", inbox: str = ""
        ) -> House:
            config = configuration.load(config=write_config(more, outbox, inbox), environ={})
            opened = House(config, engine or FakeEngine())
            stack.callback(opened.daemon.stop)
            opened.daemon.start()
            return opened

        yield start


def counts(state: Path) -> dict[str, int]:
    reader = Reader(state / "jobs.sqlite3")
    try:
        return {str(s): n for s, n in reader.counts().get("in", {}).items() if n}
    finally:
        reader.close()


def sidecars(outbox: Path) -> set[str]:
    return {str(p.relative_to(outbox)) for p in outbox.rglob("*") if p.is_file()}


class TestLife:
    def test_what_is_there_and_what_comes_is_done(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        make_picture: Callable[..., Path],
        make_recording: Callable[..., Path],
    ) -> None:
        make_picture(tmp_path / "in/before/a.png")
        opened = open_house()
        make_recording(tmp_path / "in/later.wav")
        opened.wait_for(2)
        assert sidecars(tmp_path / "out") == {
            "before/a.png.txt",
            "before/a.png.json",
            "later.wav.txt",
            "later.wav.json",
        }
        assert opened.daemon.tick() is None

    def test_tokens_are_chosen_and_limited_as_configured(
        self, open_house: Callable[..., House], tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        make_picture(tmp_path / "in/a.png")
        keys = "max_new_tokens = 7\ntemperature = 0.5\nrepetition_penalty = 1.5\nseed = 3"
        opened = open_house(keys)
        opened.wait_for(1)
        ((request,),) = opened.engine.calls
        assert (request.max_new_tokens, request.sampling) == (7, Sampling(0.5, 1.5, 3))

    def test_prompts_of_the_inbox_are_asked(
        self, open_house: Callable[..., House], tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        make_picture(tmp_path / "in/a.png")
        opened = open_house('image_prompt = "How many cats?"')
        opened.wait_for(1)
        assert "How many cats?" in (tmp_path / "out/a.png.txt").read_text()

    def test_sidecars_beside_their_sources_are_no_input(
        self, open_house: Callable[..., House], tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        make_picture(tmp_path / "in/a.png")
        opened = open_house("rescan_seconds = 0.05", outbox="beside")
        opened.wait_for(1)
        make_picture(tmp_path / "in/b.png")
        opened.wait_for(2)
        assert sidecars(tmp_path / "in") == {
            f"{n}.png{s}" for n in "ab" for s in ("", ".txt", ".json")
        }

    @pytest.mark.parametrize("how", ["lost", "broken"])
    def test_a_store_that_is_no_more_is_rebuilt_from_the_sidecars(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        make_picture: Callable[..., Path],
        caplog: pytest.LogCaptureFixture,
        how: str,
    ) -> None:
        # given files that were done, and one that was not
        caplog.set_level(logging.INFO, "phi4d")
        for n in range(3):
            make_picture(tmp_path / f"in/{n}.png", (n + 2, 5))
        opened = open_house()
        opened.wait_for(3)
        opened.daemon.stop()
        make_picture(tmp_path / "in/new.png", (9, 9))
        make_picture(tmp_path / "in/0.png", (10, 10))  # replaced by another
        # when the store is gone
        store = tmp_path / "state/jobs.sqlite3"
        store.unlink() if how == "lost" else store.write_bytes(b"no database" * 1000)
        again = open_house()
        again.wait_for(2)
        # then only what is new is asked about
        assert {job.name for job, _, _ in again.ended} == {"new.png", "0.png"}
        assert counts(tmp_path / "state") == {"done": 4}
        assert "2 files have their sidecars already" in caplog.text
        assert len(list((tmp_path / "state").glob("*.broken-*"))) == (how == "broken")

    def test_what_a_killed_daemon_tried_the_outbox_with_is_swept_up(
        self, open_house: Callable[..., House], tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/.phi4d-123-4.tmp").write_text("phi4d")
        (tmp_path / "out/.phi4d-mine.tmp").write_text("somebody's")
        open_house()
        assert sidecars(tmp_path / "out") == {".phi4d-mine.tmp"}

    def test_no_file_is_deleted_on_the_word_of_its_size_and_time(
        self, open_house: Callable[..., House], tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        make_picture(tmp_path / "in/a.png")
        opened = open_house()
        opened.wait_for(1)
        opened.daemon.stop()
        (tmp_path / "state/jobs.sqlite3").unlink()
        again = open_house(inbox='originals = "delete"')
        again.wait_for(1)
        assert len(again.engine.calls) == 1

    def test_a_file_that_was_moved_away_and_is_put_back_is_moved_again(
        self, open_house: Callable[..., House], tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        path = make_picture(tmp_path / "in/a.png")
        more = f'originals = "move"\ndone_dir = "{tmp_path}/done"'
        opened = open_house(inbox=more)
        opened.wait_for(1)
        opened.daemon.stop()
        (tmp_path / "done/a.png").rename(path)
        again = open_house(inbox=more)
        while path.exists():
            for worker in again.daemon._workers:
                worker.wake()
            assert again.daemon.tick() is None
        assert (tmp_path / "done/a.png").exists()
        assert again.engine.calls == []

    def test_an_outbox_that_cannot_be_made_pauses_and_heals(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        make_picture: Callable[..., Path],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        (tmp_path / "out").write_text("a file where the outbox should be")
        make_picture(tmp_path / "in/a.png")
        opened = open_house()
        assert 'inbox "in" pauses, nothing is lost' in caplog.text
        (tmp_path / "out").unlink()
        (tmp_path / "out").mkdir()
        opened.wait_for(1)
        assert sidecars(tmp_path / "out") == {"a.png.txt", "a.png.json"}

    def test_stopping_twice_is_no_fault(self, open_house: Callable[..., House]) -> None:
        opened = open_house()
        opened.daemon.stop()
        opened.daemon.stop()
        assert opened.engine.closed

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (DeviceLost("cuda:0: is lost"), errors.EXIT_DEVICE),
            (SystemExit("not foreseen"), errors.EXIT_FAILURE),
        ],
    )
    def test_a_worker_that_ends_ends_the_daemon_with_the_reason_s_code(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        make_picture: Callable[..., Path],
        error: BaseException,
        code: int,
    ) -> None:
        make_picture(tmp_path / "in/a.png")
        opened = open_house(engine=FakeEngine(failures={1: error}))
        (worker,) = opened.daemon._workers
        worker.join(WAIT_SECONDS)
        assert opened.daemon.tick() == code


class TestOrders:
    @pytest.fixture
    def ask(self, tmp_path: Path) -> Callable[..., Any]:
        """Gives an order to the daemon."""
        return lambda order, **fields: control.ask(tmp_path / "state/control", order, fields)

    def test_what_failed_is_taken_up(
        self, open_house: Callable[..., House], tmp_path: Path, ask: Callable[..., Any]
    ) -> None:
        opened = open_house()
        path = tmp_path / "in/bad.png"
        path.write_text("no picture")
        opened.wait_for(1)
        taken = {"taken": 1, "first": ["in/bad.png"], "left": [], "stopping": 0}
        assert ask("retry", paths=[str(path)]) == taken
        opened.wait_for(2)
        assert ask("retry") == taken
        opened.wait_for(3)
        assert all(words.startswith("failed") for _, _, words in opened.ended)

    def test_what_is_done_is_done_anew(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        make_picture: Callable[..., Path],
        ask: Callable[..., Any],
    ) -> None:
        opened = open_house()
        path = make_picture(tmp_path / "in/a.png")
        opened.wait_for(1)
        assert ask("regenerate", paths=[str(path)], dry_run=True)["taken"] == 1
        assert ask("regenerate", paths=[str(path)])["taken"] == 1
        opened.wait_for(2)
        assert len(opened.engine.calls) == 2

    def test_a_path_that_is_not_known_is_looked_for(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        ask: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        opened = open_house()
        assert opened.daemon._watcher
        looked = threading.Event()
        monkeypatch.setattr(opened.daemon._watcher, "rescan", lambda *_: looked.set())
        ((_, why),) = ask("retry", paths=[str(tmp_path / "in/new.jpg")])["left"]
        assert "is not known" in why
        assert looked.is_set()
        looked.clear()
        assert ask("rescan") == ask("rescan", inboxes=["in"]) == {"inboxes": ["in"]}
        assert looked.is_set()
        with pytest.raises(EnvironmentFault, match="no inbox is named 'im'; there are: in"):
            ask("rescan", inboxes=["im"])

    def test_they_are_taken_while_the_model_is_loaded(
        self, write_config: Callable[..., Path], tmp_path: Path, ask: Callable[..., Any]
    ) -> None:
        answers: list[Any] = []

        def engines(config: Config) -> Iterator[Engine]:
            answers.extend([ask("retry"), ask("rescan"), ask("regenerate", stale=True)])
            yield FakeEngine()

        config = write_config(f'model_path = "{tmp_path}"')
        opened = Daemon(configuration.load(config=config, environ={}), engines=engines)
        try:
            opened.start()
        finally:
            opened.stop()
        nothing = {"taken": 0, "first": [], "left": [], "stopping": 0}
        assert answers == [nothing, {"inboxes": ["in"]}, nothing]
        assert ask("retry") is None

    def test_the_status_is_told_while_a_call_lasts(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        make_picture: Callable[..., Path],
        ask: Callable[..., Any],
    ) -> None:
        make_picture(tmp_path / "in/a.png")
        engine = FakeEngine(gate=threading.Event())
        open_house(engine=engine)
        assert engine.entered.wait(WAIT_SECONDS)
        told = ask("status")
        assert (told["state"], told["hung"], told["dead"]) == ("ready", [], [])
        ((device, files),) = [(slot["device"], slot["files"]) for slot in told["slots"]]
        assert (device, [each["file"] for each in files]) == ("cpu", ["in/a.png"])
        assert told["eta_seconds"] is None
        assert told["inboxes"]["in"]["mode"] in ("inotify", "poll")
        assert told["stored"]["counts"]["in"]["running"] == 1
        assert engine.gate
        engine.gate.set()

    def test_what_is_being_worked_on_is_cancelled(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        make_picture: Callable[..., Path],
        ask: Callable[..., Any],
    ) -> None:
        make_picture(tmp_path / "in/a.png")
        engine = FakeEngine(gate=threading.Event())
        opened = open_house(engine=engine)
        assert engine.entered.wait(WAIT_SECONDS)
        # when all that waits is cancelled, it goes on; when it is named, it stops
        assert ask("cancel")["stopping"] == 0
        assert not opened.ended
        assert ask("cancel", paths=[str(tmp_path / "in/a.png")]) == {
            "taken": 0, "first": [], "left": [], "stopping": 1
        }  # fmt: skip
        opened.wait_for(1)
        assert counts(tmp_path / "state") == {}
        assert ask("status")["stored"]["cancelled"] == {"in": 1}
        assert not list((tmp_path / "out").iterdir())

    def test_a_paused_inbox_waits_over_a_restart_until_it_is_resumed(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        make_picture: Callable[..., Path],
        ask: Callable[..., Any],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        opened = open_house()
        assert ask("pause", why="a move") == {"changed": ["in"], "already": []}
        assert "a move; phi4d resume lets it go on" in caplog.text
        told = [vars(record).get("PHI4D_EVENT") for record in caplog.records]
        assert "inbox-paused" in told
        opened.daemon.stop()
        make_picture(tmp_path / "in/a.png")
        again = open_house()
        while counts(tmp_path / "state") != {"queued": 1}:
            assert again.daemon.tick() is None
        assert again.engine.calls == []
        while again.daemon.tick(once=True) is None:
            pass
        assert again.daemon.tick(once=True) == errors.EXIT_LATER
        assert 'inbox "in" still waits: paused by' in caplog.text
        assert ask("resume", inboxes=["in"]) == {"changed": ["in"], "already": []}
        again.wait_for(1)

    def test_a_daemon_that_stops_changes_nothing_any_more(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        make_picture: Callable[..., Path],
        ask: Callable[..., Any],
    ) -> None:
        make_picture(tmp_path / "in/a.png")
        engine = FakeEngine(gate=threading.Event())
        opened = open_house("stop_seconds = 60", engine)
        assert engine.entered.wait(WAIT_SECONDS)
        stopping = threading.Thread(target=opened.daemon.stop)
        stopping.start()
        try:
            with pytest.raises(EnvironmentFault, match="is stopping; try again"):
                collections.deque(iter(lambda: ask("retry"), None))  # until it has been told to
        finally:
            assert engine.gate
            engine.gate.set()
            stopping.join()

    def test_a_daemon_that_can_take_none_does_its_work(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        make_picture: Callable[..., Path],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        (tmp_path / "state/control").mkdir(parents=True)
        make_picture(tmp_path / "in/a.png")
        open_house().wait_for(1)
        assert "no orders can be taken, phi4d goes on without" in caplog.text


class TestRefusals:
    def test_no_inbox(self, tmp_path: Path) -> None:
        empty = tmp_path / "phi4d.toml"
        empty.touch()
        with pytest.raises(ConfigError, match="none configured; add an"):
            Daemon(configuration.load(config=empty, environ={})).start()

    def test_a_state_folder_that_cannot_be_made(
        self, tmp_path: Path, write_config: Callable[..., Path]
    ) -> None:
        (tmp_path / "state").write_text("in the way")
        config = configuration.load(config=write_config(), environ={})
        with pytest.raises(ConfigError, match="state_dir"):
            Daemon(config).start()

    def test_a_second_daemon_on_the_same_state(self, write_config: Callable[..., Path]) -> None:
        config = write_config()
        with running(config) as first:
            read_until(first, "ready:")
            with running(config) as second:
                assert second.wait(WAIT_SECONDS) != 0
                assert f"another phi4d works here (pid {first.pid})" in second.stderr.read()


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_it_stops_in_order_with_exit_code_0(
        self, write_config: Callable[..., Path], number: int
    ) -> None:
        with running(write_config()) as process:
            read_until(process, "ready:")
            process.send_signal(number)
            rest = process.stderr.read()
            assert process.wait(WAIT_SECONDS) == 0
        assert "stopping" in rest
        assert rest.endswith("stopped\n")

    def test_work_under_way_is_put_back_at_the_deadline(
        self, write_config: Callable[..., Path], tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        make_picture(tmp_path / "in/a.png")
        with running(write_config("stop_seconds = 0.1"), "slow") as process:
            read_until(process, "ready:")
            while counts(tmp_path / "state") != {"running": 1}:
                pass
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_SECONDS) == 0
        assert counts(tmp_path / "state") == {"queued": 1}

    def test_once_leaves_when_all_is_done(
        self, write_config: Callable[..., Path], tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        for n in range(10):
            make_picture(tmp_path / f"in/{n}.png")
        (tmp_path / "in/bad.jpg").write_bytes(b"no picture")
        with running(write_config(), "once") as process:
            assert process.wait(WAIT_SECONDS) == 0
        assert counts(tmp_path / "state") == {"done": 10, "failed": 1}
        assert len(sidecars(tmp_path / "out")) == 21  # two each, and why one failed
        assert (tmp_path / "out/bad.jpg.error.json").exists()

    def test_once_says_what_had_to_wait(
        self, write_config: Callable[..., Path], tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        make_picture(tmp_path / "in/a.png")
        (tmp_path / "out").write_text("a file where the outbox should be")
        with running(write_config(), "once") as process:
            log = process.stderr.read()
            assert process.wait(WAIT_SECONDS) == errors.EXIT_LATER
        assert "still waits" in log
        assert counts(tmp_path / "state") == {"queued": 1}

    def test_once_says_that_an_inbox_is_not_there(
        self, write_config: Callable[..., Path], tmp_path: Path
    ) -> None:
        config = write_config()
        (tmp_path / "in").rmdir()
        with running(config, "once") as process:
            log = process.stderr.read()
            assert process.wait(WAIT_SECONDS) == errors.EXIT_LATER
        assert f'inbox "in" still waits: {tmp_path}/in cannot be read: No such file' in log

    def test_a_daemon_that_is_killed_goes_on_where_it_was(
        self, write_config: Callable[..., Path], tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        names = [f"{n}.png" for n in range(60)]
        for n, name in enumerate(names):
            make_picture(tmp_path / "in" / name, (n + 1, 3))
        config = write_config('device = "cpu,cpu"\nbatch_size = 2\nlog_level = "debug"')
        outbox, chance = tmp_path / "out", random.Random(1)
        for _ in range(3):
            with running(config) as process:
                for _ in range(chance.randint(3, 12)):
                    read_until(process, " done in/")
                process.kill()
                process.wait(WAIT_SECONDS)
        for name in sidecars(outbox) if outbox.exists() else ():
            if name.endswith(".json"):  # whatever is there is whole
                json.loads((outbox / name).read_text())
        with running(config, "once") as process:
            log = process.stderr.read()
            assert process.wait(WAIT_SECONDS) == 0
        assert counts(tmp_path / "state") == {"done": 60}
        assert sidecars(outbox) == {f"{name}{s}" for name in names for s in (".txt", ".json")}
        for n, name in enumerate(names):
            assert f"picture {n + 1}x3" in (outbox / f"{name}.txt").read_text()
        done_before = 60 - log.count(" done in/")
        assert done_before >= 9  # what was finished is not done again

    def test_a_file_that_takes_the_device_down_is_found_out_over_several_starts(
        self, write_config: Callable[..., Path], tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        # given a picture over which every engine loses its device
        for n in range(3):
            make_picture(tmp_path / f"in/{n}.png")
        make_picture(tmp_path / "in/bad.png", (13, 13))
        config, ends = write_config(), []
        # when it is started again as long as it ends so
        while not ends or ends[-1] == errors.EXIT_DEVICE:
            with running(config, "once", "lost") as process:
                process.stderr.read()
                ends.append(process.wait(WAIT_SECONDS))
            assert "running" not in counts(tmp_path / "state")
        # then once beside others, if it was, and three times alone, were enough
        # (the last time nothing may be left to do when the device is lost)
        assert ends in [[errors.EXIT_DEVICE] * n + [errors.EXIT_OK] for n in (2, 3, 4)]
        assert counts(tmp_path / "state") == {"done": 3, "failed": 1}
        reader = Reader(tmp_path / "state" / "jobs.sqlite3")
        (failure,) = reader.failures(9)
        reader.close()
        assert failure.path == b"bad.png"
        assert "the device was lost 3 times over it alone" in failure.reason

    def test_decode_processes_end_with_a_killed_daemon(
        self, write_config: Callable[..., Path]
    ) -> None:
        with running(write_config()) as process:
            read_until(process, "ready:")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert len(children) == 2
            handles = [os.pidfd_open(int(child)) for child in children]
            process.kill()
            for handle in handles:  # readable when its process has ended
                assert select.select([handle], [], [], WAIT_SECONDS)[0]
                os.close(handle)


class TestServiceManager:
    def test_ready_status_watchdog_and_stopping_are_told(
        self, write_config: Callable[..., Path], tmp_path: Path
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            manager.settimeout(WAIT_SECONDS)
            env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
            with running(write_config(), env=env) as process:
                told = [manager.recv(1000).decode()]
                assert told[0] == "READY=1\nSTATUS=0 running, 0 waiting, 0 failed"
                while not {
                    "WATCHDOG=1",
                    "STATUS=0 running, 0 waiting, 0 failed, 0 files/min",
                } <= set(told):
                    told.append(manager.recv(1000).decode())
                process.send_signal(signal.SIGTERM)
                while not told[-1].startswith("STOPPING=1"):
                    told.append(manager.recv(1000).decode())
                # stop_seconds, and then some: more than TimeoutStopSec may be
                assert told[-1] == "STOPPING=1\nEXTEND_TIMEOUT_USEC=80000000"
                assert process.wait(WAIT_SECONDS) == 0

    def test_a_hung_worker_starves_the_watchdog_and_is_named(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        make_picture: Callable[..., Path],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        told: list[str] = []
        monkeypatch.setattr(vigil, "notify", told.append)
        monkeypatch.setattr(vigil, "watchdog_seconds", lambda: 30.0)
        make_picture(tmp_path / "in/a.png")
        engine = FakeEngine(gate=threading.Event(), hung=True)
        opened = open_house("hang_seconds = 0.001", engine)
        assert engine.entered.wait(WAIT_SECONDS)
        while "no sign of life" not in caplog.text:
            told.clear()
            opened.daemon.tick()
        assert "WATCHDOG=1" not in told
        assert engine.gate
        engine.gate.set()
        opened.wait_for(1)
        while "WATCHDOG=1" not in told:  # it works again
            (worker,) = opened.daemon._workers
            worker.beat()
            worker._answering._beat()
            opened.daemon._config = opened.daemon._config.model_copy(update={"hang_seconds": 99.0})
            opened.daemon.tick()

    def test_an_inbox_that_does_not_answer_is_said_and_the_watchdog_fed(
        self,
        open_house: Callable[..., House],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # given a file system that does not answer when it is asked for an inbox
        answers, asked = threading.Event(), threading.Event()

        def hang(path: bytes) -> place.State:
            asked.set()
            answers.wait(WAIT_SECONDS)
            return place.examine(path)

        told: list[str] = []
        monkeypatch.setattr(vigil, "notify", told.append)
        monkeypatch.setattr(vigil, "watchdog_seconds", lambda: 30.0)
        opened = open_house("hang_seconds = 0.2")
        (worker,) = opened.daemon._workers
        monkeypatch.setattr(watcher, "examine", hang)
        try:
            opened.daemon._watcher.rescan()  # type: ignore[union-attr]
            assert asked.wait(WAIT_SECONDS)
            while "its file system has not answered" not in caplog.text:
                opened.daemon.tick()
            told.clear()
            worker.beat()
            worker._answering._beat()
            # when
            assert opened.daemon.tick() is None
            # then
            assert told == ["WATCHDOG=1"]
            reader = Reader(tmp_path / "state/jobs.sqlite3")
            (notice,) = reader.notices()
            reader.close()
            assert (notice.inbox, notice.text[:32]) == ("in", "its file system has not answered")
        finally:
            answers.set()
        while 'inbox "in": its file system answers again' not in caplog.text:
            opened.daemon.tick()

    @pytest.mark.parametrize("room", ["_watcher", "_control"])
    def test_a_thread_that_ended_ends_the_daemon(
        self, open_house: Callable[..., House], room: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        opened = open_house()
        thread = getattr(opened.daemon, room)
        thread.stop()
        thread.join()
        assert opened.daemon.tick() == errors.EXIT_FAILURE
        assert f"{thread.name} ended; phi4d stops" in caplog.text

    def test_more_time_is_asked_for_while_the_inboxes_are_looked_through(
        self,
        open_house: Callable[..., House],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # given a listing that goes on once somebody has asked
        asked, told = threading.Event(), list[str]()

        def hear(state: str) -> None:
            told.append(state)
            asked.set()

        def slow(path: bytes) -> place.State:
            assert asked.wait(WAIT_SECONDS)
            return place.examine(path)

        monkeypatch.setattr(house, "TICK_SECONDS", 0.01)
        monkeypatch.setattr(house, "notify", hear)
        monkeypatch.setattr(watcher, "examine", slow)
        open_house()
        assert told[0] == "STATUS=looking through the inboxes\nEXTEND_TIMEOUT_USEC=300000000"


def test_the_log_does_not_tell_what_pictures_show(
    open_house: Callable[..., House],
    tmp_path: Path,
    make_picture: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_picture(tmp_path / "in/a.png")
    with caplog.at_level(logging.INFO):
        open_house(engine=FakeEngine(answer=lambda r: "a private matter")).wait_for(1)
    assert "private" not in caplog.text


def test_every_end_has_its_exit_code() -> None:
    assert (errors.EXIT_OK, errors.EXIT_FAILURE) == (0, 1)
    assert (errors.EXIT_DEVICE, errors.EXIT_LATER, errors.EXIT_CONFIG) == (
        os.EX_UNAVAILABLE,
        os.EX_TEMPFAIL,
        os.EX_CONFIG,
    )
