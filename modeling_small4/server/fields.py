"""The fields of requests: their types and ranges, which have no effect here, and the error for a wrong one.

A field that no model lists is refused. Knows nothing of what the fields do.
"""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import ApiError

# Accepted without effect: they concern bookkeeping, billing or caching of a hosted service, or are hints that make no
# difference.
NO_EFFECT = frozenset(
    (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "client_metadata", "prediction"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "max_tool_calls", "access_programs"),
    )
)
Unit = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Fields = TypeVar("Fields", bound="CommonFields")


class CommonFields(BaseModel):
    """The fields of every endpoint that generates. `top_k`, `min_p`, `repetition_penalty` and `random_seed` are not
    OpenAI's.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Unit | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Unit | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = None
    random_seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _that_say_something(cls, values: Any) -> Any:
        """null means the same as leaving a field out."""
        return {name: value for name, value in values.items() if value is not None and name not in NO_EFFECT}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Reasoning(BaseModel):
    """Responses' `reasoning`. There are no summaries, so only "auto" is allowed, which leaves it to the server."""

    model_config = ConfigDict(extra="forbid", strict=True)
    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None


class Thinking(BaseModel):
    """Anthropic's way to ask for thinking, as litellm passes it on."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None


class TemplateOptions(BaseModel):
    """vLLM's `chat_template_kwargs`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    reasoning_effort: Effort | None = None
    reasoning_mode: Literal["none", "high"] | None = None
    enable_thinking: bool | None = None
    thinking: bool | None = None


class ChatLikeFields(CommonFields):
    """The fields that chats and responses share."""

    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_thinking_tokens: Annotated[int, Field(ge=0)] | None = None
    reasoning: Reasoning | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: TemplateOptions | None = None
    prompt_mode: Literal["reasoning"] | None = None
    grammar: Any = None


class ChatFields(ChatLikeFields):
    """`/v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Count | None = None
    logprobs: bool | None = None
    reasoning_effort: Effort | None = None
    response_format: dict[str, Any] | None = None
    stream_options: StreamOptions | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None
    safe_prompt: Literal[False] | None = None


class TextOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: dict[str, Any] | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesFields(ChatLikeFields):
    """`/v1/responses`."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: TextOptions | None = None
    include: list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]] | None = None
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: Literal[False] | None = None


class CompletionFields(CommonFields):
    """`/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Count | None = None
    n: Count | None = None
    best_of: Count | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream_options: StreamOptions | None = None


def read_body(body: bytes) -> dict[str, Any]:
    """A request's JSON object.

    Raises:
        ApiError: The body is not a JSON object.
    """
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(f"The body is not JSON: {why}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(f"The body must be a JSON object, but is {_kind(value)}.", code="invalid_json")
    return value


def read_fields(model: type[Fields], body: dict[str, Any]) -> Fields:
    """The checked fields of a request.

    Raises:
        ApiError: A field is unknown, missing or wrong; `param` names it.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        found = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
        unknown = found["type"] == "extra_forbidden"
        of_client = len(found["loc"]) - unknown  # an unknown name is the client's, whatever it is
        param = _path([part for at, part in enumerate(found["loc"]) if at == of_client or not _is_alternative(part)])
        if unknown:
            param = param or '""'
            raise ApiError(f"{param} is not supported; leave it out.", param, code="unsupported_parameter") from None
        if found["type"] == "missing":
            raise ApiError(f"{param} is missing.", param, code="missing_required_parameter") from None
        raise ApiError(f"{param or 'The request'}: {found['msg']}.", param, code="invalid_value") from None


_UNIONS = ("str", "list", "dict", "int", "float", "bool")


def _is_alternative(part: object) -> bool:
    """Whether this is no field: pydantic appends the alternative of a union that it tried last."""
    return isinstance(part, str) and ("[" in part or part in _UNIONS)


def _path(parts: list[Any]) -> str | None:
    out = ""
    for part in parts:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out or None


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
