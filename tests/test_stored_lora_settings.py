"""Settings of LoRA on held weights, against the same settings on expanded weights: what is adapted, with which rank and
gradient; and what is refused in a sentence instead of trained in part.
"""

from pathlib import Path
from typing import Any

import pytest
import stored_folder
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, VeloraConfig
from stored_folder import Folders

from modeling_small4 import Small4ForCausalLM, lora_targets, stored_lora

torch.set_num_threads(1)
EXPERTS = lora_targets("all+experts")["target_parameters"]
IDS = torch.randint(1000, 1100, (2, 33), generator=torch.Generator().manual_seed(5))
SETTINGS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "all-linear but one": {"target_modules": "All-Linear", "exclude_modules": ["o_proj"]},
    "all-linear and experts": {"target_modules": "all-linear", "target_parameters": EXPERTS, "r": 3},
    "one stack of experts": {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"], "r": 5},
    "short names": {"target_modules": ["q_b_proj"], "target_parameters": ["gate_up_proj", "down_proj"], "r": 1},
    "experts of one layer": {"target_modules": [], "target_parameters": ["layers.1.mlp.experts.gate_up_proj"]},
    "linear layers by their weights": {
        "target_modules": [],
        "target_parameters": ["shared_experts.down_proj.weight", "o_proj.weight", *EXPERTS],
    },
    "one layer": {"target_modules": ["q_b_proj", "o_proj"], "layers_to_transform": [1]},
    "large rank": {**lora_targets("all+experts"), "r": 33},
    "patterns": {
        **lora_targets("all+experts"),
        "rank_pattern": {"q_b_proj": 7, "mlp.experts.down_proj": 3, "experts.gate_.*": 4},
        "alpha_pattern": {"o_proj": 9, "down_proj": 5},
    },
    "rank-stabilized": {**lora_targets("all+experts"), "use_rslora": True},
    "a head and a router that are trained": {**lora_targets("all+experts"), "modules_to_save": ["lm_head", "mlp.gate"]},
    "tokens that are trained": {**lora_targets(), "trainable_token_indices": {"embed_tokens": [1000, 1001]}},
    "vision": lora_targets("all+experts", vision=True),
    "biases": {**lora_targets("attention+shared"), "lora_bias": True},
    "drawn otherwise": {**lora_targets("all+experts"), "init_lora_weights": "gaussian"},
}


FORMS = ("fp8", "nvfp4 all", "int4 zeros")
# Which modules are adapted, and how, does not depend on the form; how rows and experts are added up does.
IN_EVERY_FORM = ("all-linear and experts", "large rank", "vision", "biases")
PAIRS = [(form, name) for form in FORMS for name in SETTINGS if form == FORMS[0] or name in IN_EVERY_FORM]
one_form = pytest.mark.parametrize("folders", FORMS[:1], indirect=True)


@pytest.fixture(scope="module", params=FORMS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return stored_folder.write(tmp_path_factory.mktemp("settings"), request.param)


def adapted(folder: Path, **settings: Any) -> Any:
    model = Small4ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tuned = get_peft_model(model, stored_lora(LoraConfig(**{"r": 2} | settings), model))
    generator = torch.Generator().manual_seed(11)
    for _, parameter in sorted((n, p) for n, p in tuned.named_parameters() if ".lora_" in n):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return tuned.train()


def gradients(tuned: Any) -> dict[str, torch.Tensor]:
    tuned(input_ids=IDS, labels=IDS).loss.backward()
    return {name: p.grad for name, p in tuned.named_parameters() if p.grad is not None}


# PEFT (0.21) looks for the keys of patterns among modules only, whatever the base.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize(("folders", "name"), PAIRS, indirect=["folders"])
def test_as_on_expanded_weights(folders: Folders, name: str, tmp_path: Path) -> None:
    held, whole = (adapted(folder, **SETTINGS[name]) for folder in (folders.stored, folders.expanded))
    found, expected = gradients(held), gradients(whole)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert found[key].shape == gradient.shape, key
        assert (found[key] - gradient).norm() <= 2e-5 * gradient.norm(), key
    held.save_pretrained(tmp_path)
    settings = LoraConfig.from_pretrained(str(tmp_path)).to_dict()
    theirs = whole.peft_config["default"].to_dict()
    for key in ("target_parameters", "rank_pattern", "alpha_pattern", "r", "modules_to_save"):
        assert settings[key] == theirs[key], key
    again = PeftModel.from_pretrained(Small4ForCausalLM.from_pretrained(folders.expanded), tmp_path)
    with torch.no_grad():
        logits = held.eval()(IDS).logits
        assert (again.float().eval()(IDS).logits - logits).abs().max() < 2e-5 * logits.abs().max()
        if not held.peft_config["default"].lora_bias:
            assert (held.merge_and_unload()(IDS).logits - logits).abs().max() < 2e-5 * logits.abs().max()


REFUSED = [
    ({"use_dora": True}, "use_dora computes with the weights, which are held as stored; give use_rslora=True"),
    ({"velora_config": VeloraConfig()}, "velora_config computes with the weights"),
    ({"use_bdlora": BdLoraConfig(target_modules_bd_a=["o_proj"])}, "use_bdlora computes with the weights"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' computes .* give one of True, False, 'gaussian'"),
    ({"init_lora_weights": "olora"}, "init_lora_weights='olora' computes"),
    ({"init_lora_weights": "orthogonal"}, "init_lora_weights='orthogonal' computes"),
    ({"modules_to_save": ["o_proj"]}, r"modules_to_save trains .*o_proj itself, .* Adapt it with target_modules"),
    ({"modules_to_save": ["lm_head", "experts"]}, r"modules_to_save trains .*experts itself"),
    ({"modules_to_save": ["layers.1"]}, r"modules_to_save trains .*layers\.1 itself"),
]


@one_form
@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_needs_the_weights_is_refused(folders: Folders, settings: dict[str, Any], words: str) -> None:
    model = Small4ForCausalLM.from_pretrained(folders.stored)
    config = LoraConfig(**lora_targets("attention"), **settings)
    with pytest.raises(ValueError, match=words):
        stored_lora(config, model)
    with pytest.raises(ValueError, match="dequantize=True"):
        stored_lora(config, model)
    plain = Small4ForCausalLM.from_pretrained(folders.stored, dequantize=True)
    stored_lora(config, plain)


@one_form
def test_other_adapters_are_refused(folders: Folders) -> None:
    model = Small4ForCausalLM.from_pretrained(folders.stored)
    with pytest.raises(ValueError, match=r"AdaLoraConfig does not fit .* give LoraConfig, or load the model with deq"):
        stored_lora(AdaLoraConfig(total_step=10, **lora_targets("attention")), model)
    with pytest.raises(ValueError, match=r"target_modules matches the routed experts, .* name these in target_param"):
        get_peft_model(model, stored_lora(LoraConfig(target_modules=["experts"]), model))
    with pytest.raises(ValueError, match="for LoRA: stored_lora"):
        get_peft_model(model, LoraConfig(**lora_targets("attention")))


@one_form
@pytest.mark.parametrize("whole", [False, True], ids=["adapted model", "its base"])
def test_a_second_adapter_finds_what_the_first_one_did(folders: Folders, whole: bool) -> None:
    names = []
    for folder in (folders.stored, folders.expanded):
        tuned = adapted(folder, **lora_targets("all+experts"))
        model = tuned.get_base_model() if whole else tuned
        config = LoraConfig(r=2, target_modules="all-linear", **_parameters(model))
        tuned.add_adapter("second", stored_lora(config, model))
        names.append({name for name, _ in tuned.named_parameters() if ".second." in name})
    assert names[0] == names[1]
    assert not any("lora_A.default" in name or "q_a_proj.base_layer" in name for name in names[0])


def _parameters(model: Any) -> dict[str, Any]:
    return {"target_parameters": lora_targets("all+experts", model=model)["target_parameters"]}
