r"""OlympiadBench's own rule, which needs no model.

Source: `inference/judge.py` and `inference/code/math_judger.py` of github.com/OpenBMB/OlympiadBench (commit ba5b26a),
for English. README.md lists its known bugs, which are kept. Formulas are read by SymPy's LaTeX grammar, as there.

The authors' program hands over the model's answer where its function expects the gold answer. Here they have their
names, and what is done to the first of the two is done to the model's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sympy import Expr

PHRASE = "So the final answer is "
TOLERANCE = 1e-8  # absolute, where a row has no error

_SPELLINGS = {  # in this order
    r"\left": "",
    r"\right": "",
    "∶": ":",
    "，": ",",
    "$": "",
    r"\approx": "=",
    r"\simeq": "=",
    r"\sim": "=",
    r"^\prime": "'",
    r"^{\prime}": "'",
    r"^\circ": "",
    "%": "",
}
_EDGES = "\n$,.:;^_=+`!@#$%^&*~，。"
_BOX = r"\boxed{"
_MATHS = re.compile(r"\$([^$\n]*)\$")
_UPRIGHT = re.compile(r"\\(?:mathrm|mathbf)\{~?([^}]*)\}")
_CHINESE = re.compile(r"[\u4e00-\u9fff]+")
_SLACK = 1.01
_LARGEST_EXPONENT = 1000
_NEGLIGIBLE = 1e-3  # the difference of two formulas with variables


def judge(response: str, row: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether a response is right, and the text that was judged.

    None stands for a wrong response without the phrase, a box, or a formula in its last line, of which the rule
    compares the whole text, and for one with a box that never ends.
    """
    text, is_found = stated(response)
    try:
        answer = spelled(text)
        gold = spelled(row["final_answer"][0])
    except ValueError:
        return False, None
    is_found = is_found or _BOX in text or bool(_MATHS.search(_last_line(text)))
    right = is_equal(answer, gold, tolerances(row))
    return right, answer if is_found or right else None


def stated(response: str) -> tuple[str, bool]:
    """What follows the phrase in the last line that has it, else the whole response; whether there is such a line."""
    for line in reversed(response.split("\n")):
        _, found, after = line.partition(PHRASE)
        if found:
            return after.strip(), True
    return response, False


def tolerances(row: Mapping[str, Any]) -> list[float]:
    """The tolerance of every answer, or one for all: the row's `error`, a number or several with commas as text.

    Tuples have the default, whatever their error.
    """
    error = row["error"]
    if "Tuple" in row["answer_type"] or not error:
        return [TOLERANCE]
    return [float(part) if part else TOLERANCE for part in str(error).split(",")]


def spelled(text: str) -> str:
    """The answer in a text, in the rule's spelling. Raises ValueError for a box that never ends."""
    text = _content(text)
    if r"\in " in text:
        text = text.split(r"\in ")[1]
    for spelling, other in _SPELLINGS.items():
        text = text.replace(spelling, other)
    return _UPRIGHT.sub(r"\1", text.strip(_EDGES))


def _content(text: str) -> str:
    """All boxes with a comma after each; without one the formulas of the last line; without one the text."""
    contents = []
    for match in re.finditer(re.escape(_BOX), text):
        end = _end_of_box(text, match.end())
        contents.append(text[match.end() : end])
    contents = contents or _MATHS.findall(_last_line(text))
    return "".join(f"{content}," for content in contents) or text


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _end_of_box(text: str, start: int) -> int:
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError("a box never ends")


def is_equal(answer: str, gold: str, tolerances: Sequence[float]) -> bool:
    """Whether the answers of a text and the gold answers can be paired, greedily and in any order."""
    if answer == gold:
        return True
    answers = _items(answer)
    golds = _items(gold)
    left = list(tolerances) * len(answers) if len(tolerances) == 1 else list(tolerances)
    if len(answers) != len(golds):
        return False
    index = -1
    while answers:
        index = (index + 1) % len(answers)
        if index >= len(left):  # the authors' program ends here
            return False
        one = answers[index]
        tolerance = left[index]
        equal = next((other for other in golds if same_item(one, other, tolerance)), None)
        if equal is None:
            return False
        answers.remove(one)
        golds.remove(equal)
        left.remove(tolerance)
    return True


def _items(text: str) -> list[str]:
    r"""What commas outside of ( ) [ ] separate, with two items for one with `\pm`."""
    items = []
    start = depth = 0
    text = _CHINESE.sub("", text)
    for place, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            items.append(text[start:place].strip())
            start = place + 1
    if start < len(text):
        items.append(text[start:].strip())
    signs = {item: (item.replace(r"\pm", "+"), item.replace(r"\pm", "-")) for item in items if r"\pm" in item}
    return [one for item in items for one in signs.get(item, (item,))]


def same_item(answer: str, gold: str, tolerance: float) -> bool:
    """Whether two items are equal as text, intervals, numbers, expressions or equations."""
    if answer == gold != "":
        return True
    if _is_interval(answer) and _is_interval(gold):
        try:
            if _same_intervals(answer, gold, tolerance):
                return True
        except MemoryError:
            raise
        except Exception:  # what SymPy cannot read
            return False
    for same in (_same_numbers, _same_values, _same_equations):
        try:
            if same(answer, gold, tolerance):
                return True
        except MemoryError:
            raise
        except Exception:  # SymPy raises whatever it comes across; the next way may do
            continue
    return False


def _is_interval(text: str) -> bool:
    return text.startswith(("(", "[")) and text.endswith((")", "]"))


def _same_intervals(answer: str, gold: str, tolerance: float) -> bool:
    pairs = (answer.split(r"\cup"), gold.split(r"\cup"))
    if len(pairs[0]) != len(pairs[1]):
        return False
    for one, other in zip(*pairs, strict=True):
        if (one[0], one[-1]) != (other[0], other[-1]):
            return False
        ends = zip(one.strip("[]()").split(","), other.strip("[]()").split(","), strict=False)
        if not all(_same_expressions(first, second, tolerance) for first, second in ends):
            return False
    return True


def _same_numbers(answer: str, gold: str, tolerance: float) -> bool:
    given = float(answer)
    wanted = float(gold)
    return any(abs(value - wanted) <= tolerance * _SLACK for value in (given / 100, given, given * 100))


def _same_values(answer: str, gold: str, tolerance: float) -> bool:
    return _same_expressions(answer, gold, tolerance) and not ("=" in answer and "=" in gold)


def _same_expressions(answer: str, gold: str, tolerance: float) -> bool:
    from sympy import Symbol, simplify, sympify

    sides = [text.split("=")[1] if "=" in text else text for text in (answer, gold)]
    first, second = (sympify(_parse(side.strip())) for side in sides)
    if first == second:
        return True
    first, second = (value.subs(Symbol("pi"), math.pi) for value in (first, second))
    with_symbols = [value.has(Symbol) for value in (first, second)]
    if with_symbols == [True, True]:
        with suppress(Exception):
            return bool(abs(simplify(first - second).evalf()) < _NEGLIGIBLE)
    elif with_symbols == [False, False] and _is_affordable(first) and _is_affordable(second):
        with suppress(Exception):
            return bool(abs(first.evalf() - second.evalf()) <= tolerance * _SLACK)
    return False


def _is_affordable(value: Any) -> bool:
    from sympy import Pow

    if not isinstance(value, Pow):
        return True
    base, exponent = value.as_base_exp()
    return bool(base.is_number and exponent.is_number and abs(exponent.evalf()) <= _LARGEST_EXPONENT)


def _same_equations(answer: str, gold: str, tolerance: float) -> bool:
    from sympy import Eq, simplify

    differences = []
    for text in (answer, gold):
        left, right = text.split("=")
        equation = Eq(_parse(left), _parse(right))
        differences.append(simplify(equation.lhs - equation.rhs))
    first, second = differences
    quotients = (simplify(first / second), simplify(second / first))
    return any(quotient.is_Integer and quotient != 0 for quotient in quotients)


def _parse(text: str) -> Expr:
    """What `sympy.parsing.latex.parse_latex` makes of a text."""
    from antlr4 import CommonTokenStream, InputStream

    lexer_class, parser_class, listener_class, convert = _grammar()
    text = text.strip()
    listener = listener_class(text)
    lexer = lexer_class(InputStream(text))
    lexer.removeErrorListeners()
    lexer.addErrorListener(listener)
    parser = parser_class(CommonTokenStream(lexer))
    parser.removeErrorListeners()
    parser.addErrorListener(listener)
    return convert(parser.math().relation())


def warm_up() -> None:
    """Loads the grammar, which takes ten times as long as an answer may take at first."""
    _parse(r"\frac{n+1}{\sqrt{2}}")


@cache
def _grammar() -> tuple[Any, Any, Any, Any]:
    """The parts of SymPy's `parse_latex`, which itself refuses another ANTLR runtime than 4.11.

    That of this project is 4.13, which reads the same grammar; only the notice about versions is left out.
    """
    from sympy.parsing.latex import _parse_latex_antlr as own

    class Lexer(own.LaTeXLexer):  # type: ignore[name-defined,misc]
        def checkVersion(self, toolVersion: str) -> None:
            pass

    class Parser(own.LaTeXParser):  # type: ignore[name-defined,misc]
        def checkVersion(self, toolVersion: str) -> None:
            pass

    return Lexer, Parser, own.MathErrorListener, own.convert_relation
