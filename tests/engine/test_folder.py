from __future__ import annotations

import shutil

import pytest
from enginekit import CHECKPOINT, edit

from phi4d.engine import folder as folders
from phi4d.errors import ConfigError

DOWNLOAD = "phi4d model pull --revision refs/pr/70"


def faults(folder):
    with pytest.raises(ConfigError) as caught:
        folders.check(folder)
    return caught.value.faults


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_the_demo_passes():
    folders.check(CHECKPOINT)


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
    assert "model_type is 'llama', expected 'phi4_multimodal'" in fault


def test_the_original_layout_is_named(folder):
    edit(folder / "config.json", model_type="phi4mm")
    (fault,) = faults(folder)
    assert "remote-code layout" in fault
    assert DOWNLOAD in fault


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


def test_a_missing_shard_is_named(folder):
    remove(folder / "model.safetensors")
    edit_index(folder, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    shutil.copy(CHECKPOINT / "model.safetensors", folder / "model-1.safetensors")
    (fault,) = faults(folder)
    assert str(folder / "model-2.safetensors") in fault


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": 3}', "[]"])
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
    ("name", "content", "crops"),
    [
        ("processor_config.json", {"image_processor": {"dynamic_hd": 4}}, 4),
        ("processor_config.json", {"image_processor": {}}, None),
        ("processor_config.json", {}, None),
        ("preprocessor_config.json", {"dynamic_hd": 36}, 36),
        ("other.json", {"dynamic_hd": 36}, None),
    ],
)
def test_the_most_crops_come_from_the_processor_config(tmp_path, name, content, crops):
    (tmp_path / name).write_text("{}")
    edit(tmp_path / name, **content)
    assert folders.max_crops(tmp_path) == crops
