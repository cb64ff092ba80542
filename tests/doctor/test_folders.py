from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from phi4d.config import Config, Inbox
from phi4d.doctor import folders
from phi4d.doctor.check import Status
from phi4d.doctor.folders import Tree
from phi4d.errors import EnvironmentFault


def box(path: Path, outbox: Path | str = "beside") -> Inbox:
    return Inbox(path=str(path), outbox=str(outbox))


class TestInboxes:
    def test_its_folders_are_counted_and_links_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "a/b").mkdir(parents=True)
        (tmp_path / "a/file.jpg").touch()
        os.mkdir(os.fsencode(tmp_path) + b"/\xff")
        (tmp_path / "loop").symlink_to(tmp_path)

        assert folders.walk(tmp_path) == Tree(4)

    def test_one_that_can_be_read(self, tmp_path: Path) -> None:
        (check,) = folders.inboxes([box(tmp_path)], [Tree(3)])

        assert (check.status, check.check) == (Status.OK, f"inbox {tmp_path.name}")
        assert check.found == f"{tmp_path}, 3 folders"

    def test_one_that_is_missing_is_waited_for(self, tmp_path: Path) -> None:
        (check,) = folders.inboxes([box(tmp_path / "gone")], [Tree()])

        assert check.status is Status.WARN
        assert "is not there" in check.found
        assert "make or mount it" in check.advice

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()

        (check,) = folders.inboxes([box(tmp_path / "file")], [Tree()])

        assert (check.status, "is not a folder" in check.found) == (Status.FAIL, True)

    def test_one_that_this_user_may_not_read(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: False)

        (check,) = folders.inboxes([box(tmp_path)], [Tree()])

        assert (check.status, "cannot be read" in check.found) == (Status.FAIL, True)
        assert folders.user() in check.advice

    def test_folders_below_it_that_this_user_may_not_read(self, tmp_path: Path) -> None:
        (check,) = folders.inboxes([box(tmp_path)], [Tree(9, (b"/in/private", b"/in/\xff"))])

        assert check.status is Status.WARN
        assert "2 of 9 folders cannot be read, /in/private first" in check.found

    def test_none_at_all(self) -> None:
        (check,) = folders.inboxes([], [])

        assert (check.status, "[[inbox]]" in check.advice) == (Status.WARN, True)


class TestOriginals:
    def test_where_they_stay_nothing_is_asked(self, tmp_path: Path) -> None:
        assert list(folders.originals([box(tmp_path)])) == []

    def test_where_they_go_must_be_writable_and_so_must_the_inbox(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inbox = Inbox(
            path=str(tmp_path),
            outbox="beside",
            originals="move",
            done_dir=str(tmp_path / "done"),
            failed_dir=str(tmp_path / "failed"),
        )
        found = list(folders.originals([inbox]))
        assert [(check.check, check.status) for check in found] == [
            (f"done_dir {tmp_path.name}", Status.OK),
            (f"failed_dir {tmp_path.name}", Status.OK),
        ]

        def refused(folder: bytes) -> None:
            raise EnvironmentFault("/in: cannot be written: Permission denied; give access")

        monkeypatch.setattr(folders.atomic, "probe", refused)
        check = list(folders.originals([inbox]))[-1]
        assert (check.check, check.status) == (f"originals {tmp_path.name}", Status.FAIL)
        assert "give access" in check.advice


class TestWritable:
    def test_a_folder_that_takes_a_file_is_left_as_it_was(self, tmp_path: Path) -> None:
        check = folders.writable("outbox a", tmp_path, "outbox")

        assert (check.status, check.found) == (Status.OK, f"{tmp_path} can be written")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_to_be_made_is_not_made(self, tmp_path: Path) -> None:
        check = folders.writable("outbox a", tmp_path / "x/y", "outbox")

        assert (check.status, check.found) == (
            Status.OK,
            f"{tmp_path / 'x/y'} will be made in {tmp_path}",
        )
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_refuses_a_file(self) -> None:
        # not even root can make a file there
        check = folders.writable("outbox a", Path("/proc/self"), "outbox")

        assert check.status is Status.FAIL
        assert check.found.startswith("/proc/self: cannot be written: ")
        assert folders.user() in check.advice

    def test_who_is_not_the_owner_is_told_who_can_tell(self, monkeypatch) -> None:
        # given a folder of root's that refuses a file, and somebody else who asks
        monkeypatch.setattr(os, "geteuid", lambda: 12345)

        check = folders.writable("state_dir", Path("/proc/1"), "state_dir")

        assert check.status is Status.FAIL
        assert check.advice.endswith(
            " (user id 12345; if root runs phi4d, as root: sudo -u root phi4d doctor)"
        )

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: False)

        check = folders.writable("outbox a", tmp_path / "x", "outbox")

        assert (check.status, f"cannot make it in {tmp_path}" in check.found) == (Status.FAIL, True)

    @pytest.mark.parametrize("below", ["", "below"])
    def test_a_file_in_the_way(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "file").touch()

        check = folders.writable("outbox a", tmp_path / "file" / below, "outbox")

        assert check.found == f"{tmp_path / 'file'} is not a folder"
        assert check.advice == "move it away, or name a folder in outbox"

    def test_a_link_to_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")

        check = folders.writable("outbox a", tmp_path / "link", "outbox")

        assert check.status is Status.FAIL

    def test_beside_an_inbox_that_is_missing_is_the_inbox_s_line(self, tmp_path: Path) -> None:
        assert list(folders.outboxes([box(tmp_path / "gone")])) == []
        (check,) = folders.outboxes([box(tmp_path)])
        assert check.status is Status.OK


class TestWatches:
    def limits(self, folder: Path, watches: int, instances: int) -> Path:
        (folder / "max_user_watches").write_text(f"{watches}\n")
        (folder / "max_user_instances").write_text(f"{instances}\n")
        return folder

    def test_room_enough(self, tmp_path: Path) -> None:
        check = folders.watches([Tree(40), Tree(2)], self.limits(tmp_path, 8192, 128))

        assert check.status is Status.OK
        assert check.found == "42 folders to watch; 8192 watches and 128 instances allowed"

    @pytest.mark.parametrize(
        ("trees", "watches", "instances", "advice"),
        [
            ([Tree(5000)], 8192, 128, "sysctl -w fs.inotify.max_user_watches=524288"),
            ([Tree(400_000)], 524_288, 128, "sysctl -w fs.inotify.max_user_watches=1600000"),
            ([Tree(1)], 8192, 4, "sysctl -w fs.inotify.max_user_instances=16"),
        ],
    )
    def test_limits_that_are_low_for_so_many_folders(
        self, tmp_path: Path, trees, watches, instances, advice
    ) -> None:
        check = folders.watches(trees, self.limits(tmp_path, watches, instances))

        assert (check.status, check.advice) == (Status.WARN, advice)

    def test_a_kernel_without_them(self, tmp_path: Path) -> None:
        assert folders.watches([Tree(1)], tmp_path / "none").status is Status.WARN


class TestDisks:
    def config(self, tmp_path: Path) -> Config:
        return Config(
            inbox=[box(tmp_path / "in", tmp_path / "out")],
            state_dir=tmp_path / "state",
            cache_dir=tmp_path,
        )

    @pytest.mark.parametrize(
        ("free", "inodes", "status"),
        [
            (20 * 10**9, 10**6, Status.OK),
            (5 * 10**8, 10**6, Status.WARN),
            (10**6, 10**6, Status.FAIL),
            (20 * 10**9, 500, Status.WARN),
            (20 * 10**9, 0, Status.FAIL),
        ],
    )
    def test_by_room_and_inodes(self, tmp_path: Path, free: int, inodes: int, status) -> None:
        facts = SimpleNamespace(
            f_bavail=free // 4096, f_frsize=4096, f_files=10**6, f_favail=inodes
        )

        (check,) = folders.disks(self.config(tmp_path), lambda path: facts)

        assert check.status is status
        assert "outbox in, state_dir, cache_dir" in check.found
        assert bool(check.advice) is (status is not Status.OK)

    def test_a_file_system_without_a_number_of_inodes(self, tmp_path: Path) -> None:
        facts = SimpleNamespace(f_bavail=10**9, f_frsize=4096, f_files=0, f_favail=0)

        (check,) = folders.disks(self.config(tmp_path), lambda path: facts)

        assert check.status is Status.OK

    def test_the_disk_that_is_there(self, tmp_path: Path) -> None:
        (check,) = folders.disks(self.config(tmp_path))

        assert f"free at {tmp_path}" in check.found
