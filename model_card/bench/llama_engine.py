"""llama.cpp as an engine for `engines`: exported folders to GGUF files by its own converter, and prompts continued by
`llama_worker`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("llama_worker.py")
Answer = tuple[list[int], list[float]]


def version(python: str) -> str:
    """Of llama-cpp-python, which carries a llama.cpp."""
    line = [python, "-c", "import llama_cpp; print('llama-cpp-python', llama_cpp.__version__)"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()


def to_gguf(tree: str, folder: Path, raw: Path | None) -> tuple[Path, Path | None]:
    """Files beside `folder`, in float32: the decoder out of the transformers layout; the tower, if there is one, out of
    the raw layout.

    The tower has to come from there because for the other layout the converter knows published names only
    (`vision_tower.`, not `model.vision_tower.`) and drops the row of the embedding that [IMG_BREAK] is.
    """
    (folder / "tekken.json").unlink(missing_ok=True)  # the converter would take the folder for the raw layout
    model, tower = folder.parent / "model.gguf", folder.parent / "tower.gguf"
    _convert(tree, folder, model)
    if raw is not None:
        _convert(tree, raw, tower, "--mistral-format", "--mmproj")
    return model, tower if raw is not None else None


def quantized(python: str, model: Path, kind: str, overrides: dict[str, Any]) -> Path:
    """The same in fewer bits ("Q8_0", "Q4_K_M"), with the overrides kept in the file."""
    file = model.with_name(f"model-{kind}.gguf")
    _run([python, str(WORKER), "quantize", str(model), str(file), kind], json.dumps(overrides))
    return file


def _convert(tree: str, folder: Path, file: Path, *options: str) -> None:
    line = [sys.executable, str(WORKER), "convert", tree, str(folder), "--outfile", str(file), "--outtype", "f32"]
    _run([*line, *options], "")


def ask(
    python: str, files: tuple[Path, Path | None], overrides: dict[str, Any], prompts: list[Any], new_tokens: int
) -> list[Answer]:
    """Greedy tokens after each prompt (see `llama_worker`) and their log-probabilities, some of the file's metadata
    overridden.
    """
    model, tower = files
    request = {"model": str(model), "tower": tower and str(tower), "overrides": overrides, "prompts": prompts}
    answers = json.loads(_run([python, str(WORKER), "answer", str(new_tokens)], json.dumps(request)))
    return [(tokens, values) for tokens, values in answers]


def _run(line: list[str], given: str) -> str:
    done = subprocess.run(line, capture_output=True, text=True, input=given, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout
