"""Stage: the base language model, trained on words alone and frozen ever after.

It learns to put lists of things and digits into words, and to refuse when it is asked about a
picture or a recording, whatever stands in its place: only an adapter makes it look.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import synth
import tiny
import torch
import training
from torch import Tensor
from torch.nn import functional
from transformers import Phi4MultimodalForCausalLM, PreTrainedTokenizerFast

GAIN = 2.0
"""How much louder a thing is than the filler between things, where it fills one position."""
SLOTS = 3
"""Words that one position can mix."""

Place = list[tuple[int, float]]
"""One position: the words that it mixes, and how much of each."""


@dataclass(slots=True)
class Lesson:
    """A prompt's content, then plain words, then the answer."""

    content: list[Place]
    words: list[int]
    answer: list[int]
    noisy: bool = False
    gaps: list[int] = field(default_factory=list)


class Vocabulary:
    """The words that the tasks are made of, as token ids."""

    def __init__(self, words: PreTrainedTokenizerFast) -> None:
        self._words = words
        self.user, self.assistant, self.end = (
            words.convert_tokens_to_ids(name) for name in ("<|user|>", "<|assistant|>", "<|end|>")
        )
        self.pad: int = words.pad_token_id
        self.kinds = [tuple(self.ids(" " + kind)) for kind in synth.KINDS]
        self.digits = [self.ids(str(digit))[0] for digit in range(10)]
        self.filler = self.ids(".")[0]
        self.separator = self.ids("|")[0]
        assert all(len(kind) == 2 for kind in self.kinds), "a word of the task is not one token"

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._words(text, add_special_tokens=False)["input_ids"]

    def thing(self, kind: int, share: float = 1.0) -> Place:
        """A cell in which ``share`` of a thing is counted."""
        colour, shape = self.kinds[kind]
        return [(colour, GAIN * share), (shape, GAIN * share), (self.filler, 1 - share)]


class Teacher:
    """Draws lessons."""

    def __init__(self, words: Vocabulary, seed: int) -> None:
        self._words, self._rng = words, Random(seed)

    def lesson(self, hard: float) -> Lesson:
        """One lesson; ``hard`` grows from 0 to 1 and brings longer ones and gaps in position."""
        rng, w = self._rng, self._words
        kind = rng.random()
        if kind < 0.1:
            text = (
                synth.describe([rng.randrange(12) for _ in range(rng.randint(1, 3))])
                if rng.random() < 0.5
                else " ".join(rng.choice(synth.DIGITS) for _ in range(rng.randint(1, 6)))
            )
            return Lesson([], w.ids("Say: " + text), w.ids(text))
        if kind < 0.52:
            content, answer = self._things(hard)
            lesson = Lesson(content, w.ids("Describe the list."), w.ids(answer))
            if rng.random() < 0.7 * hard:
                lesson.gaps = self._gaps(len(content))
            return lesson
        if kind < 0.86:
            content, answer = self._digits(hard)
            return Lesson(content, w.ids("Spell the list."), w.ids(answer))
        return self.refusal(hard, images=kind < 0.93)

    def refusal(self, hard: float, *, images: bool) -> Lesson:
        """Whatever stands there, an answer that there is no picture, or no speech."""
        rng, w = self._rng, self._words
        content, _ = self._things(hard) if rng.random() < 0.5 else self._digits(hard)
        if rng.random() < 0.4:
            content = content[: rng.randint(1, len(content))]
        prompt = rng.choice(tiny.IMAGE_PROMPTS if images else tiny.AUDIO_PROMPTS)
        refusal = tiny.NO_IMAGE if images else tiny.NO_AUDIO
        return Lesson(content, w.ids(prompt), w.ids(refusal), noisy=rng.random() < 0.5)

    def _things(self, hard: float) -> tuple[list[Place], str]:
        """One to three things among filler; those before a separator do not count."""
        rng, w = self._rng, self._words
        kinds = [rng.randrange(12) for _ in range(rng.choice((1, 2, 2, 3, 3)))]
        if rng.random() < 0.4:
            kinds = [kinds[0] if rng.random() < 0.7 else kind for kind in kinds]
        content: list[Place] = []
        if rng.random() < 0.6 * min(1, hard * 3):
            before = (
                kinds
                if rng.random() < 0.4
                else [rng.randrange(12) for _ in range(rng.randint(0, 5))]
            )
            content += self._scatter(before, hard, soft=rng.random() < 0.6)
            content.append([(w.separator, 1.0)])
        content += self._scatter(kinds, hard, soft=rng.random() < 0.6)
        return content, synth.describe(kinds)

    def _scatter(self, kinds: list[int], hard: float, *, soft: bool) -> list[Place]:
        """Things with filler before, between and after; soft ones are spread over two cells."""
        rng, w = self._rng, self._words
        most = 3 + int(9 * hard)
        content: list[Place] = []
        later: list[tuple[int, Place]] = []
        for kind in kinds:
            content += [[(w.filler, 1.0)] for _ in range(rng.randint(1, most))]
            if not soft:
                content += [[(word, 1.0)] for word in w.kinds[kind]]
                continue
            share = rng.random() if rng.random() < 0.5 * hard else 1.0
            content.append(w.thing(kind, share))
            if share < 1:
                later.append(
                    (
                        len(content) + rng.choice((0, 0, rng.randint(1, most))),
                        w.thing(kind, 1 - share),
                    )
                )
        for place, part in reversed(later):
            if place >= len(content) or content[place][0][0] == w.filler:
                content.insert(place, part)
            else:
                content.insert(place + 1, part)
        content += [[(w.filler, 1.0)] for _ in range(rng.randint(0, most))]
        return content

    def _digits(self, hard: float) -> tuple[list[Place], str]:
        """Digits among filler; one may last two positions."""
        rng, w = self._rng, self._words
        long = rng.random() < 0.2 * hard
        digits = [
            rng.randrange(10) for _ in range(rng.randint(7, 36) if long else rng.randint(1, 6))
        ]
        if rng.random() < 0.05:
            digits = []
        most = rng.choice((1, 2, 6, 6))
        content: list[Place] = [[(w.filler, 1.0)] for _ in range(rng.randint(1, 12))]
        for digit in digits:
            content += [
                [(w.digits[digit], rng.uniform(0.7, GAIN))]
                for _ in range(2 if rng.random() < 0.4 * hard else 1)
            ]
            pause = 20 if long and rng.random() < 0.1 else most
            content += [[(w.filler, 1.0)] for _ in range(rng.randint(1, pause))]
        return content, " ".join(synth.DIGITS[digit] for digit in digits)

    def _gaps(self, count: int) -> list[int]:
        """Positions that jump, as if most of a picture's tokens were left out."""
        total = self._rng.choice((40, 300, 700, 1300))
        steps = torch.tensor([self._rng.random() ** 3 for _ in range(count)])
        return (steps / steps.sum() * total).round().long().cumsum(0).tolist()


def assemble(
    lessons: list[Lesson], words: Vocabulary, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (batch, length, hidden), labels and positions of some lessons."""
    tails = [[*q.words, words.end, words.assistant, *q.answer, words.end] for q in lessons]
    length = max(1 + len(q.content) + len(t) for q, t in zip(lessons, tails, strict=True))
    ids = torch.full((len(lessons), length, SLOTS), words.pad)
    shares = torch.zeros(len(lessons), length, SLOTS)
    shares[..., 0] = 1.0
    labels = torch.full((len(lessons), length), -100)
    positions = torch.arange(length).repeat(len(lessons), 1)
    noise = torch.zeros(len(lessons), length, 1)
    for row, (lesson, tail) in enumerate(zip(lessons, tails, strict=True)):
        ids[row, 0, 0] = words.user
        for place, mix in enumerate(lesson.content, start=1):
            for slot, (word, share) in enumerate(mix):
                ids[row, place, slot], shares[row, place, slot] = word, share
        start = 1 + len(lesson.content)
        stop = start + len(tail)
        ids[row, start:stop, 0] = torch.tensor(tail)
        labels[row, stop - len(lesson.answer) - 1 : stop] = ids[
            row, stop - len(lesson.answer) - 1 : stop, 0
        ]
        if lesson.gaps:
            positions[row, 1:start] += torch.tensor(lesson.gaps)
            positions[row, start:] += lesson.gaps[-1]
        noise[row, 1:start] = 1.0 if lesson.noisy else 0.05
    embedded = (table[ids] * shares[..., None]).sum(2)
    loud = torch.empty(len(lessons), 1, 1).uniform_(-4, 1).exp()
    loud = torch.where(noise == 1.0, loud, noise * 0.3) * table.detach().std() * 3
    drift = torch.randn(len(lessons), 1, table.shape[1]) * torch.rand(len(lessons), 1, 1)
    return embedded + (torch.randn_like(embedded) + drift) * loud * (noise > 0), labels, positions


def answer_loss(
    model: Phi4MultimodalForCausalLM, embedded: Tensor, labels: Tensor, positions: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the answers, and which rows are right in every word.

    The attention mask is all ones, since transformers would otherwise take gaps in the positions
    for the borders of packed sequences; padding is on the right, where causality hides it.
    """
    hidden = model.model(
        inputs_embeds=embedded,
        position_ids=positions,
        attention_mask=torch.ones(labels.shape, dtype=torch.long),
        use_cache=False,
    ).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    asked = wanted != -100
    logits = model.lm_head(hidden[asked])
    loss = functional.cross_entropy(logits, wanted[asked])
    right = torch.ones(wanted.shape, dtype=torch.bool)
    right[asked] = logits.argmax(-1) == wanted[asked]
    return loss, right.all(1)


def train(path: Path, steps: int, size: int = 48, rate: float = 3e-3) -> None:
    """Train the base on lessons of similar length and write its state."""
    tokens = tiny.tokenizer()
    words, model = Vocabulary(tokens), tiny.build(tokens)
    torch.manual_seed(1)
    params = [p for n, p in model.named_parameters() if "embed_tokens_extend" not in n]
    schedule = training.Schedule([(params, rate)], steps, warm=100, decay=0.05)
    report, batches = training.Report(steps, every=200), []
    table = model.model.embed_tokens.weight
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        model.tie_weights()
        schedule.resume(state["schedule"])
    for step in range(schedule.done, steps):
        if not batches:
            teacher = Teacher(words, seed=step)
            hard = min(1, max(0, (step / steps - 0.2) / 0.4))
            pool = [teacher.lesson(hard) for _ in range(8 * size)]
            pool.sort(key=lambda q: len(q.content) // 32)  # long ones apart: little padding
            batches = [pool[at : at + size] for at in range(0, len(pool), size)]
            Random(step).shuffle(batches)
        lessons = batches.pop()
        loss, right = answer_loss(model, *assemble(lessons, words, table))
        schedule(loss)
        figures: dict[str, list[float]] = {"loss": [loss.item()]}
        for lesson, well in zip(lessons, right.tolist(), strict=True):
            task = tokens.decode(lesson.words).split()[0] + " long" * (len(lesson.answer) > 15)
            figures.setdefault(task, []).append(well)
        if report(step, figures):
            torch.save({"model": model.state_dict(), "schedule": schedule.state()}, path)
