"""The plan over a table of machines; every figure is worked out here again, by hand."""

from __future__ import annotations

import dataclasses
import re

import checkpoints
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4d.engine.plan import PUBLISHED, Device, Size, Slot, Wishes, plan
from phi4d.errors import ConfigError, EnvironmentFault

GB = 10**9
ALL = {"flash_attn", "bitsandbytes", "accelerate"}
BARE = {"accelerate"}
MERGED_GB, UNMERGED_GB, EIGHT_GB, FOUR_GB = 15.93, 11.15, 7.93, 6.52
COMFORTABLE_GB, TIGHT_GB = 2.97, 1.0
FLOAT16_GB = 3.18
"""comfortable in float16"""
ORDER = ["merged", "unmerged", "8bit", "4bit", "4bit tight", "offload"]
BARE_ORDER = ["merged", "unmerged", "8bit", "8bit tight", "offload"]


def gpu(
    free_gb: float, capability=(8, 6), *, index=0, total_gb=None, product="NVIDIA GPU"
) -> Device:
    return Device(
        f"cuda:{index}",
        product,
        int((total_gb or free_gb) * GB),
        int(free_gb * GB),
        capability,
        capability >= (8, 0),
        "550.54",
    )


def cpu(free_gb: float = 60, *, bfloat16: bool = True) -> Device:
    return Device("cpu", "Xeon", 64 * GB, int(free_gb * GB), None, bfloat16)


def made(*gpus: Device, main=None, installed=ALL, **wishes) -> list[Slot]:
    return plan(gpus, main or cpu(), PUBLISHED, Wishes(**wishes), installed)


def refusal(*gpus: Device, main=None, installed=ALL, **wishes) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        made(*gpus, main=main, installed=installed, **wishes)
    return caught.value.faults


def rung(slot: Slot) -> str:
    if slot.offload_bytes:
        return "offload"
    if slot.quantization == "none":
        return "merged" if slot.merged else "unmerged"
    return f"{slot.quantization}{' tight' if slot.room_bytes < GB else ''}"


CARDS = [
    # total GB, capability, dtype and attention with everything installed, rung, rung without
    (6, (6, 1), "float16", "sdpa", "offload", "offload"),  # Pascal: GTX 1060
    (6, (7, 5), "float16", "sdpa", "offload", "offload"),  # Turing: RTX 2060
    (8, (6, 1), "float16", "sdpa", "4bit tight", "offload"),  # GTX 1080
    (8, (8, 6), "bfloat16", "flash_attention_2", "4bit tight", "offload"),  # Ampere: RTX 3070
    (10, (8, 6), "bfloat16", "flash_attention_2", "4bit", "8bit tight"),  # RTX 3080
    (11, (5, 2), "float16", "sdpa", "8bit tight", "8bit tight"),  # Maxwell: no 4bit before Pascal
    (11, (7, 5), "float16", "sdpa", "4bit", "8bit tight"),  # RTX 2080 Ti
    (12, (6, 0), "float16", "sdpa", "8bit", "8bit"),  # P100 12 GB
    (12, (7, 5), "float16", "sdpa", "8bit", "8bit"),
    (12, (8, 9), "bfloat16", "flash_attention_2", "8bit", "8bit"),  # Ada: RTX 4070
    (16, (7, 0), "float16", "sdpa", "unmerged", "unmerged"),  # Volta: V100
    (16, (7, 5), "float16", "sdpa", "unmerged", "unmerged"),  # T4
    (16, (12, 0), "bfloat16", "flash_attention_2", "unmerged", "unmerged"),  # Blackwell: RTX 5080
    (24, (6, 1), "float16", "sdpa", "merged", "merged"),  # P40
    (24, (8, 6), "bfloat16", "flash_attention_2", "merged", "merged"),  # RTX 3090
    (24, (8, 9), "bfloat16", "flash_attention_2", "merged", "merged"),  # L4
    (40, (8, 0), "bfloat16", "flash_attention_2", "merged", "merged"),  # A100
    (80, (9, 0), "bfloat16", "flash_attention_2", "merged", "merged"),  # Hopper: H100
    (141, (9, 0), "bfloat16", "flash_attention_2", "merged", "merged"),  # H200
    (180, (10, 0), "bfloat16", "flash_attention_2", "merged", "merged"),  # B200
]


class TestOneGpu:
    @pytest.mark.parametrize(("total", "capability", "dtype", "attention", "best", "bare"), CARDS)
    def test_by_its_memory_and_capability(
        self, total, capability, dtype, attention, best, bare
    ) -> None:
        card = gpu(total * 0.97, capability, total_gb=total)

        (slot,) = made(card)
        assert (slot.device, slot.dtype, slot.attention) == ("cuda:0", dtype, attention)
        assert rung(slot) == best

        (slot,) = made(card, installed=BARE)
        assert (slot.dtype, slot.attention) == (dtype, "sdpa")
        assert rung(slot) == bare

    @pytest.mark.parametrize(
        ("weights", "room", "expected"),
        [
            (MERGED_GB, COMFORTABLE_GB, "merged"),
            (UNMERGED_GB, COMFORTABLE_GB, "unmerged"),
            (EIGHT_GB, COMFORTABLE_GB, "8bit"),
            (FOUR_GB, COMFORTABLE_GB, "4bit"),
            (FOUR_GB, TIGHT_GB, "4bit tight"),
        ],
    )
    def test_a_rung_begins_where_its_weights_leave_room_to_work(self, weights, room, expected):
        (slot,) = made(gpu(weights + room + 0.02))
        (less,) = made(gpu(weights + room - 0.02))

        assert rung(slot) == expected
        assert slot.needs_bytes == pytest.approx(weights * GB, abs=0.01 * GB)
        assert slot.room_bytes == pytest.approx(room * GB, abs=0.01 * GB)
        assert ORDER.index(rung(less)) == ORDER.index(expected) + 1

    @pytest.mark.parametrize(
        ("room", "expected"), [(COMFORTABLE_GB, "8bit"), (TIGHT_GB, "8bit tight")]
    )
    def test_where_4_bits_cannot_be_had_8_are_held_with_little_room(self, room, expected) -> None:
        (slot,) = made(gpu(EIGHT_GB + room + 0.02), installed=BARE)
        (less,) = made(gpu(EIGHT_GB + room - 0.02), installed=BARE)

        assert rung(slot) == expected
        assert BARE_ORDER.index(rung(less)) == BARE_ORDER.index(expected) + 1

    def test_float16_wants_more_room_to_work_in(self) -> None:
        assert rung(made(gpu(EIGHT_GB + FLOAT16_GB + 0.02, (7, 5)))[0]) == "8bit"
        assert rung(made(gpu(EIGHT_GB + FLOAT16_GB - 0.02, (7, 5)))[0]) == "4bit"

    def test_why_has_the_numbers(self) -> None:
        assert made(gpu(23.1))[0].why == "bfloat16, merged adapters: 15.9 of 23.1 GB free"
        assert "little room" in made(gpu(7.6))[0].why

    @pytest.mark.parametrize(
        ("wishes", "dtype", "quantization", "merged"),
        [
            ({"dtype": "float32"}, "float32", "none", True),
            ({"dtype": "float16"}, "float16", "none", True),
            ({"quantization": "8bit"}, "bfloat16", "8bit", False),
            ({"quantization": "4bit"}, "bfloat16", "4bit", False),
            ({"quantization": "4bit", "dtype": "float32"}, "float32", "4bit", False),
            ({"merge_adapters": "never"}, "bfloat16", "none", False),
            ({"merge_adapters": "always"}, "bfloat16", "none", True),
        ],
    )
    def test_what_is_asked_for_is_taken(self, wishes, dtype, quantization, merged) -> None:
        (slot,) = made(gpu(80, (9, 0)), **wishes)

        assert (slot.dtype, slot.quantization, slot.merged) == (dtype, quantization, merged)

    def test_float32_takes_twice_as_much_and_no_flash_attention(self) -> None:
        (slot,) = made(gpu(60), dtype="float32")

        assert slot.needs_bytes == pytest.approx(2 * MERGED_GB * GB, rel=0.001)
        assert slot.attention == "sdpa"

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_other_attention_is_taken_as_it_is(self, attention: str) -> None:
        assert made(gpu(80), attention=attention)[0].attention == attention

    def test_flash_attention_that_can_be_had(self) -> None:
        assert made(gpu(80), attention="flash_attention_2")[0].attention == "flash_attention_2"


class TestOffload:
    def test_it_says_what_stays_and_what_waits_where(self) -> None:
        (slot,) = made(gpu(5.8, (6, 1)), main=cpu(20))

        assert slot.offload_bytes + slot.main_bytes == pytest.approx(UNMERGED_GB * GB, rel=0.001)
        assert slot.offload_bytes + slot.room_bytes <= 5.8 * GB
        assert (slot.quantization, slot.merged) == ("none", False)
        assert "slowly" in slot.why

    def test_it_says_which_package_would_spare_it(self) -> None:
        (slot,) = made(gpu(8), installed=BARE)

        assert rung(slot) == "offload"
        assert "4bit would fit, but bitsandbytes is not installed (pip install" in slot.why

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"offload": "never"}, "offload is 'never'"),
            ({"installed": {"bitsandbytes"}}, "accelerate, which is not installed"),
            ({"main": cpu(4)}, "GB of main memory, of which 4.0 are free"),
        ],
    )
    def test_without_it_there_is_no_room(self, options, why) -> None:
        (fault,) = refusal(gpu(5.8, (6, 1)), **options)

        assert why in fault

    def test_too_little_for_what_must_stay(self) -> None:
        (fault,) = refusal(gpu(3))

        assert "offloading wants 4.5 GB there" in fault

    @pytest.mark.parametrize(
        "wishes", [{"quantization": "8bit"}, {"quantization": "4bit"}, {"merge_adapters": "always"}]
    )
    def test_it_is_no_answer_to_a_wish_for_something_else(self, wishes) -> None:
        (fault,) = refusal(gpu(5.8), **wishes)

        assert "offload" not in fault.replace("set offload", "")

    def test_two_slots_do_not_offload_into_the_same_memory(self) -> None:
        both = [gpu(5.8, index=0), gpu(5.8, index=1)]

        assert len(made(*both, main=cpu(15), device="cuda:0,cuda:1")) == 2
        (fault,) = refusal(*both, main=cpu(10), device="cuda:0,cuda:1")
        assert fault.startswith("device: cuda:1 ")

    def test_a_slot_on_the_cpu_goes_first(self) -> None:
        wanted = {"device": "cuda:0,cpu"}

        assert [slot.device for slot in made(gpu(5.8), main=cpu(30), **wanted)] == ["cuda:0", "cpu"]
        (fault,) = refusal(gpu(5.8), main=cpu(16), **wanted)
        assert fault.startswith("device: cuda:0 ")


class TestSeveralGpus:
    def test_each_has_what_its_memory_allows(self) -> None:
        slots = made(gpu(23, index=0), gpu(79, (9, 0), index=1), gpu(11.6, (7, 5), index=2))

        assert [slot.device for slot in slots] == ["cuda:0", "cuda:1", "cuda:2"]
        assert [rung(slot) for slot in slots] == ["merged", "merged", "8bit"]
        assert [slot.dtype for slot in slots] == ["bfloat16", "bfloat16", "float16"]

    def test_one_that_is_busy_is_not_used(self) -> None:
        slots = made(gpu(2, index=0, total_gb=24), gpu(23, index=1))

        assert [slot.device for slot in slots] == ["cuda:1"]

    def test_one_over_the_threshold_but_too_small_is_left_out_and_told(self) -> None:
        slots = made(gpu(8.5, index=0), gpu(23, index=1), installed=BARE)

        assert [slot.device for slot in slots] == ["cuda:1"]
        assert slots[0].why.endswith("without cuda:0 (8.5 GB free), which is too little")

    def test_where_none_is_large_enough_they_offload(self) -> None:
        slots = made(gpu(8.5, index=0), gpu(8.5, index=1), installed=BARE)

        assert [rung(slot) for slot in slots] == ["offload", "offload"]

    def test_where_main_memory_is_enough_for_one_alone_that_one_is_used(self) -> None:
        slots = made(gpu(8.5, index=0), gpu(8.5, index=1), installed=BARE, main=cpu(8))

        assert [slot.device for slot in slots] == ["cuda:0"]
        assert "without cuda:1" in slots[0].why

    def test_all_too_small_are_all_named(self) -> None:
        faults = refusal(gpu(8.5, index=0), gpu(8.5, index=1), installed=BARE, offload="never")

        assert [fault.split()[1] for fault in faults] == ["cuda:0", "cuda:1"]

    def test_one_that_was_named_must_do(self) -> None:
        (fault,) = refusal(
            gpu(3, index=0), gpu(23, index=1), device="cuda:0,cuda:1", offload="never"
        )

        assert fault.startswith("device: cuda:0 (NVIDIA GPU) has 3.0 GB free")

    def test_slots_on_one_gpu_share_it(self) -> None:
        slots = made(gpu(39), device="cuda:0,cuda:0")

        assert [slot.device for slot in slots] == ["cuda:0", "cuda:0"]
        assert slots[0] == slots[1]
        assert rung(slots[0]) == "merged"
        assert slots[0].why.endswith("15.9 of 39.0 GB free, shared by 2 slots")
        assert rung(made(gpu(37), device="cuda:0,cuda:0")[0]) == "unmerged"

    def test_the_order_is_the_one_asked_for(self) -> None:
        slots = made(gpu(23, index=0), gpu(23, index=1), device="cuda:1,cpu,cuda:0,cuda:1")

        assert [slot.device for slot in slots] == ["cuda:1", "cpu", "cuda:0", "cuda:1"]


class TestCpu:
    @pytest.mark.parametrize(
        ("free", "bfloat16", "dtype", "quantization"),
        [
            (60, True, "bfloat16", "none"),
            (60, False, "float32", "none"),
            (20, False, "bfloat16", "none"),  # float32 does not fit, bfloat16 does
            (12.5, True, "bfloat16", "8bit"),
            (12.5, False, "bfloat16", "8bit"),
            (10, True, "bfloat16", "4bit"),
            (8, True, "bfloat16", "4bit"),  # with little room
        ],
    )
    def test_by_its_instructions_and_memory(self, free, bfloat16, dtype, quantization) -> None:
        (slot,) = made(main=cpu(free, bfloat16=bfloat16))

        assert (slot.device, slot.attention, slot.merged) == ("cpu", "sdpa", False)
        assert (slot.dtype, slot.quantization) == (dtype, quantization)

    def test_it_is_never_offloaded_from(self) -> None:
        with pytest.raises(EnvironmentFault) as caught:
            made(main=cpu(5))
        fault = str(caught.value)

        assert "offload" not in fault
        assert "close other programs, or add memory" in fault

    def test_memory_that_others_have_may_come_free_and_memory_that_is_not_there_may_not(
        self,
    ) -> None:
        small = dataclasses.replace(cpu(5), total_bytes=6 * GB)
        (fault,) = refusal(main=small)
        assert "has 5.0 GB free" in fault

    def test_slots_share_what_is_mapped(self) -> None:
        slots = made(main=cpu(21), device="cpu,cpu")

        assert [rung(slot) for slot in slots] == ["unmerged", "unmerged"]
        assert "21.0 GB free, shared by 2 slots" in slots[0].why
        # copies in another format are not shared
        (copy, _) = made(main=cpu(21), device="cpu,cpu", dtype="float16")
        assert copy.quantization == "4bit"

    def test_merged_only_if_asked_for(self) -> None:
        assert made(main=cpu(30), merge_adapters="always")[0].merged


class TestRefusals:
    @pytest.mark.parametrize(
        ("card", "installed", "wishes", "words"),
        [
            (
                gpu(15, (7, 5), product="Tesla T4"),
                ALL,
                {"attention": "flash_attention_2"},
                "attention: 'flash_attention_2' cannot be had on cuda:0: it wants compute "
                "capability 8.0, and Tesla T4 has 7.5. Set attention to 'auto' or 'sdpa'",
            ),
            (gpu(79), BARE, {"attention": "flash_attention_2"}, "flash-attn is not installed"),
            (
                gpu(79),
                ALL,
                {"attention": "flash_attention_2", "dtype": "float32"},
                "it wants dtype bfloat16 or float16, not float32",
            ),
            (
                gpu(79),
                ALL,
                {"attention": "flash_attention_2", "device": "cpu"},
                "cannot be had on cpu: it is for GPUs",
            ),
            (
                gpu(11, (5, 2), product="Tesla M40"),
                ALL,
                {"quantization": "4bit"},
                "quantization: '4bit' cannot be had on cuda:0: it wants compute capability 6.0, "
                "and Tesla M40 has 5.2. Set quantization to 'auto'",
            ),
            (
                gpu(79),
                BARE,
                {"quantization": "4bit"},
                "bitsandbytes is not installed (pip install bitsandbytes)",
            ),
            (
                gpu(79),
                ALL,
                {"quantization": "8bit", "merge_adapters": "always"},
                "merge_adapters: 'always' does not go with quantization '8bit'",
            ),
        ],
    )
    def test_what_cannot_be_had_says_why(self, card, installed, wishes, words) -> None:
        (fault,) = refusal(card, installed=installed, **wishes)

        assert words in fault

    def test_no_room_names_every_rung_with_its_number(self) -> None:
        (fault,) = refusal(gpu(5, product="NVIDIA GTX 1060"), main=cpu(3), installed=BARE)

        assert fault.startswith(
            "device: cuda:0 (NVIDIA GTX 1060) has 5.0 GB free, too little for the model. It wants "
            "bfloat16, merged adapters: 18.9 GB; bfloat16, unmerged adapters: 14.1 GB; "
            "bfloat16, 8bit: 10.9 GB; 4bit: bitsandbytes is not installed (pip install "
            "bitsandbytes); bfloat16, 8bit, for small pictures and clips alone: 8.9 GB; "
        )
        assert "main memory, of which 3.0 are free" in fault
        assert fault.endswith(
            "free some of it (nvidia-smi shows who has it), or set device to 'cpu'"
        )

    @pytest.mark.parametrize(
        ("wishes", "advice"),
        [
            (
                {"quantization": "none", "offload": "never"},
                "set quantization and offload to 'auto'",
            ),
            ({"merge_adapters": "always"}, "set merge_adapters to 'auto'"),
            ({"dtype": "float32", "offload": "never"}, "set offload and dtype to 'auto'"),
        ],
    )
    def test_no_room_says_which_keys_ask_too_much(self, wishes, advice) -> None:
        (fault,) = refusal(gpu(6), **wishes)

        assert advice in fault

    def test_every_fault_is_told(self) -> None:
        faults = refusal(
            gpu(15, (5, 2)),
            device="cuda:0,cuda:9,gpu",
            attention="flash_attention_2",
            quantization="4bit",
            merge_adapters="always",
        )

        assert [fault.split(":")[0] for fault in faults] == [
            "device",
            "device",
            "merge_adapters",
            "attention",
            "quantization",
        ]

    def test_a_missing_device_and_a_crowded_one_are_both_told(self) -> None:
        faults = refusal(gpu(3), device="cuda:0,cuda:9")

        assert ["is not there" in fault for fault in faults] == [True, False]
        assert "has 3.0 GB free" in faults[1]

    def test_a_gpu_that_is_ours_to_find_is_not_left_out_for_a_wish_that_it_cannot_have(
        self,
    ) -> None:
        (fault,) = refusal(
            gpu(23, index=0), gpu(15, (7, 5), index=1), attention="flash_attention_2"
        )

        assert "cannot be had on cuda:1" in fault


@pytest.mark.parametrize(
    ("slot", "words"),
    [
        (Slot("cpu"), "float32, sdpa"),
        (Slot("cuda:0", "bfloat16", merged=True), "bfloat16, merged adapters, sdpa"),
        (Slot("cuda:0", "float16", "eager", "4bit"), "float16, 4bit, eager"),
        (Slot("cuda:0", "bfloat16", offload_bytes=1), "bfloat16, sdpa, offloaded"),
    ],
)
def test_how_a_slot_holds_the_model_in_a_few_words(slot: Slot, words: str) -> None:
    assert slot.precision == words


def test_the_published_size_is_what_its_configuration_comes_to() -> None:
    assert checkpoints.on_paper().size == PUBLISHED


def test_a_toy_is_given_room_in_proportion() -> None:
    toy = Size(900_000, 60_000, 2_000_000, 100_000, 100_000, 256)

    (slot,) = plan([], cpu(0.6), toy, Wishes(), BARE)

    assert slot.needs_bytes < 10**7


CAPABILITIES = st.sampled_from(
    [(5, 2), (6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
)
GPUS = st.lists(st.tuples(st.floats(0, 200), CAPABILITIES), max_size=4).map(
    lambda facts: [gpu(free, capability, index=i) for i, (free, capability) in enumerate(facts)]
)
CPUS = st.builds(cpu, st.floats(0, 128), bfloat16=st.booleans())
INSTALLED = st.sets(st.sampled_from(sorted(ALL)))
WISHES = st.builds(
    Wishes,
    device=st.one_of(
        st.sampled_from(["auto", "cpu", "cuda"]),
        st.lists(st.sampled_from(["cpu", "cuda:0", "cuda:1"]), min_size=1, max_size=4).map(
            ",".join
        ),
    ),
    force_cpu=st.booleans(),
    disable_parallel=st.booleans(),
    multi_gpu_threshold_gb=st.floats(0, 50),
    dtype=st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    attention=st.sampled_from(["auto", "flash_attention_2", "sdpa", "eager"]),
    quantization=st.sampled_from(["auto", "none", "8bit", "4bit"]),
    merge_adapters=st.sampled_from(["auto", "always", "never"]),
    offload=st.sampled_from(["auto", "never"]),
)


def attempt(gpus, main, wishes, installed) -> list[Slot] | tuple[str, ...]:
    try:
        return plan(gpus, main, PUBLISHED, wishes, installed)
    except ConfigError as error:
        return error.faults
    except EnvironmentFault as fault:
        # then nothing was wished that the devices could not have if they were empty
        emptied = [dataclasses.replace(gpu, free_bytes=gpu.total_bytes) for gpu in gpus]
        roomy = dataclasses.replace(main, free_bytes=main.total_bytes)
        assert plan(emptied, roomy, PUBLISHED, wishes, installed)
        return tuple(str(fault).splitlines())


@given(GPUS, CPUS, WISHES, INSTALLED)
def test_a_plan_takes_no_more_than_is_free_and_grants_what_was_asked(
    gpus, main, wishes, installed
) -> None:
    result = attempt(gpus, main, wishes, installed)

    if isinstance(result, tuple):
        assert result
        assert all(re.match(r"\w+: .{20,}", fault) for fault in result)
        return
    assert result
    mapped = int((PUBLISHED.language + PUBLISHED.embedding + PUBLISHED.towers) * 2)
    taken = dict.fromkeys([device.name for device in (*gpus, main)], 0)
    for slot in result:
        taken[slot.device] += slot.needs_bytes + slot.room_bytes
        taken["cpu"] += slot.main_bytes
        assert wishes.dtype in ("auto", slot.dtype)
        assert wishes.attention in ("auto", slot.attention)
        assert wishes.quantization in ("auto", slot.quantization)
        assert slot.merged or wishes.merge_adapters != "always"
        assert not (slot.merged and wishes.merge_adapters == "never")
        assert not (slot.offload_bytes and wishes.offload == "never")
        assert slot.quantization != "4bit" or "bitsandbytes" in installed
        assert slot.attention != "flash_attention_2" or "flash_attn" in installed
    cpus = [slot for slot in result if slot.device == "cpu"]
    if cpus and (cpus[0].dtype, rung(cpus[0])) == ("bfloat16", "unmerged"):
        taken["cpu"] -= (len(cpus) - 1) * mapped
    for device in (*gpus, main):
        assert taken[device.name] <= device.free_bytes


@given(GPUS, CPUS, WISHES, INSTALLED)
def test_the_same_question_has_the_same_answer(gpus, main, wishes, installed) -> None:
    assert attempt(gpus, main, wishes, installed) == attempt(gpus, main, wishes, installed)


@given(st.floats(0, 100), st.floats(0, 50), CAPABILITIES, CPUS, WISHES, INSTALLED)
def test_more_memory_never_gives_a_worse_rung(
    free, more, capability, main, wishes, installed
) -> None:
    wishes = dataclasses.replace(wishes, device="cuda:0", force_cpu=False)
    less = attempt([gpu(free, capability)], main, wishes, installed)
    rich = attempt([gpu(free + more, capability)], main, wishes, installed)

    if isinstance(less, list):
        assert isinstance(rich, list)
        assert place_of(rich[0]) <= place_of(less[0])


def place_of(slot: Slot) -> tuple[bool, bool, int]:
    """How far down a slot is: offloaded last, then what has little room to work in."""
    quantization = ["none", "8bit", "4bit"].index(slot.quantization)
    return bool(slot.offload_bytes), "little room" in slot.why, 2 * quantization - slot.merged
