"""Stage: the speech projector and adapter, on the frozen base; the encoder follows at a tenth."""

from __future__ import annotations

from pathlib import Path
from random import Random

import speech_data
import tiny
import torch
import training
from align import Student, start_projector
from audio_encoder import BLANK
from base_model import GAIN, answer_loss
from speech_data import Clip
from torch import Tensor, nn
from torch.nn import functional


class SpeechStudent(Student):
    """The base with a speech adapter, hearing through the trained encoder."""

    def __init__(self, base: Path, encoder: Path) -> None:
        super().__init__(base, "speech")
        parts = torch.load(encoder)
        self.audio = self.model.model.embed_tokens_extend.audio_embed
        self.audio.encoder.load_state_dict(parts["encoder"])
        self.head = nn.Linear(self.audio.encoder.config.hidden_size, BLANK + 1)
        self.head.load_state_dict(parts["head"])
        self.projector = start_projector(
            self.audio.up_proj_for_speech, self.audio.down_proj_for_speech
        )

    def project(self, features: Tensor) -> Tensor:
        """Encoder features to the language model's embeddings."""
        return self.audio.down_proj_for_speech(
            functional.gelu(self.audio.up_proj_for_speech(features))
        )

    def meet(self, ordered: list[Clip], rng: Random, steps: int) -> None:
        """Warm the projector up: what CTC calls a digit becomes its word, a blank the filler."""
        w = self.words
        wanted = torch.stack([*(GAIN * self.word(d) for d in w.digits), self.word(w.filler)])
        schedule = training.Schedule([(self.projector, 5e-3)], steps, warm=20)
        for step in range(steps):
            found = speech_data.batch(speech_data.draw(rng, ordered, 6_000, 0.6), rng)
            with torch.no_grad():
                features = self.audio.encoder(found.features, found.mask)
                goal = self.head(features).softmax(-1) @ wanted
            real = torch.arange(features.shape[1]) < found.tokens[:, None]
            loss = functional.mse_loss(self.project(features)[real], goal[real])
            schedule(loss)
            if step % 50 == 49:
                print(
                    f"projector {step + 1}: {loss / goal[real].var():.3f} of the variance",
                    flush=True,
                )

    def lesson(self, clips: list[Clip], rng: Random | None) -> tuple[Tensor, Tensor]:
        """Loss and right rows of a batch; a ``rng`` varies clips and prompts."""
        found = speech_data.batch(clips, rng)
        heard = self.project(self.audio.encoder(found.features, found.mask))
        media = [row[:count] for row, count in zip(heard, found.tokens.tolist(), strict=True)]
        prompts = [_prompt(rng) for _ in clips]
        return answer_loss(self.model, *self.rows(media, prompts, [c.answer for c in clips]))


def _prompt(rng: Random | None) -> str:
    if rng is None or rng.random() < 0.7:
        return tiny.AUDIO_PROMPTS[0]
    return rng.choice(tiny.AUDIO_PROMPTS)


def train(path: Path, clips_path: Path, base: Path, encoder: Path, steps: int) -> None:
    """Train and write adapter, projector and encoder."""
    train_clips, watch = speech_data.load(clips_path)
    ordered, rng = speech_data.order(train_clips), Random(3)
    student = SpeechStudent(base, encoder)
    student.meet(ordered, rng, 200)
    hearing = list(student.audio.encoder.parameters())
    for parameter in hearing:
        parameter.requires_grad_(True)
    groups = [(student.adapter + student.projector, 2e-3), (hearing, 3e-4)]
    schedule, report = training.Schedule(groups, steps), training.Report(steps)
    for step in range(steps):
        share = min(1, 0.4 + 0.6 * step / (0.3 * steps))
        loss, right = student.lesson(speech_data.draw(rng, ordered, 9_000, share), rng)
        schedule(loss + 0.3 * student.refuse())
        figures = {"loss": [loss.item()], "right": right.tolist()}
        if step % 200 == 199 or step == steps - 1:
            with torch.no_grad():
                rows = [student.lesson(watch[at : at + 50], None)[1] for at in range(0, 200, 50)]
            figures["watched"] = torch.cat(rows).tolist()
        if report(step, figures):
            student.save(path, "audio_embed")
