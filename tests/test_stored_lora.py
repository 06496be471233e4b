"""LoRA on weights that are held as stored: outputs, gradients, files and merges are those of LoRA on the expanded
weights.
"""

from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

import pytest
import stored_folder
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from stored_folder import FORMS, Folders
from test_stored_loading import few

from modeling_small4 import Small4ForCausalLM, lora_targets, stored_experts, stored_kernels, stored_lora
from modeling_small4.stored_experts import Small4StoredExperts
from modeling_small4.stored_layers import Small4StoredLinear, StoredModule

torch.set_num_threads(1)


# All forms, but for the tests of `few`: what these are about comes after the products of stored weights.
@pytest.fixture(scope="module", params=FORMS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return stored_folder.write(tmp_path_factory.mktemp("stored"), request.param)


def adapted(folder: Path, dtype: torch.dtype = torch.float32, targets: str = "all+experts", **options: Any) -> Any:
    """With random, not zero, adapters."""
    model = Small4ForCausalLM.from_pretrained(folder, dtype=dtype)
    config = LoraConfig(r=3, lora_alpha=6, init_lora_weights=False, **lora_targets(targets, model=model), **options)
    torch.manual_seed(3)
    tuned = get_peft_model(model, stored_lora(config, model))
    same_adapters(tuned)
    return tuned


def same_adapters(tuned: Any) -> None:
    """Numbers that depend on the adapters' names alone."""
    generator = torch.Generator().manual_seed(7)
    for _, parameter in sorted((n, p) for n, p in tuned.named_parameters() if ".lora_" in n):
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1


def batch(rows: int = 2, length: int = 24, seed: int = 1) -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 1100, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def gradients(model: Any, **given: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**given).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """By each gradient's norm of the difference over its own norm."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.any(), name
        difference = (found[name] - gradient).norm() / gradient.norm()
        assert difference < tolerance, (name, float(difference))


def as_exact(held: Any, whole: Any, exact: Any, **given: torch.Tensor) -> None:
    """Gradients within 1e-5 of those on expanded weights, or as near to the ones in float64 as those are."""
    found, theirs, right = (gradients(model, **given) for model in (held, whole, exact))
    assert found.keys() == theirs.keys() == right.keys()
    for name, gradient in right.items():
        ours, twin = ((g[name].double() - gradient).norm() / gradient.norm() for g in (found, theirs))
        apart = (found[name] - theirs[name]).norm() / gradient.norm()
        assert apart < 1e-5 or ours < 1.5 * twin, (name, float(apart), float(ours), float(twin))


def test_gradients_are_those_on_expanded_weights(folders: Folders) -> None:
    held, whole = adapted(folders.stored), adapted(folders.expanded)
    exact = adapted(folders.expanded).double()
    assert {n for n, p in held.named_parameters() if p.requires_grad} == {
        n for n, p in whole.named_parameters() if p.requires_grad
    }
    for rows, length in ((1, 3), (2, 24), (3, 70)):
        given = batch(rows, length) if length > 5 else {"input_ids": batch(1)["input_ids"][:, :length]}
        given.setdefault("labels", given["input_ids"])
        as_exact(held, whole, exact, **given)
    with torch.no_grad():
        ours, theirs = held.eval()(**batch()).logits[1], whole.eval()(**batch()).logits[1]
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_adapters_of_one_base_load_on_the_other(folders: Folders, tmp_path: Path) -> None:
    held, whole = adapted(folders.stored).eval(), adapted(folders.expanded).eval()
    held.save_pretrained(tmp_path / "held")
    whole.save_pretrained(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("held", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    base = Small4ForCausalLM.from_pretrained(folders.expanded, dtype=torch.float32)
    with torch.no_grad():
        expected = whole(**batch()).logits[1]
        found = PeftModel.from_pretrained(base, tmp_path / "held").eval()(**batch()).logits[1]
        assert torch.equal(found, expected)
        base = Small4ForCausalLM.from_pretrained(folders.stored, dtype=torch.float32)
        config = stored_lora(LoraConfig.from_pretrained(tmp_path / "whole"), base)
        again = PeftModel.from_pretrained(base, tmp_path / "whole", config=config).eval()
        assert any(isinstance(module, StoredModule) for module in again.modules())
        assert (again(**batch()).logits[1] - expected).abs().max() < 1e-5 * expected.abs().max()


def test_merging_expands_what_is_merged(folders: Folders) -> None:
    tuned = adapted(folders.stored).eval()
    with torch.no_grad():
        before = tuned(**batch()).logits[1]
        with tuned.disable_adapter():
            plain = tuned(**batch()).logits[1]
        merged = tuned.merge_and_unload(safe_merge=True)
        after = merged(**batch()).logits[1]
    assert (before - plain).abs().max() > 0.1
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    assert not any(isinstance(module, StoredModule) for module in merged.modules())
    assert not any("lora" in name or "base_layer" in name for name in merged.state_dict())


def test_merging_attention_leaves_experts_as_they_are(folders: Folders) -> None:
    tuned = adapted(folders.stored, targets="attention").eval()
    with torch.no_grad():
        before = tuned(**batch()).logits[1]
        merged = tuned.merge_and_unload()
        torch.testing.assert_close(merged(**batch()).logits[1], before, atol=1e-4, rtol=0)
    kinds = [type(module) for module in merged.modules()]
    assert kinds.count(Small4StoredExperts) == 2


@few
def test_unloading_leaves_the_base_as_it_was(folders: Folders) -> None:
    tuned = adapted(folders.stored).eval()
    plain = Small4ForCausalLM.from_pretrained(folders.stored, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(tuned.unload()(**batch()).logits, plain(**batch()).logits)


@few
def test_several_adapters(folders: Folders) -> None:
    models = [adapted(folders.stored), adapted(folders.expanded)]
    logits = []
    for model in models:
        config = LoraConfig(r=2, init_lora_weights=False, **lora_targets("all+experts"))
        model.add_adapter("second", stored_lora(config, model.get_base_model()))
        same_adapters(model)
        model.eval()
        with torch.no_grad():
            one = model(**batch()).logits[1]
            model.set_adapter("second")
            two = model(**batch()).logits[1]
            model.base_model.set_adapter(["default", "second"])
            logits.append((one, two, model(**batch()).logits[1]))
    for ours, theirs in zip(*logits, strict=True):
        assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


@few
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(folders: Folders, reentrant: bool) -> None:
    held = adapted(folders.stored).train()
    expected = gradients(held, **batch())
    held.enable_input_require_grads()
    held.gradient_checkpointing_enable({"use_reentrant": reentrant})
    compare(gradients(held, **batch()), expected, 1e-6)


def test_a_merged_adapter_comes_out_again(folders: Folders) -> None:
    tuned = adapted(folders.stored).eval()
    with torch.no_grad():
        before = tuned(**batch()).logits[1]
        tuned.merge_adapter()
        torch.testing.assert_close(tuned(**batch()).logits[1], before, atol=1e-4, rtol=0)
        tuned.unmerge_adapter()
        torch.testing.assert_close(tuned(**batch()).logits[1], before, atol=1e-4, rtol=0)
    compare(gradients(tuned, **batch()), gradients(adapted(folders.expanded), **batch()), 1e-4)


def test_bfloat16(folders: Folders) -> None:
    """As near to float32 as the expanded model in bfloat16 is."""
    with torch.no_grad():
        exact = adapted(folders.expanded).eval()(**batch()).logits[1]
        theirs, ours = (
            (adapted(folder, torch.bfloat16).eval()(**batch()).logits[1].float() - exact).std() / exact.std()
            for folder in (folders.expanded, folders.stored)
        )
    assert ours < 1.2 * theirs + 0.002


@few
def test_training_in_bfloat16_multiplies_few_counts_of_tokens(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each count of tokens costs a compiled kernel there, forward and backward."""
    counts: set[int] = set()
    multiply = stored_experts.multiply_all

    def counted(weights: Any, inputs: Any) -> Any:
        counts.update(map(len, inputs))
        return multiply(weights, inputs)

    monkeypatch.setattr(stored_experts, "multiply_all", counted)
    tuned = adapted(folders.stored, torch.bfloat16)
    for seed in range(3):
        assert all(gradient.isfinite().all() for gradient in gradients(tuned, **batch(seed=seed)).values())
    assert counts <= {16, 32, 48}, counts


@few
def test_a_trainable_router(folders: Folders) -> None:
    models = [adapted(folder) for folder in (folders.stored, folders.expanded)]
    for model in models:
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.requires_grad_(True)
    found, expected = (gradients(model, **batch()) for model in models)
    assert sum("mlp.gate.weight" in name for name in found) == 2
    compare(found, expected)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_without_stored_lora_nothing_is_adapted_in_silence(folders: Folders) -> None:
    model = Small4ForCausalLM.from_pretrained(folders.stored, dtype=torch.float32)
    with pytest.raises((ValueError, RuntimeWarning), match=r"not supported|no parameter was matched"):
        get_peft_model(model, LoraConfig(**lora_targets("all+experts")))


@pytest.mark.parametrize("form", ["fp8", "fp8 blocks"])
def test_pefts_own_wrapper_is_refused(form: str, tmp_path: Path) -> None:
    folder = stored_folder.write(tmp_path, form).stored
    model = Small4ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(target_modules=[], target_parameters=["mlp.experts.down_proj"]))
    with pytest.raises(ValueError, match="stored_lora"):
        tuned(**batch())


def test_linear_layers_alone(folders: Folders) -> None:
    """On the median of seven batches: in one of them nearly all of a gradient cancels, and what is left is rounding, in
    float32 on the expanded weights too.
    """
    held, whole = (
        adapted(folder, targets="attention+shared", use_rslora=True) for folder in (folders.stored, folders.expanded)
    )
    assert any(type(module) is Small4StoredLinear for module in held.modules())
    apart: dict[str, list[float]] = {}
    for seed in range(7):
        found, expected = (gradients(model, **batch(seed=seed)) for model in (held, whole))
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            apart.setdefault(name, []).append(float((found[name] - gradient).norm() / gradient.norm()))
    assert apart
    assert all(median(values) < 1e-5 for values in apart.values()), apart


@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "pieces"])
def test_outputs_may_be_changed_in_place(folders: Folders, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As activated LoRA does, and hooks of users."""
    if not compiled:
        monkeypatch.setattr(stored_kernels, "library", lambda: None)
    model = Small4ForCausalLM.from_pretrained(folders.stored, dtype=torch.bfloat16)
    layer = next(module for module in model.modules() if isinstance(module, Small4StoredLinear))
    inputs = torch.randn(2, 3, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
    plain = layer(inputs)
    changed = layer(inputs)
    changed.view(-1, layer.out_features)[torch.tensor([1, 4])] += 1
    assert torch.equal(changed[0, 1], plain[0, 1] + 1)
    changed.sum().backward()
    found, inputs.grad = inputs.grad, None
    plain.sum().backward()
    assert inputs.grad is not None
    assert torch.equal(found, inputs.grad)


def test_a_thread_keeps_its_adapters_while_another_one_ends(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    model, some, others = adapted(folders.stored), Small4StoredExperts._some, list[Thread]()
    with torch.no_grad():
        alone = [model(**batch(seed=seed)).logits for seed in (1, 2)]
        found: dict[int, torch.Tensor] = {}

        def run(seed: int) -> None:
            with torch.no_grad():
                found[seed] = model(**batch(seed=seed)).logits

        def interrupted(self: Small4StoredExperts, *given: Any) -> list[tuple[torch.Tensor, ...]]:
            if not others:  # a whole forward pass of another thread, inside this one's first layer
                others.append(Thread(target=run, args=(2,)))
                others[0].start()
                others[0].join()
            return some(self, *given)

        monkeypatch.setattr(Small4StoredExperts, "_some", interrupted)
        run(1)
    assert all(torch.equal(found[seed], logits) for seed, logits in zip((1, 2), alone, strict=True))
