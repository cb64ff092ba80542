"""The inbox room, with real inotify."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from phi4d import inbox
from phi4d.errors import EnvironmentFault
from phi4d.inbox import Root, Watcher
from phi4d.job import Arrival, Kind

WAIT_SECONDS = 20.0  # until a test gives up; what it waits for takes milliseconds


def kind_of(name: bytes) -> Kind | None:
    return Kind.IMAGE if name.endswith(b".jpg") else None


class Hands:
    """Takes what the watcher hands on, and waits for it."""

    def __init__(self) -> None:
        self.found: list[Arrival] = []
        self.refuse = 0
        self._changed = threading.Condition()

    def __call__(self, found: list[Arrival]) -> None:
        with self._changed:
            if self.refuse:
                self.refuse -= 1
                self._changed.notify_all()
                raise EnvironmentFault("the store's disk is full")
            self.found += found
            self._changed.notify_all()

    def paths(self) -> set[bytes]:
        return {f.path for f in self.found}

    def wait_for(self, *paths: bytes) -> None:
        with self._changed:
            ok = self._changed.wait_for(lambda: self.paths() >= set(paths), WAIT_SECONDS)
        assert ok, f"waited for {set(paths) - self.paths()}; came {self.paths()}"

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_SECONDS)


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def watch(folder: Path, hands: Hands) -> Iterator[Callable[..., Watcher]]:
    watchers: list[Watcher] = []

    def start(root: Path = folder, **options: Any) -> Watcher:
        options = {"settle_seconds": 0.05, "rescan_seconds": 3600.0} | options
        watcher = Watcher([Root("in", os.fsencode(root), kind_of)], hands, **options)
        watchers.append(watcher)
        watcher.start()
        assert watcher.armed.wait(WAIT_SECONDS)
        return watcher

    yield start
    for watcher in watchers:
        watcher.stop()
        watcher.join()


def old(path: Path, data: bytes = b"x") -> Path:
    """A file that has been there for long, by its times; its ctime is still of now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (1, 1))
    return path


class TestWhatIsThere:
    def test_files_from_before_the_start_are_found_in_all_folders(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher]
    ) -> None:
        old(folder / "a.jpg")
        old(folder / "b/c/d.jpg")
        watch()
        hands.wait_for(b"a.jpg", b"b/c/d.jpg")

    def test_unchanged_files_do_not_wait(self, folder: Path, hands: Hands) -> None:
        old(folder / "a.jpg")
        later = 4_000_000_000.0  # long after the file's ctime
        watcher = Watcher(
            [Root("in", os.fsencode(folder), kind_of)],
            hands,
            settle_seconds=3600.0,
            wall_clock=lambda: later,
        )
        watcher.start()
        hands.wait_for(b"a.jpg")
        watcher.stop()
        watcher.join()

    def test_caught_up_is_told_when_all_was_handed_on(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher]
    ) -> None:
        old(folder / "a.jpg")
        assert watch().caught_up.wait(WAIT_SECONDS)
        assert hands.paths() == {b"a.jpg"}

    def test_only_regular_files_of_our_kinds_that_are_not_hidden(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher]
    ) -> None:
        old(folder / "yes.jpg")
        old(folder / "no.txt")
        old(folder / ".hidden.jpg")
        old(folder / ".hidden/no.jpg")
        (folder / "link.jpg").symlink_to(folder / "yes.jpg")
        (folder / "loop").symlink_to(folder)
        os.mkfifo(folder / "fifo.jpg")
        (folder / "folder.jpg").mkdir()
        assert watch().caught_up.wait(WAIT_SECONDS)
        assert hands.paths() == {b"yes.jpg"}


class TestWhatComes:
    def write(self, folder: Path, path: bytes) -> None:
        with open(os.fsencode(folder) + b"/" + path, "wb") as file:
            file.write(b"x")

    def test_a_file_written_in_place(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher]
    ) -> None:
        watch(settle_seconds=3600.0)  # its closing alone tells that it is complete
        self.write(folder, b"a.jpg")
        hands.wait_for(b"a.jpg")

    def test_a_file_written_aside_and_renamed(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher]
    ) -> None:
        watch(settle_seconds=3600.0)
        self.write(folder, b".a.jpg.tmp")
        (folder / ".a.jpg.tmp").rename(folder / "a.jpg")
        hands.wait_for(b"a.jpg")
        assert hands.paths() == {b"a.jpg"}

    def test_a_file_moved_in_and_a_hard_link(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher], tmp_path: Path
    ) -> None:
        watch()
        old(tmp_path / "x.jpg").rename(folder / "moved.jpg")
        os.link(folder / "moved.jpg", folder / "linked.jpg")
        hands.wait_for(b"moved.jpg", b"linked.jpg")

    def test_folders_made_and_filled_at_once(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher]
    ) -> None:
        watch()
        expected = []
        for n in range(30):
            (folder / f"{n}/a/b").mkdir(parents=True)
            self.write(folder, f"{n}/a/b/c.jpg".encode())
            expected.append(f"{n}/a/b/c.jpg".encode())
        hands.wait_for(*expected)

    def test_a_tree_copied_in_and_one_moved_in(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher], tmp_path: Path
    ) -> None:
        for n in range(20):
            old(tmp_path / f"tree/{n}/x.jpg")
        watch()
        shutil.copytree(tmp_path / "tree", folder / "copied")
        (tmp_path / "tree").rename(folder / "moved")
        hands.wait_for(*(f"{t}/{n}/x.jpg".encode() for t in ("copied", "moved") for n in range(20)))

    @pytest.mark.parametrize("name", [b"new\nline.jpg", b"bad\xff.jpg", b"-rf.jpg", b"a b.jpg"])
    def test_any_name(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher], name: bytes
    ) -> None:
        watch()
        self.write(folder, name)
        hands.wait_for(name)

    def test_a_file_that_changes_is_handed_on_in_each_version(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher]
    ) -> None:
        watch()
        self.write(folder, b"a.jpg")
        hands.wait_for(b"a.jpg")
        with (folder / "a.jpg").open("ab") as file:
            file.write(b"more")
        hands.wait_until(lambda: 5 in {f.fingerprint.size for f in hands.found})

    def test_a_file_that_is_gone_before_it_settled_is_forgotten(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher], tmp_path: Path
    ) -> None:
        watcher = watch(settle_seconds=0.3)
        old(tmp_path / "x.jpg").rename(folder / "a.jpg")
        (folder / "a.jpg").unlink()
        self.write(folder, b"b.jpg")
        hands.wait_for(b"b.jpg")
        assert watcher.caught_up.wait(WAIT_SECONDS)
        assert hands.paths() == {b"b.jpg"}


class TestReconciliation:
    def test_a_rescan_finds_what_no_event_told_of(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher]
    ) -> None:
        watcher = watch()
        assert watcher.caught_up.wait(WAIT_SECONDS)
        (root,) = watcher._roots.values()
        watcher._observer.unschedule(root.watch)
        old(folder / "missed.jpg")
        watcher.rescan()
        hands.wait_for(b"missed.jpg")

    def test_it_happens_by_itself_every_so_often(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher]
    ) -> None:
        watcher = watch(rescan_seconds=0.1)
        (root,) = watcher._roots.values()
        watcher._observer.unschedule(root.watch)
        old(folder / "missed.jpg")
        hands.wait_for(b"missed.jpg")

    def test_an_overflow_of_the_kernels_queue_is_made_good(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher]
    ) -> None:
        watcher = watch()
        assert watcher.caught_up.wait(WAIT_SECONDS)
        (root,) = watcher._roots.values()
        watcher._observer.unschedule(root.watch)
        old(folder / "missed.jpg")
        logging.getLogger("watchdog.observers.inotify_c").warning("Inotify queue overflowed; x")
        hands.wait_for(b"missed.jpg")

    def test_watchdog_still_tells_of_overflows_in_its_log(self) -> None:
        from watchdog.observers import inotify_c

        source = Path(inotify_c.__file__).read_text()
        assert inotify_c.logger.name.startswith("watchdog.observers")
        assert 'logger.warning("Inotify queue overflowed' in source

    def test_what_the_store_refused_is_handed_on_again(
        self,
        folder: Path,
        hands: Hands,
        watch: Callable[..., Watcher],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        old(folder / "a.jpg")
        hands.refuse = 1
        watcher = watch(rescan_seconds=0.1)
        hands.wait_for(b"a.jpg")
        assert watcher.caught_up.wait(WAIT_SECONDS)
        assert "wait for the next rescan" in caplog.text
        assert "store: works again" in caplog.text


class TestRoots:
    def test_a_missing_root_is_said_once_and_healed(
        self,
        tmp_path: Path,
        hands: Hands,
        watch: Callable[..., Watcher],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        late = tmp_path / "late"
        watch(late)
        late.mkdir()
        old(late / "a.jpg")
        hands.wait_for(b"a.jpg")
        assert caplog.text.count("cannot be read: No such file") == 1
        assert "make or mount it" in caplog.text
        with (late / "b.jpg").open("wb") as file:
            file.write(b"x")
        hands.wait_for(b"b.jpg")

    def test_a_root_that_is_replaced_is_watched_anew(
        self, folder: Path, hands: Hands, watch: Callable[..., Watcher]
    ) -> None:
        watcher = watch(rescan_seconds=0.05)
        (root,) = watcher._roots.values()
        before = root.identity
        folder.rename(folder.with_name("away"))
        folder.mkdir()
        (folder / "keep").mkdir()  # so that the inode is another for sure
        for n in range(100):  # a rescan that was under way may still have looked at the old one
            old(folder / f"{n}.jpg")
            hands.wait_for(b"%d.jpg" % n)
            if root.identity != before:
                break
        status = folder.stat()
        assert root.identity == (status.st_dev, status.st_ino)

    def test_reaching_the_watch_limit_is_said_and_files_are_found_all_the_same(
        self,
        folder: Path,
        hands: Hands,
        watch: Callable[..., Watcher],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        class Full(inbox.Observer):  # type: ignore[misc,valid-type]
            def schedule(self, *args: object, **options: object) -> None:
                raise OSError(errno.ENOSPC, "inotify watch limit reached")

        monkeypatch.setattr(inbox, "Observer", Full)
        watch(rescan_seconds=0.05)
        old(folder / "a.jpg")
        hands.wait_for(b"a.jpg")
        assert caplog.text.count("raise fs.inotify.max_user_watches") == 1

    def test_an_unreadable_folder_is_named_and_the_rest_goes_on(
        self,
        folder: Path,
        hands: Hands,
        watch: Callable[..., Watcher],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        old(folder / "closed/a.jpg")
        old(folder / "open/b.jpg")
        real = os.scandir
        closed = True

        def scandir(path: bytes) -> Any:  # root may read anything, so the refusal is played
            if closed and path.endswith(b"/closed"):
                raise PermissionError(errno.EACCES, "Permission denied")
            return real(path)

        monkeypatch.setattr(inbox.os, "scandir", scandir)
        watcher = watch(rescan_seconds=0.05)
        hands.wait_for(b"open/b.jpg")
        watcher.rescan()
        closed = False
        hands.wait_for(b"closed/a.jpg")
        assert caplog.text.count("closed cannot be read: Permission denied; give") == 1
        assert "closed: works again" in caplog.text


def test_only_watchdogs_quiet_events_are_asked_for(folder: Path, hands: Hands) -> None:
    # opened and closed-without-write would tell of our own reads, file after file
    assert not {e.__name__ for e in inbox._EVENTS} & {"FileOpenedEvent", "FileClosedNoWriteEvent"}
    assert stat.S_ISDIR(folder.stat().st_mode)
