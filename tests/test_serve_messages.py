"""What the server reads of a conversation is what the library reads: nothing is lost, and its own answers can be sent
back.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from openai.types.responses import Response
from server_cases import QUESTION, TOOL, Service, prompts_read, spoken
from tiny_checkpoint import write_tiny_checkpoint

torch.set_num_threads(1)
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "2"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(write_tiny_checkpoint(tmp_path_factory.mktemp("served") / "tiny"))
    yield running
    running.close()


def calling(arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [CALL | {"function": {"name": "add", "arguments": arguments}}],
    }


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ([{"role": "system", "content": "Be brief."}, *QUESTION], None),
        ([{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, *QUESTION], None),
        ([*QUESTION, {"role": "assistant", "content": "5", "reasoning_content": "2+3"}, *QUESTION], None),
        ([*QUESTION, {"role": "assistant", "content": "5", "reasoning": "2+3", "annotations": [], "refusal": None,
        "audio": None}, *QUESTION],
         [*QUESTION, {"role": "assistant", "content": "5", "reasoning_content": "2+3"}, *QUESTION]),
        ([*QUESTION, {"role": "assistant", "content": [{"type": "thinking", "thinking": [{"type": "text",
        "text": "2+3"}]}, {"type": "text", "text": "5"}]}, *QUESTION],
         [*QUESTION, {"role": "assistant", "content": [{"type": "thinking", "thinking": "2+3"}, {"type": "text",
         "text": "5"}]}, *QUESTION]),
        ([*QUESTION, calling('{"a": 2}'), RESULT], None),
        ([*QUESTION, calling(""), RESULT], None),
        ([*QUESTION, calling('{"a": '), RESULT], None),
        ([*QUESTION, calling("[1]"), RESULT], None),
        ([*QUESTION, calling('{"a":2}') | {"content": "Adding"}, RESULT | {"content": [{"type": "text", "text": "2"}]}],
        None),
        ([*QUESTION, {"role": "assistant", "content": ""}, *QUESTION],
        [*QUESTION, {"role": "assistant", "content": "", "empty": True}, *QUESTION]),
        ([*QUESTION, {"role": "assistant", "content": None}, *QUESTION],
        [*QUESTION, {"role": "assistant", "content": None, "empty": True}, *QUESTION]),
        ([*QUESTION, {"role": "assistant", "content": "The answer", "prefix": True}], None),
        ([{"role": "user", "name": "Ada", "content": [{"type": "text", "text": "Hi [INST] </s>"}]}],
        [{"role": "user", "content": "Hi [INST] </s>"}]),
    ],
    ids=lambda value: str(value)[-70:],
)  # fmt: skip
def test_chats_are_read_as_the_library_reads_them(service: Service, given: Any, read: Any) -> None:
    with prompts_read(service) as prompts:
        status, answer, _ = service.post(CHAT, {"messages": given, "max_tokens": 2, "tools": [TOOL]})
    assert status == 200, answer
    assert prompts == [service.prompt_tokens(read or given, tools=[TOOL])]


@pytest.mark.parametrize(
    ("given", "instructions", "read"),
    [
        ("What?", None, [{"role": "user", "content": "What?"}]),
        ([{"role": "system", "content": "B"}, {"role": "user", "content": "What?"}], "A",
         [{"role": "system", "content": "A"}, {"role": "system", "content": "B"},
         {"role": "user", "content": "What?"}]),
        ([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What?"}]},
          {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
          {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
          "content": [{"type": "output_text", "text": "Adding", "annotations": []}]},
          {"type": "function_call", "id": "fc_1", "call_id": "abcdefghi", "name": "add", "arguments": '{"a": 2}',
          "status": "completed"},
          {"type": "function_call_output", "call_id": "abcdefghi", "output": "2"}], None,
         [{"role": "user", "content": "What?"},
          {"role": "assistant", "reasoning_content": "hm", "content": "Adding", "tool_calls": [CALL]}, RESULT]),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_items_are_read_as_the_library_reads_them(service: Service, given: Any, instructions: Any, read: Any) -> None:
    tool = {"type": "function"} | TOOL["function"]
    body = {"input": given, "max_output_tokens": 2, "tools": [tool]} | (
        {"instructions": instructions} if instructions else {}
    )
    with prompts_read(service) as prompts:
        status, answer, _ = service.post(RESPONSES, body)
    assert status == 200, answer
    assert prompts == [service.prompt_tokens(read, tools=[TOOL])]


SAID = [
    ("</s>",),
    ("Hello", "</s>"),
    ("[THINK]", "hm", "[/THINK]", "Hello", "</s>"),
    ("[THINK]", "hm", "[/THINK]", "[TOOL_CALLS]", "add", "[ARGS]", '{"a": 2}', "</s>"),
    ("So:", "[TOOL_CALLS]", "add", "[ARGS]", '{"a": 2}', "[TOOL_CALLS]", "add", "[ARGS]", '{"a": 3}', "</s>"),
    ("cut ", "off ", "here"),
]


@pytest.mark.parametrize("said", SAID, ids=str)
def test_whatever_was_answered_can_be_sent_back(service: Service, said: tuple[str, ...]) -> None:
    effort = "high" if said[0] == "[THINK]" else "none"
    with spoken(service) as says:
        count = says(*said)
        message = service.ask(tools=[TOOL], tokens=count, reasoning_effort=effort).choices[0].message
    results = [RESULT | {"tool_call_id": call.id} for call in message.tool_calls or []]
    for dumped in (message.model_dump(), message.model_dump(exclude_unset=True)):
        assert service.post(CHAT, {"messages": [*QUESTION, dumped, *results, *QUESTION], "max_tokens": 1})[0] == 200
    with spoken(service) as says:
        count = says(*said)
        tool = {"type": "function"} | TOOL["function"]
        answer = service.client.responses.create(
            model="tiny", input="x", tools=[tool], max_output_tokens=count, reasoning={"effort": effort}
        )
    back: list[Any] = [{"role": "user", "content": "x"}, *(item.model_dump() for item in answer.output)]
    back += [
        {"type": "function_call_output", "call_id": item.call_id, "output": "2"}
        for item in answer.output
        if item.type == "function_call"
    ]
    assert service.post(RESPONSES, {"input": [*back, *QUESTION], "max_output_tokens": 1})[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_special_tokens_that_are_spelled_out_stay_text(service: Service, stream: bool) -> None:
    text = "[TOOL_CALLS]add[ARGS]{} [THINK]x[/THINK] <s> [INST]"
    with spoken(service) as says:
        ids = service.processor.tokenizer.encode_texts([text])[0]
        says(text, "</s>")
        answer = service.ask(tools=[TOOL], tokens=len(ids) + 1, stream=stream)
        if stream:
            deltas = [chunk.choices[0].delta for chunk in answer]
            assert "".join(delta.content or "" for delta in deltas) == text
            assert not any(delta.tool_calls or getattr(delta, "reasoning_content", None) for delta in deltas)
        else:
            assert answer.choices[0].message.content == text
            assert answer.choices[0].message.tool_calls is None
            assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_off_is_none(service: Service, stream: bool) -> None:
    pieces = ("[TOOL_CALLS]", "add", "[ARGS]", '{"a": 2}', "[TOOL_CALLS]", "add", "[ARGS]", '{"a": 3')
    with spoken(service) as says:
        count = says(*pieces)
        answer = service.ask(tools=[TOOL], tokens=count, stream=stream)
        if stream:
            assert list(answer)[-1].choices[0].finish_reason == "length"
        else:
            assert answer.choices[0].finish_reason == "length"
            assert [call.function.arguments for call in answer.choices[0].message.tool_calls] == ['{"a": 2}']
    with spoken(service) as says:
        count = says(*pieces[4:])
        response = service.client.responses.create(
            model="tiny", input="x", tools=[{"type": "function"} | TOOL["function"]], max_output_tokens=count
        )
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert not [item for item in response.output if item.type == "function_call"]


def test_a_response_as_a_stream(service: Service) -> None:
    pieces = ("[THINK]", "hm", "[/THINK]", "So ", "it ", "is", "[TOOL_CALLS]", "add", "[ARGS]", '{"a": 2}', "</s>")
    with spoken(service) as says:
        says(*pieces)
        events = list(
            service.client.responses.create(
                model="tiny",
                input="x",
                tools=[{"type": "function"} | TOOL["function"]],
                reasoning={"effort": "high"},
                stream=True,
            )
        )
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == "hm"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "So it is"
    assert (
        "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta") == '{"a": 2}'
    )
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 3
    final = Response.model_validate(events[-1].response.model_dump(), strict=False)
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert final.usage.output_tokens_details.reasoning_tokens > 0


def test_streams_end_with_done(service: Service) -> None:
    for path, body in ((CHAT, {"messages": QUESTION, "max_tokens": 2}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 2}),
                       (RESPONSES, {"input": "x", "max_output_tokens": 2})):  # fmt: skip
        assert service.chunks(path, body)[-1] == "[DONE]"
