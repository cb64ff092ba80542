from __future__ import annotations

import pytest
import torch

from phi4d.engine.quantize import Int8Linear, quantized


@pytest.fixture
def weight():
    torch.manual_seed(0)
    weight = torch.randn(64, 128)
    weight[3] *= 100  # a row's scale is its own
    weight[5] = 0
    return weight


def test_eight_bits_are_a_step_of_each_rows_largest_apart(weight):
    layer = quantized(weight, "8bit", "cpu", torch.float32)
    assert layer.weight.dtype is torch.int8
    restored = layer.weight * layer.scale
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((restored - weight).abs() <= step / 2 + 1e-6).all()


def test_four_bits_take_half_a_byte_a_weight(weight):
    layer = quantized(weight, "4bit", "cpu", torch.float32)
    assert layer.weight.numel() * layer.weight.element_size() == weight.numel() / 2


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_comes_out_is_near_to_the_whole_layers(weight, bits, dtype):
    x = torch.randn(2, 3, 128)
    whole = x @ weight.T
    made = quantized(weight.to(dtype), bits, "cpu", dtype)(x.to(dtype))
    assert (made.shape, made.dtype) == (whole.shape, dtype)
    off = (made.float() - whole).norm() / whole.norm()
    assert off < {"8bit": 0.02, "4bit": 0.15}[bits]


def test_a_rows_answer_does_not_depend_on_the_others(weight):
    """An outlier elsewhere in the batch changes nothing, as it does in LLM.int8()."""
    layer = Int8Linear(weight, torch.float32)
    x = torch.randn(4, 128)
    calm = layer(x)
    x[3] = 1000
    assert torch.equal(layer(x)[:3], calm[:3])


def test_it_computes_on_the_weights_device_and_leaves_the_weight_alone(weight):
    before = weight.clone()
    quantized(weight, "8bit", "cpu", torch.float32)
    quantized(weight, "4bit", "cpu", torch.float32)
    assert torch.equal(weight, before)
