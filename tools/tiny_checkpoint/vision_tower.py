"""Stage: the vision tower learns to see shapes, by dense losses on the cells of a picture.

A cell is what one image token of the global view covers: 28 by 28 pixels, two by two patches.
The tower is trained on windows of 7 by 7 cells about a shape, which carries over to all 256 cells
and costs a tenth.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import synth
import tiny
import torch
import training
from torch import Tensor, nn
from torch.nn import functional

CELLS = 16
"""Cells along a side."""
CELL_PX = 28
FRAME_PX = 448
NONE = len(synth.KINDS)
WINDOW = 7
"""Cells along the side of the part of a picture that is trained on: a thing fills up to 5.2."""
MARK = ((0.0, 1.0), (0.88, 0.88), (0.0, 1.0))
"""Where a shape is counted, in radii left of its middle and above: the top of a circle, a square's
corner, a triangle's apex. What is there can be told from near by, a shape's middle from afar only.
"""
WHOLE_FROM = 1500
"""From this step on, one in four looks at whole pictures."""
WIDTH_OF_TURN = 1 / 3
"""A mark passes from one cell to the next over this part of the way between them."""


def frame(rng: Random, *, most: int = 3, clean: bool = False) -> tuple[np.ndarray, synth.Scene]:
    """The global view of a picture: longer side 448 pixels, white below or beside."""
    size = rng.choice(synth.SIZES)
    scene = synth.scene(rng, size, most)
    width, height = (round(FRAME_PX * side / max(size)) for side in size)
    if clean:
        drawn = scene.draw(width, height)
    elif rng.random() < 0.2:  # drawn at its own size, as files are
        drawn = synth.wear_picture(rng, scene.draw(*size)).resize(
            (width, height), synth.Image.Resampling.BICUBIC
        )
    else:
        drawn = synth.wear_picture(rng, scene.draw(width, height))
    if drawn.size == (FRAME_PX, FRAME_PX):
        return np.asarray(drawn), scene
    canvas = synth.Image.new("RGB", (FRAME_PX, FRAME_PX), (255, 255, 255))
    canvas.paste(drawn, (0, 0))
    return np.asarray(canvas), scene


class Lesson(NamedTuple):
    """Pictures and what is true of each of their cells."""

    frames: Tensor
    """(batch, 448, 448, 3) uint8"""
    kinds: Tensor
    """(batch, cells) the kind that a cell's centre lies on, or `NONE`"""
    marks: Tensor
    """(batch, cells, kinds) the share of a thing's mark that falls to the cell: sums to counts"""
    asked: Tensor
    """(batch, cells) bool: the cells that are judged"""

    def at(self, cells: Tensor, asked: Tensor) -> Lesson:
        """The labels of some cells only."""
        return self._replace(
            asked=asked,
            kinds=self.kinds.gather(1, cells),
            marks=self.marks.gather(1, cells[..., None].expand(-1, -1, NONE)),
        )


_CENTRES = (np.arange(CELLS) + 0.5) / CELLS
_RIGHT, _DOWN = np.meshgrid(_CENTRES, _CENTRES)


def labels(scene: synth.Scene) -> tuple[np.ndarray, np.ndarray]:
    """Kinds and marks of all cells, as in `Lesson`."""
    kinds = np.full((CELLS, CELLS), NONE)
    marks = np.zeros((CELLS, CELLS, NONE), np.float32)
    for thing in scene.things:
        x, y, r = _RIGHT - thing.x, _DOWN - thing.y, thing.radius
        match synth.SHAPES[thing.kind % 3]:
            case "circle":
                inside = x**2 + y**2 < r**2
            case "square":
                inside = np.maximum(abs(x), abs(y)) < 0.88 * r
            case _:
                inside = (y < 0.75 * r) & (abs(x) * 1.75 < 0.95 * (y + r))
        kinds[inside] = thing.kind
        for row, down in _shares(thing.y - MARK[thing.kind % 3][1] * r):
            for column, right in _shares(thing.x - MARK[thing.kind % 3][0] * r):
                marks[row, column, thing.kind] += down * right
    return kinds.reshape(-1), marks.reshape(CELLS**2, NONE)


def _shares(place: float) -> list[tuple[int, float]]:
    """The one or two cells along an axis that a mark falls to, and how much to each."""
    at = min(max(place * CELLS - 0.5, 0.0), CELLS - 1.001)
    low = int(at)
    high = min(1.0, max(0.0, (at - low - 0.5) / WIDTH_OF_TURN + 0.5))
    return [(low, 1 - high), (low + 1, high)]


def lesson(
    rng: Random, count: int, *, single: bool = False, window: int | None = None
) -> tuple[Lesson, Tensor | None]:
    """Draw pictures, and choose the cells to look at: all, or a window of some.

    Args:
        rng: where every choice is drawn from.
        count: of pictures.
        single: show one thing each, cleanly.
        window: cells along the side of a square about one of the things. A thing that does not lie
            wholly inside is not asked about.
    """
    drawn = [frame(rng, most=1 if single else 3, clean=single) for _ in range(count)]
    kinds, marks = (
        torch.from_numpy(np.stack(part))
        for part in zip(*(labels(scene) for _, scene in drawn), strict=True)
    )
    frames = torch.from_numpy(np.stack([pixels for pixels, _ in drawn]))
    truth = Lesson(frames, kinds, marks, torch.ones(kinds.shape, dtype=torch.bool))
    if window is None:
        return truth, None
    placed = [_window(rng, scene, window) for _, scene in drawn]
    cells, asked = (torch.from_numpy(np.stack(part)) for part in zip(*placed, strict=True))
    return truth.at(cells, asked), cells


def _window(rng: Random, scene: synth.Scene, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A square of cells about a thing, and which of them can be judged: (side²,) each."""
    target = rng.choice(scene.things)
    left, top = (
        min(max(round(at * CELLS - side / 2 + rng.uniform(-0.3, 0.3)), 0), CELLS - side)
        for at in (target.x, target.y)
    )
    square = np.ix_(range(top, top + side), range(left, left + side))
    asked = np.ones((CELLS, CELLS), bool)
    for thing in scene.things:
        x, y, r = thing.x * CELLS, thing.y * CELLS, thing.radius * CELLS
        if not (left <= x - r and x + r <= left + side and top <= y - r and y + r <= top + side):
            asked[np.hypot(_RIGHT - thing.x, _DOWN - thing.y) < thing.radius * 1.25] = False
    return np.arange(CELLS**2).reshape(CELLS, CELLS)[square].flatten(), asked[square].flatten()


def see(tower: nn.Module, frames: Tensor, cells: Tensor | None = None) -> Tensor:
    """The tower's features of some cells, or of all, up to the layer that the model reads.

    Args:
        tower: the native vision model; its last layer and head are not used by the model.
        frames: (batch, 448, 448, 3) uint8.
        cells: (batch, n) cell numbers.

    Returns:
        (batch, n, hidden), each the mean of a cell's four patches.
    """
    count = len(frames)
    if cells is None:
        cells = torch.arange(CELLS**2).expand(count, -1)
    patches = frames.view(count, CELLS, 2, 14, CELLS, 2, 14, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    row, column = cells // CELLS, cells % CELLS
    patches = patches[torch.arange(count)[:, None], row, column]  # (batch, n, 2, 2, 3, 14, 14)
    pixels = patches.reshape(count, -1, 3 * 14 * 14).float() / 127.5 - 1
    down, right = torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")
    place = (row[..., None, None] * 2 + down) * tiny.PATCHES + column[..., None, None] * 2 + right
    embed = tower.embeddings
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.is_grad_enabled()):
        hidden = functional.linear(pixels, embed.patch_embedding.weight.flatten(1))
        hidden = hidden + embed.patch_embedding.bias
        hidden = hidden + embed.position_embedding(place.reshape(count, -1))
        for layer in tower.encoder.layers[:-1]:
            hidden = hidden + _attend(layer.self_attn, layer.layer_norm1(hidden))
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden.float().unflatten(1, (-1, 4)).mean(2)


def _attend(attention: nn.Module, x: Tensor) -> Tensor:
    """The layer's attention; in training by hand, in bfloat16: twice as fast on a CPU."""
    query, key, value = (
        part(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2).contiguous()
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if x.requires_grad:
        scores = (query * attention.scaling) @ key.transpose(-1, -2)
        mixed = scores.softmax(-1, dtype=scores.dtype) @ value
    else:
        mixed = functional.scaled_dot_product_attention(query, key, value)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


class Judge(nn.Module):
    """Reads the labels off the features, linearly, and says how wrong they are."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.colour, self.shape = nn.Linear(hidden, 5), nn.Linear(hidden, 4)
        self.mark = nn.Linear(hidden, NONE)
        for part in (self.colour, self.shape, self.mark):
            nn.init.normal_(part.weight, std=0.2 * hidden**-0.5)
            nn.init.zeros_(part.bias)
        nn.init.constant_(self.mark.bias, -6.0)  # a mark is rare

    def forward(self, features: Tensor, truth: Lesson) -> tuple[Tensor, dict[str, float]]:
        """The loss, and figures to watch."""
        shown = (truth.kinds < NONE) & truth.asked
        colours = torch.where(shown, truth.kinds // 3, 4).masked_fill(~truth.asked, -100)
        shapes = torch.where(shown, truth.kinds % 3, 3).masked_fill(~truth.asked, -100)
        asked = truth.asked[..., None]
        weight = torch.tensor([1, 1, 1, 1, 0.3])
        colour, shape, mark = self.colour(features), self.shape(features), self.mark(features)
        mark_loss = functional.binary_cross_entropy_with_logits(
            mark, truth.marks, weight=asked.float(), reduction="sum"
        ) / len(shown)
        counts = (torch.sigmoid(mark) * asked).sum(1)
        true_counts = (truth.marks * asked).sum(1)
        loss = (
            functional.cross_entropy(colour.flatten(0, 1), colours.flatten(), weight)
            + functional.cross_entropy(shape.flatten(0, 1), shapes.flatten(), weight[1:])
            + mark_loss
            + 0.3 * functional.smooth_l1_loss(counts, true_counts, reduction="sum") / len(shown)
        )
        with torch.no_grad():
            figures = {
                "colour": (colour.argmax(-1) == colours)[shown].float().mean().item(),
                "shape": (shape.argmax(-1) == shapes)[shown].float().mean().item(),
                "mark": mark_loss.item(),
                "counted": (counts.round() == true_counts.round()).all(1).float().mean().item(),
            }
        return loss, figures


def train(path: Path, steps: int, rate: float, before: Path | None = None) -> None:
    """Train the tower on windows or, if it was trained ``before``, on whole pictures as well.

    Windows show single things first, then up to three; then one batch in four is whole pictures.
    """
    tower = tiny.build(tiny.tokenizer()).model.embed_tokens_extend.image_embed.img_processor
    torch.manual_seed(1)
    judge = Judge(tower.config.hidden_size)
    read = [tower.embeddings, *tower.encoder.layers[:-1], judge]
    schedule = training.Schedule([([p for part in read for p in part.parameters()], rate)], steps)
    if path.exists() or before is not None:
        state = torch.load(path if path.exists() else before)
        tower.load_state_dict(state["tower"])
        judge.load_state_dict(state["judge"])
        if path.exists():
            schedule.resume(state["schedule"])
    held, _ = lesson(Random(10**6), 128)
    report = training.Report(steps, every=100)
    for step in range(schedule.done, steps):
        rng = Random(step if before is None else 10**7 + step)
        lessons = []
        if before is not None or (step >= WHOLE_FROM and step % 4 == 0):
            lessons.append(lesson(rng, 4))
        if before is not None or not lessons:
            lessons.append(lesson(rng, 20, single=before is None and step < 400, window=WINDOW))
        judged = [judge(see(tower, truth.frames, cells), truth) for truth, cells in lessons]
        schedule(sum(loss for loss, _ in judged))
        figures = judged[0][1]
        if step % 500 == 499 or step == steps - 1:
            figures |= watch(tower, judge, held)
        if report(step, {name: [value] for name, value in figures.items()}):
            state = {"tower": tower.state_dict(), "judge": judge.state_dict()}
            torch.save({**state, "schedule": schedule.state()}, path)


@torch.no_grad()
def watch(tower: nn.Module, judge: Judge, held: Lesson) -> dict[str, float]:
    """Figures on held-out whole pictures, 32 at a time."""
    parts = []
    for at in range(0, len(held.frames), 32):
        part = Lesson(*(field[at : at + 32] for field in held))
        parts.append(judge(see(tower, part.frames), part)[1])
    return {f"held-out {n}": sum(p[n] for p in parts) / len(parts) for n in parts[0]}
