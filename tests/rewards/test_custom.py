"""Custom rules: where they come from, and what is said about a bad one."""

from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards import custom
from mmeureka_jax.user_code import parse_spec


def write(tmp_path, text):
    file = tmp_path / "rule.py"
    file.write_text(text)
    return f"{file}:score"


def load(tmp_path, text):
    spec = write(tmp_path, text)
    return spec, custom.load_rule(spec, 60.0)


def test_a_rule_gets_its_four_arguments_and_its_folder(tmp_path):
    (tmp_path / "weights_of_rule.py").write_text("SCALE = 2.0")
    rule = load(
        tmp_path,
        "from weights_of_rule import SCALE\n"
        "def score(response, answer, question, metadata):\n"
        "    return SCALE * len(response + answer + question) + metadata['bonus']\n",
    )
    assert custom.apply_rule(*rule, "abc", "de", "f", {"bonus": 0.5}) == 12.5


@pytest.mark.parametrize(
    "value",
    [1, True, 0.5, np.float32(0.5), np.bool_(True), np.array([[0.5]]), jnp.float32(0.5), jnp.array(True)]
    + [Fraction(1, 2), Decimal("0.5")],
    ids=repr,
)
def test_numbers_of_any_kind_are_fine(value):
    result = custom.finite_number(value)
    assert type(result) is float
    assert result == float(np.asarray(value, float).item())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned None, expected one finite number"),
        ("1", "returned str '1', expected"),
        (b"1", "returned bytes b'1', expected"),
        ({"reward": 1}, "returned dict {'reward': 1}, expected"),
        ([1.0], r"returned list \[1.0\], expected"),
        (1j, "returned complex 1j, expected"),
        (np.complex64(1j), "returned complex64 .*, expected"),
        (float("nan"), "returned float nan, expected"),
        (np.float32("inf"), "returned float32 .*inf.*, expected"),
        (Decimal("sNaN"), "returned Decimal .*, expected"),
        (np.zeros(2), r"returned an array of shape \(2,\), expected one number"),
        (jnp.zeros((0,)), r"returned an array of shape \(0,\), expected one number"),
        (10**400, "returned int 1000.*, expected one finite number"),
        (1e30, r"returned 1e\+30, expected a number between -1e\+15 and 1e\+15"),
    ],
    ids=repr,
)
def test_what_is_no_finite_number_is_an_error_that_shows_it(value, message):
    with pytest.raises((TypeError, ValueError), match=f"the rule {message}"):
        custom.finite_number(value)


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ("return None", r"TypeError: the rule returned None, .* \(rule.py:7\)"),
        ("return missing", r"NameError: name 'missing' is not defined \(rule.py:8\)"),
        ("return helper()", r"KeyError: 'far down' \(rule.py:2\)"),
        ("import sys; sys.exit(3)", r"SystemExit: 3 \(rule.py:8\)"),
        ("raise KeyboardInterrupt", r"KeyboardInterrupt \(rule.py:8\)"),
        ("raise Mute", r"Mute \(rule.py:8\)"),
        ("raise ValueError('a\\n b' * 1000)", r"ValueError: a ba b.*… \(rule.py:8\)"),
    ],
)
def test_a_failure_names_what_was_raised_and_the_line(tmp_path, body, failure):
    rule = load(
        tmp_path,
        "def helper():\n    raise KeyError('far down')\n"
        "class Mute(Exception):\n    def __str__(self):\n        raise RuntimeError\n\n"
        f"def score(response, answer, question, metadata):\n    {body}\n",
    )
    with pytest.raises(custom.RuleFailed, match=f"^{failure}$") as error:
        custom.apply_rule(*rule, "", "", "", {})
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def other(response, answer, question, metadata): return 0.0", "no function 'score'"),
        ("score = 3", "no function 'score'"),
        ("def score(response): return 0.0", "expected function"),
        ("def score(response, answer, question, metadata, extra): return 0.0", "expected function"),
        ("def score(response, answer, question, metadata, *, extra): return 0.0", "required argument: 'extra'"),
        ("async def score(response, answer, question, metadata): return 0.0", "is an async function"),
        ("def score(response, answer, question, metadata): yield 0.0", "is a generator function"),
        ("async def score(response, answer, question, metadata): yield 0.0", "is a generator function"),
        ("class score:\n    def __init__(self, *args): pass", "is a class"),
        ("class Rule:\n    async def __call__(self, *args): pass\nscore = Rule()", "is an async function"),
        ("score = max", "is built in"),
        ("import no_such_module", "does not import.*no_such_module"),
        ("def score(:", "does not import.*SyntaxError"),
        ("import sys\n\nsys.exit(0)", r"does not import: SystemExit: 0 \(rule.py:3\)"),
        ("import os\nos._exit(0)", r"does not import: SystemExit: os._exit\(0\) \(rule.py:2\)"),
        ("raise KeyboardInterrupt", r"does not import: KeyboardInterrupt \(rule.py:1\)"),
        ("while True: pass", r"does not import: TimeoutError: not done after 0.5 s \(rule.py:1\)"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        custom.load_rule(write(tmp_path, text), 0.5 if "while" in text else 60.0)
    assert "rule.py" in str(error.value)


@pytest.mark.parametrize("spec", ["rule.py", "rule:score", "rule.py:", "rule.py:a b", ":score"])
def test_bad_forms(spec):
    with pytest.raises(UserError, match="path/to/file.py:function"):
        parse_spec(custom.KEY, spec)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="there is no file .*nowhere.py"):
        parse_spec(custom.KEY, f"{tmp_path}/nowhere.py:score")


def test_a_judge_says_yes_or_no(tmp_path):
    spec = write(tmp_path, "def score(question, answer, response):\n    return eval(response)\n")
    rule = custom.load_rule(spec, 60.0, custom.JUDGE)
    said = [
        custom.apply_rule(spec, rule, "q", "a", text, purpose=custom.JUDGE) for text in ("True", "False", "1", "0.0")
    ]
    assert said == [1.0, 0.0, 1.0, 0.0]
    for text, shown in {"None": "None", "'yes'": "str 'yes'", "0.5": "float 0.5", "[1]": r"list \[1\]"}.items():
        with pytest.raises(custom.RuleFailed, match=f"the function returned {shown}, expected True or False"):
            custom.apply_rule(spec, rule, "q", "a", text, purpose=custom.JUDGE)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match=r"^--judge-model: score of .*; expected function\(question: str, answer: str"):
        custom.load_rule(write(other, "def score(response): ..."), 60.0, custom.JUDGE)
