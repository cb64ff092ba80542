"""The engine on a GPU: planned, loaded and asked with random weights of the real shapes."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import os
import sys
from pathlib import Path

try:
    import pytest
except ImportError:  # `python tests/gpu` does without
    pass
else:
    import torch

    pytestmark = pytest.mark.skipif(
        not (torch.cuda.is_available() or os.environ.get("PHI4D_GPU") == "cpu"),
        reason="needs a GPU",
    )

sys.path.insert(0, str(Path(__file__).parent))
import gpukit as kit
import torch
from gpukit import DEVICE, SIZE, Slot, alone, clip, clips, engine, picture, pictures

from phi4d.engine import devices
from phi4d.engine.checkpoint import read
from phi4d.engine.layout import Layout
from phi4d.engine.phi4 import Phi4Engine
from phi4d.engine.plan import Wishes, plan
from phi4d.errors import DeviceError

CUDA = DEVICE != "cpu"
GB = 1e9


def planned(**wishes: str) -> Slot:
    """What the plan says of this device."""
    gpus = devices.probe() if CUDA else []
    size = read(kit.checkpoint()).size
    (slot,) = plan(gpus, devices.cpu(), size, Wishes(DEVICE, **wishes), devices.installed())  # type: ignore[arg-type]
    return slot


def held() -> int:
    """Bytes of tensors on the GPU."""
    gc.collect()
    return torch.cuda.memory_allocated(DEVICE) if CUDA else 0


def check_slot(slot: Slot) -> None:
    """Load as planned; see that it takes what was planned, and that a batch is as one at a time."""
    before = held()
    it = engine(slot)
    if CUDA and SIZE == "full":
        took = held() - before - kit.cache_bytes(it)
        assert abs(took - slot.needs_bytes) < 0.05 * slot.needs_bytes, (took, slot.needs_bytes)
    for requests in (pictures(), clips()):
        by_one = alone(it, requests)
        together = it.generate(requests)
        assert all(answer.new_tokens for answer in together)
        # in half precision a batch's sums are rounded otherwise: equal until the first near-tie
        first = sum(
            a.text.split()[:1] == b.text.split()[:1] for a, b in zip(by_one, together, strict=True)
        )
        print(f"  {slot.dtype} {slot.quantization}: first words equal: {first} of {len(requests)}")
        assert first >= len(requests) / 2
    if CUDA and SIZE == "full":
        torch.cuda.reset_peak_memory_stats(DEVICE)
        level = held()
        it.generate([picture(4000, 4000, tokens=4)])
        worked = torch.cuda.max_memory_allocated(DEVICE) - level
        print(f"  36 crops: {worked / GB:.2f} of {slot.room_bytes / GB:.2f} GB planned")
        assert worked < slot.room_bytes
    it.close()
    # what cuBLAS works in stays, for the stream that captures as well
    assert held() <= before + 120e6


def test_the_plan_of_this_device() -> None:
    slot = planned()
    print(f"  {slot}")
    assert slot.device == DEVICE
    if CUDA and devices.probe()[0].free_bytes > 30e9 and SIZE == "full":
        assert slot.merged


def test_merged() -> None:
    slot = planned(merge_adapters="always", quantization="none")
    assert slot.merged
    check_slot(slot)


def test_unmerged() -> None:
    check_slot(planned(merge_adapters="never", quantization="none"))


def test_8bit() -> None:
    check_slot(planned(quantization="8bit"))


def test_4bit() -> None:
    if not importlib.util.find_spec("bitsandbytes"):
        print("  bitsandbytes is not installed: skipped")
        return
    check_slot(planned(quantization="4bit"))


def test_offloaded() -> None:
    if not importlib.util.find_spec("accelerate"):
        print("  accelerate is not installed: skipped")
        return
    whole = read(kit.checkpoint("small"))
    resident = engine(Slot(DEVICE, "float32"), "small")
    asked = [picture(448, 448), clip(3)]
    expected = [resident.generate([one])[0].text for one in asked]
    resident.close()
    it = engine(Slot(DEVICE, "float32", offload_bytes=whole.size.embedding * 4), "small")
    assert [it.generate([one])[0].text for one in asked] == expected
    it.close()


def test_steps_are_captured_when_the_model_is_loaded_and_others_later() -> None:
    it = engine(Slot(DEVICE, "bfloat16"))
    if not CUDA:
        print("  on the CPU nothing is captured: skipped")
        it.close()
        return
    before = kit.captured(it)
    print(f"  {before} steps captured, {it.rows} answers at a time")
    assert before > 0
    graphs = it._loops._graphs
    assert graphs is not None
    assert graphs._captures, "capturing failed; the log says why"
    # a clip of a second looks less far than what was captured
    it.generate([clip(1)])
    assert kit.captured(it) > before
    after = kit.captured(it)
    it.generate([clip(1)])
    assert kit.captured(it) == after
    assert graphs._captures, "capturing failed; the log says why"
    it.close()


def test_captured_steps_answer_as_those_that_are_launched() -> None:
    from phi4d.job import Sampling

    it = engine(Slot(DEVICE), "small")
    samplings = [
        Sampling(),
        Sampling(temperature=0.8, seed=7),
        Sampling(repetition_penalty=1.3),
        Sampling(temperature=1.2, repetition_penalty=1.1, seed=8),
    ]
    asked = [
        dataclasses.replace(one, sampling=samplings[i % len(samplings)])
        for i, one in enumerate(clips(24))
    ]
    # given answers twice, the second time by what was captured the first time
    first, again = it.generate(asked), it.generate(asked)
    seen = it.generate(pictures(8))
    kit.launched(it)
    assert first == again == it.generate(asked)
    assert seen == it.generate(pictures(8))
    it.close()


def test_a_stream_of_comings_and_goings_is_answered_as_one_at_a_time() -> None:
    from phi4d.engine.requests import Asked

    it = engine(Slot(DEVICE), "small")
    asked = [clip(0.5 + i % 7, i, 1 + i * 5 % 23) for i in range(40)] + pictures(9)
    coming, done = [Asked(one, i) for i, one in enumerate(asked)], {}

    def source(room: int) -> list[Asked]:
        taken, coming[:] = coming[: min(room, 3)], coming[min(room, 3) :]
        return taken

    it.serve(source, lambda one, ended: done.__setitem__(one.key, ended))
    expected = alone(it, asked)
    equal = sum(done[i] == expected[i] for i in range(len(asked)))
    print(f"  {equal} of {len(asked)} equal")
    assert equal >= len(asked) - 2  # a few may have a near-tie
    it.close()


def test_the_caches_leave_room_for_the_largest_requests() -> None:
    it = engine(planned())
    if CUDA:
        free = devices.free_bytes(DEVICE)
        print(f"  caches {kit.cache_bytes(it) / GB:.1f} GB, free {free / GB:.1f} GB")
        assert kit.cache_bytes(it) > 0
    together = [picture(4000, 4000, tokens=4), *(picture(900, 900, i, 4) for i in range(3))]
    assert all(answer.new_tokens for answer in it.generate(together))
    assert all(answer.new_tokens for answer in it.generate([clip(30, i, 4) for i in range(40)]))
    it.close()


def test_float32_answers_are_those_of_the_cpu() -> None:
    here, there = engine(Slot(DEVICE), "small"), engine(Slot("cpu"), "small")
    for requests in (pictures(), clips()):
        on_gpu, on_cpu = here.generate(requests), there.generate(requests)
        equal = sum(a.text == b.text for a, b in zip(on_gpu, on_cpu, strict=True))
        print(f"  {equal} of {len(requests)} equal")
        assert equal >= len(requests) - 1  # one may have a near-tie
        assert alone(here, requests) == on_gpu
    here.close()
    there.close()


def test_float16_answers_and_overflows_nowhere() -> None:
    it = engine(Slot(DEVICE, "float16"), "small")
    exact = engine(Slot(DEVICE, "float32"), "small")
    for requests in (pictures(4), clips(4)):
        same = [
            kit.same_beginning(a.text, b.text)
            for a, b in zip(it.generate(requests), exact.generate(requests), strict=True)
        ]
        print(f"  words equal to float32's: {same}")
        assert sum(same) >= 2 * len(requests)
    it.close()
    exact.close()


def test_both_layouts_answer_the_same() -> None:
    asked = [picture(448, 448, tokens=8)]
    answers = set()
    for layout in Layout:
        it = Phi4Engine.load(kit.checkpoint("small", layout), Slot(DEVICE))
        answers.add(it.generate(asked)[0].text)
        it.close()
    assert len(answers) == 1


def test_drawn_answers_do_not_depend_on_the_batch() -> None:
    from phi4d.job import Sampling

    it = engine(Slot(DEVICE), "small")
    drawn = [
        dataclasses.replace(one, sampling=Sampling(temperature=0.8, seed=7)) for one in clips(8)
    ]
    assert it.generate(drawn) == alone(it, drawn)
    it.close()


def test_too_little_memory_is_told_and_smaller_requests_do_afterwards() -> None:
    if not CUDA:
        print("  the CPU has no such limit: skipped")
        return
    it = engine(Slot(DEVICE, "bfloat16"))
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    room = 0.3e9 if SIZE == "full" else 20e6
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((held() + room) / total, DEVICE)
    try:
        it.generate([picture(4000, 4000, seed) for seed in range(4)])
    except DeviceError as error:
        print(f"  {error}")
        assert "out of memory" in str(error)
    else:
        raise AssertionError("it fitted")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    assert it.generate([clip(1)])[0].new_tokens
    it.close()


def test_flash_attention_answers_like_sdpa() -> None:
    if not (CUDA and importlib.util.find_spec("flash_attn")):
        print("  flash-attn is not installed: skipped")
        return
    answers = []
    for attention in ("sdpa", "flash_attention_2"):
        it = engine(Slot(DEVICE, "bfloat16", attention))
        answers.append([done.text for done in it.generate(clips(4))])
        it.close()
    same = [kit.same_beginning(a, b) for a, b in zip(*answers, strict=True)]
    assert sum(same) >= len(same)
