"""The loss in chunks is the loss: value and gradients, whatever carries labels; and large logits are never made."""

from typing import Any

import pytest
import torch
from generation_cases import tiny_model
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainingArguments

from modeling_small4 import Small4ForCausalLM

torch.set_num_threads(1)
ROWS, LENGTH = 3, 21


def batch(seed: int = 0, empty: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (ROWS, LENGTH), generator=generator)
    ignored = torch.rand(ids.shape, generator=generator) < (2 if empty else 0.4)
    return {"input_ids": ids, "labels": ids.masked_fill(ignored, -100)}


def gradients(model: Any, chunk: int | None, **given: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole.loss_chunk = chunk
    model.zero_grad()
    output = model(use_cache=False, **given)
    assert (output.logits is None) == (chunk is not None)
    output.loss.backward()
    return output.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(model: Any, chunk: int, **given: Any) -> None:
    (found, mine), (expected, theirs) = (gradients(model, each, **given) for each in (chunk, None))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        difference = (mine[name] - gradient).norm()
        assert difference <= 1e-5 * gradient.norm() + 1e-9, (name, float(difference))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradients(chunk: int, seed: int) -> None:
    same(tiny_model(seed).float().train(), chunk, **batch(seed))


def test_accumulated_batches() -> None:
    given = batch()
    items = 2 * given["labels"][:, 1:].ne(-100).sum()
    for count in (items, int(items)):
        same(tiny_model(0).float().train(), 5, **given, num_items_in_batch=count)


def test_labels_that_are_shifted() -> None:
    given = batch()
    shifted = torch.nn.functional.pad(given["labels"], (0, 1), value=-100)[:, 1:]
    model = tiny_model(0).float().train()
    same(model, 5, **given, shift_labels=shifted.roll(1, 0))


def test_router_losses_padding_and_packed_texts() -> None:
    model = tiny_model(0).float().train()
    model.config.text_config.output_router_logits = True
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[0, :6] = 0
    same(model, 4, **batch(), attention_mask=mask)
    same(model, 4, **batch(), position_ids=(torch.arange(LENGTH) % 8).expand(ROWS, -1))


def test_no_label_at_all() -> None:
    given = batch(empty=True)
    model = tiny_model(0).float().train()
    assert gradients(model, 4, **given)[0].isnan()
    assert gradients(model, None, **given)[0].isnan()
    same(model, 4, **given, num_items_in_batch=5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_adapter_on_the_head(dropout: float) -> None:
    model = tiny_model(0).float().train()
    config = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False, lora_dropout=dropout)
    tuned = get_peft_model(model, config)
    if not dropout:
        same(tuned, 6, **batch())
        return
    torch.manual_seed(3)
    loss, found = gradients(tuned, 1000, **batch())
    torch.manual_seed(3)
    again, repeated = gradients(tuned, 1000, **batch())
    assert loss == again
    assert all(torch.equal(gradient, repeated[name]) for name, gradient in found.items())


def test_logits_are_returned_where_they_are_asked_for() -> None:
    model = tiny_model(0).float().train()
    model.loss_chunk = 4
    given = batch()
    assert model(given["input_ids"]).logits.shape[:2] == (ROWS, LENGTH)
    assert model(given["input_ids"], logits_to_keep=3).logits.shape[:2] == (ROWS, 3)
    assert model.eval()(**given).logits.shape[:2] == (ROWS, LENGTH)


@pytest.mark.parametrize("chunk", [0, -3, True, 2.0, "8"])
def test_a_chunk_that_cannot_be(chunk: Any) -> None:
    model = tiny_model(0).train()
    model.loss_chunk = chunk
    with pytest.raises(ValueError, match=r"loss_chunk is .* at least 1"):
        model(**batch())


class Logits(TorchDispatchMode):
    """The most rows of a tensor as wide as the vocabulary that an operation makes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == self.width:
                self.rows = max(self.rows, tensor.numel() // self.width)
        return made


def test_logits_of_few_tokens_are_made() -> None:
    model = tiny_model(0).float().train()
    ids = torch.randint(3, 60, (2, 40))
    rows = []
    for chunk in (None, 40):
        model.loss_chunk = chunk
        with Logits(model.config.text_config.vocab_size) as seen:
            model(ids, labels=ids, use_cache=False).loss.backward()
        rows.append(seen.rows)
    assert rows == [80, 40]  # the head itself is [32, vocabulary] where it is transposed


def test_trainer_takes_the_same_steps(tmp_path: Any) -> None:
    losses = []
    for chunk in (None, 9):
        model: Small4ForCausalLM = tiny_model(0).float()
        model.loss_chunk = chunk
        rows = [dict(zip(("input_ids", "labels"), pair, strict=True)) for pair in zip(*batch(4).values(), strict=True)]
        arguments = TrainingArguments(
            str(tmp_path), max_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=2, logging_steps=1,
            use_cpu=True, report_to=[], save_strategy="no", eval_strategy="steps", eval_steps=1, learning_rate=1e-2,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        losses.append([e.get("loss", e.get("eval_loss")) for e in trainer.state.log_history[:-1]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] != losses[0][-1]
