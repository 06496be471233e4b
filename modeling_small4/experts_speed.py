"""Estimates how fast a model decodes when some of its experts are on disk, from bandwidths. Arithmetic, and two short
measurements.

Knows no model; the planner does the same for whole machines.
"""

import time
from collections.abc import Callable

import torch

SAMPLE = 2**25  # bytes that are read to measure main memory


def hit_rate(share: float) -> float:
    """The share of chosen experts that are in memory, given the share of all experts that are: its square root, which
    is between uniform use (the share itself) and the skew measured on the demo checkpoint.
    """
    return min(1.0, share) ** 0.5


def seconds_per_token(
    others: float, experts: float, hits: tuple[float, float], fast: float, link: float, disk: float
) -> float:
    """Decoding one token with experts where they are computed with, in main memory below an accelerator, and on disk;
    copying does not overlap with computing.

    Args:
        others: Bytes of weights that every token reads.
        experts: Bytes of the experts that a token chooses, in all layers.
        hits: How many of a token's experts are where they are computed with, and how many there or in main memory.
        fast, link, disk: Bytes per second of the memory that is computed with, the link to it, and the disk.
    """
    here, kept = hits
    return (others + here * experts) / fast + (kept - here) * experts / link + (1 - kept) * experts / disk


def measured(copy: Callable[[], object], nbytes: int) -> float:
    """Bytes per second of the best of four runs."""
    best = float("inf")
    for _ in range(4):  # the first also touches the memory
        begin = time.perf_counter()
        copy()
        best = min(best, time.perf_counter() - begin)
    return nbytes / best


def measured_memory() -> float:
    """Bytes per second that this process reads from main memory."""
    numbers = torch.ones(SAMPLE // 4)
    return measured(numbers.sum, SAMPLE)
