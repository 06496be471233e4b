"""Estimates how fast a model decodes when some of its experts are on disk, from bandwidths. Arithmetic, and two short
measurements.

Knows no model; the planner does the same for whole machines.
"""

import time

import torch

SAMPLE = 2**25  # bytes that are read to measure main memory


def hit_rate(share: float) -> float:
    """The share of chosen experts that are in memory, given the share of all experts that are: its square root, which
    is between uniform use (the share itself) and the skew measured on the demo checkpoint.
    """
    return min(1.0, share) ** 0.5


def seconds_per_token(others: float, experts: float, share: float, host: float, disk: float) -> float:
    """Decoding one token with experts in main memory and on disk; reading does not overlap with computing.

    Args:
        others: Bytes of weights that every token reads from memory.
        experts: Bytes of the experts that a token chooses, in all layers.
        share: Of all experts, how much is in memory.
        host, disk: Bytes per second.
    """
    hit = hit_rate(share)
    return (others + hit * experts) / host + (1 - hit) * experts / disk


def measured_memory() -> float:
    """Bytes per second that this process reads from main memory."""
    numbers = torch.ones(SAMPLE // 4)
    best = float("inf")
    for _ in range(4):  # the first also touches the memory
        begin = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - begin)
    return SAMPLE / best
