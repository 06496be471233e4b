"""Checks that a dict is a JSON schema (draft 7), keyword by keyword as the draft's meta-schema says.

It checks schemas, not instances against schemas. Must not know: tools, messages.
"""

import re
from collections.abc import Callable
from typing import Any

_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


def check_json_schema(schema: Any, where: str = "schema") -> None:
    """Raises ValueError naming the place, what stands there and what may stand there."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise ValueError(f"{where} must be an object or a boolean, but is {schema!r}.")
    for keyword, value in schema.items():
        if keyword in _CHECKS:
            _CHECKS[keyword](value, f"{where}.{keyword}")


def _must(condition: bool, where: str, what: str, value: Any) -> None:
    if not condition:
        raise ValueError(f"{where} must be {what}, but is {value!r}.")


def _string(value: Any, where: str) -> None:
    _must(isinstance(value, str), where, "a string", value)


def _boolean(value: Any, where: str) -> None:
    _must(isinstance(value, bool), where, "true or false", value)


def _array(value: Any, where: str) -> None:
    _must(isinstance(value, list), where, "an array", value)


def _number(value: Any, where: str) -> None:
    _must(isinstance(value, (int, float)) and not isinstance(value, bool), where, "a number", value)


def _positive(value: Any, where: str) -> None:
    _number(value, where)
    _must(value > 0, where, "greater than 0", value)


def _count(value: Any, where: str) -> None:
    _number(value, where)
    _must(value == value and abs(value) != float("inf") and value == int(value), where, "an integer", value)
    _must(value >= 0, where, "at least 0", value)


def _pattern(value: Any, where: str) -> None:
    _string(value, where)
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{where} must be a regular expression, but {value!r} is none: {error}.") from None


def _strings(value: Any, where: str) -> None:
    _array(value, where)
    for item in value:
        _string(item, where)
    _must(len(set(value)) == len(value), where, "free of repetitions", value)


def _type(value: Any, where: str) -> None:
    if isinstance(value, str):
        _must(value in _TYPES, where, f"one of {', '.join(_TYPES)}", value)
        return
    _must(isinstance(value, list) and bool(value), where, "a type or a non-empty array of types", value)
    for item in value:
        _must(isinstance(item, str) and item in _TYPES, where, f"an array of {', '.join(_TYPES)}", value)
    _must(len(set(value)) == len(value), where, "free of repetitions", value)


def _schemas(value: Any, where: str) -> None:
    _must(isinstance(value, list) and bool(value), where, "a non-empty array of schemas", value)
    for index, item in enumerate(value):
        check_json_schema(item, f"{where}[{index}]")


def _items(value: Any, where: str) -> None:
    (_schemas if isinstance(value, list) else check_json_schema)(value, where)


def _properties(value: Any, where: str) -> None:
    _must(isinstance(value, dict), where, "an object", value)
    for name, item in value.items():
        check_json_schema(item, f"{where}.{name}")


def _pattern_properties(value: Any, where: str) -> None:
    _properties(value, where)
    for name in value:
        _pattern(name, where)


def _dependencies(value: Any, where: str) -> None:
    _must(isinstance(value, dict), where, "an object", value)
    for name, item in value.items():
        (_strings if isinstance(item, list) else check_json_schema)(item, f"{where}.{name}")


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    **dict.fromkeys(
        ("$id", "$schema", "$ref", "$comment", "title", "description", "format", "contentMediaType", "contentEncoding"),
        _string,
    ),
    **dict.fromkeys(("readOnly", "uniqueItems"), _boolean),
    **dict.fromkeys(("examples", "enum"), _array),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"), _number),
    **dict.fromkeys(("maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties"), _count),
    **dict.fromkeys(
        ("additionalItems", "contains", "additionalProperties", "propertyNames", "if", "then", "else", "not"),
        check_json_schema,
    ),
    **dict.fromkeys(("definitions", "properties"), _properties),
    **dict.fromkeys(("allOf", "anyOf", "oneOf"), _schemas),
    "multipleOf": _positive,
    "pattern": _pattern,
    "items": _items,
    "required": _strings,
    "patternProperties": _pattern_properties,
    "dependencies": _dependencies,
    "type": _type,
}
