"""Properties of the accuracy rule, a test for each kind of answer: the right value in any spelling scores, a changed
value, unit, sign, order or letter does not, a denial never does, and equality has no direction."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mmeureka_jax.rewards.accuracy import compare, gold_problem

grading = settings(deadline=None, max_examples=50)

# What may stand around a value and leaves it as it is.
STATING = (
    "{}", "${}$", "x = {}", "${} = x$", "The answer is {}.", "It is {}", "the area is ${}$", "**{}**",
    r"\boxed{{{}}}", "Answer: {}", "答案是{}", "({})", r"\approx {}", "about {}", "so {}", " {} .",
    r"\text{{The sum is }} {}", "`{}`",
)  # fmt: skip
# What denies, bounds, hedges or changes it.
DENYING = (
    "not {}", r"\neq {}", "≠{}", "x ≠ {}", "anything but {}", "{} is wrong", "it isn't {}", "不是{}", "at least {}",
    "more than {}", "less than {}", "below {}", "> {}", r"x \geq {}", "至少{}", "大于{}", "{}以上", "half of {}",
    "twice {}", "{} thousand", "{}万", "{} squared", "{} or so many", "{} maybe", "perhaps {}", "{} or 991",
    "{}, 991", "991 or {}", "{} and 991", "{}; 991", "[{0}, {0}]", "{0}, {0}", "({0}, {0})", "{} plus 1",
    "{} to 991", "up to {}", "between {} and 991", "except {}", r"\{{{0}, {0}\}}", "{} = 991", "991 = {}",
    r"{} \to 991", "never {}", "neither {} nor 991", "unlike {}", "the root of {}", "{}!", "{} + x", "{}x",
)  # fmt: skip


def scores(texts, gold):
    """The texts that score, in order."""
    return [text for text in texts if compare(text, gold) == 1.0]


def spellings(value: Fraction) -> list[str]:
    """Exact ways to write a number."""
    sign = "-" if value < 0 else ""
    above = abs(value.numerator)
    below = value.denominator
    found = [rf"{sign}\frac{{{above * k}}}{{{below * k}}}" for k in (1, 3)]
    found += [f"{value.numerator}/{below}", rf"{sign}\dfrac{{{above}}}{{{below}}}", rf"{sign}{{{above} \over {below}}}"]
    if below == 1:
        found += [
            str(value),
            f"{value}.0",
            f"{sign}{above:,}",
            f"{sign}{above:03d}",
            f"{sign}{above}.",
            rf"{sign}{above}\,",
        ]
        found += [rf"{sign}{above / 10:.1f} \times 10^{{1}}", f"{sign}{above}e0", str(float(value))]
    elif 10**6 % below == 0:
        decimal = f"{value.numerator / below:.6f}".rstrip("0")
        found += [decimal, f"{decimal}00", decimal.replace("0.", ".", 1) if abs(value) < 1 else decimal]
        found += [f"{value.numerator * 100 / below:.4f}%"]
    if above > below > 1:
        found += [
            rf"{sign}{above // below}\frac{{{above % below}}}{{{below}}}",
            f"{sign}{above // below} {above % below}/{below}",
        ]
    if value < 0:
        found += [spelling.replace("-", "−", 1) for spelling in found[:3]] + [
            f"minus {above}/{below}",
            f"负{above}/{below}",
        ]
    return found


numbers = st.builds(Fraction, st.integers(-400, 400), st.sampled_from([1, 1, 1, 2, 3, 4, 5, 7, 8, 25]))


@grading
@given(numbers, numbers)
def test_numbers_score_in_any_spelling_and_no_other_number_does(value, other):
    gold = f"{value.numerator}/{value.denominator}" if value.denominator > 1 else str(value)
    assert gold_problem(gold) is None
    ways = spellings(value)
    assert scores(ways, gold) == ways
    for way in ways:
        assert compare(gold, way) == 1.0, way
    assert scores(spellings(other), gold) == (spellings(other) if other == value else [])
    assume(value != 0)
    assert scores(spellings(-value), gold) == []


@grading
@given(st.integers(0, 980), st.sampled_from(STATING))
def test_what_states_a_value_leaves_it_as_it_is(value, frame):
    assert compare(frame.format(value), str(value)) == 1.0
    assert compare(frame.format(value + 1), str(value)) == 0.0


@grading
@given(st.integers(3, 980), st.sampled_from(DENYING))
def test_denials_bounds_hedges_and_changes_never_score(value, frame):
    assert compare(frame.format(value), str(value)) == 0.0
    assert compare(frame.format(f"${value}$"), str(value)) == 0.0


@grading
@given(st.integers(1, 999), st.integers(-40, 40), st.integers(1, 99), st.integers(-1, 1))
def test_numbers_of_any_size_are_compared_by_all_of_their_digits(digits, exponent, other, shift):
    gold = rf"{digits / 100:.2f}\times10^{{{exponent}}}"
    python = f"{digits / 100:.2f}e{exponent}"
    assert compare(python, gold) == compare(gold, python) == 1.0
    changed = digits + other
    assert compare(f"{changed / 100:.2f}e{exponent}", gold) == 0.0
    assert compare(rf"{digits / 100:.2f}\times 10^{{{exponent + shift}}}", gold) == float(shift == 0)


@grading
@given(st.floats(allow_nan=False, allow_infinity=False, width=32).filter(lambda x: x == 0 or 1e-20 < abs(x) < 1e15))
@example(2.0**-24)  # float32, though the digits before its power of ten are not
def test_a_number_that_str_made_is_a_gold_that_its_own_spelling_meets(value):
    assert gold_problem(str(value)) is None
    assert compare(str(value), str(value)) == 1.0
    assert compare(f"{value:.17g}", str(value)) == 1.0


UNITS = {
    "cm": ["cm", r"\text{cm}", r"\,\mathrm{cm}", "centimeters", "centimetres", "厘米"],
    "m^2": ["m²", "m^2", r"\text{ m}^2", "square meters", "平方米", "sq m"],
    "km/h": ["km/h", r"\text{ km/h}", "kilometers per hour", "千米/时"],
    "kg": ["kg", r"\ \mathrm{kg}", "kilograms", "千克"],
    "N": ["N", r"\text{ N}", "newtons", "牛"],
    "°": ["°", r"^\circ", "degrees", "度"],
    "°C": ["°C", "℃", r"^\circ\text{C}", "degrees Celsius"],
    "s": ["s", "seconds", "秒", r"\text{ s}"],
    "元": ["元", "yuan"],
}


@grading
@given(st.integers(2, 500), st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)))
def test_units_may_be_missing_and_must_not_be_others(value, unit, other):
    gold = f"{value} {unit}"
    same = [f"{value} {way}" if way[0].isascii() and way[0].isalpha() else f"{value}{way}" for way in UNITS[unit]]
    assert scores(same, gold) == same
    assert [way for way in same if compare(gold, way) != 1.0] == []
    assert compare(str(value), gold) == compare(gold, str(value)) == 1.0
    assert compare(f"{value + 1} {unit}", gold) == 0.0
    assert compare(f"{value} {other}", gold) == compare(gold, f"{value} {other}") == float(other == unit)
    assert compare(f"not {value} {unit}", gold) == compare(f"{value} thousand {unit}", gold) == 0.0
    assert compare(f"{value}%", gold) == 0.0


@grading
@given(st.integers(1, 400))
def test_percent_is_a_hundredth(value):
    share = Fraction(value, 100)
    gold = f"{value}%"
    ways = [
        rf"{value}\%",
        f"{value} percent",
        rf"${value}\%$",
        f"{share.numerator}/{share.denominator}",
        f"{value / 100}",
    ]
    assert scores(ways, gold) == ways
    assert scores([f"{value + 1}%", f"{value / 10}%", f"{value} cm", f"not {value}%"], gold) == []
    assert compare(f"{value}%", str(value)) == 0.0


letters = st.sampled_from("ABCDEFGH")
NAMING = (
    "{}", "({})", "{}.", r"\text{{{}}}", r"\textbf{{({})}}", "Option {}", "The answer is {}", "答案：{}", "选{}",
    "{}. 14 cm", "({}) 14 cm", "{}: 14", "{}、14", "{} is correct", "$\\mathrm{{{}}}$", "choice {}",
)  # fmt: skip
REFUSING = (
    "not {}", "Not ({})", "all but {}", "anything except {}", "{} is wrong", "不选{}", "{} or H", "{}, H",
    "H. 1; {}. 2", "neither {} nor H", r"\angle {}", "point {}", "5 {}", "{} + 1", "{0}{0}", "{0}={0}",
    "it can't be {}", "{}?",
)  # fmt: skip


@grading
@given(letters, letters, st.sampled_from(NAMING), st.sampled_from(REFUSING))
def test_a_choice_scores_where_its_letter_is_picked_and_no_other(gold, other, naming, refusing):
    assume("H" not in (gold, other))
    assert compare(naming.format(gold), gold) == 1.0
    assert compare(naming.format(gold), f"{gold}. 14 cm") == 1.0
    assert compare(naming.format(other), gold) == float(other == gold)
    assert compare(refusing.format(gold), gold) == 0.0


@grading
@given(st.sets(st.sampled_from("ABCDE"), min_size=2, max_size=4), letters, st.randoms(use_true_random=False))
def test_several_choices_are_a_set(picked, other, random):
    gold = "".join(sorted(picked))
    order = random.sample(sorted(picked), len(picked))
    for joint in (", ", " and ", "、", "; "):
        assert compare(joint.join(order), gold) == 1.0
    assert compare(", ".join(order[1:]), gold) == 0.0
    assert compare(" or ".join(order), gold) == 0.0
    assert compare(", ".join(sorted({*order, other})), gold) == float(other in picked)


ends = st.lists(st.integers(-30, 30), min_size=2, max_size=2, unique=True).map(sorted)


@grading
@given(ends, st.booleans(), st.booleans())
def test_an_interval_is_its_inequality_in_both_directions(interval, left_open, right_open):
    low, high = interval
    opening = "[("[left_open]
    closing = "])"[right_open]
    left = (r"\leq", "<")[left_open]
    right = (r"\leq", "<")[right_open]
    bounds = rf"{opening}{low}, {high}{closing}"
    backwards = {r"\leq": r"\geq", "<": ">"}
    ways = [
        bounds,
        rf"x \in {bounds}",
        rf"{low} {left} x {right} {high}",
        rf"{high} {backwards[right]} x {backwards[left]} {low}",
    ]
    ways.append(rf"\{{x | {low} {left} x {right} {high}\}}")
    for gold in ways:
        assert scores(ways, gold) == ways, gold
    other = rf"{'[('[not left_open]}{low}, {high}{closing}"
    assert scores([other, rf"{low - 1} {left} x {right} {high}", f"{low}, {high}"], ways[2]) == []
    assert compare(rf"{low} {left} y {right} {high}", ways[2]) == 0.0


@grading
@given(st.integers(-50, 50), st.sampled_from(["<", ">", r"\leq", r"\geq", r"\neq"]))
def test_a_condition_may_be_read_from_either_side(bound, sign):
    flipped = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq", r"\neq": r"\neq"}
    gold = f"x {sign} {bound}"
    assert compare(f"{bound} {flipped[sign]} x", gold) == compare(gold, f"{bound} {flipped[sign]} x") == 1.0
    wrong = [f"x {other} {bound}" for other in flipped if other != sign] + [
        f"x {sign} {bound + 1}",
        str(bound),
        f"x = {bound}",
    ]
    assert scores(wrong, gold) == []


@grading
@given(st.lists(st.integers(-30, 30), min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_a_list_is_a_set_and_brackets_are_an_order(values, random):
    listed = ", ".join(map(str, values))
    shuffled = ", ".join(map(str, random.sample(values, len(values))))
    braces = rf"\{{{shuffled}\}}"
    assert compare(shuffled, listed) == compare(listed, shuffled) == 1.0
    assert compare(braces, listed) == compare(listed, braces) == 1.0
    assert compare(f"({listed})", f"({listed})") == 1.0
    assert compare(f"({listed})", listed) == 0.0
    assert compare(f"({shuffled})", f"({listed})") == float(shuffled == listed)
    assert scores([f"{listed}, {values[0]}", listed.rpartition(",")[0], f"{listed}, 77"], listed) == []
    assert compare(listed, str(values[0])) == 0.0


@grading
@given(st.lists(st.integers(1, 40), min_size=2, max_size=4), st.integers(2, 9))
def test_ratios_are_equal_when_their_terms_are_in_proportion(terms, factor):
    gold = ":".join(map(str, terms))
    assume(len(terms) > 2 or not (terms[0] <= 24 and 10 <= terms[1] < 60))  # a time of day
    assert gold_problem(gold) is None
    scaled = " : ".join(str(term * factor) for term in terms)
    assume(len(terms) > 2 or not (terms[0] * factor <= 24 and 10 <= terms[1] * factor < 60))
    assert compare(scaled, gold) == compare(gold, scaled) == 1.0
    changed = ":".join(map(str, [terms[0] + 1, *terms[1:]]))
    assert compare(changed, gold) == 0.0
    assert compare(":".join(map(str, terms[::-1])), gold) == float(
        all(a * terms[-1] == b * terms[0] for a, b in zip(terms[::-1], terms, strict=True))
    )


names = st.lists(st.sampled_from("ABCDMNPQ"), min_size=3, max_size=3, unique=True).map("".join)


@grading
@given(names, names)
def test_names_of_points_say_what_they_name(name, other):
    same_angle = other in (name, name[::-1])
    assert compare(rf"\angle {other}", f"∠{name}") == float(same_angle)
    assert compare(rf"\triangle {other}", f"△{name}") == float(sorted(other) == sorted(name))
    assert compare(rf"{other[:2]} \parallel {name[1:]}", f"{name[1:]}∥{other[:2]}") == 1.0
    if name != "".join(sorted(name)):
        assert compare(other, name) == float(other == name)


words = st.sampled_from(
    ["trapezoid", "isosceles triangle", "Tuesday", "red", "parallel", "increasing", "undefined", "是", "等腰三角形"]
)


@grading
@given(words, words)
def test_words_are_compared_as_words(gold, other):
    ways = [gold, gold.upper(), f" {gold}. ", rf"\text{{{gold}}}", f"**{gold}**", f'"{gold}"']
    ways += [f"a {gold}", f"The {gold}"] if gold.isascii() else []
    assert scores(ways, gold) == ways
    assert compare(other, gold) == float(other == gold)
    assert scores([f"not {gold}", f"{gold} or blue", f"not a {gold}", "", "7"], gold) == []


@grading
@given(st.integers(-9, 9), st.integers(1, 9), st.integers(-9, 9), st.integers(2, 5))
def test_an_equation_of_a_line_may_be_scaled_and_turned(a, b, c, factor):
    gold = f"{a}x+{b}y+{c}=0".replace("+-", "-")
    scaled = f"{a * factor}x+{b * factor}y={-c * factor}".replace("+-", "-")
    solved = rf"y=\frac{{{-a}}}{{{b}}}x+\frac{{{-c}}}{{{b}}}"
    assume(a != 0)
    assert compare(scaled, gold) == compare(gold, scaled) == compare(solved, gold) == compare(gold, solved) == 1.0
    assert compare(f"{a}x+{b}y+{c + 1}=0".replace("+-", "-"), gold) == 0.0
    assert compare(f"{a + 10}x+{b}y+{c}=0".replace("+-", "-"), gold) == 0.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("1/3", "0.333333"), (r"\pi", "3.14159265"), (r"\sqrt{2}", "1.41421356"), ("2/3", "0.6666666666")],
)
def test_an_exact_answer_is_not_met_by_a_rounded_one(gold, answer):
    assert compare(answer, gold) == 0.0


small = st.integers(-9, 9)


@grading
@given(st.lists(small, min_size=4, max_size=4), st.integers(0, 3))
def test_matrices_are_compared_entry_by_entry(entries, place):
    def written(values, name="pmatrix", opening="", closing=""):
        a, b, c, d = values
        return rf"{opening}\begin{{{name}}} {a} & {b} \\ {c} & {d} \end{{{name}}}{closing}"

    gold = written(entries)
    ways = [gold.replace(" ", ""), written(entries, "bmatrix"), f"A = {gold}", f"${gold}$"]
    ways.append(written(entries, "matrix", r"\left(", r"\right)"))
    assert gold_problem(gold) is None
    assert scores(ways, gold) == ways
    changed = [entry + (i == place) for i, entry in enumerate(entries)]
    transposed = [entries[i] for i in (0, 2, 1, 3)]
    assert compare(written(changed), gold) == 0.0
    assert compare(written(transposed), gold) == float(transposed == entries)


@grading
@given(st.integers(2, 60), st.integers(2, 60), st.integers(1, 9))
def test_a_chain_must_hold_and_its_last_side_is_the_answer(a, b, wrong):
    gold = str(a + b)
    holding = [f"{a} + {b} = {gold}", f"x = {a} + {b} = {gold}", f"{gold} = x", f"S = {gold}", f"x = y = {gold}"]
    holding += [rf"x + {a} = {gold} + {a} \Rightarrow x = {gold}", rf"{a + b - 0.01:.2f} \approx {gold}"]
    assert scores(holding, gold) == holding
    failing = [f"{a} + {b + wrong} = {gold}", f"{gold} = {a + b + wrong}", f"{gold} = {gold}", rf"{gold} \to {gold}"]
    failing += [f"x = {gold} = {a + b + wrong}", f"{a} = {gold}", rf"{gold} \approx {(a + b) * 2}", f"true = {gold}"]
    assert scores(failing, gold) == []


@grading
@given(small, small, small.filter(bool))
def test_formulas_are_equal_in_any_arrangement(a, b, k):
    gold = f"{k}(x-{a})(x-{b})".replace("--", "+")
    expanded = f"{k}x^2 - {k * (a + b)}x + {k * a * b}".replace("- -", "+ ").replace("+ -", "- ")
    ways = [expanded, f"f(x) = {expanded}", f"${expanded}$", f"(x-{b})({k}x-{k * a})".replace("--", "+")]
    assert scores(ways, gold) == ways
    assert [way for way in ways if compare(gold, way) != 1.0] == []
    other = f"{k}x^2 - {k * (a + b)}x + {k * a * b + 1}".replace("- -", "+ ").replace("+ -", "- ")
    assert scores([other, expanded.replace("x", "y"), f"-({expanded})", "x", "0"], gold) == []


@grading
@given(st.integers(1, 80), st.integers(1, 59))
def test_amounts_of_several_units_are_compared_as_they_stand(large, small_amount):
    gold = f"{large}°{small_amount}′"
    ways = [rf"{large}^\circ {small_amount}'", f"{large}度{small_amount}分", rf"\angle A = {large}°{small_amount}'"]
    assert scores(ways, gold) == ways
    assert (
        scores(
            [f"{large}°", f"{small_amount}'", f"{large}°{small_amount + 60}'", f"{large + 60}°{small_amount}'"], gold
        )
        == []
    )
    time = f"{large} h {small_amount} min"
    assert scores([f"{large} hours {small_amount} minutes", f"{large}小时{small_amount}分钟"], time) != []
    assert compare(f"{small_amount} h {large} min", time) == float(large == small_amount)


@grading
@given(
    st.integers(2, 900),
    st.sampled_from(["{}个", "共有{}个", "答案：{}", "约{}", "{}元", "第{}", "x的值为{}", "等于{}。", "${}$厘米"]),
)
def test_chinese_words_that_state_a_value(value, frame):
    assert compare(frame.format(value), str(value)) == 1.0
    assert compare(frame.format(value + 1), str(value)) == 0.0


@grading
@given(
    st.integers(2, 900),
    st.sampled_from(
        [
            "不是{}",
            "{}万",
            "{}以上",
            "大于{}",
            "至少{}个",
            "{}成",
            "{}分之一",
            "负{}",
            "{}或99999",
            "可能是{}",
            "{}的平方",
            "非{}",
        ]
    ),
)
def test_chinese_words_that_deny_bound_or_change_a_value(value, frame):
    assert compare(frame.format(value), str(value)) == 0.0
