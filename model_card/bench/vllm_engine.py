"""vLLM on a CPU, as an engine for `engines`: a server on the raw layout, asked through its HTTP interface."""

import base64
import io
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from modeling_small4 import Small4Config, Small4ForCausalLM

NAME = "demo"
# Its CPU kernel for latents knows the width 512 + 64 only.
SETTINGS = {
    "VLLM_MLA_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
MISTRAL = ("--tokenizer-mode", "mistral", "--config-format", "mistral", "--load-format", "mistral")
SMALL = ("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "4", "--gpu-memory-utilization", "0.3")
HEAD_WIDTH = 64  # its CPU kernels know some widths of heads only, this one among them
Answer = tuple[list[int], list[float]]


def version(program: str) -> str:
    """What `vllm --version` says."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


@contextmanager
def serving(program: str, folder: Path, longest: int) -> Iterator[str]:
    """A server for up to `longest` tokens; yields its address.

    Raises:
        RuntimeError: It did not come up; with the end of what it said.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [program, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    line += [
        *MISTRAL,
        *SMALL,
        "--max-model-len",
        str(longest),
        "--return-tokens-as-token-ids",
        "--no-enable-log-requests",
    ]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(line, env=os.environ | SETTINGS, stdout=log, stderr=log) as running,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(address, running, log)
            yield address
        finally:
            running.terminate()


def _wait(address: str, running: subprocess.Popen, log: Any, seconds: int = 1800) -> None:
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


@torch.no_grad()
def widened(model: Small4ForCausalLM, width: int = HEAD_WIDTH) -> Small4ForCausalLM:
    """The same function with heads `width` wide: zeros in queries and keys, and queries that make up for the softmax
    scale.
    """
    text = model.config.get_text_config()
    heads, nope, rope = text.num_attention_heads, text.qk_nope_head_dim, text.qk_rope_head_dim
    config = model.config.to_dict()
    config["text_config"] = config["text_config"] | {"qk_nope_head_dim": width - rope, "qk_head_dim": width}
    state = model.state_dict()
    for name, weight in state.items():
        if name.endswith(("q_b_proj.weight", "kv_b_proj.weight")):
            rows = weight.unflatten(0, (heads, -1))
            zeros = rows.new_zeros(heads, width - rope - nope, rows.shape[-1])
            rows = torch.cat((rows[:, :nope], zeros, rows[:, nope:]), dim=1).flatten(0, 1)
            state[name] = rows * (width / (nope + rope)) ** 0.5 if name.endswith(".q_b_proj.weight") else rows
    wide = Small4ForCausalLM(Small4Config.from_dict(config)).to(model.dtype).eval()
    wide.load_state_dict(state)
    return wide


def ask(address: str, ids: list[int], new_tokens: int) -> Answer:
    """Greedy tokens after the prompt `ids`, and their log-probabilities."""
    body = {"prompt": ids, "logprobs": 1, "skip_special_tokens": False}
    found = _post(f"{address}/v1/completions", body, new_tokens)["choices"][0]["logprobs"]
    return [int(name.removeprefix("token_id:")) for name in found["tokens"]], found["token_logprobs"]


def show(address: str, text: str, image: Image.Image, new_tokens: int) -> Answer:
    """The same after a picture and a question, of which the server makes ids and pixels itself."""
    file = io.BytesIO()
    image.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    body = {"messages": [{"role": "user", "content": content}], "logprobs": True, "reasoning_effort": "none"}
    steps = _post(f"{address}/v1/chat/completions", body, new_tokens)["choices"][0]["logprobs"]["content"]
    return [int(step["token"].removeprefix("token_id:")) for step in steps], [step["logprob"] for step in steps]


def _post(address: str, body: dict[str, Any], new_tokens: int) -> dict[str, Any]:
    body = {"model": NAME, "temperature": 0, "max_tokens": new_tokens} | body
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        return json.loads(urllib.request.urlopen(request, timeout=300).read())
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"vLLM answered {error.code}: {error.read().decode()[:2000]}") from None
