"""How many bytes training takes: weights, adapters, gradients, optimizer states and what is kept for the backward pass.

`train_bytes(Small4Config(), Training("lora", batch=1, length=4096))` answers for one device; `small4 plan --train` prints
it. Arithmetic only, from a configuration. Must not know: torch, the command line.
"""  # noqa: E501

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from ..configuration_small4 import Small4Config, Small4TextConfig
from ..files_reading import shown
from .sizes import PIECE_BYTES, Tensor, tensors

# Bytes of optimizer states for each trained number, by the bytes of the number; 8 bits: blocks of 256 share a float32.
OPTIMIZERS = {"adamw": (2, 2), "adamw8bit": (0, 2 + 8 / 256), "muon": (1, 0)}
TARGETS = {
    "attention": ("attention",),
    "attention+shared": ("attention", "shared experts"),
    "all+experts": ("attention", "shared experts", "dense layers", "routed experts"),
}
KINDS = ("lora", "full")
PIECE = 2**20  # numbers of `PIECE_BYTES`
ADAPTER = 4  # PEFT keeps adapters in float32
SHARDINGS = ("none", "expert", "fsdp", "fsdp+expert")


@dataclass(frozen=True)
class Training:
    """What is trained, and how. `precision`: of the weights, one of `PRECISIONS`; all but float32 compute in bfloat16.
    `batch` rows of `length` tokens on each device in one forward pass. `loss_chunk`: see `modeling_small4.loss`.
    `sharding`: over `ranks` devices, "expert": routed experts dealt, "fsdp": all weights in pieces, "fsdp+expert": both;
    adapters are in pieces with "fsdp" alone, and otherwise whole on each device. `shared_ranks`: see
    `share_expert_ranks`.
    """  # noqa: E501

    kind: str = "lora"
    precision: str = "fp8"
    batch: int = 1
    length: int = 4096
    checkpointing: bool = False
    optimizer: str = "adamw"
    targets: str = "all+experts"
    rank: int = 16
    loss_chunk: int | None = None
    sharding: str = "none"
    ranks: int = 1
    shared_ranks: bool = False

    @property
    def held(self) -> bool:
        """Whether adapters are trained on weights that are held as stored."""
        return self.kind == "lora" and self.precision in ("fp8", "nvfp4", "int4")

    @property
    def trains_experts(self) -> bool:
        """Whether routed experts or their adapters are trained."""
        return self.kind == "full" or self.targets == "all+experts"

    @property
    def once(self) -> bool:
        """Whether a shared side is multiplied once for each token; PEFT's own layers copy it for each expert."""
        return self.held and self.shared_ranks

    @property
    def tokens(self) -> int:
        """In one forward pass of a device."""
        return self.batch * self.length

    @property
    def element(self) -> int:
        """Bytes of an activation."""
        return 4 if self.precision == "float32" else 2


def check(training: Training) -> None:
    """Raise ValueError for what cannot be planned."""
    known = {"kind": KINDS, "optimizer": tuple(OPTIMIZERS), "targets": tuple(TARGETS), "sharding": SHARDINGS}
    for name, names in known.items():
        if getattr(training, name) not in names:
            raise ValueError(f"{name} {shown(getattr(training, name))} is unknown; choose one of {', '.join(names)}.")
    for name in ("batch", "length", "rank", "ranks"):
        if getattr(training, name) < 1:
            raise ValueError(f"{name}={getattr(training, name)} cannot be planned; it must be 1 or more.")
    if training.kind == "full" and training.precision not in ("float32", "bfloat16"):
        raise ValueError(
            f"All weights are trained in bfloat16 or float32; {training.precision} weights take adapters: --train lora."
        )


def train_bytes(config: Small4Config, training: Training) -> dict[str, int]:
    """Peak bytes of one device by part; they add up.

    weights; adapters (float32); gradients, as large as what is trained, since they stand while batches are accumulated;
    optimizer; activations, what is kept for the backward pass, with checkpointing a layer's input and one layer's rest;
    loss, 12 bytes for each logit that is there at once, or a layer's working memory where that is more.
    """
    check(training)
    weights = trained = states = adapters = 0.0
    for tensor in tensors(config):
        share = _share(tensor, training)
        weights += tensor.nbytes(training.precision) * share
        number = ADAPTER if training.kind == "lora" else training.element
        cut = share if training.sharding == "fsdp" else 1.0
        count = adapter_count(tensor, training) * cut if training.kind == "lora" else tensor.count * share
        adapters += ADAPTER * count if training.kind == "lora" else 0
        trained += number * count
        states += _state_bytes(tensor, training, number) * count
    if training.sharding.startswith("fsdp"):
        weights += _gathered(config, training)
    kept, loss, working = activations(config, training)
    if training.checkpointing:
        activation, at_loss = kept + max(working - loss, 0), loss
    else:
        activation, at_loss = kept, max(loss, working - _last_norm(config.text_config, training))
    held = {"weights": weights, "adapters": adapters, "gradients": trained, "optimizer": states}
    return {name: ceil(size) for name, size in (held | {"activations": activation, "loss": at_loss}).items()}


def adapter_count(tensor: Tensor, training: Training) -> int:
    """Numbers of the adapter of a weight; each expert has its own, or all share the side of the hidden state."""
    if tensor.kind == "plain" or tensor.part not in TARGETS[training.targets]:
        return 0
    *experts, rows, columns = tensor.shape
    if not experts:
        return training.rank * (rows + columns)
    hidden, inner = (columns, rows) if tensor.name.endswith("gate_up_proj") else (rows, columns)
    return training.rank * (experts[0] * inner + (1 if training.shared_ranks else experts[0]) * hidden)


def _state_bytes(tensor: Tensor, training: Training, number: int) -> float:
    """For each trained number. Muon is for matrices; what is none takes AdamW."""
    optimizer = "adamw" if training.optimizer == "muon" and len(tensor.shape) < 2 else training.optimizer
    times, more = OPTIMIZERS[optimizer]
    return 2 * number if optimizer == "adamw" else times * number + more


def _share(tensor: Tensor, training: Training) -> float:
    """Which part of a weight a device holds."""
    dealt = training.sharding in ("expert", "fsdp+expert") and tensor.part == "routed experts"
    cut = training.sharding == "fsdp" or (training.sharding == "fsdp+expert" and not dealt)
    return 1 / training.ranks if dealt or cut else 1.0


def _gathered(config: Small4Config, training: Training) -> float:
    """The largest layer's pieces brought together, and its gradients before they are dealt out again; with adapters,
    the next layer's pieces beside them.
    """
    sizes: dict[str, float] = {}
    for tensor in tensors(config):
        if training.sharding == "fsdp+expert" and tensor.part == "routed experts":
            continue
        layer = tensor.name.split(".layers.")[-1].split(".")[0] if ".layers." in tensor.name else tensor.name
        sizes[layer] = sizes.get(layer, 0) + tensor.nbytes(training.precision)
        if training.kind == "lora" and training.sharding == "fsdp":
            sizes[layer] += ADAPTER * adapter_count(tensor, training)
    return 2 * max(sizes.values())


def activations(config: Small4Config, training: Training) -> tuple[float, float, float]:
    """What is kept for the backward pass when the loss is computed, what the loss takes there, and with checkpointing
    what the layer takes whose backward pass runs.
    """
    text, tokens, e = config.text_config, training.tokens, training.element
    layers = [_kept(text, index, training) for index in range(text.num_hidden_layers)]
    if training.checkpointing:
        kept = e * tokens * text.hidden_size * len(layers)
        working = max(layer + _passing(text, training) for layer in layers)
    else:
        first = 0 if training.kind == "full" else training.tokens * _norms(text.hidden_size, training)  # not trained
        kept, working = sum(layers) - first, _passing(text, training)
    return kept + _last_norm(text, training), _loss(text, training), working


def _last_norm(text: Small4TextConfig, training: Training) -> float:
    """Input and output of the last norm, which no layer's backward pass has to keep."""
    return training.tokens * text.hidden_size * (4 + 4 + training.element)


def _loss(text: Small4TextConfig, training: Training) -> float:
    """Four bytes each for log-softmax and its gradient, and four more: logits and their gradient where these are in
    bfloat16, logits where they are in float32.
    """
    return 12 * min(training.tokens, training.loss_chunk or training.tokens) * text.vocab_size


def _kept(text: Small4TextConfig, index: int, training: Training) -> float:
    """What one layer keeps for its backward pass."""
    each = sum(_attention(text, training)) + sum(_feed_forward(text, index, training))
    return training.tokens * each + _of_experts(text, index, training)


def _attention(text: Small4TextConfig, training: Training) -> Iterator[float]:
    """Bytes for each token: norms, projections' inputs, and what the attention kernel keeps."""
    e, heads, width, value = training.element, text.num_attention_heads, text.hidden_size, text.v_head_dim
    ranks = [rank for rank in (text.q_lora_rank, text.kv_lora_rank) if rank is not None]
    inputs = [*ranks, heads * value]
    yield _norms(width, training) + sum(_norms(rank, training) for rank in ranks)
    if training.kind == "full" or e == 4:
        yield e * (width + sum(inputs))
    else:  # an adapter keeps its input in float32, each its own copy
        yield ADAPTER * ((width if ranks == inputs[:-1] and len(ranks) == 2 else 0) + width + sum(inputs))
    if training.kind == "lora":
        yield ADAPTER * training.rank * (2 * len(ranks) + 1)
    if text.qk_head_dim == value:  # a fused kernel: queries, keys, values beside the keys they were made with, output
        yield e * heads * (2 * text.qk_head_dim + text.qk_nope_head_dim + 2 * value) + 4 * heads
    else:
        yield 4 * heads * (2 * text.qk_head_dim + value + training.length)


def _norms(width: int, training: Training) -> float:
    """A norm keeps its input's inverse size, the normed input in float32, and for a trained weight the input too."""
    return 4 + 4 * width * (2 if training.kind == "full" else 1)


def _feed_forward(text: Small4TextConfig, index: int, training: Training) -> Iterator[float]:
    """Bytes for each token: norm, router, dispatched tokens and what experts make of them."""
    e, width, full = training.element, text.hidden_size, training.kind == "full"
    yield _norms(width, training)
    if index < text.first_k_dense_replace:
        yield from _gated(text.intermediate_size, width, training, "all+experts")
        return
    top = text.num_experts_per_tok
    yield 4 * text.n_routed_experts + 4 + 12 * top  # logits, sum, weights, indices
    if training.trains_experts:  # dispatched tokens, gate and up, its activation, what goes down, output
        copies = top if not training.once else 1  # of a token, that adapters keep
        yield top * (24 + e + e * (width + 4 * text.moe_intermediate_size)) + copies * e * width
    else:  # experts that are not trained keep no inputs
        yield top * (24 + e + e * (width + 3 * text.moe_intermediate_size))
    if full:
        yield e * width
    elif training.targets == "all+experts":
        yield e * top * 2 * training.rank
    if text.n_shared_experts:
        inner = text.moe_intermediate_size * text.n_shared_experts
        yield from _gated(inner, width, training, "attention+shared")


def _gated(inner: int, width: int, training: Training, needed: str) -> Iterator[float]:
    """A gated layer: gate, its activation, up; and the projections' inputs."""
    adapted = list(TARGETS).index(training.targets) >= list(TARGETS).index(needed)
    yield 3 * training.element * inner
    if training.kind == "full" or (adapted and training.element == 4):
        yield training.element * inner
    elif adapted:
        yield ADAPTER * (2 * width + inner)
    if training.kind == "lora" and adapted:
        yield ADAPTER * 3 * training.rank


def _of_experts(text: Small4TextConfig, index: int, training: Training) -> float:
    """What a layer keeps of adapters on experts, whatever the number of tokens: them in the dtype of the tokens, or on
    weights that are not held as stored a copy of these with the adapters added, as PEFT makes it.
    """
    if training.kind == "full" or training.targets != "all+experts" or index < text.first_k_dense_replace:
        return 0
    inner, width = text.moe_intermediate_size, text.hidden_size
    share = training.ranks if "expert" in training.sharding else 1
    experts = text.n_routed_experts / share
    numbers = experts * training.rank * 3 * inner + (0 if training.held else experts * 3 * inner * width)
    alike = 1 if training.once else experts
    return training.element * (numbers + alike * training.rank * 2 * width)


def _passing(text: Small4TextConfig, training: Training) -> float:
    """Working memory of a layer's backward pass. On held weights: gradients of its output, of experts' outputs, of
    dispatched tokens (where these were kept, in their place) and, in an adapter's dtype, of its input; and one weight's
    expanded piece. On others: the gradient of its output, and of the experts' weights or of what PEFT makes of them.
    """
    width, e = text.hidden_size, training.element
    if training.held:
        more = 2 * ADAPTER * width if e < ADAPTER else 0
        piece = min(PIECE, width * text.moe_intermediate_size) * PIECE_BYTES / PIECE
        top = text.num_experts_per_tok
        groups = top if training.trains_experts and not training.once else 2 * top
        return training.tokens * (e * width * (1 + groups) + more) + piece
    experts = 3 * text.n_routed_experts * width * text.moe_intermediate_size if training.trains_experts else 0
    return e * (training.tokens * width + experts / (training.ranks if "expert" in training.sharding else 1))
