"""The planner: its bytes against models that are really built, its table against the release's, its layouts against
themselves.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import raw_checkpoint as rc
import torch
from documents import text_of
from oracle import Case
from peak_memory import peak_bytes
from safetensors.torch import load_file
from small4_conversion.convert import convert
from tiny_checkpoint import write_tiny_checkpoint

from modeling_small4 import Small4Config, Small4ForCausalLM, attention, attention_blocks, demo_checkpoint
from modeling_small4.cache import LatentCache
from modeling_small4.commands import cli
from modeling_small4.experts_profile import ExpertProfile
from modeling_small4.planner import measuring, sizes
from modeling_small4.planner.alternatives import alternatives, release_table, replicas
from modeling_small4.planner.hardware import GPUS, UNIFIED, parse_machine, this_machine
from modeling_small4.planner.layout import plan
from modeling_small4.planner.measuring import measure
from modeling_small4.planner.sizes import (
    LONG,
    PRECISIONS,
    Work,
    activation_bytes,
    cache_bytes,
    tensors,
    weight_bytes,
)
from modeling_small4.planner.speed import SHEETS, Rates, speed

torch.set_num_threads(1)
RELEASE = Small4Config()
SHAPES: dict[str, Any] = {
    "release": {},
    "text only": {"vision_config": None},
    "tied": {"tie_word_embeddings": True},
    "odd": {
        "text_config": {"q_lora_rank": None, "first_k_dense_replace": 2, "n_shared_experts": 0, "attention_bias": True,
        "num_hidden_layers": 3},
        "multimodal_projector_bias": True,
    },
    "two shared experts": {"text_config": {"n_shared_experts": 2, "num_hidden_layers": 2, "v_head_dim": 96}},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_are_those_of_a_built_model(shape: str) -> None:
    config = Small4Config(**SHAPES[shape])
    with torch.device("meta"):
        model = Small4ForCausalLM(config).to(torch.bfloat16)
    built = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {tensor.name: tensor.shape for tensor in tensors(config)} == built
    real = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert sum(weight_bytes(config, "bfloat16").values()) == real


def test_the_releases_numbers() -> None:
    assert sum(tensor.count for tensor in tensors(RELEASE)) == 119_401_298_944
    assert sum(tensor.count for tensor in tensors(Small4Config(vision_config=None))) == 118_972_826_624
    assert cache_bytes(RELEASE, 1) == 23_040
    assert cache_bytes(RELEASE, 262_144) == 5.625 * 2**30
    sizes = {precision: sum(weight_bytes(RELEASE, precision).values()) / 1e9 for precision in PRECISIONS}
    assert sizes["bfloat16"] == pytest.approx(238.8, rel=0.001)
    assert sizes["fp8"] == pytest.approx(119, rel=0.02)  # the published folder
    assert sizes["nvfp4"] == pytest.approx(70.80, rel=0.0002)
    assert sizes["int4"] == pytest.approx(65, rel=0.03)
    assert sizes["float32"] > sizes["bfloat16"] > sizes["int8"] > sizes["fp8"] > sizes["nvfp4"] > sizes["int4"]


def test_the_demo_checkpoint() -> None:
    model = Small4ForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.bfloat16)
    real = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert sum(weight_bytes(model.config).values()) == real


def test_low_precisions_are_those_of_the_published_forms(tmp_path: Path) -> None:
    """FP8 as the raw release and our own folder hold it, scales included; NVFP4 as published."""
    params = rc.params()
    raw = rc.weights(params)
    rc.write_raw(tmp_path / "raw", rc.fp8_params(params), rc.to_fp8(raw))
    convert(tmp_path / "raw", tmp_path / "ours")
    config = Small4Config.from_pretrained(tmp_path / "ours")
    stored = [tensor for file in (tmp_path / "ours").glob("*.safetensors") for tensor in load_file(file).values()]
    for held in (stored, rc.to_fp8(raw).values()):
        assert sum(tensor.nbytes for tensor in held) == sum(weight_bytes(config, "fp8").values())
    assert sum(tensor.nbytes for tensor in rc.to_nvfp4(raw)[0].values()) == sum(weight_bytes(config, "nvfp4").values())


@pytest.mark.parametrize("bits", [16, 8])
def test_cache_bytes_are_those_of_a_filled_cache(bits: int) -> None:
    model = Small4ForCausalLM(Case().config()).to(torch.bfloat16).eval()
    cache = LatentCache(model.config, bits=bits)
    with torch.no_grad():
        model(torch.randint(1000, 1100, (2, 37)), past_key_values=cache)
    made = plan(model.config, "1xH100", "bfloat16", context=37, batch=2, cache_bits=bits)
    assert made.loads[0].cache == cache.nbytes


def reader(**text: int) -> Small4ForCausalLM:
    sizes = {
        "vocab_size": 1100,
        "hidden_size": 256,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    sizes |= {"q_lora_rank": 64, "n_routed_experts": 8, "num_experts_per_tok": 4} | text
    torch.manual_seed(0)
    return Small4ForCausalLM(Small4Config(text_config=sizes, vision_config=None)).to(torch.bfloat16).eval()


@pytest.mark.parametrize(
    ("text", "chunk", "context", "fused"),
    [
        ({}, 512, 513, True),
        ({"num_attention_heads": 16}, 256, 2048, True),
        ({"hidden_size": 1024}, 512, 1024, True),
        ({"moe_intermediate_size": 512}, 512, 1024, True),
        ({}, 256, 1200, True),
        ({}, 256, 1200, False),
        ({}, 24, 1200, True),
        ({}, 24, 1200, False),
    ],
)
def test_activations_bound_what_a_forward_pass_holds(
    text: dict[str, int], chunk: int, context: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never less than the tensors alive at one time, and not much more. Without a fused kernel: as on a GPU."""
    for module in (attention, attention_blocks, sizes):  # long prompts, but short ones
        monkeypatch.setattr(module, "BLOCK", 256)
        monkeypatch.setattr(module, "LONG", 2**14 if context == 1200 else LONG, raising=False)
    monkeypatch.setattr(attention_blocks, "_fused", lambda device: fused)
    model = reader(**text)
    inner = model.config.text_config
    cache = LatentCache(model.config, capacity=context)
    for layer in range(inner.num_hidden_layers):
        held = torch.zeros(1, 1, context - chunk, inner.kv_lora_rank + inner.qk_rope_head_dim, dtype=torch.bfloat16)
        cache.update(held, None, layer)
    ids = torch.randint(1000, 1100, (1, chunk))
    known = [ids, *model.parameters(), *(store for layer in cache.layers for store in layer.stores)]
    with torch.no_grad():
        peak = peak_bytes(lambda: model(ids, past_key_values=cache, logits_to_keep=1), known)
    work = Work(chunk=chunk, context=context, fused=fused)
    assert work.blocked == (context == 1200)
    assert peak <= max(activation_bytes(model.config, work).values()) <= 1.6 * peak


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


def small4(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main(["plan", *words])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_command_prints_and_gives_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = small4(capsys, "--devices", "2x24GB+128GB-ram", "--dtype", "int8", "--context", "32768")
    assert status == 0
    device_map = eval(text.split("DEVICE_MAP = ")[1].splitlines()[0])
    status, text, _ = small4(capsys, "--devices", "2x24GB+128GB-ram", "--dtype", "int8", "--context", "32768", "--json")
    found = json.loads(text)
    assert status == 0
    assert found["fits"]
    assert found["device_map"] == device_map
    assert [device["device"] for device in found["devices"]] == [0, 1, "cpu"]
    assert {"weights", "cache", "activations", "free"} <= found["devices"][0].keys()


def test_command_without_devices_plans_for_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = small4(capsys, "--model", str(demo_checkpoint()), "--context", "512")
    assert status == 0
    assert "this machine" in text
    assert "fits" in text


def test_command_knows_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    told = [small4(capsys, "--devices", "4xH100", "--dtype", name, "--json") for name in ("bf16", "BF16", "bfloat16")]
    assert told[0] == told[1] == told[2]
    assert json.loads(told[0][1])["request"]["precision"] == "bfloat16"
    assert small4(capsys, "--dtype", "fp4")[0] == 2


def test_command_table(capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = small4(capsys, "--table")
    assert "| minimum | 4xH100 |" in text
    assert "| 2xH100 | no |" in text


def test_the_guide_has_the_planners_table(capsys: pytest.CaptureFixture[str]) -> None:
    told = text_of("what-fits-where.md").split("## The full model")[1].split("\n## ")[0].replace(", no GPU |", " |")
    rows = [line for line in told.splitlines() if line.startswith("| ")]
    printed = small4(capsys, "--table")[1].splitlines()
    assert len(rows) > 15
    assert set(rows) <= set(printed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "4xH900"], "4xH900"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--devices", "3xH100", "--layout", "tensor"], "does not divide"),
    ],
)
def test_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    status, out, err = small4(capsys, *words)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_command_reads_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny", vision=False)
    status, text, _ = small4(
        capsys, "--model", str(folder), "--devices", "24GB", "--dtype", "float32", "--context", "100", "--json"
    )
    size = sum(weight_bytes(Small4Config.from_pretrained(folder), "float32").values())
    assert status == 0
    assert sum(json.loads(text)["weights"].values()) == size


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


@pytest.mark.parametrize("precision", ["bfloat16", "fp8", "nvfp4", "int4"])
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


def test_speed_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(small4(capsys, "--devices", "64GB-ram", "--dtype", "nvfp4", "--context", "8192", "--json")[1])
    assert found["tokens_per_second"] > 1
    assert found["prompt_tokens_per_second"] > 1
    assert found["speed"]["bound"] == "main memory"
    assert sum(found["speed"]["experts"].values()) == pytest.approx(1)


def test_every_gpu_has_a_memory_and_a_data_sheet() -> None:
    assert set(SHEETS) == set(GPUS) | set(UNIFIED)
