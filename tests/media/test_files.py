"""A stranger's file: whose fault it is that it cannot be opened or read, and how that is said."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from phi4d.errors import FileChanged, FileError, Phi4dError, SourceFault
from phi4d.job import Fingerprint
from phi4d.media.files import open_descriptor, open_fault, opened

MB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.bin"
    path.write_bytes(b"content")
    return path


def open_once(path: Path, expected: Fingerprint | None = None, limit: int = MB) -> bytes:
    with opened(os.fsencode(path), expected, limit) as file:
        return file.read()


def test_a_regular_file_is_opened(file: Path) -> None:
    assert open_once(file, Fingerprint.of(file.stat())) == b"content"


def test_an_empty_file_is_a_file_error(file: Path) -> None:
    file.write_bytes(b"")
    with pytest.raises(FileError, match=r"is empty \(0 bytes\): copy it again"):
        open_once(file)


def test_a_file_that_is_too_large_is_a_file_error(file: Path) -> None:
    with file.open("r+b") as sparse:
        sparse.truncate(3 * MB)
    with pytest.raises(
        FileError, match=r"has 3\.2 MB; at most 1 MB are read: .* raise max_file_mb"
    ):
        open_once(file)


def test_a_file_that_is_gone_is_a_change(tmp_path: Path) -> None:
    with pytest.raises(FileChanged, match="is gone"):
        open_once(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(FileChanged, match="is gone"):
        open_once(tmp_path / "file" / "below")


def test_a_link_is_not_followed(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    with pytest.raises(FileChanged, match="symbolic link"):
        open_once(link)


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileError, match="not a regular file"):
        open_once(tmp_path / "fifo")


@pytest.mark.parametrize("where", ["folder", "socket", "device", "name"])
def test_what_is_no_file_is_a_file_error(tmp_path: Path, where: str) -> None:
    path = tmp_path / "x"
    if where == "folder":
        path.mkdir()
    elif where == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    elif where == "device":
        path = Path("/dev/null")
    else:
        path = tmp_path / ("x" * 300)
    with pytest.raises(FileError) as caught:
        open_once(path)
    assert type(caught.value) is FileError


def test_another_version_than_the_one_queued_is_a_change(file: Path) -> None:
    queued = Fingerprint.of(file.stat())
    file.write_bytes(b"something else")
    with pytest.raises(FileChanged, match="after it was queued"):
        open_once(file, queued)


@pytest.mark.parametrize("fails", [False, True])
def test_a_change_while_it_is_read_is_found_also_when_decoding_failed(
    file: Path, fails: bool
) -> None:
    def decode() -> None:
        with opened(os.fsencode(file), None, MB), file.open("ab") as more:
            more.write(b"and more")
            more.flush()
            if fails:
                raise FileError("is cut off")

    with pytest.raises(FileChanged, match="while it was read"):
        decode()


@pytest.mark.parametrize(
    "error",
    [
        OSError("odd"),
        IndexError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
        SyntaxError("y"),
    ],
)
def test_whatever_a_codec_raises_is_the_files_fault(file: Path, error: Exception) -> None:
    with (
        pytest.raises(FileError, match=rf"could not be decoded \({type(error).__name__}"),
        opened(os.fsencode(file), None, MB),
    ):
        raise error


@pytest.mark.parametrize("error", [MemoryError(), FileError("x"), KeyboardInterrupt()])
def test_what_has_a_meaning_already_keeps_it(file: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, opened(os.fsencode(file), None, MB):
        raise error
    assert caught.value is error


def test_a_failing_disk_is_not_the_files_fault(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a codec that takes a read error for the end of the file
    def broken(*_: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with (
        pytest.raises(SourceFault, match="input/output error"),
        opened(os.fsencode(file), None, MB),
    ):
        raise FileError("is cut off")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, FileChanged),
        (errno.ENOTDIR, FileChanged),
        (errno.ELOOP, FileChanged),
        (errno.EACCES, SourceFault),
        (errno.EPERM, SourceFault),
        (errno.EISDIR, FileError),
        (errno.ENXIO, FileError),
        (errno.ENAMETOOLONG, FileError),
        (errno.EIO, SourceFault),
        (errno.ESTALE, SourceFault),
        (errno.ENOTCONN, SourceFault),
        (errno.EHOSTDOWN, SourceFault),
        (errno.EMFILE, SourceFault),
        (errno.ENOMEM, SourceFault),
    ],
)
def test_whose_fault_it_is_that_a_file_cannot_be_opened(code: int, kind: type[Phi4dError]) -> None:
    fault = open_fault(OSError(code, os.strerror(code)))
    assert type(fault) is kind
    assert str(fault)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "cannot be read (permission denied): give the daemon's user read access"),
        (errno.EIO, "cannot be opened now (input/output error): look at its disk, mount or server"),
        (errno.EMFILE, "cannot be opened now (too many open files): look what uses this machine"),
        (errno.EAGAIN, "another program keeps it to itself"),
    ],
)
def test_a_file_that_cannot_be_opened_now_says_what_to_do(code: int, words: str) -> None:
    said = str(open_fault(OSError(code, os.strerror(code))))
    assert words in said
    assert said.endswith("it is tried again by itself")


OPENING = """
import os, sys
from phi4d.errors import SourceFault
from phi4d.media.files import opened
try:
    with opened(os.fsencode(sys.argv[1]), None, 1000) as file:
        print(file.read().decode())
except SourceFault as fault:
    print(fault)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights")
@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_file_without_rights_is_not_at_fault(file: Path, place: str) -> None:
    # given a program without root's right to read everything
    rights = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]
    command += [sys.executable, "-c", OPENING, str(file)]

    def said() -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    # when the file, or the folder that it is in, is closed to it
    refused = file if place == "file" else file.parent
    mode = refused.stat().st_mode
    refused.chmod(0)
    try:
        words = said()
    finally:
        refused.chmod(mode)

    # then that is said, and it can be read as soon as it may be
    assert words.startswith("cannot be read (permission denied): give the daemon's user")
    assert said() == "content\n"


def test_a_look_leaves_the_time_of_the_last_access_alone(file: Path) -> None:
    os.utime(file, (1e9, 1e9))
    descriptor = open_descriptor(os.fsencode(file))
    assert os.read(descriptor, 7) == b"content"
    os.close(descriptor)
    assert file.stat().st_atime == 1e9


def test_nothing_stays_open_when_opening_fails(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for path in (tmp_path, tmp_path / "nothing", Path("/dev/null")):
        with pytest.raises(FileError):
            open_once(path)
    assert os.listdir("/proc/self/fd") == before
