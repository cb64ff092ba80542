"""The decode process from within: what it is asked, and what it answers."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mediakit
import numpy as np
import pytest
import soundfile

from phi4d.errors import SourceFault
from phi4d.job import Kind, Piece
from phi4d.media import serving
from phi4d.media.serving import Server
from phi4d.media.wire import Channel, Header, Message, pair, piece_of
from phi4d.prepared.preparation import Preparation

MB = 1 << 20
PIECES = 3
"""that are asked for beforehand, and more than any file here has"""


class Answers:
    def __init__(self) -> None:
        ours, theirs = pair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * MB)
        self.ours, self.theirs = Channel(ours), Channel(theirs)
        self.signs = 0
        self.server = Server(self.theirs, self.sign)

    def sign(self) -> None:
        self.signs += 1

    def messages(
        self, path: Path, kind: str, known: list[str] | None = None, **changed: Any
    ) -> list[Message]:
        request = {
            "path": str(path),
            "kind": kind,
            "fingerprint": None,
            "hash": known is not None,
            "prepare": None,
            "max_pixels": 1_000_000,
            "max_frames": 100,
            "max_duration_s": 100.0,
            "max_file_bytes": 10 * MB,
        }
        for _ in range(PIECES):
            self.ours.send({"is": "next"})
        self.server.serve(request | changed, known or [])
        found: list[Message] = []
        while not found or found[-1][0]["is"] not in ("end", "error"):
            found.append(self.ours.receive(10 * MB))
        return found

    def to(
        self, path: Path, kind: str, known: list[str] | None = None, **changed: Any
    ) -> list[Header]:
        return [header for header, _ in self.messages(path, kind, known, **changed)]


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


def test_a_picture_is_prepared_where_it_is_decoded(answers: Answers, tmp_path: Path) -> None:
    prepare = Preparation(max_crops=4)
    mediakit.picture(1000, 600).save(tmp_path / "a.png")
    (message, _) = answers.messages(tmp_path / "a.png", "image", prepare=prepare.to_json())
    made = piece_of(*message, Kind.IMAGE, prepare).media
    whole, _ = answers.messages(tmp_path / "a.png", "image")
    here = prepare.picture(piece_of(*whole, Kind.IMAGE, None).media)
    assert (made.columns, made.rows) == (here.columns, here.rows) == (2, 1)
    assert np.array_equal(made.picture, here.picture)


def test_sound_is_prepared_where_it_is_decoded(answers: Answers, tmp_path: Path) -> None:
    prepare = Preparation()
    soundfile.write(tmp_path / "a.wav", mediakit.tone(1, 8000), 8000)
    (message, _) = answers.messages(tmp_path / "a.wav", "audio", prepare=prepare.to_json())
    made = piece_of(*message, Kind.AUDIO, prepare)
    whole, _ = answers.messages(tmp_path / "a.wav", "audio")
    here = piece_of(*whole, Kind.AUDIO, None)
    assert (made.start, made.end) == (here.start, here.end) == (0, 1)
    features = prepare.sound(here.media).features
    assert made.media.features.shape == features.shape
    assert np.abs(made.media.features - features).max() < 1e-5


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


def test_it_works_ahead_by_one_piece(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a file of ten pieces
    made: list[int] = []

    def pieces(*_: object) -> Iterator[Piece]:
        for number in range(10):
            made.append(number)
            yield Piece(np.zeros(1, np.float32), number, number + 1)

    monkeypatch.setattr(answers.server, "_pieces", pieces)
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    request = {"path": str(tmp_path / "a.wav"), "fingerprint": None, "hash": False}
    request |= {"max_file_bytes": MB, "prepare": None}
    serving_ = threading.Thread(target=answers.server.serve, args=(request, []))
    # when they are asked for one by one
    serving_.start()
    for number in range(10):
        # then no more are ever there than were asked for, and one
        assert len(made) <= number + 1
        answers.ours.send({"is": "next"})
        assert answers.ours.receive(MB)[0]["start"] == number
    assert answers.ours.receive()[0]["is"] == "end"
    serving_.join()


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
    monkeypatch.setattr(serving, "PROGRESS_S", 0.0)
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
    monkeypatch.setattr(serving, "PROGRESS_S", 0.0)
    (tmp_path / "a.wav").write_bytes(os.urandom(3 * MB))
    *progress, said, _ = answers.to(tmp_path / "a.wav", "audio", known=[])
    assert [header["is"] for header in progress] == ["progress"] * 3
    assert said["digest"] == sha256(tmp_path / "a.wav")


def test_a_file_that_cannot_be_read_while_it_is_hashed_is_not_at_fault(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    reading_refused = os.open(tmp_path / "a", os.O_WRONLY)
    with open(reading_refused, "rb") as file, pytest.raises(SourceFault, match="cannot be read"):
        serving.digest(file, lambda: None)


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
