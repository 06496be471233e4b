"""`Trainer` on text and pictures with our collator: accumulation, checkpointing, bf16, resume, evaluation; router
losses; expert load.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments, set_seed
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from modeling_small4 import AnswerCallback, ExpertLoadCallback, Small4DataCollator, Small4ForCausalLM, Small4Processor
from modeling_small4.training.expert_load import ExpertLoad, relative


def rows(pictures: bool = True) -> list[dict[str, Any]]:
    """Of unlike lengths, with unlike numbers of labels, some with a picture, some thinking."""
    out = []
    for i in range(16):
        content: Any = "Count to " + str(i)
        if pictures and i % 4 == 1:
            picture = Image.linear_gradient("L").resize((20 + i, 40)).convert("RGB")
            content = [{"type": "image", "image": picture}, {"type": "text", "text": content}]
        answer = {"role": "assistant", "content": " ".join(map(str, range(i + 1)))}
        if i % 3 == 0:
            answer["reasoning_content"] = "up to " + str(i)
        out.append({"messages": [{"role": "user", "content": content}, answer]})
    return out


def load(folder: Path, router: bool = True, **options: Any) -> Small4ForCausalLM:
    model = Small4ForCausalLM.from_pretrained(folder, **options)
    text = model.config.text_config
    text.output_router_logits, text.router_aux_loss_coef, text.router_z_loss_coef = router, 0.1, 0.01
    return model


def arguments(out: Path, **options: Any) -> TrainingArguments:
    usual: dict[str, Any] = {
        "output_dir": str(out), "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
        "use_cpu": True, "report_to": [],
        "remove_unused_columns": False, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "seed": 3,
        "data_seed": 3,
        "lr_scheduler_type": "constant",
    }  # fmt: skip
    return TrainingArguments(**usual | options)


def trained(
    folder: Path, processor: Any, out: Path, form: dict[str, Any] | None = None, router: bool = True, **options: Any
) -> Trainer:
    set_seed(0)
    trainer = Trainer(
        model=load(folder, router), args=arguments(out, **options),
            data_collator=Small4DataCollator(processor, **form or {}), train_dataset=rows()
    )  # fmt: skip
    trainer.train()
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().float() for name, p in trainer.model.named_parameters()}


def logged(trainer: Trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("form", [{}, {"packing": True}], ids=["padded", "packed"])
def test_accumulation_is_exact(folder: Path, processor: Small4Processor, tmp_path: Path, form: dict[str, Any]) -> None:
    """One batch of 4, and 4 batches of 1 with unlike numbers of labels: the same steps."""
    at_once = trained(folder, processor, tmp_path, form, router=False, optim="sgd", learning_rate=0.1)
    bits = trained(
        folder, processor, tmp_path, form, router=False, optim="sgd", learning_rate=0.1,
        per_device_train_batch_size=1, gradient_accumulation_steps=4,
    )  # fmt: skip
    assert logged(bits) == pytest.approx(logged(at_once), rel=1e-4)
    start = load(folder).state_dict()
    for name, weight in weights(at_once).items():
        torch.testing.assert_close(weights(bits)[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    assert any(not torch.allclose(start[name], weight, atol=1e-4) for name, weight in weights(at_once).items())


def test_accumulation_does_not_multiply_router_losses(folder: Path, processor: Small4Processor) -> None:
    """Batches accumulated weigh their own router losses by their share of the labels; so alike batches add up to one of
    them.
    """
    model = load(folder)
    batches = [Small4DataCollator(processor)([row]) for row in rows(False)[2:5]]
    items = sum(batch["labels"].ne(-100).sum() for batch in batches)
    with torch.no_grad():
        parts = [model(**batch, num_items_in_batch=items).loss for batch in batches]
        alone = [model(**batch).loss for batch in batches]
    shares = [batch["labels"].ne(-100).sum() / items for batch in batches]
    torch.testing.assert_close(sum(parts), sum(share * loss for share, loss in zip(shares, alone, strict=True)))


@pytest.mark.parametrize("router", [False, True])
def test_checkpointing_changes_no_gradient(
    folder: Path, processor: Small4Processor, tmp_path: Path, router: bool
) -> None:
    plain = trained(folder, processor, tmp_path, router=router, max_steps=1)
    checkpointed = trained(
        folder, processor, tmp_path, router=router, max_steps=1, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    assert logged(checkpointed) == pytest.approx(logged(plain), rel=1e-5)
    assert logged(checkpointed, "grad_norm") == pytest.approx(logged(plain, "grad_norm"), rel=1e-4)


def test_bf16(folder: Path, processor: Small4Processor, tmp_path: Path) -> None:
    plain, half = (trained(folder, processor, tmp_path, max_steps=4, bf16=bf16) for bf16 in (False, True))
    assert logged(half) == pytest.approx(logged(plain), rel=0.05)
    assert logged(half)[-1] < logged(half)[0]
    assert next(half.model.parameters()).dtype == torch.float32


def test_resume_is_the_same_run(folder: Path, processor: Small4Processor, tmp_path: Path) -> None:
    through = trained(folder, processor, tmp_path / "through", max_steps=4, save_strategy="steps", save_steps=2)
    set_seed(9)
    resumed = Trainer(
        model=load(folder), args=arguments(tmp_path / "resumed", max_steps=4),
            data_collator=Small4DataCollator(processor), train_dataset=rows()
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=str(tmp_path / "through" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for name, weight in weights(through).items():
        torch.testing.assert_close(weights(resumed)[name], weight, rtol=1e-5, atol=1e-6, msg=name)


def test_evaluation_by_loss_and_by_answers(folder: Path, processor: Small4Processor, tmp_path: Path) -> None:
    """The metric is in evaluate's result and history and can choose the best checkpoint; each row is answered in its
    own mode.
    """
    collator, heard = Small4DataCollator(processor), []

    def score(row: dict[str, Any], message: dict[str, Any]) -> float:
        heard.append((row, message))
        return (
            float(row["messages"][0]["content"] == "Count to 0")
            if isinstance(row["messages"][0]["content"], str)
            else 0.0
        )

    callback = AnswerCallback(collator, rows()[:4], score, batch_size=3, max_new_tokens=6, max_thinking_tokens=2)
    trainer = Trainer(
        model=load(folder),
        args=arguments(
            tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
                metric_for_best_model="eval_accuracy",
            load_best_model_at_end=True, greater_is_better=True,
        ),
        data_collator=collator, train_dataset=rows(), eval_dataset=rows()[:6], callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_metric == 0.25
    assert logged(trainer, "eval_accuracy") == [0.25, 0.25]
    assert len(heard) == 8
    for row, message in heard:
        thinks = "reasoning_content" in row["messages"][1]
        assert (message["reasoning_content"] is not None) == thinks
    expected = load(folder)
    expected.load_state_dict(trainer.model.state_dict())
    found = trainer.evaluate()
    assert found["eval_accuracy"] == 0.25
    with torch.no_grad():
        batch = collator(rows()[:6])
        torch.testing.assert_close(
            torch.tensor(found["eval_loss"]), expected.eval()(**batch).loss, rtol=1e-4, atol=1e-4
        )
    assert trainer.model.training is False


def test_balance_layer_by_layer(folder: Path, processor: Small4Processor) -> None:
    """Against transformers' loss for one layer at a time, padding left out; and decoding with a cache, whose mask is
    longer.
    """
    model, batch = load(folder), Small4DataCollator(processor)(rows())
    model.config.text_config.router_aux_loss_per_layer = True
    with torch.no_grad():
        output = model(**batch)
    kept = batch["attention_mask"].flatten().bool()
    expected = [load_balancing_loss_func((logits[kept],), 4, 2) for logits in output.router_logits]
    torch.testing.assert_close(output.aux_loss, sum(expected) / len(expected))
    prompts = Small4DataCollator(processor).prompts(rows()[:3])
    with torch.no_grad():
        cached = model(**prompts, use_cache=True)
        mask = torch.cat([prompts["attention_mask"], torch.ones(3, 2, dtype=torch.long)], dim=1)
        step = model(input_ids=torch.full((3, 2), 1100), attention_mask=mask, past_key_values=cached.past_key_values)
    expected = [load_balancing_loss_func((logits,), 4, 2) for logits in step.router_logits]
    torch.testing.assert_close(step.aux_loss, sum(expected) / len(expected))


def naive_counts(model: Small4ForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Assignments [layers, experts], token by token from the router logits."""
    with torch.no_grad():
        logits = model(**batch, output_router_logits=True).router_logits
    kept = batch["attention_mask"].flatten().tolist() if "attention_mask" in batch else [1] * logits[0].shape[0]
    out = torch.zeros(len(logits), logits[0].shape[1], dtype=torch.long)
    for layer, of_layer in enumerate(logits):
        for keep, token in zip(kept, of_layer, strict=True):
            for expert in token.topk(2).indices.tolist() if keep else ():
                out[layer, expert] += 1
    return out


@pytest.mark.parametrize("form", [{}, {"padding_side": "left"}, {"packing": True}])
def test_expert_load_leaves_out_padding(folder: Path, processor: Small4Processor, form: dict[str, Any]) -> None:
    model = load(folder)
    batch = Small4DataCollator(processor, **form)(rows())
    expected = naive_counts(model, batch)
    counter = ExpertLoad(model)
    model(**batch)
    assert torch.equal(counter.take(), expected)
    assert not counter.take().any()
    counter.remove()
    model(**batch)
    assert not counter.take().any()
    torch.testing.assert_close(relative(expected).mean(-1), torch.ones(len(expected)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_passes_count_once(folder: Path, processor: Small4Processor, reentrant: bool) -> None:
    model = load(folder)
    batch = Small4DataCollator(processor)(rows(False))
    expected = naive_counts(model, batch)
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    counter = ExpertLoad(model, training_only=True)
    model(**batch).loss.backward()
    model.eval()(**batch)
    assert torch.equal(counter.take(), expected)


def test_callback_logs_warns_and_draws(
    folder: Path, processor: Small4Processor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One expert of one layer is never chosen."""
    from transformers.utils import logging

    def instead(module: Any, inputs: Any, output: Any) -> Any:
        logits, shares, chosen = output
        other = torch.where((chosen == 3).any(-1, keepdim=True), 0, 3)
        return logits, shares, torch.where(chosen == 2, other, chosen)

    model = load(folder)
    model.model.language_model.layers[1].mlp.gate.register_forward_hook(instead)
    callback = ExpertLoadCallback(picture=tmp_path / "load.png")
    logging.enable_propagation()
    try:
        trainer = Trainer(
            model=model, args=arguments(tmp_path, max_steps=3, per_device_train_batch_size=16, learning_rate=0.0,
                eval_strategy="steps", eval_steps=1),
            data_collator=Small4DataCollator(processor), train_dataset=rows(), eval_dataset=rows()[:2],
                callbacks=[callback],
        )  # fmt: skip
        trainer.train()
    finally:
        logging.disable_propagation()
    warnings = [record.getMessage() for record in caplog.records if "of an equal share" in record.getMessage()]
    assert len([text for text in warnings if text.startswith("Layer 1: experts [2]")]) == 1  # once, not at every log
    assert callback.steps == [1, 2, 3]
    expected = relative(naive_counts(model, Small4DataCollator(processor)(rows())))[0]
    for loads in callback.history:  # every step saw all rows; evaluation in between does not count
        torch.testing.assert_close(loads[0], expected)
    assert logged(trainer, "expert_load/layer_1/min") == [0.0] * 3
    assert logged(trainer, "expert_load/layer_0/max") == pytest.approx([round(expected.max().item(), 4)] * 3)
    with Image.open(tmp_path / "load.png") as picture:
        picture.load()
        assert min(picture.size) > 200


def test_a_picture_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_small4.training.expert_load.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "\.\[train\]"'):
        ExpertLoadCallback(picture="load.png")
    ExpertLoadCallback()


def test_a_model_without_routers() -> None:
    with pytest.raises(ValueError, match="no routers"):
        ExpertLoad(torch.nn.Linear(2, 2))


@pytest.mark.slow
def test_balance_loss_balances() -> None:
    """On skewed data, the load of experts stays within twice the equal share with the balance loss and not without (a
    short run of the benchmark).
    """
    from model_card.bench.balance import measured

    found = measured(steps=60, seeds=[0], ways=("with_balance_loss", "without"))
    assert found["with_balance_loss"]["largest_load"] < 2.0 < found["without"]["largest_load"]
