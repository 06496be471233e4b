"""Codes of a few bits packed without a gap, lowest bits first, as compressed-tensors, GPTQ and MLX pack them. Knows
nothing else.
"""

import torch


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, n] of any integer dtype, read as bytes (little endian) -> the codes in them, uint8 [rows, bytes * 8 //
    bits].

    Eight codes always fill `bits` bytes, so a row may end in codes that only fill it up. Inverse: `pack`.
    """
    rows = words.shape[0]
    data = words.flatten().view(torch.uint8).view(rows, -1)
    if bits == 8:
        return data
    if bits == 4:
        return torch.stack((data & 15, data >> 4), dim=-1).view(rows, -1)
    width = data.shape[1]
    data = torch.nn.functional.pad(data, (0, -width % bits)).view(rows, -1, bits)
    joined = (data.long() << torch.arange(0, 8 * bits, 8)).sum(-1, keepdim=True)
    codes = (joined >> torch.arange(0, 8 * bits, bits)) & (2**bits - 1)
    return codes.to(torch.uint8).view(rows, -1)[:, : width * 8 // bits]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [rows, columns] of any integer dtype -> int32 [rows, ceil(columns * bits / 32)], filled up with zeros.
    Inverse: `unpack`.
    """
    rows, columns = codes.shape
    words = -(-columns * bits // 32)
    padded = torch.nn.functional.pad(codes.long(), (0, -columns % 8)).view(rows, -1, 8)
    joined = (padded << torch.arange(0, 8 * bits, bits)).sum(-1, keepdim=True)
    data = ((joined >> torch.arange(0, 8 * bits, 8)) & 255).to(torch.uint8).view(rows, -1)
    data = torch.nn.functional.pad(data, (0, max(0, 4 * words - data.shape[1])))[:, : 4 * words]
    return data.contiguous().view(torch.int32)
