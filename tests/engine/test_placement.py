from __future__ import annotations

import pytest

from phi4d.engine.placement import finds_its_own, place, wants_gpus
from phi4d.engine.plan import Device, Wishes

GB = 10**9


def gpus(*free_gb: float) -> list[Device]:
    return [
        Device(f"cuda:{index}", "GPU", 80 * GB, int(free * GB), (9, 0))
        for index, free in enumerate(free_gb)
    ]


TWO = gpus(20, 40)
CROWDED = gpus(3, 24, 8)


@pytest.mark.parametrize(
    ("device", "found", "options", "chosen"),
    [
        ("auto", [], {}, ["cpu"]),
        ("auto", TWO, {}, ["cuda:0", "cuda:1"]),
        ("AUTO ", TWO, {}, ["cuda:0", "cuda:1"]),
        ("auto", CROWDED, {}, ["cuda:1", "cuda:2"]),
        ("auto", CROWDED, {"multi_gpu_threshold_gb": 2.5}, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", CROWDED, {"multi_gpu_threshold_gb": 100}, ["cuda:1"]),
        ("auto", gpus(1), {}, ["cuda:0"]),
        ("auto", TWO, {"disable_parallel": True}, ["cuda:1"]),
        ("auto", TWO, {"force_cpu": True}, ["cpu"]),
        ("cuda", TWO, {}, ["cuda:0", "cuda:1"]),
        ("cuda", TWO, {"force_cpu": True}, ["cpu"]),
        ("cuda", [], {"force_cpu": True}, ["cpu"]),
        ("cpu", TWO, {}, ["cpu"]),
        ("cpu,cpu", [], {}, ["cpu", "cpu"]),
        ("cpu,cpu", [], {"force_cpu": True}, ["cpu", "cpu"]),
        ("cpu,cpu", [], {"disable_parallel": True}, ["cpu"]),
        ("cuda:0", CROWDED, {}, ["cuda:0"]),  # who names a GPU means it
        ("cuda:2, cuda:0", CROWDED, {}, ["cuda:2", "cuda:0"]),
        ("cuda:1,cuda:1", TWO, {}, ["cuda:1", "cuda:1"]),
        ("cuda:0,cpu", TWO, {}, ["cuda:0", "cpu"]),
        ("cuda:0,cpu", TWO, {"force_cpu": True}, ["cpu"]),
        ("cuda:0,cuda:1", [], {"force_cpu": True}, ["cpu"]),
        ("cuda:1,cuda:0", TWO, {"disable_parallel": True}, ["cuda:1"]),
    ],
)
def test_choice(device, found, options, chosen):
    assert place(found, Wishes(device, **options)) == (chosen, [])


@pytest.mark.parametrize(
    ("device", "found", "said"),
    [
        ("cuda", [], "finds no GPU"),
        ("cuda:3", TWO, "'cuda:3' is not there; torch finds cuda:0, cuda:1"),
        ("cuda:0", [], "torch finds no GPU"),
        ("gpu", TWO, "'gpu' is no device"),
        ("", TWO, "'' is no device"),
        ("cuda:0,", TWO, "'' is no device"),
        ("cuda:0,auto", TWO, "'auto' is no device"),
        ("0,1", TWO, "'0' is no device"),
        ("cuda:-1", TWO, "'cuda:-1' is no device"),
        ("mps", [], "'mps' is no device"),
    ],
)
def test_a_fault_says_what_is_wrong(device, found, said):
    _, faults = place(found, Wishes(device))

    assert faults
    assert faults[0].startswith("device: ")
    assert said in faults[0]


def test_every_wrong_name_has_its_fault_and_the_others_are_chosen():
    names, faults = place(TWO, Wishes("cuda:7,gpu,cpu,cuda:7"))

    assert names == ["cpu"]
    assert len(faults) == 2


def test_a_bad_name_is_refused_on_force_cpu_too():
    assert "'gpu' is no device" in place([], Wishes("gpu", force_cpu=True))[1][0]


@pytest.mark.parametrize(
    ("wishes", "wanted"),
    [
        (Wishes("auto"), True),
        (Wishes("cuda"), True),
        (Wishes("cpu,cuda:0"), True),
        (Wishes("cpu"), False),
        (Wishes("cpu, CPU"), False),
        (Wishes("auto", force_cpu=True), False),
        (Wishes("cuda:0", force_cpu=True), False),
    ],
)
def test_gpus_are_looked_for_only_where_one_can_be_wanted(wishes, wanted):
    assert wants_gpus(wishes) is wanted


@pytest.mark.parametrize(
    ("device", "ours"), [("auto", True), ("Cuda", True), ("cuda:0", False), ("cpu", False)]
)
def test_devices_are_found_or_named(device, ours):
    assert finds_its_own(Wishes(device)) is ours
