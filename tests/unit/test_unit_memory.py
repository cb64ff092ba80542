"""The limit of memory: never below what may be wanted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from unitkit import config_of, machine

from phi4d.engine.plan import PUBLISHED
from phi4d.unit import memory
from phi4d.unit.dropin import settings

HUB = 'model_path = "microsoft/Phi-4-multimodal-instruct"\n'
PARAMETERS = PUBLISHED.language + PUBLISHED.embedding + PUBLISHED.towers


@pytest.mark.parametrize(
    ("keys", "gpus", "expected"),
    [
        ("", 0, (0, 1)),
        ("", 4, (4, 0)),
        ('device = "cuda"', 0, (1, 0)),
        ("disable_parallel = true", 4, (1, 0)),
        ("force_cpu = true", 4, (0, 1)),
        ('device = "cuda:0,cuda:2,cpu"', 4, (2, 1)),
        ('device = "cpu,cpu"', 4, (0, 2)),
        ('device = "cpu,cpu"\ndisable_parallel = true', 0, (0, 1)),
    ],
)
def test_the_slots_are_counted_without_torch(
    tmp_path: Path, keys: str, gpus: int, expected: tuple[int, int]
):
    assert memory.slots(config_of(keys, tmp_path), machine(gpus=gpus)) == expected


def test_the_model_on_the_cpu_and_every_decode_process_have_room(tmp_path: Path):
    keys = 'dtype = "float32"\ndecode_processes = 3\ndecode_memory_gb = 5.0'
    found = memory.bound(config_of(HUB + keys, tmp_path), machine(1000))

    assert found.size > 4 * PARAMETERS + 15e9 + memory.PROCESS_BYTES
    assert "15 GB for decode_processes" in found.why


def test_a_second_slot_wants_as_much_again(tmp_path: Path):
    one, two = (
        memory.bound(config_of(f'{HUB}device = "{device}"', tmp_path), machine(1000)).size
        for device in ("cpu", "cpu,cpu")
    )
    assert two - memory.PROCESS_BYTES == 2 * (one - memory.PROCESS_BYTES)


@pytest.mark.parametrize(("dtype", "number"), [("auto", 2), ("float16", 2), ("float32", 4)])
def test_on_a_gpu_the_language_model_may_wait_in_main_memory(
    tmp_path: Path, dtype: str, number: int
):
    host = machine(1000, gpus=1)
    keys = f'{HUB}dtype = "{dtype}"\n'
    may, may_not = (
        memory.bound(config_of(f'{keys}offload = "{offload}"', tmp_path), host).size
        for offload in ("auto", "never")
    )
    assert may - may_not == number * PUBLISHED.language


def test_the_limit_is_rounded_up(tmp_path: Path):
    config, host = config_of(HUB, tmp_path), machine(1000)
    (setting,) = settings(config, host)

    gib = re.fullmatch(r"MemoryMax=(\d+)G", str(setting))
    assert gib
    wanted = memory.bound(config, host).size
    assert wanted <= int(gib[1]) * 2**30 < wanted + 2**30
    assert setting.why.startswith("against a leak, not to save; at most ")


@pytest.mark.parametrize(
    ("keys", "memory_gb", "why"),
    [
        (HUB, 8, r"\d+ GB may be wanted, and this machine has 8"),
        ('model_path = "/srv/none"', 1000, "cannot be told before it is here"),
        ('model_path = "other/model"', 1000, "cannot be told before it is here"),
    ],
)
def test_where_there_is_no_limit_it_says_why(tmp_path: Path, keys: str, memory_gb: float, why: str):
    cache = f'\ncache_dir = "{tmp_path}/none"\ndevice = "cpu"'
    (setting,) = [
        each
        for each in settings(config_of(keys + cache, tmp_path), machine(memory_gb))
        if "MemoryMax" in each.why
    ]
    assert setting.name == ""
    assert re.search(why, setting.why)
