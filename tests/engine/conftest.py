"""One loaded model for all tests of the engine room: the demo checkpoint, on the CPU, in float32.

Nothing here may use the network or a GPU.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from enginekit import CHECKPOINT, upstream_model
from transformers import Phi4MultimodalForCausalLM

from phi4d.engine.phi4 import Phi4Engine
from phi4d.engine.plan import Slot

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # for `import checkpoints`


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The model is tiny: more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    """A bar of transformers' own would start a thread that stays."""
    transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _readers_end(_no_leaks: None) -> Iterator[None]:
    """Wait for the threads by which transformers reads weights; it does not."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(10)


@pytest.fixture(scope="session")
def engine() -> Iterator[Phi4Engine]:
    engine = Phi4Engine.load(str(CHECKPOINT))
    yield engine
    engine.close()


@pytest.fixture(scope="session", params=["none", "8bit", "4bit"])
def loaded_engine(request: pytest.FixtureRequest, engine: Phi4Engine) -> Iterator[Phi4Engine]:
    """An engine for each ``quantization`` of the language model."""
    if request.param == "none":
        yield engine
        return
    quantized = Phi4Engine.load(CHECKPOINT, Slot("cpu", quantization=request.param))
    yield quantized
    quantized.close()


@pytest.fixture
def upstream() -> Phi4MultimodalForCausalLM:
    """The model as transformers loads it: no correction, no adapter."""
    return upstream_model()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the model's folder, to break."""
    copy = tmp_path / "model"
    shutil.copytree(CHECKPOINT, copy, copy_function=shutil.copyfile)
    return copy
