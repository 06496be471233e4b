"""Grammars by themselves: every form that is taken, what is refused and where, and what a text may be, by walking the
engine's state.
"""

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from model_card.bench.random_schemas import random_schema
from modeling_small4 import Grammar, Small4Tokenizer, demo_checkpoint
from modeling_small4.grammar_end import shortest_end

pytest.importorskip("llguidance")
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"]},
    },
}  # fmt: skip
NOW = {"type": "function", "function": {"name": "now", "description": "The time."}}
CALL, ARGS, EOS = 9, 32, 2


class Person(BaseModel):
    name: str
    age: int = Field(ge=0, le=150)


@pytest.fixture(scope="module")
def tokenizer() -> Small4Tokenizer:
    return Small4Tokenizer.from_pretrained(demo_checkpoint())


def ids_of(tokenizer: Small4Tokenizer, text: str) -> list[int]:
    """Ids of a text in which `⟪` stands for `[TOOL_CALLS]` and `⟫` for `[ARGS]`."""
    out: list[int] = []
    for part in re.split("([⟪⟫])", text):
        out += [CALL] if part == "⟪" else [ARGS] if part == "⟫" else tokenizer.encode_texts([part])[0]
    return out


def fits(tokenizer: Small4Tokenizer, grammar: Any, text: str) -> bool:
    matcher = Grammar.read(grammar).matcher(tokenizer.grammar_vocabulary)
    ids = ids_of(tokenizer, text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, ['{"a": 5}', "{}"],
        ['{"a":5}', '{"b": 1}', "{", '{"a": 5} ']),
        ({"json_schema": {"enum": ["x", 1]}}, ['"x"', "1"], ["x", "2"]),
        (Person, ['{"name": "Ada", "age": 36}'],
        ['{"name": "Ada", "age": 200}', '{"age": 36, "name": "Ada"}', '{"name": "Ada"}']),
        ({"type": "json_object"}, ['{"anything": [1, null]}'], ["[1]", "5"]),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}}, ["null"], ["{}"]),
        (re.compile(r"^\d{3}-[a-z]+$"), ["123-abc"], ["12-abc", "123-abc!"]),
        (re.compile("yes|no", re.IGNORECASE), ["YES", "no"], ["maybe"]),
        (re.compile(r"a.b\Z", re.DOTALL), ["a\nb"], ["ab"]),
        ({"regex": "a/b+"}, ["a/bb"], ["a/"]),
        ({"regex": ""}, [""], ["a"]),
        (["yes", "no", "", 'a "quoted"\nline', "ß</s>"], ["yes", "", 'a "quoted"\nline', "ß</s>"], ["ye", "yesno"]),
        ({"choices": ["[TOOL_CALLS]"]}, ["[TOOL_CALLS]"], ["⟪"]),
        ('start: "(" start ")" | "x"', ["x", "((x))"], ["((x)"]),
        ('root ::= digit+ ("," digit+)*\ndigit ::= [0-9]', ["12,3"], ["12,"]),
        ({"ebnf": 'start: "a" # not <this>\n'}, ["a"], ["b"]),
        ({"tools": [ADD, NOW]}, ["", "Hello", '⟪add⟫{"a": 1, "b": 2}', 'So:⟪now⟫{}⟪now⟫{}'],
        ['⟪sub⟫{}', '⟪add⟫{"a": 1}', '⟪now⟫{}x']),
        ({"tools": [ADD, NOW], "tool_choice": "required"}, ["⟪now⟫{}", '⟪now⟫{}⟪add⟫{"a": 1, "b": -2}'], ["", "Hello"]),
        ({"tools": [ADD, NOW], "tool_choice": "required", "parallel_tool_calls": False}, ["⟪now⟫{}"],
        ["⟪now⟫{}⟪now⟫{}"]),
        ({"tools": [ADD, NOW], "parallel_tool_calls": False}, ["Hello", "Hello⟪now⟫{}"], ["⟪now⟫{}⟪now⟫{}"]),
        ({"tools": [ADD, NOW], "tool_choice": "none"}, ["", "Hello ⟪⟫".replace("⟪⟫", "[TOOL_CALLS]")], ["⟪now⟫{}"]),
        ({"tools": [ADD, NOW], "tool_choice": "now"}, ["⟪now⟫{}"], ['⟪add⟫{"a": 1, "b": 2}', "⟪now⟫{}⟪now⟫{}"]),
        ({"tools": [ADD, NOW], "tool_choice": {"type": "function", "function": {"name": "now"}}}, ["⟪now⟫{}"],
        ["Hello"]),
        ({"tools": [ADD, NOW], "tool_choice": {"type": "allowed_tools", "mode": "required",
        "tools": [{"type": "function", "name": "now"}]}},
         ["⟪now⟫{}"], ['⟪add⟫{"a": 1, "b": 2}', "Hello"]),
    ],
)  # fmt: skip
def test_forms(tokenizer: Small4Tokenizer, grammar: Any, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not fits(tokenizer, grammar, text)] == []
    assert [text for text in wrong if fits(tokenizer, grammar, text)] == []


def test_tools_beside_a_response_format(tokenizer: Small4Tokenizer) -> None:
    content = Grammar.json_schema({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})
    grammar = Grammar.tools([ADD, NOW], content=content)
    assert fits(tokenizer, grammar, '{"ok": true}')
    assert fits(tokenizer, grammar, "⟪now⟫{}⟪now⟫{}")
    assert not fits(tokenizer, grammar, "Hello")
    assert not fits(tokenizer, grammar, '{"ok": true}⟪now⟫{}')


SELF = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer", "minimum": 5,
        "maximum": 1}, "minItems": 1}}, "required": ["a"]},
         ["schema.properties.a.items is impossible", "5"]),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^ab$", "minLength": 9}},
        "required": ["a"]}, ["schema.properties.a is impossible"]),
        ({"properties": {"a": {"not": {"type": "null"}}}}, ["schema.properties.a cannot be enforced", "not"]),
        ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, ["schema.items cannot be "
            "enforced", "uniqueItems"]),
        ({"$defs": {"x": {"anyOf": [{"type": "null"}, {"pattern": "(?=a)"}]}}, "$ref": "#/$defs/x"},
        ["schema.$defs.x.anyOf[1] cannot be enforced", "look-ahead"]),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/nowhere"}}},
        ["schema.properties.a", "/$defs/nowhere"]),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, ["schema cannot be enforced", "oneOf"]),
        (SELF, ["schema.properties.next requires itself"]),
        ({"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1}}, "$ref": "#/$defs/n"},
        ["requires itself"]),
        ({"type": "object", "properties": {"a": {"type": "objct"}}}, ["schema.properties.a.type", "'objct'"]),
        ({"const": float("nan")}, ["schema is not JSON"]),
        ({"enum": [object()]}, ["schema is not JSON"]),
        ({"type": "json_schema"}, ["json_schema.schema"]),
        ({"regex": "(a)\\1"}, ["backreferences"]),
        (re.compile("(?<=a)b"), ["look"]),
        ({"regex": 5}, ["regular expression", "int"]),
        ("[0-9]+", ["no rule", "re.compile"]),
        ("start: nothing", ["EBNF grammar cannot be enforced", "nothing"]),
        ('start: "a" <[9]>', ["special tokens"]),
        ('start: "a" <[TOOL_CALLS]>', ["special tokens"]),
        ([], ["choices"]),
        ({"choices": ["a", 5]}, ["choices must be texts", "5"]),
        (5, ["int", "re.compile"]),
        ({"choices": ["a"], "regex": "b"}, ["choices", "regex"]),
        ({"tools": [ADD], "tool_choice": "sub"}, ["sub", "add"]),
        ({"tools": [ADD], "tool_choice": {"type": "tool"}}, ["tool_choice"]),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
        ["tools[0].function.parameters.type", "string"]),
        ({"tools": [NOW, {"type": "function", "function": {"name": "f", "parameters": SELF}}]},
        ["tools[1].function.parameters.properties.next"]),
        ({"tools": [{"type": "function",
        "function": {"name": "f", "strict": True, "parameters": {"properties": {"a": {"not": {}}}}}}]},
         ["tools[0].function.parameters.properties.a", "not"]),
    ],
)  # fmt: skip
def test_refusals_say_where(grammar: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as refused:
        Grammar.read(grammar)
    assert all(word in str(refused.value) for word in words)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_schemas_nested_too_deeply_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(10_000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ValueError, match="nested more than"):
        Grammar.read(schema)
    schema = {"type": "integer"}
    for _ in range(20):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    assert Grammar.read(schema).kind == "json_schema"


def test_what_a_schema_does_not_mention() -> None:
    """Objects are closed where that changes nothing said; formats that nobody knows are annotations."""
    source = Grammar.read({"properties": {"a": {"format": "int32"}, "b": {"format": "date"}}, "required": ["a"]}).source
    assert '"additionalProperties": false' in source
    assert "int32" not in source
    assert '"format": "date"' in source
    for left_open in (
        {"properties": {"a": {}}, "required": ["b"]},
        {"properties": {"a": {}}, "additionalProperties": True},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"properties": {"b": {}}, "required": ["b"]}]},
        {"type": "object"},
    ):
        assert '"additionalProperties": false' not in Grammar.read(left_open).source


def test_a_tool_that_is_not_strict_is_kept_to_as_far_as_can_be(tokenizer: Small4Tokenizer) -> None:
    parameters = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    assert fits(tokenizer, {"tools": [tool]}, '⟪f⟫{"a": [1, 2]}')
    assert not fits(tokenizer, {"tools": [tool]}, '⟪f⟫{"a": "x"}')


@pytest.mark.parametrize("seed", range(60))
def test_every_random_schema_has_an_end_that_fits(tokenizer: Small4Tokenizer, seed: int) -> None:
    schema = random_schema(seed)
    matcher = Grammar.json_schema(schema).matcher(tokenizer.grammar_vocabulary)
    end = shortest_end(matcher, tokenizer.grammar_vocabulary)
    assert end is not None
    assert matcher.try_consume_tokens(end) == len(end)
    Draft202012Validator(schema).validate(json.loads(tokenizer.decode(end)))


def test_no_text_makes_a_special_token(tokenizer: Small4Tokenizer) -> None:
    """Whatever a schema spells, the mask leaves special tokens out, but for the end of the message."""
    special = set(tokenizer.control_tokens) - {EOS}
    for grammar in (
        ["[TOOL_CALLS]", "[THINK]x"],
        {"const": "[INST]"},
        {"type": "string"},
        'start: "</s>"',
        re.compile("(?s:.*)"),
    ):
        matcher = Grammar.read(grammar).matcher(tokenizer.grammar_vocabulary)
        for _ in range(30):
            bits = matcher.compute_bitmask()
            allowed = [i for i in range(len(tokenizer)) if bits[i // 8] >> (i % 8) & 1]
            assert not special & set(allowed)
            if allowed == [EOS] or not allowed:
                break
            matcher.consume_token(next(i for i in allowed if i != EOS))


def test_a_tokenizer_with_a_vocabulary_can_be_copied_and_saved(tokenizer: Small4Tokenizer, tmp_path: Path) -> None:
    assert fits(tokenizer, ["yes"], "yes")
    assert fits(copy.deepcopy(tokenizer), ["yes"], "yes")
    assert fits(pickle.loads(pickle.dumps(tokenizer)), ["yes"], "yes")
    tokenizer.save_pretrained(tmp_path)


@pytest.mark.parametrize("bound", [19.58, -13.86, 0, 1e9, -3.8599999999999994])
def test_an_excluded_bound_is_never_written(tokenizer: Small4Tokenizer, bound: float) -> None:
    for keyword, outside, inside in (("exclusiveMinimum", -1, 1), ("exclusiveMaximum", 1, -1)):
        schema = {"type": "number", keyword: bound}
        for text in (json.dumps(bound), f"{bound:.30f}", json.dumps(bound + outside)):
            assert not fits(tokenizer, schema, text)
        assert fits(tokenizer, schema, json.dumps(bound + inside))
    assert Grammar.read({"type": "number", "exclusiveMinimum": 1, "maximum": 1.0000000001}).kind == "json_schema"
