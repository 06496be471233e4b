"""Turns checked fields and a conversation into a job for the engine: prompt, sampling, reasoning mode, grammar, limits.

Refuses what cannot be done before anything waits in the queue. Knows nothing of HTTP or of the format of answers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..chat_tools import tool_definitions
from ..commands.prefix import prefix_key
from ..files_reading import shown
from ..grammar import Grammar, read_choice
from ..image_sources import ImageAccess
from ..modeling_small4 import Small4ForCausalLM
from ..processing_small4 import Small4Processor
from ..reasoning import END_INST, END_TOOL_RESULTS
from .errors import ApiError, blamed_on
from .fields import ChatLikeFields, CommonFields, CompletionFields
from .jobs import Event, Job, Prompt
from .sampling import Sampling

# Reasoning effort of the API -> mode of the model, and limit of thinking tokens.
EFFORTS: dict[str, tuple[str, int | None]] = {
    "none": ("none", None),
    "minimal": ("none", None),
    "low": ("high", 512),
    "medium": ("high", 4096),
    "high": ("high", None),
    "xhigh": ("high", None),
    "max": ("high", None),
}
_TOOL_KEYS = ("name", "description", "parameters", "strict")
Tell = Callable[[Event], None]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        context: tokens of prompt and answer together.
        answers: `n`.
        images: of one request.
        image_access: where images may be read from besides data URLs.
    """

    context: int
    answers: int = 16
    images: int = 32
    image_access: ImageAccess = field(default_factory=ImageAccess)


class Asker:
    """
    Args:
        mode: reasoning mode of requests that do not set one; None: the checkpoint's own.
    """

    def __init__(
        self, model: Small4ForCausalLM, processor: Small4Processor, limits: Limits, mode: str | None = None
    ) -> None:
        self.model, self.processor, self.limits, self.mode = model, processor, limits, mode
        self.tokenizer = processor.tokenizer

    def chat_job(
        self,
        fields: ChatLikeFields,
        conversation: list[dict[str, Any]],
        where: str,
        most: int | None,
        tell: Tell,
        response_format: dict[str, Any] | None = None,
        effort: str | None = None,
        answers: int = 1,
        logprobs: int | None = None,
    ) -> Job:
        """The job of a chat or responses request.

        Args:
            where: the field that holds the conversation.
            most: the requested token limit of the answer.

        Raises:
            ApiError: What is wrong with the request.
        """
        mode, budget = self._mode(fields, effort)
        tools = read_tools(fields.tools or [])
        grammar = self._grammar(fields, tools, response_format, close=most is None)
        prompt = self._prompt(conversation, tools, mode, where)
        job = self._job(fields, prompt, most, where, tell, answers, logprobs)
        job.mode, job.budget, job.grammar, job.calls = mode, budget, grammar, bool(tools)
        if grammar is not None:
            with blamed_on("grammar" if fields.grammar else "tools" if tools else "response_format"):
                grammar.matcher(self.tokenizer.grammar_vocabulary)
        return job

    def text_job(self, fields: CompletionFields, prompt: str | list[int], tell: Tell) -> Job:
        """The job of one prompt of a completion: a string, which is plain text, or ids, which may be special tokens."""
        if isinstance(prompt, str):
            ids = [self.tokenizer.bos_token_id, *self.tokenizer.encode_texts([prompt])[0]]
        else:
            ids = prompt
            if not ids or not all(0 <= token < len(self.tokenizer) for token in ids):
                raise ApiError(
                    f"prompt must hold token ids from 0 to {len(self.tokenizer) - 1}, and at least one.", "prompt"
                )
        most = fields.max_tokens or 16
        job = self._job(fields, Prompt(ids, ids), most, "prompt", tell, fields.n or 1, fields.logprobs)
        job.raw = True
        return job

    def _job(
        self,
        fields: CommonFields,
        prompt: Prompt,
        most: int | None,
        where: str,
        tell: Tell,
        answers: int,
        logprobs: int | None,
    ) -> Job:
        if answers > self.limits.answers:
            raise ApiError(f"n is {answers}, but at most {self.limits.answers} answers are made at once.", "n")
        stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
        room = self._room(len(prompt.ids), most, where)
        sampling = self._sampling(fields, answers, logprobs)
        return Job(prompt, tell, sampling, room, answers, [stop for stop in stops if stop])

    def _room(self, length: int, most: int | None, where: str) -> int:
        """Tokens that an answer may have."""
        context, code = self.limits.context, "context_length_exceeded"
        if length >= context:
            raise ApiError(
                f"The prompt has {length} tokens, but the context has {context} for it and the answer.",
                where,
                code=code,
            )
        if most is not None and length + most > context:
            raise ApiError(
                f"The prompt has {length} tokens, so of the context's {context} there are {context - length} for the "
                "answer; "
                f"{most} were asked for.", "max_tokens", code=code,
            )  # fmt: skip
        return most or min(self.model.generation_config.max_new_tokens or context, context - length)

    def _sampling(self, fields: CommonFields, answers: int, logprobs: int | None) -> Sampling:
        """The sampling settings of the request, else of the checkpoint's generation config, else greedy decoding."""
        own = self.model.generation_config
        temperature, top_p, top_k = fields.temperature, fields.top_p, fields.top_k
        if temperature is None:
            asked = answers > 1 or any(value is not None for value in (top_p, top_k, fields.min_p))
            temperature = (own.temperature or 1.0) if own.do_sample else 1.0 if asked else 0.0
        if own.do_sample:
            top_p = own.top_p if top_p is None else top_p
            top_k = own.top_k if top_k is None else top_k
        if fields.seed is not None and fields.random_seed not in (None, fields.seed):
            raise ApiError("seed and random_seed are two names of one field and differ.", "random_seed")
        return Sampling(
            temperature=temperature,
            top_k=max(top_k or 0, 0),
            top_p=1.0 if top_p is None else top_p,
            min_p=fields.min_p or 0.0,
            frequency_penalty=fields.frequency_penalty or 0.0,
            presence_penalty=fields.presence_penalty or 0.0,
            repetition_penalty=fields.repetition_penalty or 1.0,
            bias=self._bias(fields.logit_bias or {}),
            seed=fields.random_seed if fields.seed is None else fields.seed,
            logprobs=logprobs,
        )

    def _bias(self, given: dict[str, float]) -> dict[int, float]:
        out = {}
        for key, value in given.items():
            if not key.isdecimal() or not key.isascii() or len(key) > 12 or int(key) >= len(self.tokenizer):
                at = f"logit_bias.{key[:20]}"
                raise ApiError(f"{at} is no token id; ids go from 0 to {len(self.tokenizer) - 1}.", "logit_bias")
            out[int(key)] = value
        return out

    def _mode(self, fields: ChatLikeFields, effort: str | None) -> tuple[str | None, int | None]:
        """Mode and thinking budget, from any of the fields that set them. A request with two different modes is
        refused.
        """
        given: dict[str, tuple[str, int | None]] = {}
        if effort is not None:
            given["reasoning_effort"] = EFFORTS[effort]
        if fields.reasoning is not None and fields.reasoning.effort is not None:
            given["reasoning.effort"] = EFFORTS[fields.reasoning.effort]
        if fields.prompt_mode is not None:
            given["prompt_mode"] = EFFORTS["high"]
        if fields.thinking is not None:
            given["thinking"] = (
                ("none", None) if fields.thinking.type == "disabled" else ("high", fields.thinking.budget_tokens)
            )
        if (options := fields.chat_template_kwargs) is not None:
            inner = {"reasoning_effort": options.reasoning_effort, "reasoning_mode": options.reasoning_mode}
            given |= {
                f"chat_template_kwargs.{name}": EFFORTS[value] for name, value in inner.items() if value is not None
            }
            for name in ("enable_thinking", "thinking"):
                if (flag := getattr(options, name)) is not None:
                    given[f"chat_template_kwargs.{name}"] = ("high" if flag else "none", None)
        if len({mode for mode, _ in given.values()}) > 1:
            names = " and ".join(given)
            raise ApiError(f"{names} ask for two different reasoning modes; give one of them.", next(iter(given)))
        mode = next((mode for mode, _ in given.values()), None)
        budgets = [budget for _, budget in given.values() if budget is not None]
        budget = fields.max_thinking_tokens if fields.max_thinking_tokens is not None else min(budgets, default=None)
        return mode or self._default_mode(), budget

    def _default_mode(self) -> str:
        return self.mode or getattr(self.model.generation_config, "reasoning_mode", None) or "none"

    def _grammar(
        self, fields: ChatLikeFields, tools: list[dict[str, Any]], response_format: dict[str, Any] | None, close: bool
    ) -> Grammar | None:
        """The constraint on the answer: a response format, tool calls, both, or an explicit grammar.

        If the client set no token limit, an answer that reaches the server's limit is closed before it. Otherwise it is
        cut off at the client's limit.
        """
        content = None
        if response_format is not None and response_format.get("type") != "text":
            content = _response_format(response_format)
        if fields.grammar is not None:
            if content is not None or tools:
                raise ApiError("grammar cannot be combined with response_format or tools.", "grammar")
            with blamed_on("grammar"):
                content = Grammar.read(fields.grammar)
        choice = fields.tool_choice
        if not tools:
            if choice not in (None, "auto", "none"):
                raise ApiError("tool_choice asks for a tool, but there are no tools.", "tool_choice")
            return None if content is None else replace(content, close=close)
        with blamed_on("tool_choice"):
            read_choice(choice, [tool["function"]["name"] for tool in tools])
        with blamed_on("tools"):
            grammar = Grammar.tools(tools, choice, fields.parallel_tool_calls is not False, content)
        return replace(grammar, close=close)

    def _prompt(self, conversation: list[dict[str, Any]], tools: list[Any], mode: str | None, where: str) -> Prompt:
        images = sum(
            part["type"] == "image"
            for message in conversation
            if isinstance(message.get("content"), list)
            for part in message["content"]
        )
        if images > self.limits.images:
            raise ApiError(f"The request has {images} images, but at most {self.limits.images} are allowed.", where)
        if images and self.processor.image_processor is None:
            raise ApiError("This model reads no images.", where)
        settings = self.tokenizer.init_kwargs.get("reasoning_settings")
        with blamed_on(where):
            inputs = self.processor.apply_chat_template(
                conversation, tools=tools or None, add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt", image_access=self.limits.image_access,
                reasoning_mode=None if settings is None else mode,
            )  # fmt: skip
        ids = inputs["input_ids"][0].tolist()
        begun = self._begun(ids) if conversation[-1].get("prefix") else 0
        if not images:
            return Prompt(ids, ids, begun)
        pixels, sizes = inputs["pixel_values"], inputs["image_sizes"]
        key, spans = prefix_key(self.model.config, ids, pixels, sizes)
        return Prompt(ids, key, begun, spans, pixels, sizes)

    def _begun(self, ids: list[int]) -> int:
        """How many of the last ids belong to the answer."""
        ends = {self.tokenizer.control_ids.get(token) for token in (END_INST, END_TOOL_RESULTS)}
        ends.add(self.tokenizer.eos_token_id)
        return next((index for index, token in enumerate(reversed(ids)) if token in ends), len(ids))


def read_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools of either API in the form of the chat format.

    Raises:
        ApiError: A tool that is not a function, or is invalid; `param` is its path.
    """
    out: list[dict[str, Any]] = []
    for index, tool in enumerate(tools):
        at = f"tools[{index}]"
        if tool.get("type") != "function":
            raise ApiError(f"{at}.type is {shown(tool.get('type'))}; only functions are supported.", f"{at}.type")
        function, inner = (tool["function"], f"{at}.function") if "function" in tool else (tool, at)
        if not isinstance(function, dict):
            raise ApiError(f"{inner} must be an object.", inner)
        for key, value in function.items():
            if key not in (*_TOOL_KEYS, "type", "cache_control") and value not in (None, False):
                raise ApiError(f"{inner}.{key} is not supported.", f"{inner}.{key}")
        kept = {key: function[key] for key in _TOOL_KEYS if function.get(key) is not None}
        plain = {"type": "function", "function": kept}
        with blamed_on(inner):
            tool_definitions([plain])
        if any(kept["name"] == other["function"]["name"] for other in out):
            raise ApiError(f"{inner}.name: there are two tools with the name {shown(kept['name'])}.", f"{inner}.name")
        out.append(plain)
    return out


def _response_format(given: dict[str, Any]) -> Grammar:
    """A chat's `response_format` or a response's `text.format`, whose fields are one level higher."""
    kind = given.get("type")
    if kind not in ("json_object", "json_schema"):
        raise ApiError(
            f"response_format.type must be text, json_object or json_schema, but is {shown(kind)}.",
            "response_format.type",
        )
    inner = given.get("json_schema", given)
    if kind == "json_schema" and not (isinstance(inner, dict) and isinstance(inner.get("schema"), dict)):
        raise ApiError("response_format of type json_schema needs json_schema.schema.", "response_format.json_schema")
    with blamed_on("response_format"):
        return Grammar.response_format(given)
