"""The EAGLE draft of Small 4: a few layers that guess the next hidden state from the last one and the next token.

Layout and wiring are those of the official draft: `eagle_linear` fuses the embedding of token p + 1 with the model's
hidden state of token p (behind its final norm), at position p; then latent-attention layers with a dense SwiGLU, and a
norm. Embeddings and head are the model's own. Must not know: how drafts are verified, how files are laid out.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.cache_utils import Cache

from .cache import LatentCache
from .configuration_small4 import Small4TextConfig
from .cpu_matmul import linear
from .modeling_small4 import Small4PreTrainedModel, Small4TextModel


@strict
class Small4EagleConfig(Small4TextConfig):
    """As `Small4TextConfig`; all layers are dense, of `intermediate_size`, and there are no experts."""

    model_type = "small4_eagle"
    base_config_key = ""

    def __post_init__(self, **kwargs: Any) -> None:
        self.first_k_dense_replace = self.num_hidden_layers
        super().__post_init__(**kwargs)


class Small4EagleDraft(Small4PreTrainedModel):
    """An EAGLE draft. It has neither embeddings nor a head: both are those of the model it drafts for."""

    config: Small4EagleConfig
    input_modalities = ("text",)

    def __init__(self, config: Small4EagleConfig) -> None:
        super().__init__(config)
        self.eagle_linear = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.model = Small4TextModel(config)
        del self.model.embed_tokens
        self.post_init()

    def get_input_embeddings(self) -> None:
        """None: embeddings are the model's."""

    def forward(
        self,
        embeddings: torch.Tensor,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
    ) -> torch.Tensor:
        """
        Args:
            embeddings: Of the tokens p + 1, `[batch, length, hidden_size]`.
            hidden_states: Of the tokens p, behind the model's final norm; or, where the model has not read them yet,
                what this method returned for them. The same shape.
            attention_mask: `[batch, cached + length]`, 0 where token p is padding.
            position_ids: Of the tokens p, int64 `[batch, length]`.
            cache: Of this draft, extended.

        Returns:
            Guesses of the model's hidden states of the tokens p + 1, `[batch, length, hidden_size]`.
        """
        dtype = self.model.norm.weight.dtype
        fused = linear(self.eagle_linear, torch.cat((embeddings.to(dtype), hidden_states.to(dtype)), dim=-1))
        output = self.model(
            inputs_embeds=fused,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
        )
        return output.last_hidden_state

    def new_cache(self) -> LatentCache:
        return LatentCache(self.config)


Small4EagleDraft.config_class = Small4EagleConfig
