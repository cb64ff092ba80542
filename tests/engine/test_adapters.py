from __future__ import annotations

import pytest
import torch
from enginekit import CHECKPOINT, upstream_model
from torch import nn

from phi4d.engine.adapters import Adapted, Switch, merged
from phi4d.engine.checkpoint import read
from phi4d.engine.loader import load
from phi4d.engine.plan import Slot


@pytest.fixture
def layer():
    torch.manual_seed(0)
    low_rank = {name: (torch.randn(2, 6), torch.randn(5, 2)) for name in ("vision", "speech")}
    switch = Switch()
    return Adapted(nn.Linear(6, 5, bias=False), switch, low_rank, {"vision": 2.0, "speech": 0.5})


def test_the_adapter_that_is_switched_on_works(layer):
    x = torch.randn(3, 6)
    with torch.no_grad():
        plain = layer(x)
        for name, scale in (("vision", 2.0), ("speech", 0.5)):
            layer.switch.adapter = name
            expected = plain + x @ layer.lora_A[name].T @ layer.lora_B[name].T * scale
            assert torch.allclose(layer(x), expected, atol=1e-6)
        layer.switch.adapter = "none"
        assert torch.equal(layer(x), plain)


def test_a_merged_weight_does_what_the_adapter_beside_it_does(layer):
    x = torch.randn(3, 6)
    layer.switch.adapter = "vision"
    a, b = layer.lora_A["vision"], layer.lora_B["vision"]
    with torch.no_grad():
        weight = merged(layer.base.weight, a, b, 2.0)
        assert torch.allclose(x @ weight.T, layer(x), atol=1e-5)


def test_merging_in_half_precision_rounds_once():
    torch.manual_seed(1)
    weight, a, b = torch.randn(8, 8), torch.randn(2, 8) / 9, torch.randn(8, 2) / 9
    halves = [tensor.bfloat16() for tensor in (weight, a, b)]
    exact = halves[0].double() + halves[2].double() @ halves[1].double()
    assert torch.equal(merged(*halves, 1.0), exact.bfloat16())


@pytest.mark.parametrize("adapter", ["vision", "speech"])
def test_the_logits_are_those_of_peft(adapter):
    upstream = upstream_model()
    upstream.load_adapter(
        str(CHECKPOINT), adapter_name=adapter, adapter_kwargs={"subfolder": f"{adapter}-lora"}
    )
    ids = torch.arange(20, 60)[None]
    checkpoint = read(CHECKPOINT)
    with torch.no_grad():
        expected = upstream(input_ids=ids).logits
        beside = load(checkpoint, Slot("cpu")).use(adapter)(input_ids=ids).logits
        within = load(checkpoint, Slot("cpu", merged=True)).use(adapter)(input_ids=ids).logits
    assert torch.equal(beside, expected)
    assert torch.allclose(within, expected, atol=1e-4)
