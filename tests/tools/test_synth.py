"""The toy checkpoint's tasks: what is drawn and spoken is what the answer says."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "tiny_checkpoint"))
import synth

seeds = st.integers(0, 2**32)


class TestDescribe:
    @pytest.mark.parametrize(
        ("kinds", "words"),
        [
            (["red circle"], "one red circle"),
            (["red circle", "red circle"], "two red circles"),
            (["blue square"] * 3, "three blue squares"),
            (["blue square", "red circle"], "one red circle and one blue square"),
            (
                ["yellow triangle", "red circle", "green square"],
                "one red circle, one green square and one yellow triangle",
            ),
            (["blue square", "red circle", "blue square"], "one red circle and two blue squares"),
        ],
    )
    def test_things_become_words(self, kinds: list[str], words: str) -> None:
        assert synth.describe([synth.KINDS.index(kind) for kind in kinds]) == words

    @given(st.lists(st.integers(0, 11), min_size=1, max_size=3), st.randoms())
    def test_the_order_of_things_does_not_matter(self, kinds: list[int], rng: Random) -> None:
        shuffled = kinds.copy()
        rng.shuffle(shuffled)
        assert synth.describe(kinds) == synth.describe(shuffled)

    @given(st.lists(st.integers(0, 11), min_size=1, max_size=3))
    def test_the_numbers_add_up(self, kinds: list[int]) -> None:
        words = synth.describe(kinds).replace(",", "").split()
        assert sum(synth.COUNTS.index(w) + 1 for w in words if w in synth.COUNTS) == len(kinds)


class TestPictures:
    @given(seeds, st.sampled_from(synth.SIZES))
    @settings(max_examples=40, deadline=None)
    def test_things_lie_inside_and_apart(self, seed: int, size: tuple[int, int]) -> None:
        scene = synth.scene(Random(seed), size)
        longer = max(size)
        assert 1 <= len(scene.things) <= 3
        for n, thing in enumerate(scene.things):
            assert thing.radius < thing.x < size[0] / longer - thing.radius
            assert thing.radius < thing.y < size[1] / longer - thing.radius
            for other in scene.things[n + 1 :]:
                apart = math.hypot(thing.x - other.x, thing.y - other.y)
                assert apart > thing.radius + other.radius

    @pytest.mark.parametrize("size", synth.SIZES)
    def test_a_seed_is_a_picture(self, size: tuple[int, int]) -> None:
        one, answer = synth.picture(Random(5), size)
        two, again = synth.picture(Random(5), size)
        other, _ = synth.picture(Random(6), size)
        assert one.size == size
        assert one.mode == "RGB"
        assert answer == again
        assert one.tobytes() == two.tobytes()
        assert one.tobytes() != other.tobytes()

    def test_each_thing_is_painted_in_its_colour(self) -> None:
        for seed in range(20):
            scene = synth.scene(Random(seed), (448, 448))
            image = scene.draw(448, 448)
            for thing in scene.things:
                at = (round(thing.x * 448), round(thing.y * 448))
                assert image.getpixel(at) == thing.rgb
                colour = synth.KINDS[thing.kind].split()[0]
                painted = np.subtract(thing.rgb, synth.COLOURS[colour])
                assert np.abs(painted).max() <= 20
            assert image.getpixel((0, 0)) == scene.ground

    def test_one_scene_looks_alike_at_every_scale(self) -> None:
        scene = synth.scene(Random(7), (640, 480))
        small = scene.draw(320, 240)
        large = scene.draw(640, 480).resize((320, 240), Image.Resampling.BOX)
        off = np.abs(np.asarray(small, float) - np.asarray(large, float)).max(-1)
        assert (off > 40).mean() < 0.03

    @given(seeds)
    @settings(max_examples=30, deadline=None)
    def test_wear_changes_neither_size_nor_what_is_seen(self, seed: int) -> None:
        image, _ = synth.picture(Random(seed), (320, 240))
        worn = synth.wear_picture(Random(seed), image)
        assert (worn.size, worn.mode) == (image.size, "RGB")
        off = np.abs(np.asarray(worn, float) - np.asarray(image, float))
        assert off.mean() < 12


class TestSpeech:
    def test_a_seed_is_a_recording(self) -> None:
        one, rate, answer = synth.speech(Random(3))
        two, _, again = synth.speech(Random(3))
        assert answer == again
        assert len(two) == pytest.approx(len(one), rel=0.01)  # espeak-ng adds a little of its own
        assert one.dtype == np.float32
        assert np.abs(one).max() <= 1
        assert rate == 22_050  # what espeak-ng speaks at

    @pytest.mark.parametrize("held_out", [False, True])
    def test_digits_take_their_time(self, held_out: bool) -> None:
        for seed in range(8):
            samples, rate, answer = synth.speech(Random(seed), held_out)
            words = answer.split()
            assert 1 <= len(words) <= 6
            assert set(words) <= set(synth.DIGITS)
            assert 0.1 * len(words) < len(samples) / rate < 1.5 * len(words) + 1.0
            assert np.sqrt((samples**2).mean()) > 0.005  # it is no silence

    def test_held_out_voices_are_none_of_those_trained_on(self) -> None:
        trained = {accent + variant for accent in synth.ACCENTS for variant in synth.VARIANTS}
        assert not trained & set(synth.HELD_OUT_VOICES)

    def test_every_voice_speaks(self) -> None:
        engine = synth.espeak()
        for voice in (*synth.ACCENTS, *synth.HELD_OUT_VOICES):
            assert len(engine.say("four", voice, 160, 50, 50)) > 0.1 * engine.rate

    def test_a_voice_that_is_none_is_told(self) -> None:
        with pytest.raises(RuntimeError, match="has no voice xx-none"):
            synth.espeak().say("four", "xx-none", 160, 50, 50)

    def test_groups_are_parted_by_pauses(self) -> None:
        short, rate, answers = synth.spoken_groups(Random(4), 3, pause=(1.0, 1.0))
        long, _, again = synth.spoken_groups(Random(4), 3, pause=(2.0, 2.0))
        assert len(answers) == 3
        assert answers == again
        assert len(long) - len(short) == pytest.approx(2 * rate, rel=0.05)

    def test_resampling_keeps_the_duration(self) -> None:
        samples, rate, _ = synth.speech(Random(1))
        for wanted in (8_000, 16_000, 44_100):
            assert len(synth.at_rate(samples, rate, wanted)) == pytest.approx(
                len(samples) * wanted / rate, abs=2
            )
        assert synth.at_rate(samples, rate, rate) is samples

    @given(seeds)
    @settings(max_examples=25, deadline=None)
    def test_wear_keeps_samples_in_range_and_adds_at_most_two_seconds(self, seed: int) -> None:
        rate = 22_050
        tone = np.sin(np.arange(rate) / 20).astype(np.float32) * 0.3
        worn = synth.wear_speech(Random(seed), tone, rate)
        assert worn.dtype == np.float32
        assert np.isfinite(worn).all()
        assert np.abs(worn).max() <= 1
        assert 0.98 * len(tone) <= len(worn) <= 3.1 * len(tone)

    @pytest.mark.parametrize("level", [-60.0, -40.0, -20.0])
    def test_noise_has_its_level(self, level: float) -> None:
        for seed in range(5):
            wave = synth.noise(Random(seed), 50_000, level)
            assert 20 * np.log10(np.sqrt((wave**2).mean())) == pytest.approx(level, abs=0.5)
