"""The vision tower's own lesson, before it meets the decoder: name the colour and the shape from the mean of the image tokens.

Taught through the decoder alone the tower learns nothing for a long time: its random features are noise to a language model,
which first learns to shut them out. Here a picture costs a fifth of a row of text. The two heads are thrown away afterwards.
"""

import random

import torch
from small4_conversion.demo import pictures
from small4_conversion.demo.data import is_held_out
from small4_conversion.demo.muon import Muon, parameter_groups
from small4_conversion.demo.recipe import Looking
from torch import nn
from transformers import get_scheduler

from modeling_small4 import Small4ForCausalLM
from modeling_small4.image_processing_small4 import Small4ImageProcessor

COLOURS = list(pictures.COLOURS)


def learn_to_look(model: Small4ForCausalLM, processor: Small4ImageProcessor, recipe: Looking, seed: int) -> None:
    """Train tower and projector of `model` in place on training pictures."""
    torch.manual_seed(seed)
    rng = random.Random(f"look-{seed}")
    heads = nn.Linear(model.config.text_config.hidden_size, len(COLOURS) + len(pictures.SHAPES))
    eyes = nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector])
    groups = parameter_groups(eyes, recipe.matrix_rate, recipe.other_rate, recipe.weight_decay)
    optimizer = Muon([*groups, {"params": list(heads.parameters()), "lr": recipe.other_rate}])
    schedule = get_scheduler(
        "warmup_stable_decay",
        optimizer,
        num_warmup_steps=recipe.warmup_steps,
        num_training_steps=recipe.steps,
        scheduler_specific_kwargs={"num_decay_steps": recipe.steps // 2, "decay_type": "linear"},
    )
    for step in range(recipe.steps):
        loss, right = look(model, heads, processor, [training_scene(rng) for _ in range(recipe.pictures_per_step)])
        loss.backward()
        nn.utils.clip_grad_norm_(eyes.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 20 == 0:
            print({"look": step + 1, "loss": round(loss.item(), 3), "right": round(right, 3)}, flush=True)


def look(
    model: Small4ForCausalLM, heads: nn.Module, processor: Small4ImageProcessor, scenes: list[pictures.Scene]
) -> tuple[torch.Tensor, float]:
    """Cross-entropy of colour plus that of shape, and the share of pictures with both right."""
    batch = processor([pictures.render(scene) for scene in scenes], return_tensors="pt")
    tokens = model.get_image_features(batch["pixel_values"], batch["image_sizes"]).pooler_output
    scores = heads(torch.stack([of_picture.mean(0) for of_picture in tokens]))
    colour, shape = scores.split([len(COLOURS), len(pictures.SHAPES)], dim=-1)
    colours = torch.tensor([COLOURS.index(scene.colour) for scene in scenes])
    shapes = torch.tensor([pictures.SHAPES.index(scene.shape) for scene in scenes])
    loss = nn.functional.cross_entropy(colour, colours) + nn.functional.cross_entropy(shape, shapes)
    right = (colour.argmax(-1) == colours) & (shape.argmax(-1) == shapes)
    return loss, right.float().mean().item()


def training_scene(rng: random.Random) -> pictures.Scene:
    while is_held_out(scene := pictures.draw_scene(rng)):
        pass
    return scene
