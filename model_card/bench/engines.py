"""Other engines on an exported checkpoint: do transformers' own class, vLLM and llama.cpp say what our class says, token by token?

    python -m model_card.bench.engines [--model model_card/demo] [--vllm VENV/bin/vllm] [--llama VENV/bin/python SOURCE/vendor/llama.cpp]
        [--out model_card/results/engines.json]

from the repository root. --llama takes a Python that has llama-cpp-python and the source tree with llama.cpp's converter. The checkpoint is exported in float32 to both published layouts; each engine continues the same prompts
greedily, and its tokens and their log-probabilities are compared with ours. Prints a table, and one JSON line last. Nothing here
decides what is right: a difference is stored like an agreement.
"""

import argparse
import base64
import io
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from small4_conversion.convert import Options, convert
from transformers import Mistral3ForConditionalGeneration

from model_card.evals.record import provenance
from modeling_small4 import Small4ForCausalLM, Small4Processor, demo_checkpoint

QUESTIONS = ("What is 348 + 276?", "Compute 9021 - 478.", "37 + 5 = ?", "What is 1204 minus 96?")
NEW_TOKENS = 40
Answer = tuple[list[int], list[float]]


def prompts(processor: Any) -> list[list[int]]:
    """Each question in both reasoning modes, as ids."""
    chats = ([{"role": "user", "content": text}] for text in QUESTIONS)
    return [
        processor.apply_chat_template(chat, reasoning_mode=mode)["input_ids"][0].tolist()
        for chat in chats
        for mode in ("none", "high")
    ]


def pictures() -> list[tuple[str, Image.Image]]:
    """Questions about drawn shapes."""
    out = []
    for color, shape in (("red", "ellipse"), ("blue", "rectangle")):
        image = Image.new("RGB", (84, 56), "white")
        getattr(ImageDraw.Draw(image), shape)((20, 10, 60, 50), fill=color)
        out.append(("What is in the picture?", image))
    return out


@torch.no_grad()
def continued(model: Any, ids: list[int], **images: torch.Tensor) -> Answer:
    """Greedy tokens of a model in this process, with the log-probability of each. No reasoning mode: the bare model."""
    out = model.generate(
        torch.tensor([ids]), **images, max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True, eos_token_id=2, pad_token_id=11
    )  # fmt: skip
    new = out.sequences[0, len(ids) :].tolist()
    rows = [logits[0].float().log_softmax(-1) for logits in out.logits]
    return new, [row[token].item() for row, token in zip(rows, new, strict=True)]


def difference(ours: list[Answer], theirs: list[Answer]) -> dict[str, Any]:
    """How many answers are equal token by token, and the largest difference of log-probabilities up to the first unequal token."""
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


@contextmanager
def vllm(program: str, folder: Path) -> Iterator[str]:
    """A vLLM server on the raw layout, on this machine's CPU; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [program, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "demo"]
    line += [
        "--tokenizer-mode",
        "mistral",
        "--config-format",
        "mistral",
        "--load-format",
        "mistral",
        "--dtype",
        "float32",
    ]
    line += ["--max-model-len", "512", "--enforce-eager", "--max-num-seqs", "4", "--gpu-memory-utilization", "0.3"]
    line += ["--return-tokens-as-token-ids", "--no-enable-log-requests"]
    settings = {
        "VLLM_MLA_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(line, env=os.environ | settings, stdout=log, stderr=log) as running,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(address, running, log)
            yield address
        finally:
            running.terminate()


def _wait(address: str, running: subprocess.Popen, log: Any, seconds: int = 500) -> None:
    for _ in range(seconds):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).read()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        if running.poll() is not None:
            break
    log.seek(0)
    raise RuntimeError(f"vLLM did not come up:\n{log.read()[-3000:]}")


def looked(processor: Any, model: Any, text: str, image: Image.Image) -> Answer:
    """A picture and a question put to a model in this process."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], reasoning_mode="none")
    images = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    return continued(model, inputs["input_ids"][0].tolist(), **images)


def shown(address: str, text: str, image: Image.Image) -> Answer:
    """The same put to the server, which makes ids and pixels itself."""
    file = io.BytesIO()
    image.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
    }
    found = _post(f"{address}/v1/chat/completions", body | {"logprobs": True, "reasoning_effort": "none"})
    steps = found["choices"][0]["logprobs"]["content"]
    return [int(step["token"].removeprefix("token_id:")) for step in steps], [step["logprob"] for step in steps]


def _post(address: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=300).read())


def asked(address: str, ids: list[int]) -> Answer:
    """The same from the server, which is given ids and names tokens by id."""
    body = {
        "model": "demo",
        "prompt": ids,
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "logprobs": 1,
        "skip_special_tokens": False,
    }
    found = _post(f"{address}/v1/completions", body)["choices"][0]["logprobs"]
    tokens = [int(name.removeprefix("token_id:")) for name in found["tokens"]]
    return tokens, found["token_logprobs"]


# llama.cpp's converter knows pre-tokenizers by the hash of a whole vocabulary; a small one it has to be told.
TO_GGUF = """
import sys
tree = sys.argv.pop(1)
sys.path[:0] = [tree, tree + "/gguf-py"]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "tekken"
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""
RUN_GGUF = """
import json, sys
import numpy as np
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=512, logits_all=True, n_threads=1, verbose=False, type_k=0, type_v=0)
answers = []
for ids in json.load(sys.stdin):
    model.reset()
    new, values = [], []
    step = ids
    while len(new) < int(sys.argv[2]) and 2 not in new:
        model.eval(step)
        row = np.asarray(model.scores[model.n_tokens - 1], dtype=np.float64)
        token = int(row.argmax())
        values.append(float(row[token] - row.max() - np.log(np.exp(row - row.max()).sum())))
        new.append(token)
        step = [token]
    answers.append((new, values))
print(json.dumps(answers))
"""


def llama(python: str, tree: str, folder: Path, questions: list[list[int]]) -> list[Answer]:
    """llama.cpp on the transformers layout, converted in float32, with a float32 cache."""
    (folder / "tekken.json").unlink(missing_ok=True)  # the converter would take the folder for the raw layout
    file = folder.parent / "model.gguf"
    line = [sys.executable, "-c", TO_GGUF, tree, str(folder), "--outfile", str(file), "--outtype", "f32"]
    subprocess.run(line, check=True, capture_output=True)
    line = [python, "-c", RUN_GGUF, str(file), str(NEW_TOKENS)]
    done = subprocess.run(line, check=True, capture_output=True, text=True, input=json.dumps(questions))
    return [(tokens, values) for tokens, values in json.loads(done.stdout)]


def without_end(answer: Answer) -> Answer:
    """Engines differ in whether they hand out the end-of-sequence token."""
    tokens, values = answer
    return (tokens[:-1], values[:-1]) if tokens and tokens[-1] == 2 else (tokens, values)


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
    stored = provenance(["python", "-m", "model_card.bench.engines", *_spoken(args)]) | {"engines": results}
    if args.out:
        args.out.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"{'engine':<56}{'answers equal':>14}{'tokens':>8}{'log-probability':>17}")
    for name, row in results.items():
        print(
            f"{name:<56}{row['equal']:>8} of {row['answers']}{row['tokens']:>8}{row['largest_logprob_difference']:>17.1e}"
        )
    print(json.dumps(results))


def _spoken(args: argparse.Namespace) -> list[str]:
    """The arguments, without this machine's paths."""
    vllm_words = ["--vllm", "VENV/bin/vllm"] if args.vllm else []
    llama_words = ["--llama", "VENV/bin/python", "SOURCE/vendor/llama.cpp"] if args.llama else []
    return [*vllm_words, *llama_words]


def measured(model: Path, work: Path, program: str | None, gguf: list[str] | None) -> dict[str, Any]:
    """Exports the checkpoint and asks every engine that is there."""
    for layout in ("transformers", "mistral"):
        convert(model, work / layout, Options(to=layout, dtype="float32"))
    processor = Small4Processor.from_pretrained(model)
    questions, seen = prompts(processor), pictures()
    mine = Small4ForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ours = [continued(mine, ids) for ids in questions], [looked(processor, mine, *each) for each in seen]
    assert all(math.isfinite(value) for answers in ours for _, values in answers for value in values)
    host = Mistral3ForConditionalGeneration.from_pretrained(work / "transformers", dtype=torch.float32).eval()
    theirs = [continued(host, ids) for ids in questions], [looked(processor, host, *each) for each in seen]
    results = _rows("transformers Mistral3ForConditionalGeneration", ours, theirs, version("transformers"))
    if program:
        with vllm(program, work / "mistral") as address:
            theirs = [asked(address, ids) for ids in questions], [shown(address, *each) for each in seen]
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        results |= _rows("vLLM, raw layout, CPU", ours, theirs, done.stdout.split()[-1])
    if gguf:
        line = [gguf[0], "-c", "import llama_cpp; print(llama_cpp.__version__)"]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        number = f"llama-cpp-python {done.stdout.strip()}"
        results |= _rows(
            "llama.cpp, transformers layout", ours[:1], (llama(*gguf, work / "transformers", questions),), number
        )
    return results


def _rows(engine: str, ours: tuple[list[Answer], ...], theirs: tuple[list[Answer], ...], number: str) -> dict[str, Any]:
    named = zip(("text", "pictures"), ours, theirs, strict=False)
    ended = ((kind, [*map(without_end, a)], [*map(without_end, b)]) for kind, a, b in named)
    return {f"{engine}, {kind}": difference(a, b) | {"version": number} for kind, a, b in ended}


if __name__ == "__main__":
    main()
