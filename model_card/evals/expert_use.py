"""Which experts a model's routers choose, by layer. Must not know what the chats are about."""

from collections.abc import Sequence
from typing import Any

import torch

from model_card.demo_recipe.batches import chat, tools
from model_card.evals.answers import alike
from modeling_small4.modeling_small4 import Small4ForCausalLM
from modeling_small4.processing_small4 import Small4Processor


@torch.inference_mode()
def expert_use(
    model: Small4ForCausalLM, processor: Small4Processor, rows: Sequence[dict[str, Any]], batch: int = 16
) -> list[list[float]]:
    """Share of each expert in what a layer's router chooses, from `router_logits` over whole chats with their reference
    answers.

    Returns:
        [layers][experts]; each layer sums to 1, so that an equal share is 1 / experts.
    """
    text = model.config.text_config
    chats = [
        processor.apply_chat_template(
            chat(row), tools=tools(row), tokenize=False, reasoning_mode=row["mode"], add_generation_prompt=False
        )
        for row in rows
    ]
    counts = torch.zeros(text.num_hidden_layers - text.first_k_dense_replace, text.n_routed_experts)
    lengths = [len(ids) for ids in processor(text=chats)["input_ids"]]
    for members in alike(lengths, batch):
        inputs = processor(text=[chats[i] for i in members], return_tensors="pt", padding=True)
        output = model(**inputs, output_router_logits=True, logits_to_keep=1)
        kept = inputs["attention_mask"].flatten().bool()
        for layer, logits in enumerate(output.router_logits):
            chosen = logits[kept].topk(text.num_experts_per_tok, dim=-1).indices.flatten()
            counts[layer] += chosen.bincount(minlength=text.n_routed_experts)
    shares = counts / counts.sum(dim=-1, keepdim=True)
    return [[round(share, 4) for share in layer] for layer in shares.tolist()]
