"""Seeded damage to a checkpoint folder: values of every wrong kind at any place of a JSON file or header, cut and
flipped bytes, lost files.

Knows formats, not this model: what is damaged is drawn, and `Damage.what` says it in words.
"""

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKER = "@@RAW@@"  # stands in a JSON text for what json.dumps would not write
RAW = {
    "NaN": "NaN",
    "infinity": "1e400",
    "24 digits": "9" * 24,
    "5000 digits": "9" * 5000,
    "half a surrogate pair": '"\\ud800"',
    "deep nesting": "[" * 3000 + "]" * 3000,
}
PLAIN: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "minus one": -1,
    "a half": 0.5,
    "a million million": 10**12,
    "empty text": "",
    "text": "x",
    "text of 5000 letters": "x" * 5000,
    "text of two lines": "first\nsecond",
    "path upwards": "../../etc/passwd",
    "empty list": [],
    "list": [1, "x", None],
    "list of lists": [[[]]],
    "empty object": {},
    "object": {"x": {"y": 1}},
}


@dataclass(frozen=True)
class Damage:
    """One change of one file; `what` describes it in a line."""

    file: str
    what: str


def damage(folder: Path, seed: int, files: list[str] | None = None) -> Damage:
    """Change one file of `folder`, which one and how is drawn by `seed`. files: those it may be; default all."""
    draw = random.Random(seed)
    name = draw.choice(sorted(files or (file.name for file in folder.iterdir() if file.is_file())))
    file = folder / name
    ways: list[Callable[[Path, random.Random], str]] = [_bytes]
    if name.endswith(".json"):
        ways = [_value, _value, _value, _value, _keys, _bytes]
    elif name.endswith(".safetensors"):
        ways = [_header, _header, _header, _length, _bytes]
    return Damage(name, draw.choice(ways)(file, draw))


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places of a JSON value; of long lists only the beginning."""
    out = [path] if path else []
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree[:20]) if isinstance(tree, list) else ()
    for key, value in entries:
        out += _places(value, (*path, key))
    return out


def _draw_place(tree: Any, draw: random.Random) -> tuple[Any, ...]:
    """Each depth equally often, for there are few places near the top and many below."""
    places = _places(tree)
    if not places:
        return ()
    depth = draw.choice(sorted({len(place) for place in places}))
    return draw.choice([place for place in places if len(place) == depth])


def _changed(tree: Any, draw: random.Random) -> tuple[str, str]:
    """The text of a JSON value with another value at one place, and what was done."""
    place = _draw_place(tree, draw)
    kind = draw.choice([*RAW, *PLAIN])
    value = MARKER if kind in RAW else PLAIN[kind]
    if not place:
        tree = value
    else:
        holder = tree
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = value
    text = json.dumps(tree)
    return text.replace(f'"{MARKER}"', RAW.get(kind, "")), f"{kind} at {'/'.join(map(str, place))[-80:]}"


def _value(file: Path, draw: random.Random) -> str:
    text, what = _changed(json.loads(file.read_bytes()), draw)
    file.write_text(text)
    return what


def _keys(file: Path, draw: random.Random) -> str:
    tree = json.loads(file.read_bytes())
    place = _draw_place(tree, draw)
    holder = tree
    for key in place[:-1]:
        holder = holder[key]
    way = draw.choice(("removed", "renamed", "twice", "value wrapped"))
    key = place[-1] if place else None
    if way == "removed" or not isinstance(holder, dict):
        del holder[key]
    elif way == "renamed":
        holder[f"{key}_"] = holder.pop(key)
    elif way == "value wrapped":
        holder[key] = [holder[key]]
    if way == "twice" and isinstance(tree, dict):
        text = json.dumps(tree)
        file.write_text("{" + json.dumps(str(place[0])) + ": 1, " + text[1:])
    else:
        file.write_text(json.dumps(tree))
    return f"{way}: {'/'.join(map(str, place))[-80:]}"


def _bytes(file: Path, draw: random.Random) -> str:
    data = bytearray(file.read_bytes())
    way = draw.choice(("cut", "emptied", "flipped", "foreign", "byte order mark", "no UTF-8", "removed", "a folder"))
    reach = max(1, min(len(data), 4000))
    if way == "cut":
        data = data[: draw.randrange(max(1, len(data)))]
    elif way == "emptied":
        data = bytearray()
    elif way == "flipped" and data:
        data[draw.randrange(reach)] ^= 1 << draw.randrange(8)
    elif way == "foreign":
        data = bytearray(b"\x80\x04PK\x03\x04 no such format")
    elif way == "byte order mark":
        data = bytearray(b"\xef\xbb\xbf") + data
    elif way == "no UTF-8":
        place = draw.randrange(reach)
        data[place:place] = b"\xff\xfe"
    if way in ("removed", "a folder"):
        file.unlink()
        if way == "a folder":
            file.mkdir()
    else:
        file.write_bytes(data)
    return way


def _length(file: Path, draw: random.Random) -> str:
    data = bytearray(file.read_bytes())
    length = draw.choice((0, 1, 7, 2**31, 2**63, 2**64 - 1, struct.unpack("<Q", data[:8])[0] + draw.choice((-1, 1, 8))))
    data[:8] = struct.pack("<Q", length)
    file.write_bytes(data)
    return f"header length {length}"


def _header(file: Path, draw: random.Random) -> str:
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    text, what = _changed(json.loads(data[8 : 8 + length]), draw)
    new = text.encode()
    new += b" " * (-len(new) % 8)
    file.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])
    return f"header: {what}"
