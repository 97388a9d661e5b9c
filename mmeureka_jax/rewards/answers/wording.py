"""Words around a value. Some state it (`the area is 5`), count it (`5 apples are left`) or say how exact it is (`about
5`); others change it (`5 thousand`, `half of 5`, `minus 5`), bound it (`at least 5`) or deny it (`not 5`).

The words in front of a value must end with one that states it. The words after it must name what is counted, or say how
exact it is, and none of them may be listed here as changing, hedging or denying. An answer with other words cannot be
read, and never scores.
"""

from __future__ import annotations

import re
from fractions import Fraction

DENIALS = frozenset(
    "nobody scratch not no never none neither nor without except excluding exclude excludes besides but cannot wrong "
    "incorrect false untrue unlike different differs differ other rather instead anything nothing unless hardly "
    "impossible invalid fails fail far avoid rejected reject excluded nonsense mistaken error opposite eliminate "
    "eliminated eliminates discard discarded ruled rule inadmissible extraneous".split()
)
HEDGES = frozenset(
    "or either maybe perhaps possibly probably might may could if whether guess unsure unknown uncertain depends "
    "likely unlikely depending sometimes hopefully supposedly any every all some something someone "
    "alternatively".split()
)
# What makes another value of the one before it.
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety first second third fourth fifth sixth "
    "seventh eighth ninth tenth half halves quarter quarters hundred thousand million billion trillion dozen dozens "
    "thirds tens hundreds thousands millions billions permil permille basis score gross couple pair pairs lakh crore "
    "myriad k bn mn mil mill"
)
_OPERATIONS = (
    "negated etc example best tops kilo mega milli denominator numerator followed doubled halved tripled quadrupled "
    "ppm googol double twice thrice triple quadruple times fold twofold threefold squared cubed root square cube "
    "cubic power powers factorial plus minus negative positive over divided multiplied multiply divide subtract "
    "subtracted add added increased decreased reduced raised modulo mod log logarithm inverse reciprocal percent "
    "percentage percents per base choose and with complement successor predecessor imaginary"
)
_BOUNDS = (
    "more less fewer greater larger smaller bigger lower higher longer shorter above below under beyond beneath least "
    "most maximum minimum max min up upto exceeds exceed exceeding within between among from to through until than "
    "nearly almost barely odd upwards onward onwards downwards ish inside outside near"
)
_PLACES = "after before past next short away apart early late too even also ago south north west east"
CHANGES = frozenset(f"{_NUMBERS} {_OPERATIONS} {_BOUNDS} {_PLACES}".split())
# What may be directly in front of a value.
STATES = frozenset(
    "is are was be being equals equal get gets got gives give yields has have having find found obtain obtains makes "
    "make becomes totals measures costs needs takes contains answer answers solution result value option only just "
    "exactly precisely simply so thus therefore hence then total about approximately roughly approx around namely i.e "
    "circa that's it's there're number area perimeter length width height volume sum point points coordinates "
    "interval vector in year paid pays pay spent spends earned earns saved saves sold bought scored weighs".split()
)
_SIGNS = {"minus": -1, "negative": -1, "负": -1, "零下": -1, "plus": 1, "positive": 1, "正": 1}
_SCALES: dict[str, Fraction | int] = {
    "half": Fraction(1, 2), "halves": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4),
    "fifth": Fraction(1, 5), "sixth": Fraction(1, 6), "eighth": Fraction(1, 8), "tenth": Fraction(1, 10),
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "百万": 10**6, "千万": 10**7, "百亿": 10**10, "千亿": 10**11, "万亿": 10**12,
    "十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8,
}  # fmt: skip
_AFTER_A_NOUN = frozenset("to with from in inside outside near also too even and".split())
_SAYS_HOW = frozenset(
    "approximately approx roughly exactly precisely total altogether overall left remaining only correct is in".split()
)
_PLURALS = frozenset("people persons men women children teeth mice geese fish sheep deer dice oxen".split())
_SHORT_WORDS = frozenset("is are it in on of at by as we he she us they do be my me go so".split())
# Nouns that end as fractions do (fifths, hundredths).
_NO_FRACTIONS = frozenset(
    "months lengths widths depths heights paths baths maths moths cloths births deaths booths".split()
)

_WORD = re.compile(r"[A-Za-z]+(?:['.\-][A-Za-z]+)*|[\u4e00-\u9fff]+")
_SIGN = re.compile(r"(?:^|(?<=\s))(?:minus|negative|plus|positive)$|(?:零下|[负正])$", re.IGNORECASE)
_SCALE = re.compile(rf"\s?({'|'.join(_SCALES)})s?(?![a-zA-Z分])", re.IGNORECASE)
_NO_TAIL = re.compile(r"[^A-Za-z\u4e00-\u9fff\s.,;()'\-]")
_CONFIRMATION = re.compile(
    r"(?:is|are|was|were) (?:the |my |our |a |an )?(?:final |correct |right |only |possible )*"
    r"(?:correct|right|answers?|values?|solutions?|results?|total|area)"
)
_CHINESE_DENIALS = re.compile("[不非没無无未除错误否别勿]|可能|也许|或许")
_CHINESE_STATES = re.compile("(?:[是为為有得共约約第等于：:即选剩点要]|答案|面积|周长|总共|大约|结果)$")
_CHINESE_BOUNDS = re.compile("(?:大于|小于|多于|少于|高于|低于|至少|至多|最多|最少|超过|不足|接近|不到)")
_CHINESE_CHANGES = re.compile("[大小多少高低长短兆打京超过负正以上下内外几半倍分成折余或和加减乘至比近到起根]|方$|的.")
_CHINESE_COUNTED = re.compile("[个只条名人次张本件块辆棵头匹座枚支种位组排行列页级等左右约的了倍]+")


def read_lead(text: str) -> int | None:
    """The sign that the words in front of a value give it; None if they do not state the value."""
    sign = 1
    text = text.strip(" ,:;*\n")
    while match := _SIGN.search(text):
        sign *= _SIGNS[match[0].lower()]
        text = text[: match.start()].strip()
    words = _WORD.findall(text)
    if not words:
        return None if re.search(r"\w|\.\.", text) else sign
    if any(is_denial(word) or word.lower() in HEDGES for word in words):
        return None
    last = words[-1].lower()
    if last.isascii():
        phrase = " ".join(words[-2:]).lower()
        return sign if last in STATES or phrase in ("equal to", "total of") else None
    if _CHINESE_DENIALS.search(text) or _CHINESE_BOUNDS.search(text):
        return None
    return sign if _CHINESE_STATES.search(last) else None


def read_zero(text: str) -> tuple[int, str]:
    """The sign of `below zero` after a value, and the text without it."""
    found = re.fullmatch(r"(.*?)\s*\b(below|above) zero\W*", text)
    return (1, text) if found is None else (-1 if found[2] == "below" else 1, found[1])


def states(text: str) -> bool:
    """Whether the words up to a verb leave what follows it stated."""
    return not denies(text) and not _CHINESE_BOUNDS.search(text)


def read_scale(text: str) -> tuple[Fraction, str]:
    """The factor of `thousand`, `dozen`, `half`, 万 in front of a text, and the rest of it."""
    scale = Fraction(1)
    while match := _SCALE.match(text):
        scale *= _SCALES[match[1].lower()]
        text = text[match.end() :]
    return scale, text


def read_tail(text: str, counted: bool) -> tuple[str, ...] | None:
    """The words after a value and its unit, if they leave it as it is (`apples are left`); None if they do not.

    counted: the value has no unit, so that the words have to name what is counted.
    """
    text = text.strip(" .,;:!()*\n")
    text = re.sub(r"^(?:different|distinct)(?= \w)|不同的", "", text).strip()
    if re.match(r"(?:is|are|was|were)\b", text) and not _CONFIRMATION.match(text):
        return None
    if _NO_TAIL.search(text):
        return None
    words = tuple(word.lower() for word in _WORD.findall(text))
    if words and counted and not _names_what_is_counted(words):
        return None
    if any(_is_changing(word) for i, word in enumerate(words) if i == 0 or word not in _AFTER_A_NOUN):
        return None
    return words


def _names_what_is_counted(words: tuple[str, ...]) -> bool:
    """Whether words after a number begin with things (`red apples`), or say how exact or complete it is."""
    if not words[0].isascii():
        return _CHINESE_COUNTED.match(words[0]) is not None
    return words[0] in _SAYS_HOW or any(
        word in _PLURALS or (len(word) > 3 and word.endswith("s") and not word.endswith("ss")) for word in words[:3]
    )


def _is_changing(word: str) -> bool:
    """Whether a word after a value makes something else of it."""
    if not word.isascii():
        if _CHINESE_DENIALS.search(word):
            return True
        return bool(_CHINESE_CHANGES.search(word)) and not _CHINESE_COUNTED.fullmatch(word)
    if len(word) < 2 or (len(word) == 2 and word not in _SHORT_WORDS):
        return True  # k, x: a variable
    if is_denial(word) or word in HEDGES or word in CHANGES:
        return True
    return word not in _NO_FRACTIONS and re.search(r"ths$|(?:teen|tie)th$", word) is not None


def is_denial(word: str) -> bool:
    return word.lower() in DENIALS or word.lower().endswith("n't")


def changes(word: str) -> bool:
    """Whether a word makes another value of the one before it."""
    return word.lower() in CHANGES


def is_known(word: str) -> bool:
    """Whether a word has a meaning here, so that in capitals it is no name of points."""
    return is_denial(word) or word.lower() in HEDGES | CHANGES | STATES


def hedges(text: str) -> bool:
    """Whether any word of a text leaves open what is meant."""
    return any(word.lower() in HEDGES for word in _WORD.findall(text))


def denies(text: str) -> bool:
    """Whether any word of a text denies or hedges."""
    return any(map(is_denial, _WORD.findall(text))) or hedges(text) or bool(_CHINESE_DENIALS.search(text))
