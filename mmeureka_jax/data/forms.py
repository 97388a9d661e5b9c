"""The known forms of rows: what in a row is the chat, the gold answer and the solution.

A form says in which column the question or the chat is. All else is the same for every form: answers and solutions are
looked for in the same columns, and pictures by the one rule of `row_pictures.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from mmeureka_jax.data.record import ROLES, RowError, shortened
from mmeureka_jax.data.row_pictures import find_pictures, is_absent, looks_like_picture
from mmeureka_jax.rewards.answers.boxes import boxed_answer

MARKER = re.compile(r"<image(?:[ _-]?(\d+))?>", re.IGNORECASE)
_ROLE_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "developer": "system"}
_TEXT_PARTS = ("text", "input_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_PART_VALUES = ("image", "image_url", "bytes", "base64", "data", "path", "url", "file", "source")
# Other ways in which texts show a picture, or leave a place for one.
_INLINE = re.compile(
    r"<(?:img|image|picture|video|audio)\b[^<>]{0,2000}>|<[|]?(?:image|video|audio)[a-z_]{0,20}[|]?>"
    r"|!\[[^\]]{0,500}\]\([^()\s]{1,2000}\)|\\includegraphics\b|data:image/[a-z+.-]{1,20};base64,",
    re.IGNORECASE,
)
# Columns in which some data sets have answers and others have other things: messages name them, nothing reads them.
_LIKE_ANSWERS = {
    *("answer", "answers", "ground_truth", "groundtruth", "gold", "gold_answer", "gt", "gt_answer", "label", "labels"),
    *("target", "output", "outputs", "response", "correct_answer", "reference", "reference_answer", "reward_model"),
    *("final_answer", "answer_key", "correct_option", "completion", "chosen"),
}
_LONGEST_BARE_ANSWER = 200  # characters of a solution that is only the answer


@dataclass(frozen=True)
class Form:
    """A known form of rows: recognised by its keys; the first holds the question or the chat."""

    name: str
    keys: tuple[str, ...]
    holds: Literal["text", "chat", "either"]


FORMS = (
    Form("MM-EUREKA for Qwen (`message`: chat as JSON text with file:// images, `answer`)", ("message",), "chat"),
    Form(
        "MM-EUREKA for InternVL (`conversations`, `image_urls`, `answer`), ShareGPT (turns with `from` and `value`)",
        ("conversations",),
        "chat",
    ),
    Form("verl (`prompt`, `images`, `reward_model` with `ground_truth`)", ("prompt", "reward_model"), "either"),
    Form(
        "chat, ms-swift (`messages`, `images` if they do not name them; `answer` or `solution`)", ("messages",), "chat"
    ),
    Form(
        "MMK12, K12 list, GSM8K, OlympiadBench, lmms-eval (`question`, `answer` or `final_answer`, and pictures)",
        ("question",),
        "text",
    ),
    Form("geometry3k, R1-V (`problem`, `images`, `answer` or `solution` with <answer> tags)", ("problem",), "text"),
    Form("ms-swift (`query`, `response` or `solution`)", ("query",), "text"),
    Form("TRL (`prompt`, `solution` or `answer`)", ("prompt",), "either"),
)


def form_of(row: Mapping[str, Any]) -> Form | None:
    """The first form whose columns the row has; of forms that share a table, one whose columns hold something."""
    forms = [form for form in FORMS if form.keys[0] in row and form.keys[-1] in row]
    if len(forms) < 2:
        return forms[0] if forms else None
    filled = [form for form in forms if not any(is_absent(row[key]) for key in form.keys)]
    return (filled or forms)[0]


def known_forms() -> str:
    return "".join(f"\n  {form.name}" for form in FORMS)


@dataclass(frozen=True)
class TakenApart:
    """A row as its form reads it."""

    messages: tuple[dict[str, Any], ...]
    pictures: list[Any]  # values, in the order of the image parts
    answer: str | None
    solution: str | None  # to imitate
    used: tuple[str, ...]  # columns that are not metadata
    unread: tuple[str, ...]  # columns that look like pictures and are not read


def take_apart(row: Mapping[str, Any], form: Form, *, needs_answer: bool) -> TakenApart:
    """Raises RowError for what cannot be understood; other exceptions for unexpected types."""
    turns = _turns(row, form)
    reply = _pop_reply(turns)
    if form.keys == ("query",) and reply is None and isinstance(row.get("response"), str):
        reply = row["response"]
    answer, solution, used = _answer(row, reply, needs_answer)
    used = (
        form.keys[0],
        *used,
        *(("history",) if form.keys == ("query",) else ()),
        *(("reward_model",) if "reward_model" in form.keys else ()),
    )
    found = find_pictures(row, used={*used, "id", "answer", "solution", "final_answer", "context"})
    messages, pictures, named = _with_pictures(turns, found.values, found.numbers)
    unread = found.unread if not named else (*found.read, *found.unread)
    if not any(part["type"] == "image" for message in messages for part in message["content"]):
        _refuse_blind(form, messages, found.misplaced)
    used = (*used, *found.empty, *(() if named else found.read))
    return TakenApart(messages, pictures, answer, solution, used, unread)


def _refuse_blind(form: Form, messages: Sequence[Mapping[str, Any]], misplaced: Sequence[str]) -> None:
    """Raises RowError for messages without pictures that ask nothing, or whose picture is somewhere else."""
    if misplaced:
        raise RowError(
            f"it has no picture, but what looks like one under {', '.join(map(repr, misplaced))}; name that column"
            " `image` or `images` (several: image_1, image_2, ...), or remove it",
            "picture of unknown place",
        )
    texts = [part["text"] for message in messages for part in _user_texts(message)]
    if not any(text.strip() for text in texts):
        raise RowError(f"there is no question in {form.keys[0]!r}")
    if inline := next(filter(None, map(_INLINE.search, texts)), None):
        raise RowError(
            f"it has no picture, but its text shows one by {shortened(inline[0])}; give the picture (sound and film are"
            " not read) in a column `image` and its place as <image>",
            "picture of unknown place",
        )


# Turns.


def _turns(row: Mapping[str, Any], form: Form) -> list[dict[str, Any]]:
    """The turns of the chat as {role, content: new parts}; an image part may carry its value as `image`."""
    value = row[form.keys[0]]
    of_text = isinstance(value, str) and not value.lstrip().startswith("[")
    if form.holds == "text" or (form.holds == "either" and of_text):
        if not isinstance(value, str):
            raise RowError(f"{form.keys[0]!r} is of type {type(value).__name__}; expected the text of the question")
        context = row.get("context") if "final_answer" in row else None  # OlympiadBench's
        text = value if is_absent(context) else f"{context}\n{value}"
        turns = [{"role": "user", "content": [_text(text)]}]
        history = row.get("history") if form.keys == ("query",) else None  # ms-swift's pairs of texts
        if isinstance(history, list) and history:
            earlier = [text for pair in history for text in pair]
            roles = ("user", "assistant") * len(history)
            turns = [{"role": r, "content": [_text(t)]} for r, t in zip(roles, earlier, strict=True)] + turns
    else:
        chat = parsed(value, "the chat")
        if not isinstance(chat, list) or not chat:
            raise RowError("no messages; expected a list of {role, content}")
        turns = [_turn(message) for message in chat]
    system = row.get("system") if form.keys[0] not in ("question", "problem") else None  # ShareGPT's and ms-swift's
    if isinstance(system, str) and not is_absent(system) and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": [_text(system)]})
    return turns


def parsed(value: Any, what: str) -> Any:
    """A value, parsed if it is JSON text (MM-EUREKA's `message` and TFDS rows hold structures as text)."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what} is text that is not valid JSON ({error})") from None


def _turn(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RowError(f"a message is of type {type(message).__name__}; expected {{role, content}}")
    role_key, content_key = (
        ("from", "value") if "value" in message and "content" not in message else ("role", "content")
    )
    for key in (role_key, content_key):
        if key not in message:
            raise RowError(f"a message has no {key!r}; it has {', '.join(map(repr, message)) or 'nothing'}")
    role = message[role_key]
    role = _ROLE_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise RowError(f"role {role!r}; expected one of {', '.join(ROLES)}")
    content = _parts(message[content_key])
    own = find_pictures(message, used=(role_key, content_key)).values
    if own:  # pictures that a message brings itself
        (content,), values, named = _placed([content], own, 0)
        if named or len(values) != sum(part["type"] == "image" for part in content):
            raise RowError(f"a message has {len(own)} picture(s) next to its content, which has other places for them")
        waiting = iter(values)
        content = [part | {"image": next(waiting)} if part["type"] == "image" else part for part in content]
    return {"role": role, "content": content}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [_text(content)]
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple):
        raise RowError(f"the content of a message is of type {type(content).__name__}; expected text or parts")
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append(_text(part))
            continue
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind in _IMAGE_PARTS:
            value = next((part[key] for key in _PART_VALUES if not is_absent(part.get(key))), None)
            parts.append({"type": "image", "image": value})
        elif kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            lost = [key for key, value in part.items() if key != "text" and looks_like_picture(value)]
            if lost:
                raise RowError(f"a part of type text has a picture under {lost[0]!r}; make a part of type image of it")
            parts.append(_text(part["text"]))
        else:
            raise RowError(f"a content part of type {kind!r}; expected text or image")
    return parts


def _user_texts(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [part for part in turn["content"] if turn["role"] == "user" and part["type"] == "text"]


def _pop_reply(turns: list[dict[str, Any]]) -> str | None:
    """Removes the last turn if it is the assistant's: it is the solution and not part of the prompt."""
    reply = None
    if turns[-1]["role"] == "assistant" and len(turns) > 1:
        parts = turns.pop()["content"]
        if any(part["type"] == "image" for part in parts):
            raise RowError("the last message, the assistant's, has a picture; only text can be imitated")
        reply = "".join(part["text"] for part in parts)
    if turns[-1]["role"] != "user":
        raise RowError("the last message must be the user's, or the assistant's right after it (the solution)")
    return reply


# Pictures.


def _with_pictures(
    turns: Sequence[Mapping[str, Any]], waiting: Sequence[Any], called: Sequence[int] | None
) -> tuple[tuple[dict[str, Any], ...], list[Any], bool]:
    """Messages, the picture values in the order of their parts, and whether the chat itself names all its pictures, so
    that the columns only repeat them."""
    first = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), 0)
    contents, values, named = _placed([turn["content"] for turn in turns], waiting, first, called)
    messages = tuple({"role": turn["role"], "content": content} for turn, content in zip(turns, contents, strict=True))
    return messages, values, named


def _placed(
    contents: Sequence[Sequence[Mapping[str, Any]]],
    waiting: Sequence[Any],
    first: int,
    called: Sequence[int] | None = None,
) -> tuple[list[list[dict[str, Any]]], list[Any], bool]:
    """Part lists without values, values, and whether the parts brought all of them.

    A picture is where its image part is, or where its marker is (`<image>`, `<image_2>`), or in front of
    turn `first` if there is neither. Where the chat has both, as many markers as parts, the markers are the places.
    `called` are the numbers of the pictures in `waiting` where they do not simply count from one.
    """
    images = [part for content in contents for part in content if part["type"] == "image"]
    own = [part.get("image") for part in images]
    values, named = _filled(own, waiting)
    split = [_split_markers(content) for content in contents]
    numbers = [part["number"] for content in split for part in content if "number" in part]
    if not numbers:
        placed = [list(map(_bare, content)) for content in split]
        if not images and values:
            placed[first] = [{"type": "image"} for _ in values] + placed[first]
        return placed, values, named
    if images and len(images) != len(numbers):
        raise RowError(
            f"{len(images)} image part(s) and {len(numbers)} `<image>` marker(s) in the text; remove the markers, or"
            " give each picture one"
        )
    placed = [[_bare(part) for part in content if "number" in part or part["type"] != "image"] for content in split]
    return placed, _by_number(values, numbers, called if not images else None), named


def _bare(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "image"} if part["type"] == "image" else _text(part["text"])


def _filled(own: Sequence[Any], waiting: Sequence[Any]) -> tuple[list[Any], bool]:
    """The values of the image parts, where missing from `waiting`; those without a place are at the end."""
    if own and len(own) == len(waiting) and all(value is not None for value in own):
        return list(own), True
    left = list(waiting)
    values = [value if value is not None else left.pop(0) if left else None for value in own]
    return [value for value in values if value is not None] + left, False


def _split_markers(content: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The parts, cut at the markers, which become image parts with a `number` (None for `<image>`). If several markers
    have one number, the first is the picture's place, and the others only mention it and become `image 2`."""
    pieces: list[dict[str, Any]] = []
    seen: set[str | None] = set()
    for part in content:
        if part["type"] != "text":
            pieces.append(dict(part))
            continue
        text = ""
        start = 0
        for match in MARKER.finditer(part["text"]):
            text += part["text"][start : match.start()]
            start = match.end()
            if match[1] in seen:
                text += f"image {match[1]}"
                continue
            seen |= {match[1]} - {None}
            pieces += [_text(text)] * (text != "")
            pieces.append({"type": "image", "number": match[1]})
            text = ""
        text += part["text"][start:]
        pieces += [_text(text)] * (text != "")
    return pieces


def _by_number(values: list[Any], numbers: Sequence[str | None], called: Sequence[int] | None) -> list[Any]:
    """Values in the order in which the markers name them: the lowest number is the first picture."""
    if all(number is None for number in numbers):
        return values
    if any(number is None for number in numbers):
        raise RowError("some image markers have numbers and some have none; write either <image> or <image_1>, ...")
    counted = [int(number or 0) for number in numbers]
    if len(set(counted)) != len(counted):
        raise RowError("a number occurs in the image markers of two messages; number the pictures through")
    if len(counted) != len(values):
        return values  # Problem reports the numbers
    if called is not None and sorted(counted) != list(called):
        raise RowError(
            f"the text has markers for the images {', '.join(map(str, sorted(counted)))}, but the row holds the images"
            f" {', '.join(map(str, called))}; give markers and images the same numbers"
        )
    ranks = {number: rank for rank, number in enumerate(sorted(counted))}
    return [values[ranks[number]] for number in counted]


# Answers.


def _answer(row: Mapping[str, Any], reply: str | None, needed: bool) -> tuple[str | None, str | None, tuple[str, ...]]:
    """The gold answer, the solution to imitate, and the columns that are therefore not metadata."""
    solution = row.get("solution")
    if isinstance(solution, list | tuple):  # OlympiadBench's
        solution = "\n".join(text for text in solution if isinstance(text, str))
    texts = [text for text in (solution, reply) if isinstance(text, str) and text.strip()]
    reward_model = row.get("reward_model")
    answer: str | None
    given = [reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None, row.get("answer")]
    final = row.get("final_answer")  # OlympiadBench's: a list; of several answers, where a question has several
    given.append(", ".join(map(str, final)) if isinstance(final, list | tuple) else final)
    for value in given:
        if not is_absent(value):
            answer, marked_in = _plain_answer(value)
            texts = [*texts, marked_in] if marked_in is not None else texts
            break
    else:
        # The solution, if there are a solution and a response; a short text without marks is only the answer.
        found = (_marked(text) or (text.strip() if _is_bare(text) else None) for text in texts)
        answer = next(filter(None, found), None)
    if answer is None and needed:
        without = " (its solution has neither <answer> tags nor \\boxed{} nor a last line with ####)" if texts else ""
        like = [key for key in row if key.lower().strip("_") in _LIKE_ANSWERS and not is_absent(row[key])]
        advice = f"rename {like[0]!r} to `answer` if it is the answer" if like else "give one as `answer`"
        raise RowError(f"no answer{without}; {advice}, or drop the row", "no answer")
    used = ("answer", *(key for key in ("final_answer",) if is_absent(row.get("answer"))))
    return answer, texts[0] if texts else None, used


def _plain_answer(value: Any) -> tuple[str, str | None]:
    """A given answer as text, and the solution that holds it, if one does."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        raise RowError(f"the answer is of type list, with {len(value)} items; expected text or a number")
    if isinstance(value, str):
        answer = _last_line(value) or _tagged(value)
        return (answer, value) if answer is not None else (value, None)
    if not isinstance(value, str | int | float | Decimal):
        raise RowError(f"the answer is of type {type(value).__name__}; expected text or a number")
    if not isinstance(value, int) and not Decimal(value).is_finite():
        raise RowError(f"the answer is {value}; expected text or a finite number", "no answer")
    return (format(value, "f") if isinstance(value, Decimal) else str(value)), None


def _last_line(text: str) -> str | None:
    """The text after `#### ` in the last line of a solution, as in GSM8K."""
    _, mark, last = text.rstrip().rpartition("\n####")
    return last.strip() if mark and last.strip() and "\n" not in last else None


def _tagged(text: str) -> str | None:
    """The text in the last <answer> tags."""
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if start < 0:
        return None
    return text[start + len("<answer>") : text.find("</answer>", start)].strip() or None


def _marked(solution: str) -> str | None:
    """The answer that a solution marks as such."""
    return _last_line(solution) or _tagged(solution) or boxed_answer(solution) or None


def _is_bare(text: str) -> bool:
    return len(text.strip()) <= _LONGEST_BARE_ANSWER and "\n" not in text.strip()
