"""The planner's memory of training beside what models take: their parameters, gradients, optimizer states, and the most
bytes of tensors alive in a step. And what `small4 plan --train` prints.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import stored_folder
import torch
from live_bytes import LiveBytes
from peft import LoraConfig, get_peft_model
from small4_conversion.convert import Options, convert

from model_card.bench.lora_step import layer
from model_card.bench.stored_memory import write
from modeling_small4 import (
    Small4Config,
    Small4ForCausalLM,
    demo_checkpoint,
    lora_targets,
    share_expert_ranks,
    stored_lora,
)
from modeling_small4.commands import cli
from modeling_small4.commands.terminal import describe_bytes
from modeling_small4.planner.training import Training, train_bytes

torch.set_num_threads(1)
SIZES = {
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 8, "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
}  # fmt: skip
WIDE = {
    "hidden_size": 1024, "moe_intermediate_size": 512, "num_attention_heads": 8, "q_lora_rank": 256,
    "kv_lora_rank": 128, "num_hidden_layers": 3, "vocab_size": 32768,
}  # fmt: skip


def measured(folder: Path, training: Training) -> tuple[dict[str, int], Small4Config]:
    """One step after another one, so that gradients and optimizer states are there. By the planner's parts."""
    dtype = torch.float32 if training.precision == "float32" else torch.bfloat16
    model: Any = Small4ForCausalLM.from_pretrained(folder, dtype=dtype, dequantize=not training.held)
    model.loss_chunk, config = training.loss_chunk, model.config
    weights = sum(p.nbytes for p in model.parameters())
    if training.kind == "lora":
        options = LoraConfig(r=training.rank, **lora_targets(training.targets))
        model = get_peft_model(model, stored_lora(options, model))
        model = share_expert_ranks(model) if training.shared_ranks else model
    if training.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained, lr=1e-5)
    size = (training.batch, training.length)
    ids = torch.randint(10, config.text_config.vocab_size, size, generator=torch.Generator().manual_seed(0))

    def passes() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    passes()
    optimizer.step()
    with LiveBytes() as live:
        passes()
    states = sum(x.nbytes for state in dict(optimizer.state).values() for x in state.values() if x.ndim)
    adapters = sum(p.nbytes for p in trained) if training.kind == "lora" else 0
    gradients = sum(p.grad.nbytes for p in trained if p.grad is not None)
    held = {"weights": weights, "adapters": adapters, "gradients": gradients, "optimizer": states}
    return held | {"passes": live.peak}, config


def compare(folder: Path, training: Training, allowed: float = 0.05) -> None:
    found, config = measured(folder, training)
    parts = train_bytes(config, training)
    for name in ("adapters", "gradients", "optimizer"):
        if training.kind == "lora":
            assert parts[name] == found[name], name
    used, taken = sum(parts.values()), sum(found.values())
    assert abs(used / taken - 1) < allowed, (used / taken, parts, found)
    passes = parts["activations"] + parts["loss"]
    assert abs(passes / found["passes"] - 1) < 2 * allowed, (passes / found["passes"], parts, found)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> stored_folder.Folders:
    return stored_folder.write(tmp_path_factory.mktemp("small"), "fp8", vision=False, sizes=SIZES)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide") / "fp8"
    write(folder, layer(8, WIDE), "fp8")
    return folder


CASES: list[dict[str, Any]] = [
    {}, {"checkpointing": True}, {"checkpointing": True, "loss_chunk": 64}, {"targets": "attention+shared"},
    {"kind": "full", "precision": "bfloat16"}, {"kind": "full", "precision": "float32"},
    {"kind": "full", "precision": "bfloat16", "checkpointing": True}, {"precision": "bfloat16"},
    {"precision": "bfloat16", "checkpointing": True}, {"shared_ranks": True},
    {"shared_ranks": True, "checkpointing": True}, {"shared_ranks": True, "precision": "bfloat16"},
]  # fmt: skip


# All in one size; in another one too what differs in terms of batch and length, each such difference once.
SIZED = [(case, 5, 150) for case in CASES] + [(CASES[index], 2, 512) for index in (0, 2, 4, 7, 9)]


@pytest.mark.parametrize(("case", "batch", "length"), SIZED)
def test_a_small_model(folders: stored_folder.Folders, case: dict[str, Any], batch: int, length: int) -> None:
    folder = folders.expanded if "precision" in case else folders.stored
    compare(folder, Training(**{"rank": 4, "batch": batch, "length": length} | case))


@pytest.mark.parametrize("precision", ["fp8", "int4"])
def test_the_demo(precision: str, tmp_path: Path) -> None:
    convert(demo_checkpoint(), tmp_path / "held", Options(dtype=precision))
    for checkpointing in (False, True):
        compare(tmp_path / "held", Training("lora", precision, 6, 200, checkpointing, rank=8))


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_three_wide_layers(shared: bool, wide: Path) -> None:
    compare(wide, Training(batch=1, length=256, shared_ranks=shared))


@pytest.mark.slow
def test_one_layer_of_full_width(tmp_path: Path) -> None:
    write(tmp_path / "full", layer(8, {}), "fp8")
    compare(tmp_path / "full", Training(batch=1, length=256, checkpointing=True, loss_chunk=128))


def test_what_saves_memory_does() -> None:
    config, plain = Small4Config(), Training()
    whole = sum(train_bytes(config, plain).values())
    for better in (
        Training(checkpointing=True), Training(loss_chunk=256), Training(targets="attention"), Training(rank=4),
        Training(optimizer="adamw8bit"), Training(optimizer="muon"), Training(precision="nvfp4"),
        Training(sharding="expert", ranks=4), Training(length=1024), Training(shared_ranks=True),
    ):  # fmt: skip
        assert sum(train_bytes(config, better).values()) < whole, better
    full = Training("full", "bfloat16")
    sharded = Training("full", "bfloat16", sharding="fsdp", ranks=8)
    assert train_bytes(config, sharded)["optimizer"] == pytest.approx(train_bytes(config, full)["optimizer"] / 8)


def test_adapters_are_cut_where_fsdp_manages_them() -> None:
    """As `tests/test_stored_parallel_training.py` finds: codes are divided in both layouts, adapters in one."""
    config = Small4Config()
    whole, cut, loaded = (
        train_bytes(config, Training("lora", "nvfp4", sharding=sharding, ranks=ranks))
        for sharding, ranks in (("none", 1), ("fsdp", 8), ("fsdp+expert", 8))
    )
    for part in ("adapters", "gradients", "optimizer"):
        assert cut[part] == pytest.approx(whole[part] / 8, rel=1e-6)
        assert loaded[part] == whole[part]
    for found in (cut, loaded):
        assert whole["weights"] / 8 < found["weights"] < whole["weights"] / 8 + 6e9


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["plan", "--train", *words]) == 0
    return capsys.readouterr().out


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("lora", "--devices", "2xH200", "--dtype", "nvfp4", "--length", "8192", "--batch", "2", "--checkpointing")
    found = json.loads(printed(capsys, *words, "--json"))
    assert found["fits"]
    assert found["training"]["sharding"] == "fsdp"
    expected = Training("lora", "nvfp4", 2, 8192, True, sharding="fsdp", ranks=2)
    assert found["parts"] == train_bytes(Small4Config(), expected)
    text = printed(capsys, *words)
    assert "fits" in text
    assert "sharding: fsdp over 2 GPUs" in text
    assert "bfloat16 weights" in printed(capsys, "full", "--devices", "8xH200")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_advice_is_what_the_command_says_with_it(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    words = (kind, "--devices", "2xH100", "--length", "8192", "--loss-chunk", "512")
    options = printed(capsys, *words).strip().split("; with ")[1].split(", ")
    assert len(options) > 2
    together = [option.rpartition(" ")[0].rpartition(" ")[0] for option in options[:-1]]
    for option in [*options[:-1], options[-1].replace("all of these", " ".join(together))]:
        *more, size, unit = option.split()
        assert f" together {size} {unit} " in " ".join(printed(capsys, *words, *more).split()), option
    assert "--checkpointing" in together
    assert "--loss-chunk 1024" not in together


def test_the_table_and_that_the_guide_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    table = printed(capsys, "lora", "--table")
    head, _, *lines = table.strip().split("\n")
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    assert "LoRA, nvfp4" in head
    assert set(cells["24GB+64GB-ram"]) == {"no"}
    assert "no" not in cells["8xB200"]
    guide = Path(__file__).parents[1] / "model_card" / "guides" / "what-fits-where.md"
    told = guide.read_text("utf-8").split("## Training\n")[1].split("\n## ")[0]
    rows = [line for line in told.splitlines() if line.startswith("| ")]
    assert rows == [line for line in table.splitlines() if line.startswith("| ")]


def test_the_guide_says_what_sharing_saves() -> None:
    guide = Path(__file__).parents[1] / "model_card" / "guides" / "fine-tuning-the-release.md"
    told = guide.read_text("utf-8").split("## Adapters that share a side\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in told.splitlines() if line.startswith("| ")]
    for shared, row in zip((False, True), rows[1:], strict=True):
        parts = train_bytes(Small4Config(), Training(shared_ranks=shared))
        together = parts["adapters"] + parts["gradients"] + parts["optimizer"]
        assert row == [describe_bytes(parts["adapters"]), describe_bytes(together)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("full", "--dtype", "fp8"), "fp8 weights take adapters"),
        (("lora", "--rank", "0"), "rank=0"),
        (("lora", "--devices", "3xH100", "--sharding", "fsdp+expert"), "cannot be dealt to 3 GPUs"),
        (("lora", "--devices", "1xH100+1xA100"), "several kinds"),
    ],
)
def test_what_cannot_be_planned(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--train", *words]) == 1
    assert says in capsys.readouterr().err
