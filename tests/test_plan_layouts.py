"""What the planner puts where: its layouts against themselves, the release's table, machines, and what it advises."""

from typing import Any

import pytest
import torch

from modeling_small4 import Small4Config
from modeling_small4.planner import sizes
from modeling_small4.planner.alternatives import alternatives, release_table, replicas
from modeling_small4.planner.hardware import parse_machine, this_machine
from modeling_small4.planner.layout import plan
from modeling_small4.planner.sizes import (
    PRECISIONS,
    cache_bytes,
    weight_bytes,
)

RELEASE = Small4Config()


def test_the_releases_table_comes_out() -> None:
    """Minimum: 4 H100 are the fewest that hold the bfloat16 weights with a full context; recommended: several times the
    room.
    """
    fits = {count: plan(RELEASE, f"{count}xH100", "bfloat16").fits for count in (1, 2, 3, 4)}
    assert fits == {1: False, 2: False, 3: False, 4: True}
    rows = {row["devices"]: row for row in release_table(RELEASE)}
    assert [(row["role"], name) for name, row in rows.items()] == [
        ("minimum", "4xH100"), ("minimum", "1xDGX-B200"), ("recommended", "4xH200"), ("recommended", "2xDGX-B200"),
    ]  # fmt: skip
    for precision in ("bfloat16", "fp8"):
        assert all(row[precision]["fits"] for row in rows.values())
        for less, more in (("4xH100", "4xH200"), ("1xDGX-B200", "2xDGX-B200")):
            assert rows[more][precision]["contexts"] >= 2 * rows[less][precision]["contexts"] > 0
    assert "fewest H100" in rows["4xH100"]["reason"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "devices", ["1xH200", "3xH100", "8xH200", "2x24GB+64GB-ram", "64GB-ram", "16GB+32GB-ram+1TB-disk"]
)
def test_every_byte_has_a_place(devices: str, precision: str) -> None:
    for layout in ("auto", "device_map"):
        made = plan(RELEASE, devices, precision, layout=layout, context=32768)
        total = sum(weight_bytes(RELEASE, precision).values())
        held = sum(sum(load.weights.values()) for load in made.loads)
        if made.distributed:
            assert all(sum(load.weights.values()) < 1.2 * total / len(made.loads) for load in made.loads)
            assert held >= total
        else:
            assert held == total
            assert sum(load.cache for load in made.loads) == cache_bytes(RELEASE, 32768)
            assert made.device_map is not None
        if made.fits:
            assert all(load.used <= load.device.usable for load in made.loads)


def test_contexts_are_how_many_fit() -> None:
    made = plan(RELEASE, "2xH100", "fp8")
    assert made.contexts > 0
    beside = [sum(load.weights.values()) + load.activations + made.contexts * load.cache for load in made.loads]
    room = [load.device.usable for load in made.loads]
    assert all(used <= most for used, most in zip(beside, room, strict=True))
    assert any(used + load.cache > load.device.usable for used, load in zip(beside, made.loads, strict=True))
    assert replicas(RELEASE, plan(RELEASE, "8xH200", "fp8"))[1] > plan(RELEASE, "8xH200", "fp8").contexts


def test_what_to_do_when_it_does_not_fit() -> None:
    made = plan(RELEASE, "2xH100", "bfloat16")
    assert not made.fits
    others = alternatives(RELEASE, made)
    assert {other.request.precision for other in others} >= {"fp8", "int4", "bfloat16"}
    assert any(other.devices == "4xH100" for other in others)
    for other in others:
        assert plan(RELEASE, parse_machine(other.devices), other.request.precision, context=other.request.context).fits
    cheaper = alternatives(RELEASE, plan(RELEASE, "4xH100", "fp8"))
    assert next(other.devices for other in cheaper) == "2xH100"


@pytest.mark.parametrize("devices", ["1xRTX4090", "24GB+64GB-ram", "64GB-ram"])
def test_the_cheapest_that_would_do_is_named(devices: str) -> None:
    """Too small for FP8 in every way: less is bought with four bits than without."""
    made = plan(RELEASE, devices, "fp8")
    others = [other for other in alternatives(RELEASE, made) if "more" in other.change]
    memory = {other.request.precision: parse_machine(other.devices).ram for other in others if "memory" in other.change}
    assert memory.keys() == {"fp8", "int4"}
    assert memory["int4"].capacity < memory["fp8"].capacity
    assert not any("visit" in other.change for other in others if other.request.precision == "int4")
    cards = {other.request.precision: len(other.plan.machine.gpus) for other in others if "GPUs" in other.change}
    assert not cards or len(made.machine.gpus) < cards["int4"] < cards["fp8"]


def test_stored_forms_are_held_everywhere() -> None:
    """Also where there are no instructions for them; then one piece and `kv_b_proj` are expanded."""
    for devices in ("8xA100", "512GB-ram", "8xH100"):
        whole, *stored = (
            plan(RELEASE, devices, precision, layout="device_map") for precision in ("bfloat16", "fp8", "nvfp4", "int4")
        )
        for made in stored:
            weights = sum(sum(load.weights.values()) for load in made.loads)
            assert weights == sum(weight_bytes(RELEASE, made.request.precision).values())
            more = made.loads[0].activations - whole.loads[0].activations
            up = 2 * 36 * 32 * 192 * 256
            assert more == sizes.PIECE_BYTES + (0 if made.request.precision == "nvfp4" else up)


@pytest.mark.parametrize(
    ("text", "gpus", "ram", "disk"),
    [
        ("4xH100", 4, 0, 0), ("1xDGX-B200", 8, 0, 0), ("2xdgxb200", 16, 0, 0), ("24GB+64GB-ram", 1, 64, 0),
        ("h200", 1, 0, 0),
        ("2x24GB + 64GB-ram + 1TB-disk", 2, 64, 1000), ("128 GB ram", 0, 128, 0), ("1xH100+1xA100-40GB", 2, 0, 0),
    ],
)  # fmt: skip
def test_machines_by_name(text: str, gpus: int, ram: int, disk: int) -> None:
    machine = parse_machine(text)
    assert len(machine.gpus) == gpus
    assert [gpu.name for gpu in machine.gpus] == list(range(gpus))
    assert (machine.ram.capacity if machine.ram else 0, machine.disk.capacity if machine.disk else 0) == (
        ram * 10**9,
        disk * 10**9,
    )


@pytest.mark.parametrize("text", ["", "4xH900", "0xH100", "64GB-rom", "1TB-disk", "4x", "H100+"])
def test_unknown_machines_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"4xH100|64GB-ram"):
        parse_machine(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp4"}, "nvfp4"), ({"context": 0}, "context=0"), ({"batch": -1}, "batch=-1"),
        ({"cache_bits": 4}, "16 or 8"),
        ({"layout": "ring"}, "device_map"), ({"layout": "tensor", "devices": "3xH100"}, "does not divide"),
        ({"layout": "expert", "devices": "1xH100"}, "several GPUs"),
    ],
)  # fmt: skip
def test_impossible_plans_are_refused(options: dict[str, Any], words: str) -> None:
    devices, precision = options.pop("devices", "2xH100"), options.pop("precision", "fp8")
    with pytest.raises(ValueError, match=words):
        plan(RELEASE, devices, precision, **options)


def test_unified_memory_is_one_memory() -> None:
    """A GPU that shares main memory: nothing can be moved out of its way, and the system keeps a quarter."""
    spark, mac = parse_machine("DGX Spark"), parse_machine("2x128GB-mac")
    assert (spark.ram, len(spark.gpus), spark.gpus[0].capability) == (None, 1, 12.1)
    assert [gpu.usable for gpu in mac.gpus] == [96_000_000_000] * 2
    assert plan(RELEASE, "DGX-Spark", "nvfp4").fits
    assert not plan(RELEASE, "DGX-Spark", "fp8").fits
    assert not plan(RELEASE, "64GB-unified", "nvfp4").fits


def test_a_mac_is_planned_by_its_unified_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    machine = this_machine()
    assert machine.ram is None
    assert [(gpu.model, gpu.unified) for gpu in machine.gpus] == [("mps", True)]
