"""Speed of prompts and images beside mistral-common: conversations per second and images per second, one process, one
thread.

    python -m model_card.bench.preprocessing [--runs 9] [--out model_card/results/preprocessing.json]

from the repository root; needs mistral-common with OpenCV (`pip install "mistral-common[image]"`). Checks first that
both give the same ids, and the same pixels within 2e-3. Seconds are CPU time of this process, so that whatever else
runs on the machine does not count; each figure is the median of interleaved runs. Prints a table, and one JSON line
last.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from PIL import Image
from small4_conversion.tokenizer import write_processor

from model_card.bench.harness import store
from model_card.tekken_content import published
from modeling_small4.image_processing_small4 import Small4ImageProcessor
from modeling_small4.processing_small4 import Small4Processor

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = (
    "Où se trouve la bibliothèque la plus proche ? Elle ferme à dix-huit heures, après l'arrivée du dernier élève. ",
    "Die Prüfung beginnt um neun Uhr; bitte erscheinen Sie pünktlich und bringen Sie Ihren Ausweis mit. ",
    "东京的春天很美。樱花盛开的时候公园里到处都是人。", "図書館は駅の向かい側にあります。月曜日は休みです。",
    "Мы поедем за город, если не будет дождя. ", "هل يمكنك أن تشرح لي كيف تعمل هذه الآلة؟ ", "Отлично! 🙂👍 ",
)  # fmt: skip
SIZES = (
    (1, 300), (28, 28), (64, 64), (112, 112), (320, 240), (640, 480), (1024, 768), (1540, 1540), (1920, 1080),
    (2500, 1800),
    (4000, 3000), (8000, 1000),
)  # fmt: skip
MODES = ("L", "1", "LA", "P", "RGBA", "CMYK")  # samples of 16 bits are read otherwise on purpose
KINDS = ("short", "turns", "tools", "languages", "document")

Run = Callable[[], Any]


def conversations(kind: str, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Requests in OpenAI's form: `{"messages", "tools", "mode"}`."""
    license_words = (ROOT / "LICENSE").read_text().split()
    code = (ROOT / "modeling_small4" / "chat.py").read_text()

    def words(length: int) -> str:
        start = rng.randrange(len(license_words) - length)
        return " ".join(license_words[start : start + length])

    def one() -> list[dict[str, Any]]:
        if kind == "short":
            return [_user(words(25))]
        if kind == "turns":
            turns = [(_user(words(40)), {"role": "assistant", "content": words(120)}) for _ in range(4)]
            return [{"role": "system", "content": words(60)}, *(m for turn in turns for m in turn), _user(words(30))]
        if kind == "tools":
            call = {"id": "a1", "type": "function", "function": {"name": "search", "arguments": {"query": words(5)}}}
            answer = {"role": "assistant", "reasoning_content": words(80), "content": "", "tool_calls": [call]}
            return [_user(words(20)), answer, {"role": "tool", "tool_call_id": "a1", "content": words(150)}]
        if kind == "languages":
            return [_user("".join(rng.choices(LANGUAGES, k=12)))]
        return [_user(words(900) + code + words(400))]

    tools = [_tool(name) for name in ("search", "fetch", "calculate")] if kind == "tools" else None
    return [{"messages": one(), "tools": tools, "mode": rng.choice(["none", "high"])} for _ in range(count)]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _tool(name: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": f"The {key} to {name} for."} for key in ("query", "language")}
    parameters = {"type": "object", "properties": properties, "required": ["query"]}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": parameters}}


def tokenizers(work: Path) -> tuple[Small4Processor, MistralTokenizer]:
    """Ours and theirs on the whole published vocabulary with the release's control tokens."""
    (work / "tekken.json").write_text(json.dumps(published(131072)))
    write_processor(work / "tekken.json", work / "ours", None)
    return Small4Processor.from_pretrained(work / "ours"), MistralTokenizer.from_file(work / "tekken.json")


def medians(runs: int, *ways: Run) -> list[float]:
    """Median CPU seconds of each way, run in turns after one round to warm up."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(runs + 1):
        for way, times in zip(ways, seconds, strict=True):
            began = time.process_time()
            way()
            if turn:
                times.append(time.process_time() - began)
    return [statistics.median(times) for times in seconds]


def _row(count: int, ours: float, theirs: float, **extra: Any) -> dict[str, Any]:
    return {"ours_per_s": count / ours, "mistral_common_per_s": count / theirs, "ratio": theirs / ours, **extra}


def measure_prompts(runs: int, count: int, work: Path) -> dict[str, Any]:
    """Conversations per second by kind, from message dicts to ids (ours: tensors)."""
    processor, authority = tokenizers(work)
    rng = random.Random(0)
    out = {}
    for kind in KINDS:
        cases = conversations(kind, count, rng)

        def ours(cases: list[dict[str, Any]] = cases) -> list[list[int]]:
            return [
                processor.apply_chat_template(
                    case["messages"], tools=case["tools"], reasoning_mode=case["mode"], tokenize=True
                )[0]
                for case in cases
            ]

        def theirs(cases: list[dict[str, Any]] = cases) -> list[list[int]]:
            requests = [
                ChatCompletionRequest.from_openai(case["messages"], tools=case["tools"], reasoning_effort=case["mode"])
                for case in cases
            ]
            return [authority.encode_chat_completion(request).tokens for request in requests]

        same = ours()
        if same != theirs():
            raise SystemExit(f"The ids of {kind!r} conversations differ from mistral-common's; nothing was timed.")
        tokens = sum(map(len, same)) / len(same)
        out[kind] = _row(count, *medians(runs, ours, theirs), tokens_each=round(tokens, 1))
    return out


def pictures() -> dict[str, list[Image.Image]]:
    """What is timed: RGB of each size, other modes at a medium size, and one batch of different sizes."""
    values = np.random.default_rng(0)

    def draw(width: int, height: int) -> Image.Image:
        return Image.fromarray(values.integers(0, 256, (height, width, 3), dtype=np.uint8))

    out = {f"{width}x{height}": [draw(width, height)] for width, height in SIZES}
    medium = draw(640, 480)
    for mode in MODES:
        image = medium.convert(mode)
        if mode in ("LA", "RGBA"):
            image.putalpha(medium.convert("L"))
        out[f"640x480 {mode}"] = [image]
    out["batch of 6 sizes"] = [
        draw(*size) for size in ((320, 240), (640, 480), (480, 640), (1024, 768), (200, 900), (64, 64))
    ]
    return out


def measure_images(runs: int) -> dict[str, Any]:
    """Images per second, from decoded images to one batch of normalized pixels, at the release's sizes."""
    authority = ImageEncoder(ImageConfig(14, 1540, 2), SpecialImageIDs(img=10, img_break=12, img_end=13))
    processor = Small4ImageProcessor()
    out = {}
    for name, images in pictures().items():
        count = max(1, 500_000 // sum(image.width * image.height for image in images))
        count = min(count, 100)

        def ours(images: list[Image.Image] = images, count: int = count) -> Any:
            return [processor(images)["pixel_values"] for _ in range(count)][-1]

        def theirs(images: list[Image.Image] = images, count: int = count) -> Any:
            return [[authority(ImageChunk(image=image)).image for image in images] for _ in range(count)][-1]

        expected = theirs()
        got = [pixels[:, : one.shape[1], : one.shape[2]] for pixels, one in zip(ours().numpy(), expected, strict=True)]
        gap = max(float(np.abs(mine - one).max()) for mine, one in zip(got, expected, strict=True))
        if gap > 2e-3:
            raise SystemExit(f"Pixels of {name} differ from mistral-common's by {gap}; nothing was timed.")
        out[name] = _row(count * len(images), *medians(runs, ours, theirs), largest_difference=gap)
    return out


def main() -> None:
    """Measure, print, store."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # numpy reads it once, when it is imported
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | threads)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--count", type=int, default=50, help="conversations of each kind")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="small4-bench-") as work:
        prompts = measure_prompts(args.runs, args.count, Path(work))
    result = {"conversations": prompts, "images": measure_images(args.runs), "runs": args.runs, "threads": 1}
    result["versions"] = {n: version(n) for n in ("mistral_common", "opencv-python-headless", "pillow", "numpy")}
    for title in ("conversations", "images"):
        print(f"{title:<17} {'ours/s':>10} {'mistral-common/s':>18} {'ratio':>7}")
        for kind, row in result[title].items():
            print(f"{kind:<17} {row['ours_per_s']:10.1f} {row['mistral_common_per_s']:18.1f} {row['ratio']:7.2f}")
    store(args.out, result)


if __name__ == "__main__":
    main()
