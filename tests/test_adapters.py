"""LoRA by named targets: what is hit, saving, merging, and adapters and merged weights in transformers' own classes."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from small4_conversion import staging
from small4_conversion.adapters import export_adapter, merge_adapter
from small4_conversion.checkpoint import CheckpointError
from small4_conversion.convert import Options, convert
from small4_conversion.staging import private_folder
from transformers import AutoModelForCausalLM, Mistral3ForConditionalGeneration, Mistral4ForCausalLM
from transformers.integrations.peft import MIN_PEFT_VERSION

from modeling_small4 import Small4ForCausalLM, lora_targets
from modeling_small4.training.lora import LORA_TARGETS
from tests.oracle import Case, image_inputs, text_ids
from tests.tiny_checkpoint import write_tiny_checkpoint

CASE = Case(seed=5, text={"first_k_dense_replace": 1})
HOST_LOADS_ADAPTERS = Version(peft.__version__) >= Version(MIN_PEFT_VERSION)  # transformers' `load_adapter`
ATTENTION = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}


def adapted(model: Small4ForCausalLM, name: str, vision: bool = False, seed: int = 3) -> Any:
    """With random, not zero, adapters."""
    torch.manual_seed(seed)
    config = LoraConfig(r=3, lora_alpha=6, init_lora_weights=False, **lora_targets(name, vision, model))
    return get_peft_model(model, config).eval()


def hit(model: Any) -> set[str]:
    """Names in the unadapted model of the weights that merging would change."""
    before = {name: p.clone() for name, p in model.get_base_model().state_dict().items() if "lora_" not in name}
    clean = {name.replace(".base_layer", ""): p for name, p in before.items()}
    merged = model.merge_and_unload().state_dict()
    return {name for name, p in merged.items() if not torch.equal(p, clean[name])}


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("name", ["attention", "attention+shared", "all+experts"])
def test_targets_hit_what_they_say(name: str, vision: bool) -> None:
    """Against every weight of the model, sorted by hand."""
    model = CASE.models()[0]
    expected = set()
    for weight, tensor in model.state_dict().items():
        parts = weight.split(".")
        in_text, linear = ".language_model.layers." in weight, tensor.ndim == 2 and "norm" not in weight
        if in_text and parts[-2] in ATTENTION:
            expected.add(weight)
        if in_text and "shared_experts" in weight and name != "attention":
            expected.add(weight)
        dense = parts[-3:-2] == ["mlp"] and parts[-2] in ("gate_proj", "up_proj", "down_proj")
        if in_text and name == "all+experts" and (".mlp.experts." in weight or dense):
            expected.add(weight)
        if not in_text and vision and linear and ("vision_tower" in weight or "multi_modal_projector" in weight):
            expected.add(weight)
    assert len(expected) >= 3 * len(ATTENTION)
    assert hit(adapted(model, name, vision)) == expected


def test_a_full_query_projection_is_attention_too() -> None:
    model = Case(text={"q_lora_rank": None}).models()[0]
    assert any("q_proj" in name for name in hit(adapted(model, "attention")))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="attention, attention\\+shared, all\\+experts"):
        lora_targets("o_proj")


@pytest.mark.parametrize("name", ["attention", "all+experts"])
def test_save_load_merge(name: str, tmp_path: Path) -> None:
    CASE.models()[0].save_pretrained(tmp_path / "base")
    model = adapted(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), name)
    ids = text_ids(CASE, length=30)
    logits = model(ids).logits
    assert (logits - CASE.models()[0](ids).logits).abs().max() > 0.1
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    ).eval()
    assert torch.equal(loaded(ids).logits, logits)
    if HOST_LOADS_ADAPTERS:
        hosted = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
        hosted.load_adapter(str(tmp_path / "adapter"))
        assert torch.equal(hosted(ids).logits, logits)
    assert (loaded.merge_and_unload()(ids).logits - logits).abs().max() < 1e-4


@pytest.fixture(scope="module", params=[True, False], ids=["vision", "text"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base of ours, the same in transformers' layout, and an adapter of all kinds of weights."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny_checkpoint(folder / "base", vision=request.param)
    model = adapted(AutoModelForCausalLM.from_pretrained(folder / "base"), "all+experts", vision=request.param)
    model.save_pretrained(folder / "adapter")
    convert(folder / "base", folder / "hf", Options(to="transformers"))
    return folder


def reference(trained: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trained / "base"), trained / "adapter").eval()


def host_class(folder: Path) -> Any:
    named = json.loads((folder / "config.json").read_text())["architectures"]
    return {"Mistral3ForConditionalGeneration": Mistral3ForConditionalGeneration}.get(named[0], Mistral4ForCausalLM)


def inputs(trained: Path) -> dict[str, torch.Tensor]:
    case = Case(seed=2, text={"vocab_size": 1400})
    if "vision" in json.loads((trained / "hf" / "config.json").read_text()).get("model_type", "") or (
        host_class(trained / "hf") is Mistral3ForConditionalGeneration
    ):
        return image_inputs(case, [(28, 56)])
    return {"input_ids": text_ids(case, length=25)}


def test_the_adapter_in_transformers_own_class(trained: Path, tmp_path: Path) -> None:
    export_adapter(trained / "adapter", tmp_path / "out", trained / "hf")
    host = host_class(trained / "hf").from_pretrained(trained / "hf")
    given = inputs(trained)
    plain = host(**given).logits.detach()
    hosted = PeftModel.from_pretrained(host, tmp_path / "out").eval()
    difference = (hosted(**given).logits - reference(trained)(**given).logits).abs().max()
    assert difference < 1e-4
    assert (hosted(**given).logits - plain).abs().max() > 0.1
    if HOST_LOADS_ADAPTERS:
        again = host_class(trained / "hf").from_pretrained(trained / "hf").eval()
        again.load_adapter(str(tmp_path / "out"))
        assert torch.equal(again(**given).logits, hosted(**given).logits)


@pytest.mark.parametrize("layout", ["small4", "transformers", "mistral"])
def test_merged_into_any_layout(trained: Path, tmp_path: Path, layout: str) -> None:
    merge_adapter(trained / "adapter", tmp_path / "merged", to=layout)
    given = inputs(trained)
    expected = reference(trained)(**given).logits
    if layout == "transformers":
        model = host_class(tmp_path / "merged").from_pretrained(tmp_path / "merged").eval()
    else:
        if layout == "mistral":
            assert (tmp_path / "merged" / "tekken.json").is_file()
            convert(tmp_path / "merged", tmp_path / "back", Options(to="small4"))
        model = Small4ForCausalLM.from_pretrained(tmp_path / ("back" if layout == "mistral" else "merged")).eval()
    assert (model(**given).logits - expected).abs().max() < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {"merged"} | ({"back"} if layout == "mistral" else set())
    )


def test_a_base_that_scales_scores_otherwise_is_refused(trained: Path, tmp_path: Path) -> None:
    """As the published config.json does, of which transformers makes a larger softmax scale."""
    base = tmp_path / "published"
    base.mkdir()
    config = json.loads((trained / "hf" / "config.json").read_text())
    rope = config.get("text_config", config)["rope_parameters"]
    del rope["attention_factor"]
    rope |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="softmax_scale"):
        export_adapter(trained / "adapter", tmp_path / "out", base)
    assert not (tmp_path / "out").exists()


def test_what_is_no_adapter_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: missing"):
        merge_adapter(trained / "base", tmp_path / "out")
    with pytest.raises(CheckpointError, match="convert BASE OUT --to transformers"):
        export_adapter(trained / "adapter", tmp_path / "out", trained / "base")
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_stays_as_it_is(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("mine", "link"):
        with pytest.raises(CheckpointError, match="exists"):
            export_adapter(trained / "adapter", tmp_path / name, trained / "hf")
        for overwrite in (False, True):
            with pytest.raises(CheckpointError, match=r"exists|no checkpoint"):
                merge_adapter(trained / "adapter", tmp_path / name, overwrite=overwrite)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_what_a_killed_merge_left_is_cleared(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(private: Path, place: Path) -> None:
        """As if the process had gone before it could clear up."""

    with pytest.raises(ZeroDivisionError), monkeypatch.context() as patched:  # noqa: PT012
        patched.setattr(staging, "_remove", killed)
        with private_folder(tmp_path / "merged", "merging") as private:
            (private / "merged").mkdir()
            (private / "merged" / "model.safetensors").write_text("half")
            raise ZeroDivisionError
    assert {entry.name[:8] for entry in tmp_path.iterdir()} == {staging.PREFIX}
    merge_adapter(trained / "adapter", tmp_path / "merged")
    assert [entry.name for entry in tmp_path.iterdir()] == ["merged"]


def in_eight_bits(folder: Path, targets: str, how: str, **options: Any) -> Any:
    """A base that torchao holds in 8 bits, with a random adapter that moves its logits by about their own size."""
    pytest.importorskip("torchao")
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    from modeling_small4.quantize.weight_only import weight_only

    if not (folder / "base").exists():
        CASE.models()[0].to(torch.bfloat16).save_pretrained(folder / "base")
    plain = {"int8": Int8WeightOnlyConfig(version=2), "fp8": Float8WeightOnlyConfig()}
    loading = weight_only("int8") if how == "ours" else {"quantization_config": TorchAoConfig(plain[how])}
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16, **loading)
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **lora_targets(targets, model=model), **options)
    return get_peft_model(model, config).eval()


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).float().norm() / right.float().norm())


@pytest.mark.parametrize(("how", "targets"), [("ours", name) for name in LORA_TARGETS] + [("int8", "attention")])
@pytest.mark.parametrize("safe", [False, True])
def test_adapters_on_eight_bits_train_and_merge(tmp_path: Path, how: str, targets: str, safe: bool) -> None:
    tuned, ids = in_eight_bits(tmp_path, targets, how), text_ids(CASE, 2, length=12)
    tuned(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in tuned.parameters() if p.requires_grad)
    with torch.no_grad():
        adapted = tuned(ids).logits
        with tuned.disable_adapter():
            base = tuned(ids).logits
        tuned.merge_adapter(safe_merge=safe)
        assert apart(tuned(ids).logits, adapted) < 0.1 < 0.5 < apart(base, adapted)
        tuned.unmerge_adapter()
        assert apart(tuned(ids).logits, adapted) < 0.1
        with tuned.disable_adapter():
            assert apart(tuned(ids).logits, base) < 0.1
        merged = tuned.merge_and_unload(safe_merge=safe)
        assert apart(merged(ids).logits, adapted) < 0.1
        held = {type(p.data).__name__ for name, p in merged.named_parameters() if name.endswith("o_proj.weight")}
        assert "Int8Tensor" in held
        merged.save_pretrained(tmp_path / "merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
        assert apart(again(ids).logits, merged(ids).logits) < 0.02


@pytest.mark.parametrize("how", ["ours", "int8", "fp8"])
def test_dora_on_eight_bits_is_not_merged_without_its_magnitudes(tmp_path: Path, how: str) -> None:
    tuned, ids = in_eight_bits(tmp_path, "attention", how, use_dora=True), text_ids(CASE, 2, length=12)
    with torch.no_grad():
        adapted = tuned(ids).logits
        for merge in (tuned.merge_and_unload, tuned.merge_adapter, lambda: tuned.merge_and_unload(safe_merge=True)):
            with pytest.raises(ValueError, match=r"q_a_proj has a DoRA adapter.*in bfloat16") as refused:
                merge()
            assert "\n" not in str(refused.value)
        assert apart(tuned(ids).logits, adapted) < 0.1  # the model goes on as it was


@pytest.mark.parametrize("name", [CASE.models()[0], ["attention"], None, "x" * 5000, "Attention"])
def test_what_is_no_name_of_targets_is_said_in_one_short_line(name: Any) -> None:
    with pytest.raises(ValueError, match=r"attention, attention\+shared, all\+experts") as refused:
        lora_targets(name)
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


def test_bitsandbytes_says_that_it_leaves_the_experts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig
    from transformers.utils import logging

    # Its CPU kernel wants multiples of 32 rows, and of 64 columns.
    wide = {
        "q_lora_rank": 64,
        "kv_lora_rank": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
        "moe_intermediate_size": 64,
    }
    sizes = wide | {"intermediate_size": 128, "first_k_dense_replace": 1}
    Case(seed=5, text=sizes).models()[0].to(torch.bfloat16).save_pretrained(tmp_path / "base")
    logging.enable_propagation()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=BitsAndBytesConfig(load_in_4bit=True)
        )
    finally:
        logging.disable_propagation()
    assert "bitsandbytes quantizes linear layers only" in caplog.text
    layer = model.model.language_model.layers[1]
    assert layer.self_attn.o_proj.weight.dtype == torch.uint8
    assert layer.mlp.experts.gate_up_proj.dtype == torch.bfloat16
    tuned = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **lora_targets("attention", model=model)))
    ids = text_ids(CASE, length=12)
    tuned(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in tuned.parameters() if p.requires_grad)


def test_a_model_without_routed_experts_is_told_so() -> None:
    with pytest.raises(ValueError, match="no routed experts"):
        lora_targets("all+experts", model=Case(text={"first_k_dense_replace": 3}).models()[0])


def test_an_adapter_that_transformers_does_not_load_is_named(tmp_path: Path) -> None:
    """DoRA: the base fits, the adapter's magnitudes have other names in transformers than in PEFT."""
    write_tiny_checkpoint(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(r=2, use_dora=True, **lora_targets())).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"tensors of the adapter do not fit.*the base checkpoint does.*PeftModel"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
