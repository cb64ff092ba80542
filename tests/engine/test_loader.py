from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
import torch
import transformers
from enginekit import AUDIO_ID, CHECKPOINT, IMAGE_ID, STOP_IDS, edit
from safetensors.torch import load_file, save_file

from phi4d.engine.loader import choose_dtype, load
from phi4d.engine.phi4 import Phi4Engine
from phi4d.errors import ConfigError, DeviceError


def test_the_model_comes_whole_corrected_and_with_both_adapters():
    loaded = load(CHECKPOINT, "cpu")
    assert set(loaded.model.peft_config) == {"vision", "speech"}
    assert loaded.stop_ids == STOP_IDS
    assert (loaded.image_id, loaded.audio_id) == (IMAGE_ID, AUDIO_ID)
    assert (loaded.short_tokens, loaded.longest_tokens) == (4096, 131072)
    assert not loaded.model.training
    attention = loaded.model.model.embed_tokens_extend.image_embed.img_processor
    assert not any(getattr(module, "is_causal", False) for module in attention.modules())


def test_weights_and_adapters_are_those_of_the_files():
    model = load(CHECKPOINT, "cpu").model
    held = {name.replace(".base_layer", ""): weight for name, weight in model.state_dict().items()}
    for name, weight in load_file(CHECKPOINT / "model.safetensors").items():
        assert torch.equal(held[name], weight)
    for adapter in ("vision", "speech"):
        weights = load_file(CHECKPOINT / f"{adapter}-lora" / "adapter_model.safetensors")
        for name, weight in weights.items():
            place = name.removeprefix("base_model.model.").replace(".weight", f".{adapter}.weight")
            assert torch.equal(held[place], weight)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_adapters_have_the_models_number_format(dtype):
    model = load(CHECKPOINT, "cpu", dtype).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


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
        load(CHECKPOINT, "cpu")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert transformers.logging.get_verbosity() == logging.WARNING
    assert transformers.logging.is_progress_bar_enabled()


def test_a_process_of_its_own_loads_and_answers_in_silence_and_without_network():
    code = """
import socket, sys
def refuse(*args):
    sys.exit(f"network: {args}")
socket.socket.connect = socket.getaddrinfo = refuse
import numpy as np
from phi4d.engine.phi4 import Phi4Engine
from phi4d.job import Kind, Request
engine = Phi4Engine.load(sys.argv[1], threads=1)
engine.generate([Request(Kind.AUDIO, "Transcribe.", np.zeros(8000, np.float32), 2)])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(CHECKPOINT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_weights_that_are_missing_are_told(folder):
    edit(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(ConfigError, match="weights are missing") as caught:
        load(folder, "cpu")
    assert str(folder) in str(caught.value)
    assert "layers.4" in str(caught.value)


def test_weights_that_do_not_fit_are_told(folder):
    edit(folder / "config.json", intermediate_size=200)
    with pytest.raises(ConfigError, match=r"do not fit config\.json"):
        load(folder, "cpu")


def test_adapter_weights_that_are_missing_are_told(folder):
    path = folder / "speech-lora" / "adapter_model.safetensors"
    weights = load_file(path)
    weights.pop(min(weights))
    save_file(weights, path)
    with pytest.raises(ConfigError, match="1 weights are missing") as caught:
        load(folder, "cpu")
    assert str(folder / "speech-lora") in str(caught.value)


def test_an_adapter_of_another_rank_is_told(folder):
    edit(folder / "vision-lora" / "adapter_config.json", r=3)
    with pytest.raises(ConfigError):
        load(folder, "cpu")


def test_weights_without_a_place_are_warned_of(folder, caplog):
    edit(folder / "config.json", num_hidden_layers=3)
    for name in ("vision", "speech"):
        path = folder / f"{name}-lora" / "adapter_model.safetensors"
        save_file({k: v for k, v in load_file(path).items() if "layers.3." not in k}, path)
    load(folder, "cpu")
    (record,) = caplog.records
    assert "have no place in the model" in record.getMessage()


def test_a_config_that_transformers_refuses_is_told(folder):
    edit(folder / "config.json", vision_config=[])
    with pytest.raises(ConfigError, match=r"config\.json: cannot be used"):
        load(folder, "cpu")


def test_a_folder_that_was_not_checked_is_told(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(folder, "cpu")


def test_a_model_in_shards_loads(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {k: file for file, keys in parts.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    engine = Phi4Engine.load(str(folder))
    assert engine.model == "model"


def test_too_little_memory_is_a_device_error(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transformers.Phi4MultimodalForCausalLM, "from_pretrained", full)
    with pytest.raises(DeviceError, match=f"out of memory while loading {CHECKPOINT}"):
        load(CHECKPOINT, "cpu")


def test_a_bug_while_loading_stays_one(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(transformers.Phi4MultimodalForCausalLM, "from_pretrained", broken)
    with pytest.raises(RuntimeError, match="something else"):
        load(CHECKPOINT, "cpu")


@pytest.mark.parametrize(
    ("dtype", "device", "capability", "number"),
    [
        ("auto", "cpu", None, torch.float32),
        ("bfloat16", "cpu", None, torch.bfloat16),
        ("auto", "cuda:0", (9, 0), torch.bfloat16),
        ("auto", "cuda:0", (8, 0), torch.bfloat16),
        ("auto", "cuda:1", (7, 5), torch.float16),
        ("float32", "cuda:1", (7, 5), torch.float32),
    ],
)
def test_number_format(monkeypatch, dtype, device, capability, number):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert choose_dtype(dtype, device) == number


def test_an_unknown_number_format_is_refused():
    with pytest.raises(ConfigError, match="'int4' is none of auto, float32"):
        choose_dtype("int4", "cpu")
