"""Seeded damage: values of every wrong kind at any place of a JSON tree, safetensors headers and bodies, cut and
flipped bytes, lost files.

Knows formats, not this model: what is damaged is drawn, and the answer says in words what was done.
"""

import copy
import json
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEEPEST = 100  # levels of a tree that are damaged
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
    "text with a zero": "a\0b",
    "path upwards": "../../etc/passwd",
    "empty list": [],
    "list": [1, "x", None],
    "list of lists": [[[]]],
    "empty object": {},
    "object": {"x": {"y": 1}},
}
# What keeps the kind of a value, or nearly: the errors that reach furthest into a reader.
NEAR: dict[str, Callable[[Any], Any]] = {
    "one more": lambda v: v + 1,
    "one less": lambda v: v - 1,
    "twice": lambda v: v * 2,
    "negative": lambda v: -v,
    "as a float": float,
    "as text": str,
    "as a boolean": bool,
    "in a list": lambda v: [v],
    "upper case": lambda v: v.upper(),
    "a space more": lambda v: v + " ",
    "reversed": lambda v: v[::-1],
    "one item less": lambda v: v[:-1] if isinstance(v, list) else 1 / 0,
    "an item twice": lambda v: v + v[:1],
}
Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Damage:
    """One change of one file; `what` describes it in a line. `place`: where in its JSON, () for anything else."""

    file: str
    what: str
    place: Path_ = ()


@dataclass(frozen=True)
class Change:
    """What became of a text; `data` None for a file that is gone or, in words, a folder."""

    data: bytes | None
    what: str
    place: Path_ = ()


def damage(folder: Path, seed: int | random.Random, files: Sequence[str] | None = None) -> Damage:
    """Change one file of `folder`, which one and how is drawn by `seed`. files: those it may be; default all."""
    draw = seed if isinstance(seed, random.Random) else random.Random(seed)
    name = draw.choice(sorted(files or (file.name for file in folder.iterdir() if file.is_file())))
    change = damaged(name, (folder / name).read_bytes(), draw)
    write(folder / name, change)
    return Damage(name, change.what, change.place)


def write(file: Path, change: Change) -> None:
    """Put what became of a text in the place of its file."""
    if file.exists():
        file.unlink()  # it may be a link to a sound file
    if change.data is not None:
        file.write_bytes(change.data)
    elif change.what == "a folder":
        file.mkdir()


def damaged(name: str, data: bytes, draw: random.Random) -> Change:
    """What becomes of the contents of a file with this name."""
    ways: list[Callable[[bytes, random.Random], Change]] = [_bytes]
    if name.endswith(".json"):
        ways = [_value, _value, _value, _value, _keys, _bytes]
    elif name.endswith(".safetensors"):
        ways = [_header, _header, _header, _entries, _length, _body, _bytes]
    return draw.choice(ways)(data, draw)


def places(tree: object, path: Path_ = ()) -> list[Path_]:
    """All places of a JSON value; of long lists only the beginning, of deep nesting only the upper levels."""
    out = [path] if path else []
    if len(path) == DEEPEST:
        return out
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree[:20]) if isinstance(tree, list) else ()
    for key, value in entries:
        out += places(value, (*path, key))
    return out


def at(tree: Any, place: Path_) -> Any:
    """The value at a place of a tree. Raises KeyError, IndexError or TypeError where there is none."""
    for key in place:
        tree = tree[key]
    return tree


def put(tree: object, place: Path_, value: object) -> Any:
    """The tree with another value at a place, changed in itself unless the place is the whole."""
    if not place:
        return value
    at(tree, place[:-1])[place[-1]] = value
    return tree


def draw_place(tree: object, draw: random.Random) -> Path_:
    """Each depth equally often, for there are few places near the top and many below."""
    found = places(tree)
    if not found:
        return ()
    depth = draw.choice(sorted({len(place) for place in found}))
    return draw.choice([place for place in found if len(place) == depth])


def near(value: object, draw: random.Random) -> tuple[object, str] | None:
    """A value a little beside another one; None where the drawn way does not apply."""
    way = draw.choice(sorted(NEAR))
    try:
        return NEAR[way](value), way
    except (TypeError, AttributeError, ArithmeticError, ValueError, LookupError):
        return None


def changed(tree: Any, draw: random.Random, values: dict[str, Any] | None = None) -> tuple[Any, str, Path_]:
    """A copy of a tree of objects and lists with another value at one place, or two values exchanged.

    values: those that may be put there, in words; default `PLAIN`.
    """
    tree = copy.deepcopy(tree)
    way = draw.randrange(6)
    place = draw.choice(places(tree) or [()]) if way > 3 else draw_place(tree, draw)
    where = _shown(place)
    if way == 0 and (found := near(at(tree, place), draw)) is not None:
        return put(tree, place, found[0]), f"{found[1]} at {where}", place
    if way == 1 and place:
        other = draw_place(tree, draw)
        if other[: len(place)] != place and place[: len(other)] != other:
            one, two = at(tree, place), at(tree, other)
            put(put(tree, place, two), other, one)
            return tree, f"exchanged: {where} and {_shown(other)}", place
    values = PLAIN if values is None else values
    kinds = list(values)
    if way > 3:  # of the kind of the value that stands there
        kinds = [kind for kind in kinds if type(values[kind]) is type(at(tree, place))] or kinds
    kind = draw.choice(kinds)
    return put(tree, place, copy.deepcopy(values[kind])), f"{kind} at {where}", place


def dump(tree: object) -> str:
    """JSON text of a tree in which `MARKER KIND` stands for `RAW[KIND]`."""
    text = json.dumps(tree)
    for kind, raw in RAW.items():
        text = text.replace(f'"{MARKER} {kind}"', raw)
    return text


VALUES = PLAIN | {kind: f"{MARKER} {kind}" for kind in RAW}


def _shown(place: Path_) -> str:
    return "/".join(map(str, place))[-80:] or "the whole"


def _value(data: bytes, draw: random.Random) -> Change:
    tree, what, place = changed(json.loads(data), draw, VALUES)
    return Change(dump(tree).encode(), what, place)


def _keys(data: bytes, draw: random.Random) -> Change:
    tree = json.loads(data)
    place = draw_place(tree, draw)
    holder, way = at(tree, place[:-1]), draw.choice(("removed", "renamed", "twice", "value wrapped"))
    key = place[-1] if place else None
    what = f"{way}: {_shown(place)}"
    if not place:
        return Change(data, "nothing")
    if way == "removed" or not isinstance(holder, dict):
        del holder[key]
    elif way == "renamed":
        holder[f"{key}_"] = holder.pop(key)
    elif way == "value wrapped":
        holder[key] = [holder[key]]
    if way == "twice" and isinstance(tree, dict):
        return Change(("{" + json.dumps(str(place[0])) + ": 1, " + json.dumps(tree)[1:]).encode(), what, place)
    return Change(json.dumps(tree).encode(), what, place)


def _bytes(data: bytes, draw: random.Random) -> Change:
    out = bytearray(data)
    way = draw.choice(("cut", "emptied", "flipped", "foreign", "byte order mark", "no UTF-8", "removed", "a folder"))
    reach = max(1, min(len(out), 4000))
    if way == "cut":
        out = out[: draw.randrange(max(1, len(out)))]
    elif way == "emptied":
        out = bytearray()
    elif way == "flipped" and out:
        out[draw.randrange(reach)] ^= 1 << draw.randrange(8)
    elif way == "foreign":
        out = bytearray(b"\x80\x04PK\x03\x04 no such format")
    elif way == "byte order mark":
        out = bytearray(b"\xef\xbb\xbf") + out
    elif way == "no UTF-8":
        place = draw.randrange(reach)
        out[place:place] = b"\xff\xfe"
    return Change(None if way in ("removed", "a folder") else bytes(out), way)


def _length(data: bytes, draw: random.Random) -> Change:
    own = struct.unpack("<Q", data[:8])[0]
    length = draw.choice((0, 1, 7, 2**31, 2**63, 2**64 - 1, own - 1, own + 1, own + 8))
    return Change(struct.pack("<Q", length) + data[8:], f"header length {length}")


def _header(data: bytes, draw: random.Random) -> Change:
    header, body = parts(data)
    tree, what, place = changed(header, draw, VALUES)
    return Change(joined(dump(tree), body), f"header: {what}", place)


def _entries(data: bytes, draw: random.Random) -> Change:
    """Entries of a header that are sound by themselves and wrong together, or in their order only."""
    header, body = parts(data)
    names = [name for name in header if name != "__metadata__"]
    one, two = (draw.choice(names) for _ in range(2))
    way = draw.choice(("offsets", "dtype", "shape", "name", "order", "twice", "flat", "spaces", "gap", "nothing"))
    if way in ("offsets", "dtype", "shape"):
        key = "data_offsets" if way == "offsets" else way
        header[one][key], header[two][key] = header[two][key], header[one][key]
    elif way == "name":
        header[one + "_"] = header.pop(one)
    elif way == "order":
        draw.shuffle(names)
        header = {name: header[name] for name in ("__metadata__", *names) if name in header}
    elif way == "flat":
        header[one]["shape"] = [1, *header[one]["shape"]]
    elif way == "gap":
        header.pop(one)
    text = json.dumps(header)
    if way == "twice":
        text = "{" + f"{json.dumps(one)}: {json.dumps(header[two])}, " + text[1:]
    elif way == "spaces":
        text = draw.choice(("{text}" + " " * 64, "\n{text}", "{text}\n", "{text}\0\0")).format(text=text)
    return Change(joined(text, body), f"header: {way} of {one[-60:]} and {two[-60:]}")


def _body(data: bytes, draw: random.Random) -> Change:
    header, body = parts(data)
    way = draw.choice(("cut", "longer", "flipped", "not a number"))
    out = bytearray(body)
    if way == "cut":
        out = out[: draw.randrange(max(1, len(out)))]
    elif way == "longer":
        out += bytes(draw.randrange(1, 20))
    elif way == "flipped" and out:
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    elif way == "not a number" and len(out) >= 8:
        begin = draw.randrange(0, len(out) - 7, 4)
        out[begin : begin + 4] = b"\xff" * 4
    return Change(joined(json.dumps(header), bytes(out)), f"body: {way}")


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a sound safetensors file, and what follows it."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: str, body: bytes) -> bytes:
    """A safetensors file of this header."""
    text = header.encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body
