"""The toy checkpoint's recipe: what its stages are taught from is true, and none is done twice."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "tiny_checkpoint"))
import audio_encoder
import base_model
import checkpoint
import evaluate
import speech_data
import synth
import tiny
import train
import training
import vision_tower


@pytest.fixture(scope="module")
def words() -> Any:
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def clips() -> list[Any]:
    rng = Random(2)
    return [speech_data.clip(rng, single=True) for _ in range(6)]


class TestWords:
    def test_every_word_of_the_tasks_is_one_token(self, words: Any) -> None:
        vocabulary = base_model.Vocabulary(words)
        assert len({token for kind in vocabulary.kinds for token in kind}) == 7
        assert len(set(vocabulary.digits)) == 10
        for word in (*synth.DIGITS, *synth.COUNTS):
            assert len(vocabulary.ids(" " + word)) == 1, word

    def test_text_comes_back_as_it_went_in(self, words: Any) -> None:
        for text in ("one red circle and two blue squares", "four seven one", "Käse? 12!"):
            assert words.decode(words(text, add_special_tokens=False)["input_ids"]) == text

    def test_it_has_the_real_models_special_tokens(self, words: Any) -> None:
        for token in ("<|user|>", "<|assistant|>", "<|end|>", "<|image|>", "<|audio|>"):
            (found,) = words(token, add_special_tokens=False)["input_ids"]
            assert found == words.convert_tokens_to_ids(token)

    def test_the_model_is_the_real_architecture_in_small(self, words: Any) -> None:
        config = tiny.configuration(words)
        assert config.model_type == "phi4_multimodal"
        assert config.original_max_position_embeddings == 4096
        assert config.vision_config.crop_size == 448
        assert config.audio_config.time_reduction == 8

    def test_a_seed_is_a_model(self, words: Any) -> None:
        one, two = tiny.build(words, 1).state_dict(), tiny.build(words, 1).state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)


class TestPictures:
    @pytest.mark.parametrize("seed", range(12))
    def test_labels_tell_what_is_there_and_how_often(self, seed: int) -> None:
        scene = synth.scene(Random(seed), (448, 448))
        kinds, marks = vision_tower.labels(scene)
        wanted = np.zeros(len(synth.KINDS))
        for thing in scene.things:
            wanted[thing.kind] += 1
        assert marks.sum(0) == pytest.approx(wanted)
        shown = set(kinds[kinds != vision_tower.NONE].tolist())
        assert shown == {thing.kind for thing in scene.things}

    def test_a_labelled_cell_has_the_things_colour(self) -> None:
        scene = synth.scene(Random(3), (448, 448))
        kinds, _ = vision_tower.labels(scene)
        pixels = np.asarray(scene.draw(448, 448))
        side = 448 // vision_tower.CELLS
        for cell, kind in enumerate(kinds):
            row, column = divmod(cell, vision_tower.CELLS)
            at = pixels[row * side + side // 2, column * side + side // 2]
            painted = [tuple(at) == thing.rgb for thing in scene.things if thing.kind == kind]
            assert any(painted) if kind != vision_tower.NONE else tuple(at) == scene.ground

    def test_a_window_shows_a_part_of_the_whole(self) -> None:
        whole, cells = vision_tower.lesson(Random(5), 3)
        assert cells is None
        part, cells = vision_tower.lesson(Random(5), 3, window=7)
        assert cells is not None
        assert part.kinds.shape == cells.shape == (3, 49)
        assert whole.kinds.shape == (3, vision_tower.CELLS**2)
        assert part.asked.any()


class TestSpeech:
    def test_features_are_ten_milliseconds_apart(self) -> None:
        found = speech_data.features(np.zeros(16_000, np.float32))
        assert found.shape == (98, speech_data.MEL_BINS)

    def test_a_batch_is_padded_with_what_is_masked(self, clips: list[Any]) -> None:
        padded, mask, sizes = speech_data.batch(clips)
        for clip, row, within, size in zip(clips, padded, mask, sizes, strict=True):
            length = len(clip.features)
            assert within.sum() == length
            assert torch.equal(row[:length], clip.features.float())
            assert not row[length:].any()
            assert size == -(-length // 8)

    def test_variation_leaves_a_clip_a_clip(self, clips: list[Any]) -> None:
        padded, mask, _ = speech_data.batch(clips, Random(1))
        assert torch.isfinite(padded).all()
        longest = max(len(clip.features) for clip in clips)
        assert 0.7 * longest < mask.sum(1).max() < 1.3 * longest

    def test_held_out_clips_say_what_they_say(self) -> None:
        clip = speech_data.clip(Random(9), held_out=True, single=True)
        assert 1 <= len(clip.digits) <= 6
        assert clip.answer == " ".join(synth.DIGITS[digit] for digit in clip.digits)


class TestFigures:
    @pytest.mark.parametrize(
        ("wanted", "heard", "edits"),
        [("abc", "abc", 0), ("abc", "", 3), ("", "ab", 2), ("abc", "axc", 1), ("abc", "bc", 1)],
    )
    def test_edits(self, wanted: str, heard: str, edits: int) -> None:
        assert audio_encoder.edits(list(wanted), list(heard)) == edits

    def test_the_word_error_rate_is_over_all_words(self) -> None:
        pairs = [("one two three", "one two"), ("four", "four"), ("five six", "five nine")]
        assert evaluate.word_error_rate(pairs) == pytest.approx(2 / 6)

    def test_evaluation_draws_nothing_that_was_trained_on(self) -> None:
        (first, answer), *_ = evaluate.pictures((448, 448), 2, evaluate.PICTURE_SEED)
        image, again = synth.picture(Random(evaluate.PICTURE_SEED), (448, 448))
        assert np.array_equal(first, np.asarray(image))
        assert answer == again
        last_seed_of_training = 20_000_060  # the views that it is watched with
        assert min(evaluate.PICTURE_SEED, evaluate.SPEECH_SEED) > last_seed_of_training

    def test_the_card_is_filled_in_and_the_size_is_watched(self, tmp_path: Path) -> None:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        checkpoint.write_card(folder, [("pictures", "12.3% exact")], 7)
        text = (folder / "README.md").read_text()
        assert "| pictures | 12.3% exact |" in text
        assert "@" not in text
        (folder / "model.safetensors").write_bytes(b"x" * (checkpoint.MOST_BYTES + 1))
        with pytest.raises(AssertionError, match="the demo takes"):
            checkpoint.write_card(folder, [], 7)


class TestSchedule:
    def test_the_rate_rises_and_falls(self) -> None:
        weight = torch.nn.Parameter(torch.ones(3))
        schedule = training.Schedule([([weight], 1.0)], 100, warm=10)
        rates = []
        for _ in range(100):
            schedule((weight**2).sum())
            rates.append(schedule._optimizer.param_groups[0]["lr"])
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == rates[9]
        assert rates[9] > 0.95
        assert rates[-1] == pytest.approx(0.02)
        assert schedule.done == 100

    def test_a_report_is_a_mean_now_and_then(self, capsys: pytest.CaptureFixture[str]) -> None:
        report = training.Report(5, every=2)
        said = [report(step, {"loss": [float(step)]}) for step in range(5)]
        assert said == [False, True, False, True, True]
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[-1] for line in lines] == ["0.500", "2.500", "4.000"]


class TestLanes:
    @pytest.fixture
    def ran(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        ran: list[str] = []

        def run(command: list[str], **options: Any) -> None:
            ran.append(command[-1])
            if command[-1] == "clips":
                raise ChildProcessError("espeak-ng is missing")

        monkeypatch.setattr(train, "run", run)
        monkeypatch.setattr(train, "OUT", {name: tmp_path / f"{name}.pt" for name in train.NAMES})
        return ran

    def test_every_stage_is_in_one_lane(self) -> None:
        assert sorted(stage for lane in train.LANES for stage in lane) == sorted(train.STAGES)

    def test_a_finished_stage_is_not_run_again(self, ran: list[str]) -> None:
        train.run_stage("tower")
        train.run_stage("tower")
        assert ran == ["tower"]

    def test_a_failed_stage_is_run_again_and_holds_nobody_up(self, ran: list[str]) -> None:
        done = Event()
        for _ in range(2):
            with pytest.raises(ChildProcessError):
                train.run_lane(train.LANES[1], done)
        assert ran == ["base", "clips", "clips"]
        assert done.is_set()
