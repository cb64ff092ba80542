"""The watcher over real folders: every way in which files arrive, and every way to lose them."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from inboxkit import SETTLE, SETTLE_MAX, WAIT_SECONDS, Bench, Hands, needs_root, tmpfs, write

from phi4d.inbox import Health, Rules, Watcher
from phi4d.inbox.rules import IGNORE_FILE

NAMES = [
    b"new\nline.jpg",
    b"bad\xff.jpg",
    b"-rf.jpg",
    b"a b.jpg",
    b"#x.jpg",
    "\N{HEBREW LETTER ALEF}\N{RIGHT-TO-LEFT MARK}e\N{COMBINING ACUTE ACCENT}.jpg".encode(),
    b"n" * 251 + b".jpg",
]


def below(folder: Path, name: bytes) -> bytes:
    return os.path.join(os.fsencode(folder), name)


class TestWhatIsThere:
    def test_files_from_before_the_start_are_found_in_all_folders(
        self, folder: Path, make_bench: Callable[..., Bench]
    ) -> None:
        (folder / "b/c").mkdir(parents=True)
        write(folder / "a.jpg")
        write(folder / "b/c/d.jpg")
        bench = make_bench()
        assert bench.waiting == 2
        assert bench.after(SETTLE) == [b"a.jpg", b"b/c/d.jpg"]

    def test_those_that_have_lain_there_do_not_wait(
        self, folder: Path, make_bench: Callable[..., Bench]
    ) -> None:
        write(folder / "a.jpg")
        bench = make_bench(begin=False)
        bench.aged = 2 * SETTLE
        bench.begin()
        assert bench.hands.paths() == [b"a.jpg"]
        assert bench.waiting == 0

    def test_nor_does_one_whose_time_of_change_is_of_the_future(
        self, folder: Path, make_bench: Callable[..., Bench]
    ) -> None:
        write(folder / "a.jpg")
        os.utime(folder / "a.jpg", (4e9, 4e9))
        bench = make_bench(begin=False)
        bench.aged = 2 * SETTLE
        bench.begin()
        assert bench.hands.paths() == [b"a.jpg"]

    @pytest.mark.parametrize("name", NAMES)
    def test_any_name(self, folder: Path, make_bench: Callable[..., Bench], name: bytes) -> None:
        write(below(folder, name))
        assert make_bench().after(SETTLE) == [name]

    def test_only_regular_files_and_no_links(
        self, folder: Path, make_bench: Callable[..., Bench], tmp_path: Path
    ) -> None:
        # given one file, and all that may look like one
        (tmp_path / "else").mkdir()
        write(tmp_path / "else/x.jpg")
        write(folder / "yes.jpg")
        make_odd_things(folder, tmp_path)
        # when
        found = make_bench().after(SETTLE)
        # then
        assert found == [b"yes.jpg"]

    @needs_root
    def test_nor_devices(self, folder: Path, make_bench: Callable[..., Bench]) -> None:
        os.mknod(folder / "device.jpg", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        assert make_bench().after(SETTLE) == []


def make_odd_things(folder: Path, tmp_path: Path) -> None:
    (folder / "link.jpg").symlink_to(folder / "yes.jpg")
    (folder / "dangling.jpg").symlink_to(folder / "nothing")
    (folder / "loop").symlink_to(folder)
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    (folder / "out").symlink_to(tmp_path / "else")
    os.mkfifo(folder / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(folder, os.O_PATH)  # the path of a socket is limited to 108 bytes
        listener.bind(f"/proc/self/fd/{here}/socket.jpg")
        os.close(here)
    (folder / "folder.jpg").mkdir()


class TestWhatComes:
    def test_a_file_written_in_place(self, bench: Bench) -> None:
        with (bench.folder / "a.jpg").open("wb") as file:
            file.write(b"x")
            assert bench.after(SETTLE_MAX / 2) == []
        assert bench.run() == [b"a.jpg"]

    def test_a_file_that_grows_for_long_with_pauses(self, bench: Bench) -> None:
        with (bench.folder / "a.jpg").open("wb", buffering=0) as file:
            for _ in range(5):
                file.write(b"more")
                assert bench.after(SETTLE_MAX / 2) == []
        assert bench.run() == [b"a.jpg"]
        assert bench.hands.found[0].fingerprint.size == 20

    def test_one_whose_writer_never_ends_is_taken_as_it_is_in_the_end(self, bench: Bench) -> None:
        with (bench.folder / "a.jpg").open("wb", buffering=0) as file:
            file.write(b"x")
            assert bench.after(SETTLE_MAX + SETTLE) == [b"a.jpg"]

    def test_a_file_written_aside_and_renamed(self, bench: Bench) -> None:
        write(bench.folder / ".a.jpg.tmp")
        (bench.folder / ".a.jpg.tmp").rename(bench.folder / "a.jpg")
        assert bench.run() == [b"a.jpg"]

    def test_a_browsers_download(self, bench: Bench) -> None:
        write(bench.folder / "a.jpg.crdownload")
        assert bench.after(SETTLE_MAX) == []
        (bench.folder / "a.jpg.crdownload").rename(bench.folder / "a.jpg")
        assert bench.run() == [b"a.jpg"]

    @pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
    def test_rsync(self, bench: Bench, tmp_path: Path) -> None:
        (tmp_path / "from/b").mkdir(parents=True)
        write(tmp_path / "from/a.jpg")
        write(tmp_path / "from/b/c.jpg")
        subprocess.run(["rsync", "-a", f"{tmp_path}/from/", bench.folder], check=True)
        assert bench.after(SETTLE) == [b"a.jpg", b"b/c.jpg"]

    def test_one_moved_from_the_same_file_system(self, bench: Bench, tmp_path: Path) -> None:
        write(tmp_path / "x.jpg")
        subprocess.run(["mv", tmp_path / "x.jpg", bench.folder], check=True)
        assert bench.run() == [b"x.jpg"]

    @needs_root
    def test_one_moved_from_another_file_system(self, bench: Bench, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        with tmpfs(other):
            write(other / "x.jpg")
            subprocess.run(["mv", other / "x.jpg", bench.folder], check=True)
            assert bench.run() == [b"x.jpg"]

    def test_a_hard_link(self, bench: Bench, tmp_path: Path) -> None:
        os.link(write(tmp_path / "x.jpg"), bench.folder / "linked.jpg")
        # its time of change is of now, by the kernel's clock, which does not jump
        assert bench.after(2 * SETTLE) == [b"linked.jpg"]

    def test_times_that_are_set_after_the_close(self, bench: Bench, tmp_path: Path) -> None:
        write(tmp_path / "x.jpg")
        os.utime(tmp_path / "x.jpg", (1, 1))
        shutil.copyfile(tmp_path / "x.jpg", bench.folder / "x.jpg")
        bench.watcher.turn(0.0)  # the close has been told, and its grace has begun
        shutil.copystat(tmp_path / "x.jpg", bench.folder / "x.jpg")
        assert bench.run() == [b"x.jpg"]
        assert bench.hands.found[0].fingerprint.mtime_ns == 1_000_000_000

    def test_folders_made_and_filled_at_once(self, bench: Bench) -> None:
        names = [f"{n}/a/b/c.jpg" for n in range(30)]
        for name in names:
            (bench.folder / name).parent.mkdir(parents=True)
            write(bench.folder / name)
        assert bench.after(SETTLE) == sorted(map(os.fsencode, names))
        assert bench.watched == 1 + 3 * 30

    def test_a_file_whose_close_came_before_the_watch_does_not_wait_for_another(
        self, bench: Bench
    ) -> None:
        (bench.folder / "new").mkdir()
        write(bench.folder / "new/a.jpg")
        assert bench.after(SETTLE + 1) == [b"new/a.jpg"]

    @pytest.mark.parametrize("how", [["cp", "-r"], ["mv"]])
    def test_a_tree(self, bench: Bench, tmp_path: Path, how: list[str]) -> None:
        deep = "/".join("d" * 48)
        names = [f"tree/{n}/{deep}/x.jpg" for n in range(5)]
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True)
            write(tmp_path / name)
        subprocess.run([*how, tmp_path / "tree", bench.folder], check=True)
        assert bench.after(SETTLE) == sorted(map(os.fsencode, names))

    @pytest.mark.parametrize("name", NAMES)
    def test_any_name(self, bench: Bench, name: bytes) -> None:
        write(below(bench.folder, name))
        assert bench.run() == [name]

    def test_only_regular_files_and_no_links(self, bench: Bench, tmp_path: Path) -> None:
        (tmp_path / "else").mkdir()
        write(tmp_path / "else/x.jpg")
        make_odd_things(bench.folder, tmp_path)
        assert bench.after(SETTLE_MAX) == []
        assert bench.watched == 2  # the inbox and folder.jpg

    def test_a_file_that_changes_is_handed_on_in_each_version(self, bench: Bench) -> None:
        write(bench.folder / "a.jpg")
        assert bench.run() == [b"a.jpg"]
        write(bench.folder / "a.jpg", b"more")
        assert bench.run() == [b"a.jpg", b"a.jpg"]
        assert [f.fingerprint.size for f in bench.hands.found] == [1, 4]

    def test_one_that_is_replaced_while_it_waits_is_handed_on_once(self, bench: Bench) -> None:
        write(bench.folder / "a.jpg")
        bench.watcher.turn(0.0)
        write(bench.folder / ".new", b"newer")
        (bench.folder / ".new").rename(bench.folder / "a.jpg")
        assert bench.run() == [b"a.jpg"]
        assert bench.hands.found[0].fingerprint.size == 5

    def test_a_file_that_is_gone_before_it_settled_is_forgotten(self, bench: Bench) -> None:
        write(bench.folder / "a.jpg")
        bench.watcher.turn(0.0)
        (bench.folder / "a.jpg").unlink()
        assert bench.run() == []
        assert bench.waiting == 0


class TestFolders:
    def test_one_that_is_moved_within_the_inbox_has_its_new_path(self, bench: Bench) -> None:
        (bench.folder / "a/b").mkdir(parents=True)
        bench.run()
        (bench.folder / "a").rename(bench.folder / "z")
        bench.run()
        write(bench.folder / "z/b/x.jpg")
        assert bench.run() == [b"z/b/x.jpg"]
        assert bench.watched == 3

    def test_two_that_change_places(self, bench: Bench) -> None:
        for name in "ab":
            (bench.folder / name / "sub").mkdir(parents=True)
        bench.run()
        (bench.folder / "a").rename(bench.folder / "c")
        (bench.folder / "b").rename(bench.folder / "a")
        (bench.folder / "c").rename(bench.folder / "b")
        write(bench.folder / "a/sub/1.jpg")
        write(bench.folder / "b/sub/2.jpg")
        assert bench.after(SETTLE) == [b"a/sub/1.jpg", b"b/sub/2.jpg"]
        assert bench.watched == 5

    def test_one_that_is_moved_away_is_forgotten(self, bench: Bench, tmp_path: Path) -> None:
        (bench.folder / "a/b").mkdir(parents=True)
        bench.run()
        (bench.folder / "a").rename(tmp_path / "away")
        bench.run()
        assert bench.watched == 1
        write(tmp_path / "away/b/x.jpg")
        assert bench.after(SETTLE) == []

    def test_one_that_is_removed_is_forgotten(self, bench: Bench) -> None:
        (bench.folder / "a/b").mkdir(parents=True)
        bench.run()
        shutil.rmtree(bench.folder / "a")
        bench.run()
        assert bench.watched == 1

    def test_more_folders_deep_than_python_recurses(self, bench: Bench) -> None:
        here = os.fsencode(bench.folder)
        for _ in range(1_500):
            here += b"/d"
            os.mkdir(here)
        bench.run()
        assert bench.watched == 1_501
        (bench.folder / "d").rename(bench.folder / "e")
        write(below(bench.folder, b"e" + b"/d" * 1_499 + b"/x.jpg"))
        assert len(bench.after(SETTLE)) == 1
        assert bench.watched == 1_501
        subprocess.run(["rm", "-r", bench.folder / "e"], check=True)  # pytest would recurse


class TestPatterns:
    def test_litter_and_what_the_inbox_excludes(
        self, folder: Path, make_bench: Callable[..., Bench]
    ) -> None:
        bench = make_bench(rules=Rules(include=["*.jpg"], exclude=["raw/"]))
        for name in ("a.jpg", "a.wav", ".b.jpg", "raw/c.jpg", "d/e.jpg", "@eaDir/f.jpg"):
            (folder / name).parent.mkdir(exist_ok=True)
            write(folder / name)
        assert bench.after(SETTLE) == [b"a.jpg", b"d/e.jpg"]
        assert bench.watched == 2  # nor are excluded folders watched

    def test_an_outbox_inside(self, folder: Path, make_bench: Callable[..., Bench]) -> None:
        outbox = os.fsencode(folder / "out")
        bench = make_bench(rules=Rules(os.fsencode(folder), apart={outbox: "the outbox"}))
        (folder / "out").mkdir()
        write(folder / "out/a.jpg")
        write(folder / "b.jpg")
        assert bench.after(SETTLE) == [b"b.jpg"]

    def test_an_ignore_file_that_is_there(
        self, folder: Path, make_bench: Callable[..., Bench]
    ) -> None:
        (folder / "a").mkdir()
        (folder / "a/.phi4dignore").write_text("*.jpg\n!keep.jpg\n")
        for name in ("x.jpg", "keep.jpg"):
            write(folder / "a" / name)
        assert make_bench().after(SETTLE) == [b"a/keep.jpg"]

    def test_one_that_comes_holds_at_once_and_one_that_goes_from_the_next_scan(
        self, bench: Bench
    ) -> None:
        (bench.folder / ".phi4dignore").write_text("*.wav\n")
        write(bench.folder / "a.wav")
        assert bench.after(SETTLE) == []
        (bench.folder / ".phi4dignore").unlink()
        bench.rescan()
        assert bench.after(SETTLE) == [b"a.wav"]

    def test_its_mistakes_are_said_once(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = below(bench.folder, IGNORE_FILE)
        write(path, b"[ab\n*.wav\n")
        bench.run()
        bench.rescan()
        assert caplog.text.count('found "[ab"; expected patterns as in .gitignore') == 1
        assert "[ab" in str(bench.hands.notices["in"])
        write(path, b"*.wav\n")
        bench.run()
        assert bench.hands.notices["in"] is None


class TestReconciliation:
    def test_what_is_asked_for(self, bench: Bench) -> None:
        bench.watcher._watches.forget("in")
        write(bench.folder / "a.jpg")
        bench.aged = SETTLE
        assert bench.run() == []
        assert bench.rescan() == [b"a.jpg"]

    def test_it_happens_by_itself_every_so_often(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench(rescan_seconds=60.0)
        bench.watcher._watches.forget("in")
        write(bench.folder / "a.jpg")
        bench.aged = SETTLE
        assert bench.after(60.0) == [b"a.jpg"]
        assert bench.watched == 1

    def test_an_overflow_of_the_kernels_queue_is_made_good(self, bench: Bench) -> None:
        most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        # given a queue that is filled by one file, to and fro
        write(bench.folder / "1.txt")
        for _ in range(most // 4 + 1):
            (bench.folder / "1.txt").rename(bench.folder / "2.txt")
            (bench.folder / "2.txt").rename(bench.folder / "1.txt")
        # when events are lost, of files and of folders
        write(bench.folder / "a.jpg")
        (bench.folder / "sub").mkdir()
        write(bench.folder / "sub/b.jpg")
        # then they are found all the same, without the wait of a file that nobody closes
        assert bench.after(SETTLE + 1) == [b"a.jpg", b"sub/b.jpg"]
        numbers = bench.watcher._meter.numbers()
        assert numbers.overflows == 1
        comparisons, seconds = numbers.comparisons["in"]
        assert comparisons == 2  # the first, and the one that made it good
        assert seconds > 0
        assert bench.watcher.health() == {"in": Health(True, False, False, 2)}

    def test_one_in_the_middle_of_a_comparison_makes_another(self, bench: Bench) -> None:
        bench.watcher.rescan()
        bench.watcher.turn(0.0)
        place = bench.watcher._places["in"]
        bench.watcher._overflowed()
        assert place.again
        bench.run()
        assert not place.again

    def test_a_folder_whose_move_was_not_told_has_its_new_path(self, bench: Bench) -> None:
        (bench.folder / "a/b").mkdir(parents=True)
        bench.run()
        (bench.folder / "a").rename(bench.folder / "z")
        for _ in bench.watcher._watches.read():
            pass  # lost
        bench.rescan()
        write(bench.folder / "z/b/x.jpg")
        assert bench.run() == [b"z/b/x.jpg"]
        assert bench.watched == 3

    def test_a_look_that_a_worker_asks_for(self, bench: Bench) -> None:
        bench.watcher._watches.forget("in")
        write(bench.folder / "a.jpg")
        bench.watcher.look("in", b"a.jpg")
        assert bench.after(2 * SETTLE) == [b"a.jpg"]

    def test_a_look_at_a_file_that_is_being_written_does_not_hurry_it(self, bench: Bench) -> None:
        with (bench.folder / "a.jpg").open("wb", buffering=0) as file:
            file.write(b"x")
            bench.run()
            bench.watcher.look("in", b"a.jpg")
            assert bench.after(SETTLE_MAX / 2) == []
        assert bench.run() == [b"a.jpg"]

    def test_events_are_served_between_the_steps_of_a_comparison(
        self, folder: Path, make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("phi4d.inbox.scan.STEP", 10)
        for n in range(100):
            write(folder / f"{n}.txt")
        bench = make_bench()
        bench.watcher.rescan()
        write(folder / "a.jpg")
        bench.watcher.turn(0.0)
        assert bench.waiting == 1
        assert bench.watcher._places["in"].scan is not None


class TestPolling:
    def test_files_are_found_without_events(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench(mode="poll", poll_seconds=10.0)
        write(bench.folder / "a.jpg")
        assert bench.after(9.0) == []
        assert bench.after(11.0 + SETTLE) == [b"a.jpg"]
        assert bench.watched == 0
        assert bench.watcher.modes() == {"in": "poll"}

    @pytest.mark.parametrize("skew", [-7_200, 7_200])
    def test_a_servers_wrong_clock_does_not_make_a_growing_file_complete(
        self, make_bench: Callable[..., Bench], skew: float
    ) -> None:
        bench = make_bench(mode="poll", poll_seconds=10.0)

        def grow(data: bytes) -> None:
            write(bench.folder / "a.jpg", data)
            now = bench.watcher._intake._wall_clock() + skew
            os.utime(bench.folder / "a.jpg", (now, now))

        for n in range(1, 6):
            grow(b"x" * n)
            assert bench.after(SETTLE - 1) == []
        assert bench.after(SETTLE + 10) == [b"a.jpg"]
        assert bench.hands.found[0].fingerprint.size == 5

    def test_old_files_are_taken_at_once(
        self, folder: Path, make_bench: Callable[..., Bench]
    ) -> None:
        write(folder / "a.jpg")
        bench = make_bench(mode="poll", begin=False)
        bench.aged = 100_000.0
        bench.begin()
        assert bench.hands.paths() == [b"a.jpg"]

    def test_no_more_than_a_tenth_of_the_time_goes_into_it(
        self, folder: Path, make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = make_bench(mode="poll", poll_seconds=10.0, begin=False)
        real = os.scandir
        begun: list[float] = []

        def slow(path: bytes) -> object:
            begun.append(bench.passed)
            bench.passed += 5.0
            return real(path)

        monkeypatch.setattr("phi4d.inbox.scan.os.scandir", slow)
        bench.begin()
        bench.after(200.0)
        assert len(begun) > 3
        assert all(round(b - a) == 50 for a, b in pairwise(begun))


class TestThread:
    def test_from_the_start_to_the_end(
        self, folder: Path, watch: Callable[..., tuple[Watcher, Hands]]
    ) -> None:
        write(folder / "before.jpg")
        watcher, hands = watch()
        hands.wait_for(b"before.jpg")
        write(folder / "now.jpg")
        hands.wait_for(b"before.jpg", b"now.jpg")
        assert watcher.caught_up.wait(WAIT_SECONDS)
        watcher.stop()
        watcher.join()
        assert not watcher.is_alive()

    def test_requests_wake_it(
        self, folder: Path, watch: Callable[..., tuple[Watcher, Hands]]
    ) -> None:
        watcher, hands = watch()
        assert watcher.caught_up.wait(WAIT_SECONDS)
        watcher.rescan("in")
        assert not watcher.caught_up.is_set() or watcher.caught_up.wait(WAIT_SECONDS)
        assert watcher.caught_up.wait(WAIT_SECONDS)
        write(folder / "a.jpg")
        hands.wait_for(b"a.jpg")
        (folder / "a.jpg").write_bytes(b"other")
        watcher.look("in", b"a.jpg")
        hands.wait_for(b"a.jpg", b"a.jpg")

    def test_requests_before_and_after_its_life_are_no_fault(
        self, folder: Path, watch: Callable[..., tuple[Watcher, Hands]]
    ) -> None:
        watcher, _ = watch()
        watcher.stop()
        watcher.join()
        watcher.stop()
        watcher.rescan()
        watcher.look("in", b"a.jpg")

    def test_a_stop_in_the_middle_of_a_comparison(
        self, folder: Path, watch: Callable[..., tuple[Watcher, Hands]]
    ) -> None:
        for n in range(3_000):
            write(folder / f"{n}.jpg")
        watcher, _ = watch()
        watcher.stop()
        watcher.join(WAIT_SECONDS)
        assert not watcher.is_alive()


class TestWatchLimit:
    def test_it_is_said_once_polled_for_and_heals(
        self,
        folder: Path,
        make_bench: Callable[..., Bench],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        # given a kernel that gives three watches
        from inotify_simple import INotify

        most = 3
        real = INotify.add_watch
        given: set[bytes] = set()

        def add_watch(self: INotify, path: bytes, mask: int) -> int:
            if path not in given and len(given) >= most:
                raise OSError(28, "No space left on device")
            given.add(path)
            return int(real(self, path, mask))

        monkeypatch.setattr(INotify, "add_watch", add_watch)
        for n in range(5):
            (folder / f"{n}").mkdir()
        # when there are more folders
        bench = make_bench(poll_seconds=10.0)
        # then
        assert bench.watcher.modes() == {"in": "poll (watch limit)"}
        assert bench.watcher.health() == {"in": Health(True, False, True, 3)}
        for n in range(5):
            write(folder / f"{n}/a.jpg")
        assert len(bench.after(SETTLE + 20)) == 5
        assert caplog.text.count("3 of 6 folders are watched") == 1
        assert "raise fs.inotify.max_user_watches" in caplog.text
        assert "3 of 6" in str(bench.hands.notices["in"])
        # when the limit is raised
        most = 100
        bench.after(11.0)
        # then
        assert bench.watcher.modes() == {"in": "inotify"}
        assert bench.hands.notices["in"] is None
        assert bench.watched == 6
        write(folder / "4/b.jpg")
        assert b"4/b.jpg" in bench.run()

    def test_with_the_kernels_own(self, folder: Path) -> None:
        # a user namespace has limits of its own, so nobody else on the machine notices
        code = (
            "import sys, pathlib\n"
            "pathlib.Path('/proc/sys/user/max_inotify_watches').write_text('3')\n"
            f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
            "from inboxkit import Bench\n"
            f"bench = Bench(pathlib.Path({str(folder)!r}), poll_seconds=10.0)\n"
            "bench.begin()\n"
            "print(bench.watched, bench.watcher.modes()['in'], bench.after(500.0))\n"
            "bench.watcher.end()\n"
        )
        for n in range(5):
            (folder / f"{n}").mkdir()
            write(folder / f"{n}/a.jpg")
        space = ["unshare", "--user", "--map-root-user"]
        if subprocess.run([*space, "true"], capture_output=True, check=False).returncode:
            pytest.skip("no user namespace may be made")
        done = subprocess.run(
            [*space, sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.stdout.startswith("3 poll (watch limit) [b'0/a.jpg'"), done.stderr
        assert done.stdout.count("a.jpg") == 5

    def test_no_queue_at_all(
        self, folder: Path, make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(**_options: bool) -> None:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("phi4d.inbox.watches.INotify", refuse)
        bench = make_bench(poll_seconds=10.0)
        assert "max_user_instances" in str(bench.hands.notices["in"])
        write(folder / "a.jpg")
        assert bench.after(SETTLE + 20) == [b"a.jpg"]
        monkeypatch.undo()
        bench.after(11.0)
        assert bench.watcher.modes() == {"in": "inotify"}


def test_an_overflow_is_no_warning(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.watcher._overflowed()
    assert [record.levelname for record in caplog.records] == ["INFO"]
