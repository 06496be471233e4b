"""Products with weights as they are stored. Knows the forms of `stored_weights`, no modules."""

import torch
from torch.nn.functional import linear

from .stored_weights import StoredWeight


def product(weight: StoredWeight, inputs: torch.Tensor) -> torch.Tensor:
    """`inputs @ weight.T` as with the expanded weight in the dtype of the inputs.

    inputs: float `[tokens, columns]`, on the weight's device. Returns `[tokens, rows]` in the dtype of the inputs.
    """
    outputs = inputs.new_empty(inputs.shape[0], weight.rows)
    for rows, piece in weight.pieces():
        outputs[:, rows] = linear(inputs, piece.expand().to(inputs.dtype))
    return outputs


def product_transposed(weight: StoredWeight, grad: torch.Tensor) -> torch.Tensor:
    """`grad @ weight`, for gradients of inputs: float `[tokens, rows]` to `[tokens, columns]`, summed over pieces in float32 or wider."""
    total = grad.new_zeros(grad.shape[0], weight.columns, dtype=torch.promote_types(grad.dtype, torch.float32))
    for rows, piece in weight.pieces():
        total += grad[:, rows] @ piece.expand().to(grad.dtype)
    return total.to(grad.dtype)
