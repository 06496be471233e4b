"""One of the processes of `test_stored_parallel`, as torchrun starts them: loads stored weights in every layout, and
each rank writes down how they compare with one process, and what it holds.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from oracle import Case, image_inputs
from parallel_worker import local
from transformers.distributed import DistributedConfig

from modeling_small4 import Small4ForCausalLM

LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor": {"tp_size": 2},
    "tensor and expert": {"tp_size": 2, "ep_size": 2},
    "fsdp": {"fsdp_size": 2},
    "fsdp and expert": {"fsdp_size": 2, "ep_size": 2},
    "pipeline": {"pp_size": 2},
}
# Cuts of columns and rows depend on the form. Experts, whole tensors and layers are divided the same way in every form;
# these have scales of one number, packed zeros, and experts in tensors of their own.
EVERYWHERE = ("fp8", "int4 zeros", "unfused nvfp4")
Answers = dict[str, tuple[torch.Tensor, torch.Tensor | None]]
GREEDY: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}


def padded() -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 1100, (2, 30), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    return {"input_ids": ids, "attention_mask": mask}


def layouts_of(form: str) -> list[str]:
    """Those in which a form is tried."""
    return [name for name, sizes in LAYOUTS.items() if form in EVERYWHERE or "tp_size" in sizes]


def inputs(form: str) -> dict[str, dict[str, torch.Tensor]]:
    """The tower is never stored, so that images are tried in some forms only."""
    images = {"images": image_inputs(Case(seed=3), [(56, 84)])} if form in EVERYWHERE else {}
    return {"padded": padded(), **images}


def decodes(form: str, layout: str, name: str) -> bool:
    """Whether tokens are decoded too: of a text once for each form, and once in each layout."""
    return name == "padded" and (form in EVERYWHERE or layout == "tensor")


@torch.no_grad()
def answers(model: Any, form: str, layout: str = "tensor") -> Answers:
    """Logits and greedy tokens, by inputs."""
    out: Answers = {}
    for name, given in inputs(form).items():
        tokens = model.generate(**given, **GREEDY) if decodes(form, layout, name) else None
        out[name] = model(**given).logits, tokens
    return out


def compare(folder: Path, whole: Answers, name: str) -> dict[str, Any]:
    """Differences of logits relative to the largest, whether greedy tokens are alike, and what this rank holds."""
    layout = LAYOUTS[name]
    try:
        spread = Small4ForCausalLM.from_pretrained(
            folder, dtype=torch.float32, distributed_config=DistributedConfig(**layout)
        )
    except ValueError as error:
        return {"refused": str(error)}
    out: dict[str, Any] = {}
    found = answers(spread, folder.name, name)
    for kind, given in inputs(folder.name).items():
        rows = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
        expected, got = whole[kind][0][rows], found[kind][0][rows]
        out[kind] = ((got - expected).abs().max() / expected.abs().max()).item()
        if found[kind][1] is not None:
            out[f"{kind} greedy"] = torch.equal(found[kind][1], whole[kind][1])
    held = {name: local(parameter) for name, parameter in spread.named_parameters()}
    out["shapes"] = {name: list(tensor.shape) for name, tensor in held.items()}
    out["bytes"] = sum(tensor.nbytes for name, tensor in held.items() if ".mlp.experts." in name)
    if "tp_size" in layout:
        spread.save_pretrained(folder.parents[1] / "saved" / f"{folder.name}, {len(layout)}")
    return out


def main() -> None:
    folders, report = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for folder in sorted(folders.iterdir()):
        whole = answers(Small4ForCausalLM.from_pretrained(folder, dtype=torch.float32), folder.name)
        results[folder.name] = {name: compare(folder, whole, name) for name in layouts_of(folder.name)}
    report.with_suffix(f".{os.environ['RANK']}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
