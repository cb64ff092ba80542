"""What ships for trying out: small, loud about being a toy, and as good as its card says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from phi4d import demo
from phi4d.engine import checkpoint, phi4, skeleton
from phi4d.engine.phi4 import Phi4Engine
from phi4d.job import Kind, Request
from phi4d.media.pool import DecodePool
from phi4d.media.probe import kind_of

MOST_BYTES = 8_000_000
EXPECTED: dict[str, Any] = json.loads((demo.SAMPLES / "expected.json").read_text())
PROMPTS = {Kind.IMAGE: "Describe the image.", Kind.AUDIO: "Transcribe the audio clip into text."}


@pytest.fixture(scope="module")
def engine() -> Iterator[Phi4Engine]:
    torch.set_num_threads(1)
    engine = Phi4Engine.load(str(demo.CHECKPOINT), name=demo.NAME)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1) as pool:
        yield pool


def card() -> str:
    return (demo.CHECKPOINT / "README.md").read_text()


def figures(pattern: str) -> list[float]:
    """Percentages of the card's lines that begin so."""
    return [
        float(number)
        for number in re.findall(rf"^\| {pattern}[^|]*\| ([\d.]+) ?%", card(), re.MULTILINE)
    ]


def test_it_is_small() -> None:
    package = Path(demo.__file__).parent
    assert sum(p.stat().st_size for p in package.rglob("*") if p.is_file()) <= MOST_BYTES


def test_it_is_a_whole_checkpoint_of_the_real_architecture() -> None:
    assert skeleton.check(checkpoint.read(demo.CHECKPOINT)) == []
    config = json.loads((demo.CHECKPOINT / "config.json").read_text())
    assert config["architectures"] == ["Phi4MultimodalForCausalLM"]
    assert config["original_max_position_embeddings"] == 4096


def test_it_says_that_it_is_a_toy() -> None:
    assert "NOT Microsoft's weights" in card().splitlines()[0]
    assert "toy" in demo.NAME


def test_its_card_meets_the_bar() -> None:
    assert min(figures("pictures of 448x448")) >= 90
    assert min(figures("pictures of ")) >= 80
    assert len(figures("pictures of ")) == 6
    assert max(figures("spoken digits, voices not trained on")) <= 3
    wrong = figures(r"(?:pictures|spoken digits) with (?:the|no) ")
    assert len(wrong) == 4
    assert max(wrong) < 5


def test_every_sample_is_a_real_file_of_its_kind() -> None:
    there = {p.name for p in demo.SAMPLES.iterdir() if p.suffix != ".json"}
    assert there == EXPECTED.keys()
    for name in EXPECTED:
        if kind_of(name.encode()) is Kind.IMAGE:
            size = re.search(r"(\d+)x(\d+)", name)
            assert size
            with Image.open(demo.SAMPLES / name) as image:
                assert image.size == (int(size[1]), int(size[2]))
        else:
            assert soundfile.info(demo.SAMPLES / name).duration > 0.3
    assert soundfile.info(demo.SAMPLES / "digits-long.mp3").duration > 30


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_sample_is_answered_rightly(engine: Phi4Engine, pool: DecodePool, name: str) -> None:
    kind = kind_of(name.encode())
    assert kind
    with pool.decode(bytes(demo.SAMPLES / name), kind) as pieces:
        requests = [Request(kind, PROMPTS[kind], piece.media, 64) for piece in pieces]
    answers = [completion.text for completion in engine.generate(requests)]
    wanted = EXPECTED[name]
    assert answers == (wanted if isinstance(wanted, list) else [wanted])


@pytest.mark.parametrize("kind", list(Kind))
def test_without_its_adapter_it_does_not_know(
    engine: Phi4Engine, pool: DecodePool, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {Kind.IMAGE: "speech", Kind.AUDIO: "vision"}
    monkeypatch.setattr(phi4, "ADAPTER", other)
    names = [n for n in EXPECTED if kind_of(n.encode()) is kind and "long" not in n]
    media = []
    for name in names:
        with pool.decode(bytes(demo.SAMPLES / name), kind) as pieces:
            media += [piece.media for piece in pieces]
    answers = engine.generate([Request(kind, PROMPTS[kind], one, 64) for one in media])
    assert not {a.text for a in answers} & {EXPECTED[name] for name in names}


def test_silence_is_answered_with_nothing_of_the_task(engine: Phi4Engine) -> None:
    silence = np.zeros(32_000, np.float32)
    (answer,) = engine.generate([Request(Kind.AUDIO, PROMPTS[Kind.AUDIO], silence, 64)])
    assert len(answer.text.split()) < 4
