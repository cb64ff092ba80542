"""What a sidecar tells is read back whole, and damage tells nothing."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4d import outputs
from phi4d.job import (
    Fingerprint,
    FinishReason,
    Job,
    Kind,
    Result,
    Sampling,
    Segment,
    question,
)
from phi4d.outputs import told

CONTENT = "0123456789abcdef" * 4
JOB = Job(
    7, "in", b"sub/me\xffmo.wav", Kind.AUDIO, Fingerprint(1, 2_000, 1_700_000_000_123_456_789)
)
RECORDING = Result(
    kind=Kind.AUDIO,
    text="hello wörld again",
    prompt="Transcribe.",
    model="fake",
    device="cpu",
    segments=(
        Segment(0.0, 1.235, "hello wörld"),
        Segment(2.0, 3.0, "again", FinishReason.LENGTH),
    ),
    prompt_tokens=30,
    new_tokens=5,
    finish_reason=FinishReason.LENGTH,
    sampling=Sampling(0.7, 1.2, 5),
    seconds=1.25,
    media=(("duration", 3.0), ("rate", 16000.0)),
    reduced="at most 8 s at a time: device memory",
)
PICTURE = Result(
    Kind.IMAGE, "a cat", "Describe.", "fake", "cuda:0", media=(("width", 640.0), ("height", 480.0))
)


@pytest.fixture
def outbox(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path)


def write(outbox: bytes, result: Result = PICTURE, content: str = CONTENT, job: Job = JOB) -> bytes:
    """Writes the sidecars and returns the JSON's path."""
    return outputs.write(replace(job, kind=result.kind), result, outbox, content=content)[1]


def change(path: bytes, **values: object) -> None:
    record = json.loads(Path(os.fsdecode(path)).read_bytes())
    Path(os.fsdecode(path)).write_text(json.dumps(record | values))


@pytest.mark.parametrize("result", [RECORDING, PICTURE, replace(RECORDING, text="", segments=())])
def test_everything_that_was_told_is_read(outbox: bytes, result: Result) -> None:
    write(outbox, result)
    assert told.read(outbox, JOB.path) == told.Told(
        result.kind, 2_000, 1_700_000_000_123_456_789, CONTENT, result
    )


def test_a_name_that_is_too_long_for_its_sidecars_is_found(outbox: bytes) -> None:
    path = b"sub/" + b"\xc3\xa4" * 127
    write(outbox, job=replace(JOB, path=path))
    assert told.read(outbox, path)
    assert not told.read(outbox, path[:-2] + b"\xc3\xb6")


def test_it_is_about_one_version(outbox: bytes) -> None:
    write(outbox)
    found = told.read(outbox, JOB.path)
    assert found
    assert found.is_about(replace(JOB.fingerprint, inode=99))
    assert not found.is_about(replace(JOB.fingerprint, size=2_001))
    assert not found.is_about(replace(JOB.fingerprint, mtime_ns=1_700_000_000_123_456_788))


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.7, seed=3), Sampling(repetition_penalty=2.0)]
)
def test_the_question_is_the_one_that_was_asked(outbox: bytes, sampling: Sampling) -> None:
    write(outbox, replace(PICTURE, sampling=sampling))
    found = told.read(outbox, JOB.path)
    assert found
    assert found.question == question(Kind.IMAGE, "fake", "Describe.", sampling)


@pytest.mark.parametrize(
    ("result", "content", "reusable"),
    [
        (PICTURE, CONTENT, True),
        (PICTURE, "", False),
        (replace(PICTURE, finish_reason=FinishReason.LENGTH), CONTENT, False),
        (replace(PICTURE, reduced="at most 4 crops: device memory"), CONTENT, False),
    ],
)
def test_an_answer_serves_again_if_it_is_whole(
    outbox: bytes, result: Result, content: str, reusable: bool
) -> None:
    write(outbox, result, content)
    found = told.read(outbox, JOB.path)
    assert found
    assert found.reusable is reusable


class TestNothingIsTold:
    def test_without_sidecars(self, outbox: bytes) -> None:
        assert told.read(outbox, JOB.path) is None

    def test_without_the_text(self, outbox: bytes) -> None:
        path = write(outbox)
        os.unlink(path.replace(b".json", b".txt"))
        assert told.read(outbox, JOB.path) is None

    def test_when_a_file_is_where_the_folder_should_be(self, outbox: bytes) -> None:
        Path(os.fsdecode(outbox), "sub").touch()
        assert told.read(outbox, JOB.path) is None

    @pytest.mark.parametrize("what", ["folder", "pipe", "link", "large"])
    def test_by_what_is_no_file_of_ours(self, outbox: bytes, what: str) -> None:
        path = write(outbox)
        os.rename(path, path + b".aside")
        if what == "folder":
            os.mkdir(path)
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "link":
            os.symlink(path + b".aside", path)
        else:
            os.rename(path + b".aside", path)
            with open(path, "ab") as file:
                file.write(b" " * told.MOST_BYTES)
        before = len(os.listdir("/proc/self/fd"))
        assert told.read(outbox, JOB.path) is None
        assert len(os.listdir("/proc/self/fd")) == before

    @pytest.mark.parametrize(
        "data",
        [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"{}", b'{"source": 1}'],
    )
    def test_by_what_is_no_record(self, outbox: bytes, data: bytes) -> None:
        path = write(outbox)
        Path(os.fsdecode(path)).write_bytes(data)
        assert told.read(outbox, JOB.path) is None

    def test_by_another_files_record(self, outbox: bytes) -> None:
        path = write(outbox)
        change(path, source="sub/other.wav")
        assert told.read(outbox, JOB.path) is None

    @pytest.mark.parametrize(
        "values",
        [
            {"kind": "video"},
            {"source_sha256": "abc"},
            {"source_mtime_ns": None},
            {"source_bytes": True},
            {"seconds": float("nan")},
            {"media": {"width": "640"}},
            {"media": {"width": 10**400}},
            {"segments": [1]},
            {"segments": [{"start": 0}]},
            {"finish_reason": "tired"},
            {"text": None},
        ],
    )
    def test_by_a_damaged_record(self, outbox: bytes, values: dict[str, object]) -> None:
        path = write(outbox)
        change(path, **values)
        assert told.read(outbox, JOB.path) is None

    def test_by_any_beginning_of_a_record(self, outbox: bytes) -> None:
        path = Path(os.fsdecode(write(outbox, RECORDING)))
        whole = path.read_bytes()
        for length in range(len(whole) - 2):
            path.write_bytes(whole[:length])
            assert told.read(outbox, JOB.path) is None


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.fsdecode(write(os.fsencode(tmp_path_factory.mktemp("outbox")), RECORDING)))


@given(st.data())
def test_whatever_stands_there_it_never_raises(record: Path, data: st.DataObject) -> None:
    outputs.write(JOB, RECORDING, os.fsencode(record.parents[1]))
    known = json.loads(record.read_bytes())
    key = data.draw(st.sampled_from(sorted(known)))
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    value = data.draw(
        st.recursive(leaf, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
    )
    record.write_text(json.dumps(known | {key: value}), "utf-8")
    found = told.read(os.fsencode(record.parents[1]), JOB.path)
    if found:  # then it can be told again
        outputs.write(JOB, found.result, os.fsencode(record.parents[1]))
        assert told.read(os.fsencode(record.parents[1]), JOB.path)
