"""Prompts against mistral-common, id by id: a generated corpus, refused requests, and the ways to ask."""

import random
from pathlib import Path
from typing import Any

import pytest
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from small4_conversion.tokenizer import read_tokenizer, write_processor

from modeling_small4.processing_small4 import Small4Processor
from tests import chat_corpus
from tests.chat_options import ENCODED
from tests.tekken_files import write_tekken

IMAGE = {"image_patch_size": 14, "max_image_size": 56, "spatial_merge_size": 2}
VISION = {"patch_size": 14, "max_image_size": 56, "spatial_merge_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint")
    write_processor(write_tekken(out / "source", 20_000, image=IMAGE), out, VISION)
    return out


@pytest.fixture(scope="module")
def authority(folder: Path) -> MistralTokenizer:
    return MistralTokenizer.from_file(folder / "tekken.json")


def theirs(authority: MistralTokenizer, case: dict[str, Any]) -> Any:
    request = ChatCompletionRequest.from_openai(
        case["messages"],
        tools=case["tools"],
        continue_final_message=case["continue_final_message"],
        reasoning_effort=case["mode"],
    )
    return authority.encode_chat_completion(request)


def ours(processor: Small4Processor, case: dict[str, Any]) -> Any:
    return processor.apply_chat_template(
        case["messages"],
        tools=case["tools"],
        continue_final_message=case["continue_final_message"],
        add_generation_prompt=not case["continue_final_message"],
        reasoning_mode=case["mode"],
        **ENCODED,
    )


@pytest.mark.parametrize("seed", range(12))
def test_corpus_equals_mistral_common(processor: Small4Processor, authority: MistralTokenizer, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        case = chat_corpus.conversation(rng)
        expected, got = theirs(authority, case), ours(processor, case)
        assert got["input_ids"][0].tolist() == expected.tokens, case
        assert len(expected.images) == (len(got["image_sizes"]) if "image_sizes" in got else 0)
        for index, image in enumerate(expected.images):
            height, width = got["image_sizes"][index].tolist()
            assert (height, width) == image.shape[1:]
            assert abs(got["pixel_values"][index, :, :height, :width].numpy() - image).max() < 2e-3


@pytest.mark.parametrize("seed", range(4))
def test_what_mistral_common_refuses_is_refused(
    processor: Small4Processor, authority: MistralTokenizer, seed: int
) -> None:
    rng = random.Random(1000 + seed)
    refused = 0
    for _ in range(300):
        case = chat_corpus.damaged(rng)
        try:
            expected = theirs(authority, case).tokens
        except (MistralCommonException, ValueError, KeyError, AssertionError, AttributeError, TypeError):
            refused += 1
            with pytest.raises(ValueError, match=r"."):
                ours(processor, case)
        else:
            assert ours(processor, case)["input_ids"][0].tolist() == expected, case
    assert refused > 60


def test_finished_conversations_equal_mistral_common_for_training(processor: Small4Processor, folder: Path) -> None:
    authority = MistralTokenizer.from_file(folder / "tekken.json", mode=ValidationMode.finetuning)
    rng = random.Random(99)
    for _ in range(100):
        case = chat_corpus.conversation(rng, images=False)
        case["continue_final_message"] = False
        if case["messages"][-1]["role"] != "assistant":
            if case["messages"][-1]["role"] == "system":
                case["messages"].pop()
            case["messages"].append(chat_corpus.assistant(rng, [1000]))
        out = processor.apply_chat_template(
            case["messages"], tools=case["tools"], reasoning_mode=case["mode"], **ENCODED
        )
        assert out["input_ids"][0].tolist() == theirs(authority, case).tokens


@pytest.mark.slow
def test_the_whole_vocabulary_splits_alike(tmp_path: Path) -> None:
    """All 131,072 ids, on text of every script, on random code points, and on code, long enough to need merges."""
    tokenizer = read_tokenizer(write_tekken(tmp_path, 130_072))
    authority = MistralTokenizer.from_file(tmp_path / "tekken.json").instruct_tokenizer.tokenizer
    rng = random.Random(7)
    planes = (0x7F, 0x7FF, 0xFFFF, 0x10FFFF)
    texts = [chat_corpus.text(rng) for _ in range(3000)]
    texts += ["".join(chr(rng.randint(0, rng.choice(planes))) for _ in range(rng.randint(0, 20))) for _ in range(3000)]
    texts += [path.read_text("utf-8") for path in sorted(Path(chat_corpus.__file__).parent.glob("*.py"))[:8]]
    for text, ids in zip(texts, tokenizer.encode_texts(texts), strict=True):
        assert ids == authority.encode(text, bos=False, eos=False), text
        assert tokenizer.decode(ids) == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
