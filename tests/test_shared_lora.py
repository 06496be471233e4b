"""LoRA adapters of routed experts that share one side, beside the naive twin: PEFT's own adapter with that side copied
for each expert, and the copies' gradients summed. Plain and stored weights, PEFT's files, and what is refused.
"""

from pathlib import Path
from typing import Any

import pytest
import stored_folder
import torch
from oracle import Case
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from small4_conversion.adapters import export_adapter, merge_adapter
from small4_conversion.convert import Options, convert
from stored_folder import Folders
from test_stored_lora import batch, compare, gradients
from transformers import Mistral3ForConditionalGeneration

from modeling_small4 import Small4ForCausalLM, lora_targets, share_expert_ranks, stored_lora
from modeling_small4.stored_layers import StoredModule
from modeling_small4.training import shared_lora
from modeling_small4.training.shared_lora import SharedSide

torch.set_num_threads(1)
FILE = "adapter_model.safetensors"
EXPERTS = lora_targets("all+experts")["target_parameters"]


@pytest.fixture(scope="module", params=["fp8", "nvfp4 all", "int4 zeros", "bfloat16"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The last one is not quantized; its adapters are PEFT's own layers."""
    folder = tmp_path_factory.mktemp("shared")
    if request.param != "bfloat16":
        return stored_folder.write(folder, request.param)
    plain = stored_folder.write(folder, "fp8")
    return Folders(plain.expanded, plain.expanded, plain.numbers, plain.numbers)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return stored_folder.write(tmp_path_factory.mktemp("fp8"), "fp8")


def unshared(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A new adapter, before it is trained."""
    model = Small4ForCausalLM.from_pretrained(folder, dtype=dtype)
    settings = {"r": 3, "lora_alpha": 6} | lora_targets("all+experts") | options
    torch.manual_seed(3)
    return get_peft_model(model, stored_lora(LoraConfig(**settings), model))


def filled(tuned: Any) -> Any:
    """With random adapters."""
    generator = torch.Generator().manual_seed(7)
    for _, parameter in sorted((n, p) for n, p in tuned.named_parameters() if ".lora_" in n):
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1
    return tuned


def shared(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return filled(share_expert_ranks(unshared(folder, dtype, **options)))


def tiled(one: torch.Tensor, side: str, experts: int = 4) -> torch.Tensor:
    """In PEFT's order: A one expert below the other; B with the experts' columns side by side, for each rank."""
    if side == "lora_A":
        return torch.cat([one] * experts)
    return torch.cat([column[:, None] for column in one.unbind(1) for _ in range(experts)], dim=1)


def side_of(name: str) -> str:
    return name.split(".")[-3]


def twin(tuned: Any, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """PEFT's own adapter of the same numbers."""
    whole = unshared(folder, dtype, **options)
    given = dict(whole.named_parameters())
    for name, parameter in tuned.named_parameters():
        if ".lora_" not in name:
            continue
        numbers = parameter.detach()
        if name.endswith(".shared"):
            name, numbers = name.replace(".shared", ".weight"), tiled(numbers, side_of(name))
        assert given[name].shape == numbers.shape
        given[name].data = numbers.to(given[name]).clone()
    return whole


def summed(found: dict[str, torch.Tensor], names: list[str], experts: int = 4) -> dict[str, torch.Tensor]:
    """The twin's gradients, by the names `names` of the shared model."""
    out = {}
    for name in names:
        if not name.endswith(".shared"):
            out[name] = found[name]
            continue
        copies = found[name.replace(".shared", ".weight")]
        rank = copies.shape[0 if side_of(name) == "lora_A" else 1] // experts
        if side_of(name) == "lora_A":
            out[name] = sum((copies[e * rank : (e + 1) * rank] for e in range(experts)), torch.zeros(()))
        else:
            out[name] = sum((copies[:, e::experts] for e in range(experts)), torch.zeros(()))
    return out


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(**batch()).logits[1]


def near(found: torch.Tensor, expected: torch.Tensor, allowed: float = 1e-5) -> None:
    assert (found - expected).abs().max() < allowed * expected.abs().max()


def sizes(tuned: Any) -> dict[str, int]:
    return {n: p.numel() for n, p in tuned.named_parameters() if ".experts." in n and ".lora_" in n}


# -- outputs and gradients
# ----------------------------------------------------------------------------------------------------


def test_gradients_are_the_sum_of_those_of_copies(folders: Folders) -> None:
    tuned = shared(folders.stored)
    whole, exact = (twin(tuned, folders.expanded) for _ in range(2))
    exact = exact.double()
    assert sum(isinstance(module, SharedSide) for module in tuned.modules()) == 4
    for rows, length in ((1, 3), (2, 24), (3, 70)):
        given = batch(rows, length) if length > 5 else {"input_ids": batch(1)["input_ids"][:, :length]}
        given.setdefault("labels", given["input_ids"])
        found = gradients(tuned, **given)
        theirs, right = (summed(gradients(model, **given), list(found)) for model in (whole, exact))
        for name, gradient in right.items():
            ours, naive = ((g[name].double() - gradient).norm() / gradient.norm() for g in (found, theirs))
            assert ours < max(1e-5, 1.5 * naive), (name, float(ours), float(naive))
    near(logits(tuned), logits(whole))


def test_one_expert_has_the_size_that_is_left(fp8: Folders) -> None:
    """Of `[experts, 2 * width, hidden]` and `[experts, hidden, width]`."""
    experts, hidden, width, rank = 4, 256, 160, 3
    for name, size in sizes(shared(fp8.stored)).items():
        own = rank * experts * (2 * width if ".lora_B" in name else width)
        assert size == (rank * hidden if name.endswith(".shared") else own), name
    assert not any(name.endswith(".shared") for name in sizes(unshared(fp8.stored)))


def test_bfloat16(folders: Folders) -> None:
    """As near to float32 as PEFT's own adapter in bfloat16 is: logits, and the shared sides' gradients."""
    tuned = shared(folders.stored)
    exact, low, whole = tuned, shared(folders.stored, torch.bfloat16), twin(tuned, folders.expanded, torch.bfloat16)
    expected, right = logits(exact), gradients(exact, **batch())
    ours, theirs = ((logits(model).float() - expected).std() / expected.std() for model in (low, whole))
    assert ours < 1.2 * theirs + 0.002
    found = gradients(low, **batch())
    naive = summed(gradients(whole, **batch()), list(found))
    for name in (name for name in right if name.endswith(".shared")):
        ours, theirs = ((g[name].float() - right[name]).norm() / right[name].norm() for g in (found, naive))
        assert ours < 1.5 * theirs + 0.005, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(folders: Folders, reentrant: bool) -> None:
    tuned = shared(folders.stored).train()
    expected = gradients(tuned, **batch())
    tuned.enable_input_require_grads()
    tuned.gradient_checkpointing_enable({"use_reentrant": reentrant})
    compare(gradients(tuned, **batch()), expected, 1e-6)


OPTIONS: dict[str, dict[str, Any]] = {
    "one rank": {"r": 1},
    "gate and up alone": {"target_modules": [], "target_parameters": EXPERTS[:1]},
    "down alone": {"target_modules": [], "target_parameters": EXPERTS[1:]},
    "ranks by pattern": {"rank_pattern": {"experts.gate_up_proj": 2, "q_b_proj": 4}, "alpha_pattern": {"down_proj": 5}},
    "rank-stabilized": {"use_rslora": True},
    "a head and a router that are trained": {"modules_to_save": ["lm_head", "mlp.gate"]},
    "all but one layer": {"exclude_modules": r".*layers\.0\..*"},
    "linear layers by their weights": {"target_modules": [], "target_parameters": ["o_proj.weight", *EXPERTS]},
}


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("name", OPTIONS)
def test_settings(fp8: Folders, name: str, tmp_path: Path) -> None:
    tuned = shared(fp8.stored, **OPTIONS[name])
    whole = twin(tuned, fp8.expanded, **OPTIONS[name])
    found = gradients(tuned, **batch())
    compare(found, summed(gradients(whole, **batch()), list(found)), 2e-5)
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(Small4ForCausalLM.from_pretrained(fp8.expanded, dtype=torch.float32), tmp_path)
    near(logits(again), logits(tuned), 2e-5)
    again = share_expert_ranks(again)
    assert sizes(again) == sizes(tuned)


# -- adapters beside each other, merging
# --------------------------------------------------------------------------------------


def test_a_shared_adapter_beside_another_one(folders: Folders) -> None:
    found = []
    tuned = shared(folders.stored)
    for model in (tuned, twin(tuned, folders.expanded)):
        config = LoraConfig(r=2, **lora_targets("all+experts"))
        model.add_adapter("second", stored_lora(config, model))
        for name, parameter in model.named_parameters():
            if ".second." in name:
                parameter.data = torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter)
        one = logits(model)
        model.set_adapter("second")
        two = logits(model)
        model.base_model.set_adapter(["default", "second"])
        found.append((one, two, logits(model)))
    for ours, theirs in zip(*found, strict=True):
        near(ours, theirs, 2e-5)
    assert not any(name.endswith(".shared") for name in sizes(tuned) if ".second." in name)


def test_merging_and_taking_out(folders: Folders) -> None:
    tuned = shared(folders.stored)
    before, plain = logits(tuned), logits(Small4ForCausalLM.from_pretrained(folders.expanded, dtype=torch.float32))
    assert (before - plain).abs().max() > 0.1
    with torch.no_grad():
        tuned.merge_adapter()
        torch.testing.assert_close(logits(tuned), before, atol=1e-4, rtol=0)
        tuned.unmerge_adapter()
        torch.testing.assert_close(logits(tuned), before, atol=1e-4, rtol=0)
        merged = tuned.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged), before, atol=1e-4, rtol=0)
    assert not any(isinstance(module, StoredModule | SharedSide) for module in merged.modules())
    near(logits(shared(folders.stored).unload()), plain)


# -- files
# -------------------------------------------------------------------------------------------------------------------


def test_the_file_is_that_of_pefts_own_adapter(folders: Folders, tmp_path: Path) -> None:
    tuned = shared(folders.stored)
    twin(tuned, folders.expanded).save_pretrained(tmp_path / "theirs")
    tuned.save_pretrained(tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / name / FILE) for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    bases = [Small4ForCausalLM.from_pretrained(folders.expanded, dtype=torch.float32) for _ in range(2)]
    bases[1].load_adapter(str(tmp_path / "ours"))
    for model in (PeftModel.from_pretrained(bases[0], tmp_path / "ours"), bases[1]):
        near(logits(model), logits(tuned))


def test_a_saved_adapter_is_trained_on(folders: Folders, tmp_path: Path) -> None:
    """It becomes what it was, to the bit, whether it is shared before the file is loaded or after."""
    tuned = shared(folders.stored)
    tuned.save_pretrained(tmp_path)
    base = Small4ForCausalLM.from_pretrained(folders.stored, dtype=torch.float32)
    config = stored_lora(LoraConfig.from_pretrained(str(tmp_path)), base)
    after: Any = share_expert_ranks(PeftModel.from_pretrained(base, tmp_path, config=config, is_trainable=True))
    before: Any = share_expert_ranks(unshared(folders.stored))
    before.load_adapter(tmp_path, "default", is_trainable=True)
    for model in (after, before):
        found = {name: p for name, p in model.named_parameters() if p.requires_grad}
        expected = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
        assert found.keys() == expected.keys()
        assert all(torch.equal(p, expected[name]) for name, p in found.items())


def test_merged_and_exported_for_others(fp8: Folders, tmp_path: Path) -> None:
    tuned = shared(fp8.stored)
    tuned.save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    near(logits(Small4ForCausalLM.from_pretrained(tmp_path / "merged")), logits(tuned))
    convert(fp8.expanded, tmp_path / "base-hf", Options(to="transformers"))
    export_adapter(tmp_path / "adapter", tmp_path / "adapter-hf", tmp_path / "base-hf")
    host = Mistral3ForConditionalGeneration.from_pretrained(tmp_path / "base-hf", dtype=torch.float32)
    hosted = PeftModel.from_pretrained(host, tmp_path / "adapter-hf")
    near(logits(hosted), logits(tuned), 1e-4)
    near(logits(share_expert_ranks(hosted)), logits(tuned), 1e-4)


def test_a_file_whose_experts_differ_is_not_loaded(fp8: Folders, tmp_path: Path) -> None:
    filled(unshared(fp8.expanded)).save_pretrained(tmp_path / "other")
    tuned = shared(fp8.stored)
    with pytest.raises(ValueError, match=r"lora_A.default.weight differs between experts.*without share_expert_ranks"):
        tuned.load_adapter(tmp_path / "other", "default")
    tuned.save_pretrained(tmp_path / "mine")
    tensors = load_file(tmp_path / "mine" / FILE)
    name = next(name for name in tensors if "experts.lora_B" in name or "experts.base_layer.lora_B" in name)
    broken = {name: tensor.clone() for name, tensor in tensors.items()}
    name = next(name for name in tensors if "lora_B" in name and ".mlp.experts." in name and len(tensors[name]) == 256)
    broken[name][-1, -1] += 1
    with pytest.raises(ValueError, match=r"lora_B\.default\.weight differs between experts"):
        set_peft_model_state_dict(tuned, broken)
    with pytest.raises(RuntimeError, match=r"size mismatch"):
        set_peft_model_state_dict(tuned, tensors | {name: tensors[name][:, :-1]})
    with pytest.raises(ValueError, match=r"set_model_state_dict does not load .* set_peft_model_state_dict"):
        tuned.load_state_dict({key: p for key, p in tuned.named_parameters() if key.endswith(".shared")}, strict=False)
    del tensors[name]
    missing = set_peft_model_state_dict(tuned, tensors).missing_keys
    assert [key for key in missing if ".lora_" in key] == [name.replace(".weight", ".default.weight")]


# -- what is refused, and what is left as it is
# -------------------------------------------------------------------------------------


def test_what_was_trained_for_each_expert_is_not_shared(fp8: Folders) -> None:
    tuned = filled(unshared(fp8.stored))
    before = sizes(tuned), logits(tuned)
    with pytest.raises(
        ValueError, match=r"lora_B of down_proj in .*layers\.0\.mlp\.experts differ, .* right after get"
    ):
        share_expert_ranks(tuned)
    assert sizes(tuned) == before[0]
    assert torch.equal(logits(tuned), before[1])


def test_a_new_adapter_computes_what_it_did(fp8: Folders) -> None:
    """And the linear layers' adapters are as they were; a second call does nothing."""
    tuned = unshared(fp8.stored)
    expected, before = logits(tuned), {n: p.detach().clone() for n, p in tuned.named_parameters() if ".lora_" in n}
    assert share_expert_ranks(share_expert_ranks(tuned)) is tuned
    assert torch.equal(logits(tuned), expected)
    found = {name: p for name, p in tuned.named_parameters() if ".lora_" in name}
    assert all(p.requires_grad for p in found.values())
    for name, tensor in before.items():
        if name in found:
            assert torch.equal(found[name], tensor)
        else:
            one = found[name.replace(".weight", ".shared")]
            assert torch.equal(one, tensor[:3] if ".lora_A" in name else tensor[:, ::4]), name
    assert sum(name.endswith(".shared") for name in found) == 4


def test_one_expert_shares_with_no_one(tmp_path: Path) -> None:
    folder = stored_folder.write(tmp_path, "fp8", sizes={"n_routed_experts": 1, "num_experts_per_tok": 1}).stored
    tuned = share_expert_ranks(unshared(folder))
    assert not any(isinstance(module, SharedSide) for module in tuned.modules())


def test_what_cannot_be_shared(fp8: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Small4ForCausalLM.from_pretrained(fp8.expanded)
    with pytest.raises(ValueError, match="has no adapter 'default'; it has none: call get_peft_model first"):
        share_expert_ranks(base)
    with pytest.raises(ValueError, match="has no adapter 'mine'; it has default"):
        share_expert_ranks(unshared(fp8.stored), "mine")
    with pytest.raises(ValueError, match=r"adapts no routed experts.*lora_targets"):
        share_expert_ranks(get_peft_model(base, LoraConfig(**lora_targets("attention"))))
    dense = Case(text={"first_k_dense_replace": 3}).models()[0]
    with pytest.raises(ValueError, match=r"adapts no routed experts"):
        share_expert_ranks(get_peft_model(dense, LoraConfig(**lora_targets("attention+shared"))))
    ia3 = IA3Config(target_modules=["kv_b_proj", "o_proj"], feedforward_modules=["o_proj"])
    with pytest.raises(ValueError, match="'default' is of PEFT's kind IA3; only LORA"):
        share_expert_ranks(get_peft_model(Small4ForCausalLM.from_pretrained(fp8.expanded), ia3))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match=r"FSDP1 and DeepSpeed ZeRO-3.*DDP or FSDP2"):
        share_expert_ranks(unshared(fp8.expanded))
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
    told: list[str] = []
    monkeypatch.setattr(shared_lora.logger, "warning", told.append)
    share_expert_ranks(unshared(fp8.expanded))
    assert "SHARDED_STATE_DICT can be" in told[0]
