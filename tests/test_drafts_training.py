"""A draft is trained beside a frozen model by transformers' Trainer, and by the demo's own script."""

import random
from pathlib import Path

import pytest
import stored_folder
import torch
from datasets import Dataset
from transformers import AutoProcessor, TrainingArguments, set_seed

from model_card.demo_recipe.draft import LAYERS, WIDTH, batch, rows_of, train
from model_card.demo_recipe.draft_answers import answers
from modeling_small4 import Small4DataCollator, Small4ForCausalLM, demo_checkpoint
from modeling_small4.drafts_loading import drafting_for
from modeling_small4.drafts_reading import read_draft
from modeling_small4.training.draft import DraftTrainer, draft_loss, new_draft, seen_by


def test_trainer_teaches_a_draft_and_leaves_the_model(tmp_path: Path) -> None:
    model = Small4ForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    processor = AutoProcessor.from_pretrained(demo_checkpoint())
    said = [
        {"role": "user", "content": "What is 3 + 4?"},
        {"role": "assistant", "content": "It is 7, and that is all."},
    ]
    rows, collator = Dataset.from_list([{"messages": said}] * 64), Small4DataCollator(processor)
    torch.manual_seed(0)
    draft = new_draft(model, layers=1, width=64)
    given = collator([{"messages": said}])
    mask = given["attention_mask"]
    wanted = {"input_ids": given["input_ids"], "attention_mask": mask}
    losses = []
    for _ in range(2):
        with torch.no_grad():
            losses.append(
                float(
                    draft_loss(draft, model.lm_head, seen_by(model, wanted), given["labels"], given["attention_mask"])
                )
            )
        arguments = TrainingArguments(
            str(tmp_path), max_steps=15, per_device_train_batch_size=2, learning_rate=3e-3, report_to=[],
            remove_unused_columns=False, save_strategy="no", use_cpu=True,
        )  # fmt: skip
        if len(losses) == 1:
            DraftTrainer(draft, model, args=arguments, train_dataset=rows, data_collator=collator).train()
    assert losses[1] < 0.5 * losses[0]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    draft.save_pretrained(tmp_path / "draft")
    again = read_draft(str(tmp_path / "draft"), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(draft.parameters(), again.parameters(), strict=True))


def test_hidden_states_of_padded_rows_are_those_of_the_row_alone() -> None:
    model = Small4ForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval()
    ids = torch.randint(1000, 1200, (1, 9))
    padded = torch.cat((torch.full((1, 4), 11), ids), dim=1)
    alone = seen_by(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    beside = seen_by(model, {"input_ids": padded, "attention_mask": (torch.arange(13) >= 4)[None].long()})
    torch.testing.assert_close(alone.hidden, beside.hidden[:, 4:], atol=1e-4, rtol=1e-4)
    assert torch.equal(alone.positions, beside.positions[:, 4:])


@pytest.mark.slow
def test_the_demo_script_learns_from_answers_of_the_demo() -> None:
    model = Small4ForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval().requires_grad_(False)
    given = list(answers(model, AutoProcessor.from_pretrained(demo_checkpoint()), rows=4, seed=9))
    rows = [row for each in given for row in rows_of(model, each)]
    seen, labels = batch(random.Random(0), rows)
    trained = train(model, given, 15, 0)
    with torch.no_grad():
        start, end = (
            float(draft_loss(draft, model.lm_head, seen, labels))
            for draft in (new_draft(model, LAYERS, WIDTH), trained)
        )
    assert end < 0.8 * start
    assert drafting_for(model, trained).view is not None
    again = train(model, given, 15, 0)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))


def test_trainer_with_a_model_held_as_stored_gives_the_same_weights_for_a_seed(tmp_path: Path) -> None:
    """As for the full model: FP8, several steps to a batch, evaluation, a checkpoint that is resumed."""
    model = Small4ForCausalLM.from_pretrained(stored_folder.write(tmp_path, "fp8").stored, dtype=torch.bfloat16)
    ids = torch.randint(12, 1000, (12, 20), generator=torch.Generator().manual_seed(0)).tolist()
    rows = Dataset.from_list([{"input_ids": row, "labels": row, "attention_mask": [1] * 20} for row in ids])
    weights = []
    for number, (steps, resumed) in enumerate(((4, False), (4, False), (2, False), (4, True))):
        folder = tmp_path / str(min(number, 2))
        arguments = TrainingArguments(
            str(folder), max_steps=4 if resumed else steps, per_device_train_batch_size=2, save_steps=2, seed=7,
            gradient_accumulation_steps=2, learning_rate=1e-3, report_to=[], remove_unused_columns=False,
            use_cpu=True, lr_scheduler_type="constant", label_names=["labels"],
        )  # fmt: skip
        set_seed(7)
        draft = new_draft(model, layers=2, width=64)
        trainer = DraftTrainer(draft, model, args=arguments, train_dataset=rows, eval_dataset=rows)
        before = trainer.evaluate()["eval_loss"]
        trainer.train(resume_from_checkpoint=resumed)
        assert trainer.evaluate()["eval_loss"] < before
        weights.append([weight.clone() for weight in draft.parameters()])
    for other in (1, 3):
        assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[other], strict=True))
    trainer.save_model(str(tmp_path / "draft"))
    given = {"input_ids": torch.tensor(ids[:1]), "max_new_tokens": 8}
    assert model.generate(**given, draft=str(tmp_path / "draft")).shape[1] > 20
