"""What an answer must look like: a JSON schema, a regular expression, an EBNF grammar, choices, or tools; and the
engine that reads it.

The engine is llguidance (extra `grammar`), imported where it is first needed. Must not know: torch, models, how
decoding keeps to a grammar (`generation_grammar`).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from .chat_tools import tool_definitions
from .files_reading import one_line, shown
from .grammar_schema import largest_part, prepare_schema
from .reasoning import ARGS, TOOL_CALLS

INSTALL = 'Grammars need llguidance: pip install ".[grammar]".'
FORMS = (
    "a JSON schema (dict, or a pydantic class), re.compile(...), a list of choices, an EBNF text, or a dict with one "
    "of the keys "
    '"json_schema", "regex", "ebnf", "choices" and "tools" (with "tool_choice" and "parallel_tool_calls")'
)
_CALLS, _ARGS = "\u2039calls\u203a", "\u2039args\u203a"  # JSON is written in ASCII, and so are the names of tools
_KINDS = ("json_schema", "regex", "ebnf", "choices", "tools")
_FLAGS = {re.IGNORECASE: "i", re.MULTILINE: "m", re.DOTALL: "s", re.VERBOSE: "x"}
_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|\[(?:\\.|[^\]\\\n])*\]|(?:#|//)[^\n]*')


@dataclass(frozen=True)
class Grammar:
    """Make one with `json_schema`, `regex`, `ebnf`, `choices`, `tools`, or `read` for any of them.

    Attributes:
        kind: which of these.
        source: in Lark's syntax; the special tokens of tool calls stand in it as marks that no other text can hold.
        close: end the answer in time: where tokens run out, the shortest way to a valid end is taken. Off, it is cut
            off.
        reserve: tokens that may have to follow once an optional part of the answer has begun, as far as is known.
    """

    kind: str
    source: str
    close: bool = True
    reserve: int = 0

    @classmethod
    def read(cls, value: object) -> "Grammar":
        """A grammar from the forms that `generate(grammar=...)` takes.

        Raises:
            ValueError: None of them, or a grammar that is wrong, impossible or cannot be enforced.
        """
        if isinstance(value, Grammar):
            return value
        if isinstance(value, re.Pattern):
            return cls.regex(value)
        if isinstance(value, str):
            return cls.ebnf(value)
        if isinstance(value, type) and hasattr(value, "model_json_schema"):
            return cls.json_schema(value)
        if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
            return cls.choices(value)
        if not isinstance(value, Mapping):
            raise ValueError(f"grammar is a {type(value).__name__}; give {FORMS}.")
        if value.get("type") in ("json_object", "json_schema", "text"):
            return cls.response_format(value)
        kinds = [kind for kind in _KINDS if kind in value]
        if not kinds:
            return cls.json_schema(value)
        kind, rest = kinds[0], {key: each for key, each in value.items() if key != kinds[0]}
        extra = set(rest) - ({"tool_choice", "parallel_tool_calls"} if kind == "tools" else set())
        if extra:
            raise ValueError(f"grammar has the keys {sorted(value)}; give {FORMS}.")
        return getattr(cls, kind)(value[kind], **rest)

    @classmethod
    def json_schema(cls, schema: object, lenient: bool = False) -> "Grammar":
        """JSON that fits a schema (a dict, or a pydantic class), spelled as `json.dumps` does; see `prepare_schema`."""
        if isinstance(schema, type) and hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        prepared = prepare_schema(schema, _objection, lenient=lenient)
        return cls("json_schema", f"start: {_inline(prepared)}", reserve=largest_part(prepared))

    @classmethod
    def response_format(cls, value: Mapping[str, Any]) -> "Grammar":
        """OpenAI's `response_format`: `{"type": "text" | "json_object" | "json_schema", ...}`."""
        if value["type"] == "text":
            return cls("text", "start: text?\ntext: /(.|\\n)+/")
        if value["type"] == "json_object":
            return cls.json_schema({"type": "object"})
        inner = value.get("json_schema", value)
        if not isinstance(inner, Mapping) or "schema" not in inner:
            raise ValueError("A response format of type 'json_schema' needs the schema under json_schema.schema.")
        return cls.json_schema(inner["schema"])

    @classmethod
    def regex(cls, pattern: "str | re.Pattern[str]") -> "Grammar":
        """Text that a regular expression matches as a whole; without lookarounds and references back."""
        flags = 0
        if isinstance(pattern, re.Pattern):
            flags, pattern = pattern.flags, pattern.pattern
        if not isinstance(pattern, str):
            raise ValueError(f"A regular expression must be a str, but is a {type(pattern).__name__}.")
        letters = "".join(letter for flag, letter in _FLAGS.items() if flags & flag)
        pattern = re.sub(r"(?<!\\)((?:\\\\)*)\\Z", r"\1\\z", pattern)  # Python's name for the end of the text
        from llguidance import regex_to_lark

        lark = regex_to_lark(f"(?{letters}){pattern}" if letters else pattern, "")
        source = f"start: /{lark}/" if lark else 'start: ""'
        return cls("regex", _checked(source, f"The regular expression {shown(pattern)}"))

    @classmethod
    def ebnf(cls, text: str) -> "Grammar":
        """A context-free grammar in Lark's syntax (`start: ...`) or llama.cpp's GBNF (`root ::= ...`)."""
        if not isinstance(text, str):
            raise ValueError(f"An EBNF grammar must be a str, but is a {type(text).__name__}.")
        if not re.search(r"^\s*[?!]?[\w-]+\s*(\[[^\]]*\]\s*)?(:|::=)", text, re.MULTILINE):
            raise ValueError(
                f"The text {shown(text)} has no rule (`start: ...` or `root ::= ...`). A regular expression is given "
                "as "
                're.compile(...) or {"regex": ...}, a choice as a list.'
            )
        if "<" in _QUOTED.sub("", text):
            raise ValueError(
                "A grammar's text cannot name special tokens (`<...>`); use a grammar of tools for tool calls."
            )
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            source = any_to_lark(text)
        except Exception as error:  # the converter raises whatever it stumbles over
            raise ValueError(f"The EBNF grammar cannot be read: {one_line(error)}") from None
        return cls("ebnf", _checked(source, "The EBNF grammar"))

    @classmethod
    def choices(cls, choices: Sequence[str]) -> "Grammar":
        """One of several texts."""
        if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
            raise ValueError(f"choices must be a list of one text or more, but is {shown(choices)}.")
        for choice in choices:
            if not isinstance(choice, str):
                raise ValueError(f"choices must be texts, but one of them is {shown(choice)}.")
        source = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        return cls("choices", _checked(source, "The list of choices"))

    @classmethod
    def tools(
        cls,
        tools: Sequence[Any],
        tool_choice: object = "auto",
        parallel_tool_calls: bool = True,
        content: "Grammar | None" = None,
    ) -> "Grammar":
        """Calls of tools, with arguments that fit their parameters.

        Args:
            tools: as in `apply_chat_template`. Where a tool is not `strict`, what its schema asks for beyond what can
                be enforced is left out.
            tool_choice: "auto" (text, then calls, or either), "required" (or "any"), "none", the name of a tool, or
                OpenAI's dicts for a named or an allowed tool.
            parallel_tool_calls: False for at most one call.
            content: what the text must be instead of any text (JSON, of a response format); then text or calls, not
                both.

        Raises:
            ValueError: A tool that is none, or a choice of none of the tools.
        """
        definitions = {each["function"]["name"]: each["function"] for each in tool_definitions(tools)}
        mode, allowed = read_choice(tool_choice, list(definitions))
        strict = [_is_strict(tool) for tool in tools]
        rules, reserve = [], 0 if content is None else content.reserve
        for index, (name, function) in enumerate(definitions.items()):
            if name in allowed:
                at = f"tools[{index}].function.parameters"
                schema = prepare_schema(
                    _of_object(function["parameters"], at), _objection, at, lenient=not strict[index]
                )
                rules.append(f'{_CALLS} "{name}" {_ARGS} {_inline(schema)}')
                reserve = max(reserve, len(name) + 2 + largest_part(schema))
        lines = ["call: " + " | ".join(rules)] if rules else []
        text = "text: /(.|\\n)+/" if content is None else content.source.replace("start:", "text:", 1)
        if mode == "none" or not rules:
            lines += ["start: text?" if content is None else "start: text", text]
        elif mode == "auto":
            many = "*" if parallel_tool_calls else "?"
            lines += [
                f"start: text? call{many}" if content is None else f"start: text | call{many.replace('*', '+')}",
                text,
            ]
        else:
            lines.append("start: call+" if parallel_tool_calls and mode == "required" else "start: call")
        return cls("tools", _checked("\n".join(lines), "The grammar of the tools"), reserve=reserve)

    def matcher(self, vocabulary: "Vocabulary") -> "Matcher":
        """The engine's state at the beginning of an answer.

        Raises:
            ValueError: The vocabulary lacks a special token of tool calls, or the grammar is too large.
        """
        source = self.source
        for mark, token in ((_CALLS, TOOL_CALLS), (_ARGS, ARGS)):
            if mark in source:
                if token not in vocabulary.control_ids:
                    raise ValueError(f"This tokenizer has no special token {token}, which a grammar of tools needs.")
                source = source.replace(mark, f"<[{vocabulary.control_ids[token]}]>")
        engine = _engine()
        matcher = engine(vocabulary.engine, engine.grammar_from_lark(source), log_level=0)
        if matcher.is_error():
            raise ValueError(f"The grammar ({self.kind}) cannot be enforced: {one_line(matcher.get_error())}")
        return matcher


class Matcher(Protocol):
    """What is used of llguidance's `LLMatcher`: how far an answer is, and what may follow."""

    def is_error(self) -> bool: ...
    def get_error(self) -> str: ...
    def is_accepting(self) -> bool: ...
    def compute_bitmask(self) -> bytes: ...
    def consume_token(self, token: int) -> bool: ...
    def try_consume_tokens(self, tokens: list[int]) -> int: ...
    def validate_tokens(self, tokens: list[int]) -> int: ...
    def rollback(self, count: int) -> bool: ...
    def reset(self) -> bool: ...
    def deep_copy(self) -> "Matcher": ...


class Vocabulary:
    """A tokenizer's tokens as the engine reads them; built when first used, and not copied or pickled with the
    tokenizer.

    Args:
        tokens: the bytes of each id; of special tokens, their names.
        control_ids: special token -> id.
        eos: id of the end of a message.
        encode: texts to the ids of each.
    """

    def __init__(
        self,
        tokens: list[bytes],
        control_ids: Mapping[str, int],
        eos: int,
        encode: Callable[[list[str]], list[list[int]]],
    ) -> None:
        self.tokens, self.control_ids, self.eos, self.encode = tokens, control_ids, eos, encode
        self._engine: Any = None

    @property
    def engine(self) -> Any:
        if self._engine is None:
            _engine()
            import llguidance

            self._engine = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Wrapped(self)))
        return self._engine

    @cached_property
    def byte_ids(self) -> list[int | None]:
        """The id of the token of each single byte, where there is one."""
        places = {token: index for index, token in reversed(list(enumerate(self.tokens))) if len(token) == 1}
        return [places.get(bytes([byte])) for byte in range(256)]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engine": None}


class _Wrapped:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id, self.tokens = vocabulary.eos, vocabulary.tokens
        self.special_token_ids = sorted(vocabulary.control_ids.values())
        self._encode = vocabulary.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode([text if isinstance(text, str) else text.decode("utf-8", "replace")])[0]


def _engine() -> Any:
    """llguidance's matcher class."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise ImportError(INSTALL) from None
    return LLMatcher


def _objection(schema: dict[str, Any]) -> str:
    engine = _engine()
    return one_line(engine.validate_grammar(engine.grammar_from_json_schema(schema)))


def _checked(lark: str, what: str) -> str:
    """The grammar itself, unless the engine refuses it."""
    engine = _engine()
    marks = ((_CALLS, "<[1]>"), (_ARGS, "<[2]>"))
    plain = lark
    for mark, token in marks:
        plain = plain.replace(mark, token)
    objection = engine.validate_grammar(engine.grammar_from_lark(plain))
    if objection:
        raise ValueError(f"{what} cannot be enforced: {one_line(objection)}")
    return lark


def _inline(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps(schema)}"


def read_choice(choice: object, names: list[str]) -> tuple[str, list[str]]:
    """What a `tool_choice` says: ("none" | "auto" | "required" | "named", the tools allowed).

    Raises:
        ValueError: It says nothing, or asks for tools that there are not.
    """
    if choice in (None, "auto", "none"):
        return choice or "auto", names
    if choice in ("required", "any"):
        wanted, mode = names, "required"
    elif isinstance(choice, str):
        wanted, mode = [choice], "named"
    elif isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        if not isinstance(inner, Mapping) or not isinstance(inner.get("tools"), list):
            raise ValueError("tool_choice.allowed_tools needs a list of tools.")
        mode, wanted = inner.get("mode", "auto"), [_named(each) for each in inner["tools"]]
        if mode not in ("auto", "required"):
            raise ValueError(f"tool_choice.mode must be 'auto' or 'required', but is {shown(mode)}.")
    else:
        wanted, mode = [_named(choice)], "named"
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        raise ValueError(f"tool_choice asks for {shown(unknown)}, but the tools are {shown(names)}.")
    return mode, wanted


def _named(choice: object) -> str:
    """The name in `{"type": "function", "function": {"name": ...}}` or `{"type": "function", "name": ...}`."""
    if isinstance(choice, Mapping) and choice.get("type", "function") == "function":
        function = choice.get("function", choice)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            return function["name"]
    raise ValueError(
        'tool_choice must be "auto", "none", "required", or {"type": "function", "function": {"name": ...}}, '
        f"but is {shown(choice)}."
    )


def _is_strict(tool: object) -> bool:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return isinstance(function, Mapping) and function.get("strict") is True


def _of_object(parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Parameters as a schema of one object; none at all are an empty one."""
    if not parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    kinds = parameters.get("type", "object")
    if "object" not in ([kinds] if isinstance(kinds, str) else kinds):
        raise ValueError(f"{where}.type must be 'object', but is {shown(kinds)}.")
    return dict(parameters) | {"type": "object"}
