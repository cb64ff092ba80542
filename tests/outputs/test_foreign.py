"""What is not phi4d's is never overwritten."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from phi4d import outputs
from phi4d.errors import FileError
from phi4d.job import Fingerprint, Job, Kind, Result

JOB = Job(7, "in", b"IMG.JPG", Kind.IMAGE, Fingerprint(1, 2_000, 3), attempts=1)
RESULT = Result(kind=Kind.IMAGE, text="a cat", prompt="Describe.", model="fake", device="cpu")


@pytest.mark.parametrize(
    "record",
    ['{"title": "IMG.JPG", "photoTakenTime": {}}', "[1, 2]", "", "no JSON", '{"phi4d": "0.1"}'],
)
def test_a_record_of_somebody_else_stays(tmp_path: Path, record: str):
    (tmp_path / "IMG.JPG.json").write_text(record)

    for attempts in (1, 2):
        with pytest.raises(FileError, match=r"IMG\.JPG\.json is in the way .* not phi4d's"):
            outputs.write(replace(JOB, attempts=attempts), RESULT, os.fsencode(tmp_path))

    assert (tmp_path / "IMG.JPG.json").read_text() == record
    assert os.listdir(tmp_path) == ["IMG.JPG.json"]


def test_a_text_of_somebody_else_stays(tmp_path: Path):
    (tmp_path / "IMG.JPG.txt").write_text("what I wrote myself\n")

    with pytest.raises(FileError, match=r"IMG\.JPG\.txt is in the way"):
        outputs.write(JOB, RESULT, os.fsencode(tmp_path), beside=True)

    assert os.listdir(tmp_path) == ["IMG.JPG.txt"]


def test_a_text_in_an_outbox_of_its_own_is_ours(tmp_path: Path):
    (tmp_path / "IMG.JPG.txt").write_text("what a killed daemon left\n")

    outputs.write(JOB, RESULT, os.fsencode(tmp_path))

    assert (tmp_path / "IMG.JPG.txt").read_text() == "a cat\n"


def test_a_link_in_the_place_of_the_text_stays(tmp_path: Path):
    (tmp_path / "IMG.JPG.txt").symlink_to("elsewhere")

    with pytest.raises(FileError, match="in the way"):
        outputs.write(JOB, RESULT, os.fsencode(tmp_path), beside=True)


@pytest.mark.parametrize(("attempts", "said"), [(1, "a cat\n"), (2, "a dog\n")])
def test_a_text_that_a_killed_daemon_left_alone_is_replaced(
    tmp_path: Path, attempts: int, said: str
):
    (tmp_path / "IMG.JPG.txt").write_text(said)

    outputs.write(replace(JOB, attempts=attempts), RESULT, os.fsencode(tmp_path), beside=True)

    assert (tmp_path / "IMG.JPG.txt").read_text() == "a cat\n"


def test_our_own_of_another_version_are_replaced(tmp_path: Path):
    outputs.write(JOB, RESULT, os.fsencode(tmp_path), beside=True)
    newer = replace(JOB, fingerprint=Fingerprint(1, 2_001, 4))

    outputs.write(newer, replace(RESULT, text="a dog"), os.fsencode(tmp_path))

    assert (tmp_path / "IMG.JPG.txt").read_text() == "a dog\n"
    assert json.loads((tmp_path / "IMG.JPG.json").read_text())["source_bytes"] == 2_001


def test_an_error_record_of_somebody_else_stays(tmp_path: Path):
    theirs = tmp_path / "IMG.JPG.error.json"
    theirs.write_text('{"mine": true}')

    with pytest.raises(FileError, match=r"IMG\.JPG\.error\.json is in the way"):
        outputs.write_error(
            JOB, os.fsencode(tmp_path), fault="file", phase="decode", message="", began=0, now=1
        )
    outputs.write(JOB, RESULT, os.fsencode(tmp_path), beside=True)

    assert theirs.read_text() == '{"mine": true}'
