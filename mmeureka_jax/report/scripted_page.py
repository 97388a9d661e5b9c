"""Pages whose data a script draws: a template with the style of all pages, a script, and data that cannot be markup.

A template's script is the only one that the page's content policy allows, by its hash. `$shared` in it stands for
shared.js, which draws texts with formulas.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from pathlib import Path
from string import Template
from typing import Any

from mmeureka_jax.report.formula_table import FormulaTable

_FOLDER = Path(__file__).parent
_SURROGATE = re.compile("[\ud800-\udfff]")


def fill_template(name: str, **fields: str) -> bytes:
    """A page.

    Args:
        name: a file of this folder.
        fields: what stands for each `$name` in it, as markup; `$style`, `$shared` and `$script_hash` are filled in too.
    """
    template = (_FOLDER / name).read_text(encoding="utf-8")
    shared = (_FOLDER / "shared.js").read_text(encoding="utf-8")
    script = _between(template, "<script>", "</script>").replace("$shared", shared)
    page = Template(template).substitute(
        fields,
        style=_between((_FOLDER / "template.html").read_text(encoding="utf-8"), "<style>", "</style>"),
        shared=shared,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page.encode("utf-8", "replace")


def to_element_text(value: Any) -> str:
    """JSON that cannot end the `script` element which holds it; halves of surrogate pairs are escapes in it."""
    return _json(value).replace("<", "\\u003c")


def read_element(page: str, name: str) -> Any:
    """What `to_element_text` put into a page. Raises ValueError if the page has no such element."""
    return json.loads(_between(page, f'<script type="application/json" id="{name}">', "</script>"))


def packed(value: Any) -> str:
    """JSON, compressed, as text for `to_element_text`: for what most readers of a page do not look at."""
    return base64.b64encode(zlib.compress(_json(value).encode(), 9)).decode()


def unpacked(text: str) -> Any:
    """What `packed` was given."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def _between(text: str, start: str, end: str) -> str:
    begin = text.index(start) + len(start)
    return text[begin : text.index(end, begin)]


def note_of_formulas(formulas: FormulaTable) -> str:
    """How many formulas are not drawn, where some are left out."""
    if not formulas.left_out:
        return ""
    return (
        f"{formulas.left_out:,} formulas, of those that occur least often, are shown as they are written, so that the "
        "page stays small."
    )
