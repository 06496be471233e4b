"""Two processes share weights that are held as stored, in every layout of transformers' `DistributedConfig`, against
one process; what each holds, and what cannot be cut.
"""

import json
from pathlib import Path
from typing import Any

import derivatives as d
import pytest
import raw_checkpoint as rc
import stored_folder
import torch
from forked import together
from safetensors.torch import load_file
from stored_folder import FORMS
from stored_parallel_worker import EVERYWHERE, decodes, layouts_of
from test_formats_kept import KEPT
from transformers.distributed import DistributedConfig

from modeling_small4 import Small4ForCausalLM
from modeling_small4.loading_cuts import scalars_aside, with_stored

TESTS = Path(__file__).resolve().parent
# Halves of every width hold whole groups and blocks.
SIZES = {"qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64, "moe_intermediate_size": 256}
UNFUSED = ("fp8 dynamic", "nvfp4", "w4a16 asymmetric")
EXPERTS = "model.language_model.layers.0.mlp.experts"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what both processes found, what they loaded and what they saved."""
    root = tmp_path_factory.mktemp("parallel")
    (root / "folders").mkdir()
    for seed, form in enumerate(FORMS):
        (root / form).mkdir()
        stored_folder.write(root / form, form, seed, sizes=SIZES).stored.rename(root / "folders" / form)
    for name in UNFUSED:
        encode, entry, _ = KEPT[name]
        p = rc.params(dim=64, q_lora_rank=64, kv_lora_rank=32, v_head_dim=32, moe={"expert_hidden_dim": 64})
        d.write_folder(root / "folders" / f"unfused {name}", p, d.derive(p, rc.weights(p), encode)[0], entry)
    words = (str(root / "folders"), str(root / "report"))
    assert "match nothing" not in together(TESTS / "stored_parallel_worker.py", *words)
    return root


@pytest.fixture(scope="module")
def ranks(run: Path) -> list[dict[str, Any]]:
    return [json.loads((run / f"report.{rank}.json").read_text()) for rank in (0, 1)]


ALL = [*FORMS, *(f"unfused {name}" for name in UNFUSED)]
slow = pytest.mark.slow


@slow
@pytest.mark.parametrize(("form", "layout"), [(form, layout) for form in ALL for layout in layouts_of(form)])
def test_answers_as_one_process(ranks: list[dict[str, Any]], form: str, layout: str) -> None:
    for rank in ranks:
        found = rank[form][layout]
        for inputs in ("padded", "images") if form in EVERYWHERE else ("padded",):
            assert found[inputs] <= 1e-5, inputs
            assert found.get(f"{inputs} greedy") is (True if decodes(form, layout, inputs) else None), inputs


@slow
@pytest.mark.parametrize("form", ALL)
def test_each_rank_holds_half_of_the_experts(ranks: list[dict[str, Any]], run: Path, form: str) -> None:
    """By expert exactly half, by columns and rows half of all but scales of whole matrices."""
    tensors = load_file(run / "folders" / form / "model.safetensors")
    codes = (torch.float8_e4m3fn, torch.uint8, torch.int32)
    narrow = sum(t.nbytes for name, t in tensors.items() if ".mlp.experts." in name and t.dtype in codes)
    whole = sum(t.nbytes for name, t in tensors.items() if ".mlp.experts." in name and "weight_shape" not in name)
    for rank in ranks:
        assert rank[form]["tensor and expert"]["bytes"] == whole // 2
        assert narrow // 2 <= rank[form]["tensor"]["bytes"] <= narrow // 2 + whole - narrow
        gate_up = next(n for n in rank[form]["tensor"]["shapes"] if n in (f"{EXPERTS}.gate_up_proj{e}" for e in ("", "_packed")))  # fmt: skip  # noqa: E501
        halves, experts = rank[form]["tensor"]["shapes"][gate_up], rank[form]["tensor and expert"]["shapes"][gate_up]
        assert halves[0] == 2 * experts[0]
        assert 2 * halves[1] == experts[1]


@slow
@pytest.mark.parametrize("layout", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_saved_as_it_was(run: Path, form: str, layout: int) -> None:
    first, second = (
        load_file(run / part / "model.safetensors") for part in (f"folders/{form}", f"saved/{form}, {layout}")
    )
    codes = (torch.float8_e4m3fn, torch.uint8, torch.int32)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.shape == second[name].shape
        if tensor.dtype in codes or "scale" in name:
            assert tensor.dtype == second[name].dtype
            assert torch.equal(tensor.view(-1).view(torch.uint8), second[name].view(-1).view(torch.uint8)), name
        else:  # loaded in float32
            assert torch.equal(tensor.float(), second[name]), name


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = {}
    for form in FORMS:
        folder = tmp_path_factory.mktemp("held")
        out[form] = Small4ForCausalLM.from_pretrained(stored_folder.write(folder, form, vision=False).stored)
    return out


@pytest.mark.parametrize(
    ("form", "size", "words"),
    [
        ("fp8 blocks", 2, "rows, of which 128 belong together"),
        ("int4 128", 2, "128 columns, of which 128 belong together"),
        ("int4 64", 4, "columns, of which 64 belong together"),
        ("nvfp4 all", 4, "columns, of which 16 belong together"),
        ("int4 zeros", 16, "rows, of which 8 belong together"),
        ("fp8", 3, "rows"),
    ],
)
def test_cuts_through_scales_are_refused(held: dict[str, Any], form: str, size: int, words: str) -> None:
    plan = held[form]._expand_parallel_plan(dict(held[form].tp_plan))
    with pytest.raises(
        ValueError, match=rf"held as stored and cannot be cut for {size} processes: it has \d* ?{words}"
    ):
        with_stored(held[form], plan, size)
    experts = held[form]._expand_parallel_plan(dict(held[form].ep_plan))
    rules = with_stored(held[form], experts, size)  # whole experts are always cut apart
    assert {rule for name, rule in rules.items() if ".experts." in name} == {"grouped_gemm"}


def test_scalars_are_not_cut_in_two_ways(held: dict[str, Any]) -> None:
    """Nor lost: the model is as it was."""
    before = list(held["fp8"].state_dict())
    with (
        pytest.raises(ValueError, match="tp_size and fsdp_size together cannot cut weights in FP8 with one scale"),
        scalars_aside(held["fp8"], DistributedConfig(tp_size=2, fsdp_size=2)),
    ):
        pass
    for form, layout in (("fp8", {"fsdp_size": 2}), ("fp8", {"tp_size": 2}), ("nvfp4", {"tp_size": 2, "fsdp_size": 2})):
        with scalars_aside(held[form], DistributedConfig(**layout)):
            inside = len(held[form].state_dict())
        assert (inside < len(held[form].state_dict())) == ("tp_size" not in layout)
    assert list(held["fp8"].state_dict()) == before
