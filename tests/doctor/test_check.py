from __future__ import annotations

import pytest

from phi4d.doctor.check import Check, Status, faulty, gb


@pytest.mark.parametrize(
    ("fault", "found", "advice"),
    [
        (
            "/in/c.toml: batchsize: unknown key; did you mean batch_size?",
            "/in/c.toml: batchsize: unknown key",
            "did you mean batch_size?",
        ),
        (
            "/m: no config.json; so none. It is cut short. Download it with: phi4d model pull",
            "/m: no config.json; so none. It is cut short",
            "Download it with: phi4d model pull",
        ),
        ("something is wrong", "something is wrong", "see the README's tables of keys"),
    ],
)
def test_a_fault_is_what_was_found_and_then_what_to_do(fault, found, advice):
    assert faulty("model", fault) == Check("model", Status.FAIL, found, advice)


@pytest.mark.parametrize(
    ("size", "words"), [(23_100_000_000, "23.1 GB"), (8_300_000, "8 MB"), (0, "0 MB")]
)
def test_bytes_in_words(size, words):
    assert gb(size) == words
