"""The model's folder: whether it can be loaded. No torch, no network.

Everything that can be wrong with a folder is found here, before gigabytes are read, and named with
what to do. Where it lies is ``hub.py``'s to find, loading is ``loader.py``'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phi4d.errors import ConfigError

ADAPTERS = {"vision": "vision-lora", "speech": "speech-lora"}
"""adapter's name to its folder below the model's"""
MODEL_TYPE = "phi4_multimodal"
PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json")
"""either says how media are prepared: the first nested, the second, older one flat"""
ORIGINAL_TYPE = "phi4mm"
"""what the original, remote-code layout calls itself"""
_PULL = "phi4d model pull --revision refs/pr/70"


def check(folder: Path) -> None:
    """See that a folder holds a whole model in the converted layout.

    Reads the configs and the weight files' headers, not the weights.

    Raises:
        ConfigError: with every fault found: the file, what is wrong, what to do.
    """
    if faults := _faults(folder):
        raise ConfigError(*faults)


def max_crops(folder: Path) -> int | None:
    """The most crops a picture may have by the folder's processor config; None if it is silent."""
    for name in PROCESSOR_CONFIGS:
        if (folder / name).exists():
            config = read_json(folder / name)
            crops = config.get("image_processor", config).get("dynamic_hd")
            if crops is not None:
                return int(crops)
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or not an object.
    """
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"an object was expected, found {type(value).__name__}")  # noqa: TRY004 - bad content, not a bad argument
    return value


def _faults(folder: Path) -> list[str]:
    if fault := _folder_fault(folder):
        return [fault]
    faults = _weight_faults(folder, "model.safetensors")
    for name in ADAPTERS.values():
        faults += _adapter_faults(folder / name)
    faults += _json_faults(folder / "tokenizer.json")
    processors = [folder / name for name in PROCESSOR_CONFIGS if (folder / name).exists()]
    for path in processors or [folder / PROCESSOR_CONFIGS[0]]:
        faults += _json_faults(path)
    if (folder / "generation_config.json").exists():
        faults += _json_faults(folder / "generation_config.json")
    return faults


def _folder_fault(folder: Path) -> str | None:
    """Why a folder is no Phi-4-multimodal at all, if it is none; the rest is then not looked at."""
    if not folder.exists():
        return (
            f"{folder}: no such folder. Give the folder of a downloaded model, or download one: "
            f"{_PULL}"
        )
    if not folder.is_dir():
        return f"{folder}: not a folder. Give the folder that holds config.json"
    try:
        found = read_json(folder / "config.json").get("model_type")
    except (OSError, ValueError) as error:
        if (folder / "config.json").exists():
            return f"{folder}/config.json: cannot be read ({error}). Download the model again"
        return f"{folder}: no config.json, so not a model. Download one: {_PULL}"
    if found == MODEL_TYPE:
        return None
    if found == ORIGINAL_TYPE:
        what = f"{folder}/config.json: model_type {found!r} is the original, remote-code layout"
    else:
        what = f"{folder}/config.json: model_type is {found!r}, expected {MODEL_TYPE!r}"
    return f"{what}. Download the converted layout with: {_PULL}"


def _adapter_faults(folder: Path) -> list[str]:
    if not folder.is_dir():
        return [
            f"{folder}: the adapter is missing, and without it the model cannot see or hear. "
            f"Download the model again"
        ]
    return _json_faults(folder / "adapter_config.json") + _weight_faults(
        folder, "adapter_model.safetensors"
    )


def _weight_faults(folder: Path, name: str) -> list[str]:
    """Faults of one weight file, or of the shards that its index names."""
    index = folder / f"{name}.index.json"
    if (folder / name).exists() or not index.exists():
        return _safetensors_faults(folder / name)
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return [f"{index}: not an index of shards ({error!r}). Download the model again"]
    return [fault for shard in shards for fault in _safetensors_faults(folder / shard)]


def _safetensors_faults(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        # Opening compares the header with the file's length, so a broken download shows.
        with safe_open(path, framework="np"):
            return []
    except FileNotFoundError:
        return [f"{path}: the weights are missing. Download the model again"]
    except (SafetensorError, OSError) as error:
        return [f"{path}: cut short or not weights ({error}). Download the model again"]


def _json_faults(path: Path) -> list[str]:
    try:
        read_json(path)
    except FileNotFoundError:
        return [f"{path}: missing. Download the model again"]
    except (OSError, ValueError) as error:
        return [f"{path}: cannot be read ({error}). Download the model again"]
    return []
