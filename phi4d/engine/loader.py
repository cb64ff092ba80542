"""From a checked folder to a corrected model with both adapters on a device. No network.

It answers nothing itself; ``phi4.py`` does. Other layouts and quantisation will be other ways to
make the same `Loaded`.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import (
    Phi4MultimodalConfig,
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalForCausalLM,
)

from phi4d.engine import folder as folders
from phi4d.engine.corrections import correct
from phi4d.engine.faults import device_faults
from phi4d.errors import ConfigError

log = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_loading = threading.Lock()
"""transformers changes torch's default dtype and module globals while it loads"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to use."""

    model: Phi4MultimodalForCausalLM
    """corrected, in eval mode, with the adapters ``vision`` and ``speech``"""
    features: Phi4MultimodalFeatureExtractor
    """16 kHz mono samples to mel features"""
    image_id: int
    """stands for pictures in a prompt"""
    audio_id: int
    """stands for clips in a prompt"""
    stop_ids: frozenset[int]
    """end an answer"""
    short_tokens: int
    """up to this length the language model's rotary scaling is the short one: 4,096"""
    longest_tokens: int
    """no prompt may be longer: 131,072"""


def load(folder: Path, device: str, dtype: str = "auto") -> Loaded:
    """Load the model of a folder in the converted layout, in transformers' own classes.

    Args:
        folder: as `folder.check` passed it.
        device: ``cpu`` or ``cuda:N``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ConfigError: the weights do not fit the config, or an unknown dtype.
        DeviceError: the device has too little memory, or failed.
    """
    number = choose_dtype(dtype, device)
    with _loading, _quiet(), device_faults(device, f"loading {folder}"):
        config = _config(folder)
        try:
            pair: Any = Phi4MultimodalForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=number,
                attn_implementation="sdpa",
                local_files_only=True,
                output_loading_info=True,
                device_map=None if device == "cpu" else {"": device},
            )
            model, info = cast("tuple[Phi4MultimodalForCausalLM, dict[str, Any]]", pair)
            _expect_whole(folder, info["missing_keys"], info["mismatched_keys"])
            if info["unexpected_keys"]:
                log.warning(
                    "%s: %d weights have no place in the model and were left out, %s first",
                    folder,
                    len(info["unexpected_keys"]),
                    min(info["unexpected_keys"]),
                )
            for name, subfolder in folders.ADAPTERS.items():
                _load_adapter(model, folder, name, subfolder)
            features = Phi4MultimodalFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{folder}: cannot be loaded ({error})") from error
        except RuntimeError as error:
            if "size mismatch" in str(error) or "ignore_mismatched_sizes" in str(error):
                raise ConfigError(f"{folder}: the weights do not fit config.json") from error
            raise
        model.eval().requires_grad_(False)
        correct(model)
    return Loaded(
        model,
        features,
        image_id=config.vision_config.image_token_id,
        audio_id=config.audio_config.audio_token_id,
        stop_ids=_stop_ids(model),
        short_tokens=config.original_max_position_embeddings,
        longest_tokens=config.max_position_embeddings,
    )


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """The number format for a device: on ``auto`` float32 on the CPU, half precision on a GPU.

    bfloat16 is the published weights' own; GPUs before compute capability 8.0 only emulate it.

    Raises:
        ConfigError: an unknown name.
    """
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise ConfigError(f"dtype: {dtype!r} is none of auto, {', '.join(DTYPES)}")
    if device == "cpu":
        return torch.float32
    modern = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if modern else torch.float16


def _config(folder: Path) -> Any:
    try:
        return Phi4MultimodalConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # its checks raise classes that share no base
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"{folder}/config.json: cannot be used ({first_line})") from error


def _load_adapter(
    model: Phi4MultimodalForCausalLM, folder: Path, name: str, subfolder: str
) -> None:
    info = model.load_adapter(
        str(folder),
        adapter_name=name,
        # Not load_adapter's own local_files_only: transformers 5.23 fails on it.
        adapter_kwargs={"subfolder": subfolder, "local_files_only": True},
    )
    # Of the missing keys only this adapter's count: the report also lists the base and the others.
    missing = {key for key in info.missing_keys if f".{name}." in key}
    _expect_whole(folder / subfolder, missing, info.mismatched_keys)


def _expect_whole(where: Path, missing: Collection[str], mismatched: Collection[object]) -> None:
    if missing:
        raise ConfigError(
            f"{where}: {len(missing)} weights are missing, {min(missing)} first. "
            "Download the model again"
        )
    if mismatched:
        raise ConfigError(f"{where}: {len(mismatched)} weights do not fit config.json")


def _stop_ids(model: Phi4MultimodalForCausalLM) -> frozenset[int]:
    """The ids that end an answer, by the generation config and by the config."""
    ids: set[int] = set()
    for config in (model.generation_config, model.config):
        eos: int | list[int] | None = config.eos_token_id
        ids.update([eos] if isinstance(eos, int) else eos or [])
    return frozenset(ids)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what loading says by default off the log.

    Progress bars; transformers' report, which calls the base's keys newly initialised when an
    adapter is loaded, which is false; peft's warning that there is a second adapter, as meant.
    """
    log_level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Already found a `peft_config` attribute", UserWarning
            )
            yield
    finally:
        transformers.logging.set_verbosity(log_level)
        if bars:
            transformers.logging.enable_progress_bar()
