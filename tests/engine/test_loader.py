from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from itertools import groupby

import checkpoints
import pytest
import torch
import transformers
from enginekit import AUDIO_ID, CHECKPOINT, IMAGE_ID, STOP_IDS, clip, edit, noise, picture, speech
from safetensors.torch import load_file, save_file

from phi4d.engine import loader
from phi4d.engine.checkpoint import LINEAR, read
from phi4d.engine.layout import Layout
from phi4d.engine.loader import load
from phi4d.engine.phi4 import Phi4Engine
from phi4d.engine.plan import Slot
from phi4d.engine.skeleton import check
from phi4d.errors import ConfigError, DeviceError, Stopped

CPU = Slot("cpu")
RANKS = {"vision": 4, "speech": 5}


def loaded(folder=CHECKPOINT, slot=CPU):
    return load(read(folder), slot)


def test_the_model_comes_whole_corrected_and_with_both_adapters():
    it = loaded()
    model = it.models["vision"]
    assert it.models["speech"] is model
    assert it.stop_ids == STOP_IDS
    assert (it.image_id, it.audio_id) == (IMAGE_ID, AUDIO_ID)
    assert (it.short_tokens, it.longest_tokens) == (4096, 131072)
    assert not any(module.training for module in model.modules())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert not list(model.model.embed_tokens_extend.image_embed.img_processor.head.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    attention = model.model.embed_tokens_extend.image_embed.img_processor
    assert not any(getattr(module, "is_causal", False) for module in attention.modules())


def test_weights_and_adapters_are_those_of_the_files():
    held = loaded().models["vision"].state_dict()
    held = {name.replace(".base.", "."): weight for name, weight in held.items()}
    for name, weight in load_file(CHECKPOINT / "model.safetensors").items():
        if ".img_processor.head." not in name:  # nobody reads it
            assert torch.equal(held[name], weight)
    for adapter in ("vision", "speech"):
        weights = load_file(CHECKPOINT / f"{adapter}-lora" / "adapter_model.safetensors")
        for name, weight in weights.items():
            module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
            assert torch.equal(held[f"{module}.lora_{part[0]}.{adapter}"], weight)


def test_on_the_cpu_weights_stay_mapped_from_the_file(tmp_path):
    """Two engines have one copy of them in memory: what a process has of its own does not grow."""
    code = """
import sys
from pathlib import Path
from phi4d.engine.checkpoint import LINEAR, read
from phi4d.engine.loader import load
from phi4d.engine.plan import Slot

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

checkpoint = read(Path(sys.argv[1]))
first = load(checkpoint, Slot("cpu", "bfloat16"))
before = own()
models = [load(checkpoint, Slot("cpu", "bfloat16")) for _ in range(4)]
print(own() - before, sum(p.nbytes for p in first.models["vision"].parameters()) // 1024)
"""
    config = checkpoints.small(vocab_size=40_000)
    checkpoints.make(tmp_path / "m", config, Layout.ORIGINAL, ranks=RANKS)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, weights = map(int, done.stdout.split())
    assert weights > 7_000
    assert grown < weights


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("merged", [False, True])
def test_everything_has_the_number_format_that_was_asked_for(dtype, merged):
    for model in loaded(slot=Slot("cpu", dtype, merged=merged)).models.values():
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_merged_models_share_all_but_the_language_models_layers():
    it = loaded(slot=Slot("cpu", merged=True))
    vision, speech = it.models["vision"], it.models["speech"]
    own = {tensor.data_ptr() for tensor in vision.parameters()}
    apart = [name for name, tensor in speech.named_parameters() if tensor.data_ptr() not in own]
    assert len(apart) == 4 * 4
    assert all(LINEAR.fullmatch(name.removesuffix(".weight")) for name in apart)
    assert not any("lora" in name for name, _ in vision.named_parameters())


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_only_the_language_models_linear_layers_are_quantized(bits):
    model = loaded(slot=Slot("cpu", quantization=bits)).models["vision"]
    whole = [name for name, p in model.named_parameters() if p.dtype is not torch.float32]
    assert len(whole) == 4 * 4
    assert all(".layers." in name and name.endswith("_proj.base.weight") for name in whole)


def test_attention_is_the_language_models_alone(monkeypatch):
    for asked, towers in (("eager", "eager"), ("sdpa", "sdpa")):
        model = loaded(slot=Slot("cpu", attention=asked)).models["vision"]
        assert model.config._attn_implementation == asked
        assert model.config.vision_config._attn_implementation == towers
        assert model.config.audio_config._attn_implementation == towers


def answers(folder, slot=CPU):
    engine = Phi4Engine.load(folder, slot)
    pictures = [noise(448, 448, max_new_tokens=8), noise(300, 900, max_new_tokens=8)]
    texts = [done.text for done in engine.generate(pictures)]
    texts += [done.text for done in engine.generate([clip(3.0, max_new_tokens=8)])]
    engine.close()
    return texts


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("shard_bytes", [10**9, 200_000])
def test_every_form_of_a_checkpoint_gives_the_same_answers(tmp_path, layout, inside, shard_bytes):
    made = tmp_path / "made"
    source = read(CHECKPOINT)
    if layout is Layout.CONVERTED and inside:
        pytest.skip("nobody publishes the converted layout so")
    checkpoints.rewrite(source, made, layout, adapters_inside=inside, shard_bytes=shard_bytes)
    assert len(read(made).files) > 1 or inside
    assert answers(made) == answers(CHECKPOINT)


def test_the_original_layouts_names_of_media_tokens_do(tmp_path):
    checkpoints.rewrite(read(CHECKPOINT), tmp_path / "made", Layout.ORIGINAL)
    tokenizer = tmp_path / "made" / "tokenizer.json"
    text = tokenizer.read_text()
    for old, new in (("<|image|>", "<|endoftext10|>"), ("<|audio|>", "<|endoftext11|>")):
        assert old in text
        text = text.replace(old, new)
    tokenizer.write_text(text)
    assert answers(tmp_path / "made") == answers(CHECKPOINT)


@pytest.mark.parametrize(
    "slot",
    [
        Slot("cpu", merged=True),
        Slot("cpu", offload_bytes=3_000_000),
        Slot("cpu", offload_bytes=1),
        Slot("cpu", attention="eager"),
    ],
)
def test_however_it_is_loaded_it_answers_the_same(slot):
    assert answers(CHECKPOINT, slot) == answers(CHECKPOINT)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantized_it_still_sees_and_hears(bits, dtype):
    engine = Phi4Engine.load(CHECKPOINT, Slot("cpu", dtype, quantization=bits))
    (seen,) = engine.generate([picture("shapes-448x448.png")])
    assert seen.text == "one blue triangle and one yellow triangle"
    (heard,) = engine.generate([loader_request(speech())])
    assert heard.text == "seven five"


def loader_request(samples):
    from phi4d.job import Kind, Request

    return Request(Kind.AUDIO, "Transcribe the audio clip into text.", samples)


def test_the_files_are_counted_while_they_are_read(tmp_path):
    checkpoints.rewrite(read(CHECKPOINT), tmp_path / "m", Layout.ORIGINAL, shard_bytes=1_000_000)
    checkpoint = read(tmp_path / "m")
    said = []
    load(checkpoint, CPU, lambda done, of: said.append((done, of)))
    count = len(checkpoint.files)
    assert count >= 3
    assert [each for each, _ in groupby(said)] == [(done, count) for done in range(count + 1)]
    assert len(said) == len(checkpoint.tensors) + 1  # often enough to be a sign of life


def test_what_the_listener_raises_ends_the_loading():
    def stop(done, of):
        raise Stopped("now")

    with pytest.raises(Stopped):
        load(read(CHECKPOINT), CPU, stop)


def test_several_load_side_by_side():
    start = threading.Barrier(3)
    made, checkpoint = {}, read(CHECKPOINT)

    def work(name, slot):
        start.wait(30)
        made[name] = load(checkpoint, slot)

    slots = {"a": CPU, "b": Slot("cpu", "bfloat16"), "c": Slot("cpu", merged=True)}
    threads = [threading.Thread(target=work, args=item) for item in slots.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for name, slot in slots.items():
        held = {p.dtype for p in made[name].models["vision"].parameters()}
        assert held == {loader.DTYPES[slot.dtype]}


@pytest.fixture
def _talkative():
    """transformers' logging as it is by default."""
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_progress_bar()
    yield
    transformers.logging.disable_progress_bar()


@pytest.mark.usefixtures("_talkative")
def test_loading_says_nothing_and_leaves_settings_as_they_were(capfd, caplog):
    with caplog.at_level(logging.INFO):
        loaded()
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert transformers.logging.get_verbosity() == logging.WARNING
    assert transformers.logging.is_progress_bar_enabled()


@pytest.mark.parametrize("bits", ["none", "4bit"])
def test_a_process_of_its_own_loads_and_answers_in_silence_and_without_network(bits):
    code = """
import socket, sys
def refuse(*args):
    sys.exit(f"network: {args}")
socket.socket.connect = socket.getaddrinfo = refuse
import numpy as np
from phi4d.engine.phi4 import Phi4Engine
from phi4d.engine.plan import Slot
from phi4d.job import Kind, Request
engine = Phi4Engine.load(sys.argv[1], Slot("cpu", quantization=sys.argv[2]), threads=1)
engine.generate([Request(Kind.AUDIO, "Transcribe.", np.zeros(8000, np.float32), 2)])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(CHECKPOINT), bits],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_weights_that_are_missing_are_told(folder):
    edit(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(ConfigError, match="weights are missing") as caught:
        loaded(folder)
    assert str(folder) in str(caught.value)
    assert "layers.4" in str(caught.value)


def test_every_shape_that_does_not_fit_is_told_before_anything_is_read(folder, monkeypatch):
    edit(folder / "config.json", intermediate_size=200)
    monkeypatch.setattr(loader._Reader, "get", None)
    with pytest.raises(ConfigError) as caught:
        loaded(folder)
    assert len(caught.value.faults) == 10
    assert caught.value.faults[0] == (
        f"{folder / 'model.safetensors'}: model.layers.0.mlp.down_proj.weight has shape 128x256, "
        "the config.json asks for 128x200"
    )


def test_adapter_weights_that_are_missing_are_told(folder):
    path = folder / "speech-lora" / "adapter_model.safetensors"
    weights = load_file(path)
    weights.pop(min(weights))
    save_file(weights, path)
    with pytest.raises(ConfigError, match="1 weights are missing") as caught:
        loaded(folder)
    assert "lora_A.speech.weight first" in str(caught.value)


def test_an_adapter_of_another_rank_is_told(folder):
    edit(folder / "vision-lora" / "adapter_config.json", r=3)
    with pytest.raises(ConfigError):
        loaded(folder)


def test_weights_without_a_place_are_left_out(folder):
    path = folder / "vision-lora" / "adapter_model.safetensors"
    weights = load_file(path)
    weights["base_model.model.model.norm.lora_A.weight"] = torch.zeros(16, 128)
    save_file(weights, path)
    assert check(read(folder)) == ["base_model.model.model.norm.lora_A.weight"]
    model = loaded(folder).models["vision"]
    assert type(model.model.norm).__name__ == "Phi4MultimodalRMSNorm"


@pytest.mark.parametrize(
    ("file", "change", "asks"),
    [
        ("config.json", {"num_hidden_layers": 3}, "the config.json does not ask for it"),
        ("vision-lora/adapter_config.json", {"target_modules": ["qkv_proj"]}, "the adapter's"),
    ],
)
def test_weights_of_layers_that_nobody_asks_for_are_no_model(folder, file, change, asks):
    """Half a language model, or half an adapter, would answer nonsense."""
    edit(folder / file, **change)
    with pytest.raises(ConfigError) as caught:
        loaded(folder)
    faults = caught.value.faults
    assert asks in faults[0]
    assert len(faults) == 10
    assert faults[-2].startswith("and ")
    assert faults[-1].endswith("phi4d model pull")


def test_a_config_that_transformers_refuses_is_told(folder):
    edit(folder / "config.json", vision_config=[])
    with pytest.raises(ConfigError, match=r"config\.json: cannot be used"):
        loaded(folder)


def test_a_model_in_shards_is_named_by_its_folder(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {k: file for file, keys in parts.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert Phi4Engine.load(folder).model == "model"


def test_too_little_memory_is_a_device_error(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loader._Reader, "get", full)
    with pytest.raises(DeviceError, match=f"out of memory while loading {CHECKPOINT}"):
        loaded()


def test_a_bug_while_loading_stays_one(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(loader._Reader, "get", broken)
    with pytest.raises(RuntimeError, match="something else"):
        loaded()


def test_a_model_whose_answers_would_never_end_is_refused(folder):
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=None)
    with pytest.raises(ConfigError, match="no eos_token_id"):
        loaded(folder)


def test_on_the_cpu_convolutions_keep_a_places_channels_together():
    towers = load(read(CHECKPOINT), Slot("cpu")).models["speech"].model.embed_tokens_extend
    weights = [m.weight for m in towers.modules() if isinstance(m, torch.nn.Conv2d)]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
