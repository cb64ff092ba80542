from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from phi4d.engine import devices
from phi4d.engine.plan import Device
from phi4d.meter import Memory

GB = 10**9
MIB = 1 << 20


def test_probe_without_a_gpu_finds_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert devices.probe() == []


def test_probe_tells_what_each_gpu_is_and_has(monkeypatch):
    kinds = [
        SimpleNamespace(name="Tesla T4", major=7, minor=5),
        SimpleNamespace(name="NVIDIA A100", major=8, minor=0),
    ]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: kinds[index])
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda index: ((5 + index) * GB, 80 * GB))
    monkeypatch.setattr(devices, "_text", lambda path: "550.54.15\n")

    assert devices.probe() == [
        Device("cuda:0", "Tesla T4", 80 * GB, 5 * GB, (7, 5), False, "550.54.15"),
        Device("cuda:1", "NVIDIA A100", 80 * GB, 6 * GB, (8, 0), True, "550.54.15"),
    ]


def machine(root: Path, **files: str) -> Path:
    """Files of /proc and /sys below a folder; ``__`` stands for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


X86 = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx512f{}\n\nprocessor\t: 1\n"
MEMORY = "MemTotal:       16384 kB\nMemFree:         1024 kB\nMemAvailable:    8192 kB\n"


@pytest.mark.parametrize(
    ("facts", "product", "bfloat16"),
    [
        (X86.format(""), "Intel(R) Xeon(R)", False),
        (X86.format(" avx512_bf16"), "Intel(R) Xeon(R)", True),
        (X86.format(" amx_bf16"), "Intel(R) Xeon(R)", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", platform.machine(), True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", platform.machine(), False),
        ("", platform.machine(), False),
    ],
)
def test_the_cpu_and_whether_it_has_bfloat16(tmp_path, facts, product, bfloat16):
    root = machine(tmp_path, proc__cpuinfo=facts, proc__meminfo=MEMORY)

    assert devices.cpu(root) == Device("cpu", product, 16 * MIB, 8 * MIB, None, bfloat16)


CGROUP = {"proc__cpuinfo": "", "proc__meminfo": MEMORY, "proc__self__cgroup": "0::/a/b\n"}
STAT = "anon 1\ninactive_file 524288\nactive_file 524288\n"


@pytest.mark.parametrize(
    ("files", "total", "free"),
    [
        ({}, 16, 8),
        ({"a/b/memory.max": "max\n"}, 16, 8),
        ({"a/b/memory.max": str(4 * MIB), "a/b/memory.current": str(MIB)}, 4, 3),
        # cached files make room when it is short
        (
            {
                "a/b/memory.max": str(4 * MIB),
                "a/b/memory.current": str(2 * MIB),
                "a/b/memory.stat": STAT,
            },
            4,
            3,
        ),
        ({"a/memory.max": str(4 * MIB), "a/memory.current": str(5 * MIB)}, 4, 0),
        ({"a/b/memory.max": str(64 * MIB), "a/b/memory.current": "0"}, 16, 8),
    ],
)
def test_a_cgroup_s_limit_counts_where_it_is_lower(tmp_path, files, total, free):
    root = machine(tmp_path, **CGROUP)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    found = devices.cpu(root)

    assert (found.total_bytes / MIB, found.free_bytes / MIB) == (total, free)


def test_this_machine_s_own_cpu():
    found = devices.cpu()

    assert found.name == "cpu"
    assert found.product
    assert 0 < found.free_bytes < found.total_bytes


def test_packages_are_found_without_being_imported(tmp_path, monkeypatch):
    (tmp_path / "flash_attn.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)

    assert "flash_attn" in devices.installed()


def test_what_the_command_line_may_import_loads_neither_torch_nor_transformers():
    code = (
        "import sys, phi4d.engine, phi4d.engine.fake, phi4d.engine.checkpoint\n"
        "from phi4d.engine import devices, plan\n"
        "devices.cpu(), devices.installed()\n"
        "heavy = {'torch', 'transformers', 'peft', 'huggingface_hub', 'accelerate'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_gpu_that_has_no_room_to_be_asked_is_full(monkeypatch):
    def full(index):
        if index == 0:
            raise RuntimeError("CUDA error: out of memory")
        return (5 * GB, 80 * GB)

    properties = SimpleNamespace(name="GPU", major=9, minor=0, total_memory=80 * GB)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: properties)
    monkeypatch.setattr("torch.cuda.mem_get_info", full)
    assert [(gpu.free_bytes, gpu.total_bytes) for gpu in devices.probe()] == [
        (0, 80 * GB),
        (5 * GB, 80 * GB),
    ]


def test_what_a_gpus_memory_holds_of_others_and_of_ours(monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (50 * GB, 80 * GB))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 20 * GB)
    assert devices.memory("cuda:1") == Memory(80 * GB, 30 * GB, 20 * GB)


def test_a_gpu_that_is_lost_does_not_tell(monkeypatch):
    def lost(device):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr("torch.cuda.mem_get_info", lost)
    assert devices.memory("cuda:0") is None


def test_what_main_memory_holds():
    found = devices.memory("cpu")
    assert found is not None
    assert 0 < found.used_bytes <= found.size_bytes
    assert 0 < found.own_bytes < found.size_bytes


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 8),
        ({"a/b/cpu.max": "max 100000\n"}, 8),
        ({"a/b/cpu.max": "300000 100000\n"}, 3),
        ({"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "300000 100000\n"}, 1),
        ({"a/cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "3200000 100000\n"}, 8),
    ],
)
def test_cpus_are_those_of_the_affinity_or_less_by_a_cgroup_s_limit(
    tmp_path, monkeypatch, files, count
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    root = machine(tmp_path, **CGROUP)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert devices.cpu_count(root) == count
