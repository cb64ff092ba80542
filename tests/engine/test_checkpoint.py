from __future__ import annotations

import json
import shutil

import pytest
from enginekit import CHECKPOINT, edit

from phi4d.engine.checkpoint import read
from phi4d.engine.layout import Layout
from phi4d.errors import ConfigError

DOWNLOAD = "phi4d model pull"


def faults(folder):
    with pytest.raises(ConfigError) as caught:
        read(folder)
    return caught.value.faults


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_the_demo_is_read_whole():
    checkpoint = read(CHECKPOINT)
    assert checkpoint.layout is Layout.CONVERTED
    assert checkpoint.max_crops == 4
    assert [file.name for file in checkpoint.files] == [
        "model.safetensors", "adapter_model.safetensors", "adapter_model.safetensors",
    ]  # fmt: skip
    assert {name: adapter.scale for name, adapter in checkpoint.adapters.items()} == {
        "vision": 2.0,
        "speech": 2.0,
    }


def test_its_size_is_that_of_its_tensors():
    size = read(CHECKPOINT).size
    layer = 256 * 128 + 128 * 128 + 512 * 128 + 128 * 256
    assert size.language == 4 * layer
    assert size.vision_adapter == size.speech_adapter
    assert size.cache_per_token == 2 * 4 * 2 * 32
    stored = sum(
        tensor.bytes // 4 for tensor in read(CHECKPOINT).tensors.values() if tensor.dtype == "F32"
    )
    assert stored == (
        size.language + size.embedding + size.towers + size.vision_adapter + size.speech_adapter
    )


def test_no_such_folder(tmp_path):
    (fault,) = faults(tmp_path / "none")
    assert str(tmp_path / "none") in fault
    assert "no such folder" in fault
    assert DOWNLOAD in fault


def test_a_file_is_no_folder(folder):
    (fault,) = faults(folder / "config.json")
    assert "not a folder" in fault


def test_an_empty_folder_is_no_model(tmp_path):
    (fault,) = faults(tmp_path)
    assert fault.startswith(f"{tmp_path}: no config.json")
    assert DOWNLOAD in fault


def test_another_model_is_named(folder):
    edit(folder / "config.json", model_type="llama")
    (fault,) = faults(folder)
    assert "model_type is 'llama', expected 'phi4_multimodal' or 'phi4mm'" in fault


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
def test_a_broken_config_is_named(folder, content):
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    (fault,) = faults(folder)
    assert "config.json: cannot be read" in fault


@pytest.mark.parametrize(
    ("spoil", "name", "said"),
    [
        (remove, "model.safetensors", "weights are missing"),
        (halve, "model.safetensors", "cut short"),
        (remove, "vision-lora", "adapter is missing"),
        (remove, "speech-lora", "adapter is missing"),
        (remove, "speech-lora/adapter_config.json", "missing"),
        (halve, "vision-lora/adapter_config.json", "cannot be read"),
        (remove, "vision-lora/adapter_model.safetensors", "weights are missing"),
        (halve, "speech-lora/adapter_model.safetensors", "cut short"),
        (remove, "tokenizer.json", "missing"),
        (halve, "tokenizer.json", "cannot be read"),
        (halve, "processor_config.json", "cannot be read"),
        (remove, "processor_config.json", "missing"),
        (halve, "generation_config.json", "cannot be read"),
    ],
)
def test_one_broken_part(folder, spoil, name, said):
    spoil(folder / name)
    (fault,) = faults(folder)
    assert fault.startswith(f"{folder / name}: ")
    assert said in fault
    assert "again" in fault


def test_all_faults_are_told_at_once(folder):
    remove(folder / "model.safetensors")
    remove(folder / "vision-lora")
    halve(folder / "speech-lora/adapter_model.safetensors")
    remove(folder / "tokenizer.json")
    assert len(faults(folder)) == 4


def test_an_empty_weight_file(folder):
    (folder / "model.safetensors").write_bytes(b"")
    (fault,) = faults(folder)
    assert "cut short" in fault


@pytest.mark.parametrize("value", [0, "128", None])
def test_a_size_that_is_none_is_told(folder, value):
    edit(folder / "config.json", num_attention_heads=value)
    (fault,) = faults(folder)
    assert f"num_attention_heads is {value!r}, a whole number above 0" in fault


def test_a_shard_that_lacks_what_the_index_names_is_told(folder):
    edit_index(folder, {"model.norm.weight": "model.safetensors", "more": "model.safetensors"})
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    edit_index(folder, {"model.norm.weight": "part.safetensors", "more": "part.safetensors"})
    (fault,) = faults(folder)
    assert fault.startswith(f"{folder / 'part.safetensors'}: 1 tensors that")
    assert "more first" in fault


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"target_modules": None}, "does not say which layers"),
        ({"target_modules": "("}, "does not say which layers"),
        ({"use_dora": True}, "use_dora is set"),
    ],
)
def test_an_adapter_that_is_not_understood_is_told(folder, change, said):
    edit(folder / "speech-lora" / "adapter_config.json", **change)
    (fault,) = faults(folder)
    assert fault.startswith(f"{folder / 'speech-lora' / 'adapter_config.json'}: ")
    assert said in fault


@pytest.mark.parametrize(
    ("targets", "changes"),
    [
        (["qkv_proj", "down_proj"], True),
        (["self_attn.qkv_proj"], True),
        (["proj"], False),
        (r"layers.*self_attn\.qkv_proj", True),
        (r"model\.layers\.\d+\.self_attn\.(qkv|o)_proj", True),
        (r"self_attn\.qkv_proj", False),
    ],
)
def test_targets_are_names_ends_or_a_pattern(folder, targets, changes):
    edit(folder / "vision-lora" / "adapter_config.json", target_modules=targets)
    adapter = read(folder).adapters["vision"]
    assert adapter.changes("model.layers.3.self_attn.qkv_proj") is changes


def test_a_missing_shard_is_named(folder):
    remove(folder / "model.safetensors")
    edit_index(folder, {"model.norm.weight": "model-1.safetensors", "b": "model-2.safetensors"})
    shutil.copy(CHECKPOINT / "model.safetensors", folder / "model-1.safetensors")
    (fault,) = faults(folder)
    assert str(folder / "model-2.safetensors") in fault


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "{}",
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../b.safetensors"}}',
    ],
)
def test_a_broken_index_is_named(folder, index):
    remove(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    (fault,) = faults(folder)
    assert "model.safetensors.index.json: not an index" in fault


def edit_index(folder, weight_map):
    path = folder / "model.safetensors.index.json"
    path.write_text("{}")
    edit(path, weight_map=weight_map)


@pytest.mark.parametrize(
    ("files", "crops", "hop"),
    [
        ({"processor_config.json": {"image_processor": {"dynamic_hd": 4}}}, 4, 160),
        ({"processor_config.json": {"audio_processor": {"hop_length": 80}}}, None, 80),
        ({"preprocessor_config.json": {"dynamic_hd": 36, "hop_length": 160}}, 36, 160),
        (
            {
                "processor_config.json": {"image_processor": {"dynamic_hd": 12}},
                "preprocessor_config.json": {"dynamic_hd": 36},
            },
            12,
            160,
        ),
    ],
)
def test_the_processors_settings_are_read(folder, files, crops, hop):
    remove(folder / "processor_config.json")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    checkpoint = read(folder)
    assert checkpoint.max_crops == crops
    assert checkpoint.mel.hop_length == hop


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hop_length": "160"}, "hop_length: a positive number was expected, found '160'"),
        ({"n_fft": 256}, "win_length: 400 is more than n_fft, 256"),
        ({"mel_min_frequency": 8000}, "mel_min_frequency: 8000 is not below mel_max_frequency"),
    ],
)
def test_settings_that_make_no_features_are_a_fault(folder, settings, words):
    edit(folder / "processor_config.json", audio_processor=settings)
    (fault,) = faults(folder)
    assert f"processor_config.json: cannot be used ({words}" in fault
