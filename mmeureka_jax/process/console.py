"""What a command says on stderr while it works: facts, waits, bars, and the steps of a run.

On a terminal there are bars, and lines appear above them. Elsewhere (a file, a job's log) there is a line now and then,
so that the last line says what the command waits for. In a run of many processes only the first one speaks.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, Protocol, TextIO

from tqdm import tqdm

QUIET = 30.0  # seconds: the longest time without a new line in a file while there is progress
WORTH_A_LINE = 3.0  # seconds: a longer wait says at its end how long it took
_STEPS_AVERAGED = 50

_seen: set[Hashable] = set()


def is_speaking() -> bool:
    """Whether this process is the one that speaks. Does not start the devices, which not every command needs."""
    jax = sys.modules.get("jax")
    return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


def say(text: str) -> None:
    """A line on stderr, above the bars if there are any."""
    if is_speaking():
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


def say_facts(facts: Mapping[str, object]) -> None:
    """Lines of a header: names and values, aligned."""
    for name, value in facts.items():
        say(f"  {name:<11} {value}")


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Says when the block begins what it does and, if it took long, when it ends how long it took."""
    start = time.monotonic()
    say(f"{text} ...")
    yield
    seconds = time.monotonic() - start
    if seconds >= WORTH_A_LINE:
        say(f"{text}: {duration(seconds)}")


@contextmanager
def first_time(key: Hashable, text: str) -> Iterator[None]:
    """`waiting` for what is compiled once in a process: it speaks the first time that it gets `key`, and never
    again."""
    is_new = key not in _seen
    _seen.add(key)
    with waiting(text) if is_new else nullcontext():
        yield


def duration(seconds: float) -> str:
    """Seconds in the usual units: 3.4 s, 48 s, 11 min, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def plural(count: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class Bar(Protocol):
    """The part of tqdm's interface that is used."""

    n: Any
    total: Any

    def update(self, count: int = 1, /) -> object: ...
    def set_postfix_str(self, text: str, /) -> object: ...
    def __enter__(self) -> Bar: ...
    def __exit__(self, *error: Any) -> None: ...


def progress(
    total: int, description: str, *, unit: str, enabled: bool = True, initial: int = 0, leave: bool = True
) -> Bar:
    """A bar with rate and time left on a terminal; elsewhere a line at the beginning, now and then, and at the end.

    Args:
        leave: the bar stays on the terminal when it is full.
    """
    enabled = enabled and is_speaking()
    if enabled and not _on_terminal():
        return Lines(total, description, unit=unit, initial=initial)
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=f" {unit}",
        disable=not enabled,
        leave=leave,
        dynamic_ncols=True,
        mininterval=0.2,
        smoothing=0.1,
    )


def _on_terminal() -> bool:
    """Whether bars can be seen. Terminals of some containers have no lines, and tqdm would draw nothing."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).lines > 0
    except OSError:
        return True


class Lines:
    """What `progress` returns where the output is a file: it is used like a bar, and writes lines."""

    def __init__(self, total: int, description: str, *, unit: str, initial: int = 0) -> None:
        self.total = total
        self.n = initial
        self._initial = initial
        self._description = description
        self._unit = unit
        self._postfix = ""
        self._start = time.monotonic()
        self._write()

    def update(self, count: int = 1) -> None:
        self.n += count
        if time.monotonic() - self._written >= QUIET:
            self._write()

    def set_postfix_str(self, text: str) -> None:
        self._postfix = text

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        seconds = self._written - self._start
        done = self.n - self._initial
        parts = [f"{self._description}: {self.n} of {plural(self.total, self._unit)}"]
        if done:
            parts.append(duration(seconds))
        if done and self.n < self.total:
            parts.append(f"left {duration(seconds / done * (self.total - self.n))}")
        say(", ".join([*parts, *filter(None, [self._postfix])]))


class TimeLeft:
    """How long the coming steps will take: as long as the newest ones that compiled nothing."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=_STEPS_AVERAGED)
        self._compiling: deque[float] = deque(maxlen=_STEPS_AVERAGED)

    def add(self, seconds: float, compiling: float) -> None:
        """Adds a step that took `seconds`, `compiling` of them for compilation."""
        if compiling:
            self._compiling.append(max(seconds - compiling, 0.0))
        else:
            self._steps.append(seconds)

    @property
    def knows_one(self) -> bool:
        return bool(self._steps or self._compiling)

    def of(self, steps: int) -> float | None:
        """Seconds that so many steps will take; None before the first step."""
        # The rest of a step that compiled is known only roughly: the shortest one is the best guess.
        seen = self._steps or sorted(self._compiling)[:1]
        return steps * sum(seen) / len(seen) if seen else None


class Steps:
    """The steps of a run: a bar on a terminal, if bars are wanted, and otherwise a line for each step.

    Within a step, `phase` says what happens. On the bar the phase comes before the numbers of the last step, which a
    narrow terminal cuts off first. In a log it has a line only where there would be none for long: in the first step,
    and if the phase took long the last time.
    """

    def __init__(self, total: int, done: int, name: str, *, bars: bool) -> None:
        self.total = total
        self.done = done
        self.current = done
        self._left = TimeLeft()
        self._since = self._written = time.monotonic()
        self._phase = ""
        self._phase_start = self._since
        self._took: dict[str, float] = {}  # phase -> seconds, the last time
        self._shown = ""  # the last step's numbers, on the bar
        self._bar: _StepBar | None = None
        if bars and _on_terminal() and is_speaking():
            self._bar = _StepBar(total=total, initial=done, desc=name, dynamic_ncols=True, bar_format=_StepBar.FORMAT)

    def begin_training(self) -> None:
        """Resets the clock: what came before the first step does not count for the time left."""
        self._since = time.monotonic()

    def begin(self) -> None:
        """The next step begins."""
        self.current = self.done + 1

    def phase(self, name: str, detail: str = "", *, is_said: bool = False) -> None:
        """A phase of the step begins, or (`detail`) makes progress.

        Args:
            is_said: the phase has a line or bar of its own.
        """
        now = time.monotonic()
        is_long = False
        if name != self._phase:
            self._end_phase(now)
            self._phase = name
            self._phase_start = now
            is_long = self._took.get(name, QUIET) >= QUIET
        text = f"{name}, {detail}" if detail else name
        if self._bar is not None:
            self._bar.show(" | ".join(filter(None, [text, self._shown])))
        elif not is_said and (is_long or now - self._written >= QUIET):
            first = "" if self._left.knows_one else " (first time: compiles its programs; later steps are faster)"
            self._line(f"step {self.current}/{self.total}: {text}{first} ...")

    def finish(self, shown: str, compiling: float) -> None:
        """A step is over.

        Args:
            shown: its few numbers.
            compiling: the seconds that it spent on compilation.
        """
        now = time.monotonic()
        self._end_phase(now)
        self.done += 1
        seconds = now - self._since
        self._since = now
        self._left.add(seconds, compiling)
        left = self._left.of(self.total - self.done)
        if self._bar is not None:
            self._bar.left = duration(left or 0.0)
            self._bar.n = self.done
            self._shown = shown
            self._bar.show(shown)
            return
        took = duration(seconds) + (f" ({duration(compiling)} of it compiling)" if compiling > 1 else "")
        parts = [f"step {self.done}/{self.total}", shown, took]
        if self.done < self.total:
            parts.append(f"left {duration(left or 0.0)}")
        self._line("  ".join(filter(None, parts)))

    def _line(self, text: str) -> None:
        self._written = time.monotonic()
        say(text)

    def _end_phase(self, now: float) -> None:
        if self._phase:
            self._took[self._phase] = now - self._phase_start
        self._phase = ""

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.show(self._shown)
            self._bar.close()


class _StepBar(tqdm):
    """A bar with a text at its end, whose time left is set from outside."""

    FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, left {left}] {text}"
    left = "?"
    text = ""

    def show(self, text: str) -> None:
        self.text = text
        self.refresh()

    @property
    def format_dict(self) -> dict[str, Any]:
        return {**super().format_dict, "left": self.left, "text": self.text}


def speak_in_lines() -> None:
    """Log records and Python's warnings become lines of their own, which do not break bars."""
    handler = _LineHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        say_anyway(f"WARNING {category.__name__}: {message} ({filename}:{lineno})")

    warnings.showwarning = show


def say_anyway(text: str) -> None:
    """Writes a line on stderr, whichever process this is."""
    tqdm.write(text, file=sys.stderr)


@contextmanager
def stderr_closed() -> Iterator[None]:
    """Nothing is written to stderr in the block: libraries in C++ say things while they are loaded, before they read
    any setting."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _LineHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            say_anyway(self.format(record))
        except Exception:
            self.handleError(record)
