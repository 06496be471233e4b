"""`small4 plan --train`: arguments and output. Must not know: arithmetic, which is in `planner/training.py`."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from ..configuration_small4 import Small4Config
from ..planner.hardware import Machine, parse_machine, this_machine
from ..planner.training import KINDS, OPTIMIZERS, SHARDINGS, TARGETS, Training, train_bytes
from .terminal import describe_bytes

EXAMPLES = ("24GB+64GB-ram", "1xA100", "1xH100", "1xH200", "1xB200", "2xH100", "2xH200", "8xH100", "8xH200", "8xB200")
SAVING: dict[str, dict[str, Any]] = {
    "--checkpointing": {"checkpointing": True},
    "--loss-chunk 1024": {"loss_chunk": 1024},
    "--train lora --dtype fp8": {"kind": "lora", "precision": "fp8"},
    "--dtype nvfp4": {"precision": "nvfp4"},
    "--targets attention+shared": {"targets": "attention+shared"},
    "--optimizer adamw8bit": {"optimizer": "adamw8bit"},
    "--shared-ranks": {"shared_ranks": True},
}
CASES = (("lora", "fp8"), ("lora", "nvfp4"), ("lora", "int4"), ("lora", "bfloat16"), ("full", "bfloat16"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments for training."""
    group = parser.add_argument_group("training")
    group.add_argument("--train", choices=KINDS, help="plan for training: LoRA through PEFT, or all weights")
    group.add_argument("--length", metavar="N", type=int, default=4096, help="tokens of a row (default: 4096)")
    group.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    group.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="adamw", help="(default: adamw)")
    group.add_argument("--targets", choices=tuple(TARGETS), default="all+experts", help="what LoRA adapts")
    group.add_argument("--rank", metavar="N", type=int, default=16, help="of the adapters (default: 16)")
    group.add_argument(
        "--shared-ranks", action="store_true", help="routed experts share a side of their adapters: share_expert_ranks"
    )
    group.add_argument("--loss-chunk", metavar="N", type=int, help="tokens whose logits are there at once")
    group.add_argument(
        "--sharding",
        choices=SHARDINGS,
        help="over several GPUs (default: fsdp for LoRA, fsdp+expert for all weights)",
    )


def run(config: Small4Config, args: argparse.Namespace, precision: str) -> None:
    """Print what each device holds while it trains, or with `--table` what trains on many machines."""
    if args.table:
        print(json.dumps(training_rows(config)) if args.json else table(config))
        return
    machine = parse_machine(args.devices) if args.devices else this_machine()
    training = Training(
        args.train, precision, args.batch, args.length, args.checkpointing, args.optimizer, args.targets, args.rank,
        args.loss_chunk, shared_ranks=args.shared_ranks,
    )  # fmt: skip
    found = planned(config, machine, training, args.sharding)

    def used(other: Training) -> int:
        return planned(config, machine, other, args.sharding)["used"]

    print(json.dumps(found) if args.json else _text(machine, found, used))


def planned(config: Small4Config, machine: Machine, training: Training, sharding: str | None = None) -> dict[str, Any]:
    """What a device of the machine holds, and whether that fits; all devices hold the same."""
    gpus = machine.gpus
    if len(gpus) > 1 and not machine.alike:
        raise ValueError(f"{machine.name} has GPUs of several kinds; training is planned for GPUs of one kind.")
    ranks, device = max(1, len(gpus)), (gpus[0] if gpus else machine.ram)
    if device is None:
        raise ValueError(f"{machine.name} has neither GPUs nor main memory to train in.")
    usual = "none" if ranks == 1 else "fsdp" if training.kind == "lora" else "fsdp+expert"
    training = replace(training, sharding=sharding or usual, ranks=ranks)
    if "expert" in training.sharding and (experts := config.text_config.n_routed_experts) % ranks:
        raise ValueError(f"{experts} experts cannot be dealt to {ranks} GPUs; take a number that divides them.")
    parts = train_bytes(config, training)
    used = sum(parts.values())
    return {
        "training": asdict(training), "machine": machine.name, "devices": ranks, "usable": device.usable,
        "parts": parts, "used": used, "fits": used <= device.usable,
    }  # fmt: skip


def _text(machine: Machine, found: dict[str, Any], used: Callable[[Training], int]) -> str:
    training = found["training"]
    ranks = f"{'shared ' if training['shared_ranks'] else ''}rank {training['rank']}"
    what = "all weights" if training["kind"] == "full" else f"LoRA on {training['targets']}, {ranks}"
    lines = [
        f"{machine.name}: {what}, {training['precision']} weights, {training['batch']} x {training['length']:,} tokens"
        f"{', checkpointed' if training['checkpointing'] else ''}, {training['optimizer']}",
        "",
        *(f"{name:<12}{describe_bytes(size):>10}" for name, size in found["parts"].items()),
        f"{'together':<12}{describe_bytes(found['used']):>10}  of {describe_bytes(found['usable'])} on each device",
        "",
    ]
    short = found["used"] - found["usable"]
    if found["devices"] > 1:
        lines.append(f"sharding: {training['sharding']} over {found['devices']} GPUs; the batch is that of each GPU")
    lines.append("fits" if short <= 0 else f"does not fit: {describe_bytes(short)} too much{_advice(found, used)}")
    return "\n".join(lines)


def _advice(found: dict[str, Any], used: Callable[[Training], int]) -> str:
    """What a device would hold with each option that takes less, and with all of them."""
    training = Training(**found["training"])
    changed = {name: replace(training, **fields) for name, fields in SAVING.items()}
    del changed["--dtype nvfp4" if training.kind == "full" else "--train lora --dtype fp8"]
    totals = {name: total for name, other in changed.items() if (total := used(other)) < found["used"]}
    if len(totals) > 1:
        totals["all of these"] = used(replace(training, **{k: v for name in totals for k, v in SAVING[name].items()}))
    said = ", ".join(f"{name} {describe_bytes(total)}" for name, total in totals.items())
    return f"; with {said}" if said else ""


def table(config: Small4Config) -> str:
    """The longest row that trains on each of `EXAMPLES`, checkpointed, with the loss in chunks, as Markdown."""
    rows = training_rows(config)
    heads = [f"{'LoRA' if kind == 'lora' else 'all weights'}, {precision}" for kind, precision in CASES]
    lines = ["| machine | " + " | ".join(heads) + " |", "|---" * (len(CASES) + 1) + "|"]
    for row in rows:
        cells = [f"{length // 1024}k" if (length := row[" ".join(case)]) else "no" for case in CASES]
        lines.append(f"| {row['devices']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def training_rows(config: Small4Config) -> list[dict[str, Any]]:
    """For each machine the longest row of 2k to 128k tokens for each of `CASES`, 0 if none."""
    out = []
    for devices in EXAMPLES:
        machine = parse_machine(devices)
        row: dict[str, Any] = {"devices": devices}
        for kind, precision in CASES:
            fitting = [
                length
                for length in (2048 * 2**power for power in range(7))
                if planned(config, machine, Training(kind, precision, 1, length, True, loss_chunk=1024))["fits"]
            ]
            row[f"{kind} {precision}"] = max(fitting, default=0)
        out.append(row)
    return out
