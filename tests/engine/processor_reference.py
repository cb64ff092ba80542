"""What transformers' processor makes of a picture and a clip. Run by test_upstream.py as a process.

Arguments: the folder with torchvision, the checkpoint, the words of the prompt. Writes JSON: the
processor's own chat template, the tokenizer's, and the ids of the prompts with a grey picture of
640 x 480 and with a second of silence, put together by the tokenizer's template.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from tiler_reference import find_torchvision

if __name__ == "__main__":
    torchvision, checkpoint, words = sys.argv[1:]
    operators = find_torchvision(torchvision)
    from transformers import Phi4MultimodalProcessor

    processor = Phi4MultimodalProcessor.from_pretrained(checkpoint, local_files_only=True)

    def prompt(kind: str) -> str:
        content = [{"type": kind}, {"type": "text", "text": words}]
        return processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )

    picture = np.full((480, 640, 3), 128, np.uint8)
    silence = np.zeros(16_000, np.float32)
    ids = {
        "image": processor(text=prompt("image"), images=picture)["input_ids"],
        "audio": processor(text=prompt("audio"), audio=silence)["input_ids"],
    }
    json.dump(
        {
            "template": processor.chat_template,
            "tokenizers": processor.tokenizer.chat_template,
            "ids": {kind: np.asarray(rows)[0].tolist() for kind, rows in ids.items()},
        },
        sys.stdout,
    )
