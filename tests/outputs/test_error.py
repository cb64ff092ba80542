"""The error record: what it says, and that a success takes it away."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import phi4d
from phi4d import outputs
from phi4d.errors import EnvironmentFault, FileError
from phi4d.job import Fingerprint, Job, Kind, Result
from phi4d.outputs import atomic, error

JOB = Job(
    7,
    "in",
    b"sub/bro\xffken.wav",
    Kind.AUDIO,
    Fingerprint(1, 2_000, 1_700_000_000_000_000_000),
    attempts=2,
    crashes=1,
)
RESULT = Result(Kind.AUDIO, "hello", "Transcribe.", "fake", "cpu")
RECORD = b"sub/bro\xffken.wav.error.json"


def write_error(outbox: bytes, job: Job = JOB) -> bytes:
    return outputs.write_error(
        job,
        outbox,
        fault="file",
        phase="decode",
        message="no sound in it",
        began=1_700_000_100.0,
        now=1_700_000_200.0,
    )


def test_it_tells_what_happened_and_what_to_do(tmp_path: Path) -> None:
    path = write_error(os.fsencode(tmp_path))
    assert path == os.path.join(os.fsencode(tmp_path), RECORD)
    assert json.loads(Path(os.fsdecode(path)).read_bytes()) == {
        "source": r"sub/bro\xffken.wav",
        "inbox": "in",
        "kind": "audio",
        "fault": "file",
        "phase": "decode",
        "message": "no sound in it",
        "advice": error.ADVICE,
        "attempts": 2,
        "crashes": 1,
        "first_tried": "2023-11-14T22:15:00+00:00",
        "failed": "2023-11-14T22:16:40+00:00",
        "source_bytes": 2000,
        "source_modified": "2023-11-14T22:13:20+00:00",
        "source_mtime_ns": 1_700_000_000_000_000_000,
        "phi4d": phi4d.__version__,
    }
    assert "phi4d retry" in error.ADVICE


def test_a_success_takes_it_away(tmp_path: Path) -> None:
    write_error(os.fsencode(tmp_path))
    outputs.write(JOB, RESULT, os.fsencode(tmp_path))
    assert sorted(os.listdir(os.fsencode(tmp_path / "sub"))) == [
        b"bro\xffken.wav.json",
        b"bro\xffken.wav.txt",
    ]


def test_a_success_leaves_those_of_others(tmp_path: Path) -> None:
    outbox = os.fsencode(tmp_path)
    for path in (b"a.wav.error", b"b.wav", b"sub/a.wav"):
        write_error(outbox, replace(JOB, path=path))
        outputs.write(replace(JOB, path=path + b".error"), RESULT, outbox)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    outputs.write(replace(JOB, path=b"a.wav"), RESULT, outbox)
    assert before < set(tmp_path.rglob("*"))


def test_a_folder_of_its_name_stays(tmp_path: Path) -> None:
    (tmp_path / "a.wav.error.json").mkdir()
    outputs.write(replace(JOB, path=b"a.wav"), RESULT, os.fsencode(tmp_path))
    assert (tmp_path / "a.wav.error.json").is_dir()


def test_an_outbox_that_cannot_be_written_is_the_surroundings_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="mount or make the outbox"):
        write_error(os.fsencode(tmp_path / "none"))


def test_something_in_its_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "sub").touch()
    with pytest.raises(FileError, match="move it away"):
        write_error(os.fsencode(tmp_path))


def test_the_removal_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_error(os.fsencode(tmp_path))
    order: list[str] = []
    real_unlink, real_fsync = os.unlink, os.fsync
    monkeypatch.setattr(
        os, "unlink", lambda *a, **k: (order.append("unlink"), real_unlink(*a, **k))
    )
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), real_fsync(fd)))
    folder, name = os.path.split(os.path.join(os.fsencode(tmp_path), RECORD))
    assert atomic.remove(folder, name)
    assert order == ["unlink", "fsync"]
    assert not atomic.remove(folder, name)
    assert order == ["unlink", "fsync", "unlink"]
