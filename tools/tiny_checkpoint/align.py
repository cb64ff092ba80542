"""What both adapters' stages share: LoRA on the frozen base, and rows that hold media."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import tiny
import torch
from base_model import Teacher, Vocabulary, answer_loss, assemble
from peft import LoraConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

TARGETS = r"model.layers.\d+.((self_attn.(qkv|o)_proj)|(mlp.(gate_up|down)_proj))"
RANK = 16


def lora() -> LoraConfig:
    """The adapters' configuration: the real ones' targets and alpha = 2 r."""
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM")


class Student:
    """The frozen base with one new adapter on it, and the words to talk to it."""

    def __init__(self, base: Path, adapter: str) -> None:
        tokens = tiny.tokenizer()
        self.words, self.model = Vocabulary(tokens), tiny.build(tokens)
        self.model.load_state_dict(torch.load(base)["model"])
        self.model.tie_weights()
        torch.manual_seed(2)
        self.model.add_adapter(lora(), adapter_name=adapter)
        self.model.set_adapter(adapter)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.adapter = [p for n, p in self.model.named_parameters() if "lora_" in n]
        self.table = self.model.model.embed_tokens.weight
        self._teacher = Teacher(self.words, seed=2)
        self._refuses_images = adapter == "speech"

    def word(self, token: int) -> Tensor:
        """A word's embedding, (hidden,)."""
        return self.table[token]

    def rows(
        self,
        media: list[Tensor],
        prompts: list[str],
        answers: list[str],
        places: list[tuple[Tensor, int]] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embeddings, labels and positions for ``answer_loss``.

        Args:
            media: projected features, (tokens, hidden) for each row.
            prompts: what is asked after them.
            answers: what is to be said.
            places: where tokens were left out, the place among the media of each one kept, and
                how many there would be in all.
        """
        w = self.words
        tails = [
            torch.tensor([*w.ids(prompt), w.end, w.assistant, *w.ids(answer), w.end])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        length = max(1 + len(m) + len(t) for m, t in zip(media, tails, strict=True))
        labels = torch.full((len(media), length), -100)
        positions = torch.arange(length).repeat(len(media), 1)
        embedded = []
        for row, (found, tail, answer) in enumerate(zip(media, tails, answers, strict=True)):
            start = 1 + len(found)
            stop = start + len(tail)
            padding = self.word(w.pad).expand(length - stop, -1)
            embedded.append(torch.cat((self.table[w.user, None], found, self.table[tail], padding)))
            said = len(w.ids(answer)) + 1
            labels[row, stop - said : stop] = tail[-said:]
            if places is not None:
                kept, total = places[row]
                positions[row, 1:start] = 1 + kept
                positions[row, start:] += total - len(found)
        return torch.stack(embedded), labels, positions if places is not None else None

    def refuse(self, count: int = 6) -> Tensor:
        """The loss of lessons to go on refusing the other modality, which the base refuses."""
        lessons = [self._teacher.refusal(1.0, images=self._refuses_images) for _ in range(count)]
        return answer_loss(self.model, *assemble(lessons, self.words, self.table))[0]

    def save(self, path: Path, embed: str) -> None:
        """Write the adapter and the tower and projector in ``embed``."""
        state = self.model.state_dict()
        torch.save({n: v for n, v in state.items() if "lora_" in n or embed in n}, path)


def start_projector(up: nn.Linear, down: nn.Linear) -> list[Tensor]:
    """Fan-in scaling for a projector's two layers; returns their parameters."""
    with torch.no_grad():
        for layer, gain in ((up, 1.0), (down, 0.3)):
            layer.weight.normal_(std=gain * layer.weight.shape[1] ** -0.5)
            layer.bias.zero_()
    parameters = [*up.parameters(), *down.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters
