"""Stage: the audio encoder learns to hear digits, by CTC, short clips first."""

from __future__ import annotations

from pathlib import Path
from random import Random

import speech_data
import tiny
import torch
import training
from speech_data import Batch, Clip
from torch import Tensor, nn
from torch.nn import functional

BLANK = 10


def edits(wanted: list, heard: list) -> int:
    """Insertions, deletions and substitutions between two sequences."""
    row = list(range(len(heard) + 1))
    for i, a in enumerate(wanted, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(heard, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def word_errors(head: nn.Module, encoder: nn.Module, clips: list[Clip]) -> float:
    """Word error rate of greedy CTC decoding."""
    wrong = said = 0
    with torch.no_grad():
        for at in range(0, len(clips), 50):
            some = clips[at : at + 50]
            found = speech_data.batch(some)
            best = head(encoder(found.features, found.mask)).argmax(-1)
            for clip, row, count in zip(some, best, found.tokens, strict=True):
                spikes = torch.unique_consecutive(row[:count]).tolist()
                wrong += edits(clip.digits, [d for d in spikes if d != BLANK])
                said += len(clip.digits)
    return wrong / said


def ctc(logits: Tensor, found: Batch, clips: list[Clip]) -> Tensor:
    """The CTC loss of (batch, tokens, 11) logits."""
    targets = torch.tensor([digit for clip in clips for digit in clip.digits])
    counts = torch.tensor([len(clip.digits) for clip in clips])
    scores = logits.log_softmax(-1).transpose(0, 1)
    return functional.ctc_loss(
        scores, targets, found.tokens, counts, blank=BLANK, zero_infinity=True
    )


def train(path: Path, clips_path: Path, steps: int, rate: float = 3e-3) -> None:
    """Train encoder and CTC head, and write both."""
    train_clips, watch = speech_data.load(clips_path)
    ordered = speech_data.order(train_clips)
    encoder = tiny.build(tiny.tokenizer()).model.embed_tokens_extend.audio_embed.encoder
    everything = torch.cat([clip.features for clip in train_clips[::4]]).float()
    encoder.encoder_embedding.global_mean.copy_(everything.mean(0))
    encoder.encoder_embedding.global_invstd.copy_(1 / everything.std(0))
    torch.manual_seed(1)
    head = nn.Linear(encoder.config.hidden_size, BLANK + 1)
    schedule = training.Schedule([([*encoder.parameters(), *head.parameters()], rate)], steps)
    rng, report = Random(1), training.Report(steps, every=100)
    for step in range(steps):
        share = min(1, 0.35 + 0.65 * step / (0.4 * steps))
        clips = speech_data.draw(rng, ordered, 12_000, share)
        found = speech_data.batch(clips, rng)
        loss = ctc(head(encoder(found.features, found.mask)), found, clips)
        schedule(loss)
        figures = {"CTC": [loss.item()]}
        if step % 200 == 199 or step == steps - 1:
            figures["watched WER"] = [word_errors(head, encoder, watch)]
        if report(step, figures):
            torch.save({"encoder": encoder.state_dict(), "head": head.state_dict()}, path)
