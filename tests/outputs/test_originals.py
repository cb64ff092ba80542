"""Originals are moved or deleted whole, once, never in place of another file."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from phi4d.errors import EnvironmentFault, FileChanged, Stopped
from phi4d.job import Fingerprint
from phi4d.outputs import atomic, originals

MTIME_NS = 1_600_000_000_123_456_789
NAME = "a\xe9 -\n\udcff.wav"  # not UTF-8, and with a newline
DATA = bytes(range(256)) * 9000  # more than two chunks


class Died(BaseException):
    """The process was killed."""


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox" / "sub").mkdir(parents=True)
    return tmp_path / "inbox"


@pytest.fixture
def done(tmp_path: Path) -> Path:
    (tmp_path / "done").mkdir()
    return tmp_path / "done"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder of another file system."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if os.stat(folder).st_dev == tmp_path.stat().st_dev:
            pytest.skip("the tests run on the only tmpfs that is there")
        yield Path(folder)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a tmpfs with options."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"mounted-{len(mounted)}"
        folder.mkdir(exist_ok=True)
        made = subprocess.run(
            ["/bin/mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],
            capture_output=True,
            check=False,
        )
        if made.returncode:
            pytest.skip("mounting wants root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["/bin/umount", folder], check=True)


def put(path: Path, data: bytes = DATA, mtime_ns: int = MTIME_NS) -> Fingerprint:
    path.write_bytes(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return Fingerprint.of(path.stat())


def move(source: Path, fingerprint: Fingerprint, root: Path, relative: str = "", **o: Any) -> Path:
    below = os.fsencode(relative or "sub/" + source.name)
    moved = originals.move(os.fsencode(source), fingerprint, os.fsencode(root), below, **o)
    return Path(os.fsdecode(moved))


def delete(source: Path, fingerprint: Fingerprint) -> None:
    originals.delete(os.fsencode(source), fingerprint)


def files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def refuse(number: int) -> Callable[..., None]:
    def call(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def without_rename(patch: pytest.MonkeyPatch) -> None:
    """A file system such as NFS, which knows no renaming that does not replace."""
    patch.setattr(originals, "_rename_new", _only_across)


def without_links(patch: pytest.MonkeyPatch) -> None:
    """A file system such as some FUSE ones, which knows no links either."""
    without_rename(patch)
    patch.setattr(os, "link", refuse(errno.EPERM))


def _only_across(old: bytes, new: bytes) -> None:
    """The kernel asks for one file system first, then that for what it can do."""
    across = os.lstat(old).st_dev != os.stat(os.path.dirname(new)).st_dev
    raise OSError(errno.EXDEV if across else errno.EINVAL, "refused")


def with_all(patch: pytest.MonkeyPatch) -> None:
    pass


ways = pytest.mark.parametrize("way", [with_all, without_rename, without_links])
places = pytest.mark.parametrize("place", ["done", "elsewhere"])


@pytest.fixture
def root(place: str, request: pytest.FixtureRequest) -> Path:
    folder = request.getfixturevalue(place)
    assert isinstance(folder, Path)
    return folder


class TestMove:
    @ways
    @places
    def test_it_is_moved_with_time_and_mode_and_subfolders(
        self, inbox: Path, root: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[..., None]
    ) -> None:
        way(monkeypatch)
        source = inbox / "sub" / NAME
        fingerprint = put(source)
        source.chmod(0o640)
        moved = move(source, fingerprint, root)
        assert moved == root / "sub" / NAME
        assert moved.read_bytes() == DATA
        assert moved.stat().st_mtime_ns == MTIME_NS
        assert stat.S_IMODE(moved.stat().st_mode) == 0o640
        assert files(inbox, root) == [moved]

    @ways
    @places
    def test_nothing_is_overwritten(
        self, inbox: Path, root: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[..., None]
    ) -> None:
        way(monkeypatch)
        # files of one size and one time, as archives unpack them
        versions = [b"first", b"other", b"third"]
        for n, data in enumerate(versions):
            moved = move(inbox / "a.wav", put(inbox / "a.wav", data), root, "a.wav")
            assert moved.name == (f"a-{n}.wav" if n else "a.wav")
        assert [path.read_bytes() for path in files(root)] == [b"other", b"third", b"first"]
        assert files(inbox) == []

    @places
    def test_a_name_of_any_length_is_numbered(self, inbox: Path, root: Path) -> None:
        name = "ä" * 125 + ".wav"
        (root / name).touch()
        moved = move(inbox / name, put(inbox / name), root, name)
        assert moved.name == "ä" * 124 + "-1.wav"

    @places
    def test_what_is_no_file_is_not_replaced(self, inbox: Path, root: Path) -> None:
        (root / "a.wav").symlink_to("nowhere")
        (root / "a-1.wav").mkdir()
        os.mkfifo(root / "a-2.wav")
        moved = move(inbox / "a.wav", put(inbox / "a.wav"), root, "a.wav")
        assert moved == root / "a-3.wav"
        assert not (root / "nowhere").exists()

    def test_a_copy_is_nobodys_program(self, inbox: Path, elsewhere: Path) -> None:
        fingerprint = put(inbox / "a.wav")
        (inbox / "a.wav").chmod(0o4755)
        moved = move(inbox / "a.wav", fingerprint, elsewhere, "a.wav")
        assert stat.S_IMODE(moved.stat().st_mode) == 0o755

    def test_a_copy_keeps_attributes(self, inbox: Path, elsewhere: Path) -> None:
        fingerprint = put(inbox / "a.wav")
        try:
            for folder in (inbox / "a.wav", elsewhere):
                os.setxattr(folder, "user.tag", b"holiday")
        except OSError:
            pytest.skip("a file system here keeps no attributes (tmpfs does since Linux 6.6)")
        moved = move(inbox / "a.wav", fingerprint, elsewhere, "a.wav")
        assert os.getxattr(moved, "user.tag") == b"holiday"

    @places
    def test_everything_is_synced(
        self, inbox: Path, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[Path] = []
        real = os.fsync

        def fsync(descriptor: int) -> None:
            real(descriptor)
            synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

        monkeypatch.setattr(os, "fsync", fsync)
        move(inbox / "sub" / "a.wav", put(inbox / "sub" / "a.wav"), root)
        folders = [path for path in synced if path.is_dir()]
        assert folders == [root, root / "sub", inbox / "sub"]
        assert len(synced) - len(folders) == (0 if root.name == "done" else 1)

    @places
    def test_another_version_stays(self, inbox: Path, root: Path) -> None:
        old = put(inbox / "a.wav")
        put(inbox / "a.wav", b"newer")
        with pytest.raises(FileChanged):
            move(inbox / "a.wav", old, root, "a.wav")
        assert files(inbox, root) == [inbox / "a.wav"]

    @places
    def test_one_that_is_gone_is_said_to_be(self, inbox: Path, root: Path) -> None:
        fingerprint = put(inbox / "a.wav")
        (inbox / "a.wav").unlink()
        put(root / "a.wav", b"of another size")
        with pytest.raises(FileChanged, match="is gone"):
            move(inbox / "a.wav", fingerprint, root, "a.wav")

    @ways
    @places
    def test_again_it_says_where_the_file_is(
        self, inbox: Path, root: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[..., None]
    ) -> None:
        way(monkeypatch)
        put(root / "a.wav", b"of another size")
        fingerprint = put(inbox / "a.wav")
        for _ in range(2):
            assert move(inbox / "a.wav", fingerprint, root, "a.wav") == root / "a-1.wav"

    def test_of_files_that_are_alike_it_names_the_one(self, inbox: Path, done: Path) -> None:
        put(done / "a.wav", b"x" * len(DATA))
        fingerprint = put(inbox / "a.wav")
        for _ in range(2):
            assert move(inbox / "a.wav", fingerprint, done, "a.wav") == done / "a-1.wav"

    def test_a_time_that_was_rounded_is_known_again(self, inbox: Path, elsewhere: Path) -> None:
        fingerprint = put(inbox / "a.wav")
        (inbox / "a.wav").unlink()
        put(elsewhere / "a.wav", mtime_ns=MTIME_NS // 2_000_000_000 * 2_000_000_000)  # as on FAT
        assert move(inbox / "a.wav", fingerprint, elsewhere, "a.wav") == elsewhere / "a.wav"

    def test_a_folder_that_leads_back_is_refused(self, inbox: Path, done: Path) -> None:
        done.rmdir()
        done.symlink_to(inbox)
        with pytest.raises(EnvironmentFault, match="leads back to where they are"):
            move(inbox / "a.wav", put(inbox / "a.wav"), done, "a.wav")
        assert files(inbox) == [inbox / "a.wav"]

    def test_copying_can_be_given_up(self, inbox: Path, elsewhere: Path) -> None:
        def stop() -> None:
            raise Stopped("the daemon is stopping")

        with pytest.raises(Stopped):
            move(inbox / "a.wav", put(inbox / "a.wav"), elsewhere, "a.wav", on_wait=stop)
        assert files(inbox, elsewhere) == [inbox / "a.wav"]


class TestDelete:
    def test_it_is_gone_durably(self, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[str] = []
        monkeypatch.setattr(
            os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        )
        delete(inbox / NAME, put(inbox / NAME))
        assert files(inbox) == []
        assert synced == [str(inbox)]

    def test_one_that_is_gone_is_fine(self, inbox: Path) -> None:
        fingerprint = put(inbox / "sub" / "a.wav")
        for _ in range(2):
            delete(inbox / "sub" / "a.wav", fingerprint)
        (inbox / "sub").rmdir()
        delete(inbox / "sub" / "a.wav", fingerprint)
        (inbox / "sub").touch()
        delete(inbox / "sub" / "a.wav", fingerprint)

    def test_another_version_stays(self, inbox: Path) -> None:
        old = put(inbox / "a.wav")
        put(inbox / "a.wav", b"newer")
        with pytest.raises(FileChanged):
            delete(inbox / "a.wav", old)
        assert files(inbox) == [inbox / "a.wav"]


class TestReplacedJustNow:
    """The file is replaced after the look at it, as late as can be."""

    @ways
    def test_a_move_brings_the_newer_version_back(
        self, inbox: Path, done: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[..., None]
    ) -> None:
        way(monkeypatch)
        source = inbox / "a.wav"
        fingerprint = put(source)
        before_first(monkeypatch, originals, "_take", lambda: replace(source, b"newer"))
        with pytest.raises(FileChanged):
            move(source, fingerprint, done, "a.wav")
        assert files(inbox, done) == [source]
        assert source.read_bytes() == b"newer"

    def test_a_copy_is_not_kept(
        self, inbox: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = inbox / "a.wav"
        fingerprint = put(source)
        before_first(monkeypatch, os, "utime", lambda: replace(source, b"newer"))
        with pytest.raises(FileChanged):
            move(source, fingerprint, elsewhere, "a.wav")
        assert files(inbox, elsewhere) == [source]

    def test_a_copy_that_is_there_stays_beside_a_newer_version(
        self, inbox: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = inbox / "a.wav"
        fingerprint = put(source)
        before_first(monkeypatch, originals, "delete", lambda: replace(source, b"newer"))
        moved = move(source, fingerprint, elsewhere, "a.wav")
        assert moved.read_bytes() == DATA
        assert source.read_bytes() == b"newer"

    @ways
    def test_a_deletion_brings_the_newer_version_back(
        self, inbox: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[..., None]
    ) -> None:
        way(monkeypatch)
        source = inbox / "a.wav"
        fingerprint = put(source)
        before_first(monkeypatch, os, "rename", lambda: replace(source, b"newer"))
        with pytest.raises(FileChanged):
            delete(source, fingerprint)
        assert files(inbox) == [source]
        assert source.read_bytes() == b"newer"

    def test_and_replaced_again_both_are_kept(
        self, inbox: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = inbox / "a.wav"
        fingerprint = put(source)
        before_first(monkeypatch, os, "rename", lambda: replace(source, b"newer"))
        before_first(monkeypatch, originals, "_take", lambda: replace(source, b"newest"))
        with pytest.raises(FileChanged):
            delete(source, fingerprint)
        assert source.read_bytes() == b"newest"
        assert (inbox / "a-1.wav").read_bytes() == b"newer"

    def test_gone_instead_is_fine(self, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = inbox / "a.wav"
        fingerprint = put(source)
        before_first(monkeypatch, os, "rename", source.unlink)
        delete(source, fingerprint)
        assert files(inbox) == []


def replace(path: Path, data: bytes) -> None:
    """As most programs do it: written aside, renamed in."""
    aside = path.with_name(".aside")
    aside.write_bytes(data)
    subprocess.run(["/bin/mv", aside, path], check=True)  # by a process that no test holds back


def before_first(
    patch: pytest.MonkeyPatch, where: object, name: str, action: Callable[[], object]
) -> None:
    """Something happens just before a function is called for the first time."""
    real = getattr(where, name)
    pending = [action]

    def call(*args: Any, **options: Any) -> Any:
        if pending:
            pending.pop()()
        return real(*args, **options)

    patch.setattr(where, name, call)


STEPS = ["rename", "link", "unlink", "mkdir", "open", "write", "fsync", "utime", "lstat"]


class Death:
    """Kills what runs before its n-th step: that step and all that follow raise."""

    def __init__(self, patch: pytest.MonkeyPatch, nth: int) -> None:
        self.left = nth
        for name in STEPS:
            patch.setattr(os, name, self._deadly(getattr(os, name)))
        patch.setattr(originals, "_rename_new", self._deadly(originals._rename_new))

    def _deadly(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Died
            return real(*args, **options)

        return call


class TestKilled:
    """Killed at every step, and called again."""

    @ways
    @places
    def test_a_move_is_finished(
        self, inbox: Path, root: Path, way: Callable[..., None], place: str
    ) -> None:
        deaths = 0
        while True:
            source = inbox / "sub" / "a.wav"
            fingerprint = put(source)
            with pytest.MonkeyPatch.context() as patch:
                way(patch)
                death = Death(patch, deaths)
                with suppress(Died):
                    move(source, fingerprint, root)
            survived = death.left >= 0
            # nothing is ever lost, and what can be seen of the copy is whole
            seen = [
                p for p in files(inbox, root) if not p.name.startswith(".") and p.stat().st_size
            ]
            assert seen
            assert {p.read_bytes() for p in seen} == {DATA}
            with pytest.MonkeyPatch.context() as patch:
                way(patch)
                moved = [move(source, fingerprint, root) for _ in range(2)]
            assert moved[0] == moved[1]
            assert [p for p in files(inbox, root) if p.stat().st_size] == [moved[0]]
            empty = [p for p in files(inbox, root) if not p.stat().st_size]
            # without links and such renaming, a name that was kept free may be left
            assert len(empty) <= int(way is without_links)
            assert moved[0].stat().st_mtime_ns == MTIME_NS
            for path in files(root):
                path.unlink()
            (root / "sub").rmdir()
            if survived:
                break
            deaths += 1
        assert deaths > 8

    def test_a_deletion_is_finished(self, inbox: Path) -> None:
        deaths = 0
        while True:
            source = inbox / "a.wav"
            fingerprint = put(source)
            with pytest.MonkeyPatch.context() as patch:
                death = Death(patch, deaths)
                with suppress(Died):
                    delete(source, fingerprint)
            delete(source, fingerprint)
            assert files(inbox) == []
            if death.left >= 0:
                break
            deaths += 1
        assert deaths > 4

    @ways
    def test_a_newer_version_survives_a_deletion(
        self, inbox: Path, way: Callable[..., None]
    ) -> None:
        deaths = 0
        source = inbox / "a.wav"
        while True:
            fingerprint = put(source)
            with pytest.MonkeyPatch.context() as patch:
                way(patch)
                before_first(patch, os, "rename", lambda: replace(source, b"newer"))
                death = Death(patch, deaths)
                with suppress(Died, FileChanged):
                    delete(source, fingerprint)
            if source.exists() and Fingerprint.of(source.stat()) == fingerprint:
                replace(source, b"newer")  # it was killed before
            with pytest.raises(FileChanged):
                delete(source, fingerprint)
            seen = [path for path in files(inbox) if path.stat().st_size]
            assert [path.read_bytes() for path in seen] == [b"newer"]
            for path in files(inbox):
                path.unlink()
            if death.left >= 0:
                break
            deaths += 1
        assert deaths > 4


class TestSurroundings:
    def test_a_missing_root_is_not_made(self, inbox: Path, tmp_path: Path) -> None:
        fingerprint = put(inbox / "a.wav")
        for _ in range(2):
            with pytest.raises(EnvironmentFault, match=r"none: .* mount or make the folder"):
                move(inbox / "a.wav", fingerprint, tmp_path / "none", "sub/a.wav")
            (inbox / "a.wav").unlink(missing_ok=True)  # then it may be there, who knows
        assert not (tmp_path / "none").exists()

    def test_a_file_in_the_way_is_named(self, inbox: Path, done: Path) -> None:
        (done / "sub").touch()
        with pytest.raises(EnvironmentFault, match=r"done/sub: .* move it away"):
            move(inbox / "sub" / "a.wav", put(inbox / "sub" / "a.wav"), done)

    def test_a_full_disk_leaves_nothing_there(
        self, inbox: Path, mount: Callable[..., Path]
    ) -> None:
        small = mount("size=1m")
        with pytest.raises(EnvironmentFault, match=r"mounted-0/sub: .* free some space"):
            move(inbox / "sub" / "a.wav", put(inbox / "sub" / "a.wav"), small)
        assert files(inbox, small) == [inbox / "sub" / "a.wav"]

    def test_no_inodes_are_said(self, inbox: Path, mount: Callable[..., Path]) -> None:
        small = mount("nr_inodes=2")
        (small / "a").touch()
        with pytest.raises(EnvironmentFault, match=r"mounted-0: .* free some space or inodes"):
            move(inbox / "sub" / "a.wav", put(inbox / "sub" / "a.wav"), small)

    def test_a_root_that_is_read_only_is_said(
        self, inbox: Path, mount: Callable[..., Path]
    ) -> None:
        wanted = r"mounted-0: .* moved here: .*phi4d unit --write"
        with pytest.raises(EnvironmentFault, match=wanted):
            move(inbox / "sub" / "a.wav", put(inbox / "sub" / "a.wav"), mount("ro"))

    def test_a_source_that_is_read_only_is_said_before_it_is_copied(
        self, elsewhere: Path, mount: Callable[..., Path]
    ) -> None:
        inbox = mount("size=10m")
        fingerprint = put(inbox / "a.wav")
        subprocess.run(["/bin/mount", "-o", "remount,ro", inbox], check=True)
        wanted = r"mounted-0: originals cannot be taken from here: .*phi4d unit --write"
        with pytest.raises(EnvironmentFault, match=wanted):
            move(inbox / "a.wav", fingerprint, elsewhere, "a.wav")
        with pytest.raises(EnvironmentFault, match=wanted):
            delete(inbox / "a.wav", fingerprint)
        assert files(elsewhere) == []

    @pytest.mark.parametrize("step", ["fsync", "rename"])
    def test_a_failing_disk_is_said_and_the_next_call_finishes(
        self, inbox: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        fingerprint = put(inbox / "a.wav")
        with monkeypatch.context() as patch:
            patch.setattr(os, step, refuse(errno.EIO))
            with pytest.raises(EnvironmentFault, match="Input/output error; look at the disk"):
                move(inbox / "a.wav", fingerprint, elsewhere, "a.wav")
        assert move(inbox / "a.wav", fingerprint, elsewhere, "a.wav") == elsewhere / "a.wav"
        assert files(inbox, elsewhere) == [elsewhere / "a.wav"]

    def test_a_source_that_cannot_be_read_is_named(
        self, inbox: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.open

        def refused(path: bytes, *args: Any, **options: Any) -> int:
            if path == os.fsencode(inbox / "a.wav"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return real(path, *args, **options)

        fingerprint = put(inbox / "a.wav")
        monkeypatch.setattr(os, "open", refused)
        with pytest.raises(EnvironmentFault, match=r"a\.wav: the original cannot be read"):
            move(inbox / "a.wav", fingerprint, elsewhere, "a.wav")


def test_its_temporary_names_are_hidden_and_no_sweep_takes_them(
    inbox: Path, elsewhere: Path
) -> None:
    seen = set()
    deaths = 0
    while True:
        fingerprint = put(inbox / "a.wav")
        with pytest.MonkeyPatch.context() as patch:
            death = Death(patch, deaths)
            with suppress(Died):
                move(inbox / "a.wav", fingerprint, elsewhere, "a.wav")
        seen |= {path.name.rpartition(".")[2] for path in files(inbox, elsewhere)}
        for folder in (inbox, elsewhere):
            assert atomic.sweep(os.fsencode(folder)) == 0
        for path in files(inbox, elsewhere):
            assert path.name == "a.wav" or path.name.startswith(".phi4d-")
            path.unlink()
        if death.left >= 0:
            break
        deaths += 1
    assert seen == {"wav", "tmp", "original"}
