"""Other engines on an exported checkpoint: do transformers' own class, vLLM and llama.cpp say what our class says,
token by token?

    python -m model_card.bench.engines [--model model_card/demo] [--vllm VENV/bin/vllm] [--llama VENV/bin/python SOURCE/vendor/llama.cpp]
        [--out model_card/results/engines.json]

from the repository root. --llama takes a Python that has llama-cpp-python, and the source tree with llama.cpp's
converter. The checkpoint is exported in float32 to both published layouts; each engine continues the same prompts
greedily, and its tokens and their log-probabilities are compared with ours. Prints a table, and one JSON line last.
Nothing here decides what is right: a difference is stored like an agreement.
"""  # noqa: E501

import argparse
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from small4_conversion.convert import Options, convert
from small4_conversion.llama_cpp import overrides
from transformers import Mistral3ForConditionalGeneration

from model_card.bench import llama_engine, vllm_engine
from model_card.evals.record import provenance, write
from modeling_small4 import Small4ForCausalLM, Small4Processor, demo_checkpoint
from modeling_small4.configuration_small4 import Small4Config

QUESTIONS = ("What is 348 + 276?", "Compute 9021 - 478.", "37 + 5 = ?", "What is 1204 minus 96?")
SHAPES = (("red", "ellipse"), ("blue", "rectangle"), ("green", "ellipse"))
NEW_TOKENS = 40
LONGEST = 4096  # tokens that engines are started for
Answer = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Question:
    """A prompt as ids; with a picture also what a model here and an engine elsewhere need to see it."""

    ids: list[int]
    text: str = ""
    image: Image.Image | None = None
    pixels: dict[str, torch.Tensor] = field(default_factory=dict)

    def for_llama(self) -> dict[str, Any]:
        """The form that `llama_worker` reads: the picture with its rows' ends is put in between."""
        if self.image is None:
            return {"before": self.ids, "image": None, "after": []}
        first, last = self.ids.index(10), self.ids.index(13)  # [IMG], [IMG_END]
        image = [self.image.height, self.image.width, self.image.tobytes().hex()]
        return {"before": self.ids[:first], "image": image, "after": self.ids[last:]}


def prompts(processor: Small4Processor) -> list[list[int]]:
    """Each question in both reasoning modes, as ids."""
    chats = ([{"role": "user", "content": text}] for text in QUESTIONS)
    return [
        processor.apply_chat_template(chat, reasoning_mode=mode, tokenize=True)[0]
        for chat in chats
        for mode in ("none", "high")
    ]


def long_prompts(processor: Small4Processor, original: int) -> list[list[int]]:
    """Prompts that end beyond the original context, where positions are interpolated and queries scaled; none if that
    is too long here.
    """
    if original + 200 > LONGEST - NEW_TOKENS:
        return []
    text = " ".join(QUESTIONS)
    while (
        len(ids := processor.apply_chat_template([{"role": "user", "content": text}], tokenize=True)[0]) < original + 50
    ):
        text += " " + " ".join(QUESTIONS[: 1 + (original + 50 - len(ids)) // 100])
    chat = [{"role": "user", "content": text}]
    return [processor.apply_chat_template(chat, reasoning_mode=mode, tokenize=True)[0] for mode in ("none", "high")]


def pictures(processor: Small4Processor) -> list[Question]:
    """Questions about drawn shapes, of a size that no engine resizes: whole squares of 28 pixels, and more than eight
    of them.
    """
    out, text = [], "What is in the picture?"
    for color, shape in SHAPES:
        image = Image.new("RGB", (112, 84), "white")
        getattr(ImageDraw.Draw(image), shape)((20, 10, 90, 70), fill=color)
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], reasoning_mode="none", tokenize=True, return_dict=True
        )
        pixels = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
        out.append(Question(inputs["input_ids"][0], text, image, pixels))
    return out


def questions(processor: Small4Processor, config: Small4Config) -> dict[str, list[Question]]:
    """All that is asked, by kind."""
    original = config.text_config.rope_parameters.get("original_max_position_embeddings", LONGEST)
    out = {
        "text": [Question(ids) for ids in prompts(processor)],
        "long text": [Question(ids) for ids in long_prompts(processor, original)],
        "pictures": pictures(processor) if config.vision_config is not None else [],
    }
    return {kind: asked for kind, asked in out.items() if asked}


@torch.no_grad()
def continued(model: Small4ForCausalLM, ids: list[int], **images: Any) -> Answer:
    """Greedy tokens of a model in this process, with the log-probability of each. No reasoning mode: the bare model."""
    out = model.generate(
        torch.tensor([ids]), **images, max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True,
            output_logits=True, eos_token_id=2, pad_token_id=11
    )  # fmt: skip
    new = out.sequences[0, len(ids) :].tolist()
    rows = [logits[0].float().log_softmax(-1) for logits in out.logits]
    return new, [row[token].item() for row, token in zip(rows, new, strict=True)]


def without_end(answer: Answer) -> Answer:
    """Engines differ in whether they hand out the end-of-sequence token."""
    tokens, values = answer
    return (tokens[:-1], values[:-1]) if tokens and tokens[-1] == 2 else (tokens, values)


def difference(ours: list[Answer], theirs: list[Answer]) -> dict[str, Any]:
    """How many answers are equal token by token, and the largest difference of log-probabilities up to the first
    unequal token.
    """
    equal, most = 0, 0.0
    for (a, p), (b, q) in zip(ours, theirs, strict=True):
        equal += a == b
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        most = max([most, *(abs(x - y) for x, y in zip(p[:same], q[:same], strict=True))])
    return {
        "answers": len(ours),
        "equal": equal,
        "tokens": sum(len(a) for a, _ in ours),
        "largest_logprob_difference": most,
    }


class Comparison:
    """Our answers, and how those of other engines differ from them."""

    def __init__(self, model: Path) -> None:
        self.model = Small4ForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.asked = questions(Small4Processor.from_pretrained(model), self.model.config)
        self.ours = {kind: [_here(self.model, q) for q in asked] for kind, asked in self.asked.items()}
        assert all(math.isfinite(value) for answers in self.ours.values() for _, values in answers for value in values)
        self.results: dict[str, Any] = {}

    def add(self, engine: str, number: str, answers: Callable[[list[Question]], list[Answer]]) -> None:
        """Put every kind of question to an engine."""
        for kind, asked in self.asked.items():
            a, b = ([*map(without_end, side)] for side in (self.ours[kind], answers(asked)))
            self.results[f"{engine}, {kind}"] = difference(a, b) | {"version": number}


def _here(model: Small4ForCausalLM, question: Question) -> Answer:
    return continued(model, question.ids, **question.pixels)


def measured(model: Path, work: Path, vllm: str | None, llama: list[str] | None) -> dict[str, Any]:
    """Exports the checkpoint and asks every engine that is there."""
    for layout in ("transformers", "mistral"):
        convert(model, work / layout, Options(to=layout, dtype="float32"))
    compared = Comparison(model)
    host = Mistral3ForConditionalGeneration.from_pretrained(work / "transformers", dtype=torch.float32).eval()
    name = "transformers Mistral3ForConditionalGeneration"
    compared.add(name, version("transformers"), lambda asked: [_here(host, q) for q in asked])
    if vllm:
        shutil.copytree(model, work / "wide")
        vllm_engine.widened(compared.model).save_pretrained(work / "wide")
        convert(work / "wide", work / "wide-mistral", Options(to="mistral", dtype="float32"))
        with vllm_engine.serving(vllm, work / "wide-mistral", LONGEST) as address:
            compared.add(
                "vLLM, raw layout, heads padded with zeros, CPU",
                vllm_engine.version(vllm),
                lambda a: [_served(address, q) for q in a],
            )
    if llama:
        _ask_llama(compared, work, *llama)
    return compared.results


def _served(address: str, question: Question) -> Answer:
    if question.image is None:
        return vllm_engine.ask(address, question.ids, NEW_TOKENS)
    return vllm_engine.show(address, question.text, question.image, NEW_TOKENS)


def _ask_llama(compared: Comparison, work: Path, python: str, tree: str) -> None:
    """With the metadata that `small4_conversion.llama_cpp` names, with what its converter makes of the folder alone,
    and with fewer bits.
    """
    raw = work / "mistral" if compared.model.config.vision_config is not None else None
    model, tower = llama_engine.to_gguf(tree, work / "transformers", raw)
    number, told = llama_engine.version(python), overrides(compared.model.config)
    forms: dict[str, tuple[Path, dict[str, Any]]] = {"with overrides": (model, told), "without overrides": (model, {})}
    for kind in ("Q8_0", "Q4_K_M"):
        forms[f"{kind}, overrides kept in the file"] = (llama_engine.quantized(python, model, kind, told), {})
    for name, (file, extra) in forms.items():

        def answers(asked: list[Question], file: Path = file, extra: dict[str, Any] = extra) -> list[Answer]:
            return llama_engine.ask(python, (file, tower), extra, [q.for_llama() for q in asked], NEW_TOKENS)

        compared.add(f"llama.cpp, {name}", number, answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=demo_checkpoint())
    parser.add_argument("--vllm", help="the vllm program of another virtual environment")
    parser.add_argument(
        "--llama", nargs=2, metavar=("PYTHON", "TREE"), help="a Python with llama-cpp-python, and llama.cpp's source"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        results = measured(args.model, Path(work), args.vllm, args.llama)
    stored = provenance(["python", "-m", "model_card.bench.engines", *_spoken(args)])
    stored |= {"weights_sha256": weights_hash(args.model), "engines": results}
    if args.out:
        write(args.out, stored)
    print(f"{'engine':<60}{'answers equal':>14}{'tokens':>8}{'log-probability':>17}")
    for name, row in results.items():
        counts = f"{row['equal']:>8} of {row['answers']}"
        print(f"{name:<60}{counts:>14}{row['tokens']:>8}{row['largest_logprob_difference']:>17.1e}")
    print(json.dumps(results))


def weights_hash(model: Path) -> str:
    """Of all weight files in order, so that a result can be told to be of these weights."""
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _spoken(args: argparse.Namespace) -> list[str]:
    """The arguments, without this machine's paths."""
    vllm_words = ["--vllm", "VENV/bin/vllm"] if args.vllm else []
    llama_words = ["--llama", "VENV/bin/python", "SOURCE/vendor/llama.cpp"] if args.llama else []
    return [*vllm_words, *llama_words]


if __name__ == "__main__":
    main()
