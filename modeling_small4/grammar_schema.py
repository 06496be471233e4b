"""JSON schemas for grammars: checked, made definite, and refused with the path of what is impossible or cannot be
enforced.

The engine (llguidance) says whether it can enforce a schema, this file where it cannot. Must not know: tokens, tools,
decoding.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .chat_tools import check_json_schema
from .files_reading import shown

Schema = Mapping[str, Any]
Verdict = Callable[[dict[str, Any]], str]  # the engine's objection to a schema, "" for none

SPELLING = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}  # as the chat format writes JSON
DEEPEST = 64  # schemas within schemas
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_ONE = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames",
        "unevaluatedProperties", "unevaluatedItems")  # fmt: skip
_LIST = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
_MAP = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_BESIDE = ("$ref", "allOf", "anyOf", "oneOf", "patternProperties", "additionalProperties", "unevaluatedProperties")


def prepare_schema(schema: object, verdict: Verdict, where: str = "schema", lenient: bool = False) -> dict[str, Any]:
    """A schema as the engine is given it.

    Properties that `properties` does not name are left out of answers, unless the schema mentions
    `additionalProperties` or builds the object from several schemas. A `format` that the engine does not know is an
    annotation, as the standard has it.

    Args:
        schema: JSON schema (draft 7 to 2020-12).
        verdict: the engine's objection to a schema.
        where: what the schema is called in errors.
        lenient: leave out what cannot be enforced, instead of refusing it.

    Raises:
        ValueError: no JSON schema, an impossible one, or one that cannot be enforced; with the path to what is wrong.
    """
    if schema is True or schema == {}:
        return {}
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where} must be a JSON schema (a dict), but is {shown(schema)}.")
    _check_plain_json(schema, where)
    check_json_schema(schema, where)
    prepared = _definite(schema, closing="allOf" not in json.dumps(schema))
    endless = _endless(prepared, where)
    if endless is not None:
        raise ValueError(f"{endless} requires itself, so no answer could ever end.")
    options = {"x-guidance": SPELLING | ({"lenient": True} if lenient else {})}
    objection = verdict(prepared | options)
    if objection:
        shared = {keyword: prepared[keyword] for keyword in ("$defs", "definitions") if keyword in prepared}
        path, objection = _blame(prepared, objection, lambda part: verdict(shared | part | options), where)
        raise ValueError(f"{path} {_in_plain_words(objection)}")
    return prepared | options


def largest_part(schema: Schema) -> int:
    """About how many characters the shortest instance of any schema within this one has: as much may have to follow
    once a part that was optional has begun."""
    return max((_least(part, schema, 8) for part, _ in _everything(schema, "")), default=0)


def _least(schema: object, root: Schema, depth: int) -> int:
    """Characters of a short instance, references followed `depth` levels down."""
    if not isinstance(schema, Mapping) or depth == 0:
        return 2
    inner = [value for value in (schema.get("const"), *(schema.get("enum") or ())) if value is not None]
    if inner:
        return min(len(json.dumps(value)) for value in inner)
    size = 2 + int(schema.get("minLength", 0))
    if isinstance(schema.get("$ref"), str):
        size = max(size, _least(_target(root, schema["$ref"]), root, depth - 1))
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list) and schema[keyword]:
            size = max(size, min(_least(each, root, depth - 1) for each in schema[keyword]))
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        size += len(json.dumps(name)) + 4 + _least(properties.get(name), root, depth - 1)
    return size + int(schema.get("minItems", 0)) * (2 + _least(schema.get("items"), root, depth - 1))


def _check_plain_json(schema: Any, where: str) -> None:
    """Raises ValueError for what is not JSON, or nested too deeply to be read."""
    parts = [(schema, where)]
    for _ in range(3 * DEEPEST):  # a schema lies at most three levels of JSON below the one around it
        parts = [
            (value, f"{path}.{key}" if isinstance(part, Mapping) else f"{path}[{key}]")
            for part, path in parts
            for key, value in (part.items() if isinstance(part, Mapping) else enumerate(part))
            if isinstance(value, (Mapping, list))
        ]
        if not parts:
            break
    else:
        raise ValueError(f"{where} is nested more than {DEEPEST} schemas deep; make it flatter.")
    try:
        json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is not JSON: {error}.") from None


def _definite(schema: object, closing: bool) -> Any:
    """A copy without unknown formats and keywords that ask for nothing, its objects closed where that changes nothing
    said.
    """
    if not isinstance(schema, Mapping):
        return schema
    out = dict(schema)
    if out.get("format") not in FORMATS:
        out.pop("format", None)
    for keyword in ("uniqueItems", "minItems", "minLength", "minProperties"):
        if not out.get(keyword, True):
            del out[keyword]
    if out.get("type") != "integer":
        _make_inclusive(out)
    mixed = "properties" in out and any(keyword in out for keyword in ("anyOf", "oneOf", "$ref"))
    for keyword, value in schema.items():
        if keyword in _LIST and isinstance(value, list):
            out[keyword] = [_definite(each, closing and not mixed) for each in value]
        elif keyword in _ONE:
            out[keyword] = _definite(value, closing)
        elif keyword in _MAP and isinstance(value, Mapping):
            out[keyword] = {name: _definite(each, closing) for name, each in value.items()}
    named = set(out.get("required", ())) <= set(out.get("properties", ()))
    if closing and "properties" in out and named and not any(keyword in out for keyword in _BESIDE):
        out["additionalProperties"] = False
    return out


def _make_inclusive(schema: dict[str, Any]) -> None:
    """Bounds that are excluded become the nearest ones that are not, a billionth further in: digits without end, which
    the engine allows, would be read as the bound itself. Where there is no such room, they stay."""
    for exclusive, inclusive, side in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        bound = schema.get(exclusive)
        if not isinstance(bound, (int, float)) or isinstance(bound, bool):
            continue
        near = bound + side * max(1.0, abs(bound)) * 1e-9
        other = schema.get(
            "maximum" if side > 0 else "minimum", schema.get("exclusiveMaximum" if side > 0 else "exclusiveMinimum")
        )
        if math.isfinite(near) and (other is None or side * (other - near) > 0):
            schema[inclusive] = (max if side > 0 else min)(schema.get(inclusive, near), near)
            del schema[exclusive]


def _children(schema: Schema, where: str) -> Iterator[tuple[Any, str]]:
    for keyword, value in schema.items():
        if keyword in _MAP and isinstance(value, Mapping):
            yield from ((each, f"{where}.{keyword}.{name}") for name, each in value.items())
        elif keyword in _LIST and isinstance(value, list):
            yield from ((each, f"{where}.{keyword}[{index}]") for index, each in enumerate(value))
        elif keyword in _ONE:
            yield value, f"{where}.{keyword}"


def _blame(schema: Schema, objection: str, verdict: Verdict, where: str) -> tuple[str, str]:
    """The path of the innermost schema that is refused by itself too, and why. `verdict` knows the definitions."""
    for child, path in _children(schema, where):
        if isinstance(child, Mapping):
            reason = verdict(dict(child))
            if reason and ("does not exist" in reason) <= ("does not exist" in objection):
                return _blame(child, reason, verdict, path)
    return where, objection


def _in_plain_words(objection: str) -> str:
    for engines, ours in (
        ("Unsatisfiable schema:", "is impossible:"),
        ("Unimplemented keys:", "cannot be enforced: unsupported are"),
    ):
        if objection.startswith(engines):
            return ours + objection.removeprefix(engines)
    return f"cannot be enforced: {objection}"


def _endless(root: dict[str, Any], where: str) -> str | None:
    """The path of a schema all of whose instances contain another instance of it, and so have no end; None if there is
    none.
    """
    ending: set[str] = set()  # references whose target has an instance that ends
    references = {part["$ref"] for part, _ in _everything(root, where) if isinstance(part.get("$ref"), str)}
    while True:
        new = {each for each in references - ending if _ends(_target(root, each), ending)}
        if not new:
            break
        ending |= new
    if _ends(root, ending):
        return None
    return next(path for part, path in _everything(root, where) if part.get("$ref", None) in references - ending)


def _everything(schema: object, where: str) -> Iterator[tuple[Schema, str]]:
    if isinstance(schema, Mapping):
        yield schema, where
        for child, path in _children(schema, where):
            yield from _everything(child, path)


def _target(root: object, reference: str) -> Any:
    """What a reference within the schema points to; True, which allows anything, for one that points elsewhere."""
    if not reference.startswith("#"):
        return True
    part = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(part, Mapping) and step in part:
            part = part[step]
        elif isinstance(part, list) and step.isdecimal() and int(step) < len(part):
            part = part[int(step)]
        else:
            return True
    return part


def _ends(schema: object, ending: set[str]) -> bool:
    """Whether some instance ends, given that of references only those in `ending` have one that does."""
    if not isinstance(schema, Mapping):
        return True
    if isinstance(schema.get("$ref"), str) and schema["$ref"] not in ending:
        return False
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list) and not any(_ends(each, ending) for each in schema[keyword]):
            return False
    if not all(_ends(each, ending) for each in schema.get("allOf", ())):
        return False
    kinds = schema.get("type")
    if set([kinds] if isinstance(kinds, str) else kinds or ("null",)) - {"object", "array"}:
        return True
    properties = schema.get("properties", {})
    if kinds != "array" and not all(_ends(properties.get(name), ending) for name in schema.get("required", ())):
        return False
    least = schema.get("minItems", 0)
    if kinds == "object" or not least:
        return True
    fixed = schema.get("prefixItems", ())
    rest = schema.get("items") if least > len(fixed) and not isinstance(schema.get("items"), list) else True
    return all(_ends(each, ending) for each in [*fixed[: int(least)], rest])
