"""Every field of a request does what the API defines, or is refused by name."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from server_cases import QUESTION, TOOL, Service, spoken
from tiny_checkpoint import write_tiny_checkpoint

from modeling_small4.server.fields import NO_EFFECT

torch.set_num_threads(1)
CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(write_tiny_checkpoint(tmp_path_factory.mktemp("served") / "tiny"))
    yield running
    running.close()


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": QUESTION, "max_tokens": 4, "temperature": 0} | fields


REFUSED = [
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["audio"]}, "modalities[0]"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"max_thinking_tokenz": 1}, "max_thinking_tokenz"),
    ({"stop[": 1}, "stop["),
    ({"str": 1}, "str"),
    ({"": 1}, '""'),
    ({"generation_config": {"num_beams": 100000}}, "generation_config"),
    ({"num_beams": 4}, "num_beams"),
    ({"verbosity": "low"}, "verbosity"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "0"}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10_000_000}, "max_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ({"logit_bias": {"0" * 5000: 1}}, "logit_bias"),
    ({"logit_bias": {"1000": 101}}, "logit_bias.1000"),
    ({"stop": [1]}, "stop"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort"),
    ({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}}, "reasoning_effort"),
    ({"max_thinking_tokens": -1}, "max_thinking_tokens"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "sub"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
    ({"tools": [{}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
    ({"tools": [1]}, "tools[0]"),
    ({"tools": "x"}, "tools"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema",
    "json_schema": {"name": "x", "schema": {"properties": {"a": {"not": {}}}}}}}, "response_format"),
    ({"grammar": {"regex": "(?=a)"}}, "grammar"),
    ({"messages": None}, "messages"),
    ({"messages": "x"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [1]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}]},
    "messages[0].content[0].image_url.url"),
    ({"messages": [{"role": "user", "content": "x", "attachment": 1}]}, "messages[0].attachment"),
    ({"messages": [*QUESTION, {"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[1].tool_calls[0]"),
    ({"messages": [*QUESTION, {"role": "assistant", "content": "x"}]}, "messages"),
    ({"model": "other"}, "model"),
    ({"model": 5}, "model"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_cannot_be_done_is_refused_by_name(service: Service, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True) if param != "stream_options" else (False,):
        status, answer, _ = service.post(CHAT, {"stream": stream} | chat(**fields))
        assert status == (404 if fields.get("model") == "other" else 400), answer
        error = answer["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] == param
        assert 10 < len(error["message"]) < 700
        assert "\n" not in error["message"]
        assert "/tmp" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
        "input[0].content[0].type"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"text": {"format": {"type": "xml"}}}, "response_format.type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"prompt": {"id": "x"}}, "prompt"),
    ],
    ids=str,
)  # fmt: skip
def test_responses_refuse_by_name(service: Service, fields: dict[str, Any], param: str) -> None:
    status, answer, _ = service.post(RESPONSES, {"model": "tiny", "input": "x", "max_output_tokens": 4} | fields)
    assert (status, answer["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": [99999999]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
    ids=str,
)  # fmt: skip
def test_completions_refuse_by_name(service: Service, fields: dict[str, Any], param: str | None) -> None:
    status, answer, _ = service.post(COMPLETIONS, {"model": "tiny", "prompt": "x", "max_tokens": 4} | fields)
    assert (status, answer["error"]["param"]) == (400, param)


def test_what_makes_no_difference_is_accepted(service: Service) -> None:
    plain = service.post(CHAT, chat())[1]["choices"]
    same = {name: {"a": "b"} for name in NO_EFFECT} | {
        "stop": [],
        "tools": [],
        "tool_choice": "none",
        "n": None,
        "stream": None,
    }
    same |= {
        "reasoning_effort": "minimal",
        "logit_bias": {},
        "seed": 3,
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
    }
    assert service.post(CHAT, chat(**same))[1]["choices"] == plain
    assert service.post(CHAT, chat(stop="", reasoning_effort="none", random_seed=4))[1]["choices"] == plain
    assert service.post(CHAT, chat(model=None))[1]["choices"] == plain


@pytest.mark.parametrize("effort", ["low", "medium", "high", "xhigh"])
def test_efforts_that_think(service: Service, effort: str) -> None:
    for fields in ({"reasoning_effort": effort}, {"reasoning": {"effort": effort}},
        {"chat_template_kwargs": {"enable_thinking": True}},
                   {"thinking": {"type": "enabled", "budget_tokens": 2}}, {"prompt_mode": "reasoning"}):  # fmt: skip
        message = service.post(CHAT, chat(**fields))[1]["choices"][0]["message"]
        assert message["reasoning_content"]


@pytest.mark.parametrize(
    ("choice", "parallel", "names"),
    [("required", True, ("add", "sub")), ("required", False, ("add", "sub")),
    ({"type": "function", "function": {"name": "sub"}}, True, ("sub",)), ("none", True, ())],
    ids=str,
)  # fmt: skip
def test_tool_choice(service: Service, choice: Any, parallel: bool, names: tuple[str, ...]) -> None:
    other = {"type": "function", "function": TOOL["function"] | {"name": "sub"}}
    answer = service.ask(tools=[TOOL, other], tool_choice=choice, parallel_tool_calls=parallel, tokens=120).choices[0]
    calls = answer.message.tool_calls or []
    assert {call.function.name for call in calls} <= set(names)
    assert bool(calls) == bool(names)
    assert all(isinstance(json.loads(call.function.arguments)["a"], int) for call in calls)
    assert parallel or len(calls) <= 1


@pytest.mark.parametrize("stream", [False, True])
def test_response_formats(service: Service, stream: bool) -> None:
    formats = [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
    ]
    for response_format in formats:
        for effort in ("none", "high"):
            options = {
                "response_format": response_format,
                "reasoning_effort": effort,
                "extra_body": {"max_thinking_tokens": 5},
            }
            answer = service.ask(tokens=None, stream=stream, **options)
            text = (
                "".join(chunk.choices[0].delta.content or "" for chunk in answer)
                if stream
                else answer.choices[0].message.content
            )
            value = json.loads(text)
            assert isinstance(value, dict)
            assert response_format["type"] == "json_object" or isinstance(value["ok"], bool)
    text_format = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
    answer = service.client.responses.create(model="tiny", input="x", text=text_format)
    assert isinstance(json.loads(answer.output_text)["ok"], bool)


def test_grammars_of_other_kinds(service: Service) -> None:
    for grammar, right in (
        ({"choices": ["yes", "no"]}, ("yes", "no")),
        ({"regex": "a{3}"}, ("aaa",)),
        ('start: "b"', ("b",)),
    ):
        assert service.ask(extra_body={"grammar": grammar}, tokens=None).choices[0].message.content in right


def test_several_answers_and_their_probabilities(service: Service) -> None:
    options = {"n": 3, "temperature": 1.0, "seed": 5, "logprobs": True, "top_logprobs": 3}
    first, again = service.ask(**options), service.ask(**options)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    assert first.usage.completion_tokens == 36
    for choice in first.choices:
        tokens = choice.logprobs.content
        assert b"".join(bytes(each.bytes) for each in tokens).decode("utf-8", "replace") == choice.message.content
        assert all(each.logprob <= 0 and len(each.top_logprobs) == 3 for each in tokens)
        assert all(each.top_logprobs[0].logprob >= each.logprob for each in tokens)
    greedy = service.ask(logprobs=True, top_logprobs=1).choices[0].logprobs.content
    assert all(
        each.token == each.top_logprobs[0].token for each in greedy if each.logprob == each.top_logprobs[0].logprob
    )


def test_bias_and_penalties(service: Service) -> None:
    tokenizer = service.processor.tokenizer
    plain = service.ask(logprobs=True).choices[0]
    first = tokenizer.encode_texts([plain.message.content])[0][0]
    banned = service.ask(logit_bias={str(first): -100}).choices[0].message.content
    assert first not in tokenizer.encode_texts([banned])[0]
    only = tokenizer.encode_texts(["x"])[0][0]
    assert service.ask(logit_bias={str(only): 100}, tokens=5).choices[0].message.content == "xxxxx"
    pushed = {"logit_bias": {str(only): 100}, "tokens": 4}
    assert (
        service.ask(**pushed, frequency_penalty=2).choices[0].message.content == "xxxx"
    )  # as the API has it, 100 decides
    for penalty in ("frequency_penalty", "presence_penalty"):
        for value in (0.5, -1.0, 2.0):
            assert service.ask(**{penalty: value}).choices[0].message.content
    for extra in ({"top_k": 1}, {"min_p": 1.0}, {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.3}):
        assert service.ask(temperature=1.0, extra_body=extra).choices[0].message.content
    greedy = service.ask().choices[0].message.content
    assert service.ask(temperature=1.5, extra_body={"top_k": 1}).choices[0].message.content == greedy
    assert service.ask(temperature=1.5, top_p=0.0).choices[0].message.content == greedy
    assert service.ask(temperature=1.5, extra_body={"min_p": 1.0}).choices[0].message.content == greedy


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("pieces", "stop", "text", "reason"),
    [
        (("Hel", "lo", "there", "</s>"), "lo", "Hel", "stop"),
        (("Hel", "lo", "there", "</s>"), ["nowhere", "ot"], "Hell", "stop"),
        (("Hel", "lo", "</s>"), "loo", "Hello", "stop"),
        (("a", "b", "</s>"), ["", "b"], "a", "stop"),
        (("a", "b", "c", "d"), "zz", "abcd", "length"),
        (("a", "b", "c", "</s>"), None, "abc", "stop"),  # the end of the message, exactly at the last token
    ],
)  # fmt: skip
def test_ends_and_stops(
    service: Service, pieces: tuple[str, ...], stop: Any, text: str, reason: str, stream: bool
) -> None:
    with spoken(service) as says:
        count = says(*pieces)
        answer = service.ask(stop=stop, tokens=count, stream=stream)
        if stream:
            chunks = list(answer)
            found = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert (found, chunks[-1].choices[0].finish_reason) == (text, reason)
        else:
            assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (text, reason)


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(service: Service) -> None:
    context = service.model.config.text_config.max_position_embeddings
    status, answer, _ = service.post(CHAT, chat(messages=[{"role": "user", "content": "x " * context}]))
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, "messages", "context_length_exceeded")
    assert str(context) in answer["error"]["message"]
    with pytest.raises(openai.BadRequestError, match=str(context)):
        service.ask(tokens=context)
