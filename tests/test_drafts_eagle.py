"""The official EAGLE layout, scaled down: read, converted, and computed as a plain version written here does."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_small4 import Small4Config, Small4ForCausalLM, demo_draft
from modeling_small4.commands.cli import main
from modeling_small4.drafts_eagle import Small4EagleDraft
from modeling_small4.drafts_eagle_small import SmallEagle, SmallEagleState
from modeling_small4.drafts_reading import read_draft

HEADS, NOPE, ROPE, VALUE, RANK, Q_RANK, SIZE, WIDTH, VOCAB, LAYERS = 4, 6, 4, 5, 16, 12, 32, 48, 50, 2


def params() -> dict[str, object]:
    """params.json as the release has it; without `moe.num_experts`."""
    return {
        "dim": SIZE, "n_layers": LAYERS, "head_dim": NOPE + ROPE, "hidden_dim": WIDTH, "n_heads": HEADS,
        "n_kv_heads": HEADS, "rope_theta": 10000.0, "norm_eps": 1e-6, "vocab_size": VOCAB, "tied_embeddings": False,
        "max_position_embeddings": 4096, "q_lora_rank": Q_RANK, "kv_lora_rank": RANK, "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE, "v_head_dim": VALUE,
        "yarn": {"factor": 4, "original_max_position_embeddings": 16, "beta": 32, "alpha": 1, "apply_scale": False},
        "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 16},
        "moe": {"first_k_dense_replace": 2, "route_every_n": 1},
    }  # fmt: skip


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Under their official names."""
    torch.manual_seed(seed)
    shapes = {"eagle_linear.weight": (SIZE, 2 * SIZE), "norm.weight": (SIZE,)}
    for layer in range(LAYERS):
        shapes |= {
            f"layers.{layer}.{name}.weight": shape
            for name, shape in {
                "attention_norm": (SIZE,),
                "ffn_norm": (SIZE,),
                "attention.wq_a": (Q_RANK, SIZE),
                "attention.q_a_norm": (Q_RANK,),
                "attention.wq_b": (HEADS * (NOPE + ROPE), Q_RANK),
                "attention.wkv_a_with_mqa": (RANK + ROPE, SIZE),
                "attention.kv_a_norm": (RANK,),
                "attention.wkv_b": (HEADS * (NOPE + VALUE), RANK),
                "attention.wo": (SIZE, HEADS * VALUE),
                "feed_forward.w1": (WIDTH, SIZE),
                "feed_forward.w2": (SIZE, WIDTH),
                "feed_forward.w3": (WIDTH, SIZE),
            }.items()
        }
    return {
        name: (torch.rand(shape) + 0.5 if len(shape) == 1 else torch.randn(shape) / shape[1] ** 0.5).to(dtype)
        for name, shape in shapes.items()
    }


def write(folder: Path, given: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params()))
    save_file(given, folder / "consolidated.safetensors")
    return folder


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean() + 1e-6).sqrt() * weight


def frequencies() -> list[float]:
    """YaRN, one pair after the other."""
    out = []
    for pair in range(ROPE // 2):
        plain = 10000.0 ** (-2 * pair / ROPE)
        low, high = (ROPE * math.log(16 / (turns * 2 * math.pi)) / (2 * math.log(10000.0)) for turns in (32, 1))
        low, high = max(math.floor(low), 0), min(math.ceil(high), ROPE - 1)
        ramp = min(1.0, max(0.0, (pair - low) / ((high - low) or 0.001)))
        out.append(plain / 4 * ramp + plain * (1 - ramp))
    return out


def rotated(x: torch.Tensor, position: int) -> torch.Tensor:
    """Interleaved pairs."""
    out = x.clone()
    for pair, frequency in enumerate(frequencies()):
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        a, b = x[2 * pair], x[2 * pair + 1]
        out[2 * pair], out[2 * pair + 1] = a * cos - b * sin, a * sin + b * cos
    return out


def plainly(w: dict[str, torch.Tensor], embeddings: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Token by token and head by head. embeddings of tokens p + 1, hidden states of tokens p, `[length, SIZE]`."""
    states = [w["eagle_linear.weight"] @ torch.cat((e, h)) for e, h in zip(embeddings, hidden, strict=True)]
    for layer in range(LAYERS):
        own = {name.removeprefix(f"layers.{layer}."): x for name, x in w.items()}
        latents, keys, after = [], [], []
        for position, x in enumerate(states):
            x = norm(x, own["attention_norm.weight"])
            both = own["attention.wkv_a_with_mqa.weight"] @ x
            latents.append(norm(both[:RANK], own["attention.kv_a_norm.weight"]))
            keys.append(rotated(both[RANK:], position))
            query = own["attention.wq_b.weight"] @ norm(
                own["attention.wq_a.weight"] @ x, own["attention.q_a_norm.weight"]
            )
            heads = []
            for head in range(HEADS):
                q = query[head * (NOPE + ROPE) : (head + 1) * (NOPE + ROPE)]
                q = torch.cat((q[:NOPE], rotated(q[NOPE:], position))) * (1 + 0.1 * math.log(1 + position // 16))
                up = own["attention.wkv_b.weight"][head * (NOPE + VALUE) : (head + 1) * (NOPE + VALUE)]
                seen = [torch.cat((up[:NOPE] @ c, k)) for c, k in zip(latents, keys, strict=True)]
                weights = torch.stack([q @ k for k in seen]).mul((NOPE + ROPE) ** -0.5).softmax(0)
                heads.append(sum(a * (up[NOPE:] @ c) for a, c in zip(weights, latents, strict=True)))
            after.append(states[position] + own["attention.wo.weight"] @ torch.cat(heads))
        states = []
        for x in after:
            y = norm(x, own["ffn_norm.weight"])
            gate, up = own["feed_forward.w1.weight"] @ y, own["feed_forward.w3.weight"] @ y
            states.append(x + own["feed_forward.w2.weight"] @ (torch.nn.functional.silu(gate) * up))
    return torch.stack([norm(x, w["norm.weight"]) for x in states])


@pytest.mark.parametrize("length", [1, 7, 40])
def test_the_official_draft_computes_what_a_plain_version_does(tmp_path: Path, length: int) -> None:
    given = tensors(length)
    draft = read_draft(str(write(tmp_path, given)), torch.float32)
    assert isinstance(draft, Small4EagleDraft)
    embeddings, hidden = torch.randn(length, SIZE), torch.randn(length, SIZE)
    expected = plainly(given, embeddings, hidden)
    with torch.no_grad():
        whole = draft(embeddings[None], hidden[None])[0]
        state, small = SmallEagleState(SmallEagle(draft, torch.zeros(VOCAB, SIZE))), []
        cache, pieces = draft.new_cache(), []
        for part in torch.arange(length).split(3):
            pieces.append(draft(embeddings[None, part], hidden[None, part], None, part[None], cache))
            small.append(state(embeddings[None, part], hidden[None, part], int(part[0])))
    torch.testing.assert_close(whole, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat(pieces, 1)[0], expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat(small, 1)[0], expected, atol=2e-5, rtol=1e-4)


def test_fp8_tensors_are_expanded(tmp_path: Path) -> None:
    given = tensors(3)
    stored = dict(given)
    for name, weight in given.items():
        if weight.ndim == 2:
            scale = weight.abs().max() / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix("weight") + "qscale_weight"] = scale
            stored[name.removesuffix("weight") + "qscale_act"] = torch.tensor(1.0)
    draft = read_draft(str(write(tmp_path, stored)), torch.float32)
    weight, scale = stored["eagle_linear.weight"], stored["eagle_linear.qscale_weight"]
    assert torch.equal(draft.eagle_linear.weight, weight.float() * scale)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    draft = read_draft(
        str(write(tmp_path / "raw", tensors(4) | {"output.weight": torch.zeros(VOCAB, SIZE)})), torch.float32
    )
    draft.save_pretrained(tmp_path / "ours")
    again = read_draft(str(tmp_path / "ours"), torch.float32)
    assert isinstance(again, Small4EagleDraft)
    own = again.state_dict()
    assert all(torch.equal(x, own[name]) for name, x in draft.state_dict().items())
    assert len(load_file(tmp_path / "ours" / "model.safetensors")) == len(own)
    with pytest.raises(ValueError, match="small4_eagle"):
        Small4ForCausalLM.from_pretrained(tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("norm.weight"), "missing: model.norm.weight"),
        (lambda w: w.update({"norm.weight": torch.ones(3)}), "another shape"),
        (lambda w: w.update({"layers.0.gate.weight": torch.ones(3)}), "unknown: layers.0.gate.weight"),
    ],
)
def test_damaged_drafts_are_refused(tmp_path: Path, change: object, said: str) -> None:
    given = tensors(5)
    change(given)  # type: ignore[operator]
    with pytest.raises(ValueError, match=said):
        read_draft(str(write(tmp_path, given)), torch.float32)


def test_it_drafts_for_a_model(tmp_path: Path) -> None:
    sizes = {
        "vocab_size": VOCAB, "hidden_size": SIZE, "intermediate_size": 16, "moe_intermediate_size": 16,
        "q_lora_rank": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "kv_lora_rank": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8, "v_head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(8)
    model = Small4ForCausalLM(Small4Config(text_config=sizes, vision_config=None)).eval()
    ids = torch.randint(3, VOCAB, (3, 9))
    ids[1, :4] = 0
    given = {"input_ids": ids, "attention_mask": (ids != 0).long(), "max_new_tokens": 30}
    folder = str(write(tmp_path, tensors(6)))
    assert torch.equal(model.generate(**given), model.generate(**given, draft=folder))


def test_convert_and_plan_know_the_official_draft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tensors(7, torch.bfloat16)
    folder, out = write(tmp_path / "raw", given), tmp_path / "ours"
    assert main(["convert", str(folder), str(out)]) == 0
    converted = read_draft(str(out), torch.bfloat16).state_dict()
    assert torch.equal(converted["model.layers.1.mlp.down_proj.weight"], given["layers.1.feed_forward.w2.weight"])
    assert main(["convert", str(folder), str(tmp_path / "third"), "--to", "mistral"]) == 1
    assert "EAGLE draft" in capsys.readouterr().err
    planned = []
    for draft in ([], ["--draft", str(folder)], ["--draft", str(out)]):
        assert main(["plan", "--devices", "4xH100", "--context", "1000", "--json", *draft]) == 0
        planned.append(json.loads(capsys.readouterr().out)["devices"][0]["used"])
    size = 2 * sum(weight.numel() for weight in given.values()) + 2 * LAYERS * (RANK + ROPE) * 1000
    assert planned[1] == planned[2] == planned[0] + size
    assert main(["plan", "--draft", str(tmp_path)]) == 1


def test_generate_takes_a_draft(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for draft in ([], ["--draft", "prompt_lookup"], ["--draft", str(demo_draft())]):
        assert main(["generate", "What is 48 + 75?", "--reasoning-mode", "high", "--json", *draft]) == 0
        said.append(json.loads(capsys.readouterr().out)["content"])
    assert said[0] == said[1] == said[2] == "123"
