"""Checkpoints that contradict themselves, lack something or have something too much: whichever way they are opened, the
model is right or the folder is refused in one line that says what is wrong. Never wrong without a word.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import derivatives as d
import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import check_logits, check_same, run
from safetensors.torch import load_file, save_file
from test_formats_kept import KEPT

from modeling_small4 import Small4ForCausalLM

LAYERS = "model.language_model.layers"
EXPERT, ATTENTION = f"{LAYERS}.0.mlp.experts.1.down_proj", f"{LAYERS}.1.self_attn.kv_b_proj"
RAW = {EXPERT: "layers.0.experts.1.w2.weight", ATTENTION: "layers.1.attention.wkv_b.weight"}
FP8, BLOCK, DYNAMIC, NVFP4, INT4, ZEROS = (
    *("fp8 tensor", "fp8 block", "fp8 dynamic"),
    *("nvfp4", "w4a16", "w4a16 asymmetric"),
)


class Folder:
    """What a case changes before the folder is written."""

    def __init__(self, form: str, seed: int, **sizes: Any) -> None:
        self.encode, entry, own = KEPT[form]
        self.params = rc.params(**(own | sizes))
        self.stored, self.plain = d.derive(self.params, rc.weights(self.params, seed), self.encode)
        self.entry: Any = json.loads(json.dumps(entry))

    def scale(self, module: str) -> str:
        return next(n for n in (f"{module}.weight_scale", f"{module}.weight_scale_inv") if n in self.stored)

    def change(self, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.stored[name] = change(self.stored[name].clone()).contiguous()

    def fill(self, name: str, value: float, at: int) -> None:
        tensor = self.stored[name].float()
        tensor.view(-1)[at] = value
        self.stored[name] = tensor.to(self.stored[name].dtype)

    def drop(self, begin: str) -> None:
        for name in [name for name in self.stored if name.startswith(begin)]:
            del self.stored[name]

    def quantize(self, module: str, raw: str | None) -> None:
        """One more weight in the format of the others."""
        parts, numbers = self.encode(self.stored.pop(f"{module}.weight"))
        self.stored |= {f"{module}.{end}": part for end, part in parts.items()}
        if raw:
            self.plain[raw] = numbers.bfloat16()

    def weights(self) -> dict[str, Any]:
        """The numbers that the configuration announces."""
        return self.entry["config_groups"]["group_0"]["weights"]  # type: ignore[no-any-return]


Case = Callable[[Folder], object]


def e5m2(t: torch.Tensor) -> torch.Tensor:
    return t.view(torch.float8_e5m2)


def set_(name: str, value: Any) -> Case:
    return lambda f: f.entry.__setitem__(name, value)


def put(name: str, tensor: torch.Tensor) -> Case:
    return lambda f: f.stored.__setitem__(name, tensor)


def of_both(make: Callable[[str], Case], *forms: str) -> list[tuple[Case, str]]:
    """A case for an expert and one for a linear layer of attention, in turns over the forms."""
    return [(make(module), form) for form in forms for module in (EXPERT, ATTENTION)]


def changed(end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[str], Case]:
    return lambda m: lambda f: f.change(f.scale(m) if end == "scale" else f"{m}.{end}", change)


def filled(value: float, at: int = -1) -> Callable[[str], Case]:
    return lambda m: lambda f: f.fill(f.scale(m), value, at)


def without(end: str) -> Callable[[str], Case]:
    return lambda m: lambda f: f.stored.pop(f.scale(m) if end == "scale" else f"{m}.{end}")


def plain(m: str) -> Case:
    def case(f: Folder) -> None:
        f.drop(f"{m}.")
        f.stored[f"{m}.weight"] = f.plain[RAW[m]]

    return case


def no_entry(f: Folder) -> None:
    f.entry = None


def no_entry_no_scales(f: Folder) -> None:
    f.entry = None
    f.stored = {name: tensor for name, tensor in f.stored.items() if "scale" not in name}


def fake_quantized(f: Folder) -> None:
    """Numbers beside scales, as a run of llm-compressor leaves them that was not packed."""
    f.stored = {n: t.bfloat16() if t.dtype == torch.float8_e4m3fn else t for n, t in f.stored.items()}


def one_more_expert(f: Folder) -> None:
    f.stored |= {
        n.replace("experts.3", "experts.4"): t.clone() for n, t in f.stored.items() if ".0.mlp.experts.3." in n
    }


def eight_bits(f: Folder) -> None:
    codes, f.plain = d.derive(f.params, rc.weights(f.params, 3), partial(d.compressed_int, 16, 8, True))
    f.stored = codes


def head_beside_a_tied_one(f: Folder) -> None:
    f.stored["lm_head.weight"] = f.stored["model.language_model.embed_tokens.weight"] * 2
    f.quantize("lm_head", None)


# Wrong in themselves: (what is wrong, form)
REFUSED: dict[str, list[tuple[Case, str]]] = {
    "scale missing": of_both(without("scale"), FP8, BLOCK, DYNAMIC, NVFP4, INT4),
    "scale nan": of_both(filled(float("nan")), FP8, BLOCK, DYNAMIC, NVFP4, INT4),
    "scale inf": of_both(filled(float("inf"), 0), FP8, DYNAMIC, ZEROS),
    "scale in 64 bits": of_both(changed("scale", lambda t: t.float().double()), FP8, NVFP4, INT4),
    "scale of integers": of_both(changed("scale", lambda t: torch.ones(t.shape, dtype=torch.int32)), DYNAMIC, INT4),
    "scale of another shape": of_both(changed("scale", lambda t: torch.ones(3, 5).to(t.dtype)), FP8, NVFP4, INT4),
    "scale transposed": of_both(changed("scale", torch.t), DYNAMIC, NVFP4, INT4),
    "scale flat": of_both(changed("scale", torch.flatten), DYNAMIC),
    "divisor zero": of_both(changed("weight_global_scale", torch.zeros_like), NVFP4),
    "divisor inf": of_both(changed("weight_global_scale", lambda t: t / 0), NVFP4),
    "divisor missing": of_both(without("weight_global_scale"), NVFP4),
    "two divisors": of_both(changed("weight_global_scale", lambda t: t.repeat(2)), NVFP4),
    "two input scales": of_both(changed("input_global_scale", lambda t: t.repeat(3)), NVFP4),
    "zeros missing": of_both(without("weight_zero_point"), ZEROS),
    "zeros in 8 bits": of_both(changed("weight_zero_point", lambda t: t.to(torch.int8)), ZEROS),
    "zeros of another shape": of_both(changed("weight_zero_point", lambda t: t[:-1]), ZEROS),
    "codes as bytes": of_both(changed("weight", lambda t: t.view(torch.uint8)), FP8, DYNAMIC),
    "codes of another FP8": of_both(changed("weight", e5m2), FP8, DYNAMIC),
    "codes of 8 bits": of_both(changed("weight", lambda t: t.view(torch.int8)), FP8),
    "codes as bytes of words": of_both(changed("weight_packed", lambda t: t.view(torch.uint8)), INT4),
    "codes in 64 bits": of_both(changed("weight_packed", lambda t: t.long()), INT4),
    "numbers beside codes": of_both(lambda m: put(f"{m}.weight", torch.ones(4, 4).bfloat16()), NVFP4, INT4),
    "two scales": of_both(lambda m: put(f"{m}.weight_scale", torch.tensor(0.5)), FP8),
    "a tensor too much": of_both(lambda m: put(f"{m}.smoothing", torch.ones(3)), FP8, NVFP4),
    "a bias": of_both(lambda m: put(f"{m}.bias", torch.ones(3)), DYNAMIC),
    "groups that are not": of_both(lambda m: put(f"{m}.weight_g_idx", torch.full((32,), 7).int()), INT4),
    "an expert gone": [(lambda f: f.drop(f"{LAYERS}.0.mlp.experts.3."), form) for form in (BLOCK, INT4)],
    "an expert too many": [(one_more_expert, form) for form in (FP8, NVFP4)],
    "fused and apart": [(put(f"{LAYERS}.0.mlp.experts.down_proj", torch.zeros(4, 64, 32).bfloat16()), INT4)],
    "two spellings": [(put("language_model.model.norm.weight", torch.ones(64).bfloat16()), NVFP4)],
    "not announced": [(no_entry, form) for form in (FP8, BLOCK, DYNAMIC, NVFP4, INT4)],
    "codes alone": [(no_entry_no_scales, form) for form in (FP8, DYNAMIC)],
    "fake-quantized": [(fake_quantized, DYNAMIC)],
    "zeros announced": [(lambda f: f.weights().__setitem__("symmetric", False), INT4)],
    "an order announced": [(lambda f: f.weights().__setitem__("actorder", "group"), INT4)],
    "transforms": [(set_("transform_config", {"config_groups": {"R1": {"type": "hadamard"}}}), INT4)],
    "an unknown method": [(set_("quant_method", "next-year"), NVFP4)],
    "an unknown format": [(set_("format", "next-year"), INT4)],
    "router without scale": [
        (lambda f: f.change(f"{LAYERS}.0.mlp.gate.weight", lambda t: t.to(torch.float8_e4m3fn)), form)
        for form in (FP8, NVFP4)
    ],
    "norm without scale": [
        (lambda f: f.change(f"{LAYERS}.1.input_layernorm.weight", lambda t: t.to(torch.float8_e4m3fn)), INT4)
    ],
}  # fmt: skip
# Experts of a layer that do not fit into one tensor: only their numbers do
EXPANDED: dict[str, list[tuple[Case, str]]] = {
    "one expert plain": [(plain(EXPERT), form) for form in (FP8, NVFP4)],
    "scale of another dtype": [(lambda f: f.change(f.scale(EXPERT), lambda t: t.float()), DYNAMIC)],
    "down projections plain": [(lambda f: [plain_down(f, e) for e in range(4)], form) for form in (BLOCK, INT4)],
}
# Unusual, but there is one right reading of it, by each way or by conversion only
RIGHT: dict[str, list[tuple[Case, str]]] = {
    "as it is": [(lambda f: None, form) for form in KEPT],
    "negative scales": [
        (lambda f: (f.change(f.scale(ATTENTION), lambda t: (-t.float()).to(t.dtype)), negated(f)), form)
        for form in (DYNAMIC, NVFP4, INT4)
    ],
    "zero scales": [
        (lambda f: (f.change(f.scale(ATTENTION), lambda t: (0 * t.float()).to(t.dtype)), negated(f, 0)), form)
        for form in (FP8, NVFP4, INT4)
    ],
    "a layer plain": [(plain(ATTENTION), form) for form in (FP8, NVFP4, INT4)],
    "shape absent": of_both(without("weight_shape"), INT4),
    "a longer scale": [(lambda f: f.change(f.scale(ATTENTION), lambda t: t.float()), DYNAMIC)],
    "underscore": [(set_("quant_method", "compressed_tensors"), NVFP4)],
    "no format": [(lambda f: (f.entry.pop("format"), f.entry["config_groups"]["group_0"].pop("format")), ZEROS)],
    "head": [(lambda f: f.quantize("lm_head", "output.weight"), form) for form in (FP8, DYNAMIC, NVFP4, ZEROS)],
}  # fmt: skip
CONVERTED: dict[str, list[tuple[Case, str]]] = {
    "router": [(lambda f: f.quantize(f"{LAYERS}.0.mlp.gate", "layers.0.gate.weight"), g) for g in (DYNAMIC, ZEROS)],
    "embeddings": [
        (lambda f: f.quantize("model.language_model.embed_tokens", "tok_embeddings.weight"), form)
        for form in (NVFP4, DYNAMIC)
    ],
    "8 bits": [(eight_bits, INT4)],
    "a shape that lies": of_both(changed("weight_shape", lambda t: 2 * t), INT4),
}  # fmt: skip


def plain_down(f: Folder, expert: int) -> None:
    module = f"{LAYERS}.0.mlp.experts.{expert}.down_proj"
    f.drop(f"{module}.")
    f.stored[f"{module}.weight"] = f.plain[f"layers.0.experts.{expert}.w2.weight"]


def negated(f: Folder, factor: int = -1) -> None:
    f.plain[RAW[ATTENTION]] = factor * f.plain[RAW[ATTENTION]]


def ways(folder: Path, tmp: Path) -> dict[str, Callable[[], Any]]:
    def converted(dtype: str) -> Any:
        run(folder, tmp / dtype, dtype=dtype)
        return Small4ForCausalLM.from_pretrained(tmp / dtype)

    return {
        "held": lambda: Small4ForCausalLM.from_pretrained(folder),
        "expanded": lambda: Small4ForCausalLM.from_pretrained(folder, dequantize=True),
        "kept": partial(converted, "keep"),
        "bfloat16": partial(converted, "bfloat16"),
    }


def listed(table: dict[str, list[tuple[Case, str]]]) -> list[Any]:
    return [
        pytest.param(case, form, id=f"{name}, {form}, {number}")
        for name, cases in table.items()
        for number, (case, form) in enumerate(cases)
    ]


def refused(way: Callable[[], Any]) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        way()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


def written(folder: Path, case: Case, form: str, **sizes: Any) -> Folder:
    made = Folder(form, 3, **sizes)
    case(made)
    d.write_folder(folder, made.params, made.stored, made.entry, old_names=False)
    return made


@pytest.mark.parametrize(("case", "form"), listed(REFUSED))
def test_refused_in_one_line(tmp_path: Path, case: Case, form: str) -> None:
    written(tmp_path / "hf", case, form)
    for way in ways(tmp_path / "hf", tmp_path).values():
        refused(way)


@pytest.mark.parametrize(("case", "form"), listed(RIGHT))
def test_right(tmp_path: Path, case: Case, form: str) -> None:
    made = written(tmp_path / "hf", case, form)
    check_same((way() for way in ways(tmp_path / "hf", tmp_path).values()), made.params, made.plain)


@pytest.mark.parametrize(("case", "form"), listed(CONVERTED))
def test_right_after_conversion(tmp_path: Path, case: Case, form: str) -> None:
    made = written(tmp_path / "hf", case, form)
    each = ways(tmp_path / "hf", tmp_path)
    for name in ("held", "expanded"):
        assert f"small4 convert {tmp_path / 'hf'} DST" in refused(each[name])
    check_same((each[name]() for name in ("kept", "bfloat16")), made.params, made.plain)


@pytest.mark.parametrize(("case", "form"), listed(EXPANDED))
def test_right_if_expanded_by_conversion(tmp_path: Path, case: Case, form: str) -> None:
    made = written(tmp_path / "hf", case, form)
    each = ways(tmp_path / "hf", tmp_path)
    for name in ("held", "expanded"):
        assert f"small4 convert {tmp_path / 'hf'} DST --dtype bfloat16" in refused(each[name])
    if "plain_down" not in case.__code__.co_names:
        refused(each["kept"])
    check_logits(each["bfloat16"](), made.params, made.plain)


@pytest.mark.parametrize("form", [DYNAMIC, NVFP4])
def test_tied_heads(tmp_path: Path, form: str) -> None:
    """Tied, it is the embeddings; with codes of its own, the folder contradicts itself."""
    made = written(tmp_path / "tied", lambda f: None, form, tied_embeddings=True)
    check_same((way() for way in ways(tmp_path / "tied", tmp_path).values()), made.params, made.plain)
    written(tmp_path / "both", head_beside_a_tied_one, form, tied_embeddings=True)
    for way in ways(tmp_path / "both", tmp_path / "again").values():
        assert "lm_head" in refused(way)


@pytest.mark.parametrize("form", [DYNAMIC, NVFP4])
@pytest.mark.parametrize("lie", ["a shard not named", "no such file", "in two shards"])
def test_indices_that_lie(tmp_path: Path, form: str, lie: str) -> None:
    folder = tmp_path / "hf"
    written(folder, lambda f: None, form)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, files = sorted(tensors), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    parts = [names[: len(names) // 2 + (lie == "in two shards")], names[len(names) // 2 :]]
    places = {}
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    if lie == "a shard not named":
        places = {name: file for name, file in places.items() if file == files[0]}
    if lie == "no such file":
        places[names[0]] = "model-00003-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for way in ways(folder, tmp_path).values():
        refused(way)
