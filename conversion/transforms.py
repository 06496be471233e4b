"""Each change a tensor goes through between layouts and precisions, beside its inverse where it has one.

Everything here works on small pieces handed in by the caller. It knows no names and no files.
"""

import torch

# e2m1: sign, two exponent bits, one mantissa bit (OCP Microscaling formats 1.0, section 5.3.3).
_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
NVFP4_BLOCK = 16


def interleaved_to_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads * w, n] with rotary pairs as rows (2i, 2i+1) of each head -> the same with pairs as rows (i, i + w/2).

    Example with one head of width 4: rows 0 1 2 3 -> 0 2 1 3. Inverse: `halves_to_interleaved`.
    """
    out, inner = rows.shape
    return rows.view(heads, out // heads // 2, 2, inner).transpose(1, 2).reshape(out, inner)


def halves_to_interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Inverse of `interleaved_to_halves`."""
    out, inner = rows.shape
    return rows.view(heads, 2, out // heads // 2, inner).transpose(1, 2).reshape(out, inner)


def dequantize_fp8(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """E4M3 codes and their scale -> bfloat16, rounded once: bf16(code) * bf16(scale), as the release's engines do it.

    Not inverted: checkpoints that stay FP8 are copied code by code.
    """
    return codes.to(torch.bfloat16) * scale.to(torch.bfloat16)


def dequantize_nvfp4(packed: torch.Tensor, block_scales: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """Packed e2m1 pairs -> float32: e2m1 * e4m3 / global, with one e4m3 scale for 16 neighbours along a row.

    packed: uint8 [n / 2], the low nibble is the even column. block_scales: float8_e4m3fn [n / 16]. divisor: float32 scalar.
    """
    nibbles = torch.stack((packed & 0xF, packed >> 4), dim=-1).view(-1)
    values = _E2M1[nibbles.int()].view(-1, NVFP4_BLOCK)
    return (values * block_scales.float().view(-1, 1) / divisor.float()).view(-1)
