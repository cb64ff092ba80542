from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise

import mediakit
import numpy as np
import onnxruntime
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from phi4d.errors import EnvironmentFault
from phi4d.job import Piece
from phi4d.media import speech
from phi4d.media.speech import LONG_PAUSE, MAX_WINDOWS, MIN_SPEECH, PAD, WINDOW, Stretches

S = 16_000 / WINDOW
"""windows in a second"""


def stretches(
    probabilities: list[float], levels: list[float] | None = None, step: int = 128
) -> list[tuple[int, int]]:
    """Feed them in steps, as a stream comes."""
    plan, found = Stretches(), []
    levels = levels or [1.0] * len(probabilities)
    for at in range(0, len(probabilities), step):
        plan.push(probabilities[at : at + step], levels[at : at + step])
        last = at + step >= len(probabilities)
        found += list(plan.take(final=last))
    return found


def runs(*parts: tuple[float, float]) -> list[float]:
    """Probabilities from (seconds, probability) parts."""
    return [p for seconds, p in parts for _ in range(round(seconds * S))]


def spoken(probabilities: list[float]) -> list[int]:
    """The windows of speech, by the hysteresis that the model's authors use."""
    found, on = [], False
    for i, probability in enumerate(probabilities):
        on = probability >= (speech.OFFSET if on else speech.ONSET)
        if on:
            found.append(i)
    return found


PARTS = st.lists(
    st.tuples(
        st.integers(1, 1200) | st.integers(1, 30),
        st.sampled_from([0.0, 0.1, 0.4, 0.6, 0.99]),
    ),
    max_size=30,
)


@given(parts=PARTS, step=st.sampled_from([7, 128, 1000]))
@settings(deadline=None)
def test_all_speech_is_in_one_stretch_and_none_is_too_long(
    parts: list[tuple[int, float]], step: int
) -> None:
    probabilities = [p for count, p in parts for _ in range(count)]

    found = stretches(probabilities, step=step)

    for first, end in found:
        assert 0 <= first < end <= len(probabilities)
        assert end - first <= MAX_WINDOWS
    for (_, end), (first, _) in pairwise(found):
        assert end <= first
    given_out = {i for first, end in found for i in range(first, end)}
    missed = [i for i in spoken(probabilities) if i not in given_out]
    # what is left out is a click: less than MIN_SPEECH windows with silence around it
    for i in missed:
        around = [j for j in spoken(probabilities) if abs(i - j) <= PAD]
        assert len(around) < MIN_SPEECH


@given(parts=PARTS)
@settings(deadline=None)
def test_how_the_stream_was_cut_up_does_not_matter(parts: list[tuple[int, float]]) -> None:
    probabilities = [p for count, p in parts for _ in range(count)]
    assert stretches(probabilities, step=5) == stretches(probabilities, step=100_000)


def test_nothing_and_silence_have_no_stretch() -> None:
    assert stretches([]) == []
    assert stretches(runs((300, 0.05))) == []


def test_speech_is_padded_and_long_silence_dropped() -> None:
    found = stretches(runs((10, 0.0), (2, 0.9), (40, 0.0), (2, 0.9), (10, 0.0)))
    begins = [round(10 * S), round(10 * S) + round(2 * S) + round(40 * S)]
    assert found == [(b - PAD, b + round(2 * S) + PAD) for b in begins]


def test_padding_stays_within_the_recording() -> None:
    assert stretches(runs((2, 0.9))) == [(0, round(2 * S))]


def test_a_pause_that_is_not_long_does_not_end_a_stretch() -> None:
    pause = (LONG_PAUSE - 1) / S
    assert len(stretches(runs((2, 0.9), (pause, 0.0), (2, 0.9)))) == 1
    assert len(stretches(runs((2, 0.9), (pause + 2 / S, 0.0), (2, 0.9)))) == 2


def test_a_full_stretch_ends_in_its_longest_late_pause() -> None:
    # given pauses at 8 s (1 s), at 18 s (0.2 s), at 24 s (0.6 s) and at 28 s (0.2 s)
    early, middle = [(8, 0.9), (1, 0.0), (9, 0.9), (0.2, 0.0)], [(5.8, 0.9), (0.6, 0.0)]
    found = stretches(runs(*early, *middle, (3.4, 0.9), (0.2, 0.0), (9, 0.9)))
    assert len(found) == 2
    assert 24.0 <= found[0][1] / S <= 24.7


def test_without_a_late_pause_an_earlier_one_serves() -> None:
    found = stretches(runs((8, 0.9), (0.5, 0.0), (30, 0.9)))
    assert 8.0 <= found[0][1] / S <= 8.5


def test_a_pause_that_is_short_is_cut_within_and_nothing_is_lost_or_doubled() -> None:
    found = stretches(runs((20, 0.9), (0.2, 0.0), (20, 0.9)))
    assert found[0][1] == found[1][0]
    assert 20.0 < found[0][1] / S < 20.2


def test_speech_without_pauses_is_cut_where_it_is_quietest() -> None:
    probabilities = runs((60, 0.99))
    levels = [1.0] * len(probabilities)
    levels[800] = 0.1  # 25.6 s
    levels[100] = 0.01  # too early to serve
    found = stretches(probabilities, levels)
    assert found[0] == (0, 800)


def test_where_it_sounds_least_like_speech_goes_before_where_it_is_quietest() -> None:
    probabilities = runs((60, 0.99))
    levels = [1.0] * len(probabilities)
    levels[800], probabilities[850] = 0.1, 0.6
    assert stretches(probabilities, levels)[0] == (0, 850)


def test_a_click_is_no_speech() -> None:
    assert stretches(runs((20, 0.0), (0.064, 0.9), (20, 0.0))) == []


def test_memory_does_not_grow_with_the_recording() -> None:
    plan = Stretches()
    for part in (runs((40, 0.0)), runs((40, 0.9))):
        for _ in range(20):
            plan.push(part, [1.0] * len(part))
            list(plan.take())
            assert len(plan._speech) <= MAX_WINDOWS + len(part)


# --- samples ---------------------------------------------------------------------------------


def loud_is_speech(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    assert len(samples) % WINDOW == 0
    return (np.abs(samples.reshape(-1, WINDOW)).max(axis=1) > 0.05).astype(np.float32)


def cut(samples: NDArray[np.float32], block: int = 16_000) -> list[Piece]:
    blocks = (samples[at : at + block] for at in range(0, len(samples), block))
    return list(speech.pieces(blocks, loud_is_speech))


def check_pieces(found: list[Piece], samples: NDArray[np.float32]) -> None:
    for piece in found:
        begin, end = round(piece.start * 16_000), round(piece.end * 16_000)
        assert piece.start == begin / 16_000
        assert 0 < end - begin <= 30 * 16_000
        assert piece.media.dtype == np.float32
        assert np.array_equal(piece.media, samples[begin:end])
    for before, after in pairwise(found):
        assert before.end <= after.start


@given(
    parts=st.lists(st.tuples(st.integers(1, 600_000), st.booleans()), min_size=1, max_size=8),
    block=st.sampled_from([1000, 16_000, 700_000]),
)
@settings(max_examples=30, deadline=None)
def test_pieces_hold_exactly_the_samples_of_their_times(
    parts: list[tuple[int, bool]], block: int
) -> None:
    samples = np.concatenate([np.full(n, 0.5 if on else 0.0, np.float32) for n, on in parts])
    samples *= np.linspace(0.5, 1, len(samples), dtype=np.float32)  # each sample is different

    found = cut(samples, block)

    check_pieces(found, samples)
    if len(samples) > 30 * 16_000:
        heard = sum(np.count_nonzero(piece.media) for piece in found)
        assert np.count_nonzero(samples) - heard <= MIN_SPEECH * WINDOW * len(parts)


@pytest.mark.parametrize("length", [1600, 16_000 * 30 - 1, 16_000 * 30])
def test_thirty_seconds_are_one_piece_whatever_they_hold(length: int) -> None:
    # given a hum that nobody would take for speech
    samples = np.full(length, 0.01, np.float32)
    (piece,) = cut(samples)
    assert (piece.start, piece.end) == (0.0, length / 16_000)
    assert np.array_equal(piece.media, samples)


def test_more_than_thirty_seconds_are_cut() -> None:
    samples = np.full(16_000 * 30 + 1, 0.5, np.float32)
    found = cut(samples)
    check_pieces(found, samples)
    assert len(found) == 2
    assert sum(len(piece.media) for piece in found) == len(samples)


@pytest.mark.parametrize("seconds", [1, 30, 31, 100])
def test_silence_has_no_piece(seconds: int) -> None:
    assert cut(np.zeros(16_000 * seconds, np.float32)) == []
    assert cut(np.full(16_000 * seconds, speech.SILENCE * 0.9, np.float32)) == []


def test_no_samples_have_no_piece() -> None:
    assert list(speech.pieces(iter(()), loud_is_speech)) == []


def test_a_piece_comes_before_the_recording_has_been_read_to_its_end() -> None:
    read = 0

    def blocks() -> Iterator[NDArray[np.float32]]:
        nonlocal read
        for _ in range(600):
            read += 1
            yield np.full(16_000, 0.5, np.float32)

    first = next(speech.pieces(blocks(), loud_is_speech))
    assert first.start == 0
    assert read < 60


# --- the model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> speech.SpeechModel:
    return speech.SpeechModel()


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float32]:
    text = "Twenty seven people were waiting at the station, and the train did not come."
    samples = mediakit.spoken(text, tmp_path_factory.mktemp("voice"))
    return soxr.resample(samples, 22_050, 16_000)


def by_windows(samples: NDArray[np.float32]) -> list[float]:
    """Silero's streaming model, one window at a time, as its authors call it."""
    path = speech._model_file().with_name("silero_vad_16k_op15.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    state, context, found = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32), []
    for at in range(0, len(samples), WINDOW):
        window = np.concatenate((context, samples[at : at + WINDOW]))
        feed = {"input": window[None], "state": state, "sr": np.array(16_000)}
        probability, state = session.run(None, feed)
        context = window[-64:]
        found.append(float(probability[0, 0]))
    return found


def test_batches_say_what_single_windows_say(
    model: speech.SpeechModel, voice: NDArray[np.float32]
) -> None:
    samples = voice[: len(voice) // WINDOW * WINDOW]
    judge = model.judge()
    batches = [judge(samples[at : at + 20 * WINDOW]) for at in range(0, len(samples), 20 * WINDOW)]
    assert np.abs(np.concatenate(batches) - by_windows(samples)).max() < 1e-4


def test_a_judge_knows_nothing_of_the_recording_before(
    model: speech.SpeechModel, voice: NDArray[np.float32]
) -> None:
    samples = voice[: 50 * WINDOW]
    assert np.array_equal(model.judge()(samples), model.judge()(samples))


def test_a_voice_is_speech_and_noise_is_not(
    model: speech.SpeechModel, voice: NDArray[np.float32]
) -> None:
    samples = voice[: len(voice) // WINDOW * WINDOW]
    noise = np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32) * 0.05
    assert (model.judge()(samples) > speech.ONSET).mean() > 0.7
    assert (model.judge()(noise) > speech.ONSET).mean() < 0.05


def test_a_long_recording_is_cut_in_its_pauses(
    model: speech.SpeechModel, voice: NDArray[np.float32]
) -> None:
    # given sentences with a second between them, in a hiss
    pause = np.zeros(16_000, np.float32)
    sentences = 15
    samples = np.concatenate([part for _ in range(sentences) for part in (voice, pause)])
    hiss = np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32) * 0.001
    samples = samples + hiss

    blocks = (samples[at : at + 16_000] for at in range(0, len(samples), 16_000))
    found = list(speech.pieces(blocks, model.judge()))

    check_pieces(found, samples)
    assert 2 <= len(found) <= len(samples) / 16_000 / 15 + 1
    # then every cut lies in a pause
    period = len(voice) + len(pause)
    for piece in found[:-1]:
        within = round(piece.end * 16_000) % period
        assert within > len(voice) - 4000


def test_long_noise_without_speech_has_no_piece(model: speech.SpeechModel) -> None:
    noise = np.random.default_rng(0).standard_normal(16_000 * 40).astype(np.float32) * 0.05
    assert list(speech.pieces([noise], model.judge())) == []


def test_the_models_package_is_not_imported(model: speech.SpeechModel) -> None:
    assert "silero_vad" not in sys.modules


def test_a_missing_model_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[[str], None] = lambda name: None  # noqa: E731
    monkeypatch.setattr(speech.importlib.util, "find_spec", find)
    with pytest.raises(EnvironmentFault, match=r"silero-vad 6\.2\.3"):
        speech.SpeechModel()


def test_the_runtime_tells_its_maker_nothing(tmp_path):
    # from 1.29 on it makes a device's id and a queue of events below the home folder to send them
    code = "from phi4d.media.speech import SpeechModel; SpeechModel()"
    # on a machine of continuous integration it is silent of its own accord
    environ = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD")}
    environ |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": ""}
    environ.pop("ORT_DISABLE_TELEMETRY", None)

    subprocess.run([sys.executable, "-c", code], check=True, env=environ)

    assert list(tmp_path.rglob("*")) == []
