"""Roots that are missing, unreadable, replaced, unmounted: noticed, said, never taken for empty."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from inboxkit import SETTLE, Bench, needs_root, tmpfs, write

CHECK = 1.5  # seconds after which a root has been looked after


class TestMissing:
    def test_it_is_said_once_and_taken_up_when_it_is_there(
        self, tmp_path: Path, make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
    ) -> None:
        late = tmp_path / "late"
        bench = make_bench(late)
        bench.after(3 * CHECK)
        assert caplog.text.count("late cannot be read: No such file or directory; make or") == 1
        assert "make or mount it" in str(bench.hands.notices["in"])
        assert "No such file" in str(bench.watcher.root_fault("in"))
        assert bench.watcher.caught_up.is_set()
        late.mkdir()
        write(late / "a.jpg")
        assert bench.after(CHECK + SETTLE) == [b"a.jpg"]
        assert "late works again" in caplog.text
        assert bench.hands.notices["in"] is None
        assert bench.watcher.root_fault("in") is None
        write(late / "b.jpg")
        assert bench.run() == [b"a.jpg", b"b.jpg"]

    def test_a_file_in_its_place(self, tmp_path: Path, make_bench: Callable[..., Bench]) -> None:
        write(tmp_path / "file")
        bench = make_bench(tmp_path / "file")
        assert "Not a directory" in str(bench.watcher.root_fault("in"))


class TestReplaced:
    def test_a_renamed_one_is_missed_at_once(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        away = bench.folder.rename(bench.folder.with_name("away"))
        bench.run()
        assert "cannot be read" in caplog.text
        write(away / "a.jpg")
        assert bench.after(SETTLE) == []
        away.rename(bench.folder)
        assert bench.after(CHECK + SETTLE) == [b"a.jpg"]

    def test_another_folder_in_its_place_is_taken_up(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.folder.rename(bench.folder.with_name("away"))
        bench.folder.mkdir()
        write(bench.folder / "a.jpg")
        assert "another folder than before" in str(bench.watcher.root_fault("in"))
        assert bench.after(CHECK + SETTLE) == [b"a.jpg"]
        assert caplog.text.count("another folder is at") == 1
        assert bench.watcher.root_fault("in") is None

    def test_one_that_was_removed_and_made_again_has_new_watches(self, bench: Bench) -> None:
        for n in range(5):  # some file systems give the new folder the old one's number
            shutil.rmtree(bench.folder)
            bench.folder.mkdir()
            bench.after(CHECK)
            write(bench.folder / f"{n}.jpg")
            assert b"%d.jpg" % n in bench.run()

    def test_one_that_goes_in_the_middle_of_a_comparison_leaves_the_watcher_at_rest(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("phi4d.inbox.scan.STEP", 1)
        for n in range(5):
            (bench.folder / f"{n}.txt").touch()
        bench.run()
        bench.watcher.rescan()
        bench.watcher.turn(0.0)
        assert bench.watcher._places["in"].scan is not None
        for watch in list(bench.watcher._watches._by_number.values()):
            bench.watcher._watches._end(watch)  # only this end is told, as after an overflow
        shutil.rmtree(bench.folder)
        bench.run()
        assert bench.watcher._leisure() > 0
        assert bench.watcher.caught_up.is_set()

    def test_files_that_waited_are_not_lost(self, bench: Bench) -> None:
        write(bench.folder / "a.jpg")
        bench.watcher.turn(0.0)
        away = bench.folder.rename(bench.folder.with_name("away"))
        assert bench.after(SETTLE) == []
        away.rename(bench.folder)
        assert bench.after(CHECK + SETTLE) == [b"a.jpg"]


@needs_root
class TestMounts:
    def test_one_that_is_unmounted_is_not_empty(
        self, folder: Path, make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
    ) -> None:
        with tmpfs(folder):
            bench = make_bench()
            subprocess.run(["umount", folder], check=True)
            assert "is not mounted any more" in str(bench.watcher.root_fault("in"))
            bench.run()
            assert caplog.text.count("is not mounted any more; mount it again") == 1
            write(folder / "below.jpg")
            assert bench.after(SETTLE) == []
        with tmpfs(folder):
            write(folder / "a.jpg")
            assert bench.after(CHECK + SETTLE) == [b"a.jpg"]
            assert bench.watcher.root_fault("in") is None

    def test_one_that_is_mounted_over_and_comes_to_light_again(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        write(bench.folder / "below.jpg")
        assert bench.run() == [b"below.jpg"]
        with tmpfs(bench.folder):
            assert "another folder than before" in str(bench.watcher.root_fault("in"))
            write(bench.folder / "a.jpg")
            assert bench.after(CHECK + SETTLE) == [b"a.jpg", b"below.jpg"]
        bench.after(CHECK)
        assert bench.watcher.root_fault("in") is None
        write(bench.folder / "b.jpg")
        assert b"b.jpg" in bench.run()

    def test_a_mount_within_that_goes(self, folder: Path, make_bench: Callable[..., Bench]) -> None:
        (folder / "disk").mkdir()
        with tmpfs(folder / "disk"):
            bench = make_bench()
            write(folder / "disk/a.jpg")
            assert bench.run() == [b"disk/a.jpg"]
            subprocess.run(["umount", folder / "disk"], check=True)
            bench.run()
            write(folder / "disk/b.jpg")
            assert bench.run() == [b"disk/a.jpg", b"disk/b.jpg"]


class TestUnreadable:
    def test_a_folder_is_named_and_the_rest_goes_on(
        self, folder: Path, make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder / "closed").mkdir()
        (folder / "open").mkdir()
        write(folder / "open/b.jpg")
        bench = make_bench()
        real = os.scandir

        def scandir(path: bytes) -> object:  # root may read anything, so the refusal is played
            if path.endswith(b"/closed"):
                raise PermissionError(13, "Permission denied")
            return real(path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("phi4d.inbox.scan.os.scandir", scandir)
            bench.rescan()
            bench.rescan()
            assert bench.after(SETTLE) == [b"open/b.jpg"]
            assert caplog.text.count("closed cannot be read: Permission denied; give the") == 1
            assert "closed" in str(bench.hands.notices["in"])
        bench.rescan()
        assert "closed: works again" in caplog.text
        assert bench.hands.notices["in"] is None

    @needs_root
    @pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
    @pytest.mark.parametrize("which", ["", "sub"])
    def test_by_the_kernel(self, folder: Path, which: str) -> None:
        (folder / "sub").mkdir()
        (folder / which).chmod(0)
        code = (
            "import sys, pathlib\n"
            f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
            "from inboxkit import *\n"
            f"folder = pathlib.Path({str(folder)!r})\n"
            "bench = Bench(folder)\n"
            "bench.begin()\n"
            "print(bench.hands.notices['in'], bench.watcher.root_fault('in'), sep='|')\n"
            f"(folder / {which!r}).chmod(0o755)\n"
            "write(folder / 'sub/a.jpg')\n"
            "bench.rescan()\n"
            "print(bench.after(2 * SETTLE), bench.hands.notices['in'], sep='|')\n"
            "bench.watcher.end()\n"
        )
        powers = "-dac_override,-dac_read_search"
        lesser = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"]
        done = subprocess.run(
            [*lesser, sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        (folder / which).chmod(0o755)
        first, second = done.stdout.splitlines() or ["", done.stderr]
        notice, _, fault = first.partition("|")
        assert "cannot be read: Permission denied" in notice
        assert ("Permission denied" in fault) == (which == "")
        assert second == "[b'sub/a.jpg']|None"
