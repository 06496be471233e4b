"""Other people's clients, each with its own calls, against the demo with grammars: what they make of our answers is the
judge.

Run with the extra `test-clients`; a client that is not installed is skipped.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic import BaseModel, Field
from server_cases import Service

from modeling_small4 import demo_checkpoint

torch.set_num_threads(1)
SUM = "What is 17 + 25?"


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    mood: Literal["glad", "sad"]


class Sum(BaseModel):
    """Adds two numbers."""

    a: int
    b: int


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    running = Service(demo_checkpoint(), name="demo")
    yield running
    running.close()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    for name, value in {
        "OPENAI_API_KEY": "none", "OPENAI_BASE_URL": service.url, "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGSMITH_TRACING": "false", "OPENAI_AGENTS_DISABLE_TRACING": "1", "DO_NOT_TRACK": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_openai_chat(service: Service) -> None:
    client = service.client
    messages: list[Any] = [{"role": "user", "content": SUM}]
    answer = client.chat.completions.create(model="demo", messages=messages, reasoning_effort="high")
    assert ChatCompletion.model_validate(answer.model_dump(exclude_unset=True)).choices[0].message.content == "42"
    parsed = client.chat.completions.parse(model="demo", messages=messages, response_format=Person)
    assert isinstance(parsed.choices[0].message.parsed, Person)
    with client.chat.completions.stream(model="demo", messages=messages, response_format=Person) as stream:
        kinds = {event.type for event in stream}
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Person)
    assert {"content.delta", "content.done", "chunk"} <= kinds
    import openai

    tool = openai.pydantic_function_tool(Sum)
    called = client.chat.completions.parse(model="demo", messages=messages, tools=[tool], tool_choice="required")
    assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, Sum)
    back = [
        *messages,
        called.choices[0].message.model_dump(),
        {"role": "tool", "tool_call_id": called.choices[0].message.tool_calls[0].id, "content": "42"},
    ]
    assert client.chat.completions.create(model="demo", messages=back).choices[0].finish_reason == "stop"


def test_openai_responses(service: Service) -> None:
    client = service.client
    answer = client.responses.create(model="demo", input=SUM, reasoning={"effort": "high"})
    assert Response.model_validate(answer.model_dump()).output_text == "42"
    assert isinstance(client.responses.parse(model="demo", input=SUM, text_format=Person).output_parsed, Person)
    with client.responses.stream(model="demo", input=SUM, text_format=Person) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, Person)


@pytest.mark.parametrize("method", ["function_calling", "json_mode", "json_schema"])
def test_langchain(service: Service, method: Any) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(model="demo", base_url=service.url, api_key="none", max_retries=0)
    assert model.invoke(SUM).content
    assert "".join(chunk.text for chunk in model.stream(SUM))
    schema = None if method == "json_mode" else Person
    structured = model.with_structured_output(schema, method=method)
    found = structured.invoke("Name a person, in JSON.")
    assert isinstance(found, dict if method == "json_mode" else Person)
    called = model.bind_tools([Sum], tool_choice="any").invoke(SUM)
    assert called.tool_calls[0]["name"] == "Sum"
    Sum(**called.tool_calls[0]["args"])


def test_litellm(service: Service) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    litellm = pytest.importorskip("litellm")
    common = {
        "model": "openai/demo",
        "api_base": service.url,
        "api_key": "none",
        "messages": [{"role": "user", "content": SUM}],
    }
    assert litellm.completion(**common).choices[0].message.content
    text = litellm.completion(**common, response_format=Person).choices[0].message.content
    Person.model_validate_json(text)
    pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**common, stream=True)]
    assert "".join(pieces)
    tool = {"type": "function", "function": {"name": "add", "parameters": Sum.model_json_schema()}}
    call = litellm.completion(**common, tools=[tool], tool_choice="required").choices[0].message.tool_calls[0]
    Sum(**json.loads(call.function.arguments))


def test_instructor(service: Service) -> None:
    instructor = pytest.importorskip("instructor")
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(service.client, mode=mode)
        found = client.chat.completions.create(
            model="demo", response_model=Person, max_retries=0, messages=[{"role": "user", "content": "Who is it?"}]
        )
        assert isinstance(found, Person)


def test_pydantic_ai(service: Service) -> None:
    ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        model = kind("demo", provider=OpenAIProvider(base_url=service.url, api_key="none"))
        assert ai.Agent(model).run_sync(SUM).output
        assert isinstance(ai.Agent(model, output_type=Person).run_sync("Who?").output, Person)
        assert isinstance(ai.Agent(model, output_type=ai.NativeOutput(Person)).run_sync("Who?").output, Person)


@pytest.mark.parametrize("kind", ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
def test_openai_agents(service: Service, kind: str) -> None:
    agents = pytest.importorskip("agents")
    import openai

    agents.set_tracing_disabled(True)
    used: list[int] = []

    @agents.function_tool
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        used.append(a + b)
        return a + b

    async def both() -> tuple[Any, Any]:
        async with openai.AsyncOpenAI(base_url=service.url, api_key="none", max_retries=0) as client:
            model = getattr(agents, kind)("demo", openai_client=client)
            settings = agents.ModelSettings(tool_choice="required", temperature=0)
            calls = agents.Agent(
                name="a", model=model, tools=[add], tool_use_behavior="stop_on_first_tool", model_settings=settings
            )
            typed = agents.Agent(name="b", model=model, output_type=Person)
            return await agents.Runner.run(calls, SUM), await agents.Runner.run(typed, "Who?")

    called, structured = asyncio.run(both())
    assert str(used[0]) in str(called.final_output)
    assert isinstance(structured.final_output, Person)


def test_llm(service: Service, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    llm = pytest.importorskip("llm")
    lines = (
        f"- model_id: local\n  model_name: demo\n  api_base: {service.url}\n  supports_schema: true\n  "
        "supports_tools: true\n"
    )
    (tmp_path / "extra-openai-models.yaml").write_text(lines)
    model = llm.get_model("local")
    model.key = "none"
    assert model.prompt(SUM).text()
    Person.model_validate_json(model.prompt("Who?", schema=Person).text())
    assert model.prompt(SUM, stream=False).text()
