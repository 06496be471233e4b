"""What a forward takes its arguments to mean: padding, packed texts, masks and caches of every kind, against each row
alone.
"""

import importlib
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import Case, text_ids
from transformers import DynamicCache, StaticCache
from transformers.utils import logging

from modeling_small4 import LatentCache, Small4ForCausalLM
from modeling_small4 import forward_rules as rules

torch.set_num_threads(1)
CASE = Case(seed=7)
LENGTH, CUT, TOLERANCE = 44, 40, 2e-5


@pytest.fixture(scope="module")
def pair() -> tuple:
    return CASE.models()


def left(*lengths: int) -> torch.Tensor:
    """A mask `[rows, LENGTH]` of rows padded on the left."""
    return torch.tensor([[0] * (LENGTH - n) + [1] * n for n in lengths])


def right(*lengths: int) -> torch.Tensor:
    """Rows padded on the right up to CUT; what is decoded comes behind the padding."""
    return torch.tensor([[1] * n + [0] * (CUT - n) + [1] * (LENGTH - CUT) for n in lengths])


def counted(mask: torch.Tensor) -> torch.Tensor:
    return mask.cumsum(1) - 1


# name -> mask [rows, LENGTH], position_ids [rows, LENGTH]
MASKED: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
    "clamped to 0": (left(44, 37, 20), counted(left(44, 37, 20)).clamp(min=0)),
    "as generate fills them": (left(44, 37, 20), counted(left(44, 37, 20)).masked_fill(left(44, 37, 20) == 0, 1)),
    "-1 at padding": (left(44, 37, 20), counted(left(44, 37, 20))),
    "from 1": (left(44, 37, 20), left(44, 37, 20).cumsum(1)),
    "noise at padding": (
        left(44, 37, 20),
        torch.where(left(44, 37, 20) == 1, counted(left(44, 37, 20)), torch.arange(LENGTH).flip(0) % 7),
    ),
    "padding counted": (left(44, 37, 20), torch.arange(LENGTH).expand(3, -1)),
    "one row of positions": (left(44, 37, 20), torch.arange(LENGTH)[None]),
    "right": (right(40, 33, 5), torch.arange(LENGTH).expand(3, -1)),
    "right, padding not counted": (right(40, 33, 5), counted(right(40, 33, 5)).clamp(min=0)),
    "right, 0 at padding": (right(40, 33, 5), counted(right(40, 33, 5)).masked_fill(right(40, 33, 5) == 0, 0)),
    "with gaps": (left(44, 37, 20), counted(left(44, 37, 20)).clamp(min=0) * 3),
    "far": (left(44, 37, 20), counted(left(44, 37, 20)).clamp(min=0) + 1000),
    "holes": (
        left(44, 37, 20) * (torch.arange(LENGTH) % 5 != 2),
        counted(left(44, 37, 20) * (torch.arange(LENGTH) % 5 != 2)).clamp(min=0),
    ),
    "one row all padding": (left(44, 37, LENGTH - CUT), counted(left(44, 37, LENGTH - CUT)).clamp(min=0)),
}

CACHES: dict[str, Callable[[Any], Any]] = {
    "none": lambda config: None,
    "latent": LatentCache,
    "latent of fixed size": lambda config: LatentCache(config, capacity=64, static=True),
    "dynamic": lambda config: DynamicCache(config=config.text_config),
    "plain dynamic": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config=config.text_config, max_cache_len=64),
}


@torch.no_grad()
def by_hand(
    model: Small4ForCausalLM, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None, cache: Any
) -> torch.Tensor:
    """Logits of all tokens: a prompt of CUT tokens, then one after the other with the cache that came back."""
    out = []
    for begin, end in ((0, CUT), *((i, i + 1) for i in range(CUT, ids.shape[1]))):
        given = {} if mask is None else {"attention_mask": mask[:, :end]}
        given |= {} if positions is None else {"position_ids": positions[:, begin:end]}
        result = model(ids[:, begin:end], past_key_values=cache, use_cache=True, **given)
        cache = result.past_key_values
        assert cache is not None
        assert int(cache.get_seq_length()) == end
        out.append(result.logits)
    return torch.cat(out, dim=1)


@torch.no_grad()
def check_rows(host: Any, got: torch.Tensor, ids: torch.Tensor, shown: torch.Tensor, positions: torch.Tensor) -> None:
    """Each row's shown tokens against transformers' class on that row alone, at the same positions."""
    for row in range(ids.shape[0]):
        keep = shown[row].bool()
        alone = host(
            ids[row : row + 1, keep], position_ids=positions.expand(ids.shape[0], -1)[row : row + 1, keep]
        ).logits
        torch.testing.assert_close(got[row, keep], alone[0], atol=TOLERANCE * float(alone.abs().max()), rtol=0)


# Every kind of mask with our own cache and with none; a cache of each other kind with padding on each side.
KINDS_BY_CACHE = {"none": list(MASKED), "latent": list(MASKED)}
SIDES = ["as generate fills them", "right, padding not counted", "holes", "one row all padding"]


@pytest.mark.parametrize(
    ("kind", "cache"), [(kind, cache) for cache in CACHES for kind in KINDS_BY_CACHE.get(cache, SIDES)]
)
def test_padding_is_no_packing(pair: tuple, kind: str, cache: str) -> None:
    ours, host = pair
    mask, positions = MASKED[kind]
    ids = torch.where(mask == 1, text_ids(CASE, batch=3, length=LENGTH), 11)
    got = by_hand(ours, ids, mask, positions, CACHES[cache](ours.config))
    assert got.isfinite().all()
    check_rows(host, got, ids, mask, positions)


@pytest.mark.usefixtures("uncompiled_flex")
@pytest.mark.parametrize("kernel", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
@pytest.mark.parametrize("kind", ["clamped to 0", "right, 0 at padding", "one row all padding"])
def test_masks_of_every_dtype_and_kernel(pair: tuple, kind: str, dtype: torch.dtype, kernel: str) -> None:
    ours, host = pair
    mask, positions = MASKED[kind]
    ids = torch.where(mask == 1, text_ids(CASE, batch=3, length=LENGTH), 11)
    ours.set_attn_implementation(kernel)
    try:
        with torch.no_grad():
            result = ours(ids, attention_mask=mask.to(dtype), position_ids=positions)
    finally:
        ours.set_attn_implementation("sdpa")
    assert result.past_key_values is not None
    check_rows(host, result.logits, ids, mask, positions)


def test_embeddings_in_place_of_ids(pair: tuple) -> None:
    ours, host = pair
    mask, positions = MASKED["clamped to 0"]
    ids = torch.where(mask == 1, text_ids(CASE, batch=3, length=LENGTH), 11)
    with torch.no_grad():
        result = ours(inputs_embeds=ours.get_input_embeddings()(ids), attention_mask=mask, position_ids=positions)
    assert result.past_key_values is not None
    check_rows(host, result.logits, ids, mask, positions)


@pytest.mark.parametrize("cache", CACHES)
def test_positions_alone_and_nothing_at_all(pair: tuple, cache: str) -> None:
    """Without a mask: from 0, from 1, far, one row for all; and none."""
    ours, host = pair
    ids = text_ids(CASE, batch=2, length=LENGTH)
    plain = torch.arange(LENGTH)[None]
    for positions in (None, plain, plain + 1, plain.expand(2, -1) + 500):
        got = by_hand(ours, ids, None, positions, CACHES[cache](ours.config))
        check_rows(host, got, ids, torch.ones_like(ids), plain if positions is None else positions)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("kind", ["clamped to 0", "from 1", "right, 0 at padding"])
def test_a_mask_of_four_dimensions_says_all(pair: tuple, kind: str, dtype: torch.dtype) -> None:
    """Positions that start anew part nothing then: what is packed is in the mask, and so is what is padded."""
    ours, host = pair
    mask, positions = MASKED[kind]
    ids = torch.where(mask == 1, text_ids(CASE, batch=3, length=LENGTH), 11)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    seen = (causal[None] & mask[:, None, :].bool())[:, None]
    if dtype != torch.bool:
        seen = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        result = ours(ids, attention_mask=seen, position_ids=positions, use_cache=True)
        check_rows(host, result.logits, ids, mask, positions)
        step = {
            "attention_mask": torch.cat((mask, torch.ones(3, 1, dtype=mask.dtype)), 1),
            "position_ids": positions[:, -1:] + 1,
        }
        following = ours(ids[:, :1], past_key_values=result.past_key_values, **step).logits
    longer = (
        torch.cat((x, y), 1) for x, y in ((ids, ids[:, :1]), (mask, mask[:, -1:]), (positions, positions[:, -1:] + 1))
    )
    check_rows(host, torch.cat((result.logits, following), 1), *longer)


@pytest.mark.parametrize(("use_cache", "made"), [(None, True), (True, True), (False, False)])
def test_a_cache_is_made_where_one_is_wanted_but_not_in_training(
    pair: tuple, use_cache: bool | None, made: bool
) -> None:
    ours, _ = pair
    ids = text_ids(CASE, batch=1, length=5)
    with torch.no_grad():
        assert (ours(ids, use_cache=use_cache).past_key_values is not None) == made
        ours.train()
        try:
            assert ours(ids, use_cache=use_cache).past_key_values is None
        finally:
            ours.eval()


@pytest.mark.parametrize(("heads", "width", "fits"), [(1, 48, True), (1, 32, True), (1, 49, False), (4, 32, False)])
def test_a_cache_that_another_model_filled_is_refused(heads: int, width: int, fits: bool) -> None:
    """transformers' quantized caches hold the latent alone as the key."""
    cache = DynamicCache()
    cache.update(torch.zeros(2, heads, 3, width), torch.zeros(2, heads, 3, width), 0)
    said = f"holds keys of {heads} heads and {width} numbers, .* of 48 numbers"
    with nullcontext() if fits else pytest.raises(ValueError, match=said):
        rules.check_cache(cache, 2, 48)


PACKED = {
    "from 0": ([20, 13, 11], 0),
    "from 1": ([20, 13, 11], 1),
    "of one token": ([1, 1, 42], 0),
    "two of one length": ([22, 22], 0),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padded", [None, "no", "left", "right", "between"])
@pytest.mark.parametrize("kind", PACKED)
def test_packed_texts_with_and_without_a_mask(pair: tuple, kind: str, padded: str | None, training: bool) -> None:
    """padded: None is no mask at all."""
    ours, host = pair
    lengths, first = PACKED[kind]
    ids = text_ids(CASE, batch=1, length=LENGTH)
    positions = torch.cat([torch.arange(n) for n in lengths])[None] + first
    mask = None if padded is None else torch.ones_like(ids)
    place = {"left": 0, "right": LENGTH, "between": lengths[0]}.get(padded or "")
    if place is not None:
        ids, positions, mask = (
            torch.cat((x[:, :place], torch.full((1, 6), fill), x[:, place:]), 1)
            for x, fill in ((ids, 11), (positions, 0), (mask, 0))
        )
    ours.train(training)
    try:
        with torch.no_grad():
            result = ours(ids, position_ids=positions, attention_mask=mask, use_cache=None if training else False)
    finally:
        ours.eval()
    assert result.past_key_values is None
    shown = torch.ones_like(ids).bool() if mask is None else mask.bool()
    got, texts = result.logits[0, shown[0]], ids[shown].split(lengths)
    with torch.no_grad():
        alone = [host(text[None], position_ids=torch.arange(len(text))[None] + first).logits[0] for text in texts]
    torch.testing.assert_close(got, torch.cat(alone), atol=TOLERANCE * float(got.abs().max()), rtol=0)


def test_rows_of_which_one_is_packed(pair: tuple) -> None:
    ours, host = pair
    ids = text_ids(CASE, batch=2, length=LENGTH)
    positions = torch.stack((torch.cat((torch.arange(30), torch.arange(14))), torch.arange(LENGTH)))
    for mask in (None, torch.ones_like(ids)):
        with torch.no_grad():
            got = ours(ids, position_ids=positions, attention_mask=mask, use_cache=False).logits
            parts = [host(ids[:1, :30]).logits[0], host(ids[:1, 30:]).logits[0], host(ids[1:]).logits[0]]
        torch.testing.assert_close(got.flatten(0, 1), torch.cat(parts), atol=TOLERANCE * float(got.abs().max()), rtol=0)


def test_no_cache_of_packed_texts_is_said(pair: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair
    said: list[str] = []
    monkeypatch.setattr(rules.logger, "warning_once", said.append)
    ids = text_ids(CASE, batch=1, length=LENGTH)
    positions = torch.arange(LENGTH)[None] % 20
    with torch.no_grad():
        assert ours(ids, position_ids=positions, use_cache=True).past_key_values is None
        assert len(said) == 1
        assert "packed" in said[0]
        ours(ids, position_ids=positions, use_cache=False)
        ours(
            ids,
            position_ids=positions % 50,
            attention_mask=torch.ones_like(ids),
            past_key_values=LatentCache(ours.config),
        )
    assert len(said) == 1


@pytest.mark.parametrize("cache", ["latent", "dynamic"])
def test_an_empty_cache_says_that_a_row_is_one_text(pair: tuple, cache: str) -> None:
    ours, host = pair
    ids, positions = text_ids(CASE, batch=1, length=LENGTH), torch.arange(LENGTH)[None] % 20
    with torch.no_grad():
        got = ours(ids, position_ids=positions, past_key_values=CACHES[cache](ours.config)).logits
        expected = host(ids, position_ids=positions, use_cache=True).logits
    torch.testing.assert_close(got, expected, atol=TOLERANCE * float(got.abs().max()), rtol=0)


@pytest.mark.parametrize("cache", ["latent", "dynamic"])
def test_masks_that_end_too_early_are_refused(pair: tuple, cache: str) -> None:
    ours, _ = pair
    ids = text_ids(CASE, batch=2, length=LENGTH)
    made = CACHES[cache](ours.config)
    with torch.no_grad():
        ours(ids[:, :CUT], past_key_values=made)
        for columns in (1, LENGTH - CUT, LENGTH - 1):
            with pytest.raises(ValueError, match=f"{columns} columns for {CUT} cached and {LENGTH - CUT} new"):
                ours(ids[:, CUT:], past_key_values=made, attention_mask=torch.ones(2, columns))
        with pytest.raises(ValueError, match="10 columns"):
            ours(ids, attention_mask=torch.ones(2, 10))
        got = ours(ids[:, CUT:], past_key_values=made, attention_mask=torch.ones(2, LENGTH + 9)).logits
        torch.testing.assert_close(got, ours(ids).logits[:, CUT:], atol=1e-4, rtol=0)


def test_padding_in_training_changes_no_gradient(pair: tuple) -> None:
    """A row padded on the left, in training, with clamped positions and with none: as that row alone."""
    ours, _ = pair
    ids = text_ids(CASE, batch=1, length=30)
    padded, mask = torch.cat((torch.full((1, 14), 11), ids), 1), left(30)
    labels = torch.where(mask == 1, padded, -100)
    labels[:, 14] = -100  # no token of the row foretells its first
    weight = ours.model.language_model.layers[0].self_attn.kv_b_proj.weight
    grads = []
    for given in (
        {"input_ids": ids, "labels": ids},
        {"input_ids": padded, "labels": labels, "attention_mask": mask, "position_ids": counted(mask).clamp(min=0)},
    ):
        ours.train()
        try:
            result = ours(**given)
        finally:
            ours.eval()
        assert result.past_key_values is None
        grads.append(torch.autograd.grad(result.loss, weight)[0])
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-4)


def test_every_rule_of_the_table_is_where_it_says() -> None:
    names = set(re.findall(r"`([\w.]+)` ?(?:,|\|$)", rules.__doc__ or "", re.MULTILINE))
    assert len(names) >= 8
    modules = [path.stem for path in Path(rules.__file__).parent.glob("*.py") if path.stem != "__main__"]
    for name in names:
        first, *rest = name.split(".")
        found = [importlib.import_module(f"modeling_small4.{module}") for module in modules if module == first]
        found += [
            getattr(module, first)
            for module in map(importlib.import_module, (f"modeling_small4.{module}" for module in modules))
            if hasattr(module, first)
        ]
        assert found, name
        for attribute in rest:
            assert all(hasattr(each, attribute) for each in found), name


def test_a_masked_row_alone_is_finite(pair: tuple) -> None:
    """Nothing to see at all: no NaN that a batch's sum would take over."""
    ours, _ = pair
    ids = text_ids(CASE, batch=2, length=12)
    mask = torch.ones_like(ids)
    mask[1] = 0
    logging.set_verbosity_error()
    for positions in (None, counted(mask).clamp(min=0)):
        with torch.no_grad():
            result = ours(ids, attention_mask=mask, position_ids=positions)
        assert result.logits.isfinite().all()
        assert result.past_key_values is not None
