"""DFlash drafts (arXiv:2602.06036): one forward over a masked block guesses its tokens, from states of the model.

transformers' layers compute it. Its files come in three forms: transformers' own, z-lab's `dflash_config`, and those of
the library speculators, in which the draft of the released model is published. Must not know: how drafts are checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel
from transformers.cache_utils import DynamicCache

from .files_reading import read_json, shown

FULL, SLIDING = "full_attention", "sliding_attention"
_OURS = {"fc.": "encoder.fc.", "hidden_norm.": "encoder.output_norm_enc."}
_UNUSED = ("verifier_lm_head.weight", "verifier_norm.weight", "d2t")
_OTHERS = ("dspark", "dflash2", "domino", "eagle3", "eagle-3", "peagle", "p-eagle", "mtp", "medusa", "jetspec")
WORKS = "give an EAGLE draft of the official layout, a DFlash draft, a small model or 'prompt_lookup'"


@dataclass
class DFlashRules:
    """What the forms of DFlash drafts differ in.

    Attributes:
        layers: Of the model whose outputs are read, from 0.
        block: Tokens of a block, the last one of the text first.
        mask: Id of the others.
        causal: In which sorts of layers a block's token sees only those before it.
        window: How far layers with a window see, counted from each token of the block; `from_first`: from its first.
        predicts_next: A place guesses the token behind it; else its own, and the first place guesses nothing.
    """

    layers: tuple[int, ...]
    block: int
    mask: int
    causal: tuple[str, ...] = ()
    window: int = 0
    from_first: bool = False
    predicts_next: bool = False


class DFlashDraft(nn.Module):
    """A DFlash draft. Embeddings and head are its own or, where None, the model's; `ids`: the model's id of each of the
    head's, int64 `[draft vocabulary]`, or None.
    """

    def __init__(self, body: MuseGlimmerAssistantModel, rules: DFlashRules) -> None:
        super().__init__()
        self.body, self.rules, self.config = body, rules, body.config
        body.set_attn_implementation("sdpa")
        self.embeddings: nn.Embedding | None = None
        self.head: nn.Linear | None = None
        self.ids: torch.Tensor | None = None

    @classmethod
    def of(cls, body: MuseGlimmerAssistantModel) -> "DFlashDraft":
        """A draft that transformers has loaded."""
        config = body.config
        layers = tuple(config.target_layer_ids or ())
        return cls(body, DFlashRules(layers, config.block_size, config.mask_token_id, window=config.sliding_window))

    def forward(
        self,
        embeddings: torch.Tensor,
        states: torch.Tensor,
        positions: torch.Tensor,
        shown: torch.Tensor | None,
        cache: DynamicCache,
    ) -> torch.Tensor:
        """
        Args:
            embeddings: Of the block, `[batch, block, hidden_size]`.
            states: The model's, of the tokens that the cache does not hold, `[batch, new, layers * hidden_size]`.
            positions: Of those and of the block, int64 `[batch, new + block]`.
            shown: `[batch, cached + new]`, 0 where padded, or None.
            cache: Of this draft. Holds the block too afterwards; crop it.

        Returns:
            Guessed hidden states of the block `[batch, block, hidden_size]`.
        """
        dtype = self.body.norm.weight.dtype
        masks = self._masks(int(cache.get_seq_length()) + states.shape[1], embeddings.shape[1], shown, states.device)
        return self.body(
            noise_embeds=embeddings.to(dtype), context_hidden_states=states.to(dtype), position_ids=positions,
            attention_mask=masks, cache=cache,
        ).last_hidden_state  # fmt: skip

    def _masks(
        self, known: int, block: int, shown: torch.Tensor | None, device: torch.device
    ) -> dict[str, torch.Tensor | None]:
        """What tokens of the block see, `[1 or batch, 1, block, known + block]`, for each sort of layer; None: all."""
        rules, out = self.rules, {}
        query, key = torch.arange(block, device=device)[:, None], torch.arange(-known, block, device=device)
        for sort in set(self.config.layer_types):
            seen = key <= (query if sort in rules.causal else block)
            if sort == SLIDING:
                seen = seen & ((key >= -rules.window) if rules.from_first else ((query - key).abs() <= rules.window))
            seen = seen.expand(block, -1)[None, None]
            if shown is not None:
                own = shown.new_ones((shown.shape[0], block))
                seen = seen & torch.cat((shown, own), dim=1).bool()[:, None, None]
            out[sort] = None if bool(seen.all()) else seen
        return out


def is_dflash(config: dict[str, Any]) -> bool:
    """Whether this configuration is that of a DFlash draft.

    Raises:
        ValueError: It is of another kind of draft, none that works here.
    """
    dflash = config.get("dflash_config") or {}
    marks = [*(config.get("architectures") or ()), config.get("speculators_model_type"), dflash.get("projector_type")]
    names = " ".join(str(mark).lower() for mark in marks if mark)
    if other := next((name for name in _OTHERS if name in names), None):
        raise ValueError(f"is a draft of the kind {shown(other)} ({names}), which does not work here; {WORKS}.")
    kind = config.get("speculators_model_type")
    if kind not in (None, "dflash"):
        raise ValueError(
            f"is a draft of the kind {shown(kind)} of the library speculators, which does not work here; {WORKS}."
        )
    return bool(dflash) or kind == "dflash" or config.get("model_type") == MuseGlimmerAssistantConfig.model_type


def body_of(config: dict[str, Any]) -> tuple[MuseGlimmerAssistantConfig, DFlashRules]:
    """transformers' configuration of a DFlash draft of any form, and its rules.

    Raises:
        ValueError: A key is missing, or its value has no counterpart.
    """
    if config.get("model_type") == MuseGlimmerAssistantConfig.model_type:
        theirs = MuseGlimmerAssistantConfig.from_dict(config)
        layers = tuple(theirs.target_layer_ids or ())
        return theirs, DFlashRules(layers, theirs.block_size, theirs.mask_token_id, window=theirs.sliding_window)
    dflash = config.get("dflash_config") or {}
    speculators = "speculators_model_type" in config
    inner = dict(config["transformer_layer_config"]) if speculators else dict(config)
    if speculators:
        outer = ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers")
        inner |= {name: config[name] for name in outer if config.get(name) is not None}
    kind = inner.pop("model_type", "qwen3")
    theirs = AutoConfig.for_model(kind, **{name: value for name, value in inner.items() if name != "dflash_config"})
    if getattr(theirs, "attention_bias", False) or dflash.get("attention_mode", "gqa") not in ("gqa", "mha"):
        raise ValueError("has attention with biases or latents, which DFlash drafts that work here have not.")
    wanted = _first("target_layer_ids" if not speculators else "aux_hidden_state_layer_ids", dflash, config)
    sorts = list(getattr(theirs, "layer_types", None) or [FULL] * theirs.num_hidden_layers)
    block, mask = _first("block_size", config, dflash), _first("mask_token_id", config, dflash)
    if speculators:  # counts the embeddings' output as layer 0
        causal = () if config.get("sliding_window_non_causal") else (SLIDING,)
        rules = DFlashRules(tuple(layer - 1 for layer in wanted), block, mask, causal, from_first=True)
        rules.predicts_next = bool(config.get("sample_from_anchor"))
    else:
        rules = DFlashRules(tuple(wanted), block, mask, (FULL, SLIDING) if dflash.get("causal") else ())
    rules.window = getattr(theirs, "sliding_window", None) or theirs.max_position_embeddings
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
        if (getattr(theirs, name, None) or 1) < 1:
            raise ValueError(f"has {name} {getattr(theirs, name)} in config.json; it must be at least 1.")
    return MuseGlimmerAssistantConfig(
        hidden_size=theirs.hidden_size, intermediate_size=theirs.intermediate_size, hidden_act=theirs.hidden_act,
        num_hidden_layers=theirs.num_hidden_layers, num_attention_heads=theirs.num_attention_heads,
        num_key_value_heads=theirs.num_key_value_heads, rms_norm_eps=theirs.rms_norm_eps,
        head_dim=getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
        rope_parameters=theirs.rope_parameters, max_position_embeddings=theirs.max_position_embeddings,
        sliding_window=rules.window, layer_types=sorts, block_size=block, mask_token_id=mask,
        target_layer_ids=list(rules.layers),
    ), rules  # fmt: skip


def _first(name: str, *places: dict[str, Any]) -> Any:
    found = next((place[name] for place in places if place.get(name) is not None), None)
    if found is None:
        raise ValueError(f"is a DFlash draft without {name} in config.json.")
    return found


def read_dflash(folder: Path, dtype: torch.dtype) -> DFlashDraft:
    """The DFlash draft in a folder.

    Raises:
        ValueError: Tensors or keys are missing, of another shape, or unknown.
    """
    config, rules = body_of(read_json(folder / "config.json"))
    config.dtype = dtype
    with torch.device("meta"):
        draft = DFlashDraft(MuseGlimmerAssistantModel(config), rules)
    own, state, unknown, size = draft.body.state_dict(), {}, [], config.hidden_size
    for name, tensor in _tensors(folder):
        ours = next((new + name.removeprefix(old) for old, new in _OURS.items() if name.startswith(old)), name)
        if ours in own:
            state[ours] = tensor.to(dtype)
        elif name in ("embed_tokens.weight", "lm_head.weight") and tensor.shape[1] == size:
            layer = nn.Embedding if name.startswith("embed") else nn.Linear
            setattr(draft, "embeddings" if name.startswith("embed") else "head", _holding(layer, tensor.to(dtype)))
        elif name == "t2d":
            draft.ids = tensor.nonzero().flatten()
        elif name not in _UNUSED:
            unknown.append(name)
    wrong = [name for name in state if state[name].shape != own[name].shape]
    missing = sorted(set(own) - set(state))
    for what, names in (("missing", missing), ("of another shape", wrong), ("unknown", unknown)):
        if names:
            more = " ..." if len(names) > 4 else ""
            raise ValueError(f"{folder}: is a DFlash draft with tensors {what}: {', '.join(sorted(names)[:4])}{more}")
    if draft.head is not None and draft.ids is not None and len(draft.ids) != draft.head.weight.shape[0]:
        raise ValueError(
            f"{folder}: is a DFlash draft whose t2d names {len(draft.ids)} tokens and whose lm_head has "
            f"{draft.head.weight.shape[0]}"
        )
    draft.body.load_state_dict(state, assign=True)
    draft.body.rotary_emb = type(draft.body.rotary_emb)(config)  # its buffers are not stored
    return draft.eval()


def _holding(kind: type[nn.Embedding] | type[nn.Linear], weight: torch.Tensor) -> nn.Embedding | nn.Linear:
    with torch.device("meta"):
        made = kind(*weight.shape) if kind is nn.Embedding else nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: is a DFlash draft without model*.safetensors")
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name.removeprefix("model."), opened.get_tensor(name)
