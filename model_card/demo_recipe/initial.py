"""The weights the demo run starts from: random, but for what every model of language has to find first.

A decoder learns late, and all at once, to look up what followed the same words before. It needs a head that looks at
the token before, and a later one that looks for like content and copies it (Olsson et al., 2022, arXiv:2209.11895):
none of the parts is of use alone, so random ones get hardly any gradient. So three heads of the first layer start out
looking one, two and three tokens back; in the other layers queries and keys begin alike and values are copied as they
are ("mimetic initialization", Trockman and Kolter, 2023, arXiv:2305.09828); and the output head begins as the
embeddings. All of it is trained on, like any weight.
"""

import math
from typing import cast

import torch
from torch import nn

from model_card.demo_recipe.recipe import demo_config
from modeling_small4 import Small4ForCausalLM
from modeling_small4.attention import Small4Attention

TOKENS_BACK = (1, 2, 3)
FREQUENCIES = 4  # the fastest of the rotary frequencies: together they tell neighbours apart
COMMON = 0.35  # size of what all embeddings share, beside their own 0.5: positions are told from it, whatever the token
KEY_GAIN, QUERY_GAIN = 0.95, 1.33
HEAD_SCALE = 0.2


@torch.no_grad()
def new_model(vocab_size: int) -> Small4ForCausalLM:
    """Float32: every linear at the scale that keeps activations' size, outputs to the residual half of it, then as said
    above.
    """
    model = Small4ForCausalLM(demo_config(vocab_size))
    for name, weight in model.named_parameters():
        if "embed_tokens" in name:
            nn.init.normal_(weight, std=0.5)
        elif weight.ndim in (2, 3) and "lm_head" not in name:
            scale = 0.5 if "down_proj" in name or "o_proj" in name else 1.0
            nn.init.normal_(weight, std=scale * weight.shape[-1] ** -0.5)
    embeddings = model.get_input_embeddings().weight
    model.lm_head.weight.copy_(HEAD_SCALE * embeddings)
    shared = nn.functional.normalize(torch.randn(embeddings.shape[1]), dim=0)
    embeddings.add_(COMMON * math.sqrt(len(shared)) * shared)
    first, *others = (cast(Small4Attention, layer.self_attn) for layer in model.model.language_model.layers)
    look_back(first, shared, model.config.text_config.rope_parameters["rope_theta"])
    for attention in others:
        match_and_copy(attention)
    return model


def look_back(attention: Small4Attention, shared: torch.Tensor, theta: float) -> None:
    """Let head `i` look `TOKENS_BACK[i]` tokens back: its rotary query and the rotary key, both made from the `shared`
    part of embeddings `[hidden]`, agree in all `FREQUENCIES` where the distance is that, and only there."""
    keys = attention.kv_a_proj_with_mqa.weight[-attention.rope :]
    keys.zero_()
    keys[: 2 * FREQUENCIES : 2] = KEY_GAIN * shared
    seen = nn.functional.normalize(attention.q_a_proj.weight @ shared, dim=0)
    queries = attention.q_b_proj.weight.unflatten(0, (-1, attention.nope + attention.rope))
    for query, distance in zip(queries, TOKENS_BACK, strict=False):
        query[: attention.nope] *= 0.2
        query[attention.nope :] = 0.0
        for i in range(FREQUENCIES):
            angle = distance * theta ** (-2 * i / attention.rope)
            query[attention.nope + 2 * i] = QUERY_GAIN * math.cos(angle) * seen
            query[attention.nope + 2 * i + 1] = -QUERY_GAIN * math.sin(angle) * seen


def match_and_copy(attention: Small4Attention) -> None:
    """Make a head's unrotated queries and keys the same map, and its output the transpose of its values, at the size it
    had.
    """
    latent = attention.kv_a_proj_with_mqa.weight[: attention.rank]
    keys, values = attention.kv_b_proj.weight.unflatten(0, (-1, attention.nope + attention.value_dim)).split(
        [attention.nope, attention.value_dim], dim=1
    )
    attention.q_a_proj.weight.copy_(latent)
    attention.q_b_proj.weight.unflatten(0, (len(keys), -1))[:, : attention.nope] = keys
    outputs = attention.o_proj.weight.unflatten(1, (len(values), -1))
    for head, value in enumerate(values):
        copied = (value @ latent).T
        outputs[:, head] = copied * (outputs[:, head].norm() / copied.norm())
