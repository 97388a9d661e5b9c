"""Multiple choice: the letters that an answer picks, with or without the text of the choice.

    answer    [words that pick] letters [text of the choice | words that confirm]
    letters   C   (C)   [C]   A, C   A and C   (A)(C)   AC
    text      after a label (`C. 14`, `(C) 14`, `C: 14`), or after a space where it is no sentence about the letter

A letter is not picked where it is denied (`not C`, `C is wrong`), offered with others (`C or E`), taken back (`C, wait,
D`), or the name of something else (`point C`, `A number`). Any letter may be a choice: problems have four, or ten.
"""

from __future__ import annotations

import re

from mmeureka_jax.rewards.answers import notation, wording

_GOLD = re.compile(r"[(\[]?([A-Z])[)\]]?|([a-d])")
_GOLD_LABEL = re.compile(r"\(?[a-d][).]\s(?=\S)")
_GOLD_WITH_TEXT = re.compile(r"(?:\(([A-Z])\)|([A-Z])\s?[.)]|([A-Z])(?:,|:(?=\s)))\s*(?P<text>\S.*)", re.DOTALL)
_JOINT = re.compile(
    r"\s*(?:[,;&/]|\band\b|[和与及])\s*(?:and\s+)?|(?<=[)\]])(?=[(\[])|\s+(?=[(\[]?[A-Z][)\]]?(?:\s|$))"
)
_LETTER_AND_MORE = re.compile(r"[A-J](?:\s*[,;/&和与]|\s+and\s)")
_LETTER = re.compile(r"[(\[]?([A-Za-z])([)\]]?)(?![A-Za-z0-9_'])")
_RUN = re.compile(r"[(\[]?([A-J]{2,8})[)\]]?(?![\w'])")
_LEAD = re.compile(
    r"^(?:(?:it's|the|my|our|final|correct|right|best|true|only|answers?|options?|choices?|letters?|choose|select|pick|go|"
    r"with|is|are|it|its|so|thus|therefore|hence|i|we|must|should|be|would|will|both|statements?|figures?|graphs?|"
    r"diagrams?|pictures?|images?)\b|本题|此题|故|应|我|选项|选择?|答案|正确|是|为|的|因此|所以|[:,*\s])*",
    re.IGNORECASE,
)
_CONFIRMATION = re.compile(
    r"\s*(?:is|are)\s+(?:the\s+)?(?:only\s+)?(?:correct|right|true|best|answers?|option|choice)\b|\s*is\s+the\s+one\b"
    r"|\s*(?:选?项)?(?:是?正确|是?对|$)",
    re.IGNORECASE,
)
_LABEL = re.compile(r"\s*(?:[.,:;)\]]|[–—](?=\s)|-(?=\s[A-Za-z]{2}))\s*|\s*\n|\s+[(](?!\s*(?:wrong|incorrect))")
_REASON = re.compile(r"\s*,?\s+(?:because|since|by|due to)\b")
_TAKEN_BACK = re.compile(
    r"\b(?i:wait|actually|no|rather|maybe|perhaps|instead|hmm|sorry|oops)\b[\s,.:]*[(\[]?[A-Z][)\]]?\W*$|\?\W*$"
    r"|^(?![.)\]])\W*(?:wrong|incorrect|eliminated|ruled out|not correct)\W*$"
)
_JOINED = re.compile(r"^(?![.:)\]]).*\b(?:also|then|and|but|plus)\b[\s,.:]*[(\[]?[A-Z][)\]]?\W*$")
_NOT_ANOTHER = re.compile(r"\s*,?\s*(?:and\s+)?(?:not|rather than|instead of)\s+[(\[]?[A-Z][)\]]?\W*")
_LABELLED = re.compile(r"[(\[]?[A-Z][)\]]?\s?[.:)\]]\s")
_OTHER_LABEL = re.compile(r"(?:^|[;,\n\s(.])([A-Z])\s?[.:)]\s")
_NOT_A_TEXT = re.compile(r"[Oo]r\b|[A-H]\s+(?:is|may|also)\b|alternatively\b")
_OTHER_LETTER = re.compile(r"(?<![A-Za-z\\])[(\[]?([A-Z])[)\]]?(?![A-Za-z'])")
_WORDS_AND_LETTER = re.compile(r"((?:[A-Za-z]{3,} ){1,2})[(\[]?([A-Z])[)\]]?[.\s]*")
_OBJECTS = frozenset(
    "point points angle angles line lines side sides segment edge vertex vertices ray circle triangle plane arc node "
    "set matrix event city town vector variable class degrees".split()
)


def gold_letters(gold: str) -> tuple[frozenset[str], str] | None:
    """The letters of a gold answer that is a choice, or several, and the text of the choice; None for any other gold.

    Letters that run together (`AC`) are no choices here: they may be a name, and `equality` compares names.
    """
    plain = re.sub(r"^(?:选项|(?i:choice|option)\s+(?=[A-Za-z]$))", "", _plain(gold))
    if _GOLD_LABEL.match(plain):
        plain = plain.replace(plain[:2], plain[:2].upper(), 1)
    if single := _GOLD.fullmatch(plain):
        return frozenset((single[1] or single[2]).upper()), ""
    if with_text := _GOLD_WITH_TEXT.fullmatch(plain):
        text = with_text["text"].strip()
        more = _LETTER.fullmatch(re.sub(r"^and\s+", "", text)) or _LETTER_AND_MORE.match(text)
        if not (more and (with_text[3] or text.startswith("and "))):  # `A, C` is no choice with the text C
            return frozenset(next(filter(None, with_text.groups()[:3]))), text
    letters, end = _read_letters(plain)
    if len(letters) > 1 and end == len(plain) and all(letter in "ABCDEFGHIJ" for letter in letters):
        return (frozenset(letters), "") if len(set(letters)) == len(letters) else None
    return None


def is_run(gold: str) -> bool:
    """Whether a gold answer is letters that may be several choices: AC, ABD."""
    plain = _plain(gold)
    return re.fullmatch("[A-J]{2,8}", plain) is not None and list(plain) == sorted(set(plain))


def picked_letters(text: str, of: str = "") -> frozenset[str]:
    """The letters that an answer picks; none if it does not pick, denies, or hedges.

    Args:
        of: the text of the gold answer's choice. `sample B` picks no letter where that is `sample A`.
    """
    plain = _plain(text)
    alone = re.fullmatch(r"\W*[A-Za-z]\W*", plain)  # `I` is a word of the lead too
    rest = plain if alone or _LABELLED.match(plain) else _LEAD.sub("", plain, count=1)
    if run := _RUN.match(rest):
        distinct = len(set(run[1])) == len(run[1])
        return frozenset(run[1]) if distinct and _confirms(rest[run.end() :], run[1], False) else frozenset()
    letters, end = _read_letters(rest)
    if not letters:
        return _at_the_end(plain, of)
    labelled = rest[end - 1] in ")]"
    if len(set(letters)) != len(letters) or not _confirms(rest[end:], "".join(letters), labelled):
        return frozenset()
    return frozenset(letter.upper() for letter in letters)


def _read_letters(text: str) -> tuple[list[str], int]:
    """The letters that a text begins with, and where they end."""
    first = _LETTER.match(text)
    if first is None:
        return [], 0
    letters = [first[1]]
    end = first.end()
    while joint := _JOINT.match(text, end):
        following = _LETTER.match(text, joint.end())
        if following is None or not following[1].isupper():
            break
        letters.append(following[1])
        end = following.end()
    return letters, end


def _plain(text: str) -> str:
    text = re.sub(r"\\\s", " ", text)
    plain = notation.trim(notation.unwrap_text(text))
    braces = re.fullmatch(r"\\?\{([^{}\\]*)\\?\}", plain)
    return plain if braces is None else braces[1]


def _confirms(tail: str, letters: str, labelled: bool) -> bool:
    """Whether what follows the letters leaves them picked: nothing, the text of the choice, or "is correct".

    labelled: the letter is in parentheses, so that the text may follow at once.
    """
    small = letters.islower()
    if not tail.strip(" .,;:)]*!") or _NOT_ANOTHER.fullmatch(tail):
        return True
    if (
        _TAKEN_BACK.search(tail)
        or _JOINED.search(tail.lstrip())
        or any(match[1] not in letters for match in _OTHER_LABEL.finditer(tail))
    ):
        return False
    if _CONFIRMATION.match(tail):
        return not wording.denies(re.split(r"\b(?:since|because|as)\b|[.,;]", tail)[0])
    label = _LABEL.match(tail)
    if label is not None and (not small or tail[label.start() : label.end()].strip()):
        text = tail[label.end() :]
        comma = tail.lstrip().startswith(",")
        another = not re.match(r"\s*[.:)\]]", tail) and _OTHER_LETTER.fullmatch(text.strip(" ."))
        return not another and not _NOT_A_TEXT.match(text) and not (comma and wording.hedges(text))
    if labelled:
        return not re.match(r"\s*(?:or|nor)\b", tail)
    if small:
        return False
    if _REASON.match(tail):
        return True
    # The text of the choice after a space: no sentence about the letter, and no formula with it.
    if (first := re.match(r"\s+([a-z]+)", tail)) and wording.changes(first[1]):
        return False
    if not re.match(r"\s+(?:[A-Z][a-z]|[0-9$]|\\(?:frac|sqrt|pi)|[a-z]{3})", tail) or wording.denies(tail):
        return False
    if _OTHER_LETTER.search(re.sub(r"\$[^$]*\$", "", tail)):
        return False
    return not (letters in ("A", "I") and re.match(r"\s+[a-z]", tail))


def _at_the_end(plain: str, of: str) -> frozenset[str]:
    """A letter after a word or two that name no other kind of thing: `vitamin C`."""
    match = _WORDS_AND_LETTER.fullmatch(plain)
    if match is None or any(word in _OBJECTS or wording.is_known(word) for word in match[1].lower().split()):
        return frozenset()
    if (same_kind := _WORDS_AND_LETTER.fullmatch(of)) and same_kind[1].lower() == match[1].lower():
        return frozenset()
    return frozenset(match[2])
