"""What upstream spends on the CPU for nothing, and phi4d leaves out; sizes of the published model.

    python benchmarks/waste.py

- The output layer on the last position: upstream slices the hidden states, phi4d copies the slice.
- The image tower's pooling head, whose output is dropped: for two crops, as a 448x448 picture has.

Prints seconds, the best of three, in bfloat16 and float32; the last line is JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional
from transformers import Phi4MultimodalConfig
from transformers.models.phi4_multimodal import modeling_phi4_multimodal as upstream

CONFIG = Path(__file__).parents[1] / "tools" / "phi4_multimodal.json"


def best(run: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return round(min(seconds), 3)


def main() -> int:
    """Measure and print."""
    config = Phi4MultimodalConfig.from_dict(json.loads(CONFIG.read_text()))
    vision = config.vision_config
    rows = []
    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float32):
            torch.manual_seed(0)
            weight = torch.randn(config.vocab_size, config.hidden_size, dtype=dtype)
            hidden = torch.randn(1, 500, config.hidden_size, dtype=dtype)
            head = upstream.Phi4MultimodalVisionMultiheadAttentionPoolingHead(vision).to(dtype)
            features = torch.randn(2, 1024, vision.hidden_size, dtype=dtype)
            mask = torch.ones(2, 1024, dtype=torch.bool)

            def on_slice(hidden=hidden, weight=weight):  # type: ignore[no-untyped-def]
                return functional.linear(hidden[:, -1:], weight)

            def on_copy(hidden=hidden, weight=weight):  # type: ignore[no-untyped-def]
                last = hidden[:, -1].clone(memory_format=torch.contiguous_format)
                return functional.linear(last, weight)

            def pooling(head=head, features=features, mask=mask):  # type: ignore[no-untyped-def]
                return head(hidden_state=features, attention_mask=mask)

            row = {
                "dtype": str(dtype).removeprefix("torch."),
                "output_layer_on_slice_s": best(on_slice),
                "output_layer_on_copy_s": best(on_copy),
                "pooling_head_s": best(pooling),
            }
            rows.append(row)
            print(
                "{dtype:9} output layer on a slice {output_layer_on_slice_s:7.3f} s, on a copy "
                "{output_layer_on_copy_s:6.3f} s; pooling head {pooling_head_s:6.3f} s".format(
                    **row
                )
            )
    print(
        json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
