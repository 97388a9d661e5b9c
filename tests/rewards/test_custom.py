"""Custom rules: where they come from, and what is said about a bad one."""

from fractions import Fraction

import numpy as np
import pytest

from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards import custom
from mmeureka_jax.user_code import parse_spec


def write(tmp_path, text):
    file = tmp_path / "rule.py"
    file.write_text(text)
    return f"{file}:score"


def test_a_rule_gets_its_four_arguments_and_its_folder(tmp_path):
    (tmp_path / "weights_of_rule.py").write_text("SCALE = 2.0")
    spec = write(
        tmp_path,
        "from weights_of_rule import SCALE\n"
        "def score(response, answer, question, metadata):\n"
        "    return SCALE * len(response + answer + question) + metadata['bonus']\n",
    )
    rule = custom.load_rule(spec)
    assert custom.apply_rule(rule, "abc", "de", "f", {"bonus": 0.5}) == 12.5


@pytest.mark.parametrize("value", [1, True, 0.5, np.float32(0.5), Fraction(1, 2)])
def test_numbers_of_any_kind_are_fine(value):
    result = custom.apply_rule(lambda *_: value, "", "", "", {})
    assert type(result) is float
    assert result == float(value)


@pytest.mark.parametrize("value", [None, "1", [1.0], float("nan"), float("inf")])
def test_what_is_no_finite_number_is_an_error(value):
    with pytest.raises((TypeError, ValueError), match="the custom rule returned"):
        custom.apply_rule(lambda *_: value, "", "", "", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def other(response, answer, question, metadata): return 0.0", "no function 'score'"),
        ("score = 3", "no function 'score'"),
        ("def score(response): return 0.0", "expected function"),
        ("def score(response, answer, question, metadata, extra): return 0.0", "expected function"),
        ("import no_such_module", "does not import.*no_such_module"),
        ("def score(:", "does not import.*SyntaxError"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        custom.load_rule(write(tmp_path, text))
    assert "rule.py" in str(error.value)


@pytest.mark.parametrize("spec", ["rule.py", "rule:score", "rule.py:", "rule.py:a b", ":score"])
def test_bad_forms(spec):
    with pytest.raises(UserError, match="path/to/file.py:function"):
        parse_spec(custom.KEY, spec)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="there is no file .*nowhere.py"):
        parse_spec(custom.KEY, f"{tmp_path}/nowhere.py:score")
