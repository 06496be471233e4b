"""The application: the routes, and the steps that every request goes through. Start reading here.

A request is read and checked (`fields`, `conversation`), made into jobs (`asking`), decoded by the engine's thread
(`engine`) and answered (`chat_api`, `responses_api`, `completions_api`). Knows nothing of tensors.
"""

import asyncio
import json
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from ..commands.session import load
from ..files_reading import shown
from ..image_sources import ImageAccess
from ..modeling_small4 import Small4ForCausalLM
from ..processing_small4 import Small4Processor
from .answering import Listener, line
from .asking import Asker, Limits
from .chat_api import ChatAnswers, chat_jobs
from .completions_api import CompletionAnswers, completion_jobs
from .engine import Engine
from .errors import ApiError
from .fields import NO_EFFECT, ChatFields, CompletionFields, ResponsesFields, read_body, read_fields
from .guard import Access, Guard
from .jobs import Job, QueueFullError
from .metrics import metrics_text
from .responses_api import ResponseAnswers, response_jobs

PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Options:
    """How a server is set up.

    Attributes:
        name: what clients call the model.
        mode: reasoning mode of requests that do not set one.
        rows: how many answers are decoded at once.
        waiting: length of the queue.
        answers: largest `n`.
        images: limit for one request.
        prefix_bytes: memory for the KV cache of earlier prompts.
        image_hosts: hosts from which images may be fetched; none by default.
        draft: of `generate`, for answers that run alone.
    """

    name: str
    mode: str | None = None
    access: Access = field(default_factory=Access)
    rows: int = 32
    waiting: int = 256
    answers: int = 16
    images: int = 32
    prefix_bytes: int = 2**31
    image_hosts: tuple[str, ...] = ()
    draft: str | None = None


class Api:
    """Answers requests; one for each server."""

    def __init__(self, model: Small4ForCausalLM, processor: Small4Processor, options: Options) -> None:
        self.options, self.tokenizer = options, processor.tokenizer
        self.engine = Engine(model, self.tokenizer, options.rows, options.waiting, options.prefix_bytes, options.draft)
        context = model.config.get_text_config().max_position_embeddings
        limits = Limits(context, options.answers, options.images, ImageAccess(hosts=options.image_hosts))
        self.asker = Asker(model, processor, limits, options.mode)
        self.model = {
            "id": options.name, "object": "model", "created": int(time.time()), "owned_by": "small4",
            "max_model_len": context,
        }  # fmt: skip

    async def chat(self, request: Request) -> Response:
        body = await self._body(request)
        fields = read_fields(ChatFields, body)
        answers = ChatAnswers(self.options.name, self.tokenizer, fields)
        return await self._answer(request, fields, lambda listener: chat_jobs(self.asker, fields, listener), answers)

    async def responses(self, request: Request) -> Response:
        body = await self._body(request)
        for name in ("previous_response_id", "conversation"):
            if body.get(name) is not None:
                raise ApiError(f"{name} is not supported: nothing is stored here. Send the whole conversation.", name)
        fields = read_fields(ResponsesFields, body)
        answers = ResponseAnswers(self.options.name, self.tokenizer, fields, body)
        return await self._answer(
            request, fields, lambda listener: response_jobs(self.asker, fields, listener), answers
        )

    async def completions(self, request: Request) -> Response:
        body = await self._body(request)
        fields = read_fields(CompletionFields, body)
        answers = CompletionAnswers(self.options.name, self.tokenizer, fields)
        return await self._answer(
            request, fields, lambda listener: completion_jobs(self.asker, fields, listener), answers
        )

    async def models(self) -> Response:
        return as_json({"object": "list", "data": [self.model]})

    async def one_model(self, name: str) -> Response:
        self._check_model(name)
        return as_json(self.model)

    async def health(self) -> Response:
        alive = self.engine.alive
        return as_json({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)

    async def metrics(self) -> Response:
        return PlainTextResponse(metrics_text(self.engine))

    async def page(self) -> Response:
        return HTMLResponse(PAGE.read_text("utf-8"))

    async def _body(self, request: Request) -> dict[str, Any]:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > self.options.access.body:
                raise ApiError(f"The body is larger than the {self.options.access.body} bytes allowed.", status=413)
        body = await asyncio.to_thread(read_body, bytes(data))
        self._check_model(body.get("model"))
        return body

    def _check_model(self, name: object) -> None:
        if name not in (None, "", self.options.name):
            said = name[:80] if isinstance(name, str) else type(name).__name__
            raise ApiError(
                f"There is no model {shown(said)} here; the model is {shown(self.options.name)}.", "model",
                404 if isinstance(name, str) else 400, "model_not_found",
            )  # fmt: skip

    async def _answer(
        self, request: Request, fields: Any, jobs_of: Callable[[Listener], list[Job]], answers: Any
    ) -> Response:
        """Puts the jobs in the queue, and answers whole or streaming. If the client disconnects, its jobs are
        cancelled.
        """
        listener = Listener()
        jobs = await asyncio.to_thread(jobs_of, listener)
        self._submit(jobs)
        if fields.stream:
            return _Stream(self._streamed(answers.stream(listener, jobs)), lambda: self._cancel(jobs))
        try:
            return as_json(await _while_there(request, answers.whole(listener, jobs)))
        finally:
            self._cancel(jobs)

    def _submit(self, jobs: list[Job]) -> None:
        try:
            for job in jobs:
                self.engine.submit(job)
        except QueueFullError:
            self._cancel(jobs)
            wait = str(1 + self.engine.queued // max(1, self.options.rows))
            raise ApiError("Too many requests are waiting; try again later.", status=429, code="queue_full",
                           headers={"retry-after": wait}) from None  # fmt: skip

    async def _streamed(self, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for each in lines:
                yield each
        except ApiError as error:
            yield line(error.body)
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            yield line(_failure().body)

    def _cancel(self, jobs: list[Job]) -> None:
        """Cancels what has not ended. Finished answers are not affected."""
        for job in jobs:
            self.engine.cancel(job)


class _Stream(StreamingResponse):
    """Server-sent events. `ended` is called at their end and when the client disconnects, even before the first one."""

    def __init__(self, lines: AsyncIterator[bytes], ended: Callable[[], None]) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self.ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.ended()


async def _while_there(request: Request, answer: Any) -> Any:
    """The answer, unless the client disconnects first."""
    made, left = asyncio.ensure_future(answer), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((made, left), return_when=asyncio.FIRST_COMPLETED)
        if made.done():
            return made.result()
        raise ApiError("The client has left.", status=499)
    finally:
        for task in (made, left):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def as_json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response, in ASCII, so that a lone surrogate from a client does not break it."""
    return Response(json.dumps(value), status, headers, "application/json")


def _failure() -> ApiError:
    return ApiError("The server failed on this request.", status=500, code="server_error")


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return as_json(error.body, error.status, error.headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {404: "There is no such path.", 405: "This path does not support that method."}.get(error.status_code)
    refused = ApiError(message or str(error.detail), status=error.status_code)
    return as_json(refused.body, refused.status)


async def _on_error(request: Request, error: Exception) -> Response:
    return as_json(_failure().body, 500)


def make_app(api: Api) -> FastAPI:
    """The routes of an API. The engine runs as long as the application does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        api.engine.start()
        yield
        await asyncio.to_thread(api.engine.stop)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    posts: dict[str, Callable[..., Any]] = {
        "/v1/chat/completions": api.chat,
        "/v1/responses": api.responses,
        "/v1/completions": api.completions,
    }
    for path, endpoint in posts.items():
        app.add_api_route(path, endpoint, methods=["POST"], response_model=None)
    gets: dict[str, Callable[..., Any]] = {
        "/v1/models": api.models,
        "/health": api.health,
        "/metrics": api.metrics,
        "/": api.page,
    }
    for path, endpoint in gets.items():
        app.add_api_route(path, endpoint, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models/{name:path}", api.one_model, methods=["GET"], response_model=None)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_error)
    app.add_middleware(Guard, access=api.options.access)
    return app


class Server(uvicorn.Server):
    """A uvicorn server with its `Api`. `run()` serves until interrupted."""

    def __init__(self, api: Api, port: int) -> None:
        app, host = make_app(api), api.options.access.host
        super().__init__(uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5))
        self.api = api


def make_server(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    mode: str | None = None,
    device: str = "auto",
    expert_memory: str | None = None,
    **options: Any,
) -> Server:
    """Loads a model and makes its server.

    Args:
        model: checkpoint folder or Hub repository.
        mode: reasoning mode of requests that do not set one; None: the checkpoint's own.
        device: a device, or "auto" for all accelerators, else the CPU.
        expert_memory: as in `from_pretrained`.
        options: fields of `Options` and of `Access`.

    Raises:
        ValueError, OSError: the model cannot be loaded.
    """
    loaded, processor = load(model, device, expert_memory)
    access = {name: options.pop(name) for name in Access.__dataclass_fields__ if name in options}
    name = options.pop("name", None) or served_name(model)
    return Server(Api(loaded, processor, Options(name, mode, Access(host, **access), **options)), port)


def served_name(model: str) -> str:
    """What clients call the model: a folder's own name, or the repository."""
    return Path(model).resolve().name if Path(model).is_dir() else model


__all__ = ["NO_EFFECT", "Api", "Options", "Server", "make_app", "make_server"]
