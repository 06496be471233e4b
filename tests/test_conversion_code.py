"""`--with-code`: the folder works with `trust_remote_code=True` where the package is not installed, also after saving
it again.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import raw_checkpoint as rc
from small4_conversion.bundle import AUTO_MAP
from small4_conversion.convert import Options, convert
from transformers import AutoProcessor

from modeling_small4 import Small4ForCausalLM

# Hides our packages, loads a folder through every Auto class, answers, saves model and processor again, and repeats
# from there.
STRANGER = """
import json, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_small4", "small4_conversion", "conversion"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import torch, transformers
from PIL import Image

def use(folder):
    made = {name: getattr(transformers, name).from_pretrained(folder, trust_remote_code=True) for name in sys.argv[3].split()}
    assert all(type(made[name]).__module__.startswith("transformers_modules.") for name in made)
    model, processor = made["AutoModelForCausalLM"], made["AutoProcessor"]
    chat = [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image", "image": Image.new("RGB", (30, 40))}]}]
    batch = processor.apply_chat_template(chat, reasoning_mode="high", tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    answer = model.generate(**batch, max_new_tokens=4, reasoning_mode="high")[0].tolist()
    return model, processor, [logits.float().sum().item(), answer, {k: type(v).__name__ for k, v in made.items()}]

model, processor, first = use(sys.argv[1])
model.save_pretrained(sys.argv[2])
processor.save_pretrained(sys.argv[2])
second = use(sys.argv[2])[2]
print(json.dumps([first, second]))
"""  # noqa: E501


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("code")
    p = rc.params()
    rc.write_raw(root / "raw", p, rc.weights(p))
    convert(root / "raw", root / "dst", Options(with_code=True))
    return root / "dst"


@pytest.mark.slow
def test_works_without_the_package_and_again_after_saving(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STRANGER, str(folder), str(tmp_path / "again"), " ".join(AUTO_MAP)]
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert first == second
    assert set(first[2].values()) == {
        *("Small4Config", "Small4Model", "Small4ForCausalLM", "Small4ForSequenceClassification"),
        *("Small4ForTokenClassification", "Small4Processor", "Small4ImageProcessor", "Small4Tokenizer"),
    }


def test_every_relative_import_is_carried(folder: Path) -> None:
    carried = {file.stem for file in folder.glob("*.py")}
    assert {"modeling_small4", "configuration_small4", "processing_small4", "image_processing_small4"} <= carried
    assert not carried & {"cli", "session", "registration", "__init__", "__main__"}
    for file in folder.glob("*.py"):
        for line in file.read_text().splitlines():
            if line.strip().startswith("from ."):
                assert line.split()[1].removeprefix(".") in carried, f"{file.name}: {line}"


def test_the_installed_package_saves_neither_code_nor_auto_map(folder: Path, tmp_path: Path) -> None:
    model = Small4ForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.py"))
    AutoProcessor.from_pretrained(folder, trust_remote_code=True).save_pretrained(tmp_path / "saved")
    for file in (tmp_path / "saved").glob("*.json"):
        assert "auto_map" not in file.read_text(), file.name
    convert(folder, tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    for file in (tmp_path / "plain").glob("*.json"):
        assert "auto_map" not in file.read_text(), file.name
