"""The vision tower beside transformers' Pixtral tower, full width, on the same weights: time, and memory by number of
images.

    python -m model_card.bench.vision [--layers 1] [--sides 1540] [--growth 1 2 4 8] [--growth-side 392]
        [--out model_card/results/vision.json]

from the repository root. One and eight images of 1540 pixels, then more and more small images for the growth of memory.
transformers attends over the patches of all images with a mask over all pairs; where that mask alone takes more than
`--mask` bytes, its run is left out. Both outputs are compared first.
"""

import argparse
from functools import partial
from typing import Any

import torch
from transformers import PixtralVisionConfig, PixtralVisionModel

from model_card.bench.decode import random_state
from model_card.bench.harness import interleaved, options, peak_bytes, read, relative_error, report
from modeling_small4 import Small4VisionConfig, Small4VisionModel
from modeling_small4.modeling_small4 import Small4ForCausalLM

SHARED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")


def build(args: argparse.Namespace, **sizes: int) -> tuple[Small4VisionModel, PixtralVisionModel]:
    """Both towers sharing every tensor; `sizes` change the released ones."""
    config = Small4VisionConfig(**{"num_hidden_layers": args.layers} | sizes)
    host_config = PixtralVisionConfig(**{name: getattr(config, name) for name in SHARED}, hidden_act="silu")
    config._attn_implementation = host_config._attn_implementation = "sdpa"
    with torch.device("meta"):
        ours, host = Small4VisionModel(config), PixtralVisionModel(host_config)
    state = random_state(ours, args.dtype, args.device)
    ours.load_state_dict(state, assign=True)
    host.load_state_dict(state, assign=True)
    host.patch_positional_embedding = type(host.patch_positional_embedding)(host_config).to(args.device)
    return ours.eval(), host.eval()


def encode(model: Small4ForCausalLM, pixels: torch.Tensor) -> torch.Tensor:
    """`[1, patches of all images, width]`."""
    sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
    return model(pixels, image_sizes=sizes).last_hidden_state


def measured(args: argparse.Namespace, towers: tuple[Any, Any], images: int, side: int, timed: bool) -> dict[str, Any]:
    """One row: so many square images."""
    generator = torch.Generator().manual_seed(side)
    pixels = torch.randn(images, 3, side, side, generator=generator).to(args.device, args.dtype)
    own, other = (partial(encode, tower, pixels) for tower in towers)
    patches = images * (side // towers[0].config.patch_size) ** 2
    row: dict[str, Any] = {"images": images, "side": side, "patches": patches}
    row["ours_peak_bytes"] = peak_bytes(own, args.device)
    mask = patches**2 * args.dtype.itemsize
    if mask > args.mask:
        return row | {"transformers_mask_bytes": mask} | (interleaved(args, own) if timed else {})
    row["transformers_peak_bytes"] = peak_bytes(other, args.device)
    row["relative_error"] = relative_error(own(), other(), f"{images} images of {side} pixels")
    return row | (interleaved(args, own, transformers=other) if timed else {})


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__, runs=3)
    parser.add_argument("--layers", type=int, default=1, help="of 24")
    parser.add_argument("--sides", type=int, nargs="*", default=[1540])
    parser.add_argument("--images", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--growth", type=int, nargs="*", default=[1, 2, 4, 8], help="numbers of images")
    parser.add_argument("--growth-side", type=int, default=392)
    parser.add_argument("--mask", type=float, default=3e9)
    args = read(parser)
    towers = build(args)
    with torch.inference_mode():
        for tower in towers:
            encode(tower, torch.zeros(1, 3, 28, 28, dtype=args.dtype, device=args.device))  # what is allocated once
        rows = {f"{n} x {side} px": measured(args, towers, n, side, True) for side in args.sides for n in args.images}
        for n in args.growth:
            rows[f"{n} x {args.growth_side} px"] = measured(args, towers, n, args.growth_side, True)
    columns = {"ours_ms": "10.1f", "transformers_ms": "10.1f", "speedup_transformers": "6.2f"}
    report(args, {"rows": rows}, columns | {"ours_peak_bytes": "8.3g", "transformers_peak_bytes": "8.3g"})


if __name__ == "__main__":
    main()
