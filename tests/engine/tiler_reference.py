"""Compares our tiler with transformers' image processor. Run by test_pixels.py as a process.

The processor needs torchvision, which cannot be imported beside a CPU build of torch in a process
that also imports peft; so it lies in a folder of its own, the first argument. Writes one line for
each difference, then ``compared N``.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch

TRUE_SIZES = [
    (448, 448),
    (1920, 1080),
    (1080, 1920),
    (4000, 3000),
    (4000, 4000),
    (1024, 1024),
    (896, 448),
    (900, 600),  # two crops by three, wider than the grid
    (300, 400),
    (300, 3000),
    (3000, 300),
    (447, 449),
    (449, 447),
    (1, 1),
    (5, 7),
    (33, 1),
    (1, 44),
    (13, 700),
    (7000, 100),
    (100, 5000),
    (5001, 113),
    (447, 3136),
    (20000, 13),
]
"""(width, height) in pixels"""
RESIZED = 0.3
"""The share of a resized picture's samples that may differ from the processor's: it resizes by
torch, with weights of 16 bits, where ours and Microsoft's own do by Pillow, with finer ones.
Seen: 0.002 where noise shrinks by half, 0.22 where it grows little."""
LEVEL = 1 / 127.5
"""a level of 255, in the numbers of the tower"""
OFF = 2.01 * LEVEL
"""how far such a sample may be off; seen: two levels"""
VIEW = 2.5 * OFF
"""how far the global view may be off then: its weights add up to 2.5 in size at most"""


def find_torchvision(folder: str) -> object:
    """Make torchvision importable. What is returned must live as long as it is used."""
    sys.path.insert(0, folder)
    # torchvision's build for CUDA declares these in a library that a CPU torch cannot load.
    operators = torch.library.Library("torchvision", "FRAGMENT")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators


def compare_tiles(processor: object) -> int:
    from phi4d.engine.pixels import mask, pixels
    from phi4d.prepared.tiles import tile, widened

    chance = np.random.default_rng(0)
    cases = [(size, most) for size in TRUE_SIZES for most in (4, 12, 36)]
    cases += [((640, 480), 4), ((600, 500), 1), ((1000, 3000), 7)]
    cases += [
        (tuple(chance.integers(40, 1500, 2).tolist()), int(chance.choice((1, 2, 4, 9, 16))))
        for _ in range(40)
    ]
    for (width, height), most in cases:
        picture = chance.integers(0, 256, (height, width, 3), dtype=np.uint8)
        ours = tile(picture, most)
        try:
            theirs = processor(
                picture, dynamic_hd=most, input_data_format="channels_last", return_tensors="pt"
            )
        except ValueError:  # too long and thin for it
            theirs = None
        if theirs is None:
            right = widened(height, width, most) != (height, width)
        else:
            untouched = ours.picture.shape == picture.shape
            right = (
                alike(pixels(ours), theirs["image_pixel_values"][0], exactly=untouched)
                and torch.equal(mask(ours), theirs["image_attention_mask"][0])
                and [ours.height, ours.width] == theirs["image_sizes"][0].tolist()
                and ours.tokens == theirs["num_img_tokens"][0]
            )
        if not right:
            sys.stdout.write(f"tiles of {width} x {height}, at most {most} crops\n")
    return len(cases)


def alike(ours: torch.Tensor, theirs: torch.Tensor, *, exactly: bool) -> bool:
    """Whether two pictures' views and crops are the same, or as good as."""
    if exactly:
        return torch.equal(ours, theirs)
    off = (ours - theirs).abs()
    return (
        off.shape == ours.shape
        and bool((off[1:] < OFF).all())
        and float((off[1:] > 0).float().mean()) < RESIZED
        and bool((off[0] < VIEW).all())
    )


def compare_grids(processor: object) -> int:
    """The choice of the grid, at and around the shapes that lie between two grids."""
    from phi4d.prepared.tiles import layout

    count = 0
    for most in (1, 2, 4, 9, 12, 16, 25, 36):
        sides = range(1, most + 1)
        grids = {(i, j) for n in sides for i in sides for j in sides if i * j <= n}
        grids = sorted(grids, key=lambda grid: grid[0] * grid[1])  # as upstream has it
        shapes = sorted({Fraction(i, j) for i, j in grids})
        between = [(a + b) / 2 for a, b in pairwise(shapes)]
        for shape in shapes + between:
            for enlarge in (1, 50, 500, 1500, 3000, 9000):
                width, height = shape.numerator * enlarge, shape.denominator * enlarge
                if -(-width // 448) * -(-height // 448) <= most:
                    continue
                theirs = processor.find_closest_aspect_ratio(
                    width / height, grids, width, height, 448
                )
                plan = layout(height, width, most)
                count += 1
                if (plan.columns, plan.rows) != theirs:
                    sys.stdout.write(f"grid of {width} x {height}, at most {most} crops\n")
    return count


if __name__ == "__main__":
    torch.set_num_threads(1)
    operators = find_torchvision(sys.argv[1])
    from transformers import Phi4MultimodalImageProcessor

    made = Phi4MultimodalImageProcessor()
    sys.stdout.write(f"compared {compare_tiles(made) + compare_grids(made)}\n")
