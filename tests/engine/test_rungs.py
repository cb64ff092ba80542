"""What each rung takes; how a slot chooses among them is in test_plan.py."""

from __future__ import annotations

import pytest

from phi4d.engine.plan import PUBLISHED, Device, Size, Wishes
from phi4d.engine.rungs import PARAMETERS, TIGHT, flash_lacks, quantized_lacks, rungs_of

GB = 10**9
GPU = Device("cuda:0", "NVIDIA L4", 24 * GB, 23 * GB, (8, 9), True)
CPU = Device("cpu", "Xeon", 64 * GB, 60 * GB)
B16 = "bfloat16"
QUANTIZED = [f"{B16}, 8bit", f"{B16}, 4bit"]
ALL = {"flash_attn", "bitsandbytes", "accelerate"}


def words(device: Device, **wishes: str) -> list[str]:
    return [str(rung) for rung in rungs_of(device, PUBLISHED, Wishes(**wishes), ALL)]


@pytest.mark.parametrize(
    ("device", "wishes", "expected"),
    [
        (GPU, {}, [f"{B16}, merged adapters", f"{B16}, unmerged adapters", *QUANTIZED]),
        (GPU, {"merge_adapters": "never"}, [f"{B16}, unmerged adapters", *QUANTIZED]),
        (GPU, {"merge_adapters": "always"}, [f"{B16}, merged adapters"]),
        (GPU, {"quantization": "4bit"}, [f"{B16}, 4bit"]),
        (
            CPU,
            {"quantization": "none"},
            ["float32, unmerged adapters", f"{B16}, unmerged adapters"],
        ),
        (CPU, {"dtype": "float16", "quantization": "none"}, ["float16, unmerged adapters"]),
    ],
)
def test_the_rungs_and_their_order(device, wishes, expected):
    assert words(device, **wishes) == expected


def test_what_the_weights_take():
    merged, unmerged, eight, four = rungs_of(GPU, PUBLISHED, Wishes(), ALL)
    rest = 2 * (PUBLISHED.embedding + PUBLISHED.towers)
    adapters = 2 * (PUBLISHED.vision_adapter + PUBLISHED.speech_adapter)

    assert merged.weights == 4 * PUBLISHED.language + rest
    assert unmerged.weights == 2 * PUBLISHED.language + rest + adapters
    assert eight.weights == PUBLISHED.language + rest + adapters
    # 64 weights: 32 bytes and a scale of 4
    assert four.weights == PUBLISHED.language // 64 * 36 + rest + adapters


def test_room_to_work_in_goes_with_the_number_format_and_the_size_of_the_model():
    def room(size: Size, dtype: str) -> int:
        return rungs_of(GPU, size, Wishes(dtype=dtype), ALL)[0].comfortable

    context = 500_000_000
    bfloat16, float16, float32 = (
        room(PUBLISHED, dtype) for dtype in ("bfloat16", "float16", "float32")
    )
    small = Size(*(count // 100 for count in (10**9, 10**9, 10**9, 10**9, 10**9)), 655)

    assert float32 - context == pytest.approx(2 * (bfloat16 - context), abs=2)
    # what is kept in float32 in float16 is more than what the image tower wants
    assert bfloat16 < float16 < float32
    assert context < room(small, "bfloat16") < context + 50_000_000


def test_the_least_room_holds_a_layer_s_weight_that_8_bits_are_made_anew_for_each_use():
    layer = 16_384 * 3_072 * 2
    prompt = 1_329 * (16_384 + 3_072) * 2  # what is multiplied, and what comes of it

    assert TIGHT.activations > layer + prompt


def test_the_published_size_is_the_one_that_was_measured():
    total = (
        PUBLISHED.language
        + PUBLISHED.embedding
        + PUBLISHED.towers
        + PUBLISHED.vision_adapter
        + PUBLISHED.speech_adapter
    )

    assert total == PARAMETERS


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_only_what_lies_on_the_disk_as_it_is_used_is_mapped(dtype):
    (rung,) = rungs_of(CPU, PUBLISHED, Wishes(dtype=dtype, quantization="none"), ALL)

    assert bool(rung.mapped) is (dtype == "bfloat16")
    assert all(other.mapped == 0 for other in rungs_of(GPU, PUBLISHED, Wishes(), ALL))


@pytest.mark.parametrize(
    ("capability", "dtype", "installed", "reasons"),
    [
        ((8, 0), "bfloat16", ALL, 0),
        ((12, 0), "float16", ALL, 0),
        ((7, 5), "float16", ALL, 1),
        ((8, 9), "float32", ALL, 1),
        ((8, 9), "bfloat16", set(), 1),
        ((7, 0), "float32", set(), 3),
        (None, "bfloat16", ALL, 1),
    ],
)
def test_flash_attention_s_demands(capability, dtype, installed, reasons):
    device = Device("cuda:0", "GPU", GB, GB, capability)

    assert len(flash_lacks(device, dtype, installed)) == reasons


@pytest.mark.parametrize(
    ("capability", "quantization", "had"),
    [
        ((6, 0), "4bit", True),
        ((5, 2), "4bit", False),
        ((5, 0), "8bit", True),
        (None, "8bit", True),
        (None, "4bit", True),
        ((5, 0), "none", True),
    ],
)
def test_the_demands_of_quantization(capability, quantization, had):
    device = Device("cuda:0", "GPU", GB, GB, capability)

    assert (quantized_lacks(device, quantization, ALL) == "") is had
    assert (quantized_lacks(device, quantization, {"accelerate"}) == "") is (quantization != "4bit")
