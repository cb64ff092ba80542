"""The choice of the next token, on logits that are made up."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from phi4d.engine.sampling import GOLDEN, Chooser, exponential, mixed, signed
from phi4d.job import GREEDY, Sampling

VOCABULARY = 50
NEVER = {7, 11}


class Rows:
    """A chooser with rows that all join at the beginning, or leave."""

    def __init__(self, *samplings, prompts=None, vocabulary=VOCABULARY, never=NEVER):
        self.it = Chooser(len(samplings), never=never, vocabulary=vocabulary, device="cpu")
        prompts = prompts or [[1]] * len(samplings)
        for row, (sampling, prompt) in enumerate(zip(samplings, prompts, strict=True)):
            self.it.join(row, sampling, prompt)
        self.rows = list(range(len(samplings)))

    def choose(self, logits):
        return self.it.choose(logits, self.rows)


chooser = Rows


def steps(rows, count=12, seed=0):
    """Logits of some steps, positive and negative: (count, rows, vocabulary)."""
    return 3 * torch.randn(count, rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def chosen(it, logits):
    return [it.choose(step).tolist() for step in logits]


def test_by_default_the_likeliest_token_is_chosen():
    logits = steps(2)
    allowed = logits.clone()
    allowed[..., sorted(NEVER)] = -torch.inf
    assert chosen(chooser(GREEDY, GREEDY), logits) == allowed.argmax(-1).tolist()


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(2.0), Sampling(repetition_penalty=0.1), Sampling(1.0, 3.0)]
)
def test_what_is_never_to_be_chosen_is_not_even_where_it_is_likeliest(sampling):
    logits = steps(1, 200)
    logits[..., sorted(NEVER)] = 1e9
    tokens = chosen(chooser(sampling, prompts=[sorted(NEVER)]), logits)
    assert not {token for (token,) in tokens} & NEVER


def test_the_repetition_penalty_is_transformers_own():
    penalties = (1.0, 1.3, 0.7)
    prompts = [[1, 2, 2, 30], [3, 49], [0, *range(20, 40)]]
    it = chooser(*(Sampling(repetition_penalty=p) for p in penalties), prompts=prompts, never=())
    ids = [torch.tensor([prompt]) for prompt in prompts]
    answers = []
    for logits in steps(3):
        expected = []
        for row, penalty in enumerate(penalties):
            scores = RepetitionPenaltyLogitsProcessor(penalty)(ids[row], logits[row : row + 1])
            expected.append(int(scores.argmax()))
            ids[row] = torch.cat([ids[row], torch.tensor([[expected[-1]]])], dim=1)
        answers.append(it.choose(logits).tolist())
        assert answers[-1] == expected
    assert answers != chosen(chooser(GREEDY, GREEDY, GREEDY, never=()), steps(3))


def test_the_repetition_penalty_keeps_to_its_rows_when_one_leaves():
    samplings = [Sampling(repetition_penalty=p) for p in (2.0, 1.0, 1.2)]
    prompts = [list(range(0, 25)), [3], list(range(25, 50))]
    together = chooser(*samplings, prompts=prompts)
    alone = chooser(samplings[2], prompts=prompts[2:])
    logits = steps(3, 30)
    for step in logits[:6]:
        assert together.choose(step)[2] == alone.choose(step[2:])[0]
    together.rows = [2, 1]
    for step in logits[6:]:
        assert together.choose(step[[2, 1]])[0] == alone.choose(step[2:])[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_softmax_says(temperature):
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 1.5]])
    shares = (logits[0].index_fill(0, torch.tensor([4]), -torch.inf) / temperature).softmax(0)
    it = chooser(Sampling(temperature, seed=3), vocabulary=5, never=[4])
    draws = 10_000
    counts = Counter(int(it.choose(logits)) for _ in range(draws))
    for token, share in enumerate(shares.tolist()):
        # five standard deviations of a binomial count
        assert abs(counts[token] - draws * share) <= 5 * (draws * share * (1 - share)) ** 0.5


def test_a_seed_draws_the_same_again_and_another_seed_otherwise():
    logits = steps(1)
    tokens = [chosen(chooser(Sampling(1.0, seed=seed)), logits) for seed in (5, 5, 6)]
    assert tokens[0] == tokens[1]
    assert tokens[0] != tokens[2]


def test_a_row_is_drawn_alone_as_in_a_batch_that_others_leave():
    samplings = [Sampling(1.0, seed=1), GREEDY, Sampling(1.5, 1.2, seed=2), Sampling(0.3, seed=1)]
    logits = steps(4)
    alone = [
        [row for (row,) in chosen(chooser(sampling), logits[:, row : row + 1])]
        for row, sampling in enumerate(samplings)
    ]
    together = chooser(*samplings)
    first = chosen(together, logits[:6])
    together.rows = [1, 2]
    rest = chosen(together, logits[6:, [1, 2]])
    assert list(zip(*first, strict=True)) == [tuple(row[:6]) for row in alone]
    assert list(zip(*rest, strict=True)) == [tuple(alone[row][6:]) for row in (1, 2)]


def test_what_is_drawn_is_exponentially_distributed():
    numbers = exponential(torch.arange(50), torch.arange(50) * 7, 20_000).double()
    # five standard deviations of a million draws, whose own is 1
    assert abs(float(numbers.mean()) - 1) < 5e-3
    for bound in (1e-3, 0.1, 1.0, 5.0):
        share = 1 - math.exp(-bound)
        found = float((numbers < bound).double().mean())
        assert abs(found - share) < 5 * (share * (1 - share) / 1e6) ** 0.5
    assert float(numbers.min()) > 0
    assert len(numbers.unique()) > 0.9 * numbers.numel()  # float32 tells no more apart


def test_what_is_drawn_follows_from_seed_number_and_place_alone():
    some = exponential(torch.tensor([3, 5, 3]), torch.tensor([0, 1, 1]), 64)
    assert torch.equal(some[1:2], exponential(torch.tensor([5]), torch.tensor([1]), 64))
    assert torch.equal(some[2, :10], exponential(torch.tensor([3]), torch.tensor([1]), 10)[0])
    # neighbours in seed, number and place have nothing in common
    one, other, next_one = some
    for a, b in ((one, other), (one, next_one), (one[1:], one[:-1]), (one[1:], next_one[:-1])):
        assert not bool((a == b).any())


def test_bits_are_mixed_as_by_splitmix64():
    # the first numbers of the reference implementation from the seed 1234567
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = 1234567 + torch.arange(1, 5) * signed(GOLDEN)
    assert mixed(states).tolist() == [signed(number) for number in known]


def test_any_integer_is_a_seed():
    logits = steps(1)
    for seed in (0, -1, 2**63 - 1, 2**64 - 1, 2**70 + 3):
        tokens = chosen(chooser(Sampling(1.0, seed=seed)), logits)
        assert tokens == chosen(chooser(Sampling(1.0, seed=seed % 2**64)), logits)


@pytest.mark.parametrize("temperature", [1e-40, 1e-6])
def test_the_lowest_temperatures_take_the_likeliest(temperature):
    logits = steps(1)
    assert chosen(chooser(Sampling(temperature)), logits) == chosen(chooser(GREEDY), logits)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(repetition_penalty=1.7)])
def test_logits_in_half_precision_are_reckoned_with_in_float32(sampling):
    logits = (steps(1, 5000) / 100).bfloat16()  # close together: rounding shows
    assert chosen(chooser(sampling), logits) == chosen(chooser(sampling), logits.float())


def test_the_penalty_comes_before_the_draw():
    logits = torch.tensor([[40.0, 20.0]])  # the difference is beyond what a draw can turn
    for penalty, token in [(1.0, 0), (1e6, 1)]:
        it = chooser(Sampling(1.0, penalty), prompts=[[0]], vocabulary=2, never=())
        assert int(it.choose(logits)) == token


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, 1.5, seed=4)])
def test_who_takes_a_row_that_another_had_is_answered_as_alone(sampling):
    # given a row with a past of its own
    it = chooser(Sampling(1.0, 3.0, seed=9), GREEDY, prompts=[range(30), [2]])
    chosen(it, steps(2))
    # when another joins there, in the midst of the other row's answer
    it.it.join(0, sampling, [3])
    logits = steps(2, seed=1)
    # then it is as if it had always been alone
    alone = chooser(sampling, prompts=[[3]])
    assert [row[0] for row in chosen(it, logits)] == [
        token for (token,) in chosen(alone, logits[:, :1])
    ]


def test_a_step_that_failed_can_be_done_again(monkeypatch):
    samplings = (Sampling(1.0, seed=1), Sampling(0.7, 1.4, seed=2))
    logits = steps(2)
    expected = chosen(chooser(*samplings), logits)
    it = chooser(*samplings)
    first = chosen(it, logits[:3])
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "argmax", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            it.choose(logits[3])
    assert first + chosen(it, logits[3:]) == expected
