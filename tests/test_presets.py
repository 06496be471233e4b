"""`preset="latency"` gives the greedy answers of a plain call in every form, its parts by themselves, and what all
presets have in common.
"""

from pathlib import Path

import pytest
import torch
from generation_cases import EOS, PAD, batch, chat
from oracle import image_inputs, text_ids
from preset_cases import CASE, CHATS, GREEDY
from tiny_checkpoint import write_tiny_checkpoint
from transformers import CompileConfig, GenerationConfig, pipeline
from transformers.generation.streamers import BaseStreamer

from modeling_small4 import LatentCache, Small4ForCausalLM, attention_blocks, generation_hooks, generation_presets
from modeling_small4.commands.cli import main
from modeling_small4.generation_presets import DRAFT, PromptDrafts

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Small4ForCausalLM:
    return CASE.models()[0]


def compiled() -> CompileConfig:
    """Compile also on a CPU, in one graph, and let torch itself run it."""
    config = CompileConfig(fullgraph=True, backend="eager")
    config._compile_all_devices = True
    return config


def repeated_ids(length: int = 60) -> torch.Tensor:
    return torch.tensor([[1, *([50, 51, 52, 53, 54, 55, 56] * length)[: length - 1]]])


# latency


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "latent"},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 11},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 4},
    ],
)
def test_latency_gives_the_tokens_of_a_plain_call(model: Small4ForCausalLM, options: dict, rows: int) -> None:
    if rows > 1 and "prompt_lookup_num_tokens" in options:
        pytest.skip("transformers assists one row")
    ids = text_ids(CASE, batch=rows)
    plain = {name: value for name, value in options.items() if name != "prompt_lookup_num_tokens"}
    expected = model.generate(ids, **GREEDY, **plain)
    assert torch.equal(model.generate(ids, **GREEDY, **options, preset="latency"), expected)


@pytest.mark.parametrize("mode", [None, "none", "high"])
def test_latency_with_reasoning_drafts_and_checks_several_tokens_at_once(
    repeating: Small4ForCausalLM, mode: str | None
) -> None:
    """A long answer of a small model runs in circles."""
    ids, widths = torch.tensor([chat(*[50, 51, 52, 53, 54] * 6)]), []
    settings = GenerationConfig(max_new_tokens=160, pad_token_id=PAD, suppress_tokens=[EOS])
    options = {"reasoning_mode": mode, "max_thinking_tokens": 60 if mode else None}
    expected = repeating.generate(ids, settings, **options)
    handle = repeating.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    got = repeating.generate(ids, settings, **options, preset="latency")
    handle.remove()
    assert torch.equal(got, expected)
    assert set(widths[1:]) == {1, 1 + DRAFT}
    assert len(widths) < expected.shape[1] - ids.shape[1]


def test_latency_reads_images_once(model: Small4ForCausalLM) -> None:
    inputs = image_inputs(CASE, [(56, 84), (112, 56)])
    expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, preset="latency"), expected)


def test_latency_samples_as_a_plain_call(model: Small4ForCausalLM) -> None:
    ids, drawn = text_ids(CASE), []
    for preset in (None, "latency"):
        torch.manual_seed(5)
        drawn.append(model.generate(ids, **GREEDY | {"do_sample": True}, preset=preset))
    assert torch.equal(*drawn)


def test_latency_makes_all_room_at_first(model: Small4ForCausalLM) -> None:
    ids = text_ids(CASE, batch=2)
    options = GREEDY | {"max_new_tokens": 400, "min_new_tokens": 400, "return_dict_in_generate": True}
    cache = model.generate(
        ids, **options | {"max_new_tokens": 4, "min_new_tokens": 4}, preset="latency"
    ).past_key_values
    assert {layer.stores[0].shape[2] for layer in cache.layers} == {256}
    generated = model.generate(ids, **options, preset="latency")
    assert {layer.stores[0].shape[2] for layer in generated.past_key_values.layers} == {90 + 400 - 1}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"cache_implementation": "latent_8bit"}])
def test_latency_compiles_one_graph_over_a_static_cache(repeating: Small4ForCausalLM, options: dict) -> None:
    """Twice, with different prompts: what is compiled is used again, and nothing of the first call is left in it."""
    torch.compiler.reset()
    for ids in (torch.tensor([chat(*[50, 51, 52, 53, 54] * 6)]), torch.tensor([chat(*[70, 71, 72] * 4)])):
        wanted = options | {"max_new_tokens": 24}
        expected = repeating.generate(ids, **wanted)
        got = repeating.generate(
            ids, **wanted, preset="latency", compile_config=compiled(), return_dict_in_generate=True
        )
        assert torch.equal(got.sequences, expected)
        assert got.past_key_values.is_compileable
    assert "forward" not in repeating.__dict__


def test_disable_compile_is_kept_to(model: Small4ForCausalLM) -> None:
    output = model.generate(
        text_ids(CASE, batch=1),
        **GREEDY,
        preset="latency",
        disable_compile=True,
        return_dict_in_generate=True,
    )
    assert not output.past_key_values.is_compileable


# the static latent cache


@pytest.mark.parametrize("bits", [16, 8])
def test_static_cache_holds_what_the_growing_one_holds(bits: int) -> None:
    held, tokens = [], torch.randn(2, 1, 30, 48)
    for static in (False, True):
        cache = LatentCache(CASE.config(), bits=bits, capacity=40, static=static)
        for piece in tokens.split([20, 1, 9], dim=2):
            cache.update(piece, None, 1)
        cache.layers[1].crop(-4)
        held.append(cache.layers[1].update(tokens[:, :, :2], None)[0][:, :, :28])
    assert torch.equal(*held)


def test_static_cache_equals_the_growing_one(model: Small4ForCausalLM) -> None:
    """In chunks, after forgetting, after reordering rows, and started anew."""
    ids = text_ids(CASE)
    outputs = []
    for static in (False, True):
        cache = LatentCache(model.config, capacity=100, static=static)
        with torch.no_grad():
            got = [model(piece, past_key_values=cache).logits for piece in ids.split([40, 1, 9, 40], dim=1)]
            cache.crop(-33)
            got.append(model(ids[:, 57:60], past_key_values=cache).logits)
            cache.reorder_cache(torch.tensor([1, 1]))
            got.append(model(ids[:, 60:61], past_key_values=cache).logits)
            assert (int(cache.get_seq_length()), cache.nbytes) == (61, 61 * 2 * 3 * 48 * 4)
            cache.reset()
            got.append(model(ids[:, :7], past_key_values=cache).logits)
        outputs.append(torch.cat(got, dim=1))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)
    for wrong in (3, -91):
        with pytest.raises(ValueError, match="number to forget"):
            cache.crop(wrong)


def test_static_cache_by_name(model: Small4ForCausalLM) -> None:
    ids = text_ids(CASE, batch=1)
    for name in ("latent_static", "latent_static_8bit"):
        plain = name.replace("_static", "")
        expected = model.generate(ids, **GREEDY, cache_implementation=plain)
        assert torch.equal(model.generate(ids, **GREEDY, cache_implementation=name), expected)
        assisted = model.generate(ids, **GREEDY, cache_implementation=name, prompt_lookup_num_tokens=3)
        assert torch.equal(assisted, expected)


def test_static_room_comes_in_few_sizes() -> None:
    sizes = {generation_hooks.static_room(length) for length in range(1, 300_000, 7)}
    assert len(sizes) < 26
    for length in (1, 512, 513, 16384, 16385, 262144):
        assert length <= generation_hooks.static_room(length) <= max(512, 2 * length)


# assisted decoding


def test_assisted_decoding_goes_on_from_a_filled_cache_in_chunks(
    model: Small4ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second turn reads only what is new; a long prompt never goes through the model at once."""
    monkeypatch.setattr(generation_hooks, "LONG_PROMPT", 40)
    monkeypatch.setattr(generation_hooks, "CHUNK", 32)
    monkeypatch.setattr(attention_blocks, "LONG", 1)
    widths: list[int] = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    ids, cache = text_ids(CASE, batch=1), LatentCache(model.config)
    first = model.generate(ids, **GREEDY, preset="latency", past_key_values=cache)
    more = torch.cat((first, ids[:, :10]), dim=1)
    second = model.generate(more, **GREEDY, preset="latency", past_key_values=cache)
    handle.remove()
    assert max(widths) == 32
    assert sum(widths) < 2 * (90 + 24) + 10 + 2 * 24 * DRAFT
    monkeypatch.undo()
    assert torch.equal(second, model.generate(more, **GREEDY))


def test_assisted_decoding_given_only_what_is_new(model: Small4ForCausalLM) -> None:
    """transformers would feed the cached beginning again where it is given, and cannot tell where it is not."""
    ids = text_ids(CASE, batch=1, length=40)
    expected = model.generate(ids, **GREEDY)[:, 40:]
    for options in ({"preset": "latency"}, {"prompt_lookup_num_tokens": 3}):
        for given in (ids, ids[:, 25:]):
            cache = LatentCache(model.config)
            with torch.no_grad():
                model(ids[:, :25], past_key_values=cache)
            got = model.generate(given, attention_mask=torch.ones_like(ids), **GREEDY, **options, past_key_values=cache)
            assert torch.equal(got[:, given.shape[1] :], expected)


def test_assisted_decoding_of_long_prompts_with_images(
    model: Small4ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = image_inputs(CASE, [(56, 84), (112, 56)])
    expected = model.generate(**inputs, **GREEDY)
    monkeypatch.setattr(generation_hooks, "LONG_PROMPT", 40)
    monkeypatch.setattr(generation_hooks, "CHUNK", 16)
    for options in ({"preset": "latency"}, {"prompt_lookup_num_tokens": 4}):
        assert torch.equal(model.generate(**inputs, **GREEDY, **options), expected)


def test_assisted_decoding_still_records_attentions(model: Small4ForCausalLM) -> None:
    ids = text_ids(CASE, batch=1, length=12)
    options = GREEDY | {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True}
    model.set_attn_implementation("eager")
    try:
        plain = model.generate(ids, **options)
        drafted = model.generate(ids, **options, prompt_lookup_num_tokens=3)
    finally:
        model.set_attn_implementation("sdpa")
    assert torch.equal(plain.sequences, drafted.sequences)
    assert len(plain.attentions) == len(drafted.attentions)


def test_drafts_are_what_followed_the_last_time() -> None:
    drafts = PromptDrafts(max_length=40)
    ids = torch.tensor([[9, 1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3, 8, 8, 8, 8, 1, 2, 3]])
    assert drafts.get_candidates(ids)[0][0, 19:].tolist() == [8, 8, 8, 8]
    drafts.update_candidate_strategy(ids, torch.empty(0), 0)  # all wrong: now six tokens have to repeat
    assert drafts.get_candidates(ids)[0].shape == ids.shape
    again = torch.cat((ids, ids), dim=1)
    assert PromptDrafts(100).get_candidates(again)[0][0, 38:].tolist() == [8, 8, 8, 8]
    assert PromptDrafts(42).get_candidates(again)[0].shape == again.shape  # no room for a whole draft
    assert PromptDrafts(100).get_candidates(torch.tensor([[1, 2, 3]]))[0].shape == (1, 3)


# what all of them say and do where they are given


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "speed"}, "only 'latency', 'throughput'"),
        ({"preset": "latency", "use_cache": False}, "use_cache=False"),
        ({"preset": "latency", "cache_implementation": "static"}, "cache_implementation='static'"),
        ({"preset": "throughput", "cache_implementation": "offloaded"}, "cache_implementation='offloaded'"),
        ({"preset": "throughput", "use_cache": False}, "use_cache=False"),
        ({"preset": "throughput", "streamer": BaseStreamer()}, "streamer"),
        ({"preset": "throughput", "return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"preset": "throughput", "prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"preset": "throughput", "position_ids": torch.arange(30)[None]}, "position_ids"),
        ({"preset": "throughput", "attention_mask": torch.tensor([[1] * 20 + [0] * 10])}, "padded on the left"),
    ],
)
def test_mistakes_are_named(model: Small4ForCausalLM, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model.generate(text_ids(CASE, batch=1, length=30), max_new_tokens=2, **options)


def test_generation_config_carries_the_preset_and_arguments_win(
    repeating: Small4ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = generation_presets.check_preset
    monkeypatch.setattr("modeling_small4.generation.check_preset", lambda value: seen.append(value) or original(value))
    inputs = batch(CHATS)
    expected = repeating.generate(**inputs, max_new_tokens=9)
    settings = GenerationConfig(max_new_tokens=9, eos_token_id=EOS, pad_token_id=PAD, preset="throughput")
    assert torch.equal(repeating.generate(**inputs, generation_config=settings), expected)
    assert torch.equal(repeating.generate(**inputs, generation_config=settings, preset="latency"), expected)
    assert seen == [None, "throughput", "latency"]


def test_pipelines_and_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_tiny_checkpoint(tmp_path))
    pipe = pipeline("text-generation", model=folder)
    chats = [[{"role": "user", "content": text}] for text in ("What is 2 + 3?", "Hello there, my friend")]
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = pipe(chats, **options)
    for preset in ("latency", "throughput"):
        assert pipe(chats, batch_size=2, **options, preset=preset) == expected
    seeing = pipeline("image-text-to-text", model=folder)
    wanted = seeing(text=chats[0], max_new_tokens=8)
    assert seeing(text=chats[0], max_new_tokens=8, generate_kwargs={"preset": "latency"}) == wanted
    said = []
    for extra in ([], ["--preset", "latency"]):
        assert main(["generate", "What is 2 + 3?", "--model", folder, "--max-new-tokens", "8", *extra]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["generate", "Hi", "--preset", "fast"]) == 2
