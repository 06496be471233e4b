"""One of the processes of `test_parallel_training`, started by torchrun: trains in every layout and saves, then loads everything everywhere.

Also imported by the test for the same training in one process.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import Trainer, TrainingArguments, set_seed
from transformers.distributed import DistributedConfig

from modeling_small4 import Small4DataCollator, Small4ForCausalLM, Small4Processor

LAYOUTS: dict[str, dict[str, int]] = {
    "tensor": {"tp_size": 2},
    "tensor and expert": {"tp_size": 2, "ep_size": 2},
    "fsdp": {"fsdp_size": 2},
    "fsdp and expert": {"fsdp_size": 2, "ep_size": 2},
}
IDS = torch.arange(1000, 1040).view(2, 20)


def rows() -> list[dict[str, Any]]:
    """Unlike lengths; every second has a picture, so that each process has one in every batch."""
    out = []
    for i in range(8):
        content: Any = f"Count to {i}"
        if i % 2:
            picture = Image.linear_gradient("L").resize((20 + 4 * i, 40)).convert("RGB")
            content = [{"type": "image", "image": picture}, {"type": "text", "text": content}]
        answer = " ".join(map(str, range(i + 2)))
        out.append({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]})
    return out


def train(
    model: Small4ForCausalLM, folder: Path, scratch: Path, batch: int, router: bool
) -> tuple[Trainer, list[float]]:
    """Two steps of plain gradient descent on four rows each, so that weights tell gradients."""
    text = model.config.text_config
    text.output_router_logits, text.router_aux_loss_coef, text.router_z_loss_coef = router, 0.1, 0.01
    set_seed(0)
    arguments = TrainingArguments(
        output_dir=str(scratch), max_steps=2, per_device_train_batch_size=batch, learning_rate=0.05, optim="sgd", max_grad_norm=0.0,
        lr_scheduler_type="constant", train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    collator = Small4DataCollator(Small4Processor.from_pretrained(folder))
    trainer = Trainer(model=model, args=arguments, data_collator=collator, train_dataset=rows())
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # type: ignore[operator]


def main() -> None:
    folder, out = map(Path, sys.argv[1:3])
    torch.set_num_threads(1)
    found: dict[str, Any] = {"losses": {}, "sharded": {}, "logits": {}}
    for name, layout in LAYOUTS.items():
        for router in (False, True) if "tp_size" in layout else (False,):
            model = Small4ForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(**layout))
            found["sharded"][name] = sum(hasattr(p, "full_tensor") for p in model.parameters())
            _, found["losses"][f"{name}, {router}"] = train(
                model, folder, out / "scratch", 4 if "tp_size" in layout else 2, router
            )
            model.save_pretrained(out / f"{name}, {router}")
            torch.distributed.barrier()
    for saved in found["losses"]:
        for name, layout in LAYOUTS.items():
            model = Small4ForCausalLM.from_pretrained(
                out / saved, distributed_config=DistributedConfig(**layout)
            ).eval()
            with torch.no_grad():
                found["logits"][f"{saved} in {name}"] = whole(model(IDS).logits).tolist()
    (out / f"report.{os.environ['RANK']}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
