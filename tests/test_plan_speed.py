"""The tokens per second that the planner estimates, and what it measures for that."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from documents import text_of

from modeling_small4 import Small4Config
from modeling_small4.experts_profile import ExpertProfile
from modeling_small4.planner import measuring
from modeling_small4.planner.hardware import GPUS, UNIFIED
from modeling_small4.planner.layout import plan
from modeling_small4.planner.measuring import measure
from modeling_small4.planner.sizes import (
    PRECISIONS,
    cache_bytes,
    tensors,
    weight_bytes,
)
from modeling_small4.planner.speed import SHEETS, Rates, speed

torch.set_num_threads(1)
RELEASE = Small4Config()


@pytest.mark.parametrize(
    ("devices", "precision", "bound"),
    [
        ("128GB-ram", "nvfp4", "main memory"),
        ("64GB-ram", "fp8", "disk"),
        ("24GB+64GB-ram", "nvfp4", "link"),
        ("1xH100", "nvfp4", "gpu memory"),
    ],
)
def test_speed_that_is_foretold(devices: str, precision: str, bound: str) -> None:
    found = speed(RELEASE, plan(RELEASE, devices, precision, context=8192))
    assert found is not None
    assert found.bound == bound
    assert found.tokens_per_second == pytest.approx(1 / sum(found.seconds.values()))
    assert found.prompt_tokens_per_second > found.tokens_per_second


def test_speed_of_the_worked_example() -> None:
    """128 GB of memory at 60 GB/s, all experts in it: the bytes that a token reads, by hand."""
    found = speed(RELEASE, plan(RELEASE, "128GB-ram", "nvfp4", context=8192))
    sizes = weight_bytes(RELEASE, "nvfp4")
    read = sizes["routed experts"] / 32 + cache_bytes(RELEASE, 4096)
    read += sum(sizes[part] for part in ("attention", "shared experts", "router", "norms", "head"))
    assert found is not None
    assert found.seconds == {"main memory": pytest.approx(read / 60e9)}


# The machines of the guide's table of speeds; more than one where it names one of several sizes.
MACHINES = {
    "64 GB of memory, NVMe of 7 GB/s": ["64GB-ram"],
    "128 GB of memory": ["128GB-ram"],
    "RTX 4090, 64 or 128 GB of memory": ["RTX4090+64GB-ram", "RTX4090+128GB-ram"],
    "RTX 5090, 64 or 128 GB of memory": ["RTX5090+64GB-ram", "RTX5090+128GB-ram"],
    "2 x RTX 3090, 64 GB of memory": ["2xRTX3090+64GB-ram"],
    "Strix Halo, 128 GB": ["STRIX-HALO"],
    "DGX Spark": ["DGX-SPARK"],
    "Mac, 128 GB": ["128GB-mac"],
    "Mac, 64 GB": ["64GB-mac"],
    "one H100": ["H100"],
}
BOUNDS = {"main memory": "main memory", "link": "PCIe", "gpu memory": "memory"}


def test_the_guides_table_of_speeds() -> None:
    rows = text_of("what-fits-where.md").split("| machine | tokens/s at most |")[1].split("\n\n")[0].splitlines()[2:]
    told = {row.strip("| ").split(" | ")[0]: row.strip("| ").split(" | ")[1:] for row in rows}
    assert list(told) == list(MACHINES)
    for machine, devices in MACHINES.items():
        alone, both, bound, how = told[machine]
        for each in devices:
            found = speed(RELEASE, plan(RELEASE, each, "nvfp4", context=8192))
            assert alone == (f"{found.tokens_per_second:.2g}" if found else "-").replace("4.1e+02", "410")
            assert both == (
                f"{found.fastest_tokens_per_second:.2g}" if found and found.fastest_tokens_per_second else "-"
            )
            assert bound.replace("GPU ", "") == (BOUNDS[found.bound] if found else "-")
            here = found.experts.get("gpu", found.experts.get("memory", 1.0)) if found else 1.0
            assert here == 1.0 or how.startswith(f"{here:.0%}".replace("%", " %"))


def test_the_cpu_computes_what_is_in_main_memory() -> None:
    """24 % of the experts on the GPU: half of the uses; the others at 60 GB/s in place of 25 GB/s by PCIe."""
    found = speed(RELEASE, plan(RELEASE, "RTX4090+128GB-ram", "nvfp4", context=8192))
    assert found is not None
    assert found.fastest_tokens_per_second is not None
    used = weight_bytes(RELEASE, "nvfp4")["routed experts"] / 32
    away = (1 - found.experts["gpu"] ** 0.5) * used
    gpu = found.seconds["gpu memory"] - away / found.rates.gpu
    assert found.seconds["link"] == pytest.approx(away / 25e9)
    assert 1 / found.fastest_tokens_per_second == pytest.approx(gpu + away / 60e9)
    slow = speed(RELEASE, plan(RELEASE, "RTX4090+128GB-ram", "nvfp4", context=8192), Rates(host=20e9))
    assert slow is not None
    assert slow.fastest_tokens_per_second is None


def test_slower_parts_make_it_slower() -> None:
    made = plan(RELEASE, "64GB-ram", "nvfp4", context=8192)
    speeds = [speed(RELEASE, made, Rates(**slow)) for slow in ({}, {"disk": 1e9}, {"host": 1e10}, {"cpu_flops": 1e10})]
    assert all(speeds)
    decode, prompt = (
        [getattr(found, name) for found in speeds] for name in ("tokens_per_second", "prompt_tokens_per_second")
    )
    assert decode[1] < decode[0] > decode[2]
    assert prompt[3] < prompt[0]


def test_a_profile_in_place_of_the_assumed_hit_rate() -> None:
    made = plan(RELEASE, "64GB-ram", "nvfp4", context=8192)
    uses = np.ones((36, 128), dtype=np.int64)
    uses[:, :64] = 9  # nine in ten uses of half of the experts; what else is in memory serves its share of the tenth
    assumed, known = (speed(RELEASE, made, None, profile) for profile in (None, ExpertProfile(1000, uses)))
    assert assumed is not None
    assert known is not None
    share = round(known.experts["memory"] * uses.size)
    hit = (9 * 64 * 36 + share - 64 * 36) / (10 * 64 * 36)
    read = weight_bytes(RELEASE, "nvfp4")["routed experts"] / 32
    assert known.seconds["disk"] == pytest.approx((1 - hit) * read / 7e9)
    assert assumed.seconds["disk"] == pytest.approx((1 - assumed.experts["memory"] ** 0.5) * read / 7e9)
    assert "expert_profile.json" in known.hit_rates


@pytest.mark.parametrize(("devices", "precision"), [("80GB+128GB-ram", "fp8"), ("24GB+64GB-ram", "nvfp4")])
def test_the_chunk_that_is_named_is_near_the_best(devices: str, precision: str) -> None:
    def rate(chunk: int) -> float:
        found = speed(RELEASE, plan(RELEASE, devices, precision, context=65536, chunk=chunk))
        return found.prompt_tokens_per_second if found else 0.0

    found = speed(RELEASE, plan(RELEASE, devices, precision, context=65536))
    assert found is not None
    assert found.prompt_chunk > 2048
    assert rate(found.prompt_chunk) > 1.5 * rate(2048)
    assert rate(found.prompt_chunk) > 0.85 * max(rate(chunk) for chunk in range(2048, 65536, 2048))


@pytest.mark.parametrize("precision", ["bfloat16", "nvfp4"])  # in all, a layer is held as below
def test_bandwidths_are_measured(precision: str) -> None:
    rates = measure(precision)
    assert rates.host_others is not None
    assert min(rates.host, rates.host_others, rates.disk, rates.cpu_flops) > 1e6
    assert rates.source == "measured on this machine"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_layer_without_experts_is_held_as_a_checkpoint_of_it(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are those that the planner counts, and each layer that is timed is one of them."""
    timed: list[tuple[int, int]] = []

    def rate(run: Callable[[int], float], groups: int, nbytes: int) -> float:
        assert all(math.isfinite(run(index)) for index in range(groups))
        timed.append((groups, nbytes))
        return 5.0

    monkeypatch.setattr(measuring, "rate_of", rate)
    monkeypatch.setattr(measuring, "ENOUGH", 1)
    assert measuring._others(precision, "cpu") == 5
    held = "bfloat16" if precision == "int8" else precision  # by another package
    counted = [t for t in tensors(RELEASE) if ".layers.0." in t.name and "language" in t.name]
    read = sum(tensor.nbytes(held) for tensor in counted if tensor.part != "routed experts")
    assert timed == [(1, pytest.approx(read, rel=1e-5))]


def test_speed_with_other_weights_at_their_own_rate() -> None:
    """In main memory, on a GPU with experts elsewhere, and all on a GPU: 36 layers at the rates given."""
    sizes, cache = weight_bytes(RELEASE, "nvfp4"), cache_bytes(RELEASE, 4096)
    read = sizes["routed experts"] / 32
    others = cache + sum(sizes[part] for part in ("attention", "shared experts", "router", "norms", "head"))
    rates = Rates(gpu=1000e9, gpu_others=300e9, host=60e9, host_others=20e9)
    slower = {"host": others / 20e9 + read / 60e9, "gpu": others / 300e9 + read / 1000e9}
    for devices, key, where in (
        ("128GB-ram", "host", "main memory"),
        ("24GB+128GB-ram", "gpu", "gpu memory"),
        ("H100", "gpu", "gpu memory"),
    ):
        found = speed(RELEASE, plan(RELEASE, devices, "nvfp4", context=8192), rates)
        assert found is not None
        assert found.seconds[where] == pytest.approx(slower[key])


def test_every_gpu_has_a_memory_and_a_data_sheet() -> None:
    assert set(SHEETS) == set(GPUS) | set(UNIFIED)
