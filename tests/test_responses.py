"""Answers back to messages: by id and by text, whole and in bits, and back into a prompt of the same ids."""

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small4_conversion.tokenizer import write_processor

from modeling_small4.chat_answers import Decoded
from modeling_small4.chat_answers import rows as rows_of
from modeling_small4.chat_responses import ResponseReader, SpecialTokenSplitter
from modeling_small4.chat_tools import tools_text
from modeling_small4.processing_small4 import Small4Processor
from modeling_small4.streaming import Small4Streamer
from modeling_small4.tokenization_small4 import Small4Tokenizer
from tests import chat_corpus
from tests.tekken_files import CONTROL, write_tekken

EOS = CONTROL["</s>"]
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Small4Tokenizer:
    out = tmp_path_factory.mktemp("checkpoint")
    write_processor(write_tekken(out / "source", 5_000), out, None)
    return Small4Processor.from_pretrained(out).tokenizer


def ids(tokenizer: Small4Tokenizer, *parts: str) -> list[int]:
    """Ids of parts, those that spell a control token being that token."""
    out: list[int] = []
    for part in parts:
        out += [CONTROL[part]] if part in CONTROL else tokenizer.encode_texts([part])[0]
    return out


def message(reasoning: str | None, content: str, *calls: tuple[str, Any], **extra: Any) -> dict[str, Any]:
    tool_calls = [{"type": "function", "function": {"name": name, "arguments": value}} for name, value in calls]
    return {
        "role": "assistant",
        "reasoning_content": reasoning,
        "content": content,
        "tool_calls": tool_calls,
        **extra,
    }


def without_ids(parsed: dict[str, Any]) -> dict[str, Any]:
    calls = [{key: value for key, value in call.items() if key != "id"} for call in parsed["tool_calls"]]
    return {**parsed, "tool_calls": calls}


CASES = {
    "answer": (["7 + 8 = 15", "</s>"], message(None, "7 + 8 = 15")),
    "thought": (["[THINK]", "hm", "[/THINK]", "15", "</s>"], message("hm", "15")),
    "empty thought": (["[THINK]", "[/THINK]", "15", "</s>"], message("", "15")),
    "only a thought": (["[THINK]", "hm", "[/THINK]", "</s>"], message("hm", "")),
    "open thought": (["[THINK]", "hm"], message("hm", "", reasoning_closed=False)),
    "open thought, ended": (["[THINK]", "hm", "</s>"], message("hm", "", reasoning_closed=False)),
    "cut answer": (["[THINK]", "hm", "[/THINK]", "1"], message("hm", "1")),
    "one call": (["[TOOL_CALLS]", "f", "[ARGS]", '{"a": 1}', "</s>"], message(None, "", ("f", {"a": 1}))),
    "call after content": (["ok", "[TOOL_CALLS]", "f", "[ARGS]", "{}", "</s>"], message(None, "ok", ("f", {}))),
    "two calls": (
        ["[TOOL_CALLS]", "f", "[ARGS]", '{"a": "é"}', "[TOOL_CALLS]", "g", "[ARGS]", '{"b": [1.5, null]}', "</s>"],
        message(None, "", ("f", {"a": "é"}), ("g", {"b": [1.5, None]})),
    ),
    "arguments that are no object": (
        ["[TOOL_CALLS]", "f", "[ARGS]", "[1, 2]", "</s>"],
        message(None, "", ("f", "[1, 2]")),
    ),
    "nothing": (["</s>"], message(None, "", empty=True)),
    "nothing at all": ([], message(None, "", empty=True)),
    "stray marks": (["[/THINK]", "a", "[ARGS]", "b", "[INST]", "c", "</s>"], message(None, "abc")),
    "a stray end of a prompt": (["a", "[/INST]", "b", "</s>"], message(None, "ab")),
    "after the end": (["a", "</s>", "b", "<pad>"], message(None, "a")),
}


@pytest.mark.parametrize("case", CASES)
def test_ids_and_text_parse_alike(tokenizer: Small4Tokenizer, case: str) -> None:
    parts, expected = CASES[case]
    generated = ids(tokenizer, *parts)
    assert without_ids(tokenizer.parse_response(generated)) == expected
    assert without_ids(tokenizer.parse_response(torch.tensor(generated, dtype=torch.long))) == expected
    assert without_ids(tokenizer.parse_response(np.array(generated, dtype=np.int64))) == expected
    assert without_ids(tokenizer.parse_response("".join(parts))) == expected


def test_calls_that_broke_off(tokenizer: Small4Tokenizer) -> None:
    parsed = tokenizer.parse_response(ids(tokenizer, "[TOOL_CALLS]", "get_wea"))
    assert parsed["tool_calls"][0]["function"] == {"name": "get_wea", "arguments": ""}
    assert parsed["tool_calls"][0]["incomplete"] == "name"
    parsed = tokenizer.parse_response(ids(tokenizer, "[TOOL_CALLS]", "f", "[ARGS]", '{"city": "Par'))
    assert parsed["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"city": "Par'}
    assert parsed["tool_calls"][0]["incomplete"] == "arguments"


@pytest.mark.parametrize(
    "parts",
    [
        ["a", "[THINK]", "b", "[/THINK]", "c"],
        ["[THINK]", "b", "[/THINK]", "c", "[THINK]", "d", "[/THINK]", "e"],
        ["[THINK]", "b", "[THINK]", "c", "[/THINK]", "d "],
        ["[THINK]", "a", "[TOOL_CALLS]", "f", "[ARGS]", "{}"],
        ["two spaces at the end  "],
        ["[TOOL_CALLS]", "f", "[ARGS]", '{"a":1,"b":0.10}', "[TOOL_CALLS]", "g", "[ARGS]", '{"c": "\\u00e9"}'],
        ["[TOOL_CALLS]", "f", "[ARGS]", '{"a": 1, "a": 2}\n'],
        ["[TOOL_CALLS]", "f", "[ARGS]", "[1,2]"],
        ["[TOOL_CALLS]", "no name", "[ARGS]", '{"a":1}'],
        ["[TOOL_CALLS]", "[ARGS]", "{}"],
        ["[TOOL_CALLS]", "f", "[ARGS]", "[" * 5000],
    ],
)
def test_unusual_answers_render_to_the_same_ids(tokenizer: Small4Tokenizer, parts: list[str]) -> None:
    generated = [*ids(tokenizer, *parts), EOS]
    prompt = tokenizer.apply_chat_template([USER])["input_ids"]
    parsed = tokenizer.parse_response(generated)
    assert tokenizer.apply_chat_template([USER, parsed])["input_ids"] == prompt + generated
    assert tokenizer.parse_response("".join([*parts, "</s>"])) == parsed
    assert "empty" not in parsed


def test_changed_answers_render_as_they_read(tokenizer: Small4Tokenizer) -> None:
    """What `chunks` and `arguments_text` remember is dropped when the message says something else."""
    parsed = tokenizer.parse_response(ids(tokenizer, "a", "[THINK]", "b", "[/THINK]", "c", "</s>"))
    changed = {**parsed, "content": "other"}
    plain = {"role": "assistant", "reasoning_content": "b", "content": "other"}
    assert tokenizer.apply_chat_template([USER, changed]) == tokenizer.apply_chat_template([USER, plain])
    parsed = tokenizer.parse_response(ids(tokenizer, "[TOOL_CALLS]", "f", "[ARGS]", '{"a":1}', "</s>"))
    assert parsed["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}, "arguments_text": '{"a":1}'}
    parsed["tool_calls"][0]["function"]["arguments"] = {"a": 2}
    expected = ids(tokenizer, "[TOOL_CALLS]", "f", "[ARGS]", '{"a": 2}', "</s>")
    assert tokenizer.apply_chat_template([USER, parsed])["input_ids"][-len(expected) :] == expected
    for name, call in (("no name", "{}"), ("f", '{"a": ')):
        parsed = tokenizer.parse_response(ids(tokenizer, "[TOOL_CALLS]", name, "[ARGS]", call, "</s>"))
        assert parsed["tool_calls"][0]["incomplete"] == "arguments"


def test_a_mark_spelled_in_text_is_text(tokenizer: Small4Tokenizer) -> None:
    generated = [CONTROL["[THINK]"], *tokenizer.encode_texts(["a[/THINK]b</s>"])[0], CONTROL["[/THINK]"]]
    generated += [*tokenizer.encode_texts(["[TOOL_CALLS]f[ARGS]{}"])[0], EOS]
    assert tokenizer.parse_response(generated) == message("a[/THINK]b</s>", "[TOOL_CALLS]f[ARGS]{}")


def test_batches_and_prefixes(tokenizer: Small4Tokenizer) -> None:
    rows = [ids(tokenizer, "[THINK]", "a", "[/THINK]", "b", "</s>"), ids(tokenizer, "c", "</s>")]
    expected = [message("a", "b"), message(None, "c")]
    assert tokenizer.parse_response(rows) == expected
    assert tokenizer.parse_response(["[THINK]a[/THINK]b</s>", "c</s>"]) == expected
    width = max(len(row) for row in rows)
    padded = torch.tensor([row + [CONTROL["<pad>"]] * (width - len(row)) for row in rows])
    assert tokenizer.parse_response(padded) == expected
    prompt = ids(tokenizer, "<s>", "[INST]", "q", "[/INST]", "[THINK]", "be")
    assert tokenizer.parse_response(ids(tokenizer, "gun", "[/THINK]", "c"), prefix=prompt) == message("begun", "c")
    assert tokenizer.parse_response("gun[/THINK]c", prefix=tokenizer.decode(prompt)) == message("begun", "c")
    assert tokenizer.parse_response(rows, prefix=torch.tensor([prompt[:-2]])) == expected
    whole = [*ids(tokenizer, "<pad>", "<s>", "[INST]", "q[/INST]", "[/INST]"), *rows[0]]
    assert tokenizer.parse_response(whole) == expected[0]
    with pytest.raises(ValueError, match="2 answers but 3 prefixes"):
        tokenizer.parse_response(rows, prefix=[prompt] * 3)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_parsed_renders_to_the_same_ids(tokenizer: Small4Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(150):
        answer = chat_corpus.assistant(rng, [0])
        if isinstance(answer.get("content"), list):  # one leading thought is what the plain form can say
            answer["content"] = chat_corpus.text(rng, 1)
        prompt = tokenizer.apply_chat_template([USER])["input_ids"]
        whole = tokenizer.apply_chat_template([USER, answer])["input_ids"]
        generated = whole[len(prompt) :]
        assert tokenizer.apply_chat_template([USER, tokenizer.parse_response(generated)])["input_ids"] == whole
        cut = generated[: rng.randint(1, len(generated))]
        if cut != generated and _recodes(tokenizer, cut):
            parsed = tokenizer.parse_response(cut)
            again = tokenizer.apply_chat_template([USER, parsed], continue_final_message=True)["input_ids"]
            assert again == prompt + cut


def _recodes(tokenizer: Small4Tokenizer, generated: list[int]) -> bool:
    """Whether cutting here leaves texts that encode to the ids they came from, as mostly but not always is so."""
    recoded: list[int] = []
    for is_control, value in tokenizer.events(generated):
        text = value if is_control else value.decode(errors="replace")
        recoded += [CONTROL[text]] if is_control else tokenizer.encode_texts([text])[0]
        if text.endswith(" ") or text in ("[ARGS]", "[TOOL_CALLS]"):
            return False  # spaces at the end are dropped; the calls are tested below
    return recoded == generated


def test_a_cut_answer_renders_to_the_same_ids(tokenizer: Small4Tokenizer) -> None:
    for parts in (
        ["[THINK]", "hm"],
        ["[THINK]", "hm", "[/THINK]", "the"],
        ["[TOOL_CALLS]", "get"],
        ["[TOOL_CALLS]", "f", "[ARGS]"],
        ["ok", "[TOOL_CALLS]", "f", "[ARGS]", '{"a": [1, '],
    ):
        generated = ids(tokenizer, *parts)
        prompt = tokenizer.apply_chat_template([USER])["input_ids"]
        parsed = tokenizer.parse_response(generated)
        again = tokenizer.apply_chat_template([USER, parsed], continue_final_message=True)["input_ids"]
        assert again == prompt + generated, parts
        longer = [USER, parsed, USER, {"role": "assistant", "content": "ok"}, USER]
        start = [*prompt, *generated, EOS, CONTROL["[INST]"]]
        assert tokenizer.apply_chat_template(longer)["input_ids"][: len(start)] == start


def test_decoded_text_knows_its_control_tokens_behind_a_cut() -> None:
    """Of a control token that is cut, the rest is text."""
    events = [(True, "<s>"), (False, "a<s>b"), (True, "[THINK]"), (True, "[/THINK]"), (False, "c")]
    text = "".join(value for _, value in events)
    begins = [sum(len(value) for _, value in events[:place]) for place in range(len(events))]
    for cut in range(len(text) + 1):
        rest = Decoded.of(text, events)[cut:]
        assert isinstance(rest, Decoded)
        assert rest == text[cut:] == "".join(value for _, value in rest.events)
        whole = [
            value for begin, (is_control, value) in zip(begins, events, strict=True) if is_control and begin >= cut
        ]
        assert [value for is_control, value in rest.events if is_control] == whole
    for other in (slice(0, 3), slice(None, None, 2), 4):
        assert type(Decoded.of(text, events)[other]) is str


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", (["a"], False)),
        (3, ([[3]], False)),
        ([], ([[]], False)),
        ((1, 2), ([[1, 2]], False)),
        (torch.tensor([1, 2]), ([[1, 2]], False)),
        (torch.tensor([[1, 2]]), ([[1, 2]], True)),
        ([torch.tensor([1]), np.array([2, 3]), (4,)], ([[1], [2, 3], [4]], True)),
        (["a", "b"], (["a", "b"], True)),
    ],
)
def test_one_answer_or_many(given: Any, expected: tuple[list[Any], bool]) -> None:
    assert rows_of(given) == expected


def test_half_a_character_is_given_out_at_the_end() -> None:
    reader = ResponseReader()
    assert reader.data("aé".encode()[:2]) == [("content", "a")]
    assert reader.flush() == [("content", "\ufffd")]
    assert reader.flush() == []
    assert reader.message()["content"] == "a\ufffd"


def test_the_beginning_of_a_special_token_is_text_at_the_end(tokenizer: Small4Tokenizer) -> None:
    reader = tokenizer.response_reader()
    assert reader.feed("a[THI") == [("content", "a")]
    assert reader.finish() == [("content", "[THI")]
    reader = tokenizer.response_reader()
    reader.feed("a[THI")
    assert reader.message()["content"] == "a[THI"


def test_of_special_tokens_the_longest_is_found() -> None:
    splitter = SpecialTokenSplitter(["[A", "[A]", "[A]]"])
    assert splitter.feed("x[A]]y[A]", final=True) == [(False, "x"), (True, "[A]]"), (False, "y"), (True, "[A]")]


def test_arguments_may_not_be_nested_without_end(tokenizer: Small4Tokenizer) -> None:
    answer = message(None, "", ("f", "[" * 100_000))
    answer["tool_calls"][0]["id"] = "a"
    with pytest.raises(ValueError, match="arguments of a tool call are nested too deeply"):
        tokenizer.apply_chat_template([USER, answer])


@pytest.mark.parametrize(
    "tools", ["weather", {"type": "function"}, 3, iter([])], ids=["text", "dict", "number", "lazy"]
)
def test_tools_are_a_list(tools: Any) -> None:
    with pytest.raises(ValueError, match="tools must be a list of functions or JSON schemas, but is"):
        tools_text(tools)


def test_an_empty_answer_goes_back(tokenizer: Small4Tokenizer) -> None:
    prompt = tokenizer.apply_chat_template([USER])["input_ids"]
    assert tokenizer.apply_chat_template([USER, tokenizer.parse_response([EOS])])["input_ids"] == [*prompt, EOS]


TEXT = st.text(alphabet=st.sampled_from('aé日🙂{}[]/<>"\\ \n👩‍👧'), max_size=12)


@given(thought=st.none() | TEXT, content=TEXT, arguments=st.dictionaries(TEXT, TEXT | st.integers()), data=st.data())
@settings(max_examples=150, deadline=None)
def test_streaming_equals_parsing_however_it_is_cut(
    tokenizer: Small4Tokenizer, thought: str | None, content: str, arguments: dict[str, Any], data: st.DataObject
) -> None:
    answer = message(thought, content or "x", ("f", arguments), ("g", {}))
    for index, call in enumerate(answer["tool_calls"]):
        call["id"] = str(index)
    whole = tokenizer.apply_chat_template([USER, answer])["input_ids"]
    generated = whole[len(tokenizer.apply_chat_template([USER])["input_ids"]) :]
    expected = tokenizer.parse_response(generated)
    for source in (generated, tokenizer.decode(generated)):
        reader, pieces, begin = tokenizer.response_reader(), [], 0
        while begin < len(source):
            end = data.draw(st.integers(begin + 1, min(begin + 5, len(source))))
            pieces += reader.feed(source[begin:end])
            begin = end
        pieces += reader.finish()
        assert reader.message() == expected
        joined = {channel: "".join(text for name, text in pieces if name == channel) for channel, _ in pieces}
        assert joined.get("thinking", "") == (expected["reasoning_content"] or "")
        assert joined.get("content", "") == expected["content"]
        assert joined["tool_calls"].startswith("f{")
        assert "�" not in "".join(joined.values())


def test_the_streamer_yields_pieces_from_another_thread(tokenizer: Small4Tokenizer) -> None:
    prompt = torch.tensor([ids(tokenizer, "<s>", "[INST]", "q", "[/INST]")])
    generated = ids(tokenizer, "[THINK]", "a👩‍👧b", "[/THINK]", "é日", "</s>")
    streamer = Small4Streamer(tokenizer, timeout=600)

    def generate() -> None:
        streamer.put(prompt)
        for token in generated:
            streamer.put(torch.tensor([token]))
        streamer.end()

    thread = threading.Thread(target=generate)
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert {channel for channel, _ in pieces} == {"thinking", "content"}
    assert "".join(text for channel, text in pieces if channel == "thinking") == "a👩‍👧b"
    assert streamer.message == message("a👩‍👧b", "é日")
    with pytest.raises(ValueError, match="one answer at a time"):
        Small4Streamer(tokenizer).put(torch.ones(2, 3, dtype=torch.long))


def test_the_template_stored_for_servers_parses_the_same(tokenizer: Small4Tokenizer, tmp_path: Path) -> None:
    from transformers import TokenizersBackend

    tokenizer.save_pretrained(tmp_path)
    plain = TokenizersBackend.from_pretrained(tmp_path)
    for name in ("answer", "thought", "one call", "two calls", "call after content", "cut answer"):
        parts, expected = CASES[name]
        parsed = plain.parse_response("".join(parts), prefix="<s>[INST]q[/INST]")
        assert parsed.get("reasoning_content") == expected["reasoning_content"]
        assert (parsed.get("content") or "") == expected["content"]
        assert (parsed.get("tool_calls") or []) == expected["tool_calls"]
