"""Evaluation by what the model answers: a `TrainerCallback` that generates at each evaluation and scores the answers.

`Trainer.evaluate` measures the loss; this adds how often answers are right. Must not know: what right means, which is
the caller's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .collator import Small4DataCollator

Score = Callable[[Mapping[str, Any], Mapping[str, Any]], float]


class AnswerCallback(TrainerCallback):
    """Answers `rows` at every evaluation and puts the mean score into its metrics, as `eval_NAME`.

    So `metric_for_best_model="eval_accuracy"` and early stopping can follow it. Each row is answered in its own
    reasoning mode.

    Args:
        collator: the one that training uses; it makes the prompts.
        rows: held-out rows as in training, with the right answer or whatever `score` looks at.
        score: a row and the answer as a message (`content`, `reasoning_content`, `tool_calls`) -> a number, 1.0 for
            right.
        name: the metric's name.
        batch_size: rows answered at once.
        generation: further arguments of `generate`; greedy by default.
    """

    def __init__(
        self,
        collator: Small4DataCollator,
        rows: Sequence[Mapping[str, Any]],
        score: Score,
        name: str = "accuracy",
        batch_size: int = 32,
        **generation: Any,
    ) -> None:
        self.collator, self.rows, self.score = collator, rows, score
        self.name, self.batch_size = name, batch_size
        self.generation = {"do_sample": False} | generation

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        answers = parsed_answers(kwargs["model"], self.collator, self.rows, self.batch_size, **self.generation)
        scores = [float(self.score(row, message)) for row, message in zip(self.rows, answers, strict=True)]
        result = {f"eval_{self.name}": sum(scores) / max(len(scores), 1)}
        if kwargs.get("metrics") is not None:
            kwargs["metrics"].update(result)
        if state.log_history:
            state.log_history[-1].update(result)


@torch.no_grad()
def parsed_answers(
    model: PreTrainedModel,
    collator: Small4DataCollator,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int = 32,
    **generation: Any,
) -> list[dict[str, Any]]:
    """The model's answer to each row, parsed into a message; each row is answered in its own mode. `generation` goes to
    `generate`.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    messages: list[dict[str, Any]] = []
    try:
        for start in range(0, len(rows), batch_size):
            chosen = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
            prompts = {name: tensor.to(device) for name, tensor in collator.prompts(chosen).items()}
            modes = collator.modes(chosen)
            mode = {} if None in modes else {"reasoning_mode": modes}
            messages += collator.tokenizer.parse_response(new_tokens(model, prompts, **mode, **generation))
    finally:
        model.train(training)
    return messages


def new_tokens(model: PreTrainedModel, inputs: Mapping[str, Any], **generation: Any) -> torch.Tensor:
    """What `generate` adds to the prompts of a batch, int64 `[rows, new]`."""
    return model.generate(**inputs, **generation)[:, inputs["input_ids"].shape[1] :]
