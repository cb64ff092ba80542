"""The decode process from within: what it is asked, and what it answers."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mediakit
import numpy as np
import pytest
import soundfile

from phi4d.errors import SourceFault
from phi4d.media import decoder
from phi4d.media.wire import Channel, Header

MB = 1 << 20


class Answers:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * MB)
        self.ours, self.theirs = Channel(ours), Channel(theirs)
        self.signs = 0
        self.serve = decoder._server(self.theirs, self.sign)

    def sign(self) -> None:
        self.signs += 1

    def to(self, path: Path, kind: str, **limits: Any) -> list[Header]:
        request = {
            "path": str(path),
            "kind": kind,
            "fingerprint": None,
            "known": None,
            "max_pixels": 1_000_000,
            "max_frames": 100,
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


def test_every_answer_is_a_sign_of_life(answers: Answers, tmp_path: Path) -> None:
    mediakit.picture().save(tmp_path / "a.png")
    answers.to(tmp_path / "a.png", "image")
    assert answers.signs == 3  # begun, piece, end


# --- digests ------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_digest_that_is_asked_for_comes_first(answers: Answers, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    mediakit.picture().save(path)

    said, piece, end = answers.to(path, "image", known=["0" * 64])

    assert said == {"is": "digest", "digest": sha256(path), "known": False}
    assert (piece["is"], end["is"]) == ("piece", "end")


def test_a_file_that_is_known_is_not_decoded(answers: Answers, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture, so decoding it would fail")
    digest = sha256(tmp_path / "a.png")
    assert answers.to(tmp_path / "a.png", "image", known=["0" * 64, digest]) == [
        {"is": "digest", "digest": digest, "known": True},
        {"is": "end", "facts": {}},
    ]


def test_a_long_file_is_hashed_with_signs_of_life(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "PROGRESS_S", 0.0)
    (tmp_path / "a.wav").write_bytes(os.urandom(3 * MB))
    *progress, said, _ = answers.to(tmp_path / "a.wav", "audio", known=[])
    assert [header["is"] for header in progress] == ["progress"] * 3
    assert said["digest"] == sha256(tmp_path / "a.wav")


def test_a_file_that_cannot_be_read_while_it_is_hashed_is_not_at_fault(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    reading_refused = os.open(tmp_path / "a", os.O_WRONLY)
    with open(reading_refused, "rb") as file, pytest.raises(SourceFault, match="cannot be read"):
        decoder.digest(file, lambda: None)


# --- the limit on CPU time ----------------------------------------------------------------------

LIMITED = """
import resource, sys, time
from phi4d.media.decoder import allow_cpu
allow_cpu(float(sys.argv[1]))
print(*resource.getrlimit(resource.RLIMIT_CPU))
while time.process_time() < 1.2: pass
allow_cpu(float(sys.argv[1]))
print(*resource.getrlimit(resource.RLIMIT_CPU))
"""


def limits(*command: str) -> list[list[int]]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


def test_the_limit_on_cpu_time_moves_on_with_what_was_used() -> None:
    (first, hard), (second, still) = limits(sys.executable, "-c", LIMITED, "60")
    assert 62 <= first <= 63  # 60, the time of starting rounded up, and one
    assert first < second <= first + 2
    assert hard == still == -1  # can be raised again


def test_the_limit_on_cpu_time_respects_one_from_outside() -> None:
    command = ("prlimit", "--cpu=50:50", sys.executable, "-c", LIMITED, "60")
    assert limits(*command) == [[50, 50]] * 2
