"""A checkpoint larger than the memory that the process may take answers all the same, by every door, and says what it
does.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from forked import python
from tiny_checkpoint import write_tiny_checkpoint

from modeling_small4 import Small4Config, Small4ForCausalLM

pytest.importorskip("resource")
WIDE = {
    "hidden_size": 256, "moe_intermediate_size": 512, "n_routed_experts": 64, "num_hidden_layers": 12,
    "num_experts_per_tok": 2, "initializer_range": 0.05,
}  # fmt: skip
LIMIT = """
import resource, sys
import torch, transformers, modeling_small4, psutil
torch.set_num_threads(1)
taken = psutil.Process().memory_info().data
resource.setrlimit(resource.RLIMIT_DATA, (taken + 400 * 2**20,) * 2)
folder = sys.argv[1]
"""
SERVER = """
import http.client, json, threading, time
from modeling_small4.server.app import make_server
server = make_server(folder, port=0%s)
thread = threading.Thread(target=server.run, daemon=True)
thread.start()
while not server.started:
    time.sleep(0.05)
    assert thread.is_alive()
connection = http.client.HTTPConnection(*server.servers[0].sockets[0].getsockname()[:2], timeout=300)
messages = [{"role": "user", "content": "hello"}]
body = {"model": server.api.options.name, "messages": messages, "max_tokens": 4, "temperature": 0}
connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
answer = json.loads(connection.getresponse().read())
assert answer.get("usage", {}).get("completion_tokens") == 4, answer
print(answer["choices"][0]["finish_reason"])
server.should_exit = True
thread.join()
"""
DOORS = {
    "generate": """
from modeling_small4 import Small4ForCausalLM, Small4Processor
model, processor = Small4ForCausalLM.from_pretrained(folder), Small4Processor.from_pretrained(folder)
inputs = processor.apply_chat_template([{"role": "user", "content": "hello"}], reasoning_mode="high", add_generation_prompt=True, tokenize=True,
                                       return_dict=True, return_tensors="pt")
print(model.generate(**inputs, tokenizer=processor.tokenizer, reasoning_mode="high", max_new_tokens=6, do_sample=False)[0].tolist())
""",  # noqa: E501
    "pipeline": """
pipe = transformers.pipeline("text-generation", model=folder)
print(pipe([{"role": "user", "content": "hello"}], max_new_tokens=6, do_sample=False)[0]["generated_text"][-1]["role"])
""",
    "command": """
from modeling_small4.commands import cli
sys.exit(cli.main(["generate", "hello", "--model", folder, "--max-new-tokens", "6", "--json"]))
""",
    "server": SERVER % "",
    "server with a flag": SERVER % ', expert_memory="100MB"',
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 MB in files of at most 100 MB."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("wide"))
    config = Small4Config.from_pretrained(folder)
    text = config.text_config.to_dict() | WIDE
    torch.manual_seed(0)
    model = Small4ForCausalLM(Small4Config(text_config=text, vision_config=config.vision_config)).to(torch.bfloat16)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100MB")
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) > 590e6
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts only the heap elsewhere")
@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_a_checkpoint_larger_than_the_limit(wide: Path, door: str) -> None:
    done = python("-c", LIMIT + DOORS[door], str(wide))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
    said = [line for line in done.stderr.splitlines() if "routed experts" in line]
    assert len(said) == 1
    assert str(wide) in said[0]
    assert "tokens/s" in said[0]
    if door == "command":
        assert json.loads(done.stdout)["new_tokens"] == 6
