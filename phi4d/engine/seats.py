"""The key and value cache: a seat for each answer that is being written.

All seats of a cache are equally long, in tensors that are allocated once. A request that comes
takes a seat, one that has ended leaves it: of the others nothing is moved or touched. A seat is
filled from its beginning, so nothing is padded on the left, and a step looks only as far as its
longest row.

A cache is what transformers' attention is given as such: `Filling` while prompts are read, `Going`
for a step of one token a row. `SeatedAttention` has them attend; transformers' own does where
prompts begin.
"""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right
from transformers.models.phi4_multimodal import modeling_phi4_multimodal as upstream

from phi4d.engine.rotary import Rotary

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Phi4MultimodalForCausalLM

    from phi4d.engine.arena import Arena

SPAN = 64
"""tokens; a step looks at a multiple of it, so that there are few shapes"""


class Seats:
    """The cache of a model.

    Args:
        model: whose layers it is for.
        count: how many answers may be written at a time.
        length: the most tokens of a prompt with its answer; above 4,096 it is for prompts which
            are longer than that.
        arena: where the memory comes from; None: from the device.

    Attributes:
        key_places: by layer, (key heads, places, size): all seats one behind the other.
        value_places: the same.
        keys: the same memory by seat, (count, key heads, length, size).
        values: the same.
    """

    def __init__(
        self,
        model: Phi4MultimodalForCausalLM,
        count: int,
        length: int,
        arena: Arena | None = None,
    ) -> None:
        self.count = count
        self.length = length
        bound = cast("int", model.config.original_max_position_embeddings)
        self.rotary = Rotary.of(model, long=length > bound)
        layers = len(model.model.layers)
        self._arena = arena
        if arena is not None:
            self._begin, places = arena.take(count * length + 1)
        else:
            heads, size = key_heads(model)
            shape = (heads, count * length + 1, size)
            like = {"dtype": model.model.embed_tokens.weight.dtype, "device": model.device}
            # zeros: what is masked out must be a number all the same, or it would spoil the sum
            places = [torch.zeros(shape, **like) for _ in range(2 * layers)]
        self.key_places, self.value_places = places[:layers], places[layers:]
        self.keys = [self._by_seat(places) for places in self.key_places]
        self.values = [self._by_seat(places) for places in self.value_places]
        self._free = list(range(count))
        self._written = [0] * count

    def close(self) -> None:
        """Give the arena its memory back."""
        if self._arena is not None:
            self._arena.leave(self._begin)

    def _by_seat(self, places: Tensor) -> Tensor:
        heads, _, size = places.shape
        return places[:, :-1].view(heads, self.count, self.length, size).transpose(0, 1)

    @property
    def nowhere(self) -> int:
        """The place behind all seats: what is written there nobody reads."""
        return self.count * self.length

    @property
    def free(self) -> int:
        """How many seats are not taken."""
        return len(self._free)

    def take(self) -> int:
        """A free seat, the lowest: rows that lie side by side are read in one go."""
        return heapq.heappop(self._free)

    def leave(self, seat: int) -> None:
        """Nobody needs what is in a seat any more."""
        if seat in self._free:
            raise ValueError(f"seat {seat} is free already")
        heapq.heappush(self._free, seat)

    def clear(self, seat: int, begin: int, end: int) -> None:
        """Prepare a seat for a row: what earlier rows left beyond its prompt may be no numbers.

        Args:
            seat: that was taken.
            begin: where the prompt ends, with its padding.
            end: where its answer will, at most.
        """
        if self._written[seat] > begin:
            for tensor in (*self.keys, *self.values):
                tensor[seat, :, begin : self._written[seat]] = 0
        self._written[seat] = max(begin, end)


@dataclass(frozen=True, slots=True)
class Filling:
    """The cache while prompts are read: whole, or a stretch of them."""

    seats: Seats
    rows: Tensor
    """(batch,) the seats of the rows"""
    begin: int
    """where in the prompts the stretch begins; what comes before is in the seats"""
    end: int
    mask: Tensor | None
    """(length, end) to add to the scores of a stretch that does not begin at the beginning: 0 up
    to a row's token, minus infinity beyond"""

    @classmethod
    def at(cls, seats: Seats, rows: Tensor, begin: int, end: int) -> Filling:
        """A stretch; see the fields."""
        if begin == 0:
            return cls(seats, rows, begin, end, None)
        if rows.is_cuda:  # the same, as a flag of the kernel
            return cls(seats, rows, begin, end, causal_lower_right(end - begin, end))
        mask = torch.full((end - begin, end), -torch.inf, dtype=seats.keys[0].dtype)
        return cls(seats, rows, begin, end, mask.triu(begin + 1))

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Keep (batch, key heads, length, size) of a layer; returns them with those before."""
        here = slice(self.begin, self.end)
        self.seats.keys[layer][self.rows, :, here] = keys
        self.seats.values[layer][self.rows, :, here] = values
        if self.begin == 0:
            return keys, values
        before = slice(0, self.end)
        return (
            self.seats.keys[layer][self.rows, :, before],
            self.seats.values[layer][self.rows, :, before],
        )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Keep the keys and values of a stretch, and let each token attend to all up to itself.

        Key heads are repeated: with a mask, torch's fast kernels want as many as there are query
        heads.

        Args:
            layer: its number.
            query: (batch, heads, length, size).
            key: (batch, key heads, length, size).
            value: the same.
            scale: of the scores.

        Returns:
            (batch, length, heads x size).
        """
        times = query.shape[1] // key.shape[1]
        key, value = (upstream.repeat_kv(kept, times) for kept in self.update(key, value, layer))
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self.mask, scale=scale
        )
        return out.transpose(1, 2).flatten(2)


@dataclass(frozen=True, slots=True)
class Going:
    """The cache for a step of one token a row."""

    seats: Seats
    runs: Sequence[tuple[int, int, int]]
    """the rows as stretches of neighbours: first and last (exclusive), and the first's seat"""
    positions: Tensor
    """(batch,) where each row's token stands"""
    places: Tensor
    """(batch,) the same among the places of all seats"""
    mask: Tensor
    """(batch, 1, 1, span) to add to the scores: 0 up to a row's token, minus infinity beyond"""

    @classmethod
    def at(
        cls,
        seats: Seats,
        rows: Tensor,
        runs: Sequence[tuple[int, int, int]],
        positions: Tensor,
        longest: int,
    ) -> Going:
        """A step of some seats.

        Args:
            seats: the cache.
            rows: (batch,) the rows' seats, ascending.
            runs: see `stretches`.
            positions: see `Going.positions`.
            longest: of the positions, which are on the device, no less than the largest.
        """
        span = min(seats.length, -(-(longest + 1) // SPAN) * SPAN)
        places = rows * seats.length + positions
        return cls(seats, runs, positions, places, _up_to(positions, span, seats))

    @classmethod
    def over(cls, seats: Seats, positions: Tensor, live: Tensor, span: int) -> Going:
        """A step of the lowest seats, whoever has them: the same calls each time.

        Args:
            seats: the cache.
            positions: (batch,) of the lowest ``batch`` seats.
            live: (batch,) bool, which of them are gone on with; the others are worked out in vain,
                and what is in them stays as it is.
            span: no position of a live one is so large.
        """
        count = len(positions)
        places = torch.arange(count, device=positions.device) * seats.length + positions
        places = torch.where(live, places, seats.nowhere)
        mask = _up_to(positions, span, seats)
        return cls(seats, [(0, count, 0)], positions, places, mask)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Keep the keys and values of the tokens, and let these attend to all of their rows.

        The query heads that share a key head are given as so many positions of one head, so that
        no key is copied for each of them.

        Args:
            layer: its number.
            query: (batch, heads, 1, size).
            key: (batch, key heads, 1, size).
            value: the same.
            scale: of the scores.

        Returns:
            (batch, 1, heads x size).
        """
        keys, values = self.seats.keys[layer], self.seats.values[layer]
        self.seats.key_places[layer][:, self.places] = key[:, :, 0].transpose(0, 1)
        self.seats.value_places[layer][:, self.places] = value[:, :, 0].transpose(0, 1)
        batch, heads, size = key.shape[0], key.shape[1], key.shape[3]
        query = query.reshape(batch, heads, -1, size)
        span = self.mask.shape[-1]
        made = [
            functional.scaled_dot_product_attention(
                query[begin:end],
                keys[seat : seat + end - begin, :, :span],
                values[seat : seat + end - begin, :, :span],
                attn_mask=self.mask[begin:end],
                scale=scale,
            )
            for begin, end, seat in self.runs
        ]
        out = made[0] if len(made) == 1 else torch.cat(made)
        return out.reshape(batch, 1, -1)


def _up_to(positions: Tensor, span: int, seats: Seats) -> Tensor:
    """`Going.mask`."""
    beyond = torch.arange(span, device=positions.device) > positions[:, None]
    mask = torch.zeros(beyond.shape, dtype=seats.keys[0].dtype, device=positions.device)
    return mask.masked_fill_(beyond, -torch.inf)[:, None, None]


class SeatedAttention(upstream.Phi4MultimodalAttention):
    """The upstream layer, but for what its caches see to themselves."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As upstream's; its caches have one name up to transformers 5.23, another since."""
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        if not isinstance(cache, Filling | Going) or cache.mask is None:
            return super().forward(*args, **kwargs)
        hidden: Tensor = kwargs["hidden_states"]
        cos, sin = kwargs["position_embeddings"]
        size = self.head_dim
        key_width = cast("int", self.num_key_value_heads) * size
        widths = [self.num_key_value_groups * key_width, key_width, key_width]
        query, key, value = (
            part.unflatten(-1, (-1, size)).transpose(1, 2)
            for part in self.qkv_proj(hidden).split(widths, dim=-1)
        )
        query, key = upstream.apply_rotary_pos_emb(query, key, cos, sin)
        out = cache.attend(cast("int", self.layer_idx), query, key, value, self.scaling)
        return self.o_proj(out), None


def seated(model: Phi4MultimodalForCausalLM) -> None:
    """Have a model's layers know our caches, in place; with any other nothing changes."""
    for layer in list(model.model.layers):
        layer.self_attn.__class__ = SeatedAttention


def cache_argument(model: Phi4MultimodalForCausalLM) -> str:
    """What layers call the cache; transformers 5.24 renamed it, and warns of the old name."""
    known = inspect.signature(type(model.model.layers[0]).forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def stretches(rows: Sequence[int]) -> list[tuple[int, int, int]]:
    """Ascending seats as stretches of neighbours, see `Going.runs`: 0, 1, 4 are two."""
    cuts = [i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1]
    return [
        (begin, end, rows[begin]) for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)
    ]


def token_bytes(model: Phi4MultimodalForCausalLM) -> int:
    """What a token takes in the cache."""
    heads, size = key_heads(model)
    numbers = 2 * len(model.model.layers) * heads * size
    return int(numbers * model.model.embed_tokens.weight.element_size())


def key_heads(model: Phi4MultimodalForCausalLM) -> tuple[int, int]:
    """How many there are in a layer, and how many numbers each has of a token."""
    layer = cast("Any", model.model.layers[0])
    return cast("int", model.config.num_key_value_heads), cast("int", layer.self_attn.head_dim)
