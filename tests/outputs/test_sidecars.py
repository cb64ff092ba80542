"""What the sidecars say."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import phi4d
from phi4d import outputs
from phi4d.errors import FileError
from phi4d.job import Fingerprint, FinishReason, Job, Kind, Result, Sampling, Segment
from phi4d.outputs import names, record, text

JOB = Job(
    7, "in", b"sub/me\xffmo.wav", Kind.AUDIO, Fingerprint(1, 2_000, 1_700_000_000_000_000_000)
)
RESULT = Result(
    kind=Kind.AUDIO,
    text="hello wörld again",
    prompt="Transcribe.",
    model="fake",
    device="cpu",
    segments=(Segment(0.0, 1.23456, "hello wörld"), Segment(2.0, 3.0, "again")),
    prompt_tokens=30,
    new_tokens=5,
    seconds=1.25,
    media=(("duration", 3.0), ("rate", 16000.0)),
)
PICTURE = replace(
    RESULT, kind=Kind.IMAGE, text="a cat", segments=(), media=(("width", 640.0), ("height", 480.0))
)


def test_a_transcript_has_a_line_for_each_segment() -> None:
    assert text.render(RESULT) == "hello wörld\nagain\n".encode()


def test_a_description_stands_alone() -> None:
    assert text.render(PICTURE) == b"a cat\n"


def test_a_cut_line_is_marked() -> None:
    cut = Segment(0.0, 1.0, "hello wör", FinishReason.LENGTH)
    result = replace(RESULT, segments=(cut, RESULT.segments[1]), finish_reason=cut.finish_reason)
    assert text.render(result) == "hello wör […]\nagain\n".encode()


def test_a_cut_description_is_marked() -> None:
    cut = replace(PICTURE, text="one\ntwo", finish_reason=FinishReason.LENGTH)
    assert text.render(cut) == "one\ntwo […]\n".encode()


def test_silence_is_an_empty_transcript() -> None:
    assert text.render(replace(RESULT, text="", segments=())) == b"\n"


def test_what_cannot_be_encoded_does_not_stop_the_writer() -> None:
    assert text.render(replace(PICTURE, text="a\ud800b")) == b"a?b\n"


def test_the_record_tells_everything() -> None:
    found = json.loads(record.render(JOB, RESULT, 1_700_000_100.0))
    assert found == {
        "source": r"sub/me\xffmo.wav",
        "inbox": "in",
        "kind": "audio",
        "text": "hello wörld again",
        "segments": [
            {"start": 0.0, "end": 1.235, "text": "hello wörld", "finish_reason": "stop"},
            {"start": 2.0, "end": 3.0, "text": "again", "finish_reason": "stop"},
        ],
        "finish_reason": "stop",
        "prompt": "Transcribe.",
        "model": "fake",
        "device": "cpu",
        "media": {"duration": 3, "rate": 16000},
        "source_bytes": 2000,
        "source_modified": "2023-11-14T22:13:20+00:00",
        "source_mtime_ns": 1_700_000_000_000_000_000,
        "prompt_tokens": 30,
        "new_tokens": 5,
        "seconds": 1.25,
        "created": "2023-11-14T22:15:00+00:00",
        "phi4d": phi4d.__version__,
    }


def test_a_record_tells_what_was_reduced() -> None:
    reduced = replace(RESULT, reduced="at most 8 s at a time: device memory")
    found = json.loads(record.render(JOB, reduced, 0.0))
    assert found["reduced"] == "at most 8 s at a time: device memory"


def test_a_record_tells_the_content_and_whose_answer_it_is() -> None:
    told = record.render(JOB, RESULT, 0.0, content="ab" * 32, reused_from="in/first.wav")
    found = json.loads(told)
    assert found["source_sha256"] == "ab" * 32
    assert found["reused_from"] == "in/first.wav"


@pytest.mark.parametrize("mtime_ns", [-(2**62), -1, 2**63 - 1])
def test_a_file_may_be_from_any_year(mtime_ns: int) -> None:
    job = replace(JOB, fingerprint=Fingerprint(1, 2_000, mtime_ns))
    found = json.loads(record.render(job, RESULT, 0.0))
    assert found["source_mtime_ns"] == mtime_ns
    assert record.iso(1e12) is None


def test_a_pictures_record_has_no_segments() -> None:
    found = json.loads(record.render(JOB, PICTURE, 0.0))
    assert "segments" not in found
    assert found["media"] == {"width": 640, "height": 480}


def test_the_record_tells_what_was_cut() -> None:
    cut = Segment(0.0, 1.0, "hello wör", FinishReason.LENGTH)
    result = replace(RESULT, segments=(cut, RESULT.segments[1]), finish_reason=cut.finish_reason)
    found = json.loads(record.render(JOB, result, 0.0))
    assert found["finish_reason"] == "length"
    assert [s["finish_reason"] for s in found["segments"]] == ["length", "stop"]
    assert found["segments"][0]["text"] == "hello wör"  # the mark is the plain sidecar's alone


@pytest.mark.parametrize(
    ("sampling", "told"),
    [
        (Sampling(seed=5), {}),
        (Sampling(0.7, seed=5), {"temperature": 0.7, "seed": 5}),
        (Sampling(repetition_penalty=1.2), {"repetition_penalty": 1.2}),
        (Sampling(0.7, 1.2), {"temperature": 0.7, "seed": 0, "repetition_penalty": 1.2}),
    ],
)
def test_the_record_tells_what_made_the_choice_of_tokens(
    sampling: Sampling, told: dict[str, float]
) -> None:
    found = json.loads(record.render(JOB, replace(PICTURE, sampling=sampling), 0.0))
    keys = {"temperature", "seed", "repetition_penalty"}
    assert {key: found[key] for key in keys & found.keys()} == told


def test_both_are_written_below_the_outbox(tmp_path: Path) -> None:
    outbox = os.fsencode(tmp_path)
    paths = outputs.write(JOB, RESULT, outbox)
    assert paths == [
        outbox + b"/sub/me\xffmo.wav.txt",
        outbox + b"/sub/me\xffmo.wav.json",
    ]
    assert all(os.path.getsize(path) for path in paths)
    assert sorted(os.listdir(outbox + b"/sub")) == [b"me\xffmo.wav.json", b"me\xffmo.wav.txt"]


def test_a_long_name_is_cut_and_told_in_full(tmp_path: Path) -> None:
    job = replace(JOB, path=b"sub/" + b"x" * 251 + b".wav")
    text_path, record_path = outputs.write(job, RESULT, os.fsencode(tmp_path))
    assert len(os.path.basename(text_path)) < 255
    assert json.loads(Path(os.fsdecode(record_path)).read_bytes())["source"] == job.name


def test_a_path_that_is_too_long_is_the_files_fault_and_leaves_nothing(tmp_path: Path) -> None:
    job = replace(JOB, path=b"/".join([b"x" * 200] * 20) + b"/a.wav")
    with pytest.raises(FileError, match=r"would have \d+ bytes; Linux takes 4095: shorten"):
        outputs.write(job, RESULT, os.fsencode(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_tree_of_any_depth_is_mirrored(tmp_path: Path) -> None:
    depth = (names.PATH_MAX - len(os.fsencode(tmp_path)) - len(b"/a.wav.error.json")) // 2
    job = replace(JOB, path=b"d/" * depth + b"a.wav")
    (text_path, _) = outputs.write(job, RESULT, os.fsencode(tmp_path))
    assert os.path.exists(text_path)
    # shutil.rmtree, and so pytest's cleaning up, goes no deeper than Python's stack
    subprocess.run(["/bin/rm", "-r", tmp_path / "d"], check=True)
