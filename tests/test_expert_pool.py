"""Which experts stay in memory: those that are used most."""

from typing import Any

import pytest
import torch

from modeling_small4.experts_pool import Pool, Usage


class _Counted:
    """A source that writes an expert's number into its slot."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def load(self, expert: tuple[int, int], slot: torch.Tensor, after: Any, old: Any) -> None:
        self.asked.append(expert)
        slot.fill_(10 * expert[0] + expert[1])


def test_what_is_used_most_stays() -> None:
    source, usage = _Counted(), Usage(1, 8)
    pool = Pool(4, 64, source, usage, torch.device("cpu"))

    def use(*experts: int) -> None:
        usage.used(0, [int(n in experts) for n in range(8)], 1)
        with pool.held([(0, n) for n in experts]) as held:
            assert [int(held.slot((0, n))[0]) for n in experts] == list(experts)

    for _ in range(20):
        use(0, 1)
    for cold in (2, 3, 4, 5, 6, 7):
        use(0, cold)
        use(1, cold)
    assert [asked[1] for asked in source.asked] == [0, 1, 2, 3, 4, 5, 6, 7] or len(source.asked) == 8
    assert (0, 0) in pool
    assert (0, 1) in pool


def test_a_prompt_counts_as_its_tokens() -> None:
    one, many = Usage(2, 3), Usage(2, 3)
    for _ in range(2000):
        one.used(0, [1, 1, 0], 1)
    many.used(0, [2000, 2000, 0], 2000)
    scale = 2.0 ** -one._clock[0], 2.0 ** -many._clock[0]
    assert one.scores[0] * scale[0] == pytest.approx(many.scores[0] * scale[1], rel=0.01)


def test_scores_stay_finite() -> None:
    usage = Usage(2, 2)
    for _ in range(300):
        usage.used(0, [1000, 0], 1000)
        usage.used(1, [0, 1000], 1000)
    assert torch.tensor(usage.scores).isfinite().all()
    assert usage.scores[0][0] > 0 < usage.scores[1][1]
