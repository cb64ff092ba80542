"""A model's folder on paper: its layout, its configuration, and every tensor with its place.

Everything that can be wrong with a folder is found here, before gigabytes are read, and named with
what to do. Reads configurations and the headers of weight files, never weights; no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from phi4d.engine.layout import (
    ADAPTERS,
    MODEL_TYPE,
    Layout,
    layout_of,
    native_adapter_name,
    native_config,
    native_name,
)
from phi4d.engine.plan import Size
from phi4d.errors import ConfigError
from phi4d.prepared.mel import Mel, mel_of

WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json")
"""either says how media are prepared: the first nested, the second, older one flat"""
LINEAR = re.compile(r"model\.layers\.\d+\.(?:self_attn\.(?:qkv|o)_proj|mlp\.(?:gate_up|down)_proj)")
"""the language model's linear layers: what adapters change and what can be quantized"""
SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
"""keys of the configuration that everything else follows from"""
UNKNOWN_TO_PHI4D = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
"""kinds of adapters that peft has beside plain ones; Phi-4-multimodal uses none of them"""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor is."""

    file: Path
    key: str
    """its name in the file"""
    shape: tuple[int, ...]
    dtype: str
    """as safetensors writes it: ``BF16``, ``F32``"""

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * int(re.sub(r"\D", "", self.dtype) or 8) // 8


@dataclass(frozen=True, slots=True)
class Adapter:
    """A low-rank adapter: it adds ``scale * B A x`` to the output of a linear layer for ``x``."""

    rank: int
    """rows of A, columns of B"""
    scale: float
    """alpha / rank"""
    targets: str | tuple[str, ...]
    """which linear layers it changes: a pattern, or the ends of their names, as peft has it"""

    def changes(self, module: str) -> bool:
        """Whether it changes a linear layer, by the layer's native name."""
        if isinstance(self.targets, str):
            names = (module, module.removeprefix("model."))
            return any(re.fullmatch(self.targets, name) for name in names)
        return any(module == end or module.endswith(f".{end}") for end in self.targets)


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, in native names; from `read`."""

    folder: Path
    layout: Layout
    config: Mapping[str, Any]
    """for transformers' ``Phi4MultimodalConfig``"""
    adapters: Mapping[str, Adapter]
    tensors: Mapping[str, Stored] = field(repr=False)
    """by native name, the adapters' too"""
    max_crops: int | None
    """the most crops a picture may have by the processor's configuration"""
    mel: Mel
    """how features are made of sound, by the processor's configuration"""

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The weight files, in the order in which they are read."""
        return tuple(dict.fromkeys(stored.file for stored in self.tensors.values()))

    @cached_property
    def size(self) -> Size:
        """How large the model is."""
        counts = dict.fromkeys(("language", "embedding", "towers", "vision", "speech"), 0)
        for name, stored in self.tensors.items():
            counts[_part(name)] += math.prod(stored.shape)
        config = self.config
        head = config["hidden_size"] // config["num_attention_heads"]
        return Size(
            language=counts["language"],
            embedding=counts["embedding"],
            towers=counts["towers"],
            vision_adapter=counts["vision"],
            speech_adapter=counts["speech"],
            cache_per_token=2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head,
        )


def read(folder: Path) -> Checkpoint:
    """Read what a folder holds.

    Raises:
        ConfigError: with every fault found: the file, what is wrong, what to do. Whether shapes
            fit the configuration is not looked at here (`phi4d.engine.skeleton.check`).
    """
    if fault := _folder_fault(folder):
        raise ConfigError(fault)
    config = read_json(folder / "config.json")
    layout = layout_of(config)
    if layout is None:
        raise ConfigError(
            f"{folder}/config.json: model_type is {config.get('model_type')!r}, expected "
            f"{MODEL_TYPE!r} or 'phi4mm': another model. {_PULL}"
        )
    faults: list[str] = []
    try:
        native = native_config(config)
    except (KeyError, TypeError, AttributeError) as error:
        native = {}
        faults.append(f"{folder}/config.json: not one of the {layout} layout ({error!r}). {_AGAIN}")
    for key in SIZES if native else ():
        if not isinstance(native.get(key), int) or native[key] < 1:
            faults.append(
                f"{folder}/config.json: {key} is {native.get(key)!r}, a whole number above 0 was "
                f"expected. {_AGAIN}"
            )
    stored = _weights(folder, WEIGHTS, faults)
    tensors = {native_name(tensor.key, layout): tensor for tensor in stored}
    adapters = {}
    # weights of the original layout that cannot be read may have the adapters inside
    known = stored or layout is Layout.CONVERTED
    for name, place in ADAPTERS.items() if known else ():
        if any(f".lora_A.{name}." in key for key in tensors):
            adapters[name] = _inner_adapter(folder, config, name, faults)
        else:
            adapters[name] = _adapter_config(folder / place, faults)
            inner = _weights(folder / place, ADAPTER_WEIGHTS, faults) if adapters[name] else []
            tensors |= {native_adapter_name(tensor.key, name): tensor for tensor in inner}
    faults += _json_faults(folder / "tokenizer.json")
    if (folder / "generation_config.json").exists():
        faults += _json_faults(folder / "generation_config.json")
    crops, mel = _processor(folder, faults)
    if faults:
        raise ConfigError(*faults)
    return Checkpoint(
        folder,
        layout,
        native,
        {name: adapter for name, adapter in adapters.items() if adapter},
        dict(sorted(tensors.items(), key=lambda item: (item[1].file, item[1].key))),
        crops,
        mel,
    )


_AGAIN = "Download the model again: phi4d model pull"
_PULL = "Download one with: phi4d model pull"


def _part(name: str) -> str:
    for adapter in ADAPTERS:
        if f".{adapter}.weight" in name:
            return adapter
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return "embedding"
    return "language" if LINEAR.match(name) else "towers"


def _folder_fault(folder: Path) -> str | None:
    """Why a folder is no model at all, if it is none; the rest is then not looked at."""
    if not folder.exists():
        return f"{folder}: no such folder. Give that of a downloaded model. {_PULL}"
    if not folder.is_dir():
        return f"{folder}: not a folder. Give the folder that holds config.json"
    if not (folder / "config.json").exists():
        return f"{folder}: no config.json, so not a model. {_PULL}"
    faults = _json_faults(folder / "config.json")
    return faults[0] if faults else None


def _adapter_config(folder: Path, faults: list[str]) -> Adapter | None:
    """The adapter of a folder as peft writes it."""
    path = folder / "adapter_config.json"
    if not folder.is_dir():
        faults.append(
            f"{folder}: the adapter is missing, and without it the model cannot see or hear. "
            f"{_AGAIN}"
        )
        return None
    if unreadable := _json_faults(path):
        faults += unreadable
        return None
    config = read_json(path)
    if odd := [key for key in UNKNOWN_TO_PHI4D if config.get(key)]:
        faults.append(f"{path}: {odd[0]} is set; phi4d takes plain low-rank adapters only")
        return None
    return _adapter(path, config, config.get("target_modules"), faults)


def _inner_adapter(
    folder: Path, config: Mapping[str, Any], name: str, faults: list[str]
) -> Adapter | None:
    """The adapter that is inside the model's files, as the original configuration describes it."""
    place = f"{folder}/config.json: {name}_lora"
    part = config.get(f"{name}_lora")
    if not isinstance(part, dict):
        faults.append(f"{place}: missing, though the weights hold this adapter. {_AGAIN}")
        return None
    return _adapter(place, part, part.get("layer"), faults)


def _adapter(
    place: object, config: Mapping[str, Any], targets: object, faults: list[str]
) -> Adapter | None:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        faults.append(f"{place}: r is {rank!r} and lora_alpha {alpha!r}; two numbers were expected")
        return None
    try:
        if isinstance(targets, str):
            re.compile(targets)
            return Adapter(rank, alpha / rank, targets)
        if isinstance(targets, list) and targets and all(isinstance(t, str) for t in targets):
            return Adapter(rank, alpha / rank, tuple(targets))
    except re.error:
        pass
    faults.append(f"{place}: {targets!r} does not say which layers the adapter changes. {_AGAIN}")
    return None


def _weights(folder: Path, name: str, faults: list[str]) -> list[Stored]:
    """The tensors of one weight file, or of the shards that its index names."""
    index = folder / f"{name}.index.json"
    if (folder / name).exists() or not index.exists():
        return _header(folder / name, faults)
    try:
        weight_map = shards(read_json(index))
    except (OSError, ValueError) as error:
        faults.append(f"{index}: not an index of shards ({error}). {_AGAIN}")
        return []
    stored = []
    for shard in sorted(set(weight_map.values())):
        before = len(faults)
        found = _header(folder / shard, faults)
        stored += found
        if len(faults) > before:
            continue
        named = {key for key, file in weight_map.items() if file == shard}
        if lacking := sorted(named - {tensor.key for tensor in found}):
            faults.append(
                f"{folder / shard}: {len(lacking)} tensors that {index.name} names are not in it, "
                f"{lacking[0]} first. {_AGAIN}"
            )
    return stored


def shards(index: Any) -> dict[str, str]:
    """A tensor's name to the name of the file that holds it, from the index of shards.

    Raises:
        ValueError: it is no such index.
    """
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", name):
            raise ValueError(f"{name!r} is no name of a weight file")
    return weight_map


def _header(path: Path, faults: list[str]) -> list[Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        # Opening compares the header with the file's length, so a broken download shows.
        with safe_open(path, framework="np") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            return [
                Stored(path, key, tuple(part.get_shape()), part.get_dtype())
                for key, part in parts.items()
            ]
    except FileNotFoundError:
        faults.append(f"{path}: the weights are missing. {_AGAIN}")
    except (SafetensorError, OSError) as error:
        faults.append(f"{path}: cut short or not weights ({error}). {_AGAIN}")
    return []


def _processor(folder: Path, faults: list[str]) -> tuple[int | None, Mel]:
    """The most crops of a picture, and the settings of the audio feature extractor."""
    crops: int | None = None
    features: dict[str, Any] = {}
    mel = Mel()
    present = [folder / name for name in PROCESSOR_CONFIGS if (folder / name).exists()]
    for path in reversed(present or [folder / PROCESSOR_CONFIGS[0]]):
        if unreadable := _json_faults(path):
            faults += unreadable
            continue
        config = read_json(path)
        try:
            found = config.get("image_processor", config).get("dynamic_hd")
            crops = crops if found is None else int(found)
            audio = config.get("audio_processor", config)
            features |= audio
            mel = mel_of(features)
        except (AttributeError, TypeError, ValueError) as error:
            faults.append(f"{path}: cannot be used ({error}). {_AGAIN}")
    return crops, mel


def _json_faults(path: Path) -> list[str]:
    try:
        read_json(path)
    except FileNotFoundError:
        return [f"{path}: missing. {_AGAIN}"]
    except (OSError, ValueError) as error:
        return [f"{path}: cannot be read ({error}). {_AGAIN}"]
    return []


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
