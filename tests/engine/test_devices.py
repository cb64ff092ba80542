from __future__ import annotations

import subprocess
import sys

import pytest

from phi4d.engine import devices
from phi4d.errors import ConfigError

GB = 10**9
TWO_GPUS = [("cuda:0", 20 * GB), ("cuda:1", 40 * GB)]
CROWDED = [("cuda:0", 3 * GB), ("cuda:1", 24 * GB), ("cuda:2", 8 * GB)]


@pytest.mark.parametrize(
    ("device", "found", "options", "chosen"),
    [
        ("auto", [], {}, ["cpu"]),
        ("auto", TWO_GPUS, {}, ["cuda:0", "cuda:1"]),
        ("AUTO ", TWO_GPUS, {}, ["cuda:0", "cuda:1"]),
        ("auto", CROWDED, {}, ["cuda:1", "cuda:2"]),
        ("auto", CROWDED, {"multi_gpu_threshold_gb": 2.5}, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", CROWDED, {"multi_gpu_threshold_gb": 100}, ["cuda:1"]),
        ("auto", [("cuda:0", 1 * GB)], {}, ["cuda:0"]),
        ("auto", TWO_GPUS, {"disable_parallel": True}, ["cuda:1"]),
        ("auto", TWO_GPUS, {"force_cpu": True}, ["cpu"]),
        ("cuda", TWO_GPUS, {}, ["cuda:0", "cuda:1"]),
        ("cuda", TWO_GPUS, {"force_cpu": True}, ["cpu"]),
        ("cuda", [], {"force_cpu": True}, ["cpu"]),
        ("cpu", TWO_GPUS, {}, ["cpu"]),
        ("cpu,cpu", [], {}, ["cpu", "cpu"]),
        ("cpu,cpu", [], {"force_cpu": True}, ["cpu", "cpu"]),
        ("cpu,cpu", [], {"disable_parallel": True}, ["cpu"]),
        ("cuda:0", CROWDED, {}, ["cuda:0"]),  # who names a GPU means it
        ("cuda:2, cuda:0", CROWDED, {}, ["cuda:2", "cuda:0"]),
        ("cuda:1,cuda:1", TWO_GPUS, {}, ["cuda:1", "cuda:1"]),
        ("cuda:0,cpu", TWO_GPUS, {}, ["cuda:0", "cpu"]),
        ("cuda:0,cpu", TWO_GPUS, {"force_cpu": True}, ["cpu"]),
        ("cuda:0,cuda:1", [], {"force_cpu": True}, ["cpu"]),
        ("cuda:1,cuda:0", TWO_GPUS, {"disable_parallel": True}, ["cuda:1"]),
    ],
)
def test_choice(device, found, options, chosen):
    assert devices.choose(device, found, **options) == chosen


@pytest.mark.parametrize(
    ("device", "found", "said"),
    [
        ("cuda", [], "finds no GPU"),
        ("cuda:3", TWO_GPUS, "'cuda:3' is not there; torch finds cuda:0, cuda:1"),
        ("cuda:0", [], "torch finds no GPU"),
        ("gpu", TWO_GPUS, "'gpu' is no device"),
        ("", TWO_GPUS, "'' is no device"),
        ("cuda:0,", TWO_GPUS, "'' is no device"),
        ("cuda:0,auto", TWO_GPUS, "'auto' is no device"),
        ("0,1", TWO_GPUS, "'0' is no device"),
        ("cuda:-1", TWO_GPUS, "'cuda:-1' is no device"),
        ("mps", [], "'mps' is no device"),
    ],
)
def test_refusal_says_what_is_wrong(device, found, said):
    with pytest.raises(ConfigError, match="device: ") as caught:
        devices.choose(device, found)
    assert said in str(caught.value)


def test_refusal_lists_every_wrong_name():
    with pytest.raises(ConfigError) as caught:
        devices.choose("cuda:7,gpu,cpu", TWO_GPUS)
    assert len(caught.value.faults) == 2


def test_a_bad_name_is_refused_on_force_cpu_too():
    with pytest.raises(ConfigError, match="'gpu' is no device"):
        devices.choose("gpu", [], force_cpu=True)


def test_probe_without_a_gpu_finds_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert devices.probe() == []


def test_probe_asks_each_gpu_for_its_free_memory(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda index: ((5 + index) * GB, 80 * GB))
    assert devices.probe() == [("cuda:0", 5 * GB), ("cuda:1", 6 * GB)]


def test_what_the_command_line_may_import_loads_neither_torch_nor_transformers():
    code = (
        "import sys, phi4d.engine, phi4d.engine.fake, phi4d.engine.devices, phi4d.engine.folder\n"
        "heavy = {'torch', 'transformers', 'peft', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
