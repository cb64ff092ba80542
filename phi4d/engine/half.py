"""float16 without its overflows: what GPUs before Ampere need, which have no fast bfloat16.

float16 ends at 65,504. Weights and matrix products stay in it; what can grow beyond is kept in
float32: the language model's residual stream, and the product inside its feed-forward layers, which
is brought into range before the next matrix. A tower stays float16 until something in it overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from transformers.models.phi4_multimodal import modeling_phi4_multimodal as upstream

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Phi4MultimodalForCausalLM

LARGEST = 16.0
"""into a down projection: 8,192 products with weights of some 0.1 then stay far below 65,504"""


def widen(model: Phi4MultimodalForCausalLM) -> None:
    """Keep a float16 model's residual stream and feed-forward products from overflowing, in place.

    Args:
        model: with its adapters, beside or merged.
    """
    inner = model.model
    inner.embed_tokens.register_forward_hook(lambda _module, _inputs, output: output.float())
    inner.rotary_emb.register_forward_hook(
        lambda _module, _inputs, turns: tuple(turn.half() for turn in turns)
    )
    for layer in list(inner.layers):
        layer.mlp.__class__ = _WideMLP
        for module in (layer.self_attn.qkv_proj, layer.mlp.gate_up_proj):
            module.register_forward_pre_hook(_to_half)
    model.lm_head.register_forward_pre_hook(_to_half)


def finite(tower: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """What a tower makes; if float16 was too small for it, the tower is float32 from then on.

    Args:
        tower: the part that ``run`` calls.
        run: makes the features.
    """
    made = run()
    if next(tower.parameters()).dtype is not torch.float16 or bool(made.isfinite().all()):
        return made
    del made
    try:
        tower.float()
    except RuntimeError:  # no room: what is float32 by now must not stay so beside the rest
        tower.half()
        raise
    return run()


class _WideMLP(upstream.Phi4MultimodalMLP):
    """The upstream layer with its product in float32, scaled before it becomes float16 again."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        product = self.activation_fn(gate.float()).mul_(up)
        del gate, up  # as large as the product, which for a long prompt has hundreds of megabytes
        scale = (product.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=1)
        down = self.down_proj(product.div_(scale).half())
        return cast("Tensor", down.float().mul_(scale))


def _to_half(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].half(), *inputs[1:])
