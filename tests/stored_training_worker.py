"""One of the processes of `test_stored_parallel_training`, as torchrun starts them: LoRA on stored weights under DDP
(by `Trainer`), under FSDP2 as accelerate prepares it, and on models that were loaded in parts.

Also imported by the test for the same training in one process.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import Trainer, TrainingArguments
from transformers.distributed import DistributedConfig

from modeling_small4 import Small4ForCausalLM, lora_targets, share_expert_ranks, stored_lora

STEPS, ROWS, RATE = 2, 4, 0.5
LOADED = {"loaded fsdp": {"fsdp_size": 2}, "loaded fsdp and expert": {"fsdp_size": 2, "ep_size": 2}}
# accelerate keeps what it is told last, unless it is told again.
BY_PART, AT_ONCE = {"cpu_ram_efficient_loading": False}, {"cpu_ram_efficient_loading": True}
FSDP = {"fsdp": BY_PART, "fsdp at once": AT_ONCE, "fsdp bfloat16": BY_PART}
WAYS = ["ddp", *FSDP, *LOADED]
# By form. Bytes are held and gathered the same way in every form, but for scales of one number, which FP8 has; what
# PEFT loads is compared in NVFP4.
SOME = ["ddp", "fsdp", *LOADED]
TRIED = {
    "fp8": WAYS, "nvfp4 all": SOME, "int4 zeros": ["fsdp", "loaded fsdp"], "fp8 rows, shared": [*SOME, "fsdp at once"],
}  # fmt: skip


def rows() -> list[dict[str, torch.Tensor]]:
    """Of equal lengths, so that means over processes are means over all."""
    ids = torch.randint(1000, 1100, (STEPS * ROWS, 24), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in ids]


def adapted(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """LoRA on everything, with the same random numbers in every process. Experts of a folder named "... shared" share
    a side.
    """
    model = Small4ForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    config = LoraConfig(r=3, lora_alpha=6, **lora_targets("all+experts", model=model))
    tuned = get_peft_model(model, stored_lora(config, model))
    if folder.name.endswith("shared"):
        share_expert_ranks(tuned)
    generator = torch.Generator().manual_seed(7)
    for _, parameter in sorted((n, p) for n, p in tuned.named_parameters() if ".lora_" in n):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return tuned.train()


def by_trainer(tuned: Any, out: Path, ranks: int = 1) -> list[float]:
    """Two steps of gradient descent. Returns losses; saves the adapter."""
    arguments = TrainingArguments(
        str(out), max_steps=STEPS, per_device_train_batch_size=ROWS // ranks, learning_rate=RATE, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0, train_sampling_strategy="sequential", use_cpu=True, bf16=False,
        logging_steps=1, save_strategy="no", report_to=[], gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    trainer = Trainer(tuned, arguments, train_dataset=rows())
    trainer.train()
    trainer.save_model(str(out))
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def by_hand(tuned: Any, rank: int) -> list[float]:
    """The same steps; of each batch, `rank` takes its half. Parameters that FSDP does not manage are averaged, as
    `Trainer` does on GPUs.
    """
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.SGD(trained, lr=RATE), []
    for step in range(STEPS):
        mine = rows()[ROWS * step + 2 * rank : ROWS * step + 2 * rank + 2]
        batch = {name: torch.stack([row[name] for row in mine]) for name in ("input_ids", "labels")}
        loss = tuned(**batch).loss
        loss.backward()
        for parameter in trained:
            assert parameter.grad is not None
            if not hasattr(parameter, "full_tensor"):
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= 2
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().float()
        torch.distributed.all_reduce(total)
        losses.append(total.item() / 2)
    return losses


def prepared(tuned: Any, rank: int, bfloat16: bool, **options: Any) -> Any:
    """What `Accelerator.prepare` makes with fsdp_version 2; accelerate itself does so on GPUs only."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap", **options)
    if bfloat16:  # positions stay as they are, so that logits can be compared to the bit
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, cast_forward_inputs=False)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), device=torch.device("cpu"), torch_device_mesh=None,
        mixed_precision="bf16" if bfloat16 else "no", is_main_process=rank == 0,
    )  # fmt: skip
    return fsdp2_prepare_model(accelerator, tuned)


def save(tuned: Any, out: Path) -> None:
    """Gathered as `Accelerator.get_state_dict` does, written by PEFT."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
    tensors = get_model_state_dict(tuned, options=whole)
    tuned.save_pretrained(out, state_dict=tensors, is_main_process=torch.distributed.get_rank() == 0)


def comes_back(tuned: Any) -> bool:
    """Whether adapters are what they were after being saved and loaded in parts, as accelerate resumes."""
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    before = [parameter.to_local().clone() for parameter in trained]
    saved = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(tuned).items()}
    for parameter in trained:
        parameter.data.zero_()
    set_peft_model_state_dict(tuned, saved)
    return all(torch.equal(p.to_local(), tensor) for p, tensor in zip(trained, before, strict=True))


@torch.no_grad()
def base_logits(tuned: Any) -> torch.Tensor:
    with tuned.disable_adapter():
        return tuned(rows()[0]["input_ids"][None]).logits


def share(tuned: Any) -> float:
    """The part of the codes of experts that this process holds."""
    codes = [p for name, p in tuned.named_parameters() if ".mlp.experts." in name and ".lora_" not in name]
    mine = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in codes)
    return mine / sum(p.numel() for p in codes)


def run(way: str, folder: Path, out: Path, rank: int) -> dict[str, Any]:
    """Train in one way and save. Returns what this process found."""
    if way == "ddp":
        tuned = adapted(folder)
        return {"losses": by_trainer(tuned, out, 2), "share": share(tuned)}
    if way in LOADED:
        tuned = adapted(folder, distributed_config=DistributedConfig(**LOADED[way]))
        losses = by_hand(tuned, rank)
        tuned.save_pretrained(out, is_main_process=rank == 0)
        return {"losses": losses, "share": share(tuned)}
    bfloat16 = way.endswith("bfloat16")
    tuned = adapted(folder, torch.bfloat16 if bfloat16 else torch.float32)
    expected = base_logits(tuned)
    tuned = prepared(tuned, rank, bfloat16, **FSDP[way])
    found: dict[str, Any] = {"losses": by_hand(tuned, rank), "share": share(tuned)}
    found["as before"] = torch.equal(base_logits(tuned), expected)
    save(tuned, out)
    found["comes back"] = comes_back(tuned)
    try:
        tuned.get_base_model().save_pretrained(out / "base")
    except ValueError as error:
        found["refused"] = str(error)
    return found


def main() -> None:
    folders, out, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for folder in sorted(folders.iterdir()):
        found[folder.name] = {}
        for way in TRIED[folder.name]:
            found[folder.name][way] = run(way, folder, out / f"{folder.name}, {way}", rank)
            torch.distributed.barrier()
    (out / f"report.{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
