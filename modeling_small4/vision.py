"""Vision: Pixtral tower (arXiv:2410.07073), patch merger and projector. Pixels to vectors of the text model's width.

Patches of all images lie one after another in one sequence for everything that works patch by patch; attention runs
image by image, so memory grows linearly with the number of images. This file never sees files or PIL images, nor the
text model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import eager_attention
from .configuration_small4 import Small4VisionConfig
from .cpu_matmul import linear
from .moe import Small4MLP
from .rope import image_positions, rotate_halves


class Small4VisionAttention(nn.Module):
    """Full attention among the patches of one image."""

    is_causal = False

    def __init__(self, config: Small4VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim, self.scaling = config.head_dim, config.head_dim**-0.5
        self.num_key_value_groups = 1
        width = config.hidden_size
        self.q_proj, self.k_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.v_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(
        self, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, patch_counts: list[int], **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: `[1, patches of all images, width]`.
            cos, sin: `[patches of all images, head_dim / 2]`.
            patch_counts: Patches of each image, in order.

        Returns:
            Output shaped like the input, and from the eager implementation weights
            `[images, heads, most patches, most patches]`, zero where padded.
        """
        query, key, value = (
            linear(proj, hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate_halves(query, cos, sin), rotate_halves(key, cos, sin)
        interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        outputs, weights = zip(
            *(
                interface(self, q, k, v, None, dropout=dropout, scaling=self.scaling, is_causal=False, **kwargs)
                for q, k, v in zip(*(x.split(patch_counts, dim=2) for x in (query, key, value)), strict=True)
            ),
            strict=True,
        )
        output = linear(self.o_proj, torch.cat(outputs, dim=1).flatten(2))
        return output, _stack_padded(weights) if weights[0] is not None else None


def _stack_padded(weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
    most = max(w.shape[-1] for w in weights)
    return torch.cat([nn.functional.pad(w, (0, most - w.shape[-1], 0, most - w.shape[-1])) for w in weights])


class Small4VisionLayer(GradientCheckpointingLayer):
    """Pre-norm block of the tower."""

    def __init__(self, config: Small4VisionConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = Small4VisionAttention(config)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.feed_forward = Small4MLP(config, config.intermediate_size)

    def forward(
        self, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, patch_counts: list[int], **kwargs: Any
    ) -> torch.Tensor:
        attended, _ = self.attention(self.attention_norm(hidden_states), cos, sin, patch_counts, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.feed_forward(self.ffn_norm(hidden_states))


class Small4VisionBlocks(nn.Module):
    """The stack of blocks, a module of its own for the sake of the release's parameter names."""

    def __init__(self, config: Small4VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Small4VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, *args, **kwargs)
        return hidden_states


def embed_patches(patch_conv: nn.Conv2d, pixel_values: torch.Tensor, grids: list[tuple[int, int]]) -> torch.Tensor:
    """Patches of all images, row by row, padding left out: `[1, patches of all images, width]`."""
    embedded = patch_conv(pixel_values.to(patch_conv.weight.dtype))
    patches = [image[:, :rows, :columns].flatten(1).T for image, (rows, columns) in zip(embedded, grids, strict=True)]
    return torch.cat(patches)[None]


def patch_positions(
    config: Small4VisionConfig, grids: list[tuple[int, int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary angles of every patch, by row and column within its own image. See `image_positions`."""
    rows = torch.cat([torch.arange(h, device=device).repeat_interleave(w) for h, w in grids])
    columns = torch.cat([torch.arange(w, device=device).repeat(h) for h, w in grids])
    return image_positions(config, rows, columns)


def patch_grids(
    image_sizes: torch.Tensor | list, pixel_values: torch.Tensor, unit: int, patch_size: int
) -> list[tuple[int, int]]:
    """Rows and columns of patches of each image.

    Args:
        image_sizes: `[images, 2]`, height and width in pixels.
        pixel_values: `[images, channels, height, width]`, padded to the largest.
        unit: Pixels that each side must be a multiple of.

    Raises:
        ValueError: A number of sizes other than of images, or a size that does not fit the unit or the pixels.
    """
    sizes = [
        tuple(int(side) for side in size)
        for size in (image_sizes.tolist() if isinstance(image_sizes, torch.Tensor) else image_sizes)
    ]
    if len(sizes) != pixel_values.shape[0]:
        raise ValueError(
            f"image_sizes has {len(sizes)} rows for {pixel_values.shape[0]} images in pixel_values; give one (height, "
            "width) per image."
        )
    for index, (height, width) in enumerate(sizes):
        fits = 0 < height <= pixel_values.shape[-2] and 0 < width <= pixel_values.shape[-1]
        if not fits or height % unit or width % unit:
            raise ValueError(
                f"image_sizes[{index}] = {(height, width)}: each side must be a positive multiple of {unit} pixels "
                "and lie within "
                f"pixel_values' {tuple(pixel_values.shape[-2:])}; Small4ImageProcessor makes such images."
            )
    return [(height // patch_size, width // patch_size) for height, width in sizes]


class Small4PatchMerger(nn.Module):
    """Merges each square of `spatial_merge_size ** 2` patches into one vector."""

    def __init__(self, config: Small4VisionConfig) -> None:
        super().__init__()
        width, self.merge = config.vision_config.hidden_size, config.spatial_merge_size
        self.merging_layer = nn.Linear(width * self.merge**2, width, bias=False)

    def forward(self, features: torch.Tensor, grids: list[tuple[int, int]]) -> torch.Tensor:
        """`[patches of all images, width]` to `[merged patches of all images, width]`. Inputs of a square are laid out
        channel first.
        """
        merge = self.merge
        squares = [
            image.view(h // merge, merge, w // merge, merge, -1).permute(0, 2, 4, 1, 3).reshape(h * w // merge**2, -1)
            for image, (h, w) in zip(features.split([h * w for h, w in grids]), grids, strict=True)
        ]
        return linear(self.merging_layer, torch.cat(squares))


class Small4MultiModalProjector(nn.Module):
    """Norm, patch merger and two linear layers into the text model's width."""

    def __init__(self, config: Small4VisionConfig) -> None:
        super().__init__()
        vision_width, text_width, bias = (
            config.vision_config.hidden_size,
            config.text_config.hidden_size,
            config.multimodal_projector_bias,
        )
        self.norm = nn.RMSNorm(vision_width, eps=config.text_config.rms_norm_eps)
        self.patch_merger = Small4PatchMerger(config)
        self.linear_1 = nn.Linear(vision_width, text_width, bias=bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(text_width, text_width, bias=bias)

    def forward(self, features: torch.Tensor, grids: list[tuple[int, int]]) -> torch.Tensor:
        """`[patches of all images, vision width]` to `[merged patches of all images, text width]`."""
        merged = self.patch_merger(self.norm(features), grids)
        return linear(self.linear_2, self.act(linear(self.linear_1, merged)))
