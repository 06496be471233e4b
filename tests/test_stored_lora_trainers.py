"""LoRA on held weights as users train it: `Trainer`, TRL's SFT, DPO and GRPO, packed, padded and with pictures. Losses
are those on the expanded weights, and a run that was interrupted goes on as if it had not been.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from small4_conversion.convert import Options, convert
from transformers import AutoProcessor, Trainer, TrainerCallback, TrainingArguments, set_seed

from modeling_small4 import (
    Small4DataCollator,
    Small4ForCausalLM,
    demo_checkpoint,
    lora_targets,
    share_expert_ranks,
    stored_lora,
)
from modeling_small4.stored_layers import StoredModule

trl = pytest.importorskip("trl")
torch.set_num_threads(1)
COMMON: dict[str, Any] = {
    "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "use_cpu": True, "bf16": False,
    "report_to": [], "logging_steps": 1, "save_strategy": "no", "seed": 5, "train_sampling_strategy": "sequential",
}  # fmt: skip


BOTH = pytest.mark.parametrize("base", ["fp8", "int4"], indirect=True)


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """How the base is stored does not matter to trainers; `BOTH` and pairs with each form are tried where gradients and
    files of experts may depend on it.
    """
    folder = tmp_path_factory.mktemp("held") / request.param
    convert(demo_checkpoint(), folder, Options(dtype=request.param))
    return folder


def config(model: Any, targets: str = "all+experts", **options: Any) -> Any:
    return stored_lora(LoraConfig(r=4, lora_alpha=8, **lora_targets(targets, model=model), **options), model)


def loaded(base: Path, held: bool = True) -> Small4ForCausalLM:
    set_seed(1)  # adapters are drawn where they are made
    model = Small4ForCausalLM.from_pretrained(base, dtype=torch.float32, dequantize=not held)
    assert any(isinstance(module, StoredModule) for module in model.modules()) == held
    return model


def rows(pictures: bool = True) -> list[dict[str, Any]]:
    out = []
    for i in range(8):
        picture = [Image.linear_gradient("L").resize((20 + i, 40)).convert("RGB")] if pictures and i % 4 == 1 else []
        asked = [{"type": "image"} for _ in picture] + [{"type": "text", "text": f"What is {i} # {i + 1}?"}]
        answer = [{"type": "text", "text": " ".join(map(str, range(i + 1)))}]
        out.append(
            {
                "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
                "images": picture,
            }
        )
    return out


def losses(trainer: Any) -> list[float]:
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert found
    return found


# -- Trainer
# -----------------------------------------------------------------------------------------------------


class Kill(TrainerCallback):
    """Ends the process's training in the middle of a run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer(base: Path, out: Path, lora: dict[str, Any], shared: bool = False, **options: Any) -> Trainer:
    model = loaded(base)
    tuned = get_peft_model(model, config(model, **lora))
    tuned = share_expert_ranks(tuned) if shared else tuned
    collator = Small4DataCollator(AutoProcessor.from_pretrained(base), packing=options.pop("packing", False))
    usual = COMMON | {"remove_unused_columns": False, "max_steps": 5, "train_sampling_strategy": "random"}
    arguments = TrainingArguments(str(out), **usual | {"lr_scheduler_type": "cosine"} | options)
    return Trainer(tuned, arguments, collator, train_dataset=rows())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "lora", "shared"),
    [("fp8", {}, False), ("int4", {}, False), ("int4", {"targets": "attention+shared", "lora_dropout": 0.2}, False),
     ("fp8", {}, True)],
    ids=["experts, fp8", "experts, int4", "dropout", "shared ranks"],
    indirect=["base"],
)  # fmt: skip
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    base: Path, tmp_path: Path, lora: dict[str, Any], shared: bool
) -> None:
    """Adapters, optimizer, schedule, order of rows and the random numbers of dropout: to the last bit."""
    through = trainer(base, tmp_path / "through", lora, shared)
    through.train()
    killed = trainer(base, tmp_path / "killed", lora, shared, save_strategy="steps", save_steps=3)
    killed.add_callback(Kill(4))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    set_seed(77)
    again = trainer(base, tmp_path / "killed", lora, shared)
    for parameter in again.model.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(0.3)  # everything comes from the files
    again.train(resume_from_checkpoint=True)
    assert losses(again) == losses(through)
    expected = {name: p for name, p in through.model.named_parameters() if p.requires_grad}
    found = {name: p for name, p in again.model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    assert all(torch.equal(p, expected[name]) for name, p in found.items())


@pytest.mark.parametrize(
    ("base", "form"), [("int4", {"packing": True}), ("fp8", {"gradient_checkpointing": True})], indirect=["base"],
    ids=["packed", "checkpointed"],
)  # fmt: skip
def test_packing_and_checkpointing(base: Path, tmp_path: Path, form: dict[str, Any]) -> None:
    found = trainer(base, tmp_path / "a", {}, **form, max_steps=3)
    found.train()
    plain = trainer(base, tmp_path / "b", {}, max_steps=3)
    plain.train()
    assert losses(found) == pytest.approx(losses(plain), rel=1e-4)


class Gradients(TrainerCallback):
    """Those of the first step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [True, False])
@BOTH
def test_everything_at_once_has_the_gradients_of_plain_rows(base: Path, tmp_path: Path, reentrant: bool) -> None:
    """Packed, with images in some rows, checkpointed, accumulated, the loss in chunks and a trained head; beside padded
    rows on expanded weights.
    """
    collators = [Small4DataCollator(AutoProcessor.from_pretrained(base), packing=packing) for packing in (True, False)]
    at_once = {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    at_once |= {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    found = []
    for held, collator, options in zip((True, False), collators, (at_once, {}), strict=True):
        model = loaded(base, held)
        model.loss_chunk = 7 if held else None
        tuned = get_peft_model(model, config(model, modules_to_save=["lm_head"], init_lora_weights=False))
        usual = COMMON | {"remove_unused_columns": False, "max_steps": 1, "per_device_train_batch_size": 4 - 2 * held}
        kept = Gradients()
        arguments = TrainingArguments(str(tmp_path), **usual | options)
        Trainer(tuned, arguments, collator, train_dataset=rows(), callbacks=[kept]).train()
        found.append(kept.found)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[1].items():
        assert (found[0][name] - gradient).norm() < 2e-5 * gradient.norm(), name


# -- TRL
# ---------------------------------------------------------------------------------------------------------


def sides(base: Path, made: Any) -> None:
    """The same losses on held weights and on expanded ones; every adapter moved."""
    found = []
    for held in (True, False):
        run = made(loaded(base, held))
        before = {name: p.clone() for name, p in run.model.named_parameters() if p.requires_grad}
        run.train()
        moved = {
            name for name, p in run.model.named_parameters() if name in before and not torch.equal(p, before[name])
        }
        assert {name for name in before if "lora_B" in name} <= moved
        assert all(".lora_" in name for name in before)
        found.append(losses(run))
    assert found[0] == pytest.approx(found[1], rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "form"), [("fp8", "padded"), ("int4", "packed"), ("fp8", "pictures")], indirect=["base"]
)
def test_sft(base: Path, tmp_path: Path, form: str) -> None:
    processor = AutoProcessor.from_pretrained(base)
    given: list[dict[str, Any]] = rows(form == "pictures")
    options: dict[str, Any] = {"max_length": None} if form == "pictures" else {"max_length": 96}
    if form != "pictures":
        given = [
            {
                "messages": [
                    {"role": m["role"], "content": m["content"][0]["text"]} for m in row["messages"]
                ]
            }
            for row in given
        ]  # fmt: skip
    if form == "packed":
        options |= {"packing": True}

    def made(model: Small4ForCausalLM) -> Any:
        arguments = trl.SFTConfig(str(tmp_path), **COMMON | options, assistant_only_loss=True, shuffle_dataset=False)
        kind = processor if form == "pictures" else processor.tokenizer
        data = Dataset.from_list(given)
        return trl.SFTTrainer(model, arguments, train_dataset=data, processing_class=kind, peft_config=config(model))

    sides(base, made)


def say(role: str, text: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": text}]


@pytest.mark.parametrize(
    ("base", "shared"), [("fp8", False), ("int4", True)], ids=["own ranks", "shared ranks"], indirect=["base"]
)
def test_dpo(base: Path, tmp_path: Path, shared: bool) -> None:
    given = [
        {
            "prompt": say("user", f"What is {i} + 1?"),
            "chosen": say("assistant", f"It is {i + 1}."),
            "rejected": say("assistant", str(i)),
        }
        for i in range(4)
    ]

    def made(model: Small4ForCausalLM) -> Any:
        arguments = trl.DPOConfig(str(tmp_path), **COMMON)
        kind = AutoProcessor.from_pretrained(base).tokenizer
        data = Dataset.from_list(given)
        run = trl.DPOTrainer(
            model, args=arguments, train_dataset=data, processing_class=kind, peft_config=config(model)
        )
        if shared:
            share_expert_ranks(run.model)
        return run

    sides(base, made)


@pytest.mark.parametrize("base", ["int4"], indirect=True)
def test_grpo(base: Path, tmp_path: Path) -> None:
    given = [{"prompt": say("user", f"What is {i} + 1?")} for i in range(4)]

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float(index % 2) for index in range(len(completions))]

    model = loaded(base)
    arguments = trl.GRPOConfig(
        str(tmp_path), **COMMON | {"max_steps": 1}, num_generations=2, max_completion_length=6, beta=0.1,
        chat_template_kwargs={"reasoning_mode": "none"},
    )  # fmt: skip
    run = trl.GRPOTrainer(
        model, reward_funcs=reward, args=arguments, train_dataset=Dataset.from_list(given),
        processing_class=AutoProcessor.from_pretrained(base).tokenizer, peft_config=config(model),
    )  # fmt: skip
    before = {name: p.clone() for name, p in run.model.named_parameters() if p.requires_grad}
    run.train()
    assert all(torch.isfinite(torch.tensor(losses(run))))
    changed = [name for name, p in run.model.named_parameters() if name in before and not torch.equal(p, before[name])]
    assert any("mlp.experts" in name for name in changed)
