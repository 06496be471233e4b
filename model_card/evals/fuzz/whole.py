"""Whole checkpoints, damaged in one file: loaded, converted, verified, served. What is right: the tensors that
safetensors itself reads from the files, the settings that stand in them, and no file changed or left over.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from safetensors.torch import load_file
from small4_conversion.convert import Options, convert
from small4_conversion.files import INDEX
from small4_conversion.verify import compare
from transformers import AutoModelForCausalLM

from modeling_small4 import Small4ForCausalLM
from modeling_small4.server.app import make_app

from . import requests
from .cases import Bench, Case
from .damage import Damage, damage
from .settings import unlike

IDS = torch.tensor([[1, 100, 101, 102]])


def loaded(bench: Bench, draw: random.Random) -> Case:
    layout = draw.choice(("ours", "one"))
    folder, done = _damaged(bench, draw, layout, [INDEX, "config.json", "generation_config.json", "*.safetensors"])
    reader: type[Small4ForCausalLM] | type[AutoModelForCausalLM] = draw.choice(
        (Small4ForCausalLM, AutoModelForCausalLM)
    )

    def check(model: Small4ForCausalLM) -> str | None:
        if reason := unlike(_json(folder / "config.json"), model.config.to_dict()):
            return reason
        if reason := unlike(_json(folder / "generation_config.json"), model.generation_config.to_dict()):
            return reason
        state, stored = model.state_dict(), _tensors(folder)
        for name, tensor in stored.items():
            if name not in state or not torch.equal(_bits(state[name]), _bits(tensor.to(state[name].dtype))):
                return f"{name} is not what the file holds"
        with torch.no_grad():
            model(IDS)
        return None

    what = f"{reader.__name__}, {layout}: {done.file}, {done.what}"
    read = _untouched(bench, lambda: reader.from_pretrained(folder))
    return Case(what, read, check, (str(folder),), auto=reader is AutoModelForCausalLM)


def converted(bench: Bench, draw: random.Random) -> Case:
    layout, to = draw.choice(("ours", "one", "raw", "hf")), draw.choice(("small4", "mistral", "transformers"))
    folder, done = _damaged(bench, draw, layout, None)
    out = bench.work.parent / f"{bench.work.name}-out" / "out"

    def read() -> object:
        before = _state(bench.work)
        try:
            convert(folder, out, Options(to=to))
        finally:
            assert _state(bench.work) == before, "the source was changed"
            left = sorted(entry.name for entry in out.parent.iterdir()) if out.parent.exists() else []
            assert left in ([], ["out"]), f"left over: {left}"
        return out

    def check(_: object) -> str | None:
        try:
            _, differences = compare(folder, out)
        finally:
            _remove(out.parent)
        return f"verify finds {str(differences)[:200]}" if differences else None

    return Case(f"{layout} to {to}: {done.file}, {done.what}", read, check, (str(folder),))


def verified(bench: Bench, draw: random.Random) -> Case:
    """A damaged folder beside the sound one: refused, or compared, never another end."""
    layout, other = draw.choice(("ours", "raw", "hf")), draw.choice(("ours", "raw"))
    folder, done = _damaged(bench, draw, layout, None)
    pair = (folder, bench.sound / other) if draw.random() < 0.5 else (bench.sound / other, folder)
    what = f"{layout} beside {other}: {done.file}, {done.what}"

    def check(found: object) -> str | None:
        assert isinstance(found, tuple)
        values = done.what in ("body: flipped", "body: not a number")
        return "a changed value is not found" if values and not found[1] else None

    return Case(what, _untouched(bench, lambda: compare(*pair)), check, (str(folder),))


def served(bench: Bench, draw: random.Random) -> Case:
    """A request through the whole application, answers decoded."""
    path, data, what = requests.body(draw)

    def check(found: object) -> str | None:
        assert isinstance(found, tuple)
        status, kind, text = found
        if status == 200:
            if kind.startswith("text/event-stream"):
                lines = [line for line in text.decode().splitlines() if line.startswith("data: ")]
                return None if lines and not any('"server_error"' in line for line in lines) else "a broken stream"
            return None if json.loads(text)["object"] else "no object"
        error = json.loads(text)["error"]
        if not 400 <= status < 500:
            return f"status {status}: {error}"
        if error["param"] is None and error["code"] not in ("invalid_json", "model_not_found"):
            return f"no param: {error}"
        return None

    return Case(what, lambda: _ask(_application(bench.sound / "one"), path, data), check)


def _damaged(bench: Bench, draw: random.Random, layout: str, patterns: list[str] | None) -> tuple[Path, Damage]:
    folder = bench.copy(layout)
    files = None if patterns is None else [file.name for each in patterns for file in sorted(folder.glob(each))]
    return folder, damage(folder, draw, files)


def _untouched(bench: Bench, read: Callable[[], object]) -> Callable[[], object]:
    """A reader that must leave everything as it is."""

    def checked() -> object:
        before = _state(bench.work)
        try:
            return read()
        finally:
            assert _state(bench.work) == before, "reading changed the folder"

    return checked


def _state(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): hashlib.sha1(file.read_bytes()).hexdigest() for file in files}


def _json(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_bytes()) if file.exists() else {}
    return found if isinstance(found, dict) else {}


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder as its index and safetensors' own reader give them."""
    if not (folder / INDEX).exists():
        return load_file(folder / "model.safetensors")
    out: dict[str, torch.Tensor] = {}
    for name in sorted(set(_json(folder / INDEX)["weight_map"].values())):
        out |= load_file(folder / name)
    return out


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _remove(folder: Path) -> None:
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    folder.rmdir()


_running: dict[Path, FastAPI] = {}


def _application(folder: Path) -> FastAPI:
    """The application on a tiny model, its engine running in this process."""
    if folder not in _running:
        api = requests.api(folder)
        api.engine.start()
        _running[folder] = make_app(api)
    return _running[folder]


def _ask(application: FastAPI, path: str, data: bytes) -> tuple[int, str, bytes]:
    """Status, content type and body that the application answers."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1), "headers": [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")],
    }  # fmt: skip
    sent: list[MutableMapping[str, Any]] = []

    async def answer() -> None:
        asked, over = False, asyncio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": data, "more_body": False}
            await over.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        await application(scope, receive, send)
        over.set()

    asyncio.run(answer())
    head = dict(sent[0]["headers"])
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], head.get(b"content-type", b"").decode(), body
