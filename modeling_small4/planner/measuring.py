"""Measures this machine's rates for the planner, in a few seconds: products of one token with experts of the released
widths as they are stored, copies, reads, multiplications.

Must not know: what is planned.
"""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..experts_files import WatchedFile
from ..experts_pool import READERS
from ..experts_speed import rate_of, seconds_of
from ..stored_layers import gated
from ..stored_weights import Fp8Weight, Int4Weight, Nvfp4Weight, StoredWeight
from .speed import Rates

ENOUGH = 2**28  # bytes of weights, of which a cache holds little; of the file that measures a disk too
PIECE = 2**24  # bytes read at once, about an expert
HIDDEN, WIDTH, CHOSEN = 4096, 2048, 4  # of the release


def measure(precision: str = "bfloat16", folder: Path | None = None) -> Rates:
    """Measure this machine's CPU, disk, and GPU if there is one, with weights of a precision of `PRECISIONS`.

    folder: Of a checkpoint on the disk, of which one file is read. Without one of 256 MB, a temporary file is.
    """
    found = Rates(
        host=_product(precision, "cpu"), cpu_flops=_flops("cpu"), disk=_disk(folder), source="measured on this machine"
    )
    if not torch.cuda.is_available():
        return found
    return replace(found, gpu=_product(precision, "cuda"), link=_link(), gpu_flops=_flops("cuda"))


def _product(precision: str, device: str) -> float:
    """Bytes of experts per second that one token is multiplied with, of those that no cache holds."""
    experts = [_expert(precision, device)]
    each = sum(tensor.nbytes for weight in experts[0] for tensor in _tensors(weight))
    groups = max(2, -(-ENOUGH // (each * CHOSEN)))
    experts += [_expert(precision, device) for _ in range(groups * CHOSEN - 1)]
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    inputs, activation = [torch.ones(1, HIDDEN, dtype=dtype, device=device)] * CHOSEN, nn.SiLU()

    def multiply(group: int) -> float:
        some = experts[group * CHOSEN : (group + 1) * CHOSEN]
        return float(_outputs(some, inputs, activation)[0].sum())  # which waits for a GPU

    with torch.inference_mode():
        return rate_of(multiply, groups, CHOSEN * each)


Matrix = StoredWeight | torch.Tensor
Expert = tuple[Matrix, Matrix, Matrix]


def _outputs(experts: list[Expert], inputs: list[torch.Tensor], activation: nn.Module) -> list[torch.Tensor]:
    """Of each expert (gate, up, down) for its token."""
    gates, downs = [half for expert in experts for half in expert[:2]], [expert[2] for expert in experts]
    stored = [w for w in gates if isinstance(w, StoredWeight)], [w for w in downs if isinstance(w, StoredWeight)]
    if stored[0]:
        return gated(*stored, inputs, activation)
    plain = [w.T for w in (*gates, *downs) if isinstance(w, torch.Tensor)]
    halves = [x @ half for x, half in zip([x for x in inputs for _ in (0, 1)], plain, strict=False)]
    inner = [activation(gate) * up for gate, up in zip(halves[::2], halves[1::2], strict=True)]
    return [x @ down for x, down in zip(inner, plain[len(gates) :], strict=True)]


def _tensors(weight: Matrix) -> list[torch.Tensor]:
    return [weight] if isinstance(weight, torch.Tensor) else [t for t in vars(weight).values() if t is not None]


def _expert(precision: str, device: str) -> Expert:
    """Gate, up and down of ones, in the form that a checkpoint of this precision stores."""
    return (
        _matrix(precision, WIDTH, HIDDEN, device),
        _matrix(precision, WIDTH, HIDDEN, device),
        _matrix(precision, HIDDEN, WIDTH, device),
    )


def _matrix(precision: str, rows: int, columns: int, device: str) -> Matrix:
    def ones(columns: int, dtype: torch.dtype, rows: int = rows) -> torch.Tensor:
        return torch.ones(rows, columns, device=device).to(dtype)

    if precision == "fp8":
        return Fp8Weight(ones(columns, torch.float8_e4m3fn), ones(1, torch.bfloat16, rows=1))
    if precision == "nvfp4":
        codes, scale = ones(columns // 2, torch.uint8), ones(columns // 16, torch.float8_e4m3fn)
        return Nvfp4Weight(codes, scale, torch.ones((), device=device))
    if precision == "int4":
        return Int4Weight(ones(columns // 8, torch.int32), ones(columns // 128, torch.bfloat16))
    return ones(columns, torch.float32 if precision == "float32" else torch.bfloat16)


def _link() -> float:
    source = torch.ones(2, PIECE, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device="cuda")

    def copy(index: int) -> None:
        target[index].copy_(source[index], non_blocking=True)
        torch.cuda.synchronize()

    return rate_of(copy, 2, PIECE)


def _flops(device: str) -> float:
    numbers = torch.ones(2048, 2048, dtype=torch.bfloat16, device=device)
    return rate_of(lambda _: float((numbers @ numbers)[0, 0]), 1, 2 * 2048**3)


def _disk(folder: Path | None) -> float:
    """As many pieces at once as a token has experts, from a file that is not in the file cache."""
    with _file(folder) as path:
        opened, memory = WatchedFile(str(path)), torch.ones(ENOUGH // PIECE, PIECE, dtype=torch.uint8)
        opened.forget(0, path.stat().st_size)
        pieces = [piece.numpy().data for piece in memory]
        with ThreadPoolExecutor(READERS) as workers:

            def group(first: int) -> None:
                list(workers.map(lambda n: opened.read(n * PIECE, pieces[n]), range(first, first + CHOSEN)))

            return ENOUGH / sum(seconds_of(lambda: group(n)) for n in range(0, len(pieces), CHOSEN))  # noqa: B023


@contextmanager
def _file(folder: Path | None) -> Iterator[Path]:
    """A file of at least `ENOUGH` bytes."""
    files = [] if folder is None else [file for file in folder.glob("*.safetensors") if file.is_file()]
    if large := [file for file in files if file.stat().st_size >= ENOUGH]:
        yield large[0]
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(os.urandom(2**20) * (ENOUGH // 2**20))
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)
