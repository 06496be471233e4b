"""The model itself: that it loads and runs, what it costs beside the planner's prediction, and which softmax scale is
right by the perplexity of a text.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature

from modeling_small4 import Small4ForCausalLM, Small4Processor
from modeling_small4.attention import Small4Attention
from modeling_small4.commands.session import load
from modeling_small4.commands.terminal import describe_bytes
from modeling_small4.configuration_checks import SOFTMAX_SCALE_RULES
from modeling_small4.configuration_small4 import Small4TextConfig
from modeling_small4.files_reading import one_line
from modeling_small4.planner.hardware import this_machine
from modeling_small4.planner.layout import plan
from modeling_small4.planner.measuring import measure
from modeling_small4.planner.speed import speed
from modeling_small4.reasoning import REASONING_MODES

from ..against import RULE, Fault
from ..memory import peak_rss_bytes
from ..source import Checkpoint
from .rows import FAILED, OK, SKIPPED, TOLD, Row, judged

WINDOW = 2048  # tokens of a text that are read at once
SURE = 3.0  # standard errors by which one softmax scale has to be better
ALONGSIDE, BLOCK, FEWEST = 4, 32, 12  # tokens that count as one text, in a block, blocks that are too few to decide
_PROMPT = "Say hello."
_FEW, _DECODED = 4, 36  # tokens of the answers that are timed
_NAMES = {"BF16": "bfloat16", "F16": "bfloat16", "F32": "float32"}


@dataclass
class Loaded:
    """A model that runs, and how long loading took."""

    model: Small4ForCausalLM
    processor: Small4Processor
    seconds: float

    def inputs(
        self, content: str | list[dict[str, Any]], mode: str, tools: Sequence[dict[str, Any]] = ()
    ) -> BatchFeature:
        """What a user says, as the model reads it."""
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tools=list(tools) or None,
            reasoning_mode=mode,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)


def loaded(folder: Path, expert_memory: str | None) -> tuple[Loaded | None, Row]:
    """The model, None where it cannot be loaded, and the row about it."""
    begin = time.perf_counter()
    try:
        model, processor = load(str(folder), expert_memory=expert_memory)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        return None, Row("load", FAILED, "cannot be loaded", [Fault("load", folder.name, one_line(error, 600))])
    seconds = time.perf_counter() - begin
    summary = f"{seconds:.1f} s, peak memory of this process {describe_bytes(peak_rss_bytes())}"
    return Loaded(model, processor, seconds), Row("load", OK, summary, data={"seconds": seconds})


def runs(found: Loaded) -> Row:
    """A short answer in each mode: finite scores, and how fast it comes."""
    faults, data = [], {}
    for mode in REASONING_MODES:
        inputs = found.inputs(_PROMPT, mode)
        with torch.inference_mode():
            scores = found.model(**inputs).logits
        if not bool(scores.isfinite().all()):
            faults.append(Fault("not finite", f"mode {mode}", "the model's scores are not finite"))
            continue
        try:
            data[f"tokens_per_second_{mode}"] = _rate(found, inputs, mode)
        except ValueError as error:
            faults.append(Fault("generation", f"mode {mode}", one_line(error, 600)))
    summary = ", ".join(f"{rate:.1f} tokens/s in {name.rsplit('_', 1)[1]}" for name, rate in data.items())
    return judged("runs", faults, summary, data)


def _rate(found: Loaded, inputs: Mapping[str, torch.Tensor], mode: str) -> float:
    """Tokens per second while decoding: two answers, by the difference of their lengths and times."""
    seconds = []
    for length in (_FEW, _FEW, _DECODED):  # the first warms everything up
        begin = time.perf_counter()
        options: dict[str, Any] = {**inputs, "min_new_tokens": length, "max_new_tokens": length}
        found.model.generate(reasoning_mode=mode, do_sample=False, tokenizer=found.processor.tokenizer, **options)
        seconds.append(time.perf_counter() - begin)
    return (_DECODED - _FEW) / max(1e-6, seconds[2] - seconds[1])


def beside_the_planner(found: Loaded, source: Checkpoint, ran: Row, context: int = 1024) -> Row:
    """Measured speed and memory beside what the planner foretells for this machine. Has no verdict."""
    precision = next((name for name in source.precision().split("+") if name in ("fp8", "nvfp4", "int4")), "")
    precision = precision or _NAMES.get(source.plain_dtype(), "bfloat16")
    try:
        made = plan(source.config, this_machine(), precision, context=context, images=1)
        foretold = speed(source.config, made, measure(precision))
    except (ValueError, OSError, RuntimeError) as error:
        return Row("beside the planner", SKIPPED, f"cannot be planned: {one_line(error)}")
    rates = [value for value in ran.data.values() if isinstance(value, float)]
    data = {
        "load_seconds": found.seconds,
        "tokens_per_second": max(rates, default=0.0),
        "peak_memory": peak_rss_bytes(),
        "foretold_tokens_per_second": foretold.tokens_per_second if foretold else 0.0,
        "foretold_memory": sum(load.used for load in made.loads),
    }
    if torch.cuda.is_available():
        data["peak_memory_gpu"] = torch.cuda.max_memory_allocated()
    summary = (
        f"{data['tokens_per_second']:.1f} tokens/s (foretold {data['foretold_tokens_per_second']:.1f}), "
        f"peak {describe_bytes(data['peak_memory'])} (foretold {describe_bytes(data['foretold_memory'])} + process)"
    )
    return Row("beside the planner", TOLD, summary, data=data)


def softmax_scale(found: Loaded, text: str) -> Row:
    """The perplexity of a text under both softmax scales: the configuration's has to be the better one."""
    config = found.model.config.text_config
    ids = found.processor.tokenizer.encode_texts([text])[0]
    if len(ids) < 2:
        return Row("softmax scale", SKIPPED, "the text has less than two tokens")
    scales = {rule: scale_of(config, rule) for rule in SOFTMAX_SCALE_RULES}
    if len(set(scales.values())) == 1:
        return Row("softmax scale", TOLD, "both rules are the same for this configuration (no YaRN factor above 1)")
    losses, new = {}, _first_seen(_windows(found.model, ids))
    layers = [module for module in found.model.modules() if isinstance(module, Small4Attention)]
    own = [layer.scaling for layer in layers]
    try:
        for rule, scale in scales.items():
            for layer in layers:
                layer.scaling = scale
            losses[rule] = token_losses(found.model, ids)[new]
    finally:
        for layer, scale in zip(layers, own, strict=True):
            layer.scaling = scale
    rule = config.softmax_scale_rule
    other = next(name for name in SOFTMAX_SCALE_RULES if name != rule)
    better = losses[other] - losses[rule]  # above 0: the configuration's rule foretells the token better
    # neighbours are foretold alike: what is independent is blocks
    blocks = better[: len(better) // BLOCK * BLOCK].view(-1, BLOCK).mean(dim=1)
    decided = len(blocks) >= FEWEST
    mean, error = float(better.mean()), float(blocks.std()) / math.sqrt(len(blocks)) if decided else None
    perplexity = {name: math.exp(float(each.mean())) for name, each in losses.items()}
    words = ", ".join(f"{name} {value:.4g}" for name, value in perplexity.items())
    data = {"perplexity": perplexity, "tokens": len(better), "rule": rule, "nats_better": mean, "standard_error": error}
    if error is None:
        few = f"undecided: {len(better)} different tokens are too few, {BLOCK * FEWEST} are needed; perplexity {words}"
        return Row("softmax scale", TOLD, few, data=data)
    if mean < -SURE * error:
        reason = f"is '{rule}', but '{other}' foretells the text better: perplexity {words}"
        return judged("softmax scale", [Fault("softmax rule", RULE, reason)], "", data)
    if mean > SURE * error:
        return Row("softmax scale", OK, f"{rule} is right: perplexity {words} over {len(better)} tokens", data=data)
    return Row("softmax scale", TOLD, f"undecided: perplexity {words} over {len(better)} tokens", data=data)


def scale_of(config: Small4TextConfig, rule: str) -> float:
    """The softmax scale of a configuration under another rule."""
    return type(config).from_dict({**config.to_dict(), "softmax_scale_rule": rule}).softmax_scale


def _windows(model: Small4ForCausalLM, ids: list[int]) -> list[list[int]]:
    """What is read at once of a text."""
    begin = getattr(model.config.text_config, "bos_token_id", None)
    first = [] if begin is None else [begin]
    windows = [first + ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    return [window for window in windows if len(window) > 1]


def _first_seen(windows: list[list[int]]) -> torch.Tensor:
    """Of each token but the first of each window, whether it stands for the first time after those before it: what a
    text repeats tells nothing new.
    """
    seen: set[tuple[int, ...]] = set()
    out = []
    for window in windows:
        for end in range(2, len(window) + 1):
            text = tuple(window[max(0, end - ALONGSIDE) : end])
            out.append(text not in seen)
            seen.add(text)
    return torch.tensor(out)


def token_losses(model: Small4ForCausalLM, ids: list[int]) -> torch.Tensor:
    """The negative log-likelihood of each token but the first of each window of the text, in nats, float64."""
    out = []
    for window in _windows(model, ids):
        tokens = torch.tensor([window], device=model.device)
        with torch.inference_mode():
            scores = model(input_ids=tokens).logits[0, :-1].float()
        out.append(torch.nn.functional.cross_entropy(scores, tokens[0, 1:], reduction="none").double().cpu())
    return torch.cat(out)
