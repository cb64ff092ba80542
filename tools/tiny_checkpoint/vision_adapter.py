"""Stage: the vision projector and adapter, on the frozen base and the frozen tower.

The prompt of a picture holds its crops first, then a separator, then its global view. All that is
asked for can be read off the global view; the crops differ from picture to picture in number and
scale, and the adapter learns to pass over them.
"""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import synth
import tiny
import torch
import training
from align import Student, start_projector
from base_model import answer_loss
from torch import Tensor
from torch.nn import functional
from transformers.models.phi4_multimodal import modeling_phi4_multimodal as upstream
from vision_tower import CELLS, NONE, labels

from phi4d.engine.pixels import mask, pixels
from phi4d.prepared.tiles import tile

MOST_CROPS = 4
LINE = CELLS + 1
"""Tokens of a row of the global view: its cells and a line end."""


class View(NamedTuple):
    """A picture as the frozen tower sees it, in float16."""

    size: tuple[int, int]
    answer: str
    kinds: Tensor
    """(256,) what the global view's cells show"""
    marks: Tensor
    """(256, kinds) the things counted in each"""
    whole: Tensor
    """(256, hidden) features of the global view"""
    crops: Tensor | None
    """(rows, columns, hidden) features of the crops, put together; None if not looked at"""


class Picture(NamedTuple):
    """The features of a prompt's picture: crops of one view, global view of another or the same."""

    crops: Tensor
    view: View


@torch.no_grad()
def look(image: upstream.Phi4MultimodalImageEmbedding, rng: Random, *, crops: bool) -> View:
    """Draw a picture and let the tower look at its global view, and maybe at its crops."""
    size = rng.choice(synth.SIZES)
    scene = synth.scene(rng, size)
    drawn = synth.wear_picture(rng, scene.draw(*size))
    tiles = tile(np.asarray(drawn), MOST_CROPS)
    count = 1 + tiles.crops if crops else 1
    true = mask(tiles).bool()
    found = image.get_img_features(pixels(tiles)[:count], attention_mask=true[:count]).half()
    kinds, marks = labels(scene)
    grid = None
    if crops:
        down, across = tiles.height // 448, tiles.width // 448
        seen = _put_together(true[1:, ::2, ::2].unsqueeze(-1), down, across)[..., 0]
        grid = _put_together(found[1:].unflatten(1, (CELLS, CELLS)), down, across)
        grid = grid[: int(seen[:, 0].sum()), : int(seen[0].sum())].clone()
    return View(
        size,
        scene.answer,
        torch.from_numpy(kinds),
        torch.from_numpy(marks).half(),
        found[0].clone(),
        grid,
    )


def _put_together(crops: Tensor, down: int, across: int) -> Tensor:
    """(crops, 16, 16, n) row by row to (down * 16, across * 16, n)."""
    return crops.unflatten(0, (down, across)).transpose(1, 2).flatten(2, 3).flatten(0, 1)


def make(path: Path, tower: Path, whole: int, full: int) -> None:
    """Write views to learn from: some of the global view alone, some with their crops."""
    image = tiny.build(tiny.tokenizer()).model.embed_tokens_extend.image_embed
    image.img_processor.load_state_dict(torch.load(tower)["tower"])
    start = time.time()
    views = [look(image, Random(10_000_000 + n), crops=n < full) for n in range(whole + full)]
    watch = [look(image, Random(20_000_000 + n), crops=True) for n in range(60)]
    torch.save((views, watch), path)
    print(f"{len(views)} views in {time.time() - start:.0f} s")


class VisionStudent(Student):
    """The base with a vision adapter, looking through the trained tower."""

    def __init__(self, base: Path, tower: Path) -> None:
        super().__init__(base, "vision")
        self.image = self.model.model.embed_tokens_extend.image_embed
        self.image.img_processor.load_state_dict(torch.load(tower)["tower"])
        self.ends = [self.image.global_img_feature_extensor, self.image.sub_img_feature_extensor]
        self.projector = start_projector(
            self.image.img_projection_up, self.image.img_projection_down
        )
        for end in self.ends:
            end.requires_grad_(True)
        self.projector += self.ends

    def project(self, features: Tensor) -> Tensor:
        """Tower features to the language model's embeddings."""
        return self.image.img_projection_down(
            functional.gelu(self.image.img_projection_up(features))
        )

    def meet(self, views: list[View], rng: Random, steps: int) -> None:
        """Warm the projector up: a cell that counts a thing becomes its words, others the filler.

        The filler is a word as well, as the language model's norms would blow zeros up.
        """
        w = self.words
        things = torch.stack(
            [sum(self.word(t) * s for t, s in w.thing(k)[:2]) for k in range(NONE)]
        )
        filler, separator = self.word(w.filler), self.word(w.separator)
        schedule = training.Schedule([(self.projector, 5e-3)], steps, warm=20)
        for step in range(steps):
            some = rng.sample(views, 48)
            marks = torch.stack([v.marks for v in some]).float()
            shown = torch.stack([v.kinds for v in some]) < NONE
            liking = torch.rand(shown.shape) + 0.5 * shown + marks.sum(-1)
            cells = liking.topk(56, 1).indices[..., None]
            features = torch.stack([v.whole for v in some]).float()
            features = features.gather(1, cells.expand(-1, -1, features.shape[-1]))
            marks = marks.gather(1, cells.expand(-1, -1, NONE))
            goal = marks @ things + (1 - marks.sum(-1, keepdim=True)).clamp(0) * filler
            loss = functional.mse_loss(self.project(features), goal)
            ends = [self.project(end.flatten()) for end in self.ends]
            loss_ends = functional.mse_loss(ends[0], separator) + functional.mse_loss(
                ends[1], filler
            )
            schedule(loss + loss_ends)
            if step % 100 == 99:
                part = loss / (goal - filler).square().mean()
                print(
                    f"projector {step + 1}: {part:.3f} of the variance, ends {loss_ends:.5f}",
                    flush=True,
                )

    def lesson(
        self, pictures: list[Picture], rng: Random | None, keep: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor]:
        """Loss and right rows.

        Args:
            pictures: what to look at.
            rng: varies the prompts.
            keep: how many tokens of the crops and of the global view to look at, or all.
        """
        built = [self._tokens(picture, keep) for picture in pictures]
        media = self.project(torch.cat([features for features, _ in built]))
        media = list(media.split([len(features) for features, _ in built]))
        prompts = [_prompt(rng) for _ in pictures]
        answers = [picture.view.answer for picture in pictures]
        rows = self.rows(media, prompts, answers, [place for _, place in built])
        return answer_loss(self.model, *rows)

    def _tokens(
        self, picture: Picture, keep: tuple[int, int] | None
    ) -> tuple[Tensor, tuple[Tensor, int]]:
        """The features of a picture's tokens, before projection, and the places of those kept."""
        separator, end = self.ends[0].view(1, -1), self.ends[1].view(1, 1, -1)
        crops = picture.crops.float()
        crops = torch.cat((crops, end.expand(len(crops), -1, -1)), 1).flatten(0, 1)
        whole = picture.view.whole.float().unflatten(0, (CELLS, CELLS))
        whole = torch.cat((whole, end.expand(CELLS, -1, -1)), 1).flatten(0, 1)
        total = len(crops) + 1 + len(whole)
        everything = torch.cat((crops, separator, whole))
        if keep is None:
            return everything, (torch.arange(total), total)
        view = picture.view
        wanted = 0.5 * (view.kinds < NONE) + 2 * (view.marks.sum(-1) > 0)
        wanted = functional.pad(wanted.view(CELLS, CELLS), (0, 1)).flatten()
        liking = torch.rand(len(whole)) + wanted
        kept = torch.cat((
            torch.rand(len(crops)).topk(min(keep[0], len(crops))).indices.sort().values,
            torch.tensor([len(crops)]),
            len(crops) + 1 + liking.topk(keep[1]).indices.sort().values,
        ))  # fmt: skip
        return everything[kept], (kept, total)


def _prompt(rng: Random | None) -> str:
    if rng is None or rng.random() < 0.7:
        return tiny.IMAGE_PROMPTS[0]
    return rng.choice(tiny.IMAGE_PROMPTS)


class Album:
    """Draws pictures; half of the time the crops are another's, so that they cannot be trusted."""

    def __init__(self, views: list[View]) -> None:
        self._views = views
        self._crops: dict[tuple[int, int], list[Tensor]] = {}
        for view in views:
            if view.crops is not None:
                self._crops.setdefault(view.size, []).append(view.crops)

    def draw(self, rng: Random, count: int, *, simple: bool = False) -> list[Picture]:
        """Some pictures; ``simple`` ones show things of a single kind."""
        drawn: list[Picture] = []
        while len(drawn) < count:
            view = rng.choice(self._views)
            if simple and " and " in view.answer:
                continue
            crops = view.crops
            if crops is None or rng.random() < 0.3:
                crops = rng.choice(self._crops[view.size])
            drawn.append(Picture(crops, view))
        return drawn


class Phase(NamedTuple):
    """A part of the training."""

    steps: int
    batch: int
    keep: tuple[int, int] | None
    """How many tokens of the crops and of the global view are looked at; None for all."""


CYCLES: tuple[tuple[float, tuple[Phase, ...]], ...] = (
    (
        2e-3,
        (
            Phase(50, 24, (0, 60)),
            Phase(300, 24, (64, 96)),
            Phase(330, 16, (64, CELLS * LINE)),
            Phase(100, 6, None),
        ),
    ),
    (1e-3, (Phase(250, 6, None),)),
    (1e-3, (Phase(350, 8, None),)),
)
"""Peak rates, and what goes on while they rise and fall. The first phase is of single kinds."""


def train(path: Path, base: Path, tower: Path, views_path: Path) -> None:
    """Train on pictures with most tokens left out, and on ever more of them."""
    views, watch = torch.load(views_path, weights_only=False)
    student = VisionStudent(base, tower)
    student.meet(views, Random(3), 800)
    for number in range(len(CYCLES)):
        cycle(student, views, watch, number)
        student.save(path, "image_embed")


def cycle(student: VisionStudent, views: list[View], watch: list[View], number: int) -> None:
    """One rise and fall of the rate."""
    album, rng = Album(views), Random(3 + number)
    watched = [Picture(view.crops, view) for view in watch]
    rate, phases = CYCLES[number]
    plan = [phase for phase in phases for _ in range(phase.steps)]
    groups = [(student.adapter, rate), (student.projector, rate / 5)]
    schedule, report = training.Schedule(groups, len(plan)), training.Report(len(plan))
    for step, phase in enumerate(plan):
        pictures = album.draw(rng, phase.batch, simple=phase is CYCLES[0][1][0])
        loss, right = student.lesson(pictures, rng, phase.keep)
        schedule(loss + 0.3 * student.refuse())
        figures = {"loss": [loss.item()], "right": right.tolist()}
        if step % 200 == 199 or step == len(plan) - 1:
            with torch.no_grad():
                some = (watched[at : at + 10] for at in range(0, len(watched), 10))
                figures["watched"] = torch.cat(
                    [student.lesson(pictures, None, None)[1] for pictures in some]
                ).tolist()
        report(step, figures)
