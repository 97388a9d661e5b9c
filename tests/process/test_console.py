"""What a command says on stderr: lines in a file, bars on a terminal, and a time left without compilation."""

from __future__ import annotations

import io
import logging
import sys
import warnings

import pytest

from mmeureka_jax.process import console
from mmeureka_jax.process.console import Steps, TimeLeft, duration, progress, say, waiting


class Clock:
    """Time that passes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(console.time, "monotonic", lambda: self.now)

    def passes(self, seconds: float) -> None:
        self.now += seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (3.44, "3.4 s"), (9.96, "10 s"), (48.2, "48 s"), (99.6, "2 min"), (7500, "2 h 05 min")],
)
def test_durations_as_people_say_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("seconds", "end"), [(1.0, []), (18.0, ["compiling: 18 s"])])
def test_a_wait_is_said_when_it_begins_and_its_time_when_it_was_long(clock, capsys, seconds, end):
    with waiting("compiling"):
        assert lines(capsys) == ["compiling ..."]
        clock.passes(seconds)
    assert lines(capsys) == end


def test_a_wait_that_fails_does_not_end(clock, capsys):
    with pytest.raises(KeyError), waiting("compiling"):
        clock.passes(60)
        raise KeyError
    assert lines(capsys) == ["compiling ..."]


def test_what_is_compiled_once_is_said_once(capsys):
    for key in ("a", "b", "a"):
        with console.first_time(("test", key), f"compiling {key}"):
            pass
    assert lines(capsys) == ["compiling a ...", "compiling b ..."]


def test_a_bar_in_a_file_is_a_line_now_and_then(clock, capsys):
    with progress(10, "train", unit="row", initial=4) as bar:
        assert lines(capsys) == ["train: 4 of 10 rows"]
        clock.passes(20)
        bar.update(1)
        assert lines(capsys) == []
        clock.passes(20)
        bar.update()
        assert (bar.n, bar.total) == (6, 10)
        assert lines(capsys) == ["train: 6 of 10 rows, 40 s, left 80 s"]
        bar.update(4)
    assert lines(capsys) == ["train: 10 of 10 rows, 40 s"]


def test_one_is_no_plural(capsys):
    with progress(1, "check gold answers", unit="answer"):
        pass
    assert lines(capsys)[0] == "check gold answers: 0 of 1 answer"


def test_a_bar_that_is_not_wanted_says_nothing(capsys):
    with progress(10, "train", unit="row", enabled=False) as bar:
        bar.update(1)
    assert lines(capsys) == []


def test_the_time_left_is_that_of_steps_that_compiled_nothing():
    left = TimeLeft()
    assert left.of(10) is None
    left.add(60.0, compiling=50.0)
    assert left.of(10) == pytest.approx(100)  # all that is known yet
    left.add(78.0, compiling=2.0)  # it waited for another process that compiled
    assert left.of(10) == pytest.approx(100)
    left.add(2.0, compiling=0.0)
    left.add(4.0, compiling=0.0)  # with a validation, say
    left.add(300.0, compiling=40.0)
    assert left.of(10) == pytest.approx(30)


def run_steps(clock, bars: bool) -> Steps:
    """Two steps of four, of a run that continues after the second: the first one compiles."""
    with Steps(6, 2, "train", bars=bars) as steps:
        clock.passes(100)
        steps.begin_training()
        for compiling in (50.0, 0.0):
            steps.begin()
            steps.phase("sampling")
            clock.passes(4)
            steps.phase("sampling", "3 of 8 groups")
            clock.passes(compiling + 1)
            steps.finish("acc 0.41  loss 0.012", compiling)
    return steps


def test_without_bars_there_is_a_line_for_each_step(clock, capsys):
    run_steps(clock, bars=False)
    assert lines(capsys) == [
        "step 3/6: sampling (first time: compiles its programs; later steps are faster) ...",
        "step 3/6  acc 0.41  loss 0.012  55 s (50 s of it compiling)  left 15 s",
        "step 4/6: sampling ...",
        "step 4/6  acc 0.41  loss 0.012  5.0 s  left 10 s",
    ]


def test_bars_in_a_file_are_such_lines_too(clock, capsys):
    run_steps(clock, bars=True)
    assert lines(capsys)[-1] == "step 4/6  acc 0.41  loss 0.012  5.0 s  left 10 s"


def test_short_phases_are_not_said_twice(clock, capsys):
    steps = Steps(6, 0, "train", bars=False)
    for _ in range(3):
        steps.begin()
        steps.phase("updating")
        clock.passes(2)
        steps.finish("loss 1", 0.0)
    assert [line for line in lines(capsys) if "updating" in line] == [
        "step 1/6: updating (first time: compiles its programs; later steps are faster) ..."
    ]


def test_a_phase_after_a_long_silence_is_said(clock, capsys):
    steps = Steps(6, 0, "train", bars=False)
    for seconds in (1, 100, 1):
        steps.begin()
        for name in ("sampling", "updating"):
            steps.phase(name)
            clock.passes(seconds)
        steps.finish("loss 1", 0.0)
    said = [line for line in lines(capsys) if line.endswith("ing ...")]
    assert said == ["step 2/6: updating ...", "step 3/6: sampling ...", "step 3/6: updating ..."]


def test_on_a_terminal_the_bar_says_the_phase_and_the_time_left(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    steps = run_steps(clock, bars=True)
    assert steps.done == 4
    text = terminal.getvalue()
    assert "sampling, 3 of 8 groups" in text and "left 15 s" in text and "left 10 s" in text and "step 3/6" not in text
    assert "] sampling, 3 of 8 groups | acc 0.41  loss 0.012" in text


def test_a_narrow_terminal_cuts_off_numbers_and_not_the_phase(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (60, 24))
    run_steps(clock, bars=True)
    with_phase = [line for line in terminal.getvalue().split("\r") if "3/6" in line and "groups" in line]
    assert with_phase and all("sampling, 3 of 8 groups" in line for line in with_phase)


@pytest.fixture
def lines_of_libraries(monkeypatch):
    """`speak_in_lines` for a test: the handlers and hooks are put back."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # in other tests a warning is an error
        console.speak_in_lines()
        yield


@pytest.mark.parametrize(
    "warn", [lambda: logging.getLogger("x").warning("odd"), lambda: warnings.warn("odd", stacklevel=1)]
)
def test_warnings_are_lines_of_their_own(lines_of_libraries, monkeypatch, warn):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(10, "train", unit="row") as bar:
        bar.update(3)
        warn()
    (line,) = [line for line in terminal.getvalue().replace("\r", "\n").splitlines() if "odd" in line]
    assert line.startswith("WARNING") and "row" not in line


def test_only_the_first_process_speaks(monkeypatch, capsys):
    monkeypatch.setattr(console, "is_speaking", lambda: False)
    say("hello")
    with waiting("compiling"), progress(3, "train", unit="row") as bar:
        bar.update()
    run = Steps(3, 0, "train", bars=True)
    run.begin()
    run.phase("sampling")
    run.finish("loss 1", 0.0)
    assert lines(capsys) == []
