"""Long answers and long prompts: absorbed, expanded, naive and transformers' own attention agree wherever they can be
put; memory is bounded.
"""

import json
import sys
from pathlib import Path
from typing import Any

import forked
import naive
import pytest
import torch
from oracle import Case, image_inputs, text_ids
from transformers import DynamicCache

from model_card.bench import cache as bench_cache
from model_card.bench import long_prompt
from model_card.demo_recipe.tasks.data import TASKS
from model_card.evals.demo_checkpoint import THOUGHTFUL
from modeling_small4 import LatentCache, Small4ForCausalLM, attention, attention_blocks, generation_hooks
from modeling_small4.attention import Small4Attention
from modeling_small4.cache import LatentLayer
from modeling_small4.rope import text_positions

torch.set_num_threads(1)
CASE = Case(seed=51)
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 11}


@pytest.fixture(scope="module")
def pair() -> tuple:
    return CASE.models()


@pytest.fixture
def model(pair: tuple) -> Small4ForCausalLM:
    return pair[0]


def force(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """All attention goes the same way: "absorbed" or "expanded"; "as it pays" leaves the switch alone."""
    if path != "as it pays":
        monkeypatch.setattr(Small4Attention, "absorbing_pays", lambda self, queries, keys: path == "absorbed")


PATHS = ["absorbed", "expanded", "as it pays"]


@pytest.fixture(scope="module")
def long_answer(pair: tuple) -> torch.Tensor:
    """By transformers' own class, which expands; its softmax scale is set to the release's."""
    return pair[1].generate(text_ids(CASE, batch=2, length=20), **GREEDY, max_new_tokens=512)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_greedy_tokens_equal_transformers_over_512_tokens(
    model: Small4ForCausalLM, long_answer: torch.Tensor, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 tokens reach far beyond YaRN's original context."""
    force(monkeypatch, path)
    assert long_answer.shape[1] == 532
    assert torch.equal(model.generate(long_answer[:, :20], **GREEDY, max_new_tokens=512), long_answer)


@pytest.mark.parametrize(
    ("shape", "fused"), [({}, 512), ({"kv_lora_rank": 20, "v_head_dim": 40, "qk_nope_head_dim": 8}, 512),
    ({"v_head_dim": 40, "qk_nope_head_dim": 8}, 1), ({"v_head_dim": 12}, 1)],
)  # fmt: skip
def test_absorbed_expanded_and_naive_agree_in_outputs_and_gradients(
    shape: dict, fused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer over its own input, all of whose parameters get a gradient; also where values are made as wide as keys,
    or keys as values.
    """
    monkeypatch.setattr(attention, "FUSED", fused)
    torch.manual_seed(0)
    ours = Case(seed=52, text=shape, vision=None).models()[0]
    layer = ours.model.language_model.layers[0].self_attn
    hidden = torch.randn(24, 64)
    allowed = torch.ones(24, 24, dtype=torch.bool).tril()
    results = []
    for path in ("naive", "absorbed", "expanded"):
        layer.zero_grad()
        given = hidden.clone().requires_grad_()
        if path == "naive":
            output = naive.attention(layer, given, allowed)
        else:
            force(monkeypatch, path)
            positions = text_positions(ours.config.text_config, torch.arange(24)[None])
            output = layer(given[None], positions, allowed[None, None])[0][0]
        output.square().mean().backward()
        results.append([output.detach(), given.grad, *(p.grad.clone() for p in layer.parameters())])
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("room", [0, 7])
@pytest.mark.parametrize(("queries", "keys"), [(2, 3), (5, 11), (16, 40)])
def test_few_queries_in_half_precision_are_attended_each_as_alone(
    queries: int, keys: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the path of the first alone, over what each sees; `room`: of a cache of fixed size, which the mask hides."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(Small4Attention, "absorbing_pays", lambda self, *sizes: not asked.append(sizes))
    layer = Case(seed=53, vision=None).models()[0].bfloat16().model.language_model.layers[0].self_attn
    query, tokens = torch.randn(2, 4, queries, 32).bfloat16(), torch.randn(2, 1, keys + room, 48).bfloat16()
    shown = torch.ones(2, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
    shown[1, ..., :1] = False
    mask = torch.nn.functional.pad(shown, (0, room), value=False)
    with torch.no_grad():
        got = layer.attend(query, tokens, mask)[0]
        for place in range(queries):
            seen = keys - queries + place + 1
            alone = layer.attend(query[:, :, [place]], tokens[:, :, :seen], shown[:, :, [place], :seen])[0]
            torch.testing.assert_close(got[:, [place]], alone, atol=1e-2, rtol=1e-2)
    assert asked[0] == (1, keys + room - queries + 1)
    assert asked[1] == (1, keys - queries + 1)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("widths", [(32, 32), (40, 24), (24, 40)])
def test_one_block_of_keys_is_plain_attention(
    widths: tuple[int, int], padded: bool, causal: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and the logarithm of the sum, also where values are wider or narrower than keys."""
    monkeypatch.setattr(attention_blocks, "_fused", lambda device: fused)
    generator = torch.Generator().manual_seed(sum(widths))
    query, key, value = (torch.randn(2, 3, 17, width, generator=generator) for width in (widths[0], *widths))
    padding = torch.arange(17) >= torch.tensor([[0], [5]]) if padded else None
    part = attention_blocks.attend_part(query, key, value, 0.3, padding, causal)
    allowed = torch.ones(2, 1, 17, 17, dtype=torch.bool)
    allowed = allowed.tril() if causal else allowed
    allowed = allowed if padding is None else allowed & padding[:, None, None]
    scores = (query @ key.mT * 0.3).masked_fill(~allowed, -torch.inf)
    seen = allowed.any(-1).expand(2, 3, 17)
    torch.testing.assert_close(part.output[seen], (scores.softmax(-1) @ value)[seen], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(part.logsumexp[..., 0], scores.logsumexp(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("uncompiled_flex")
@pytest.mark.parametrize("kernel", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("path", PATHS)
def test_few_and_many_queries_over_a_cache(
    model: Small4ForCausalLM, path: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of 1, several and many new tokens, with and without padding on the left."""
    force(monkeypatch, path)
    if path == "expanded":  # with keys and values equally wide
        monkeypatch.setattr(attention, "FUSED", 1)
    ids, lengths = text_ids(CASE, batch=2, length=60), (60, 37)
    mask = torch.tensor([[0] * (60 - n) + [1] * n for n in lengths])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = [model(ids[row : row + 1, -n:], use_cache=False).logits[0] for row, n in enumerate(lengths)]
        model.set_attn_implementation(kernel)
        try:
            for padded in (False, True):
                cache, got = LatentCache(model.config), []
                for begin, end in ((0, 30), (30, 31), (31, 36), (36, 60)):
                    options = {"attention_mask": mask[:, :end], "position_ids": positions[:, begin:end]}
                    given = options if padded else {}
                    got.append(model(ids[:, begin:end], past_key_values=cache, **given).logits)
                logits = torch.cat(got, dim=1)
                for row in range(1 if not padded else 2):
                    torch.testing.assert_close(logits[row, -lengths[row] :], expected[row], atol=1e-5, rtol=0)
        finally:
            model.set_attn_implementation("sdpa")


@pytest.mark.slow
def test_flex_attention_is_compiled_on_the_latents(model: Small4ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """For many queries and for one. torch 2.13 cannot build its CPU kernel for padding of a second length: its C++
    names an undeclared variable.
    """
    force(monkeypatch, "absorbed")
    ids = text_ids(CASE, batch=1, length=31)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        model.set_attn_implementation("flex_attention")
        try:
            cache = LatentCache(model.config)
            got = [model(part, past_key_values=cache).logits for part in ids.split([30, 1], dim=1)]
        finally:
            model.set_attn_implementation("sdpa")
    torch.testing.assert_close(torch.cat(got, dim=1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 5},
        {"preset": "latency"},
        {"cache_implementation": "latent_static"},
        {"past_key_values": "transformers' own"},
    ],
)
def test_every_way_of_decoding_on_every_path(
    pair: tuple, path: str, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, host = pair
    ids = text_ids(CASE, batch=1, length=50)
    expected = host.generate(ids, **GREEDY, max_new_tokens=24, num_beams=options.get("num_beams", 1))
    force(monkeypatch, path)
    if "past_key_values" in options:
        options = {"past_key_values": DynamicCache()}
    assert torch.equal(ours.generate(ids, **GREEDY, max_new_tokens=24, **options), expected)


@pytest.mark.parametrize("path", PATHS)
def test_packed_sequences_on_every_path(model: Small4ForCausalLM, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = text_ids(CASE, batch=1, length=33)
    with torch.no_grad():
        expected = torch.cat([model(part, use_cache=False).logits for part in ids.split([20, 13], dim=1)], dim=1)
        force(monkeypatch, path)
        positions = torch.cat((torch.arange(20), torch.arange(13)))[None]
        got = model(ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_lora_on_the_up_projection_counts_before_and_after_merging() -> None:
    """Decoding must use the adapted weight: a stale one would give the plain model's tokens."""
    peft = pytest.importorskip("peft")
    ours, host = CASE.models()
    plain = ours.generate(text_ids(CASE, batch=1), **GREEDY, max_new_tokens=20)
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=r".*language_model.*kv_b_proj", init_lora_weights=False)
    adapted = peft.get_peft_model(ours, config).eval()
    factors = {n: m.get_delta_weight("default") for n, m in ours.named_modules() if n.endswith("kv_b_proj")}
    with torch.no_grad():
        for name, module in host.named_modules():
            if name in factors:
                module.weight += factors[name]
    ids = text_ids(CASE, batch=1)
    expected = host.generate(ids, **GREEDY, max_new_tokens=20)
    assert not torch.equal(expected, plain)
    for options in ({}, {"preset": "latency"}):
        assert torch.equal(adapted.generate(ids, **GREEDY, max_new_tokens=20, **options), expected)
    adapted.merge_adapter()
    assert torch.equal(adapted.generate(ids, **GREEDY, max_new_tokens=20), expected)
    adapted.unmerge_adapter()
    with adapted.disable_adapter():
        assert torch.equal(adapted.generate(ids, **GREEDY, max_new_tokens=20), plain)
    merged = adapted.merge_and_unload()
    layer = merged.model.language_model.layers[0].self_attn
    assert layer.absorbing_pays(1, 500)
    assert torch.equal(merged.generate(ids, **GREEDY, max_new_tokens=20), expected)


def test_gradient_reaches_an_adapter_through_a_cached_step(model: Small4ForCausalLM) -> None:
    """One new token behind a cache: that the weight is used where it lies must not cut its gradient off."""
    ids = text_ids(CASE, batch=1, length=20)
    gradients = []
    for cached in (False, True):
        weight = model.model.language_model.layers[0].self_attn.kv_b_proj.weight
        if cached:
            cache = LatentCache(model.config)
            model(ids[:, :19], past_key_values=cache)
            output = model(ids[:, 19:], past_key_values=cache).logits[0, -1]
        else:
            output = model(ids, use_cache=False).logits[0, -1]
        gradients.append(torch.autograd.grad(output.square().mean(), weight)[0])
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_full_graph_with_each_static_cache(model: Small4ForCausalLM) -> None:
    """One graph serves every step, whatever is in the cache."""
    ids = text_ids(CASE, length=33)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        for bits, allowed in ((16, 1e-5), (8, 0.5)):
            torch.compiler.reset()
            graphs: list[Any] = []
            compiled = torch.compile(
                model.forward,
                fullgraph=True,
                backend=lambda graph, inputs: graphs.append(graph) or graph.forward,  # noqa: B023
            )
            cache = LatentCache(model.config, bits=bits, capacity=64, static=True)
            got = [model(ids[:, :20], past_key_values=cache).logits]
            got += [compiled(ids[:, i : i + 1], past_key_values=cache).logits for i in range(20, 33)]
            torch.testing.assert_close(torch.cat(got, dim=1), expected, atol=allowed, rtol=0)
            assert len(graphs) == 1


# long prompts


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "options", [{}, {"preset": "latency"}, {"num_beams": 2}, {"cache_implementation": "latent_static"}]
)
def test_an_image_across_the_border_of_two_chunks(
    model: Small4ForCausalLM, kernel: str, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = image_inputs(CASE, [(112, 56), (56, 84)])
    beams = {"num_beams": options["num_beams"]} if "num_beams" in options else {}
    expected = model.generate(**inputs, **GREEDY, **beams, max_new_tokens=12)
    places = (inputs["input_ids"][0] == 10).nonzero().flatten().tolist()
    border = 24
    assert border - 1 in places
    assert border in places
    monkeypatch.setattr(generation_hooks, "LONG_PROMPT", 8)
    monkeypatch.setattr(generation_hooks, "CHUNK", border)
    monkeypatch.setattr(attention_blocks, "LONG", 1)
    monkeypatch.setattr(attention, "BLOCK", 16)
    model.set_attn_implementation(kernel)
    try:
        assert torch.equal(model.generate(**inputs, **GREEDY, **options, max_new_tokens=12), expected)
    finally:
        model.set_attn_implementation("sdpa")


def test_padded_rows_of_long_prompts_with_images(model: Small4ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = image_inputs(CASE, [(56, 84)]), image_inputs(CASE, [(112, 56)])
    rows = [one["input_ids"][0].tolist(), two["input_ids"][0].tolist()]
    width = max(map(len, rows)) + 2
    pixels = torch.zeros(2, 3, 112, 84)
    pixels[0, :, :56, :84], pixels[1, :, :112, :56] = one["pixel_values"][0], two["pixel_values"][0]
    inputs = {
        "input_ids": torch.tensor([[11] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": pixels,
        "image_sizes": torch.cat((one["image_sizes"], two["image_sizes"])),
    }
    expected = model.generate(**inputs, **GREEDY, max_new_tokens=12)
    monkeypatch.setattr(generation_hooks, "LONG_PROMPT", 8)
    monkeypatch.setattr(generation_hooks, "CHUNK", 17)
    monkeypatch.setattr(attention_blocks, "LONG", 1)
    assert torch.equal(model.generate(**inputs, **GREEDY, max_new_tokens=12), expected)


@pytest.mark.slow
def test_a_long_prompt_takes_the_memory_of_its_cache_and_one_chunk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark at a size that a test can afford; with a prompt read at once, memory is far beyond the bound."""
    monkeypatch.setattr(long_prompt, "child", forked.child)
    monkeypatch.setattr(sys, "argv", ["long_prompt", "--threads", "1", "--check", "3000", "--lengths", "12288"])
    long_prompt.main()
    row = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]["12288 tokens"]
    assert row["within"]
    assert row["of_sum"] <= 1.5
    unchunked = (
        "import modeling_small4.generation_hooks as p, runpy, sys; p.LONG_PROMPT = 10**9; sys.argv = "
        "['long_prompt', *sys.argv[1:]]; "
    )
    unchunked += "runpy.run_module('model_card.bench.long_prompt', run_name='__main__')"
    done = forked.python("-c", unchunked, "--threads", "1", "--alone", "12288")
    assert not json.loads(done.stdout.splitlines()[-1])["rows"]["alone"]["within"]


# 8 bits, and host memory


@pytest.mark.slow
def test_eight_bits_leave_the_demo_s_greedy_answers_as_they_are_but_for_guesses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cache", "--threads", "1", "--dtype", "float32", "--rows", "4"])
    bench_cache.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert rows["bfloat16"]["bytes_per_token"] == 36 * 320 * 2 == 23_040
    assert rows["8 bits"]["bytes_per_token"] == 36 * (320 + 2 * 2) == 11_664
    for task in TASKS:
        for mode in ("none", "high"):
            row = rows[f"{task}, {mode}"]
            assert 0 < row["mean_logit_error"] < 0.05 * row["spread_of_logits"]
            # Without a thought, these four are guessed: of two tokens that are about as likely, 8 bits may choose the
            # other.
            if (task, mode) not in {(guessed, "none") for guessed in THOUGHTFUL}:
                assert row["same_answers"] == row["prompts"] > 0, (task, mode)


def test_the_stored_eight_bit_answers_change_where_the_demo_guesses_and_no_more_than_by_rounding() -> None:
    results = Path(__file__).resolve().parent.parent / "model_card/results"
    rows = json.loads((results / "cache.json").read_text("utf-8"))["rows"]
    assert {f"{task}, {mode}" for task in TASKS for mode in ("none", "high")} <= rows.keys()
    changed = {name for name, row in rows.items() if row.get("same_answers") != row.get("prompts")}
    assert {name for name in changed if name.endswith(", none")} <= {f"{task}, none" for task in THOUGHTFUL}
    high = [row for name, row in rows.items() if name.endswith(", high")]
    assert sum(row["same_answers"] for row in high) >= sum(row["same_answers_of_eager"] for row in high)


class FakeStream:
    """Stands in for a stream of a GPU on a machine without one."""

    def __enter__(self) -> "FakeStream":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def wait_stream(self, other: "FakeStream") -> None:
        pass


def test_offloading_hands_every_layer_over_and_back(model: Small4ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU would do, but for the GPU: transformers' cache calls each layer's offload and prefetch around its
    update.
    """
    ids, order = text_ids(CASE), []
    monkeypatch.setattr(torch, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: FakeStream())
    for name in ("offload", "prefetch", "update"):
        original = getattr(LatentLayer, name)

        def noted(layer: LatentLayer, *args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            order.append((name, layer))
            return original(layer, *args, **kwargs)

        monkeypatch.setattr(LatentLayer, name, noted)
    for options in ({"cache_implementation": "offloaded"}, {"cache_implementation": "offloaded", "num_beams": 2}):
        order.clear()
        got = model.generate(ids, **GREEDY, **options, max_new_tokens=6, return_dict_in_generate=True)
        beams = {"num_beams": options.get("num_beams", 1)}
        assert torch.equal(got.sequences, model.generate(ids, **GREEDY, **beams, max_new_tokens=6))
        cache = got.past_key_values
        assert type(cache) is LatentCache
        assert cache.offloading
        first = [(name, cache.layers.index(layer)) for name, layer in order[: 3 * len(cache.layers)]]
        assert first == [
            (n, i) for at in range(3) for n, i in (("prefetch", (at + 1) % 3), ("update", at), ("offload", at))
        ]
    layer = cache.layers[0]
    layer.offload()
    assert {store.device.type for store in layer.stores} == {"cpu"}
    layer.prefetch()
    assert {store.device for store in layer.stores} == {layer.device}
