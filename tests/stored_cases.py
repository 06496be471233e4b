"""Small stored weights of every form, and their numbers worked out one by one."""

import torch

from modeling_small4.stored_weights import Fp8Weight, Int4Weight, Nvfp4Weight, StoredWeight

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FORMS = ("fp8", "fp8 rows", "fp8 blocks", "nvfp4", "int4 32", "int4 64", "int4 128", "int4 zeros")


def stored(form: str, rows: int = 200, columns: int = 256, seed: int = 0) -> StoredWeight:
    """A random weight of a form of `FORMS`; all codes occur, except those of FP8 that are no numbers."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    def scales(*shape: int) -> torch.Tensor:
        return 0.02 * torch.rand(shape, generator=generator) + 0.001

    if form.startswith("fp8"):
        codes = integers(256, rows, columns).to(torch.uint8)
        codes[codes & 127 == 127] = 0
        codes = codes.view(torch.float8_e4m3fn)
        shape = {"fp8": (1, 1), "fp8 rows": (rows, 1), "fp8 blocks": (-(-rows // 128), -(-columns // 128))}[form]
        return Fp8Weight(codes, scales(*shape).to(torch.bfloat16 if form == "fp8" else torch.float32))
    if form == "nvfp4":
        scale = (4 * torch.rand(rows, columns // 16, generator=generator)).to(torch.float8_e4m3fn)
        return Nvfp4Weight(integers(256, rows, columns // 2).to(torch.uint8), scale, torch.tensor(123.4))
    group = 32 if form.endswith("zeros") else int(form.split()[1])
    words = integers(2**32, rows, columns // 8).to(torch.int32)
    zeros = integers(2**32, -(-rows // 8), columns // group).to(torch.int32) if form.endswith("zeros") else None
    return Int4Weight(words, scales(rows, columns // group).bfloat16(), zeros)


def numbers(weight: StoredWeight) -> torch.Tensor:
    """The bfloat16 numbers of a weight, the slow way: one Python float at a time."""
    out = torch.empty(weight.rows, weight.columns)
    for row in range(weight.rows):
        out[row] = torch.tensor([_number(weight, row, column) for column in range(weight.columns)])
    return out.to(torch.bfloat16)


def _number(weight: StoredWeight, row: int, column: int) -> float:
    if isinstance(weight, Fp8Weight):
        high, wide = (
            -(-size // count) for size, count in zip((weight.rows, weight.columns), weight.scale.shape, strict=True)
        )
        high, wide = (128 if weight.blocks else size for size in (high, wide))
        return float(weight.codes[row, column]) * float(weight.scale[row // high, column // wide])
    if isinstance(weight, Nvfp4Weight):
        byte = int(weight.codes[row, column // 2])
        code = byte >> 4 if column % 2 else byte & 15
        value = E2M1[code & 7] * (-1 if code & 8 else 1)
        return value * float(weight.scale[row, column // 16]) / float(weight.divisor)
    assert isinstance(weight, Int4Weight)
    code = int(weight.codes[row, column // 8]) >> (4 * (column % 8)) & 15
    group = column // weight.group
    zero = 8 if weight.zeros is None else int(weight.zeros[row // 8, group]) >> (4 * (row % 8)) & 15
    return (code - zero) * float(weight.scale[row, group])
