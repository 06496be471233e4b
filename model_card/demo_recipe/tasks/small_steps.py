"""Thoughts in small steps, as training shows them: of puzzles and programs where a thought in few words asks too much
at once.

    Which is the largest of 4, 17, 9?          4,17:17 17,9:17                  each comparison, both numbers side by side
    What is the third letter of "cat"?         1c 2a 3t
                                               3t                               the number first: what is asked for stands behind it
    b = a + 4                                  b=a+4=3+4=7                      the expression, then the values in it, then the result
    if a > b: ... else: ...                    a>b: 3>7: no
                                               else: b-a=7-3=4

Programs are read by Python's own `ast`; the thought depends on nothing but their text. Knows nothing of tokens or
models.
"""  # noqa: E501

import ast
from collections.abc import Sequence
from typing import Any

from model_card.demo_recipe.tasks.puzzles import ORDINALS, counted, numbered

SIGNS: dict[type, str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Lt: "<", ast.Gt: ">"}


def puzzle(what: Sequence[Any]) -> str | None:
    """The thought of a puzzle by what it asks (the key of its item), or None where the one in few words is kept."""
    match what:
        case ("reverse", str(word)):
            return f"{letters(word)}\n{letters(word, 1, -1)}"
        case ("letter", str(which), str(word)):
            place = len(word) - 1 if which == "last" else ORDINALS.index(which)
            return f"{letters(word)}\n{place + 1}{word[place]}"
        case ("count", str(word), str(letter)):
            return f"{letter}: {counted(word, letter)}"
        case ("max" | "min", [*numbers]):
            return best(numbers, what[0] == "max")
        case ("sort", bool(down), [*numbers]):
            return sorting(numbers, down)
    return None


def letters(word: str, first: int = 1, step: int = 1) -> str:
    """`1c 2a 3t`; from the end, with a step of -1, `3t 2a 1c`."""
    return " ".join([f"{i}{letter}" for i, letter in enumerate(word, first)][::step])


def best(numbers: Sequence[int], largest: bool) -> str:
    """Each number against the best before it: `4,17:17 17,9:17`."""
    pick, so_far, steps = max if largest else min, numbers[0], []
    for number in numbers[1:]:
        steps.append(f"{so_far},{number}:{pick(so_far, number)}")
        so_far = pick(so_far, number)
    return " ".join(steps)


def sorting(numbers: Sequence[int], down: bool = False) -> str:
    """One pick after the other: the comparisons that find it, then the pick and what is left."""
    left, lines = list(numbers), []
    while len(left) > 1:
        lines.append(best(left, down))
        pick = max(left) if down else min(left)
        left.remove(pick)
        lines.append(f"{pick}: {' '.join(map(str, left))}")
    return "\n".join(lines)


def program(code: str) -> str:
    """What each line of one of `programs`' programs does, as it runs."""
    values: dict[str, Any] = {}
    return "\n".join(line for statement in ast.parse(code).body for line in _run(statement, values))


def _run(statement: ast.stmt, values: dict[str, Any]) -> list[str]:
    match statement:
        case ast.Assign(targets=[ast.Name(name)], value=ast.BinOp() as expression):
            worked, values[name] = _worked(expression, values)
            return [f"{name}={worked}"]
        case ast.Assign(targets=[ast.Name(name)], value=value):
            values[name] = ast.literal_eval(value)
            return [f"{name}={values[name]}"] if isinstance(values[name], int) else []
        case ast.If(
            test=ast.Compare(left=ast.Name(left), ops=[sign], comparators=[ast.Name(right)]), body=body, orelse=other
        ):
            a, b, shown = values[left], values[right], SIGNS[type(sign)]
            true = a < b if shown == "<" else a > b
            lines = [line for each in (body if true else other) for line in _run(each, values)]
            lines[0] = f"{'if' if true else 'else'}: {lines[0]}"
            return [f"{left}{shown}{right}: {a}{shown}{b}: {'yes' if true else 'no'}", *lines]
        case ast.For(target=ast.Name(index), iter=ast.Call(args=[ast.Constant(int(times))]), body=body):
            lines = []
            for values[index] in range(times):
                lines += [f"{index}={values[index]} {line}" for each in body for line in _run(each, values)]
            return lines
        case ast.AugAssign(target=ast.Name(name), value=value):
            before, added = values[name], _value(value, values)
            values[name] = before + added
            return [f"{name}={before}+{added}={values[name]}"]
        case ast.Expr(ast.Call(args=[printed])):
            return [_printed(printed, values)]
    raise ValueError(f"no thought for the line {ast.unparse(statement)!r}; allowed are those that `programs` writes")


def _printed(printed: ast.expr, values: dict[str, Any]) -> str:
    match printed:
        case ast.BinOp():
            return _worked(printed, values)[0]
        case ast.Name(name):
            return f"{name}={values[name]}"
        case ast.Subscript(value=ast.Name(name), slice=place):
            held, index = values[name], ast.literal_eval(place)
            if index == -1:
                return str(held[-1]) if isinstance(held, list) else f"{letters(held)}\n{len(held)}{held[-1]}"
            if isinstance(held, list):
                return " ".join(f"{i}:{number}" for i, number in enumerate(held)) + f"\n{index}:{held[index]}"
            return f"{letters(held, first=0)}\n{index}{held[index]}"
        case ast.Call(func=ast.Attribute(value=ast.Name(name)), args=[ast.Constant(str(letter))]):
            return f"{letter}: {counted(values[name], letter)}"
        case ast.Call(func=ast.Name(how), args=[ast.Name(name)]):
            return _of_all(how, values[name])
    raise ValueError(f"no thought for {ast.unparse(printed)!r}; allowed is what `programs` prints")


def _of_all(how: str, held: Any) -> str:
    if how == "len":
        return numbered(held) if isinstance(held, str) else " ".join(f"{each}:{i}" for i, each in enumerate(held, 1))
    if how == "sum":
        totals = [sum(held[:i]) for i in range(1, len(held) + 1)]
        return "\n".join(f"{a}+{b}={c}" for a, b, c in zip(totals, held[1:], totals[1:], strict=False))
    return sorting(held) if how == "sorted" else best(held, how == "max")


def _worked(expression: ast.BinOp, values: dict[str, Any]) -> tuple[str, int]:
    """`a*b=3x4=12`, and its value."""
    a, b, sign = _value(expression.left, values), _value(expression.right, values), SIGNS[type(expression.op)]
    result = a + b if sign == "+" else a - b if sign == "-" else a * b
    shown = ast.unparse(expression).replace(" ", "")
    return f"{shown}={a}{'x' if sign == '*' else sign}{b}={result}", result


def _value(operand: ast.expr, values: dict[str, Any]) -> int:
    return int(values[operand.id] if isinstance(operand, ast.Name) else ast.literal_eval(operand))
