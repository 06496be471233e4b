"""Seeded damage to any file of a folder: every reader ends in one readable line with the file's name, or reads it;
nothing is half written.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small4_conversion.convert import Options, convert
from small4_conversion.verify import compare
from tiny_checkpoint import write_tiny_checkpoint
from transformers import AutoModelForCausalLM

from model_card.evals.fuzz.damage import Damage, damage
from modeling_small4 import Small4ForCausalLM, Small4Processor
from modeling_small4.files_reading import one_line, parse_json, read_json, shown

torch.set_num_threads(1)
SEEDS = range(40)  # more by hand: python tests/test_damage.py FIRST LAST


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    write_tiny_checkpoint(root / "whole")
    convert(root / "whole", root / "ours", Options(shard_size=200_000))
    convert(root / "whole", root / "raw", Options(to="mistral", shard_size=200_000))
    convert(root / "whole", root / "hf", Options(to="transformers"))
    return root


def load_model(folder: Path) -> None:
    Small4ForCausalLM.from_pretrained(folder)


def load_by_auto_class(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder)


def load_processor(folder: Path) -> None:
    Small4Processor.from_pretrained(folder)


def convert_it(folder: Path) -> None:
    before = sorted(folder.parent.iterdir())
    convert(folder, folder.parent / "out", Options(to="small4" if (folder / "params.json").exists() else "mistral"))
    shutil.rmtree(folder.parent / "out")
    assert sorted(folder.parent.iterdir()) == before


def verify_it(folder: Path) -> None:
    compare(folder, folder)


MODEL = ["config.json", "model.safetensors.index.json", "generation_config.json", "model-00001-of-00004.safetensors"]
TEXT = ["processor_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"]
# reader -> what it reads, from which folder, and the files that are damaged (None: any)
READERS: dict[str, tuple[Callable[[Path], None], str, list[str] | None]] = {
    "model": (load_model, "ours", MODEL),
    "auto class": (load_by_auto_class, "ours", MODEL[1:]),
    "processor": (load_processor, "ours", TEXT),
    "convert ours": (convert_it, "ours", None),
    "convert raw": (convert_it, "raw", None),
    "convert hf": (convert_it, "hf", None),
    "verify": (verify_it, "raw", None),
}


def fault(reader: str, seed: int, good: Path, work: Path) -> str | None:
    """What is wrong with how a reader takes one damage; None if nothing is."""
    read, layout, files = READERS[reader]
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(good / layout, work / layout)
    done = damage(work / layout, seed, files)
    try:
        read(work / layout)
    except Exception as error:
        reason = wrong_with(error, done, work / layout)
        return (
            reason
            and f"{reader}, seed {seed}, {done.file}, {done.what}: {reason}: {type(error).__name__} {str(error)[:300]}"
        )
    finally:
        left = [entry.name for entry in work.iterdir()]
        assert left == [layout], left
    return None


def wrong_with(error: Exception, done: Damage, folder: Path) -> str | None:
    message = str(error)
    if not isinstance(error, (ValueError, OSError)) or isinstance(error, UnicodeError):
        return "another kind of error"
    if "\n" in message.strip() and not isinstance(error, OSError):
        return "several lines"
    if len(message) > 1200:
        return "too long"
    if str(folder) not in message:
        return "names neither folder nor file"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_every_damage_is_one_readable_line(reader: str, good: Path, tmp_path: Path) -> None:
    faults = [fault(reader, seed, good, tmp_path / "work") for seed in SEEDS]
    assert [found for found in faults if found] == []


def test_the_damage_is_real_and_repeatable(good: Path, tmp_path: Path) -> None:
    """Most of it is noticed, and the same seed does the same."""
    kinds = set()
    for seed in range(60):
        texts = []
        for name in ("a", "b"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            shutil.copytree(good / "ours", tmp_path / name)
            done = damage(tmp_path / name, seed)
            file = tmp_path / name / done.file
            texts.append(file.read_bytes() if file.is_file() else None)
        assert texts[0] == texts[1]
        assert (
            texts[0] != (good / "ours" / done.file).read_bytes()
            or "twice" in done.what
            or done.what.startswith("header")
        )
        kinds.add((done.file, done.what.split(" at ")[0]))
    assert len(kinds) > 40


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "Expecting value"),
        (b"[1]", "a list stands where an object"),
        (b"\xff{}", "utf-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": ' + b"[" * 100_000, "nested too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": 1', "delimiter"),
    ],
)
def test_what_is_no_object(tmp_path: Path, text: bytes, reason: str) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(ValueError, match=reason) as caught:
        read_json(tmp_path / "x.json")
    assert str(caught.value).startswith(f"{tmp_path / 'x.json'}: ")
    assert len(str(caught.value)) < 400


def test_pairs_of_surrogates_are_letters() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_messages_are_short_and_writable() -> None:
    assert shown(10**4999) == "a int too large to show"
    assert len(shown("x" * 5000)) <= 110
    for text in ("a\nb", "\ud800", "x" * 5000):
        line = one_line(text)
        line.encode()
        assert "\n" not in line
        assert len(line) < 330


if __name__ == "__main__":
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        sound = good.__wrapped__(type("Factory", (), {"mktemp": lambda self, n: (root / n).mkdir() or root / n})())
        for which in sys.argv[3:] or READERS:
            for number in range(int(sys.argv[1]), int(sys.argv[2])):
                if found := fault(which, number, sound, root / "work"):
                    print(found)
