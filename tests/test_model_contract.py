"""What transformers' users expect of a model class: Auto classes, saving, refusing, compiling, training, generating in
every way.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import Case, image_inputs, text_ids
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    StaticCache,
)

from modeling_small4 import (
    Small4Config,
    Small4ForCausalLM,
    Small4ForSequenceClassification,
    Small4ForTokenClassification,
    Small4Model,
)

CASE = Case(seed=21)
SIZES = [(56, 84), (28, 56)]
GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}


@pytest.fixture(scope="module")
def model() -> Small4ForCausalLM:
    return CASE.models()[0]


@pytest.fixture(scope="module")
def saved(model: Small4ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_kernels_can_be_chosen_where_no_source_is_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers searches the model's file for words; a frozen or zipped package has none."""
    monkeypatch.setattr("inspect.getsource", lambda module: (_ for _ in ()).throw(OSError("no source")))
    model = Small4ForCausalLM(Case().config())
    model.set_attn_implementation("eager")
    model.set_experts_implementation("batched_mm")
    text = model.config.text_config
    assert (text._attn_implementation, text._experts_implementation) == ("eager", "batched_mm")


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM])
def test_auto_classes_load_the_language_model(auto: type, saved: Path, model: Small4ForCausalLM) -> None:
    loaded = auto.from_pretrained(saved)
    assert type(loaded) is Small4ForCausalLM
    assert_same_weights(loaded, model)


def test_auto_model_and_config(saved: Path, model: Small4ForCausalLM) -> None:
    loaded = AutoModel.from_pretrained(saved)
    assert type(loaded) is Small4Model
    assert_same_weights(loaded, model.model)
    assert type(AutoConfig.from_pretrained(saved)) is Small4Config


def test_sharded_round_trip_is_exact(model: Small4ForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    loaded = Small4ForCausalLM.from_pretrained(tmp_path)
    assert_same_weights(loaded, model)
    inputs = image_inputs(CASE, SIZES)
    with torch.no_grad():
        # Files are mapped into memory at other alignments, which may change the order of sums.
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)


def test_tied_embeddings_round_trip(tmp_path: Path) -> None:
    config = CASE.config()
    config.tie_word_embeddings = True
    model = Small4ForCausalLM(config)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = Small4ForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight
    assert_same_weights(loaded, model)


def test_nothing_is_left_uninitialised(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fresh memory poisoned, whatever `from_pretrained` forgets to fill shows up as NaN."""
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(torch.nan) if tensor.is_floating_point() and not tensor.is_meta else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
    for loaded in (Small4ForCausalLM.from_pretrained(saved), Small4ForCausalLM(CASE.config())):
        for name, tensor in [*loaded.named_parameters(), *loaded.named_buffers()]:
            assert torch.isfinite(tensor).all(), name
        with torch.no_grad():
            assert torch.isfinite(loaded(**image_inputs(CASE, SIZES)).logits).all()


def tampered(saved: Path, tmp_path: Path, change: object) -> Path:
    folder = tmp_path / "tampered"
    shutil.copytree(saved, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


EXPERT = "model.language_model.layers.1.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(EXPERT), EXPERT),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight"),
        (lambda t: t.update({"model.language_model.layers.9.x": torch.ones(3)}), "layers.9.x"),
        (lambda t: t.update({"renamed": t.pop(EXPERT)}), "renamed"),
        (lambda t: t.update({EXPERT: t[EXPERT][:-1].clone()}), "down_proj"),
    ],
)
def test_checkpoint_that_does_not_match_is_refused(saved: Path, tmp_path: Path, change: object, named: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=named.replace(".", r"\.")):
        AutoModelForCausalLM.from_pretrained(tampered(saved, tmp_path, change))


def test_text_only_configuration_does_not_swallow_a_tower(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vision_config": None}))
    with pytest.raises(ValueError, match="vision_tower"):
        Small4ForCausalLM.from_pretrained(folder)


def test_new_heads_on_a_language_model_start_fresh(saved: Path) -> None:
    for auto, cls in (
        (AutoModelForSequenceClassification, Small4ForSequenceClassification),
        (AutoModelForTokenClassification, Small4ForTokenClassification),
    ):
        loaded = auto.from_pretrained(saved, num_labels=3)
        assert type(loaded) is cls
        ids = text_ids(CASE, length=9)
        output = loaded(
            ids, labels=torch.zeros(2, dtype=torch.long) if cls is Small4ForSequenceClassification else ids % 3
        )
        assert output.logits.shape == ((2, 3) if cls is Small4ForSequenceClassification else (2, 9, 3))
        assert torch.isfinite(output.loss)
        assert "score.weight" in loaded.state_dict()


def test_classifier_round_trip(tmp_path: Path) -> None:
    config = CASE.config()
    config.num_labels = 4
    model = Small4ForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    assert_same_weights(AutoModelForSequenceClassification.from_pretrained(tmp_path), model)


def test_compiled_full_graph_equals_eager_mode(model: Small4ForCausalLM) -> None:
    ids = text_ids(CASE, length=33)
    text = model.model.language_model
    torch.compiler.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids).logits, atol=1e-5, rtol=0)
        cache = StaticCache(config=text.config, max_cache_len=64)
        expected = model(ids).logits
        got = [model(ids[:, :20], past_key_values=cache).logits]
        got += [compiled(ids[:, i : i + 1], past_key_values=cache).logits for i in range(20, 33)]
    torch.testing.assert_close(torch.cat(got, dim=1), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_compiled_by_inductor_equals_eager_mode() -> None:
    """One layer, for each is compiled anew."""
    model = Case(seed=21, text={"num_hidden_layers": 1}).models()[0]
    ids = text_ids(CASE, length=33)
    torch.compiler.reset()
    compiled = torch.compile(model.forward, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    inputs = image_inputs(CASE, SIZES)
    gradients = []
    for checkpointing in (False, True):
        model = CASE.models()[0].double().train()
        model.set_experts_implementation("eager")  # the grouped kernel has no float64
        inputs["pixel_values"] = inputs["pixel_values"].double()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        # What is recorded inside a reentrant checkpoint carries no gradient, so the balance loss is left to the other
        # kind.
        model(**inputs, labels=inputs["input_ids"], output_router_logits=not reentrant).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() >= {"lm_head.weight", "model.language_model.layers.0.mlp.gate.weight"}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_balance_loss_without_gradient_draws_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = CASE.models()[0].train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    ids = text_ids(CASE, length=8)
    with caplog.at_level("WARNING"):
        model(ids, labels=ids, output_router_logits=True)
    assert "use_reentrant" in caplog.text


def test_every_parameter_gets_a_gradient() -> None:
    model = CASE.models()[0].train()
    inputs = image_inputs(CASE, SIZES)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_training_keeps_no_cache(model: Small4ForCausalLM) -> None:
    ids = text_ids(CASE, length=8)
    assert model(ids).past_key_values is not None
    model.train()
    try:
        assert model(ids).past_key_values is None
    finally:
        model.eval()


def test_router_losses(model: Small4ForCausalLM) -> None:
    """The balance loss is transformers' for Mixtral; both losses leave padding out; both are weighted into the loss."""
    ids = text_ids(CASE, length=20)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    config = model.config.text_config
    config.router_aux_loss_coef, config.router_z_loss_coef = 0.5, 0.25
    try:
        with torch.no_grad():
            plain = model(ids, attention_mask=mask, labels=ids)
            output = model(ids, attention_mask=mask, labels=ids, output_router_logits=True)
    finally:
        config.router_aux_loss_coef, config.router_z_loss_coef = 0.001, 0.0
    kept = mask.flatten().bool()
    logits = torch.stack([layer[kept] for layer in output.router_logits]).flatten(0, 1)
    chosen = torch.zeros_like(logits).scatter(-1, logits.topk(2, dim=-1).indices, 1.0)
    balance = 8 * (chosen.mean(0) * logits.softmax(-1).mean(0)).sum()
    torch.testing.assert_close(output.aux_loss, balance)
    z = logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(output.loss, plain.loss + 0.5 * balance + 0.25 * z)


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"prefill_chunk_size": 13},
        {"prompt_lookup_num_tokens": 4},
    ],
)
def test_every_way_of_generating_gives_the_same_tokens(model: Small4ForCausalLM, options: dict) -> None:
    inputs = image_inputs(CASE, SIZES)
    expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, **options), expected)


def test_assisted_generation_gives_the_same_tokens(model: Small4ForCausalLM) -> None:
    assistant = Case(seed=22).models()[0]
    ids = text_ids(CASE, batch=1)
    assert torch.equal(model.generate(ids, assistant_model=assistant, **GREEDY), model.generate(ids, **GREEDY))


def test_beams_and_returned_sequences_repeat_images(model: Small4ForCausalLM) -> None:
    inputs = image_inputs(CASE, SIZES)
    options = GREEDY | {"num_beams": 3, "num_return_sequences": 2}
    cached = model.generate(**inputs, **options)
    assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))
    assert cached.shape[0] == 2


def test_rows_with_images_in_one_batch(model: Small4ForCausalLM) -> None:
    """Two prompts of different length with one image each, left-padded, equal the two alone."""
    singles = [image_inputs(Case(seed=seed), [size]) for seed, size in ((21, (56, 84)), (23, (28, 28)))]
    length = max(s["input_ids"].shape[1] for s in singles)
    ids, mask = torch.full((2, length), 11), torch.zeros(2, length, dtype=torch.long)
    pixels = torch.zeros(2, 3, 56, 84)
    for row, single in enumerate(singles):
        n = single["input_ids"].shape[1]
        ids[row, -n:], mask[row, -n:] = single["input_ids"][0], 1
        height, width = single["image_sizes"][0].tolist()
        pixels[row, :, :height, :width] = single["pixel_values"][0]
    sizes = torch.cat([s["image_sizes"] for s in singles])
    together = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, image_sizes=sizes, **GREEDY)
    for row, single in enumerate(singles):
        alone = model.generate(**single, **GREEDY)
        assert torch.equal(together[row, length:], alone[0, single["input_ids"].shape[1] :])


def test_embeddings_in_place_of_ids(model: Small4ForCausalLM) -> None:
    inputs = image_inputs(CASE, SIZES)
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        embedded = model(inputs_embeds=model.get_input_embeddings()(ids), **inputs).logits
        torch.testing.assert_close(embedded, model(input_ids=ids, **inputs).logits, atol=1e-5, rtol=0)


def test_wrong_inputs_say_what_to_do(model: Small4ForCausalLM) -> None:
    inputs = image_inputs(CASE, SIZES)
    with pytest.raises(ValueError, match=r"\[IMG\] ids"):
        model(**inputs | {"input_ids": inputs["input_ids"][:, :-30]})
    with pytest.raises(ValueError, match=r"image_sizes\[0\] = \(30, 84\).*multiple of 28"):
        model(**inputs | {"image_sizes": torch.tensor([[30, 84], [28, 56]])})
    with pytest.raises(ValueError, match="one \\(height, width\\) per image"):
        model(**inputs | {"image_sizes": inputs["image_sizes"][:1]})
    with pytest.raises(ValueError, match="exactly one"):
        model(input_ids=inputs["input_ids"], inputs_embeds=torch.zeros(1, 3, 64))
    text_only = Case(vision=None).models()[0]
    with pytest.raises(ValueError, match="text-only"):
        text_only(**inputs)


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor made inside."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor)]
        self.elements = max(self.elements, *made, 0)
        return out


def test_vision_memory_is_linear_in_images(model: Small4ForCausalLM) -> None:
    """No tensor of the tower grows with the square of the number of images."""
    largest = []
    for count in (2, 8):
        with torch.no_grad(), LargestTensor() as mode:
            model.get_image_features(torch.randn(count, 3, 112, 112))
        largest.append(mode.elements)
    assert largest[1] <= 4 * largest[0]
