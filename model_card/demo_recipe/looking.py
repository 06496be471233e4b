"""The vision tower's own lesson, before it meets the decoder: say what is drawn, from the mean of the image tokens, and
where.

Taught through the decoder alone the tower learns nothing for a long time: its random features are noise to a language
model, which first learns to shut them out. Here a picture costs a fifth of a row of text. The heads are thrown away
afterwards.
"""

import random
from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import get_scheduler

from model_card.demo_recipe.muon import Muon, parameter_groups
from model_card.demo_recipe.recipe import Looking
from model_card.demo_recipe.tasks import scenes
from model_card.demo_recipe.tasks.item import is_held_out
from model_card.demo_recipe.tasks.scenes import Scene
from model_card.demo_recipe.team import Team
from modeling_small4 import Small4ForCausalLM
from modeling_small4.image_processing_small4 import Small4ImageProcessor

COLOURS = list(scenes.COLOURS)
# What a picture is asked for, and how many answers there are; -100 where a question does not fit.
QUESTIONS = {"colour": len(COLOURS), "shape": len(scenes.SHAPES), "count": 5, "digit": 10}


def learn_to_look(
    model: Small4ForCausalLM, processor: Small4ImageProcessor, recipe: Looking, seed: int, team: Team | None = None
) -> None:
    """Train tower and projector of `model` in place on training pictures; each member of a team draws its own."""
    team = team or Team()
    torch.manual_seed(seed)
    rng = random.Random(f"look-{seed}-{team.rank}")
    heads = nn.Linear(model.config.text_config.hidden_size, sum(QUESTIONS.values()) + 1).to(model.device)
    eyes = nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector])
    groups = parameter_groups(eyes, recipe.matrix_rate, recipe.other_rate, recipe.weight_decay)
    optimizer = Muon([*groups, {"params": list(heads.parameters()), "lr": recipe.other_rate}], team=team, max_norm=1.0)
    schedule = get_scheduler(
        "warmup_stable_decay",
        optimizer,
        num_warmup_steps=recipe.warmup_steps,
        num_training_steps=recipe.steps,
        scheduler_specific_kwargs={"num_decay_steps": recipe.steps // 2, "decay_type": "linear"},
    )
    seen = dict.fromkeys(QUESTIONS, 0.0)
    for step in range(1, recipe.steps + 1):
        batch = [training_scene(rng) for _ in range(recipe.pictures_per_step // team.size)]
        loss, right = look(model, heads, processor, batch)
        (loss / team.size).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen = {name: 0.95 * seen[name] + 0.05 * right.get(name, seen[name]) for name in seen}
        if step % 100 == 0 and team.rank == 0:
            print(
                {"look": step, "loss": round(loss.item(), 3), **{k: round(v, 3) for k, v in seen.items()}}, flush=True
            )


def look(
    model: Small4ForCausalLM, heads: nn.Module, processor: Small4ImageProcessor, batch: list[Scene]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean cross-entropy of each question over the pictures it fits, summed, plus that of "something is drawn here" for
    each image token; and the share of right answers to each question."""
    inputs = processor([scenes.render(scene) for scene in batch], return_tensors="pt").to(model.device)
    tokens = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    scores = heads(torch.stack([of_picture.mean(0) for of_picture in tokens]))[:, :-1].split(
        list(QUESTIONS.values()), dim=-1
    )
    loss, right = torch.zeros((), device=model.device), {}
    for name, score in zip(QUESTIONS, scores, strict=True):
        truth = torch.tensor([answer(scene, name) for scene in batch], device=model.device)
        fits = truth != -100
        if fits.any():
            loss = loss + nn.functional.cross_entropy(score[fits], truth[fits])
            right[name] = (score[fits].argmax(-1) == truth[fits]).float().mean().item()
    filled = heads(torch.cat(list(tokens)))[:, -1]
    truth = torch.cat([drawn(scene, size) for scene, size in zip(batch, token_grids(inputs, processor), strict=True)])
    return loss + nn.functional.binary_cross_entropy_with_logits(filled, truth.to(filled)), right


def answer(scene: Scene, question: str) -> int:
    """Index of the right answer, or -100."""
    if question == "colour":
        return COLOURS.index(scene.colour)
    if question == "digit":
        return -100 if scene.digit is None else scene.digit
    if scene.digit is not None:
        return -100
    return scenes.SHAPES.index(scene.shape) if question == "shape" else len(scene.figures) - 1


def drawn(scene: Scene, grid: tuple[int, int]) -> torch.Tensor:
    """For each image token, in reading order, how much of its square is drawn on, float32 from 0 to 1."""
    rows, columns = grid
    small = scenes.mask(scene).resize((columns, rows), Image.Resampling.BOX)
    return torch.tensor(list(small.getdata())) / 255


def token_grids(inputs: Any, processor: Small4ImageProcessor) -> Iterable[tuple[int, int]]:
    """Rows and columns of each picture's image tokens."""
    side = processor.patch_size * processor.spatial_merge_size
    return [(height // side, width // side) for height, width in inputs["image_sizes"].tolist()]


def training_scene(rng: random.Random) -> Scene:
    """A scene of any kind that is not held out."""
    while True:
        draw = rng.choices((scenes.one_shape, scenes.several_shapes, place, scenes.drawn_digit), weights=(5, 3, 2, 4))[
            0
        ]
        scene = draw(rng)
        if not is_held_out((scene,)):
            return scene


def place(rng: random.Random) -> Scene:
    return scenes.placed_shape(rng)[0]
