"""The vocabulary."""

import os
from pathlib import Path

import pytest

from phi4d.job import GREEDY, Fingerprint, Job, Kind, Sampling, printable, question


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"plain.jpg", "plain.jpg"),
        ("Käse.jpg".encode(), "Käse.jpg"),
        (b"new\nline.jpg", r"new\nline.jpg"),
        (b"bad\xff.jpg", r"bad\xff.jpg"),
        ("right\u202eto left.jpg".encode(), r"right\u202eto left.jpg"),
        (b"\x1b[31mred.jpg", r"\x1b[31mred.jpg"),
    ],
)
def test_any_name_prints_as_one_harmless_line(path: bytes, text: str) -> None:
    assert printable(path) == text
    assert "\n" not in printable(path)


def test_a_job_is_named_by_its_printable_path() -> None:
    job = Job(1, "in", b"a/b\n.jpg", Kind.IMAGE, Fingerprint(1, 2, 3))
    assert job.name == r"a/b\n.jpg"


def test_a_fingerprint_tells_versions_apart(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = Fingerprint.of(file.stat())
    assert Fingerprint.of(file.stat()) == first

    file.write_bytes(b"three")
    assert Fingerprint.of(file.stat()) != first

    os.utime(file, ns=(1, 1))
    touched = Fingerprint.of(file.stat())
    assert touched.mtime_ns == 1
    assert touched.size == 5


def test_a_question_is_told_by_everything_that_decides_the_answer():
    asked = question(Kind.IMAGE, "m", "p", GREEDY)
    assert asked == question(Kind.IMAGE, "m", "p", Sampling(seed=5))  # nothing is drawn
    others = [
        question(Kind.AUDIO, "m", "p", GREEDY),
        question(Kind.IMAGE, "m2", "p", GREEDY),
        question(Kind.IMAGE, "m", "p2", GREEDY),
        question(Kind.IMAGE, "m", "p", Sampling(repetition_penalty=1.1)),
        question(Kind.IMAGE, "m", "p", Sampling(temperature=1.0)),
        question(Kind.IMAGE, "m", "p", Sampling(temperature=1.0, seed=5)),
    ]
    assert len({asked, *others}) == 7
