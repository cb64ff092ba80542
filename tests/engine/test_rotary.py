"""The turns of positions, against the model's own module."""

from __future__ import annotations

import pytest
import torch

from phi4d.engine.rotary import Rotary


@pytest.mark.parametrize(("length", "long"), [(1, False), (4096, False), (4097, True)])
def test_they_are_those_of_the_models_own_module(upstream, length, long):
    positions = torch.arange(length)[None]
    expected = upstream.model.rotary_emb(torch.zeros(1), positions)
    turns = Rotary.of(upstream, long=long).turns(positions)
    assert all(torch.equal(ours, own) for ours, own in zip(turns, expected, strict=True))


def test_the_beginning_of_a_long_prompt_is_turned_as_in_the_whole(upstream):
    # given that the model's own module would take a beginning for a short prompt
    positions = torch.arange(5000)[None]
    rotary, own = Rotary.of(upstream, long=True), upstream.model.rotary_emb
    whole, _ = own(torch.zeros(1), positions)
    assert not torch.equal(own(torch.zeros(1), positions[:, :100])[0], whole[:, :100])
    # then
    assert torch.equal(rotary.turns(positions[:, :100])[0], whole[:, :100])
