"""Train the demo checkpoint from nothing but a seed, and write it as a folder that loads like the release.

    python -m model_card.demo_recipe.train --out DIR [--seed 0] [--workers 2]

The vision tower learns to look and the decoder to recall; then chats of all tasks, modes and pictures in four stages
(`recipe.py` holds all numbers).
Chats with transformers' Trainer: loss on what the assistant writes, balance loss on, float32 weights, saved as
bfloat16. Run again with the same DIR, it goes on where it stopped; DIR holds the newest weights all the time.

About three hours on two cores; 1.8 million parameters. Another CPU adds up in another order, so weights
differ: a retrain is meant to reach the stored held-out accuracies in mode `high` within 5 points; in `none`, where much
is guessed, they vary more.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Sequence, Value, load_from_disk
from safetensors.torch import load_file, save_file
from small4_conversion.tokenizer import write_processor
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.trainer_utils import get_last_checkpoint

from model_card.demo_recipe.batches import IGNORED, Parts, encode
from model_card.demo_recipe.initial import new_model
from model_card.demo_recipe.looking import learn_to_look
from model_card.demo_recipe.muon import Muon, parameter_groups
from model_card.demo_recipe.recalling import learn_to_recall
from model_card.demo_recipe.recipe import Recipe, Stage, demo_config
from model_card.demo_recipe.tasks.data import dataset
from model_card.demo_recipe.team import Team, run_as_team
from model_card.demo_recipe.vocabulary import VISION, write_tekken
from modeling_small4 import Small4DataCollator, Small4ForCausalLM
from modeling_small4.moe import router_losses
from modeling_small4.processing_small4 import Small4Processor

MAX_NEW_TOKENS = 256


class AnswerTrainer(Trainer):
    """Trainer whose batches come ready and in order, and whose head runs only where there is a label."""

    team = Team()

    def compute_loss(
        self,
        model: Small4ForCausalLM,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """This batch's share of the step's loss: gradients of all batches and members add up."""
        labels, mask, total = inputs.pop("labels")[:, 1:], inputs.pop("attention_mask"), inputs.pop("total")
        # Rows are padded on the right, so causal attention alone keeps padding out, and the mask only serves the
        # balance loss. But positions with gaps would be read as several texts in a row, if no mask said that they are
        # one.
        seen = mask if "position_ids" in inputs else None
        output = model.model(**inputs, attention_mask=seen, use_cache=False, output_router_logits=True)
        wanted = labels != IGNORED
        logits = model.lm_head(output.last_hidden_state[:, :-1][wanted])
        loss = nn.functional.cross_entropy(logits.float(), labels[wanted], reduction="sum") / total
        _, balance = router_losses(model.config.text_config, output.router_logits, mask)
        loss = loss + balance / (self.args.gradient_accumulation_steps * self.team.size)
        return (loss, output) if return_outputs else loss

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Export(TrainerCallback):
    """Writes the bfloat16 folder at every save, so that an unfinished run can be tried."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        export(kwargs["model"], self.out)


def train(out: Path, recipe: Recipe, workers: int = 1) -> None:
    """Train and write `out`; finished stages and interrupted ones are taken up from `out/run`."""
    if out.is_symlink() or (out.exists() and any(out.iterdir()) and not (out / "run").is_dir()):
        raise ValueError(f"{out}: no run of this recipe was begun here; choose a new folder.")
    (out / "run").mkdir(parents=True, exist_ok=True)
    write_tekken(out / "tekken.json")
    write_processor(out / "tekken.json", out, VISION)
    set_generation_defaults(out)
    for number, (name, stage) in enumerate(stages(recipe).items()):
        prepare(out, name, stage, recipe.seed + number, workers)
    run_as_team(learn, workers, out, recipe)


def stages(recipe: Recipe) -> dict[str, Stage]:
    return {name: getattr(recipe, name) for name in ("short", "long", "wording", "last")}


def prepare(out: Path, name: str, stage: Stage, seed: int, workers: int) -> None:
    """Draw and encode a stage's rows into `out/run/NAME-rows`, once."""
    folder = out / "run" / f"{name}-rows"
    if folder.exists():
        return
    collator = Small4DataCollator(Small4Processor.from_pretrained(out))
    drawn: dict[str, Any] = {
        name: getattr(stage, name) for name in ("tasks", "context", "reworded", "in_json", "first_lines")
    }
    rows = dataset("train", stage.rows, seed, in_small_steps=True, **drawn)
    kept = {"gap", "images"}
    rows = rows.map(
        lambda row: encode(row, collator),
        remove_columns=[column for column in rows.column_names if column not in kept],
        num_proc=workers if workers > 1 else None,
    )
    for column in ("input_ids", "labels"):
        rows = rows.cast_column(column, Sequence(Value("int16")))
    temporary = folder.with_suffix(".new")
    rows.save_to_disk(temporary)
    temporary.rename(folder)


def learn(team: Team, out: Path, recipe: Recipe) -> None:
    """One member's whole training; member 0 writes."""
    processor: Any = Small4Processor.from_pretrained(out)
    set_seed(recipe.seed)
    model = new_model(len(processor.tokenizer)).to("cuda" if torch.cuda.is_available() else "cpu")
    work: dict[str, Callable[[], None]] = {
        "looking": lambda: learn_to_look(model, processor.image_processor, recipe.looking, recipe.seed, team),
        "recalling": lambda: learn_to_recall(model, recipe.recalling, recipe.seed, team),
    }
    for number, (name, stage) in enumerate(stages(recipe).items()):
        work[name] = lambda name=name, stage=stage, number=number: talk(  # type: ignore[misc]
            model, processor, out, stage, name, recipe.seed + number, team
        )
    for name, run in work.items():
        finished = out / "run" / f"{name}.safetensors"
        done = finished.exists()
        team.wait()
        if done:
            model.load_state_dict(load_file(finished))
            continue
        run()
        if team.rank == 0:
            save_file(model.state_dict(), finished)
            export(model, out)
        team.wait()


WIDE_VALUES = "wide_values"  # the name under which transformers knows it


def wide_values(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """sdpa with values padded to the width of keys: otherwise torch has no fused kernel for it, and long rows take ten
    times as long.
    """
    width = value.shape[-1]
    padded = nn.functional.pad(value, (0, query.shape[-1] - width))
    return sdpa_attention_forward(module, query, key, padded, mask, **kwargs)[0][..., :width], None


def talk(
    model: Small4ForCausalLM,
    processor: Small4Processor,
    out: Path,
    stage: Stage,
    name: str,
    seed: int,
    team: Team | None = None,
) -> None:
    """One stage of chats, in place."""
    team, folder = team or Team(), out / "run" / name
    rows = load_from_disk(out / "run" / f"{name}-rows")
    assert isinstance(rows, Dataset)
    groups = parameter_groups(model, stage.matrix_rate, stage.other_rate, stage.weight_decay, stage.eye_rate)
    AnswerTrainer.team = team
    AttentionInterface.register(WIDE_VALUES, wide_values)
    AttentionMaskInterface.register(WIDE_VALUES, sdpa_mask)
    model.set_attn_implementation({"text_config": WIDE_VALUES})
    images = processor.image_processor
    assert images is not None  # the demo has a tower
    trainer = AnswerTrainer(
        model=model,
        optimizers=(Muon(groups, team=team, max_norm=1.0), None),
        args=arguments(folder, stage, seed, team),
        train_dataset=Parts(rows, images, 11, stage, seed, team.rank, team.size),
        data_collator=lambda items: items[0],
        callbacks=[Export(out)] if team.rank == 0 else [],
    )
    last = get_last_checkpoint(str(folder)) if folder.exists() else None
    team.wait()
    trainer.train(resume_from_checkpoint=last)


def export(model: Small4ForCausalLM, out: Path) -> None:
    """Save a bfloat16 copy's config and weights into `out`, beside tokenizer and processor."""
    weights = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    fresh = demo_config(model.config.text_config.vocab_size)  # the trainer edits the model's own
    copy = Small4ForCausalLM(fresh).to(torch.bfloat16)
    copy.load_state_dict(weights)
    kept = (out / "generation_config.json").read_text()
    copy.save_pretrained(out)
    (out / "generation_config.json").write_text(kept)


def set_generation_defaults(out: Path) -> None:
    """Greedy decoding with room for the longest thought; the mode is left to the caller."""
    path = out / "generation_config.json"
    settings = json.loads(path.read_text()) | {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def arguments(folder: Path, stage: Stage, seed: int, team: Team) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=stage.parts_per_step,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": stage.decay_steps, "decay_type": "linear"},
        warmup_steps=stage.warmup_steps,
        max_grad_norm=0.0,  # the optimiser clips, when gradients of all members are added up
        logging_strategy="steps" if team.rank == 0 else "no",
        logging_steps=20,
        save_strategy="steps" if team.rank == 0 else "no",
        save_steps=stage.save_steps,
        save_total_limit=2,
        seed=seed,
        dataloader_num_workers=0,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=1 if torch.cuda.is_available() else 2, help="processes of one thread"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    train(args.out, Recipe(seed=args.seed), args.workers)


if __name__ == "__main__":
    main()
