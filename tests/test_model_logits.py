"""Our logits and greedy tokens are those of transformers' own classes, for many shapes, kernels and ways of feeding the
tokens.
"""

import naive
import pytest
import torch
from oracle import Case, image_inputs, text_ids
from transformers import DynamicCache, StaticCache

TOLERANCE = 1e-5

CASES = {
    "default": Case(),
    "other seed": Case(seed=7),
    "text only": Case(seed=1, vision=None),
    "magnitude correction": Case(seed=2, rule="transformers"),
    "wide heads": Case(
        seed=3, text={"num_attention_heads": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 24, "v_head_dim": 10}
    ),
    "three of twelve experts": Case(
        seed=4, text={"n_routed_experts": 12, "num_experts_per_tok": 3, "n_shared_experts": 2}
    ),
    "expert groups": Case(seed=5, text={"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}),
    "weights not renormalized": Case(seed=6, text={"norm_topk_prob": False}),
    "dense first layer": Case(seed=8, text={"first_k_dense_replace": 1}),
    "full query projection": Case(seed=9, text={"q_lora_rank": None}),
    "projector with bias": Case(seed=10, top={"multimodal_projector_bias": True}),
    "small patches, merged by three": Case(
        seed=11, vision={"patch_size": 8, "num_attention_heads": 3, "image_size": 96}, top={"spatial_merge_size": 3}
    ),
    "mild yarn": Case(
        seed=12, yarn={"factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0, "original_max_position_embeddings": 64}
    ),
}
WITH_IMAGES = [name for name, case in CASES.items() if case.vision is not None]
ALL_KERNELS = ["sdpa", "eager", "flex_attention"]


def sizes_of(case: Case) -> list[tuple[int, int]]:
    unit = case.config().vision_config.patch_size * case.config().spatial_merge_size
    return [(2 * unit, 3 * unit), (4 * unit, unit), (unit, unit)]


@pytest.fixture(scope="module")
def pair() -> tuple:
    return CASES["default"].models()


@pytest.mark.parametrize("name", CASES)
def test_text_logits_equal_transformers(name: str) -> None:
    case = CASES[name]
    ours, host = case.models()
    ids = text_ids(case)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, host(ids).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_image_logits_equal_transformers(name: str) -> None:
    case = CASES[name]
    ours, host = case.models()
    inputs = image_inputs(case, sizes_of(case))
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, host(**inputs).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_equal_transformers(name: str) -> None:
    case = CASES[name]
    ours, host = case.models()
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}
    assert torch.equal(ours.generate(text_ids(case), **options), host.generate(text_ids(case), **options))


@pytest.mark.parametrize("kernel", ALL_KERNELS)
def test_every_attention_kernel_agrees(pair: tuple, kernel: str) -> None:
    ours, host = pair
    case = CASES["default"]
    given = [image_inputs(case, sizes_of(case)), {"input_ids": text_ids(case)}]
    ours.set_attn_implementation(kernel)
    try:
        with torch.no_grad():
            for inputs in given[:1] if kernel == "flex_attention" else given:  # which is compiled for each shape
                torch.testing.assert_close(ours(**inputs).logits, host(**inputs).logits, atol=TOLERANCE, rtol=0)
    finally:
        ours.set_attn_implementation("sdpa")


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("where", ["argument", "configuration", "argument over configuration"])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_in_both_directions(kernel: str, where: str, padded: bool) -> None:
    """For embeddings: `is_causal`, which transformers also reads off the configuration."""
    models, ids = CASES["default"].models(), text_ids(CASES["default"])
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :11] = 0
    wanted, found = {"configuration": {}}.get(where, {"is_causal": where == "argument over configuration"}), []
    for model in models:
        model.set_attn_implementation(kernel)
        if where != "argument":
            model.config.text_config.is_causal = False
        with torch.no_grad():
            found.append(model.model.language_model(ids, attention_mask=mask, **wanted).last_hidden_state[mask.bool()])
            causal = model.model.language_model(ids, attention_mask=mask, is_causal=True).last_hidden_state[mask.bool()]
        assert torch.equal(found[-1], causal) == (where == "argument over configuration")
    torch.testing.assert_close(*found, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", ["default", "expert groups", "three of twelve experts"])
def test_every_experts_implementation_agrees_with_the_naive_one(name: str, implementation: str) -> None:
    ours, _ = CASES[name].models()
    ours.set_experts_implementation(implementation)
    moe = ours.model.language_model.layers[-1].mlp
    hidden = torch.randn(13, 64)
    with torch.no_grad():
        torch.testing.assert_close(moe(hidden[None])[0], naive.experts(moe, hidden), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["default", "magnitude correction", "wide heads", "mild yarn"])
def test_attention_agrees_with_the_naive_one(name: str) -> None:
    ours, _ = CASES[name].models()
    text = ours.model.language_model
    hidden = torch.randn(70, 64)
    recorded = []
    handle = text.layers[0].self_attn.register_forward_hook(
        lambda module, args, output: recorded.append((args[0], output[0]))
    )
    with torch.no_grad():
        text(inputs_embeds=hidden[None])
        handle.remove()
        seen, got = recorded[0]
        expected = naive.attention(text.layers[0].self_attn, seen[0], torch.ones(70, 70, dtype=torch.bool).tril())
    torch.testing.assert_close(got[0], expected, atol=TOLERANCE, rtol=0)


def fed_in_chunks(model: torch.nn.Module, ids: torch.Tensor, chunks: list[int], cache: object) -> torch.Tensor:
    assert sum(chunks) == ids.shape[1]
    return torch.cat([model(piece, past_key_values=cache).logits for piece in ids.split(chunks, dim=1)], dim=1)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("chunks", [[1] * 90, [40, 50], [60] + [1] * 30, [3, 80, 7], [89, 1]])
def test_cached_logits_equal_one_forward(pair: tuple, kernel: str, chunks: list[int]) -> None:
    ours, host = pair
    ids = text_ids(CASES["default"])
    ours.set_attn_implementation(kernel)
    try:
        with torch.no_grad():
            expected = host(ids).logits
            got = fed_in_chunks(ours, ids, chunks, DynamicCache(config=ours.config.text_config))
            torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
            static = StaticCache(config=ours.config.text_config, max_cache_len=128)
            torch.testing.assert_close(fed_in_chunks(ours, ids, chunks, static), expected, atol=TOLERANCE, rtol=0)
    finally:
        ours.set_attn_implementation("sdpa")


@pytest.mark.parametrize("queries", [1, 5])
def test_absorbed_and_expanded_paths_agree_in_outputs_and_gradients(pair: tuple, queries: int) -> None:
    layer = pair[0].model.language_model.layers[0].self_attn
    query, tokens = torch.randn(2, 4, queries, 32), torch.randn(2, 1, 40, 48)
    mask = torch.ones(queries, 40, dtype=torch.bool).tril(40 - queries)[None, None]
    gradients = []
    for path in (layer.absorbed, layer.expanded):
        inputs = [x.clone().requires_grad_() for x in (query, tokens)]
        output, _ = path(*inputs, mask)
        gradients.append([output, *torch.autograd.grad(output.square().sum(), [*inputs, layer.kv_b_proj.weight])])
    for absorbed, expanded in zip(*gradients, strict=True):
        torch.testing.assert_close(absorbed, expanded, atol=TOLERANCE, rtol=1e-5)


def test_decoding_absorbs_and_prefill_expands(pair: tuple) -> None:
    layer = pair[0].model.language_model.layers[0].self_attn
    assert layer.absorbing_pays(1, 500)
    assert not layer.absorbing_pays(500, 500)


def test_left_padded_rows_equal_single_ones(pair: tuple) -> None:
    ours, host = pair
    ids = text_ids(CASES["default"], batch=3, length=50)
    lengths = [50, 31, 8]
    mask = torch.tensor([[0] * (50 - n) + [1] * n for n in lengths])
    padded = torch.where(mask.bool(), ids, 11)
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}
    with torch.no_grad():
        together = ours.generate(padded, attention_mask=mask, **options)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = ours(padded, attention_mask=mask, position_ids=positions).logits
    for row, n in enumerate(lengths):
        alone = host.generate(ids[row : row + 1, -n:], **options)
        assert torch.equal(together[row, 50:], alone[0, n:])
        with torch.no_grad():
            torch.testing.assert_close(
                logits[row, -n:], host(ids[row : row + 1, -n:]).logits[0], atol=TOLERANCE, rtol=0
            )


@pytest.mark.parametrize("kernel", ALL_KERNELS)
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("use_cache", [None, True, False])
def test_packed_sequences_do_not_leak(pair: tuple, kernel: str, with_mask: bool, use_cache: bool | None) -> None:
    ours, host = pair
    lengths = [20, 33, 11]
    ids = text_ids(CASES["default"], batch=1, length=sum(lengths))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    mask = torch.ones_like(ids) if with_mask else None
    ours.set_attn_implementation(kernel)
    try:
        with torch.no_grad():
            got = ours(ids, position_ids=positions, attention_mask=mask, use_cache=use_cache)
            alone = [host(piece).logits[0] for piece in ids.split(lengths, dim=1)]
        torch.testing.assert_close(got.logits[0], torch.cat(alone), atol=TOLERANCE, rtol=0)
        assert got.past_key_values is None
    finally:
        ours.set_attn_implementation("sdpa")


@pytest.mark.parametrize("kernel", ALL_KERNELS)
@pytest.mark.parametrize("padding", [0, 5])
def test_positions_left_out_do_not_part_a_masked_text(pair: tuple, kernel: str, padding: int) -> None:
    ours, host = pair
    ids = text_ids(CASES["default"], batch=2, length=40)
    mask = torch.ones_like(ids)
    mask[1, 40 - padding :] = 0
    positions = torch.cat([torch.arange(15), torch.arange(70, 95)])[None].expand(2, -1)
    ours.set_attn_implementation(kernel)
    try:
        with torch.no_grad():
            got, want = (m(ids, attention_mask=mask, position_ids=positions).logits for m in (ours, host))
        torch.testing.assert_close(got[mask.bool()], want[mask.bool()], atol=TOLERANCE, rtol=0)
    finally:
        ours.set_attn_implementation("sdpa")


@pytest.mark.parametrize("kernel", ALL_KERNELS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_four_dimensional_masks(pair: tuple, kernel: str, dtype: torch.dtype) -> None:
    ours, host = pair
    ids = text_ids(CASES["default"], batch=1, length=24)
    allowed = torch.ones(24, 24, dtype=torch.bool).tril()
    allowed[16:, 3:9] = False
    mask = allowed[None, None]
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = host(ids, attention_mask=additive).logits
        ours.set_attn_implementation(kernel)
        try:
            got = ours(ids, attention_mask=mask if dtype == torch.bool else additive).logits
        finally:
            ours.set_attn_implementation("sdpa")
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_recorded_outputs_equal_transformers(pair: tuple) -> None:
    ours, host = pair
    ids = text_ids(CASES["default"], length=20)
    ours.set_attn_implementation("eager")
    host.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            a = ours(ids, output_attentions=True, output_hidden_states=True, output_router_logits=True)
            b = host(ids, output_attentions=True, output_hidden_states=True, output_router_logits=True)
    finally:
        ours.set_attn_implementation("sdpa")
        host.set_attn_implementation("sdpa")
    assert len(a.attentions) == len(a.router_logits) == 3
    assert len(a.hidden_states) == 4
    for kind in ("attentions", "hidden_states"):
        for x, y in zip(getattr(a, kind), getattr(b, kind), strict=True):
            torch.testing.assert_close(x, y, atol=TOLERANCE, rtol=0)


def test_decoding_records_attentions_of_the_absorbed_path(pair: tuple) -> None:
    ours, host = pair
    ids = text_ids(CASES["default"], batch=1, length=30)
    weights = []
    for model in (ours, host):
        model.set_attn_implementation("eager")
        try:
            with torch.no_grad():
                cache = model(ids[:, :-1], use_cache=True).past_key_values
                weights.append(model(ids[:, -1:], past_key_values=cache, output_attentions=True).attentions)
        finally:
            model.set_attn_implementation("sdpa")
    for mine, theirs in zip(*weights, strict=True):
        torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=0)


def test_images_are_encoded_alone(pair: tuple) -> None:
    """The tower gives each image of a batch what it gives that image alone; padding of the batch is never read."""
    ours, _ = pair
    inputs = image_inputs(CASES["default"], [(56, 84), (112, 28), (28, 28)])
    with torch.no_grad():
        poisoned = inputs["pixel_values"].clone()
        for index, (height, width) in enumerate(inputs["image_sizes"].tolist()):
            poisoned[index, :, height:] = torch.nan
            poisoned[index, :, :, width:] = torch.nan
        together = ours.get_image_features(poisoned, inputs["image_sizes"]).pooler_output
        for index, (height, width) in enumerate(inputs["image_sizes"].tolist()):
            alone = ours.get_image_features(
                inputs["pixel_values"][index : index + 1, :, :height, :width]
            ).pooler_output[0]
            torch.testing.assert_close(together[index], alone, atol=TOLERANCE, rtol=0)


def test_bfloat16_is_as_exact_as_transformers() -> None:
    """Summed over seeds, since one token whose experts are close to a tie decides a single one."""
    errors = torch.zeros(2)
    for seed in range(4):
        case = Case(seed=seed)
        ours, host = case.models()
        ids = text_ids(case)
        with torch.no_grad():
            exact = host(ids).logits
            errors += torch.stack(
                [(model.bfloat16()(ids).logits.float() - exact).abs().median() for model in (ours, host)]
            )
    assert errors[0] <= errors[1]
