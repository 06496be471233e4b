"""Arguments of another shape, dtype or range: one sentence from `forward` and `generate`, before anything is computed.
What transformers' own class takes rightly goes on working, with its numbers.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import Case, image_inputs, text_ids

from modeling_small4 import LatentCache, Small4ForCausalLM
from modeling_small4 import forward_checks as checks

torch.set_num_threads(1)
CASE = Case(seed=23)
VOCABULARY, WIDTH, BATCH, LENGTH = 1100, 64, 2, 9
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 11, "max_new_tokens": 3}
Given = dict[str, Any]


@pytest.fixture(scope="module")
def pair() -> tuple:
    return CASE.models()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return text_ids(CASE, batch=BATCH, length=LENGTH)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.long)


def embeds(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# What is wrong with the prompt, for `forward` and for `generate`.
PROMPTS: dict[str, tuple[Callable[[torch.Tensor], Given], str]] = {
    "first id too many": (
        lambda x: {"input_ids": x.clone().index_fill(1, torch.tensor(3), VOCABULARY)},
        "hold 1100.*0 to 1099",
    ),
    "far id": (lambda x: {"input_ids": torch.full_like(x, 2**40)}, "hold 1099511627776"),
    "negative": (lambda x: {"input_ids": x.clone().index_fill(1, torch.tensor(0), -100)}, "hold -100.*labels only"),
    "float": (lambda x: {"input_ids": x.float()}, "torch.int64 or torch.int32, but are torch.float32"),
    "bool": (lambda x: {"input_ids": x > 5}, "torch.bool"),
    "bytes": (lambda x: {"input_ids": (x % 200).to(torch.uint8)}, "torch.uint8"),
    "one row without batch": (lambda x: {"input_ids": x[0]}, r"\[batch, length\], but have the shape \[9\]"),
    "one dimension too many": (lambda x: {"input_ids": x[None]}, r"shape \[1, 2, 9\]"),
    "no token": (lambda x: {"input_ids": x[:, :0]}, r"shape \[2, 0\]: there is nothing to read"),
    "no row": (lambda x: {"input_ids": x[:0]}, "nothing to read"),
    "a list": (lambda x: {"input_ids": x.tolist()}, "must be a tensor.*but are a list"),
    "an array": (lambda x: {"input_ids": x.numpy()}, "but are a ndarray"),
    "text": (lambda x: {"input_ids": "hello"}, "but are a str"),
    "mask too short": (lambda x: {"input_ids": x, "attention_mask": ones(BATCH, LENGTH - 1)}, "attention_mask.* 8"),
    "mask of other rows": (lambda x: {"input_ids": x, "attention_mask": ones(3, LENGTH)}, "attention_mask.*3"),
    "mask of one dimension": (lambda x: {"input_ids": x, "attention_mask": ones(LENGTH)}, r"attention_mask.*\[9\]"),
    "mask of three": (
        lambda x: {"input_ids": x, "attention_mask": ones(BATCH, LENGTH, LENGTH)},
        r"attention_mask.*\[2, 9, 9\]",
    ),
    "mask a list": (
        lambda x: {"input_ids": x, "attention_mask": [[1] * LENGTH] * BATCH},
        "attention_mask must be a tensor.*a list",
    ),
    "additive flat mask": (
        lambda x: {
            "input_ids": x,
            "attention_mask": torch.zeros(BATCH, LENGTH).index_fill(1, torch.tensor(0), -torch.inf),
        },
        "attention_mask holds -inf.*needs four",
    ),
    "mask of NaN": (
        lambda x: {"input_ids": x, "attention_mask": torch.full((BATCH, LENGTH), torch.nan)},
        "attention_mask holds nan",
    ),
    "embeddings of another width": (
        lambda x: {"inputs_embeds": embeds(BATCH, LENGTH, WIDTH + 1)},
        "65 numbers per token.*hidden_size is 64",
    ),
    "embeddings without batch": (
        lambda x: {"inputs_embeds": embeds(LENGTH, WIDTH)},
        r"inputs_embeds must be \[batch, length, 64\]",
    ),
    "embeddings that are ids": (lambda x: {"inputs_embeds": ones(BATCH, LENGTH, WIDTH)}, "ids go to input_ids"),
    "no embedding": (lambda x: {"inputs_embeds": embeds(BATCH, 0, WIDTH)}, "nothing to read"),
    "positions too few": (
        lambda x: {"input_ids": x, "position_ids": torch.arange(LENGTH - 2)[None]},
        r"position_ids have the shape \[1, 7\]",
    ),
    "a tuple for a cache": (lambda x: {"input_ids": x, "past_key_values": ((embeds(1), embeds(1)),)}, "is a tuple"),
    "a name for a cache": (lambda x: {"input_ids": x, "cache": "latent"}, "is a str.*cache_implementation"),
}

# What only `forward` is given.
FORWARD: dict[str, tuple[Callable[[torch.Tensor], Given], str]] = {
    "ids and embeddings": (lambda x: {"input_ids": x, "inputs_embeds": embeds(BATCH, LENGTH, WIDTH)}, "exactly one"),
    "neither": (lambda x: {}, "exactly one"),
    "positions without rows": (
        lambda x: {"input_ids": x, "position_ids": torch.arange(LENGTH)},
        r"position_ids must be \[2, 9\]",
    ),
    "positions of other rows": (
        lambda x: {"input_ids": x, "position_ids": torch.arange(LENGTH).repeat(3, 1)},
        r"shape \[3, 9\]",
    ),
    "positions of three axes": (
        lambda x: {"input_ids": x, "position_ids": torch.arange(LENGTH).repeat(3, 2, 1)},
        r"shape \[3, 2, 9\]",
    ),
    "positions of bool": (lambda x: {"input_ids": x, "position_ids": torch.ones(1, LENGTH).bool()}, "must be integers"),
    "a negative position": (
        lambda x: {"input_ids": x, "position_ids": torch.arange(LENGTH)[None] - 1},
        "position_ids hold -1",
    ),
    "a negative position that is seen": (
        lambda x: {
            "input_ids": x,
            "position_ids": torch.arange(LENGTH)[None] - 2,
            "attention_mask": torch.tensor([[0] + [1] * (LENGTH - 1)] * BATCH),
        },
        "position_ids hold -2",
    ),
    "dense mask, keys": (
        lambda x: {"input_ids": x, "attention_mask": torch.ones(BATCH, 1, LENGTH, LENGTH - 1).bool()},
        r"\[2, 1, 9, 8\], but must be \[2, 1, 9, 9\]",
    ),
    "dense mask, rows": (
        lambda x: {"input_ids": x, "attention_mask": torch.ones(3, 1, LENGTH, LENGTH).bool()},
        r"\[3, 1, 9, 9\]",
    ),
    "dense mask, queries": (
        lambda x: {"input_ids": x, "attention_mask": torch.ones(BATCH, 1, 4, LENGTH).bool()},
        r"\[2, 1, 4, 9\]",
    ),
    "dense mask of integers": (
        lambda x: {"input_ids": x, "attention_mask": ones(BATCH, 1, LENGTH, LENGTH)},
        "must be bool.*torch.int64",
    ),
    "five dimensions": (
        lambda x: {"input_ids": x, "attention_mask": ones(BATCH, 1, 1, LENGTH, LENGTH)},
        r"\[2, 1, 1, 9, 9\]",
    ),
    "label too high": (
        lambda x: {"input_ids": x, "labels": torch.full_like(x, VOCABULARY)},
        "labels hold 1100.*0 to 1099, or -100",
    ),
    "label -1": (lambda x: {"input_ids": x, "labels": x.clone().index_fill(1, torch.tensor(4), -1)}, "labels hold -1"),
    "labels of floats": (lambda x: {"input_ids": x, "labels": x.float()}, "labels must be of torch.int64"),
    "labels of int32": (lambda x: {"input_ids": x, "labels": x.int()}, "torch.int32"),
    "labels too short": (lambda x: {"input_ids": x, "labels": x[:, 1:]}, r"tensor \[2, 9\].*but are \[2, 8\]"),
    "labels of one row": (lambda x: {"input_ids": x, "labels": x[:1]}, r"but are \[1, 9\]"),
    "labels in one row": (lambda x: {"input_ids": x, "labels": x.flatten()}, r"but are \[18\]"),
    "labels a list": (lambda x: {"input_ids": x, "labels": x.tolist()}, "but are a list"),
    "labels of all, logits of one": (lambda x: {"input_ids": x, "labels": x, "logits_to_keep": 1}, r"tensor \[2, 1\]"),
    "a fraction of logits": (lambda x: {"input_ids": x, "labels": x, "logits_to_keep": 0.5}, "logits_to_keep must be"),
}

IMAGES: dict[str, tuple[Callable[[Given], Given], str]] = {
    "without a batch": (lambda x: {"pixel_values": x["pixel_values"][0]}, r"\[images, 3, height, width\]"),
    "in two batches": (lambda x: {"pixel_values": x["pixel_values"][None]}, r"\[images, 3, height, width\]"),
    "grey": (lambda x: {"pixel_values": x["pixel_values"][:, :1]}, "1 channels, but the vision tower reads 3"),
    "bytes": (lambda x: {"pixel_values": x["pixel_values"].to(torch.uint8)}, "torch.uint8.*normalized"),
    "a list": (lambda x: {"pixel_values": list(x["pixel_values"])}, "must be a tensor.*a list"),
    "no image": (lambda x: {"pixel_values": x["pixel_values"][:0]}, "nothing to read"),
    "sizes of one image": (lambda x: {"image_sizes": x["image_sizes"][0]}, r"image_sizes must be \[images, 2\]"),
    "sizes of three numbers": (lambda x: {"image_sizes": [(3, 56, 84)]}, r"image_sizes must be \[images, 2\]"),
    "sizes of two images": (lambda x: {"image_sizes": x["image_sizes"].repeat(2, 1)}, "2 rows for 1 images"),
    "swapped": (lambda x: {"image_sizes": x["image_sizes"].flip(-1)}, "lie within"),
    "too large": (lambda x: {"image_sizes": x["image_sizes"] * 3}, "lie within"),
}


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("something was computed")


@pytest.fixture
def asleep(pair: tuple, monkeypatch: pytest.MonkeyPatch) -> Small4ForCausalLM:
    """The model, of which no layer may run."""
    ours = pair[0]
    for layer in (ours.model.language_model.layers[0], ours.model.vision_tower.patch_conv):
        monkeypatch.setattr(layer, "forward", never)
    return ours


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts(asleep: Small4ForCausalLM, ids: torch.Tensor, case: str) -> None:
    make, message = PROMPTS[case]
    for call in (asleep, asleep.generate):
        with torch.no_grad(), pytest.raises(ValueError, match=message) as refused:
            call(**make(ids))
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("case", FORWARD)
def test_forward(asleep: Small4ForCausalLM, ids: torch.Tensor, case: str) -> None:
    make, message = FORWARD[case]
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        asleep(**make(ids))


@pytest.mark.parametrize("case", IMAGES)
def test_images(asleep: Small4ForCausalLM, case: str) -> None:
    make, message = IMAGES[case]
    given = image_inputs(CASE, [(56, 84)])
    calls: list[Callable[..., object]] = [asleep, asleep.generate]
    for call in calls:
        with torch.no_grad(), pytest.raises(ValueError, match=message):
            call(**given | make(given))
    pixels = {name: value for name, value in (given | make(given)).items() if name != "input_ids"}
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        asleep.get_image_features(**pixels)


def test_what_generate_alone_can_be_given_wrongly(asleep: Small4ForCausalLM, ids: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"given a dict .*\*\*inputs"):
        asleep.generate({"input_ids": ids})
    with pytest.raises(ValueError, match="input_ids have 1 rows, but inputs_embeds have 2"):
        asleep.generate(ids[:1], inputs_embeds=embeds(BATCH, LENGTH, WIDTH))
    for options in ({"reasoning_mode": "high"}, {"preset": "throughput"}, {"preset": "latency"}, {"num_beams": 2}):
        with pytest.raises(ValueError, match="hold 1100"):
            asleep.generate(torch.full_like(ids, VOCABULARY), **options)


TAKEN: dict[str, Callable[[torch.Tensor], Given]] = {
    "int32": lambda x: {"input_ids": x.int()},
    "labels that are all ignored but one": lambda x: {
        "input_ids": x,
        "labels": torch.where(torch.arange(LENGTH) == 4, x, -100),
    },
    "one row of labels without batch": lambda x: {"input_ids": x[:1], "labels": x[0]},
    "labels of the logits that are kept": lambda x: {"input_ids": x, "labels": x[:, -4:], "logits_to_keep": 4},
    "labels of indices": lambda x: {"input_ids": x, "labels": x[:, :3], "logits_to_keep": torch.tensor([2, 5, 7])},
    "another ignored label": lambda x: {
        "input_ids": x,
        "labels": torch.where(torch.arange(LENGTH) > 4, x, -7),
        "ignore_index": -7,
    },
    "labels shifted already": lambda x: {"input_ids": x, "labels": x[:, :1], "shift_labels": x.roll(-1, 1)},
    "a mask of one row": lambda x: {"input_ids": x, "attention_mask": ones(1, LENGTH)},
    "a mask of numbers of texts": lambda x: {"input_ids": x, "attention_mask": torch.full((BATCH, LENGTH), 3)},
    "a longer mask": lambda x: {"input_ids": x, "attention_mask": ones(BATCH, LENGTH + 4)},
    "a dense mask for all rows and heads": lambda x: {
        "input_ids": x,
        "attention_mask": torch.ones(1, 1, LENGTH, LENGTH).tril().bool(),
    },
    "a dense mask for each head": lambda x: {
        "input_ids": x,
        "attention_mask": torch.ones(BATCH, 4, LENGTH, LENGTH).tril().bool(),
    },
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_transformers_takes_goes_on_working(pair: tuple, ids: torch.Tensor, case: str) -> None:
    ours, host = pair
    given = TAKEN[case](ids)
    with torch.no_grad():
        got, expected = ours(**given), host(**given)
    seen = given.get("attention_mask", ones(*got.logits.shape[:2]))
    seen = seen.bool() if seen.ndim == 2 and seen.shape == got.logits.shape[:2] else ones(*got.logits.shape[:2]).bool()
    torch.testing.assert_close(got.logits[seen], expected.logits[seen], atol=1e-4, rtol=0)
    if expected.loss is not None:
        torch.testing.assert_close(got.loss, expected.loss, atol=1e-4, rtol=0)


def test_a_mask_of_one_row_holds_for_all(pair: tuple, ids: torch.Tensor) -> None:
    """Padding in it too, and for the router's loss."""
    ours, _ = pair
    mask = torch.tensor([[0, 0] + [1] * (LENGTH - 2)])
    with torch.no_grad():
        one = ours(ids, attention_mask=mask, labels=ids, output_router_logits=True)
        each = ours(ids, attention_mask=mask.expand(BATCH, -1), labels=ids, output_router_logits=True)
    torch.testing.assert_close(one.logits, each.logits)
    torch.testing.assert_close(one.loss, each.loss)
    torch.testing.assert_close(one.aux_loss, each.aux_loss)


def test_negative_positions_of_padding(pair: tuple, ids: torch.Tensor) -> None:
    """cumsum(mask) - 1 without a clamp."""
    ours, _ = pair
    mask = torch.tensor([[0, 0] + [1] * (LENGTH - 2)] * BATCH)
    positions = mask.cumsum(1) - 1
    with torch.no_grad():
        got = ours(ids, attention_mask=mask, position_ids=positions).logits
        expected = ours(ids[:, 2:]).logits
    torch.testing.assert_close(got[:, 2:], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_embeddings_of_another_precision(pair: tuple, dtype: torch.dtype) -> None:
    ours, _ = pair
    given = embeds(BATCH, LENGTH, WIDTH).to(dtype)
    with torch.no_grad():
        got, expected = ours(inputs_embeds=given), ours(inputs_embeds=given.float())
        assert torch.equal(got.logits, expected.logits)
        with torch.autocast("cpu", torch.bfloat16):
            assert ours(inputs_embeds=given).logits.isfinite().all()


def test_sizes_of_images_in_a_list(pair: tuple) -> None:
    ours, _ = pair
    given = image_inputs(CASE, [(56, 84), (28, 28)])
    with torch.no_grad():
        expected = ours(**given).logits
        for sizes in (
            given["image_sizes"].tolist(),
            [tuple(x) for x in given["image_sizes"].tolist()],
            given["image_sizes"].numpy(),
        ):
            torch.testing.assert_close(ours(**given | {"image_sizes": sizes}).logits, expected)


def test_a_dense_mask_over_a_cache(pair: tuple, ids: torch.Tensor) -> None:
    ours, _ = pair
    cache = LatentCache(ours.config)
    with torch.no_grad():
        whole = ours(ids).logits
        ours(ids[:, :5], cache=cache)
        dense = torch.ones(LENGTH, LENGTH).tril().bool()[None, None, 5:]
        with pytest.raises(ValueError, match=r"\[1, 1, 4, 4\], but must be \[2, 1, 4, 9\]"):
            ours(ids[:, 5:], cache=cache, attention_mask=dense[..., :4])
        torch.testing.assert_close(
            ours(ids[:, 5:], cache=cache, attention_mask=dense).logits, whole[:, 5:], atol=1e-4, rtol=0
        )


def test_a_larger_vocabulary_has_its_new_ids(ids: torch.Tensor) -> None:
    ours = Case(seed=3).models()[0]
    ours.resize_token_embeddings(VOCABULARY + 8)
    new = torch.full_like(ids, VOCABULARY + 7)
    with torch.no_grad():
        assert ours(new, labels=new).loss.isfinite()
        with pytest.raises(ValueError, match="0 to 1107"):
            ours(new + 1)


def test_nothing_is_looked_at_on_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of a meta tensor cannot be read, as those of a GPU should not be."""
    meta = torch.empty(BATCH, LENGTH, dtype=torch.long, device="meta")
    embedding = torch.nn.Embedding(10, 4, device="meta")
    checks.check_tokens(meta, None, embedding, 4)
    checks.check_positions(meta, None, BATCH, LENGTH)
    checks.check_mask(meta, None, BATCH, LENGTH)
    checks.check_labels(meta, BATCH, LENGTH, 0, 10)
    with pytest.raises(ValueError, match="exactly one"):
        checks.check_tokens(None, None, embedding, 4)
