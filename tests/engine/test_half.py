from __future__ import annotations

import shutil

import pytest
import torch
from enginekit import CHECKPOINT, picture, speech
from safetensors.torch import load_file, save_file

from phi4d.engine import half
from phi4d.engine.checkpoint import read
from phi4d.engine.loader import load
from phi4d.engine.phi4 import Phi4Engine
from phi4d.engine.plan import Slot
from phi4d.job import Kind, Request

SLOT = Slot("cpu", "float16")
SEEN, HEARD = "one blue triangle and one yellow triangle", "seven five"
IMAGE = "model.embed_tokens_extend.image_embed.img_processor.encoder.layers.0.self_attn."
AUDIO = "model.embed_tokens_extend.audio_embed.encoder.encoders.0.self_attn."


def answers(folder, slot=SLOT):
    engine = Phi4Engine.load(folder, slot)
    asked = Request(Kind.AUDIO, "Transcribe the audio clip into text.", speech())
    (seen,) = engine.generate([picture("shapes-448x448.png")])
    (heard,) = engine.generate([asked])
    engine.close()
    return seen.text, heard.text


@pytest.fixture
def stretched(tmp_path):
    """Make the demo's model greater inside by factors that cancel out: the same in float32."""

    def make(pairs, times):
        folder = tmp_path / "model"
        shutil.copytree(CHECKPOINT, folder, copy_function=shutil.copyfile)
        weights = load_file(folder / "model.safetensors")
        for greater, smaller in pairs:
            for name, factor in ((greater, times), (smaller, 1 / times)):
                weights[name] = (weights[name] * factor).contiguous()
        save_file(weights, folder / "model.safetensors")
        return folder

    return make


@pytest.mark.parametrize("slot", [SLOT, Slot("cpu", "float16", merged=True)])
def test_float16_answers_rightly(slot):
    assert answers(CHECKPOINT, slot) == (SEEN, HEARD)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_float16_answers_with_quantized_weights(bits):
    assert all(answers(CHECKPOINT, Slot("cpu", "float16", quantization=bits)))


def test_the_residual_stream_is_float32():
    model = load(read(CHECKPOINT), SLOT).use("vision")
    seen = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, inputs, out: seen.append((inputs[0].dtype, out)))
    logits = model(input_ids=torch.arange(20, 40)[None]).logits
    assert logits.isfinite().all()
    for dtype, out in seen:
        assert dtype is torch.float32
        assert (out[0] if isinstance(out, tuple) else out).dtype is torch.float32


@pytest.mark.parametrize("widened", [True, False])
def test_feed_forward_products_beyond_float16(monkeypatch, widened):
    """A token whose product is beyond 65,504, as language models have them."""
    if not widened:
        monkeypatch.setattr("phi4d.engine.loader.widen", lambda model: None)
    model = load(read(CHECKPOINT), SLOT).use("vision")
    layer = model.model.layers[0].mlp
    for weight in (layer.gate_up_proj.base.weight, layer.down_proj.base.weight):
        weight.mul_(100)
    logits = model(input_ids=torch.arange(20, 40)[None]).logits
    assert bool(logits.isfinite().all()) is widened


@pytest.mark.parametrize("tower", [IMAGE, AUDIO])
@pytest.mark.parametrize("checked", [True, False])
def test_a_tower_that_overflows_is_run_in_float32(stretched, monkeypatch, tower, checked):
    out = "out_proj" if tower is IMAGE else "o_proj"
    names = [(f"{tower}v_proj.weight", f"{tower}{out}.weight")]
    folder = stretched(names, 2.0**15)
    bias = load_file(folder / "model.safetensors").get(f"{tower}v_proj.bias")
    if bias is not None:
        weights = load_file(folder / "model.safetensors")
        weights[f"{tower}v_proj.bias"] = bias * 2.0**15
        save_file(weights, folder / "model.safetensors")
    if not checked:
        monkeypatch.setattr("phi4d.engine.embedding.finite", lambda _tower, run: run())
    else:
        assert answers(folder, Slot("cpu")) == (SEEN, HEARD)
    right = answers(folder) == (SEEN, HEARD)
    assert right is checked


def test_a_tower_that_overflowed_stays_float32():
    tower = torch.nn.Linear(2, 2).half()
    calls = []

    def run():
        calls.append(tower.weight.dtype)
        return torch.tensor([float("inf") if len(calls) == 1 else 1.0])

    assert half.finite(tower, run).item() == 1
    assert calls == [torch.float16, torch.float32]
    half.finite(tower, run)
    assert calls[2:] == [torch.float32]


def test_a_tower_for_which_there_is_no_room_in_float32_stays_whole(monkeypatch):
    tower = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).half()
    real = torch.nn.Linear._apply

    def full(self, change, **options):
        if self is tower[1] and change(torch.zeros(1, dtype=torch.float16)).dtype is torch.float32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, change, **options)

    monkeypatch.setattr(torch.nn.Linear, "_apply", full)
    with pytest.raises(torch.OutOfMemoryError):
        half.finite(tower, lambda: torch.tensor(float("inf")))
    assert {p.dtype for p in tower.parameters()} == {torch.float16}


def test_other_number_formats_are_not_looked_at():
    tower = torch.nn.Linear(2, 2)
    made = torch.tensor([float("nan")])
    assert half.finite(tower, lambda: made) is made
