"""tekken.json, the tokenizer's files and the chat template. What is right: the ids that mistral-common and the
tokenizers library make of the same files.
"""

import json
import random
from pathlib import Path

from jinja2.exceptions import TemplateError
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from small4_conversion.tokenizer import read_tokenizer
from tokenizers import Tokenizer
from transformers import AutoProcessor, AutoTokenizer

from modeling_small4 import Small4Processor, Small4Tokenizer

from .cases import Bench, Case, unreadable
from .damage import damaged, write

PROBES = ("Hello, world! 123", "naïve 日本 \U0001f642", " the  \n\tend")
CHAT = [{"role": "user", "content": "What is 2 + 3?"}]
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json")


def tekken(bench: Bench, draw: random.Random) -> Case:
    file = bench.work / "tekken.json"
    change = damaged(file.name, bench.text("ours/tekken.json"), draw)
    write(file, change)

    def check(tokenizer: object) -> str | None:
        assert isinstance(tokenizer, Small4Tokenizer)
        if _pattern(file) != _pattern(bench.sound / "ours/tekken.json"):
            return None  # mistral-common has another engine for patterns
        for text in PROBES:
            try:
                wanted = Tekkenizer.from_file(file).encode(text, bos=False, eos=False)
            except BaseException as error:  # Rust's panics are no Exception
                return f"mistral-common refuses it ({type(error).__name__}: {str(error)[:80]})"
            if tokenizer.encode_texts([text])[0] != wanted:
                return f"other ids than mistral-common's for {text!r}"
        return None

    return Case(change.what, lambda: read_tokenizer(file), check, (str(file),))


def _pattern(file: Path) -> str:
    return str(json.loads(file.read_bytes())["config"]["pattern"])


def tokenizer(bench: Bench, draw: random.Random) -> Case:
    folder, what = _folder(bench, draw, FILES[:2])
    reader: type[Small4Tokenizer] | type[AutoTokenizer] = draw.choice((Small4Tokenizer, AutoTokenizer))

    def check(found: Small4Tokenizer) -> str | None:
        if type(found) is not Small4Tokenizer:  # the Auto class goes by names in the files
            return None if reader is AutoTokenizer else f"read as {type(found).__name__}"
        try:
            theirs = Tokenizer.from_file(str(folder / FILES[0]))
        except Exception as error:
            return f"the tokenizers library refuses it ({error})"
        for text in PROBES:
            if found.encode_texts([text])[0] != theirs.encode(text, add_special_tokens=False).ids:
                return f"other ids than the library's for {text!r}"
        return None

    auto = reader is AutoTokenizer
    return Case(f"{reader.__name__}: {what}", lambda: reader.from_pretrained(folder), check, (str(folder),), auto=auto)


def processor(bench: Bench, draw: random.Random) -> Case:
    """A processor's files, then one chat: the ids are the sound folder's, or there is an error."""
    folder, what = _folder(bench, draw, FILES)
    reader: type[Small4Processor] | type[AutoProcessor] = draw.choice((Small4Processor, AutoProcessor))

    def check(found: Small4Processor) -> str | None:
        if type(found) is not Small4Processor:  # the Auto class goes by names in the files
            return None if reader is AutoProcessor else f"read as {type(found).__name__}"
        try:
            found.apply_chat_template(CHAT, tokenize=True, return_dict=True)
        except (ValueError, TemplateError) as error:  # the latter is what a template itself says
            return unreadable(str(error))
        return None

    return Case(
        f"{reader.__name__}: {what}",
        lambda: reader.from_pretrained(folder),
        check,
        (str(folder),),
        auto=reader is AutoProcessor,
    )


def _folder(bench: Bench, draw: random.Random, names: tuple[str, ...]) -> tuple[Path, str]:
    """The text files of a checkpoint, one of these damaged."""
    name = draw.choice(names)
    for file in (*FILES, "config.json", "generation_config.json"):
        (bench.work / file).hardlink_to(bench.sound / "ours" / file)
    change = damaged(name, bench.text(f"ours/{name}"), draw)
    write(bench.work / name, change)
    return bench.work, f"{name}, {change.what}"
