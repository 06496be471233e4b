"""Writing FP8, NVFP4 and 4-bit groups: what is quantized, how well, and that every reader takes it."""

import json
import math
from functools import partial
from itertools import chain
from pathlib import Path

import derivatives as d
import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import check_logits, equal, run
from small4_conversion import verify
from small4_conversion.__main__ import main
from small4_conversion.convert import convert
from small4_conversion.formats import fp8, int4, nvfp4
from small4_conversion.naming import leaves
from small4_conversion.quantize import Quantizer, relative_error
from small4_conversion.raw import config_from_params

from modeling_small4 import Small4ForCausalLM

BOUNDS = {"fp8": 0.03, "nvfp4": 0.1, "int4": 0.11}


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, rc.Tensors]:
    p = rc.params()
    raw = rc.weights(p, seed=11)
    return rc.write_raw(tmp_path / "raw", p, raw), raw


@pytest.mark.parametrize("to", ["small4", "mistral"])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_errors_are_told_and_true(tmp_path: Path, source: tuple[Path, rc.Tensors], dtype: str, to: str) -> None:
    folder, raw = source
    summary = run(folder, tmp_path / "q", to=to, dtype=dtype)
    chosen = {n for n, t in raw.items() if rc.quantized(n, t) and (dtype == "fp8" or "experts." in n)}
    assert summary.errors.keys() == chosen
    run(tmp_path / "q", tmp_path / "plain", to="mistral", dtype="float32")
    found = rc.read_all(tmp_path / "plain")
    for name, tensor in raw.items():
        gap = float((found[name] - tensor.float()).norm() / tensor.float().norm())
        assert gap == pytest.approx(summary.errors.get(name, 0.0), abs=2e-3)
        assert gap < BOUNDS[dtype]
    run(tmp_path / "q", tmp_path / "other", to="mistral" if to == "small4" else "small4")
    assert equal(tmp_path / "q", tmp_path / "other")


@pytest.mark.parametrize("dtype", BOUNDS)
def test_it_loads_and_answers_as_the_expanded_one(tmp_path: Path, source: tuple[Path, rc.Tensors], dtype: str) -> None:
    folder, _ = source
    run(folder, tmp_path / "q", dtype=dtype)
    run(tmp_path / "q", tmp_path / "plain", to="mistral", dtype="bfloat16")
    model = Small4ForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.float32, dequantize=True)
    check_logits(model, rc.params(), rc.read_all(tmp_path / "plain"))


def test_the_release_says_fp8_as_the_release_does(tmp_path: Path, source: tuple[Path, rc.Tensors]) -> None:
    folder, raw = source
    run(folder, tmp_path / "q", to="mistral", dtype="fp8")
    said = json.loads((tmp_path / "q" / "params.json").read_text())
    assert said["quantization"] == {"qformat_weight": "fp8_e4m3", "qscheme_act": "NO_SCALES"}
    assert rc.read_all(tmp_path / "q").keys() == rc.to_fp8(raw, static=False).keys()
    run(tmp_path / "q", tmp_path / "again", to="mistral", dtype="fp8")
    rc.same_bits(rc.read_all(tmp_path / "again"), rc.read_all(tmp_path / "q"))
    run(folder, tmp_path / "hf", to="transformers", dtype="fp8")
    assert equal(tmp_path / "hf", tmp_path / "q")
    for scale, entry in (("row", d.FP8_ENTRY), ("block", d.FP8_BLOCK)):
        d.write_folder(tmp_path / scale, rc.params(), d.derive(rc.params(), raw, partial(d.fp8, scale))[0], entry)
        run(tmp_path / scale, tmp_path / f"{scale} q", to="mistral", dtype="fp8")
        assert json.loads((tmp_path / f"{scale} q" / "params.json").read_text())["quantization"] == said["quantization"]
        assert rc.read_all(tmp_path / f"{scale} q").keys() == rc.read_all(tmp_path / "q").keys()


STRATEGIES = {"nvfp4": "tensor_group", "int4": "group", "row": "channel", "block": "block", "awq": "group"}
OTHERS = {
    "row": (partial(d.fp8, "row"), d.FP8_ENTRY),
    "block": (partial(d.fp8, "block"), d.FP8_BLOCK),
    "awq": (partial(d.awq, 16), d.AWQ),
}


@pytest.mark.parametrize("form", STRATEGIES)
def test_compressed_tensors_reads_it(tmp_path: Path, source: tuple[Path, rc.Tensors], form: str) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    folder, raw = source
    if form in OTHERS:
        encode, said = OTHERS[form]
        folder = d.write_folder(tmp_path / "hf", rc.params(), d.derive(rc.params(), raw, encode)[0], said)
    run(folder, tmp_path / "q", to="mistral", dtype="keep" if form in OTHERS else form)
    run(tmp_path / "q", tmp_path / "plain", to="mistral", dtype="bfloat16")
    entry = QuantizationConfig.model_validate(
        json.loads((tmp_path / "q" / "params.json").read_text())["quantization_config"]
    )
    scheme = entry.config_groups["group_0"]
    assert scheme.weights.strategy == STRATEGIES[form]
    compressor = BaseCompressor.get_value_from_registry(scheme.format or entry.format)
    stored, plain = rc.read_all(tmp_path / "q"), rc.read_all(tmp_path / "plain")
    for name in ("layers.0.experts.3.w1", "layers.1.experts.0.w2", "layers.1.shared_experts.w3"):
        parts = {key.removeprefix(f"{name}."): part for key, part in stored.items() if key.startswith(f"{name}.")}
        theirs = compressor.decompress(parts, scheme)["weight"]
        torch.testing.assert_close(theirs.bfloat16(), plain[f"{name}.weight"], rtol=2**-7, atol=0)


@pytest.mark.parametrize(("width", "hidden", "group"), [(256, 128, 128), (64, 32, 32), (96, 48, 16), (64, 24, 0)])
def test_groups_are_as_long_as_the_experts_rows_allow(width: int, hidden: int, group: int) -> None:
    """Rows of attention do not matter."""
    p = rc.params(dim=width, q_lora_rank=40, moe={"expert_hidden_dim": hidden})
    table = list(leaves(config_from_params(p, Path("params.json"))))
    if group:
        assert Quantizer.for_leaves("int4", table, "small4").group == group
        return
    for dtype in ("int4", "nvfp4"):
        with pytest.raises(ValueError, match=f"{dtype}.*no multiples of 16"):
            Quantizer.for_leaves(dtype, table, "small4")


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1.4e-38, 1.0, 1e15])
def test_weights_of_any_size(size: float) -> None:
    """The scales of the smallest are zero, or too small for all their digits."""
    numbers = size * torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    for found in (
        fp8.dequantize(*fp8.quantize(numbers)),
        nvfp4.dequantize(*nvfp4.quantize(numbers)),
        int4.dequantize(*int4.quantize(numbers, 16), 8),
    ):
        assert (found - numbers).abs().max() <= numbers.abs().max()
        assert relative_error(found, numbers) <= (0.11 if size >= 1 else 1)


def test_nvfp4_rounds_to_the_nearest_and_halfway_to_the_even_code() -> None:
    """Of quarters, beside 6 in each group, so that all scales are 1."""
    quarters = [*(n / 4 for n in range(-24, 25)), -0.0, *[0.0] * 10]
    groups = [[6.0, *quarters[first : first + 15]] for first in range(0, 60, 15)]
    packed, _, _ = nvfp4.quantize(torch.tensor(groups))
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).view(4, 16).tolist()
    for code, number in zip(chain(*codes), chain(*groups), strict=True):
        nearest = min(range(8), key=lambda c: (abs(abs(number) - rc.E2M1[c]), c % 2))
        assert code == nearest + 8 * (math.copysign(1, number) < 0)


def test_a_group_of_zeros_has_a_scale_and_the_code_of_zero() -> None:
    numbers = torch.cat([torch.zeros(2, 16), torch.ones(2, 16)], dim=1)
    codes, scales = int4.quantize(numbers, 16)
    assert (codes[:, :16] == 8).all()
    assert (scales[:, 0] == 1).all()
    assert torch.equal(int4.dequantize(codes, scales, 8)[:, :16], numbers[:, :16])


def test_what_is_announced_of_some_weights_is_not_kept_for_more(
    tmp_path: Path, source: tuple[Path, rc.Tensors]
) -> None:
    """Routed experts are NVFP4 and shared ones ignored; then shared ones are quantized too."""
    raw = source[1]
    stored, _ = rc.to_nvfp4({name: tensor for name, tensor in raw.items() if ".experts." in name})
    p = rc.nvfp4_params(rc.params())
    ignored = ["re:.*shared_experts.*", *p["quantization_config"]["ignore"]]
    p["quantization_config"]["ignore"] = ignored
    rc.write_raw(tmp_path / "some", p, {name: t for name, t in raw.items() if ".experts." not in name} | stored)
    for dtype, kept in ((None, True), ("nvfp4", False)):
        out = tmp_path / f"{dtype}"
        run(tmp_path / "some", out, to="mistral", **({"dtype": dtype} if dtype else {}))
        said = json.loads((out / "params.json").read_text())["quantization_config"]["ignore"]
        assert (said == ignored) == kept
        assert any("shared_experts" in each for each in said) == kept
        shared = [name for name in rc.read_all(out) if "shared_experts" in name]
        assert any(name.endswith("weight_packed") for name in shared) != kept


def test_gate_and_up_share_a_divisor_as_engines_want(tmp_path: Path, source: tuple[Path, rc.Tensors]) -> None:
    run(source[0], tmp_path / "q", to="mistral", dtype="nvfp4")
    stored = rc.read_all(tmp_path / "q")
    for stem in ("layers.0.experts.3", "layers.1.shared_experts"):
        both = [stored[f"{stem}.{w}.weight_global_scale"] for w in ("w1", "w3")]
        assert torch.equal(*both)
        largest = max(float(source[1][f"{stem}.{w}.weight"].abs().max()) for w in ("w1", "w3"))
        assert float(both[0]) == pytest.approx(448 * 6 / largest)


def test_formats_without_a_reader_are_refused(tmp_path: Path, source: tuple[Path, rc.Tensors]) -> None:
    for dtype in ("nvfp4", "int4"):
        with pytest.raises(ValueError, match=f"{dtype}.*--to small4"):
            run(source[0], tmp_path / "q", to="transformers", dtype=dtype)
    assert not (tmp_path / "q").exists()


def test_the_command_tells_the_errors(
    tmp_path: Path, source: tuple[Path, rc.Tensors], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(source[0]), str(tmp_path / "a"), "--dtype", "int4", "--json"]) == 0
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert 0 < errors["layers.0.experts.0.w1.weight"] < 0.11
    assert main([str(source[0]), str(tmp_path / "b"), "--dtype", "int4"]) == 0
    assert "relative error of 30 quantized tensors: mean 0.0" in capsys.readouterr().out
    convert(source[0], tmp_path / "c")


@pytest.mark.parametrize("scale", [1.0, 1e-4, 3e4])
def test_scales_are_good(scale: float) -> None:
    """Better than plain rounding to the nearest with the largest number on the outermost code, zeros stay zeros, signs
    stay.
    """
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * scale
    weight[3] = 0
    codes, scales, divisor = nvfp4.quantize(weight)
    found = nvfp4.dequantize(codes, scales, divisor)
    plain, _ = rc.to_nvfp4({"x.experts.0.weight": weight})
    naive = nvfp4.dequantize(
        plain["x.experts.0.weight_packed"], plain["x.experts.0.weight_scale"], plain["x.experts.0.weight_global_scale"]
    )
    assert (found - weight).norm() < 0.95 * (naive - weight).norm()
    assert not found[3].any()
    four, table = int4.quantize(weight, 128)
    found = int4.dequantize(four, table, 8)
    grouped = weight.view(64, -1, 128)
    step = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-20) / 7.5
    naive = ((grouped / step).round().clamp(-8, 7) * step).view(64, 256)
    assert (found - weight).norm() < 0.95 * (naive - weight).norm()
    assert not found[3].any()
    eight, one = fp8.quantize(weight)
    assert (fp8.dequantize(eight, one) - weight).norm() < 0.03 * weight.norm()


def test_verify_knows_the_error_of_a_format(tmp_path: Path, source: tuple[Path, rc.Tensors]) -> None:
    folder, raw = source
    for dtype in BOUNDS:
        run(folder, tmp_path / dtype, dtype=dtype)
        report = verify.compare_folders(folder, tmp_path / dtype)
        assert not report.differences
        assert not report.exact
        assert report.errors[dtype].largest < BOUNDS[dtype]
    changed = dict(raw) | {"layers.1.experts.2.w1.weight": -raw["layers.1.experts.2.w1.weight"]}
    rc.write_raw(tmp_path / "changed", rc.params(), changed)
    report = verify.compare_folders(tmp_path / "changed", tmp_path / "nvfp4")
    assert [d.tensor for d in report.differences] == ["layers.1.experts.2.w1.weight"]
    changed = dict(raw) | {"norm.weight": raw["norm.weight"] * 1.02}
    rc.write_raw(tmp_path / "norm", rc.params(), changed)
    report = verify.compare_folders(tmp_path / "norm", tmp_path / "int4")
    assert [d.tensor for d in report.differences] == ["norm.weight"]
    assert not verify.compare_folders(tmp_path / "fp8", tmp_path / "nvfp4").differences
