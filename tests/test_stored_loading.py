"""Checkpoints whose weights are held as stored answer as their expanded twins, in every path, and are saved as they
were.
"""

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import stored_folder
import torch
from oracle import Case, image_inputs
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from stored_folder import FORMS, Folders
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from modeling_small4 import Small4ForCausalLM, Small4Model, stored_kernels
from modeling_small4.stored_experts import Small4StoredExperts
from modeling_small4.stored_layers import Small4StoredLinear
from modeling_small4.stored_native import library

torch.set_num_threads(1)
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}


# One form of each kind of scales: where only these are tried, the form and what is tested have nothing to do with one
# another, as with the ways to decode.
FEW = ("fp8", "nvfp4 all", "int4 zeros")
few = pytest.mark.parametrize("folders", FEW, indirect=True)


@pytest.fixture(scope="module", params=FORMS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return stored_folder.write(tmp_path_factory.mktemp("stored"), request.param)


@pytest.fixture(scope="module")
def held(folders: Folders) -> Small4ForCausalLM:
    return Small4ForCausalLM.from_pretrained(folders.stored, dtype=torch.float32)


@pytest.fixture(scope="module")
def whole(folders: Folders) -> Small4ForCausalLM:
    return Small4ForCausalLM.from_pretrained(folders.expanded, dtype=torch.float32)


def padded(length: int = 40) -> dict[str, torch.Tensor]:
    """Two rows, the first padded on the left."""
    ids = torch.randint(1000, 1100, (2, length), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    return {"input_ids": ids, "attention_mask": mask}


def seen() -> dict[str, torch.Tensor]:
    """A prompt with two images."""
    return image_inputs(Case(seed=3), [(56, 84), (28, 56)])


@torch.no_grad()
def difference(one: Any, other: Any, **inputs: torch.Tensor) -> float:
    """Largest difference of logits where nothing is padded, relative to the largest logit."""
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    ours, theirs = one(**inputs).logits[mask], other(**inputs).logits[mask]
    assert theirs.std() > 0.3
    return float((ours - theirs).abs().max() / theirs.abs().max())


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert tensor.shape == other[name].shape, name
        assert torch.equal(
            tensor.contiguous().view(-1).view(torch.uint8), other[name].contiguous().view(-1).view(torch.uint8)
        ), name


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_what_is_held_is_what_is_stored(held: Small4ForCausalLM, folders: Folders) -> None:
    parameters = dict(held.named_parameters())
    assert parameters.keys() == folders.tensors.keys()
    for name, tensor in folders.tensors.items():
        kept = tensor.dtype if name not in folders.numbers or tensor.dtype == torch.float8_e4m3fn else torch.float32
        assert parameters[name].dtype == kept, name
        assert not (parameters[name].requires_grad and kept != torch.float32), name
    kinds = [type(module) for module in held.modules()]
    assert kinds.count(Small4StoredExperts) == 2
    assert Small4StoredLinear in kinds
    assert held.dtype == torch.float32


@pytest.mark.parametrize(("attention", "inputs"), [("sdpa", padded), ("eager", seen)])
def test_logits(held: Any, whole: Any, attention: str, inputs: Any) -> None:
    for model in (held, whole):
        model.set_attn_implementation(attention)
    assert difference(held, whole, **inputs()) < 1e-5
    for model in (held, whole):
        model.set_attn_implementation("sdpa")


def test_generated_tokens(held: Any, whole: Any) -> None:
    assert torch.equal(*(model.generate(**padded(), **GREEDY) for model in (held, whole)))


@pytest.mark.parametrize("folders", ["nvfp4 all"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"prefill_chunk_size": 16},
        {"cache_implementation": "static"},
        {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
        {"num_beams": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=["absorbed", "no cache", "chunks", "static", "8-bit cache", "beams", "sampled", "lookup"],
)
@pytest.mark.parametrize("inputs", [padded, seen])
def test_every_way_of_decoding(held: Any, whole: Any, options: dict[str, Any], inputs: Any) -> None:
    given = inputs()
    if "prompt_lookup_num_tokens" in options:
        given = {
            name: value[-1:] if name in ("input_ids", "attention_mask") else value for name, value in given.items()
        }
    answers = []
    for model in (held, whole):
        torch.manual_seed(0)
        answers.append(model.generate(**given, **(GREEDY | options)))
    assert torch.equal(*answers)


@pytest.mark.parametrize("width", [72, 200])
def test_blocks_at_the_edges_of_a_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """128 divides none of the sizes, so the last blocks are smaller. The compiled kernels take them."""
    sizes = {"hidden_size": 328, "q_lora_rank": 72, "kv_lora_rank": 200, "moe_intermediate_size": width}
    folders = stored_folder.write(tmp_path, "fp8 blocks", seed=width, vision=False, sizes=sizes)
    if library() is not None:
        monkeypatch.setattr(stored_kernels, "_by_pieces", None)
    stored, plain = (
        Small4ForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (folders.stored, folders.expanded)
    )
    assert difference(stored, plain, **padded()) < 1e-5
    assert torch.equal(*(model.generate(**padded(), **GREEDY) for model in (stored, plain)))


@few
def test_a_long_prompt_block_by_block(held: Any, whole: Any) -> None:
    ids = torch.randint(1000, 1100, (1, 2600), generator=torch.Generator().manual_seed(6))
    logits = []
    for model in (held, whole):
        with torch.no_grad():
            first = model(ids[:, :2000], use_cache=True, logits_to_keep=1)
            logits.append(model(ids[:, 2000:], past_key_values=first.past_key_values, logits_to_keep=1).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)


@few
def test_continuous_batching(held: Any, whole: Any) -> None:
    prompts = [list(range(1002, 1014)), list(range(1021, 1052))]
    answers = []
    for model in (held, whole):
        found = model.generate_batch(inputs=prompts, **GREEDY)
        answers.append(sorted(output.generated_tokens for output in found.values()))
    assert answers[0] == answers[1]
    assert len(answers[0]) == 2


def test_bfloat16_answers_are_as_near_as_those_of_the_expanded(folders: Folders, whole: Any) -> None:
    ours, theirs = (Small4ForCausalLM.from_pretrained(folder) for folder in (folders.stored, folders.expanded))
    assert ours.dtype == torch.bfloat16
    with torch.no_grad():
        exact = whole(**padded()).logits
        errors = [float((model(**padded()).logits.float() - exact).norm() / exact.norm()) for model in (ours, theirs)]
    assert errors[0] <= 1.2 * errors[1] < 0.1


def test_gradients_of_inputs(held: Any, whole: Any) -> None:
    gradients = []
    for model in (held, whole):
        embeds = model.get_input_embeddings()(padded()["input_ids"]).detach().requires_grad_()
        model(inputs_embeds=embeds).logits.square().mean().backward()
        gradients.append(embeds.grad)
        model.zero_grad()
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5 * float(gradients[1].abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("folders", "shards"), [*((form, None) for form in FORMS), *((form, "100KB") for form in FEW)], indirect=["folders"]
)
def test_saved_as_it_was(folders: Folders, tmp_path: Path, shards: str | None) -> None:
    model = Small4ForCausalLM.from_pretrained(folders.stored)
    model.save_pretrained(tmp_path / "saved", **({"max_shard_size": shards} if shards else {}))
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > (5 if shards else 0)
    same_bits(saved_tensors(tmp_path / "saved"), folders.tensors)
    first, second = (
        json.loads((folder / "config.json").read_text()) for folder in (folders.stored, tmp_path / "saved")
    )
    assert first["quantization_config"] == second["quantization_config"]
    again = Small4ForCausalLM.from_pretrained(tmp_path / "saved")
    same_bits(again.state_dict(), model.state_dict())
    again.save_pretrained(tmp_path / "saved")  # into the folder that its tensors are mapped from
    same_bits(saved_tensors(tmp_path / "saved"), folders.tensors)


@pytest.mark.parametrize(
    ("folders", "how"),
    [
        *((form, "argument") for form in FORMS),
        *((form, how) for form in FEW for how in ("configuration", "auto", "afterwards")),
    ],
    indirect=["folders"],
)
def test_expanded_on_request(folders: Folders, tmp_path: Path, how: str) -> None:
    if how == "afterwards":
        model = Small4ForCausalLM.from_pretrained(folders.stored).dequantize()
    elif how == "auto":
        model = AutoModelForCausalLM.from_pretrained(folders.stored, dequantize=True)
    else:
        given = {
            "argument": {"dequantize": True},
            "configuration": {"quantization_config": FineGrainedFP8Config(dequantize=True)},
        }[how]
        model = Small4ForCausalLM.from_pretrained(folders.stored, **given)
    same_bits(model.state_dict(), folders.numbers)
    model.save_pretrained(tmp_path / "saved")
    same_bits(saved_tensors(tmp_path / "saved"), folders.numbers)
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()


def test_expanded_to_another_dtype(folders: Folders) -> None:
    model = Small4ForCausalLM.from_pretrained(folders.stored, dtype=torch.float32, dequantize=True)
    same_bits(model.state_dict(), {name: tensor.float() for name, tensor in folders.numbers.items()})


def test_casts_leave_codes_and_scales(folders: Folders, whole: Any) -> None:
    model = Small4ForCausalLM.from_pretrained(folders.stored)
    for cast in (model.float, model.half, lambda: model.to(torch.float64), lambda: model.to("cpu", torch.float32)):
        cast()
        for name, tensor in model.state_dict().items():
            if name not in folders.numbers or tensor.dtype == torch.float8_e4m3fn:
                same_bits({name: tensor}, {name: folders.tensors[name]})
            else:
                assert tensor.dtype == model.dtype
    assert difference(model, whole, **padded()) < 1e-5


@few
def test_copies_and_pickles(held: Any, folders: Folders) -> None:
    stream = io.BytesIO()
    torch.save(held, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(held), pickle.loads(pickle.dumps(held)), torch.load(stream, weights_only=False)):
        same_bits(twin.state_dict(), held.state_dict())
        assert difference(twin, held, **padded()) == 0


@few
def test_meta_device(held: Any) -> None:
    model = copy.deepcopy(held).to("meta")
    assert model(padded()["input_ids"].to("meta")).logits.shape == (2, 40, 1100)
    model = model.to_empty(device="cpu")
    assert {name: (t.dtype, t.shape) for name, t in model.state_dict().items()} == {
        name: (t.dtype, t.shape) for name, t in held.state_dict().items()
    }


INNER = "model.language_model"
HOMES = {
    "model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", f"{INNER}.embed_tokens": "cpu",
    **{f"{INNER}.layers.{i}": "cpu" for i in range(2)}, f"{INNER}.norm": "cpu", "lm_head": "cpu",
}  # fmt: skip


MAPS: dict[str, dict[str, Any]] = {
    "auto": {"device_map": "auto"},
    "cpu": {"device_map": "cpu"},
    "one layer on disk": {"device_map": {**HOMES, f"{INNER}.layers.1": "disk"}},
    "all on disk": {"device_map": dict.fromkeys(HOMES, "disk")},
    "limited": {"device_map": "auto", "max_memory": {"cpu": 3_000_000}},
}


# How weights lie on disk depends on their form, where they lie does not.
@pytest.mark.parametrize(
    ("folders", "name"),
    [(form, name) for form in FEW for name in (MAPS if form == FEW[0] else ("all on disk", "limited"))],
    indirect=["folders"],
)
def test_device_maps(folders: Folders, held: Any, tmp_path: Path, name: str) -> None:
    options = MAPS[name]
    model = Small4ForCausalLM.from_pretrained(
        folders.stored, dtype=torch.float32, offload_folder=tmp_path / "off", **options
    )
    assert difference(model, held, **padded()) < 1e-5
    assert torch.equal(model.generate(**seen(), **GREEDY), held.generate(**seen(), **GREEDY))
    model.save_pretrained(tmp_path / "saved")
    stored = {
        name
        for name in folders.tensors
        if name not in folders.numbers or folders.tensors[name].dtype == torch.float8_e4m3fn
    }
    same_bits(
        {n: t for n, t in saved_tensors(tmp_path / "saved").items() if n in stored},
        {n: folders.tensors[n] for n in stored},
    )


@few
def test_the_model_without_a_head(folders: Folders, whole: Any) -> None:
    model = Small4Model.from_pretrained(folders.stored, dtype=torch.float32)
    found, expected = (m(**padded()).last_hidden_state[1] for m in (model, whole.model))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_adapters_of_attention_are_those_of_expanded_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    """NVFP4 as released leaves attention plain. Merging rounds its weights to their dtype, on both models alike."""
    folders = stored_folder.write(tmp_path, "nvfp4")
    before, after = [], []
    for folder in (folders.stored, folders.expanded):
        torch.manual_seed(5)
        config = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_b_proj", "kv_b_proj", "o_proj"])
        tuned = get_peft_model(Small4ForCausalLM.from_pretrained(folder, dtype=dtype), config).eval()
        with torch.no_grad():
            before.append(tuned(**padded()).logits[1].float())
            after.append(tuned.merge_and_unload()(**padded()).logits[1].float())
    assert float((before[0] - before[1]).abs().max()) < (1e-4 if dtype == torch.float32 else 0.1)
    assert float((after[0] - after[1]).abs().max()) < (1e-4 if dtype == torch.float32 else 0.1)
    if dtype == torch.float32:
        torch.testing.assert_close(after[0], before[0], atol=1e-4, rtol=0)
