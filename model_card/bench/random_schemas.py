"""Random JSON schemas, every one of which some instance fits: of all types, nested, with bounds, references and unions.
Knows no models.
"""

from random import Random
from typing import Any

NAMES = ("a", "name", "age", "x1", "größe", "a b", "$id", 'quote"s', "items", "type", "日本", "back\\slash")
WORDS = ("red", "green", "", "ß", 'a"b', "line\nbreak", "[TOOL_CALLS]", "</s>", "😀", "0", "null")
PATTERNS = (r"^[a-z]{1,5}$", r"^\d{3}-\d{4}$", r"^(yes|no)$", r"[A-Z]", r"^#[0-9a-f]{6}$", r"^.{2,4}$")
FORMATS = ("date", "date-time", "uuid", "ipv4", "email", "uri", "int32", "password")


def random_schema(seed: int, depth: int = 3) -> dict[str, Any]:
    """The schema of a seed; its nesting goes `depth` levels down."""
    random = Random(seed)
    definitions: dict[str, Any] = {}
    schema = _object(random, depth, definitions) if random.random() < 0.7 else _any(random, depth, definitions)
    return schema | ({"$defs": definitions} if definitions else {})


def _any(random: Random, depth: int, definitions: dict[str, Any]) -> dict[str, Any]:
    kinds = [_string, _integer, _number, _constant, _plain]
    if depth > 0:
        kinds += [_object, _object, _array, _union, _reference]
    return random.choice(kinds)(random, depth - 1, definitions)


def _plain(random: Random, depth: int, definitions: dict[str, Any]) -> dict[str, Any]:
    return random.choice(
        [{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}, {"type": ["string", "boolean"]}]
    )


def _constant(random: Random, depth: int, definitions: dict[str, Any]) -> dict[str, Any]:
    values: list[Any] = [*WORDS, 0, -7, 2.5, True, False, None, [1, "two"], {"k": []}]
    return (
        {"enum": random.sample(values, random.randint(1, 5))}
        if random.random() < 0.7
        else {"const": random.choice(values)}
    )


def _string(random: Random, depth: int, definitions: dict[str, Any]) -> dict[str, Any]:
    least = random.randint(0, 6)
    return {"type": "string"} | random.choice(
        [{}, {"maxLength": 12}, {"minLength": least, "maxLength": least + random.randint(0, 9)},
         {"pattern": random.choice(PATTERNS)}, {"format": random.choice(FORMATS)}]
    )  # fmt: skip


def _integer(random: Random, depth: int, definitions: dict[str, Any]) -> dict[str, Any]:
    least = random.randint(-200, 200)
    return {"type": "integer"} | random.choice(
        [{}, {"minimum": least}, {"exclusiveMaximum": least},
        {"minimum": least, "maximum": least + random.randint(0, 300)},
         {"multipleOf": random.randint(2, 7), "minimum": 0}]
    )  # fmt: skip


def _number(random: Random, depth: int, definitions: dict[str, Any]) -> dict[str, Any]:
    least = round(random.uniform(-50, 50), 2)
    return {"type": "number"} | random.choice(
        [{}, {"minimum": least}, {"exclusiveMinimum": least, "maximum": least + 10}]
    )


def _array(random: Random, depth: int, definitions: dict[str, Any]) -> dict[str, Any]:
    least = random.randint(0, 3)
    schema: dict[str, Any] = {"type": "array", "items": _any(random, depth, definitions)}
    if random.random() < 0.5:
        schema |= {"minItems": least, "maxItems": least + random.randint(0, 3)}
    if random.random() < 0.2:
        schema["prefixItems"] = [_any(random, depth, definitions) for _ in range(random.randint(1, 2))]
    return schema


def _object(random: Random, depth: int, definitions: dict[str, Any]) -> dict[str, Any]:
    names = random.sample(NAMES, random.randint(1, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _any(random, depth, definitions) for name in names},
    }
    schema["required"] = [name for name in names if random.random() < 0.7]
    chance = random.random()
    if chance < 0.3:
        schema["additionalProperties"] = False
    elif chance < 0.4:
        schema["additionalProperties"] = _string(random, depth, definitions)
    return schema


def _union(random: Random, depth: int, definitions: dict[str, Any]) -> dict[str, Any]:
    if random.random() < 0.3:  # told apart by a constant, as pydantic writes it
        return {"oneOf": [_tagged(random, depth, definitions, tag) for tag in ("cat", "dog")]}
    return {"anyOf": [_any(random, depth, definitions) for _ in range(random.randint(2, 3))]}


def _tagged(random: Random, depth: int, definitions: dict[str, Any], tag: str) -> dict[str, Any]:
    properties = {"kind": {"const": tag, "type": "string"}, tag: _any(random, depth, definitions)}
    return {"type": "object", "properties": properties, "required": ["kind"]}


def _reference(random: Random, depth: int, definitions: dict[str, Any]) -> dict[str, Any]:
    name = f"D{len(definitions)}"
    definitions[name] = {}  # its place, for those made inside
    if random.random() < 0.3:  # a list that holds itself
        inner = {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}
        definitions[name] = {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "next": inner},
            "required": ["value", "next"],
        }
    else:
        definitions[name] = _any(random, depth, definitions)
    return {"$ref": f"#/$defs/{name}"}
