"""The atomic write: whole and durable, or not there."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest

from phi4d.errors import EnvironmentFault, FileError
from phi4d.outputs import atomic


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is renamed, made and synced, in order."""
    order: list[str] = []
    real_fsync, real_rename, real_mkdir = os.fsync, os.rename, os.mkdir

    def fsync(descriptor: int) -> None:
        what = "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"
        order.append(f"fsync {what}")
        real_fsync(descriptor)

    def rename(source: bytes, target: bytes, **options: int) -> None:
        order.append(f"rename {target.decode()}")
        real_rename(source, target, **options)

    def mkdir(path: bytes, *args: int) -> None:
        order.append(f"mkdir {os.fsdecode(os.path.basename(path))}")
        real_mkdir(path, *args)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "mkdir", mkdir)
    return order


def names(folder: bytes) -> list[bytes]:
    return sorted(os.listdir(folder))


class TestWrite:
    def test_it_writes_and_overwrites(self, folder: bytes) -> None:
        assert atomic.write(folder, b"a.txt", b"one") == folder + b"/a.txt"
        atomic.write(folder, b"a.txt", b"two")
        assert Path(os.fsdecode(folder), "a.txt").read_bytes() == b"two"
        assert names(folder) == [b"a.txt"]

    def test_file_and_folder_are_synced_before_it_returns(
        self, folder: bytes, calls: list[str]
    ) -> None:
        atomic.write(folder, b"a.txt", b"one")
        assert calls == ["fsync file", "rename a.txt", "fsync folder"]

    @pytest.mark.parametrize("call", ["write", "fsync", "rename"])
    def test_a_failure_anywhere_leaves_the_old_file_and_no_litter(
        self, folder: bytes, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        atomic.write(folder, b"a.txt", b"old")

        def fail(*args: object, **options: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, call, fail)
        with pytest.raises(EnvironmentFault, match="No space left on device; free some space"):
            atomic.write(folder, b"a.txt", b"new")
        assert names(folder) == [b"a.txt"]
        assert Path(os.fsdecode(folder), "a.txt").read_bytes() == b"old"

    def test_a_short_write_is_gone_on_with(
        self, folder: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
        atomic.write(folder, b"a.txt", b"0123456789")
        assert Path(os.fsdecode(folder), "a.txt").read_bytes() == b"0123456789"

    def test_a_missing_folder_is_the_surroundings_fault(self, folder: bytes) -> None:
        with pytest.raises(EnvironmentFault, match="mount or make the outbox"):
            atomic.write(folder + b"/none", b"a.txt", b"x")

    def test_every_file_of_a_folder_meets_the_same_words(self, folder: bytes) -> None:
        said = set()
        for name in (b"a", b"b"):
            with pytest.raises(EnvironmentFault) as caught:
                atomic.write(folder + b"/none", name, b"x")
            said.add(str(caught.value))
        with pytest.raises(EnvironmentFault) as caught:
            atomic.probe(folder + b"/none")
        assert said == {str(caught.value)}

    def test_a_folder_in_the_way_is_named_and_stops_this_file_alone(self, folder: bytes) -> None:
        os.mkdir(folder + b"/a.txt")
        with pytest.raises(FileError, match=r"a\.txt: a folder is where its sidecar should be"):
            atomic.write(folder, b"a.txt", b"x")
        assert names(folder) == [b"a.txt"]

    def test_a_name_that_is_too_long_is_the_files_fault(self, folder: bytes) -> None:
        with pytest.raises(FileError, match="too long"):
            atomic.write(folder, b"x" * 256, b"x")
        assert names(folder) == []

    def test_it_writes_through_no_link(self, folder: bytes) -> None:
        os.symlink(b"elsewhere", folder + b"/a.txt")
        atomic.write(folder, b"a.txt", b"x")
        assert not os.path.islink(folder + b"/a.txt")
        assert names(folder) == [b"a.txt"]


class TestWriteAll:
    FILES = ((b"a.txt", b"text"), (b"a.json", b"record"))

    def test_all_are_synced_before_the_first_is_seen_and_the_folder_once(
        self, folder: bytes, calls: list[str]
    ) -> None:
        paths = atomic.write_all(folder, self.FILES)
        assert paths == [folder + b"/a.txt", folder + b"/a.json"]
        assert calls == [
            "fsync file",
            "fsync file",
            "rename a.txt",
            "rename a.json",
            "fsync folder",
        ]

    @pytest.mark.parametrize("call", ["open", "write", "fsync", "rename", "close"])
    @pytest.mark.parametrize("nth", [1, 2, 3])
    def test_what_is_there_is_whole_and_in_order_whatever_fails(
        self, folder: bytes, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
    ) -> None:
        atomic.write_all(folder, [(name, b"old") for name, _ in self.FILES])
        count = itertools.count(1)
        real = getattr(os, call)

        def fail(*args: object, **options: object) -> object:
            if call == "close":
                real(*args)
            if next(count) == nth:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return None if call == "close" else real(*args, **options)

        monkeypatch.setattr(os, call, fail)
        if (call, nth) in {("write", 3), ("rename", 3)}:
            atomic.write_all(folder, self.FILES)
        else:
            with pytest.raises(EnvironmentFault, match="look at the disk"):
                atomic.write_all(folder, self.FILES)
        assert names(folder) == [b"a.json", b"a.txt"]
        text, record = (Path(os.fsdecode(folder + b"/" + n)).read_bytes() for n, _ in self.FILES)
        assert (text, record) in {(b"old", b"old"), (b"text", b"old"), (b"text", b"record")}

    def test_a_folder_in_the_way_of_the_second_is_named(self, folder: bytes) -> None:
        os.mkdir(folder + b"/a.json")
        with pytest.raises(FileError, match=r"a\.json: a folder is where its sidecar should be"):
            atomic.write_all(folder, self.FILES)
        assert names(folder) == [b"a.json", b"a.txt"]


class TestMakeFolder:
    def test_every_new_name_is_synced(self, folder: bytes, calls: list[str]) -> None:
        atomic.make_folder(folder + b"/a/b", folder)
        assert calls == ["mkdir a", "fsync folder", "mkdir b", "fsync folder"]
        calls.clear()
        atomic.make_folder(folder + b"/a/b", folder)
        assert calls == []

    def test_what_another_process_made_is_synced_once(
        self, folder: bytes, calls: list[str]
    ) -> None:
        Path(os.fsdecode(folder), "a").mkdir()
        calls.clear()
        for _ in range(2):
            atomic.make_folder(folder + b"/a", folder)
        assert calls.count("fsync folder") == 1

    def test_a_folder_that_was_made_anew_is_synced_again(
        self, folder: bytes, calls: list[str]
    ) -> None:
        atomic.make_folder(folder + b"/a/b", folder)
        os.rename(folder + b"/a", folder + b"/c")
        calls.clear()
        atomic.make_folder(folder + b"/a/b", folder)
        assert calls == ["mkdir a", "fsync folder", "mkdir b", "fsync folder"]

    def test_a_failed_sync_is_tried_again_by_the_next_file(
        self, folder: bytes, monkeypatch: pytest.MonkeyPatch, calls: list[str]
    ) -> None:
        def fail(descriptor: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(EnvironmentFault):
                atomic.make_folder(folder + b"/a", folder)
        calls.clear()
        atomic.make_folder(folder + b"/a", folder)
        assert "fsync folder" in calls

    def test_subfolders_are_made(self, folder: bytes) -> None:
        atomic.make_folder(folder + b"/a/b\xff/c", folder)
        atomic.make_folder(folder + b"/a/b\xff/c", folder)
        assert os.path.isdir(folder + b"/a/b\xff/c")

    def test_the_root_is_not_made(self, folder: bytes) -> None:
        with pytest.raises(EnvironmentFault, match="mount or make the outbox"):
            atomic.make_folder(folder + b"/root/a", folder + b"/root")
        assert names(folder) == []

    @pytest.mark.parametrize("below", [b"/a", b"/a/b", b"/a/b/c"])
    def test_a_file_in_the_way_stops_this_file_alone(self, folder: bytes, below: bytes) -> None:
        atomic.write(folder, b"a", b"x")
        with pytest.raises(FileError, match="move it away"):
            atomic.make_folder(folder + below, folder)

    @pytest.mark.parametrize("below", [b"", b"/b", b"/b/c"])
    def test_a_file_in_the_outboxs_place_is_the_surroundings_fault(
        self, folder: bytes, below: bytes
    ) -> None:
        atomic.write(folder, b"a", b"x")
        root = folder + b"/a"

        def write() -> None:
            atomic.make_folder(root + below, root)
            atomic.write(root + below, b"x.txt", b"x")

        with pytest.raises(EnvironmentFault, match="a file is where the outbox should be"):
            write()


class TestProbe:
    def test_it_leaves_nothing(self, folder: bytes) -> None:
        atomic.probe(folder)
        assert names(folder) == []

    def test_it_tells_what_is_wrong(self, folder: bytes) -> None:
        with pytest.raises(EnvironmentFault):
            atomic.probe(folder + b"/none")


def test_a_sweep_takes_our_litter_only(folder: bytes) -> None:
    for name in (b".phi4d-12-3.tmp", b".phi4d-x.tmp", b"a.txt", b"phi4d-1-2.tmp"):
        atomic.write(folder, name, b"x")
    assert atomic.sweep(folder) == 1
    assert names(folder) == [b".phi4d-x.tmp", b"a.txt", b"phi4d-1-2.tmp"]
    assert atomic.sweep(folder + b"/none") == 0


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EDQUOT, "raise the quota"),
        (errno.EROFS, "mount it writable"),
        (errno.EACCES, "write access"),
        (errno.EIO, "look at the disk"),
    ],
)
def test_every_fault_of_the_disk_says_what_to_do(number: int, words: str) -> None:
    fault = atomic.as_fault(OSError(number, os.strerror(number)), b"/out/a\n")
    assert isinstance(fault, EnvironmentFault)
    assert words in str(fault)
    assert str(fault).startswith(r"/out/a\n: cannot be written: ")


def test_a_root_is_made_with_those_above_it_and_each_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[bytes] = []
    monkeypatch.setattr(atomic, "sync_folder", synced.append)
    root = tmp_path / "a/b/c"

    atomic.make_root(os.fsencode(root))
    atomic.make_root(os.fsencode(root))

    assert root.is_dir()
    above = [os.fsencode(path) for path in (tmp_path, tmp_path / "a", tmp_path / "a/b")]
    assert synced == [*above, above[-1]]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        atomic.make_root(os.fsencode(tmp_path / "file"))
