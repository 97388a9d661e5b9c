"""`mmeureka sweep FILE`: the same run with different settings and seeds, one after another or by index,
and a comparison of them.

    config: ../demo_rl.yaml              # what every run starts from; this path and that of `imitation` are relative
                                         # to this file
    folder: runs/ablations/losses        # FOLDER/KIND/seedN are the runs, FOLDER/comparison.html what came of them
    command: train                       # optional: train, sft or prm train
    imitation: ../demo_sft.yaml          # optional, of train: a supervised run whose export all runs start from
    overrides: {steps: 60}               # for every run
    variants:                            # kinds of run by name ...
      grpo: {rl.advantage: grpo, rl.loss: ppo_clip}
      cpgd: {rl.advantage: cpgd, rl.loss: cpgd}
    grid: {optimizer.learning_rate: [1.0e-4, 3.0e-4]}      # ... times every combination of these values
    seeds: [0, 1, 2]
    metrics: [validation/accuracy]       # optional: what is drawn
    summary: [last validation/accuracy]  # optional: columns of the tables (first, last, end, max, min, mean)

Each run is a process of its own. What is done is not done again: an interrupted sweep continues with the same command.
A run that stops because of what its policy has become (answers that all score alike, updates that are not finite) is a
result too: its row says so.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from mmeureka_jax.config.checks import Command, as_run
from mmeureka_jax.config.load import load_config, save_config
from mmeureka_jax.config.reading import overlaid
from mmeureka_jax.config.schema import Config
from mmeureka_jax.config.stages import EXPORT_FOLDER
from mmeureka_jax.config.yaml_text import describe, is_plain_text, read_yaml, shown
from mmeureka_jax.errors import EXIT_BAD_INPUT, EXIT_STOPPED, Terminated, UserError
from mmeureka_jax.files import exclusive, expect, explain_write_errors, read_json, refuse_address, write_atomic
from mmeureka_jax.process import interrupts
from mmeureka_jax.process.console import progress, say
from mmeureka_jax.report import comparison
from mmeureka_jax.runs.folder import config_changes
from mmeureka_jax.runs.metadata import read_metadata
from mmeureka_jax.runs.provenance import read_provenance
from mmeureka_jax.runs.tracking import METRICS_FILE, read_metrics
from mmeureka_jax.setup.checks import validate_config

CONFIG_FILE = "run.yaml"
LOG_FILE = "log.txt"
STOPPED_FILE = "stopped.json"
IMITATION_FOLDER = "imitation"
_COMMANDS: Mapping[str, Command] = {"train": "train", "sft": "sft", "prm train": "prm"}  # and what is checked for them
_MAX_KINDS = 1000  # kinds of run
_MAX_NAME = 200  # bytes of a folder's name
_KEYS = ("config", "folder", "command", "imitation", "overrides", "variants", "grid", "seeds", "metrics", "summary")


@dataclass(frozen=True)
class Member:
    """One run of a sweep: its kind, seed, what sets the kind apart, and its whole config."""

    kind: str
    seed: int
    settings: Mapping[str, Any]
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and expanded.

    Attributes:
        command: that makes a run.
        imitation: the config of the supervised run that all members start from.
        metrics, summary: see `comparison.write_comparison`.
    """

    name: str
    folder: Path
    command: str
    members: tuple[Member, ...]
    imitation: Config | None
    metrics: tuple[str, ...]
    summary: tuple[str, ...]


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file and makes the config of every run.

    Args:
        overrides: of every run, after the file's own; `folder=DIR` is the sweep's.

    Raises:
        UserError: a file that cannot be read, an unknown key, a value of another form, or a run whose config is wrong.
    """
    tree = read_yaml(path)
    unknown = [key for key in tree if key not in _KEYS]
    if unknown:
        raise UserError(f"{path}: unknown keys {unknown}; a sweep has {', '.join(_KEYS)}")
    folders = [text.partition("=")[2] for text in overrides if text.startswith("folder=")]
    overrides = [text for text in overrides if not text.startswith("folder=")]
    place = folders[-1] if folders else _get(path, tree, "folder", str)
    refuse_address(f"{path}: folder", place)
    folder = Path(place)
    seeds = _get(path, tree, "seeds", list, [0])
    if not seeds or not all(type(seed) is int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds must be different integers, such as [0, 1, 2]; got {describe(seeds)}")
    metrics = _texts(path, tree, "metrics", comparison.METRICS)
    summary = _texts(path, tree, "summary", comparison.SUMMARY)
    for text in summary:
        comparison.parse_summary(text)

    command = _get(path, tree, "command", str, "train")
    if command not in _COMMANDS or (command != "train" and "imitation" in tree):
        known = ", ".join(_COMMANDS)
        raise UserError(f"{path}: command must be one of {known}, with an imitation train; got {shown(command)}")
    shared: dict[str, Any] = _settings(path, "overrides", _get(path, tree, "overrides", dict, {}))
    _settings(path, "the command line", {text.partition("=")[0].strip(): None for text in overrides})
    imitation = None
    start = {}
    if "imitation" in tree:
        imitation = load_config(path.parent / _get(path, tree, "imitation", str))
        imitation = replace(imitation, run_dir=str(folder / IMITATION_FOLDER))
        validate_config(imitation, command="sft")
        start = {"model.checkpoint": str(folder / IMITATION_FOLDER / EXPORT_FOLDER), "model.random": None}
    base = load_config(path.parent / _get(path, tree, "config", str))
    if imitation is not None and base.model.lora is not None:
        # What the imitation has learnt would be rounded in bfloat16, and adapters of its own are in the export.
        start |= {"model.lora.adapters": None, "model.lora.base_dtype": "float32"}
    members = []
    for kind, settings in _kinds(path, tree).items():
        for seed in seeds:
            own = {"seed": seed, "run_dir": str(folder / kind / f"seed{seed}")}
            config = overlaid(base, {**shared, **start, **settings, **own}, f"{path}: {kind}", overrides)
            if config.stages:
                raise UserError(f"{path}: {kind} has stages, which a sweep cannot compare; take them out")
            try:
                validate_config(config, command=_COMMANDS[command])
            except UserError as error:
                raise UserError(f"{path}: {kind}: {error}") from None
            members.append(Member(kind, seed, settings, as_run(config, _COMMANDS[command])))
    return Sweep(path.stem, folder, command, tuple(members), imitation, metrics, summary)


def _get(path: Path, tree: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = tree.get(key, default)
    if not isinstance(value, kind) or (isinstance(value, str) and not is_plain_text(value)):
        names: dict[type, str] = {str: "text", list: "a list", dict: "a section (`key: value` lines)"}
        raise UserError(f"{path}: {key} must be {names[kind]}; got {describe(value)}")
    return value


def _texts(path: Path, tree: Mapping[str, Any], key: str, default: Sequence[str]) -> tuple[str, ...]:
    values = _get(path, tree, key, list, list(default))
    if not all(isinstance(value, str) and is_plain_text(value) for value in values):
        raise UserError(f"{path}: {key} must be a list of texts; got {describe(values)}")
    return tuple(values)


def _settings(path: Path, where: str, settings: Any) -> dict[str, Any]:
    """Config keys with their values, as they were given."""
    if not isinstance(settings, Mapping):
        raise UserError(
            f"{path}: {where} must be config keys with their values, as rl.loss: cpgd; got {describe(settings)}"
        )
    for key, instead in (("seed", "seeds: [...]"), ("run_dir", "folder: DIR"), ("stages", "single runs")):
        if key in settings:
            raise UserError(f"{path}: {where}: {key} cannot be set for a run of a sweep, which has {instead}")
    return dict(settings)


def _kinds(path: Path, tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The name and the settings of every kind of run: variants times combinations of the grid."""
    variants, grid = (_get(path, tree, key, dict, {}) for key in ("variants", "grid"))
    _settings(path, "grid", grid)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: grid: {key} must be a list of values; got {describe(values)}")
    count = math.prod(map(len, grid.values())) * max(len(variants), 1)
    if count > _MAX_KINDS:
        raise UserError(
            f"{path}: {count:,} kinds of run; a sweep has at most {_MAX_KINDS:,}, so take out some of the grid"
        )
    kinds: dict[str, dict[str, Any]] = {}
    for name, settings in (variants or {"": {}}).items():
        settings = _settings(path, f"settings of {name}", {} if settings is None else settings)
        for point in itertools.product(*grid.values()):
            chosen = dict(zip(grid, point, strict=True))
            parts = [str(name), *(f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items())]
            kind = re.sub(r"[^\w.=+-]+", "_", " ".join(part for part in parts if part)) or "run"
            if len(kind.encode()) > _MAX_NAME:
                raise UserError(f"{path}: a kind of run would be called {shown(kind)}; name it as a variant")
            if kind in kinds or kind == IMITATION_FOLDER:
                raise UserError(f"{path}: two kinds of run would be called {kind!r}; name them as variants")
            kinds[kind] = {**settings, **chosen}
    return kinds


# ---------------------------------------------------------------------------------------------------------------------
# Running.


def state(member: Member) -> str:
    """ "done", "stopped at step N: why" (its policy or problems let it go no further), "at step N" or "not begun".

    Raises:
        UserError: what is in its folder was made with another config.
    """
    metadata = read_metadata(member.folder)
    stopped = member.folder / STOPPED_FILE
    if metadata is None:
        return "not begun"
    differences = config_changes(metadata, member.config)
    if differences:
        raise UserError(
            f"{member.folder} holds a run with other settings:\n  "
            + "\n  ".join(differences)
            + "\nGive the sweep another folder, or remove that run"
        )
    if (member.folder / "checkpoints" / str(member.config.steps)).is_dir():
        return "done"
    rows = rows_of(member)
    at = f"at step {rows[-1]['step'] if rows else 0}"
    if stopped.exists():
        return f"stopped {at}: {_why_stopped(member.folder)}"
    return at


def _why_stopped(folder: Path) -> str:
    return expect(folder / STOPPED_FILE, read_json(folder / STOPPED_FILE), "message", str, "it does not say why")


def rows_of(member: Member) -> list[dict[str, Any]]:
    return read_metrics(member.folder) if (member.folder / METRICS_FILE).exists() else []


def is_over(text: str) -> bool:
    return text == "done" or text.startswith("stopped")


def run_sweep(sweep: Sweep, *, only: int | None = None, retry: bool = False, show: bool = True) -> Path | None:
    """Runs what is not yet done, and writes the comparison (but not where only one run was asked for).

    Args:
        only: the index of the one run to make, for arrays of jobs; None: all of them, in turn.
        retry: runs that stopped continue too.

    Returns:
        The comparison's page.

    Raises:
        UserError: no such index, a run's folder is in the way, a run cannot be made (its message), or some crashed.
        Terminated: SIGTERM came; the run under way has written a checkpoint.
    """
    if only is not None and not 0 <= only < len(sweep.members):
        raise UserError(f"{sweep.name}: there is no run {only}; their indices are 0 to {len(sweep.members) - 1}")
    chosen = sweep.members if only is None else sweep.members[only : only + 1]
    for member in chosen:
        state(member)  # a folder that is in the way is found before anything runs
    crashed = []
    with _Processes() as processes, progress(len(chosen), sweep.name, unit="run", enabled=show) as bar:
        if sweep.imitation is not None:
            with exclusive(sweep.folder, wait=True):  # jobs of an array: one makes it, the others wait
                _imitate(sweep, sweep.imitation, processes)
        for member in chosen:
            bar.set_postfix_str(f"{member.kind} seed {member.seed}")
            if retry:
                (member.folder / STOPPED_FILE).unlink(missing_ok=True)
            if not is_over(state(member)):
                try:
                    stopped = processes.run(sweep.command, member.config)
                except Crashed as error:
                    crashed.append(str(error))
                else:
                    if stopped:
                        say(f"{member.kind} seed {member.seed} {state(member)}")
                if only is None and any(rows_of(one) for one in sweep.members):
                    write_comparison(sweep)
            bar.update()
    if crashed:
        raise UserError("\n".join([*crashed, "the same command tries them again"]))
    return write_comparison(sweep) if only is None else None


def write_comparison(sweep: Sweep) -> Path:
    """The page and tables of what the sweep's runs have come to so far."""
    runs = [comparison.Run(m.kind, f"seed {m.seed}", rows_of(m), state(m), m.settings) for m in sweep.members]
    return comparison.write_comparison(
        runs, sweep.folder, title=sweep.name, metrics=sweep.metrics, summary=sweep.summary
    )


def _imitate(sweep: Sweep, config: Config, processes: _Processes) -> None:
    """The supervised run that all others start from, and its export, unless they are there."""
    folder = Path(config.run_dir)
    metadata = read_metadata(folder)
    exported = read_provenance(folder / EXPORT_FOLDER)
    differences = config_changes(metadata, config) if metadata else []
    if differences:
        raise UserError(
            f"{folder}: the imitation that all runs start from was made with other settings:\n  "
            + "\n  ".join(differences)
            + "\nGive the sweep another folder"
        )
    if exported.get("step") == config.steps:
        return
    if processes.run("sft", config):
        message = _why_stopped(folder)
        (folder / STOPPED_FILE).unlink()
        raise UserError(f"{sweep.name}: the imitation that all runs start from stopped: {message}")
    processes.run("export", config, f"--output={folder / EXPORT_FOLDER}")


class Crashed(Exception):
    """A run's process ended otherwise than a run ends."""


class _Processes:
    """Runs our commands as processes of their own, one at a time, and passes SIGINT and SIGTERM on to them.

    Each is in a process group of its own, so that Ctrl-C reaches it once, through this process. It gets SIGTERM when
    this process is killed; the next start waits until it has written its checkpoint.
    """

    def __init__(self) -> None:
        self._running = False
        self._current: subprocess.Popen | None = None
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Processes:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._pass_on) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._running:
            self._received = self._received or number
            if self._current is not None:
                self._current.send_signal(number)
        elif callable(self._previous[number]):
            self._previous[number](number, frame)
        else:
            raise Terminated("stopped by SIGTERM; the same command continues from there")

    def run(self, command: str, config: Config, *options: str) -> bool:
        """Runs `mmeureka COMMAND` on a run. Its output goes to LOG_FILE in the run's folder.

        Returns:
            Whether it stopped because its policy or problems let it go no further; STOPPED_FILE then says why.

        Raises:
            UserError: it says that its input is wrong, with its message.
            Crashed: it ended in any other way.
            Terminated: SIGTERM came.
            KeyboardInterrupt: SIGINT came, to this process or to that one.
        """
        folder = Path(config.run_dir)
        if command != "export":
            with exclusive(folder, wait=True):  # a run that outlived the sweep it was started by ends first
                pass
        target = folder if command == "export" else folder / CONFIG_FILE
        log = folder / LOG_FILE
        with explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_config(config, folder / CONFIG_FILE)
            output = log.open("ab")
        with output:
            start = output.tell()
            self._running = True
            try:
                self._current = subprocess.Popen(
                    [sys.executable, "-m", "mmeureka_jax.cli", *command.split(), str(target), *options],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
                    env=interrupts.environment_of_child(),
                )  # fmt: skip
                if self._received is not None:  # it came while the process was made
                    self._current.send_signal(self._received)
                code = self._current.wait()
            finally:
                self._running = False
                self._current = None
        if self._received == signal.SIGTERM:
            raise Terminated(f"stopped by SIGTERM during {folder}; the same command continues from there")
        if self._received is not None:
            raise KeyboardInterrupt
        said = log.read_bytes()[start:].decode("utf-8", "replace")
        message = said.rpartition("mmeureka: error: ")[2].strip()
        if code == EXIT_STOPPED:
            write_atomic(folder / STOPPED_FILE, json.dumps({"message": message}, indent=1).encode())
        elif code == EXIT_BAD_INPUT:
            raise UserError(f"{folder}: {message}")
        elif code in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        elif code != 0:
            last = "\n".join(said.strip().splitlines()[-5:])
            raise Crashed(f"{folder}: the run crashed (exit code {code}); {log} has its output, which ends\n{last}")
        return code == EXIT_STOPPED
