"""One of the processes of `test_parallel_training`, as torchrun starts them: trains in every layout and saves, then
loads what was saved in another layout.

Also imported by the test for the same training in one process.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.distributed import DistributedConfig

from modeling_small4 import Small4DataCollator, Small4ForCausalLM, Small4Processor

LAYOUTS: dict[str, dict[str, int]] = {
    "tensor": {"tp_size": 2},
    "tensor and expert": {"tp_size": 2, "ep_size": 2},
    "fsdp": {"fsdp_size": 2},
    "fsdp and expert": {"fsdp_size": 2, "ep_size": 2},
}
RUNS = [(name, router) for name in LAYOUTS for router in ((False, True) if "tp_size" in LAYOUTS[name] else (False,))]
# What is saved does not depend on the layout, so every run is loaded in one, and every layout loads one.
LOADS = [(f"{name}, {router}", list(LAYOUTS)[(place + 1) % len(LAYOUTS)]) for place, (name, router) in enumerate(RUNS)]
RATE, IGNORED = 0.05, -100
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


def train(model: Small4ForCausalLM, folder: Path, router: bool, rank: int = 0, ranks: int = 1) -> list[float]:
    """Two steps of plain gradient descent on four rows each, so that weights tell gradients; of each four, `rank` takes
    its part.

    By hand, for accelerate 1.15 knows no parallel layouts on CPUs ("ParallelismConfig is only compatible [with]
    DistributedType.FSDP ... but got DistributedType.MULTI_CPU"). Losses are weighted as `Trainer` does it: a sum over
    the labels of all processes.
    """
    text = model.config.text_config
    text.output_router_logits, text.router_aux_loss_coef, text.router_z_loss_coef = router, 0.1, 0.01
    collator = Small4DataCollator(Small4Processor.from_pretrained(folder))
    model.train()
    losses, size = [], 4 // ranks
    for step in range(2):
        of_step = rows()[4 * step : 4 * step + 4]
        items = collator(of_step)["labels"].ne(IGNORED).sum()
        batch = collator(of_step[size * rank : size * rank + size])
        loss = model(**batch, num_items_in_batch=items).loss * ranks  # gradients are averaged over processes
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(parameter.grad, alpha=RATE)
                parameter.grad = None
        total = loss.detach() / ranks
        if ranks > 1:
            torch.distributed.all_reduce(total)
        losses.append(total.item())
    return losses


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # type: ignore[operator]


def main() -> None:
    folder, out = map(Path, sys.argv[1:3])
    torch.set_num_threads(1)
    found: dict[str, Any] = {"losses": {}, "sharded": {}, "logits": {}}
    for name, router in RUNS:
        layout = LAYOUTS[name]
        model = Small4ForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(**layout))
        found["sharded"][name] = sum(hasattr(p, "full_tensor") for p in model.parameters())
        ranks = layout.get("fsdp_size", 1)
        found["losses"][f"{name}, {router}"] = train(model, folder, router, int(os.environ["RANK"]) % ranks, ranks)
        model.save_pretrained(out / f"{name}, {router}")
        torch.distributed.barrier()
    for saved, name in LOADS:
        config = DistributedConfig(**LAYOUTS[name])
        model = Small4ForCausalLM.from_pretrained(out / saved, distributed_config=config).eval()
        with torch.no_grad():
            found["logits"][f"{saved} in {name}"] = whole(model(IDS).logits).tolist()
    (out / f"report.{os.environ['RANK']}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
