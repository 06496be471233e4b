"""A tiny random model, chat prompts as ids, and the slow obvious twin of `generate(reasoning_mode=...)`.

Shared by the tests of generation; knows nothing of transformers' `generate`.
"""

from collections.abc import Sequence

import torch

from modeling_small4 import Small4Config, Small4ForCausalLM

EOS, PAD, INST, END_INST, TOOLS, END_TOOLS = 2, 11, 3, 4, 5, 6
RESULTS, END_RESULTS, IMG, IMG_BREAK, IMG_END, SYSTEM, END_SYSTEM = 7, 8, 10, 12, 13, 17, 18
THINK, END_THINK, SETTINGS, END_SETTINGS = 34, 35, 36, 37
TEXTS = {"none": [40, 41, 42], "high": [40, 43]}  # of unlike lengths, so that rewriting moves everything behind it
TOKEN_IDS = {
    "bos": 1, "inst": INST, "end_inst": END_INST, "think": THINK, "end_think": END_THINK, "settings": SETTINGS,
    "end_settings": END_SETTINGS, "system": SYSTEM, "end_system": END_SYSTEM, "available_tools": TOOLS,
    "end_available_tools": END_TOOLS, "tool_results": RESULTS, "end_tool_results": END_RESULTS, "tool_calls": 9,
    "settings_none": TEXTS["none"], "settings_high": TEXTS["high"],
}  # fmt: skip
VOCABULARY = 96


def tiny_model(seed: int = 0, vision: bool = False, layers: int = 2) -> Small4ForCausalLM:
    """Float32, eval, and so eager to write control tokens that every rule is put to work within a few dozen tokens."""
    config = Small4Config(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24,
            "num_hidden_layers": layers, "num_attention_heads": 2, "q_lora_rank": 24, "kv_lora_rank": 16,
            "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "max_position_embeddings": 4096, "initializer_range": 0.3,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 56, "patch_size": 14,
        }
        if vision
        else None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Small4ForCausalLM(config).eval()
    with torch.no_grad():
        for token in (THINK, END_THINK, EOS):
            model.lm_head.weight[token] *= 2
        model.lm_head.weight[[INST, END_INST, END_RESULTS, SETTINGS, END_SETTINGS]] = 0  # marks that only prompts hold
    model.generation_config.update(bos_token_id=1, eos_token_id=EOS, pad_token_id=PAD)
    model.generation_config.reasoning_token_ids = TOKEN_IDS
    return model


def settings(mode: str) -> list[int]:
    return [SETTINGS, *TEXTS[mode], END_SETTINGS]


def chat(*user: int, mode: str | None = None, before: Sequence[int] = (), answer: Sequence[int] = ()) -> list[int]:
    """`<s>`, what stands before the settings, the settings if any, one user message, the beginning of an answer."""
    return [1, *before, *(settings(mode) if mode else []), INST, *user, END_INST, *answer]


def batch(rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + list(row) for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def choices(answer: Sequence[int], mode: str | None, budget: int | None, eos: int = EOS) -> list[int]:
    """The tokens that may come next in an answer, by the rules, spelled out."""
    opened = THINK in answer
    last = len(answer) - 1 - list(answer)[::-1].index(THINK) if opened else None
    thought = None if last is None or END_THINK in answer[last:] else answer[last + 1 :]
    if mode == "high" and not answer:
        return [THINK]
    if thought is not None:
        if budget is not None and len(thought) >= budget:
            return [END_THINK]
        return [token for token in range(VOCABULARY) if token not in (THINK, eos)]
    if mode is None and not opened:
        return list(range(VOCABULARY))
    return [token for token in range(VOCABULARY) if token not in (THINK, END_THINK)]


@torch.no_grad()
def naive_greedy(
    model: Small4ForCausalLM,
    prompt: Sequence[int],
    mode: str | None,
    new: int,
    budget: int | None = None,
    answer: Sequence[int] = (),
    **images: torch.Tensor,
) -> list[int]:
    """New tokens after `prompt` (already with its settings) and the answer's beginning: no cache, no batch, no
    padding.
    """
    answer, begun = list(answer), len(answer)
    while len(answer) - begun < new:
        logits = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False, **images).logits[0, -1]
        token = max(choices(answer, mode, budget), key=lambda each: float(logits[each]))
        answer.append(token)
        if token == EOS:
            break
    return answer[begun:]


HEADS = {
    "bare": [],
    "system": [SYSTEM, 60, 61, END_SYSTEM],
    "tools": [SYSTEM, 60, END_SYSTEM, TOOLS, 62, 63, 64, END_TOOLS],
}
ROWS = [
    chat(50, 51, 52),
    chat(53, mode="none"),
    chat(54, 55, mode="high", before=HEADS["system"]),
    chat(56, 57, answer=[THINK, 70]),
]
MODES = ["high", "high", "none", "high"]
