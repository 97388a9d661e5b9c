"""Whether a checkpoint's chat template ends: a template is a program, and Jinja's sandbox keeps it from files and
modules, but not from endless loops or unbounded texts.

It is rendered once, for a short question, in a process with limits. This file is also the program of that process, so
it imports nothing large.
"""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import subprocess
import sys
from typing import Any

_SECONDS = 10
_BYTES = 2**31  # the memory it may take
_CHARACTERS = 2**20  # at most around the question
_TOO_MUCH = 3  # exit code


@functools.lru_cache(maxsize=16)
def is_bounded(template: str, variables: str) -> bool:
    """Whether the template ends within the limits. One that fails in another way does end.

    Args:
        variables: the template's variables, a JSON object.
    """
    job = json.dumps({"seconds": _SECONDS, "template": template, "variables": json.loads(variables)}).encode()
    try:
        done = subprocess.run([sys.executable, "-P", __file__], input=job, capture_output=True, timeout=3 * _SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode != _TOO_MUCH and done.returncode >= 0


def _render(template: str, variables: dict[str, Any]) -> None:
    """Raises MemoryError beyond the limits."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """What marks a response in templates for training, as transformers has it: its body counts."""

        tags = {"generation"}

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": lambda form: form}
    length = 0
    for part in environment.from_string(template).generate(**variables):
        length += len(part)
        if length > _CHARACTERS:
            raise MemoryError


if __name__ == "__main__":
    job = json.load(sys.stdin.buffer)
    with contextlib.suppress(ValueError, OSError):  # systems without these limits still have the time limit
        resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"]))
        resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    try:
        _render(job["template"], job["variables"])
    except MemoryError:
        sys.exit(_TOO_MUCH)
    except Exception:
        sys.exit(0)  # the error shows, with its message, where the template is used
