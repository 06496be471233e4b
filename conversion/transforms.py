"""Each change of a tensor between layouts, beside its inverse. Changes of precision are in `formats/`.

Everything here works on small pieces from the caller. Knows no names and no files.
"""

import torch


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
