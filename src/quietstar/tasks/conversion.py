"""Steps from data sets that carry their own: GSM8K's calculator notes, and the equations of arithmetic word problems.

Each row becomes a `Problem` whose thought is a list of equations such as `48/2=24, 48+24=72`, or is left out with the
reason counted: a note that is no equation, an answer that the last equation does not give. Knows rows; knows nothing
about files or models.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from quietstar.errors import QuietStarError
from quietstar.tasks.problem import TRAIN, Problem

Row = dict[str, Any]
_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_INVERSE = {  # a (sign) x = c and x (sign) b = c, solved for x
    "+": ("{c}-{a}", "{c}-{b}"),
    "-": ("{a}-{c}", "{c}+{b}"),
    "*": ("{c}/{a}", "{c}/{b}"),
    "/": ("{a}/{c}", "{c}*{b}"),
}


class Unusable(ValueError):
    """Why a row gives no problem; counted by its message."""


def number(value: float) -> str:
    """A number as people write it: no decimals where it is whole, at most six elsewhere."""
    return str(int(value)) if value == int(value) else f"{value:.6f}".rstrip("0")


def equations(expression: str) -> tuple[list[str], float]:
    """The steps of an arithmetic expression, innermost and left first, and its value.

    Example:
        >>> equations("((13.0+5.0)-10.0)")
        (['13+5=18', '18-10=8'], 8.0)

    Raises:
        Unusable: anything but numbers, the four signs and brackets; division by zero.
    """
    steps: list[str] = []

    def value(node: ast.AST) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            return float(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if not isinstance(node, ast.BinOp) or type(node.op) not in _SIGNS:
            raise Unusable("not an arithmetic expression")
        left, right = value(node.left), value(node.right)
        sign = _SIGNS[type(node.op)]
        if sign == "/" and right == 0:
            raise Unusable("division by zero")
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left / (right or 1)}[sign]
        steps.append(f"{number(left)}{sign}{number(right)}={number(result)}")
        return result

    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unusable("not an arithmetic expression") from error
    return steps, value(tree.body)


def solved(equation: str) -> str:
    """The expression that gives x in an equation with one x, such as `X=(2+3)*4`, `70-x=27` or `x/3=5`.

    Raises:
        Unusable: x stands elsewhere, or more than once.
    """
    text = equation.replace(" ", "").lower()
    if found := re.fullmatch(r"x=([^x]+)|([^x]+)=x", text):
        return found[1] or found[2]
    number_ = r"(\d+(?:\.\d+)?)"
    if found := re.fullmatch(rf"{number_}([-+*/])x={number_}", text):
        return _INVERSE[found[2]][0].format(a=found[1], c=found[3])
    if found := re.fullmatch(rf"x([-+*/]){number_}={number_}", text):
        return _INVERSE[found[1]][1].format(b=found[2], c=found[3])
    raise Unusable("the unknown is not alone in the equation")


def _problem(task: str, prompt: str, steps: list[str], answer: float) -> Problem:
    if not steps:
        raise Unusable("no step")
    text = re.sub(r"\s+([.?,!])", r"\1", " ".join(prompt.split()))
    return Problem(task, TRAIN, len(steps), text, ", ".join(steps), number(answer))


def _from_expression(task: str, prompt: str, expression: str, answer: float) -> Problem:
    steps, value = equations(expression)
    if abs(value - answer) > 1e-6:
        raise Unusable("the equation does not give the answer")
    return _problem(task, prompt, steps, value)


def gsm8k(row: Row) -> Problem:
    """GSM8K: `question` and `answer` with notes `<<48/2=24>>` and a last line `#### 72`."""
    text, _, last = row["answer"].rpartition("####")
    steps = [note.replace(" ", "").replace("$", "") for note in re.findall(r"<<([^<>]*)>>", text)]
    if any(step.count("=") != 1 for step in steps):
        raise Unusable("a note is no equation")
    answer = float(last.strip().replace(",", ""))
    if not steps or steps[-1].split("=")[1] != number(answer):
        raise Unusable("the last note does not give the answer")
    return _problem("gsm8k", row["question"], steps, answer)


def svamp(row: Row) -> Problem:
    """SVAMP: `Body`, `Question`, `Equation`, `Answer`."""
    body = row["Body"].strip()
    body += "" if body.endswith((".", "?", ",", "!")) else "."
    return _from_expression("svamp", f"{body} {row['Question']}", row["Equation"], float(row["Answer"]))


def mawps(row: Row) -> Problem:
    """MultiArith, AddSub and SingleEq: `sQuestion`, `lEquations`, `lSolutions`."""
    if len(row["lEquations"]) != 1:
        raise Unusable("more than one equation")
    return _from_expression("mawps", row["sQuestion"], solved(row["lEquations"][0]), float(row["lSolutions"][0]))


FORMATS: dict[str, Callable[[Row], Problem]] = {"gsm8k": gsm8k, "svamp": svamp, "mawps": mawps}


def convert(rows: Iterable[Row], form: str, left_out: Counter[str]) -> Iterator[Problem]:
    """Problems from rows of a data set in one of `FORMATS`; reasons for rows that give none are counted in `left_out`.

    Raises:
        QuietStarError: unknown format, or a row without the fields of its format.
    """
    if form not in FORMATS:
        raise QuietStarError(f"format must be one of {', '.join(FORMATS)}; got {form!r}")
    for line, row in enumerate(rows, 1):
        try:
            yield FORMATS[form](row)
        except Unusable as reason:
            left_out[str(reason)] += 1
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise QuietStarError(f"row {line} is not of the format {form}: {error!r}") from error
