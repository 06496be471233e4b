"""transformers' own test class for models, run on ours from its source distribution; the table of what passes, and why
what does not.

    python -m model_card.evals.host_suites [--sdist transformers-5.24.0.tar.gz] [--out model_card/results/host_suites.json]

Needs `pip install parameterized wheel`; without --sdist the distribution is fetched by pip. Ends with status 1 if a
test fails that has no reason in REASONS, or if one that has a reason passes. transformers' distribution leaves out
`tests/generation/test_utils.py` (GenerationTesterMixin) and `tests/exporters/test_export.py`, so those two are replaced
by empty classes and their tests are not run.
"""  # noqa: E501

import argparse
import fnmatch
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import transformers

from model_card.evals.record import provenance, write

# Test (a pattern of fnmatch) -> why our class does otherwise, and means to.
_NEVER_GUESSES = (
    "from_pretrained refuses a checkpoint that lacks tensors, where transformers warns and leaves them random"
)
_ONE_ROW = "as in transformers' own Pixtral, the tower returns the patches of all images in one row"
REASONS: dict[str, str] = {
    "test_correct_missing_keys": _NEVER_GUESSES,
    "test_base_model_prefix_loads_base_weights": _NEVER_GUESSES,
    "test_model_rope_scaling_from_config_*": "positions of a Small 4 are YaRN's or plain; other kinds are refused by "
    "name",
    "test_model_weights_reload_no_missing_tied_weights": _NEVER_GUESSES,
    "test_get_image_features_output_?": _ONE_ROW,
    "test_tp_plan_matches_params": "the plan also names q_proj, which a model has whose q_lora_rank is None",
    "test_generation_tester_mixin_inheritance": "asks for GenerationTesterMixin, which the source distribution does "
    "not contain",
}

STUBS = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    all_generative_model_classes = ()\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
}

SUITE = '''"""Small 4 in transformers' own test class."""

import unittest

import torch

from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from modeling_small4 import Small4Config, Small4ForCausalLM, Small4Model
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor


MODEL_MAPPING_NAMES["small4"] = "Small4Model"  # by this name the tests know that it has no head, and so no loss


class Small4ModelTester:
    """A tiny model with a tower, and one image in each row."""

    def __init__(self, parent):
        self.parent, self.is_training = parent, True
        self.batch_size, self.image_size, self.patch_size, self.spatial_merge_size = 2, 28, 14, 1
        self.image_token_index, self.num_channels = 10, 3
        self.num_image_tokens = (self.image_size // self.patch_size) ** 2
        self.seq_length = 7 + self.num_image_tokens
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 32, 2, 4
        self.vocab_size, self.pad_token_id = 99, 1

    def get_config(self):
        text = dict(
            vocab_size=self.vocab_size, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=16,
            n_routed_experts=4, num_experts_per_tok=2, max_position_embeddings=512, pad_token_id=self.pad_token_id,
            bos_token_id=2, eos_token_id=3,
            rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0},
        )
        vision = dict(
            hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=self.image_size,
            patch_size=self.patch_size,
        )
        return Small4Config(
            text_config=text, vision_config=vision, image_token_index=self.image_token_index, spatial_merge_size=1
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 20) + 15
        input_ids[:, : self.num_image_tokens] = self.image_token_index
        pixels = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return config, {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": pixels,
            "image_sizes": torch.tensor([[self.image_size, self.image_size]] * self.batch_size),
        }


class Small4ModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (Small4Model, Small4ForCausalLM)
    _is_composite = True

    def setUp(self):
        self.model_tester = Small4ModelTester(self)
'''  # noqa: E501


def fetch(folder: Path) -> Path:
    """The source distribution of the transformers that is installed, from the package index."""
    wanted = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", f"transformers=={transformers.__version__}"]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *wanted, "-d", str(folder)], check=True)
    return next(folder.glob("transformers-*.tar.gz"))


def unpack(sdist: Path, folder: Path) -> None:
    """Its test classes, the two files that it leaves out, and our suite, as one package `tests`."""
    tests = folder / "tests"
    tests.mkdir()
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            parts = Path(member.name).parts
            if member.isfile() and len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                source = archive.extractfile(member)
                assert source is not None
                (tests / parts[2]).write_bytes(source.read())
    for name, text in STUBS.items():
        (tests / name).parent.mkdir(exist_ok=True)
        (tests / name).write_text(text, encoding="utf-8")
        (tests / name).with_name("__init__.py").touch()
    (tests / "__init__.py").touch()
    (tests / "test_small4.py").write_text(SUITE, encoding="utf-8")


def run(folder: Path, only: str | None) -> dict[str, tuple[str, str]]:
    """Run the suite; each test's name with "passed", "skipped" or "failed", and the last line of why."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_small4.py",
        "--junitxml=out.xml",
    ]
    command += ["-k", only] if only else []
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}", "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        command, cwd=folder, env=environment, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return read(folder / "out.xml")


def read(report: Path) -> dict[str, tuple[str, str]]:
    """Outcomes in a JUnit report."""
    out = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome, why = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if child.tag == "skipped" else "failed"
                message = " ".join((child.get("message") or "").split())
                temporary = rf"{re.escape(tempfile.gettempdir())}[\w./\\-]*"  # folders of one run say nothing
                why = re.sub(temporary, "FOLDER", message)[:200]
        out[str(case.get("name"))] = (outcome, why)
    return out


def reason(test: str) -> str | None:
    return next((why for pattern, why in REASONS.items() if fnmatch.fnmatchcase(test, pattern)), None)


def table(found: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """The stored result, and what is in it that nobody expected."""
    failed = {name: why for name, (outcome, why) in sorted(found.items()) if outcome == "failed"}
    return {
        "suites": {
            "ModelTesterMixin": {
                "passed": sorted(name for name, (outcome, _) in found.items() if outcome == "passed"),
                "skipped": {name: why for name, (outcome, why) in sorted(found.items()) if outcome == "skipped"},
                "failed": {name: {"reason": reason(name), "error": why} for name, why in failed.items()},
            },
            "GenerationTesterMixin": {"not_run": "transformers' source distribution does not contain it"},
        },
        "unexplained": [name for name in failed if reason(name) is None],
        "outdated_reasons": [
            pattern for pattern in REASONS if not any(fnmatch.fnmatchcase(name, pattern) for name in failed)
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Run transformers' own test classes on our model.")
    parser.add_argument("--sdist", type=Path, help="transformers' source distribution (default: fetched by pip)")
    parser.add_argument("--only", help="tests to run, as pytest's -k; nothing is stored then")
    parser.add_argument("--out", type=Path, default=Path("model_card/results/host_suites.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(args.sdist or fetch(folder), folder)
        result = table(run(folder, args.only))
    suite = result["suites"]["ModelTesterMixin"]
    print(*(f"{key}: {len(suite[key])}" for key in ("passed", "skipped", "failed")))
    print(json.dumps(suite["failed"], indent=1))
    if not args.only:
        write(args.out, provenance(["python", "-m", "model_card.evals.host_suites"]) | result)
    return int(bool(result["unexplained"] or (result["outdated_reasons"] and not args.only)))


if __name__ == "__main__":
    sys.exit(main())
