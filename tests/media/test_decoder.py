"""The decode process from within: whose fault a failure is, and what it says."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mediakit
import numpy as np
import pytest
import soundfile

from phi4d.errors import EnvironmentFault, FileChanged, FileError, Phi4dError
from phi4d.job import Fingerprint
from phi4d.media import decoder
from phi4d.media.decoder import open_fault, opened
from phi4d.media.wire import Channel, Header

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
    with pytest.raises(FileError, match=r"has 3 MB; at most 1 MB are read: .* raise the limit"):
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
        pytest.raises(EnvironmentFault, match="Input/output error"),
        opened(os.fsencode(file), None, MB),
    ):
        raise FileError("is cut off")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, FileChanged),
        (errno.ENOTDIR, FileChanged),
        (errno.ELOOP, FileChanged),
        (errno.EACCES, FileError),
        (errno.EPERM, FileError),
        (errno.EISDIR, FileError),
        (errno.ENXIO, FileError),
        (errno.ENAMETOOLONG, FileError),
        (errno.EIO, EnvironmentFault),
        (errno.ESTALE, EnvironmentFault),
        (errno.ENOTCONN, EnvironmentFault),
        (errno.EHOSTDOWN, EnvironmentFault),
        (errno.EMFILE, EnvironmentFault),
        (errno.ENOMEM, EnvironmentFault),
    ],
)
def test_whose_fault_it_is_that_a_file_cannot_be_opened(code: int, kind: type[Phi4dError]) -> None:
    fault = open_fault(OSError(code, os.strerror(code)))
    assert type(fault) is kind
    assert str(fault)


def test_an_unreadable_file_says_what_to_do() -> None:
    # as root nothing is unreadable, so only the words can be tested
    words = str(open_fault(PermissionError(errno.EACCES, "Permission denied")))
    assert words == (
        "cannot be read (permission denied): "
        "give the daemon's user read access, then touch the file"
    )


# --- requests and answers, in this process ----------------------------------------------------


class Answers:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * MB)
        self.ours, self.theirs = Channel(ours), Channel(theirs)
        self.serve = decoder._server(self.theirs)

    def to(self, path: Path, kind: str, **limits: Any) -> list[Header]:
        request = {
            "path": str(path),
            "kind": kind,
            "fingerprint": None,
            "max_pixels": 1_000_000,
            "max_duration_s": 100.0,
            "max_file_bytes": 10 * MB,
        }
        self.serve(request | limits)
        found = []
        while not found or found[-1]["is"] not in ("end", "error"):
            found.append(self.ours.receive(10 * MB)[0])
        return found


@pytest.fixture
def answers() -> Iterator[Answers]:
    found = Answers()
    yield found
    found.ours.close()
    found.theirs.close()


def test_a_picture_is_one_piece_with_its_size(answers: Answers, tmp_path: Path) -> None:
    mediakit.picture().save(tmp_path / "a.png")
    piece, end = answers.to(tmp_path / "a.png", "image")
    assert piece["is"] == "piece"
    assert piece["shape"] == [64, 96, 3]
    assert end == {"is": "end", "facts": {"width": 96.0, "height": 64.0}}


def test_a_recording_tells_its_rate_first_and_its_duration_last(
    answers: Answers, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "a.wav", mediakit.tone(1, 8000, channels=2), 8000)
    piece, end = answers.to(tmp_path / "a.wav", "audio")
    assert piece["facts"]["rate"] == 8000
    assert piece["facts"]["channels"] == 2
    assert end["facts"]["duration"] == 1.0


def test_silence_has_no_piece_and_no_error(answers: Answers, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    (end,) = answers.to(tmp_path / "a.wav", "audio")
    assert end == {"is": "end", "facts": {"rate": 16_000.0, "channels": 1.0, "duration": 1.0}}


def test_errors_are_answers(answers: Answers, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("text")
    (error,) = answers.to(tmp_path / "a.jpg", "image")
    assert error["class"] == "FileError"
    assert "holds text" in error["text"]
    (error,) = answers.to(tmp_path / "nothing", "image")
    assert error["class"] == "FileChanged"


def test_a_version_that_is_not_wanted_is_a_change(answers: Answers, tmp_path: Path) -> None:
    mediakit.picture().save(tmp_path / "a.png")
    (error,) = answers.to(tmp_path / "a.png", "image", fingerprint=[1, 2, 3])
    assert error["class"] == "FileChanged"


def test_long_silence_is_reported_as_progress(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "PROGRESS_S", 0.0)
    soundfile.write(tmp_path / "a.flac", np.zeros(16_000 * 40), 16_000)
    *progress, end = answers.to(tmp_path / "a.flac", "audio")
    assert {header["is"] for header in progress} == {"progress"}
    assert end["facts"]["duration"] == 40
