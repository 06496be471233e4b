"""Products of one layer's weights held as stored, against bfloat16 of the same shapes: experts of a token, shared
expert, attention.

    python -m model_card.bench.stored_products [--out model_card/results/stored_products.json]

from the repository root. Checks equality with the expanded weight first. Every way cycles through several copies of the
weights, so that caches do not help. Prints a table, and one JSON line last.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import torch

from model_card.bench.harness import Run, interleaved, options, read, report
from modeling_small4.stored_kernels import fused_tokens, products
from modeling_small4.stored_native import library
from modeling_small4.stored_weights import Fp8Weight, Int4Weight, Nvfp4Weight, StoredWeight

FORMS = ("fp8", "fp8 rows", "fp8 blocks", "nvfp4", "int4 32", "int4 128")
HIDDEN, WIDTH = 4096, 2048
# Rows and columns of what a token meets: gate and up of four experts and the shared one, their down, and attention.
EXPERTS = [(WIDTH, HIDDEN)] * 10 + [(HIDDEN, WIDTH)] * 5
ATTENTION = [(1024, HIDDEN), (4096, 1024), (320, HIDDEN), (6144, 256), (HIDDEN, 4096)]


def random_weight(form: str, rows: int, columns: int) -> StoredWeight:
    """A weight of a form with numbers of the size of a trained one."""
    if form.startswith("fp8"):
        shape = {"fp8": (1, 1), "fp8 rows": (rows, 1), "fp8 blocks": (-(-rows // 128), -(-columns // 128))}[form]
        codes = torch.randn(rows, columns).mul_(60).clamp_(-448, 448).to(torch.float8_e4m3fn)
        return Fp8Weight(codes, torch.rand(shape) * 2e-4 + 1e-4)
    if form == "nvfp4":
        codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
        scale = torch.rand(rows, columns // 16).mul_(400).to(torch.float8_e4m3fn)
        return Nvfp4Weight(codes, scale, torch.tensor(4e4))
    group = int(form.split()[1])
    words = torch.randint(-(2**31), 2**31, (rows, columns // 8), dtype=torch.int32)
    return Int4Weight(words, (torch.rand(rows, columns // group) * 4e-3).bfloat16())


def in_turn(copies: Sequence[Any], run: Any) -> Run:
    """A call that takes the next copy each time."""
    following = cycle(copies)
    return lambda: run(next(following))


def difference(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """Size of the difference relative to the size of a result."""
    return ((mine.double() - theirs.double()).norm() / theirs.double().norm()).item()


def measured(args: Any, form: str, shapes: Sequence[tuple[int, int]], tokens: int) -> dict[str, Any]:
    """One row: bfloat16 and the stored form, in turns."""
    inputs = {columns: torch.randn(tokens, columns, dtype=args.dtype) for _, columns in shapes}
    stored = [[random_weight(form, *shape) for shape in shapes] for _ in range(args.copies)]
    whole = [[weight.expand().to(args.dtype) for weight in copy] for copy in stored]

    def ours(copy: list[StoredWeight]) -> list[torch.Tensor]:
        return products(copy, [inputs[weight.columns] for weight in copy])

    def plain(copy: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.mm(inputs[weight.shape[1]], weight.T) for weight in copy]

    error = max(difference(*pair) for pair in zip(ours(stored[0]), plain(whole[0]), strict=True))
    if not error <= 0.004:  # half a rounding to bfloat16 on either side
        raise SystemExit(f"{form} differs by {error:.2g} of its size for {tokens} tokens; nothing was timed.")
    row = interleaved(args, in_turn(stored, ours), bfloat16=in_turn(whole, plain))
    return row | {"error": error, "bytes": sum(weight.nbytes for weight in stored[0])}


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__, runs=40)
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS)
    parser.add_argument("--copies", type=int, default=3)
    args = read(parser)
    kernels = library()
    rows = {}
    with torch.inference_mode():
        for tokens in args.tokens:
            for form in args.forms:
                for name, shapes in (("experts", EXPERTS), ("attention", ATTENTION)):
                    rows[f"{name}, {form}, {tokens} tokens"] = measured(args, form, shapes, tokens)
    chosen = kernels.variant.name if kernels else None
    fused = fused_tokens(kernels.variant.narrow, args.dtype) if kernels else 0
    capabilities = {name: value for name, value in torch.cpu.get_capabilities().items() if value}
    found = {"rows": rows, "kernels": chosen, "fused_tokens": fused, "cpu": capabilities}
    report(args, found, {"ours_ms": "9.3f", "bfloat16_ms": "9.3f", "speedup_bfloat16": "8.2f", "error": "8.1e"})


if __name__ == "__main__":
    main()
