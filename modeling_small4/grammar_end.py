"""The shortest way to a valid end of an answer, from the engine's state: so that an answer can be closed before tokens
run out.

A depth-first search over bytes and special tokens that tries what closes first. It need not find the very shortest way,
and gives up after a bounded effort. Must not know: torch, schemas, models.
"""

from .grammar import Matcher, Vocabulary
from .reasoning import ARGS, TOOL_CALLS

STEPS = 2000  # tries, after which the search gives up
BYTES = 8192  # longest end looked for
# What closes a JSON value comes first, then what is short; a backslash begins an escape, so it comes last.
_ORDER = b"\"}],:0123456789 -tfn.@/abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ[{'+*=_()<>;!?#$%&|~^`\n\t\r"
_FREE = b"aZ~}"  # all of them may follow in free text only
_TEXT = (
    b"aA0-@."  # what is written in free text that may not end yet, in turns, for some pattern may wait for one of them
)


def shortest_end(matcher: Matcher, vocabulary: Vocabulary) -> list[int] | None:
    """Ids that take the answer to a valid end, [] where it is at one; None where none was found. The matcher stays as
    it is.
    """
    found = _search(matcher.deep_copy(), _symbols(vocabulary), vocabulary)
    return None if found is None else _joined(found, vocabulary)


def is_free(matcher: Matcher, vocabulary: Vocabulary) -> bool:
    """Whether any text may follow."""
    ids = [vocabulary.byte_ids[byte] for byte in _FREE]
    return all(index is not None and matcher.validate_tokens([index]) for index in ids)


def _symbols(vocabulary: Vocabulary) -> list[int]:
    order = [*_ORDER, *(byte for byte in range(256) if byte not in _ORDER)]
    ids = [vocabulary.byte_ids[byte] for byte in order]
    special = [vocabulary.control_ids[token] for token in (TOOL_CALLS, ARGS) if token in vocabulary.control_ids]
    return [*special, *(index for index in ids if index is not None)]


def _search(matcher: Matcher, symbols: list[int], vocabulary: Vocabulary) -> list[int] | None:
    path: list[int] = []
    untried: list[list[int]] = []  # of each step of the path, what else may follow there, best last
    for _ in range(STEPS):
        if matcher.is_accepting():
            return path
        options = _options(matcher, symbols, path, vocabulary) if len(path) < BYTES else []
        while not options and untried:
            matcher.rollback(1)
            path.pop()
            options = untried.pop()
        if not options:
            return None
        step = options.pop()
        untried.append(options)
        path.append(step)
        if not matcher.consume_token(step):
            return None
    return None


def _options(matcher: Matcher, symbols: list[int], path: list[int], vocabulary: Vocabulary) -> list[int]:
    """What may follow, best last; only the best few, for of many alternatives one is as good as another."""
    turn = len(path)
    if is_free(matcher, vocabulary):
        text = (*b'"', *(_TEXT[(turn + step) % len(_TEXT)] for step in range(len(_TEXT))))
        symbols = [index for byte in text if (index := vocabulary.byte_ids[byte]) is not None]
    else:
        symbols = _with_digits(symbols, path, vocabulary)
    found: list[int] = []
    for index in symbols:
        if matcher.validate_tokens([index]):
            found.append(index)
            if len(found) == 4:
                break
    return found[::-1]


def _with_digits(symbols: list[int], path: list[int], vocabulary: Vocabulary) -> list[int]:
    """The symbols with digits in an irregular turn, for some multiple may be asked for, which a regular run of digits
    may never be; and behind what else may follow once there are a few of them, as in the fractions of a second."""
    digits = [index for index in vocabulary.byte_ids[ord("0") : ord("9") + 1] if index is not None]
    turn = (len(path) * 2654435761 >> 16) % len(digits) if digits else 0
    turned, known = digits[turn:] + digits[:turn], set(digits)
    if len(path) >= 3 and set(path[-3:]) <= known:
        return [index for index in symbols if index not in known] + turned
    place = next((place for place, index in enumerate(symbols) if index in known), 0)
    rest = [index for index in symbols if index not in known]
    return rest[:place] + turned + rest[place:]


def _joined(path: list[int], vocabulary: Vocabulary) -> list[int]:
    """The same text in the tokens in which it would be written."""
    special, out, run = set(vocabulary.control_ids.values()), [], b""
    for index in [*path, None]:
        if index is not None and index not in special:
            run += vocabulary.tokens[index]
            continue
        out += _encoded(run, vocabulary)
        run = b""
        out += [] if index is None else [index]
    return out


def _encoded(text: bytes, vocabulary: Vocabulary) -> list[int]:
    try:
        ids = vocabulary.encode([text.decode()])[0] if text else []
    except UnicodeDecodeError:  # it begins within a character
        ids = []
    if b"".join(vocabulary.tokens[index] for index in ids) == text:
        return ids
    return [index for byte in text if (index := vocabulary.byte_ids[byte]) is not None]
