"""Estimates how fast a token is decoded when some experts are in main memory or on disk: one formula, which the planner
and the line at the start use, and the stopwatch for its rates.

Arithmetic only. Must not know: models, files.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

FOREVER = float("inf")
MOST = 9  # calls that are timed


@dataclass(frozen=True)
class WeightRates:
    """Bytes of weights per second: `product` multiplied with one token where experts are computed with, `link` copied
    to there from main memory, `disk` read into main memory, `host` multiplied with one token by the CPU (0: it is not
    to multiply any, or there is no accelerator).
    """

    product: float
    link: float = FOREVER
    disk: float = FOREVER
    host: float = 0.0


def rounded(value: float, digits: int = 2) -> str:
    """A number of so many digits, without an exponent unless it is tiny: "1,200", "410", "7.3", "0.017"."""
    return f"{float(f'{value:.{digits}g}'):,.15g}"


def hit_rate(share: float) -> float:
    """The share of chosen experts that are in memory, given the share of all experts that are: its square root, which
    is between uniform use (the share itself) and the skew measured on the demo checkpoint.
    """
    return min(1.0, share) ** 0.5


def stays(nbytes: float, activations: float, rates: WeightRates) -> bool:
    """Whether an expert that is in main memory is computed there, by the CPU, sooner than it is copied to the
    accelerator.

    activations: Bytes of its inputs and outputs, which are copied instead.
    """
    return rates.host > 0 and nbytes / rates.host + activations / rates.link < nbytes / rates.link


def seconds_per_token(others: float, experts: float, hits: tuple[float, float], rates: WeightRates) -> dict[str, float]:
    """Seconds of one decoded token by what it waits for: "product", "cpu", "link", "disk". They are added up, although
    the experts of a layer that are in place are multiplied while others arrive.

    Args:
        others: Seconds of all but its experts: attention, shared experts, head, and what calling them takes.
        experts: Bytes of the experts that a token chooses, in all layers.
        hits: How many of a token's experts are where they are computed with, and how many there or in main memory.
    """
    here, kept = hits
    by_cpu = kept - here if stays(experts, 0, rates) else 0.0
    return {
        "product": others + (1 - by_cpu) * experts / rates.product,
        "cpu": by_cpu * experts / rates.host if by_cpu else 0.0,
        "link": (1 - here - by_cpu) * experts / rates.link,  # those on disk go through main memory
        "disk": (1 - kept) * experts / rates.disk,
    }


def seconds_of(run: Callable[[], object]) -> float:
    """What one call takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def rate_of(run: Callable[[int], object], groups: int, nbytes: int) -> float:
    """Bytes per second of calls that work on `nbytes` each, in a row of groups so that caches hold none of the next:
    the median of three rounds, after one call to warm up.
    """
    run(0)
    return nbytes / median(seconds_of(lambda: run(group)) for _ in range(3) for group in reversed(range(groups)))  # noqa: B023


def typical_seconds(run: Callable[[], object], patience: float) -> float:
    """What a call takes: the median of as many as `patience` seconds allow, after one to warm up."""
    run()
    taken: list[float] = []
    while not taken or (sum(taken) < patience and len(taken) < MOST):
        taken.append(seconds_of(run))
    return median(taken)
