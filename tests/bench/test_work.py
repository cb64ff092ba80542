"""What is asked while it is measured."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from phi4d import demo
from phi4d.bench import work
from phi4d.config import Config
from phi4d.errors import FileError
from phi4d.job import SAMPLE_RATE_HZ, Kind, Sampling
from phi4d.prepared.preparation import Preparation


def test_clips_are_of_every_length_in_any_stretch_of_four():
    made = work.generated(Config(), "cpu")[Kind.AUDIO]

    seconds = [len(request.media) / SAMPLE_RATE_HZ for request in made]
    assert (min(seconds), max(seconds)) == (6.5625, 28.4375)
    assert np.mean(seconds) == 17.5
    for n in range(4):
        assert abs(np.mean(seconds[n : n + 4]) - 17.5) < 2.5
    assert all(abs(a - b) > 5 for a, b in pairwise(seconds))
    assert [round(s * 3.3) for s in seconds] == [request.max_new_tokens for request in made]


@pytest.mark.parametrize(("device", "shape"), [("cpu", (448, 448, 3)), ("cuda:1", (1080, 1920, 3))])
def test_pictures_are_as_large_as_the_device_is_fast(device: str, shape: tuple[int, ...]):
    made = work.generated(Config(), device)[Kind.IMAGE]

    assert {request.media.shape for request in made} == {shape}
    assert {request.max_new_tokens for request in made} == {100}


def test_it_is_asked_as_configured_and_the_same_each_time():
    config = Config(image_prompt="What?", speech_prompt="Who?", temperature=0.5, seed=3)

    one, other = (work.generated(config, "cpu") for _ in range(2))

    asked = {kind: {request.prompt for request in some} for kind, some in one.items()}
    assert asked == {Kind.AUDIO: {"Who?"}, Kind.IMAGE: {"What?"}}
    assert {r.sampling for some in one.values() for r in some} == {Sampling(0.5, 1.0, 3)}
    for kind, some in one.items():
        for a, b in zip(some, other[kind], strict=True):
            assert np.array_equal(a.media, b.media)


def test_files_are_asked_about_as_the_daemon_would(
    tmp_path: Path, make_picture: Callable[..., Path], make_recording: Callable[..., Path]
):
    files = [
        str(make_picture(tmp_path / "a.png")),
        str(make_recording(tmp_path / "b.wav", 3.0)),
        str(make_picture(tmp_path / "c.png", (20, 10))),
    ]
    config = Config(max_new_tokens=77, image_prompt="What?")

    made = work.of_files(config, files)

    shapes = {kind: [request.media.shape for request in some] for kind, some in made.items()}
    assert shapes == {Kind.IMAGE: [(48, 64, 3), (10, 20, 3)], Kind.AUDIO: [(48_000,)]}
    assert {(r.prompt, r.max_new_tokens) for r in made[Kind.IMAGE]} == {("What?", 77)}


def test_of_a_long_recording_the_beginning_is_asked_about(monkeypatch: pytest.MonkeyPatch):
    file = str(demo.SAMPLES / "digits-long.mp3")
    assert len(work.of_files(Config(), [file])[Kind.AUDIO]) > 2
    monkeypatch.setattr(work, "MOST", 2)

    assert len(work.of_files(Config(), [file, file])[Kind.AUDIO]) == 2


def test_silence_gives_nothing_to_ask_about(
    tmp_path: Path, make_picture: Callable[..., Path], make_recording: Callable[..., Path]
):
    # given a recording in which nothing is said
    silent, picture = make_recording(tmp_path / "a.wav", 95.0), make_picture(tmp_path / "b.png")

    assert work.of_files(Config(), [str(silent), str(picture)]).keys() == {Kind.IMAGE}
    with pytest.raises(FileError, match=r"a.wav: nothing is said in it"):
        work.of_files(Config(), [str(silent)])


def test_media_are_prepared_before_as_decode_processes_do():
    asked = {kind: some[:2] for kind, some in work.generated(Config(), "cpu").items()}
    preparation = Preparation(max_crops=4)

    made = work.prepared(asked, preparation)

    assert work.prepared(asked, None) == asked
    for kind, ready in ((Kind.IMAGE, preparation.picture), (Kind.AUDIO, preparation.sound)):
        for before, after in zip(asked[kind], made[kind], strict=True):
            wanted = ready(before.media)
            assert type(after.media) is type(wanted)
            assert after.media.tokens == wanted.tokens
            assert (after.prompt, after.max_new_tokens) == (before.prompt, before.max_new_tokens)


def test_a_file_that_cannot_be_answered_is_named(tmp_path: Path):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")

    with pytest.raises(FileError, match=r"bad.png: is not a picture that can be read"):
        work.of_files(Config(), [str(bad)])
    with pytest.raises(FileError, match=r"none.png: cannot be read: No such file"):
        work.of_files(Config(), [str(tmp_path / "none.png")])
