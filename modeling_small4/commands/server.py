"""transformers' own OpenAI-compatible server, with one Small 4 model behind it and `reasoning_effort` honoured.

The parts of `transformers serve` are put together here, because it imports no outside package, looks classes up in static tables, and
ignores `reasoning_effort`. Needs the extra `serve`; `serve_command` checks that. Must not know: tensors, the chat format.
"""

from pathlib import Path
from typing import Any

import uvicorn
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from transformers.cli.serving.chat_completion import (
    UNUSED_CHAT_COMPLETION_FIELDS,
    ChatCompletionHandler,
    TransformersCompletionCreateParamsStreaming,
)
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import (
    UNUSED_RESPONSE_FIELDS,
    ResponseHandler,
    TransformersResponseCreateParamsStreaming,
)
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import GenerationState

from ..reasoning import check_reasoning_mode

MODE, BUDGET = "reasoning_effort", "max_thinking_tokens"


class ChatFields(TransformersCompletionCreateParamsStreaming, total=False):  # type: ignore[call-arg]
    """A chat request: OpenAI's fields, transformers' and the budget of thinking."""

    max_thinking_tokens: int


class ResponseFields(TransformersResponseCreateParamsStreaming, total=False):  # type: ignore[call-arg]
    """The same for the Responses API."""

    max_thinking_tokens: int
    chat_template_kwargs: dict


class OneModel(ModelManager):
    """Holds the model that the server was started with, and lists it."""

    def list_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        """The only model, under the name that requests use."""
        return [{"id": served_name(self.force_model), "object": "model", "created": 0, "owned_by": "small4"}]

    get_gen_models = list_models  # what the server of transformers 5.23 asks for


def served_name(model: str) -> str:
    """What clients call the model: a folder's own name, or the repository."""
    return Path(model).resolve().name if Path(model).is_dir() else model


class _Named:
    """Requests name the model as it is listed, as the server was told, or not at all."""

    model_manager: Any

    def _resolve_model(self, body: dict[str, Any]) -> Any:
        name = served_name(self.model_manager.force_model)
        if body.get("model") in (None, "", name):
            body["model"] = self.model_manager.force_model
        _, model, processor = super()._resolve_model(body)  # type: ignore[misc]
        return name, model, processor


class _Small4Requests(_Named):
    """What both chat endpoints do with a request before transformers sees it."""

    default_mode: str | None = None

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """Answer one request. What the caller did wrong is told in the form that OpenAI's clients show."""
        try:
            self._set_mode(body)
            return await super().handle_request(body, request_id)  # type: ignore[misc]
        except ValueError as error:
            return _refusal(400, str(error))
        except HTTPException as error:
            return _refusal(error.status_code, str(error.detail))

    def _set_mode(self, body: dict[str, Any]) -> None:
        """One mode for the prompt and for decoding, wherever it was given; left out, the server's default."""
        inner = body.setdefault("chat_template_kwargs", {})
        given = [
            mode
            for mode in (self._asked_mode(body), inner.get(MODE), inner.pop("reasoning_mode", None))
            if mode is not None
        ]
        for mode in given:
            check_reasoning_mode(mode)
        if len(set(given)) > 1:
            raise ValueError(f"The request asks for two reasoning modes, {' and '.join(sorted(set(given)))}; give one.")
        mode = given[0] if given else self.default_mode
        if mode is not None:
            inner[MODE] = mode
        budget = body.get(BUDGET)
        if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 0):
            raise ValueError(f"{BUDGET}={budget!r} is no number of tokens; give a whole number, 0 or more.")

    def _asked_mode(self, body: dict[str, Any]) -> str | None:
        return body.get(MODE)

    def _build_generation_config(self, body: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As transformers', a temperature above 0 means sampling, and decoding follows the mode that the prompt carries."""
        config = super()._build_generation_config(body, *args, **kwargs)  # type: ignore[misc]
        if body.get("temperature"):
            config.do_sample = True
        if (mode := body["chat_template_kwargs"].get(MODE)) is not None:
            config.reasoning_mode = mode
        if body.get(BUDGET) is not None:
            config.max_thinking_tokens = body[BUDGET]
        return config

    @staticmethod
    def get_processor_inputs_from_messages(messages: list[dict[str, Any]], modality: Any) -> list[dict[str, Any]]:
        """As transformers', keeping an assistant's earlier thoughts, and its words beside tool calls."""
        out = ChatCompletionHandler.get_processor_inputs_from_messages(messages, modality)
        for message, parsed in zip(messages, out, strict=True):
            if message.get("reasoning_content"):
                parsed["reasoning_content"] = message["reasoning_content"]
            if message.get("tool_calls") and isinstance(message.get("content"), str) and message["content"]:
                parsed["content"] = message["content"]
        return out


def _refusal(status: int, message: str) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status_code=status)


class Small4ChatHandler(_Small4Requests, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    _valid_params_class = ChatFields
    _unused_fields = UNUSED_CHAT_COMPLETION_FIELDS - {MODE}


class Small4ResponseHandler(_Small4Requests, ResponseHandler):
    """`/v1/responses`; the mode is `reasoning.effort` there."""

    _valid_params_class = ResponseFields
    _unused_fields = UNUSED_RESPONSE_FIELDS - {"reasoning"}

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """Answers whole unless asked to stream, as OpenAI's does; transformers streams by default."""
        return await super().handle_request({"stream": False} | body, request_id)

    def _asked_mode(self, body: dict[str, Any]) -> str | None:
        return (body.get("reasoning") or {}).get("effort")


class Small4CompletionHandler(_Named, CompletionHandler):
    """`/v1/completions`: plain text continued, without a chat format."""


class Server(uvicorn.Server):
    """A server that knows what it serves. `run()` serves until interrupted."""

    def __init__(self, config: uvicorn.Config, manager: OneModel) -> None:
        super().__init__(config)
        self.manager = manager


def make_server(
    model: str, host: str = "127.0.0.1", port: int = 8000, mode: str | None = None, device: str = "auto", **options: Any
) -> Server:
    """Load a model and make its server.

    Args:
        model: Checkpoint folder or Hub repository.
        mode: Reasoning mode of requests that name none; None: the checkpoint's own.
        device: A device, or "auto" for all GPUs there are.
        options: More arguments of transformers' `ModelManager` (dtype, attn_implementation).

    Raises:
        ValueError, OSError: The model cannot be loaded.
    """
    manager = OneModel(device=device, force_model=model, **options)
    state = GenerationState()
    chat, responses = Small4ChatHandler(manager, state), Small4ResponseHandler(manager, state)
    for handler in (chat, responses):
        handler.default_mode = mode
    app = build_server(
        manager,
        chat,
        completion_handler=Small4CompletionHandler(manager, state),
        response_handler=responses,
        transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(manager, state),
        generation_state=state,
    )
    return Server(uvicorn.Config(app, host=host, port=port, log_level="warning"), manager)
