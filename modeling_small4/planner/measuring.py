"""Measures this machine's rates for the planner, in a few seconds: products of one token with experts of the released
widths as they are stored, decoder layers without them, copies, reads, multiplications.

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

from ..cache import LatentCache, extend
from ..configuration_small4 import Small4Config
from ..experts_files import WatchedFile
from ..experts_measuring import CACHED
from ..experts_pool import READERS
from ..experts_speed import rate_of, seconds_of
from ..loading_stored import hold
from ..modeling_small4 import Small4DecoderLayer
from ..rope import text_positions
from ..stored_experts import gated
from ..stored_layers import Part, stored_weight
from ..stored_weights import StoredWeight
from .sizes import tensors
from .speed import Rates

ENOUGH = 2**28  # bytes of weights, of which a cache holds little; of the file that measures a disk too
PIECE = 2**24  # bytes read at once, about an expert
HIDDEN, WIDTH, CHOSEN = 4096, 2048, 4  # of the release


def measure(precision: str = "bfloat16", folder: Path | None = None) -> Rates:
    """Measure this machine's CPU, disk, and GPU if there is one, with weights of a precision of `PRECISIONS`.

    folder: Of a checkpoint on the disk, of which one file is read. Without one of 256 MB, a temporary file is.
    """
    found = Rates(
        host=_product(precision, "cpu"),
        host_others=_others(precision, "cpu"),
        cpu_flops=_flops("cpu"),
        disk=_disk(folder),
        source="measured on this machine",
    )
    if not torch.cuda.is_available():
        return found
    gpu, others = _product(precision, "cuda"), _others(precision, "cuda")
    return replace(found, gpu=gpu, gpu_others=others, link=_link(), gpu_flops=_flops("cuda"))


def _product(precision: str, device: str) -> float:
    """Bytes of experts per second that one token is multiplied with, of those that no cache holds."""
    experts = [_expert(precision, device)]
    each = sum(tensor.nbytes for weight in experts[0] for tensor in _tensors(weight))
    groups = max(2, -(-ENOUGH // (each * CHOSEN)))
    experts += [_expert(precision, device) for _ in range(groups * CHOSEN - 1)]
    inputs, activation = [torch.ones(1, HIDDEN, dtype=_plain(precision), device=device)] * CHOSEN, nn.SiLU()

    def multiply(group: int) -> float:
        some = experts[group * CHOSEN : (group + 1) * CHOSEN]
        return float(_outputs(some, inputs, activation)[0].sum())  # which waits for a GPU

    with torch.inference_mode():
        return rate_of(multiply, groups, CHOSEN * each)


class _NoExperts(nn.Module):
    """In place of the routed experts of a layer."""

    def forward(self, hidden_states: torch.Tensor, *chosen: torch.Tensor) -> torch.Tensor:
        """As `Small4Experts.forward`."""
        return torch.zeros_like(hidden_states)


def _others(precision: str, device: str) -> float:
    """Bytes of all other weights per second that one token goes through, those of decoder layers: what attention, norms
    and calls take is part of it.
    """
    config = Small4Config(text_config={"num_hidden_layers": 1}, vision_config=None, attn_implementation="sdpa")
    layers = [_layer(config, precision, device)]
    each = sum(parameter.nbytes for parameter in layers[0].parameters())
    layers += [_layer(config, precision, device) for _ in range(ENOUGH // each)]
    text, dtype = config.text_config, _plain(precision)
    caches = [LatentCache(config) for _ in layers]
    inputs = torch.ones(1, 1, text.hidden_size, dtype=dtype, device=device)
    width, place = text.kv_lora_rank + text.qk_rope_head_dim, torch.full((1, 1), CACHED, device=device)

    def run(index: int) -> float:
        output = layers[index](inputs, text_positions(text, place), cache=caches[index], position_ids=place)
        return float(output.sum())  # which waits for a GPU

    with torch.inference_mode():
        for index, cache in enumerate(caches):
            extend(cache, inputs.new_zeros(1, 1, CACHED, width), text.kv_lora_rank, 0)
            run(index)  # stored weights keep what is expanded once
        return rate_of(run, len(layers), each)


def _layer(config: Small4Config, precision: str, device: str) -> nn.Module:
    """A decoder layer without routed experts, held as a checkpoint of this precision is."""
    with torch.device("meta"):
        layer = Small4DecoderLayer(config.text_config, 0)
    layer.mlp.experts = _NoExperts()
    begin, held = "model.language_model.layers.0.", dict[str, torch.Tensor]()
    for tensor in tensors(config):
        if tensor.name.startswith(begin) and tensor.part != "routed experts":
            plain = tensor.nbytes(precision) == tensor.nbytes("bfloat16")
            parts = _parts("bfloat16" if plain else precision, tensor.shape, device)
            held |= {tensor.name.removeprefix(begin) + end: part for end, part in parts.items()}
    hold(layer, {name: Part(tuple(part.shape), part.dtype) for name, part in held.items()})
    layer.load_state_dict(held, assign=True)
    return layer.eval().requires_grad_(False)


def _plain(precision: str) -> torch.dtype:
    return torch.float32 if precision == "float32" else torch.bfloat16


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
    gate, up, down = (_parts(precision, s, device) for s in ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)))
    return _matrix(gate), _matrix(up), _matrix(down)


def _matrix(parts: dict[str, torch.Tensor]) -> Matrix:
    return parts[""] if len(parts) == 1 else stored_weight(parts)


def _parts(precision: str, shape: tuple[int, ...], device: str) -> dict[str, torch.Tensor]:
    """The tensors of a weight of ones, by what stands behind the stem of their names."""

    def ones(dtype: torch.dtype, in_one: int = 1) -> torch.Tensor:
        return torch.ones(*shape[:-1], shape[-1] // in_one, dtype=dtype, device=device)

    if precision == "fp8":
        return {"": ones(torch.float8_e4m3fn), "_scale_inv": torch.ones((), dtype=torch.bfloat16, device=device)}
    if precision == "nvfp4":
        scales = {"_scale": ones(torch.float8_e4m3fn, 16), "_global_scale": torch.ones(1, device=device)}
        return {"_packed": ones(torch.uint8, 2)} | scales
    if precision == "int4":
        return {"_packed": ones(torch.int32, 8), "_scale": ones(torch.bfloat16, 128)}
    return {"": ones(_plain(precision))}


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
