"""What a configuration or an argument says is done, or refused in a sentence: never dropped, never right by luck."""

import warnings
from typing import Any

import pytest
import torch
from oracle import Case, image_inputs, text_ids
from transformers import DynamicCache, StaticCache

from modeling_small4 import (
    LatentCache,
    Small4Config,
    Small4ForCausalLM,
    Small4ForSequenceClassification,
    Small4ForTokenClassification,
    Small4Model,
    Small4TextModel,
)
from modeling_small4 import modeling_small4 as modeling

torch.set_num_threads(1)
CASE = Case(seed=11)
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 11, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def pair() -> tuple:
    return CASE.models()


@pytest.mark.parametrize(
    "kind", [Small4ForCausalLM, Small4Model, Small4ForSequenceClassification, Small4ForTokenClassification]
)
@pytest.mark.parametrize("images", [False, True])
def test_return_dict_of_the_configuration(kind: type, images: bool) -> None:
    torch.manual_seed(0)
    model = kind(CASE.config()).eval()
    given = image_inputs(CASE, [(56, 84)]) if images else {"input_ids": text_ids(CASE, batch=1, length=12)}
    with torch.no_grad():
        expected = model(**given)
        asked = model(**given, return_dict=False)
        model.config.return_dict = False
        told = model(**given)
        again = model(**given, return_dict=True)
    assert isinstance(asked, tuple)
    assert isinstance(told, tuple)
    assert type(again) is type(expected)
    for found in (asked, told):
        assert len(found) == len(expected.to_tuple())
        torch.testing.assert_close(found[0], expected[0])


def test_return_dict_of_the_text_model_and_with_labels() -> None:
    model = Small4TextModel(CASE.config().text_config).eval()
    model.config.return_dict = False
    ids = text_ids(CASE, batch=1, length=12)
    assert isinstance(model(ids), tuple)
    whole = Small4ForCausalLM(CASE.config())
    whole.config.return_dict = whole.config.text_config.return_dict = False
    loss, logits = whole(ids, labels=ids)[:2]
    assert (loss.ndim, logits.shape) == (0, (1, 12, 1100))
    assert whole.eval().generate(ids, **GREEDY).shape == (1, 18)


@pytest.mark.parametrize("where", ["text", "top", "both"])
def test_tied_embeddings_wherever_it_is_said(where: str, tmp_path: Any) -> None:
    said = {"tie_word_embeddings": True}
    given = CASE.config().to_dict()
    text = given.pop("text_config") | (said if where != "top" else {})
    given |= said if where != "text" else {"tie_word_embeddings": False}
    config = Small4Config(**given, text_config=text)
    assert config.tie_word_embeddings
    model = Small4ForCausalLM(config)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = Small4ForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_tied_embeddings_said_later() -> None:
    config = CASE.config()
    config.text_config.tie_word_embeddings = True
    with pytest.raises(ValueError, match=r"tie_word_embeddings=False.*set both alike"):
        Small4ForCausalLM(config)
    config.tie_word_embeddings = True
    assert Small4ForCausalLM(config).lm_head.weight is not None


def test_of_the_releases_layout_only_the_top_counts() -> None:
    """As transformers reads it."""
    given = CASE.host_config().to_dict()
    given["text_config"]["tie_word_embeddings"] = True
    config = Small4Config.from_dict(given)
    assert not config.tie_word_embeddings
    assert not config.text_config.tie_word_embeddings


@pytest.mark.parametrize("by", ["argument", "configuration"])
def test_leaving_early_is_refused_by_name(pair: tuple, by: str) -> None:
    ours, _ = pair
    options: dict[str, Any] = {"assistant_early_exit": 2}
    if by == "configuration":
        settings = ours.generation_config.__class__(**options)
        options = {"generation_config": settings}
    with pytest.raises(ValueError, match="assistant_early_exit=2 is not supported"):
        ours.generate(text_ids(CASE, batch=1, length=12), max_new_tokens=3, **options)


@pytest.mark.usefixtures("uncompiled_flex")
@pytest.mark.parametrize("kernel", ["sdpa", "flex_attention", "eager"])
def test_attention_weights_that_a_kernel_does_not_give(
    pair: tuple, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = pair
    said: list[str] = []
    monkeypatch.setattr(modeling.logger, "warning_once", said.append)
    ours.set_attn_implementation(kernel)
    try:
        with torch.no_grad():
            result = ours(text_ids(CASE, batch=1, length=12), output_attentions=True)
    finally:
        ours.set_attn_implementation("sdpa")
    if kernel == "eager":
        assert not said
        assert len(result.attentions) == 3
    else:
        assert len(said) == 1
        assert kernel in said[0]
        assert "eager" in said[0]


@pytest.mark.parametrize("layer", [-1, 1, -2])
def test_what_became_of_the_images(layer: int) -> None:
    """Field by field as transformers' Mistral3."""
    case = Case(seed=12, top={"vision_feature_layer": layer})
    ours, host = case.models()
    given = image_inputs(case, [(56, 84), (28, 28)])
    with torch.no_grad():
        plain = ours(**given)
        a = ours(**given, output_hidden_states=True).image_outputs
        shown = host(**given, output_hidden_states=True).image_outputs  # of the hidden states only those that it needs
        assert shown.keys() <= a.keys()
        b = host.get_image_features(given["pixel_values"], given["image_sizes"], output_hidden_states=True)
        features = ours.get_image_features(given["pixel_values"], given["image_sizes"], output_hidden_states=True)
    assert plain.image_outputs.last_hidden_state is not None
    torch.testing.assert_close(torch.cat(plain.image_outputs.pooler_output), plain.image_hidden_states)
    for found in (a, features):
        for name in ("hidden_states", "pooler_output"):
            mine, theirs = getattr(found, name), getattr(b, name)
            assert len(mine) == len(theirs)
            for x, y in zip(mine, theirs, strict=True):
                torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


def test_attentions_of_the_tower() -> None:
    ours, _ = CASE.models()
    ours.set_attn_implementation("eager")
    with torch.no_grad():
        result = ours(**image_inputs(CASE, [(56, 84)]), output_attentions=True)
    assert len(result.image_outputs.attentions) == 2
    assert len(result.attentions) == 3


CACHES = {
    "latent": LatentCache,
    "latent with room": lambda config: LatentCache(config, capacity=512),
    "8 bits": lambda config: LatentCache(config, bits=8),
    "of fixed size": lambda config: LatentCache(config, capacity=64, static=True),
    "dynamic": lambda config: DynamicCache(config=config.text_config),
}


SEVERAL: list[dict[str, Any]] = [
    {"num_beams": 3},
    {"num_beams": 2, "num_return_sequences": 2},
    {"num_return_sequences": 3, "do_sample": True},
]
HELD = [(kind, (1, 10, 19)[(i + j) % 3], options) for i, kind in enumerate(CACHES) for j, options in enumerate(SEVERAL)]


@pytest.mark.parametrize(("kind", "held", "options"), HELD)
def test_a_filled_cache_with_beams_and_several_sequences(
    pair: tuple, kind: str, held: int, options: dict[str, Any]
) -> None:
    """As without a cache: its rows are repeated, however much room it has."""
    ours, _ = pair
    ids = text_ids(CASE, batch=2, length=20)
    given = GREEDY | options
    torch.manual_seed(3)
    expected = ours.generate(ids, **given)
    cache = CACHES[kind](ours.config)
    with torch.no_grad():
        ours(ids[:, :held], past_key_values=cache)
    torch.manual_seed(3)
    found = ours.generate(ids, past_key_values=cache, **given)
    assert found.shape == expected.shape
    if kind != "8 bits":
        assert torch.equal(found, expected)


def test_caches_that_cannot_be_gone_on_with(pair: tuple) -> None:
    ours, _ = pair
    ids = text_ids(CASE, batch=2, length=20)
    for make in CACHES.values():
        cache = make(ours.config)
        with torch.no_grad():
            ours(ids[:, :10], past_key_values=cache)
            with pytest.raises(ValueError, match="holds 2 rows, but the batch has 1"):
                ours(ids[:1, 10:], past_key_values=cache)
            with pytest.raises(ValueError, match="holds 2 rows for 1 prompts"):
                ours.generate(ids[:1], past_key_values=cache, num_beams=3, **GREEDY)
    cache = StaticCache(config=ours.config.text_config, max_cache_len=64)
    with torch.no_grad():
        ours(ids[:, :10], past_key_values=cache)
    with pytest.raises(ValueError, match="A filled StaticCache cannot be repeated"):
        ours.generate(ids, past_key_values=cache, num_beams=2, **GREEDY)
    assert torch.equal(ours.generate(ids, past_key_values=cache, **GREEDY), ours.generate(ids, **GREEDY))


def test_prefix_tuning_is_refused_and_prompt_tuning_works() -> None:
    peft = pytest.importorskip("peft")
    ids = text_ids(CASE, batch=2, length=12)
    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    prefixed = peft.get_peft_model(CASE.models()[0], peft.PrefixTuningConfig(**options))
    with pytest.raises(ValueError, match="Prefix tuning"):
        prefixed(ids)
    prompted = peft.get_peft_model(CASE.models()[0], peft.PromptTuningConfig(**options))
    assert prompted(ids).logits.shape == (2, 16, 1100)


def short(positions: int) -> Small4ForCausalLM:
    torch.manual_seed(0)
    return Small4ForCausalLM(Case(text={"max_position_embeddings": positions}).config()).eval()


def test_more_tokens_than_positions_are_said_with_their_numbers() -> None:
    model = short(24)
    ids = text_ids(CASE, batch=1, length=30)
    with pytest.warns(UserWarning, match=r"30 tokens are read, but the model has 24 positions"), torch.no_grad():
        model(ids)
    with pytest.warns(UserWarning, match=r"30 tokens are read, but the model has 24 positions"):
        model.generate(ids, **GREEDY)
    with pytest.warns(UserWarning, match=r"20 tokens and 800000 new ones are allowed, 800020 in all.* 24 positions"):
        model.generate(ids[:, :20], max_new_tokens=800000, stopping_criteria=[lambda *_, **__: torch.tensor([True])])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.generate(ids[:, :18], **GREEDY)
        with torch.no_grad():
            cache = model(ids[:, :20]).past_key_values
            model(ids[:, 20:24], past_key_values=cache)
    with torch.no_grad(), pytest.warns(UserWarning, match=r"25 tokens are read, 24 of them cached"):
        model(ids[:, 24:25], past_key_values=cache)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", UserWarning)
        model(ids[:, 25:26], past_key_values=cache)  # said once
