"""`mmeureka sweep FILE`: the same run with different settings and seeds, one after another or by index,
and a comparison of them.

    config: ../demo_rl.yaml              # what every run starts from; paths are relative to this file
    folder: runs/ablations/losses        # FOLDER/KIND/seedN are the runs, FOLDER/comparison.html what came of them
    imitation: ../demo_sft.yaml          # optional: a supervised run whose export all runs start from
    overrides: {steps: 60}               # of every run
    variants:                            # kinds of run by name ...
      grpo: {rl.advantage: grpo, rl.loss: ppo_clip}
      cpgd: {rl.advantage: cpgd, rl.loss: cpgd}
    grid: {optimizer.learning_rate: [1.0e-4, 3.0e-4]}      # ... times every combination of these values
    seeds: [0, 1, 2]
    metrics: [validation/accuracy]       # optional: what is drawn
    summary: [last validation/accuracy]  # optional: columns of the tables (first, last, end, max, min, mean)

Each run is a process of its own. What is done is not done again, so an interrupted sweep goes on with the same command.
A run that stops with an error (answers that all score alike, updates that are not finite) is a result too: its row says
so.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from mmeureka_jax import compare
from mmeureka_jax.checkpoint import read_metadata
from mmeureka_jax.config import Config, config_diff, load_config, save_config, to_dict, validate_config
from mmeureka_jax.config_io import load_yaml
from mmeureka_jax.errors import EXIT_BAD_INPUT, EXIT_TERMINATED, Terminated, UserError
from mmeureka_jax.files import write_atomic
from mmeureka_jax.rl.run_folder import comparable
from mmeureka_jax.tracking import METRICS_FILE, progress, read_metrics

CONFIG_FILE, LOG_FILE, STOPPED_FILE = "run.yaml", "log.txt", "stopped.json"
_KEYS = ("config", "folder", "imitation", "overrides", "variants", "grid", "seeds", "metrics", "summary")


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
        imitation: the config of the supervised run that all members start from, and where its policy is exported to.
        metrics, summary: see `compare.write_comparison`.
    """

    name: str
    folder: Path
    members: tuple[Member, ...]
    imitation: Config | None
    metrics: tuple[str, ...]
    summary: tuple[str, ...]

    @property
    def start(self) -> Path:
        return self.folder / "imitation" / "export"


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file and makes the config of every run.

    Args:
        overrides: of every run, after the file's own; `folder=DIR` is the sweep's.

    Raises:
        UserError: a file that cannot be read, an unknown key, a value of another form, or a run whose config is wrong.
    """
    tree = _read(path)
    folders = [text.partition("=")[2] for text in overrides if text.startswith("folder=")]
    overrides = [text for text in overrides if not text.startswith("folder=")]
    folder = Path(folders[-1] if folders else _get(path, tree, "folder", str))
    base = path.parent / _get(path, tree, "config", str)
    shared = _texts(path, "overrides", _get(path, tree, "overrides", dict, {}))
    seeds = _get(path, tree, "seeds", list, [0])
    if not seeds or not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds must be different integers, such as [0, 1, 2]; got {seeds}")
    metrics, summary = (tuple(_get(path, tree, name, list, list(default))) for name, default in (
        ("metrics", compare.METRICS), ("summary", compare.SUMMARY)
    ))  # fmt: skip
    for text in summary:
        compare.parse_summary(str(text))

    imitation = None
    if "imitation" in tree:
        imitation = load_config(path.parent / _get(path, tree, "imitation", str))
        imitation = replace(imitation, run_dir=str(folder / "imitation"))
    sweep = Sweep(path.stem, folder, (), imitation, metrics, summary)
    members = []
    for kind, settings in _kinds(path, tree).items():
        for seed in seeds:
            run_dir = folder / kind / f"seed{seed}"
            own = _texts(path, f"settings of {kind}", settings)
            start = [f"model.checkpoint={sweep.start}", "model.random=null"] if imitation else []
            config = load_config(
                base, [*shared, *start, *own, *overrides, f"seed={seed}", f"run_dir={json.dumps(str(run_dir))}"]
            )
            if config.stages:
                raise UserError(f"{path}: {base} has stages, which a sweep cannot compare; take them out")
            try:
                validate_config(config)
            except UserError as error:
                raise UserError(f"{path}: {kind}: {error}") from None
            members.append(Member(kind, seed, settings, config))
    return replace(sweep, members=tuple(members))


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the sweep file: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a sweep file holds `key: value` lines; the keys are {', '.join(_KEYS)}")
    unknown = [key for key in tree if key not in _KEYS]
    if unknown:
        raise UserError(f"{path}: unknown keys {unknown}; a sweep has {', '.join(_KEYS)}")
    return tree


def _get(path: Path, tree: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = tree.get(key, default)
    if not isinstance(value, kind):
        names: dict[type, str] = {str: "text", list: "a list", dict: "a section (`key: value` lines)"}
        raise UserError(f"{path}: {key} must be {names[kind]}; got {value!r}")
    return value


def _texts(path: Path, where: str, settings: Any) -> list[str]:
    """Settings as overrides of a config."""
    if not isinstance(settings, Mapping):
        raise UserError(f"{path}: {where} must be config keys with their values, as rl.loss: cpgd; got {settings!r}")
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _kinds(path: Path, tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The name and the settings of every kind of run: variants times combinations of the grid."""
    variants, grid = (_get(path, tree, key, dict, {}) for key in ("variants", "grid"))
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: grid: {key} must be a list of values; got {values!r}")
    kinds: dict[str, dict[str, Any]] = {}
    for name, settings in (variants or {"": {}}).items():
        _texts(path, f"settings of {name}", settings or {})
        for point in itertools.product(*grid.values()):
            chosen = dict(zip(grid, point, strict=True))
            parts = [str(name), *(f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items())]
            kind = re.sub(r"[^\w.=+-]+", "_", " ".join(part for part in parts if part)) or "run"
            if kind in kinds:
                raise UserError(f"{path}: two kinds of run would be called {kind!r}; name them as variants")
            kinds[kind] = {**(settings or {}), **chosen}
    return kinds


# ---------------------------------------------------------------------------------------------------------------------
# Running.


def state(member: Member) -> str:
    """ "done", "stopped at step N: why" (it ended with an error), "at step N" or "not begun".

    Raises:
        UserError: what is in its folder was made with another config.
    """
    metadata, stopped = read_metadata(member.folder), member.folder / STOPPED_FILE
    rows = read_metrics(member.folder) if (member.folder / METRICS_FILE).exists() else []
    steps = int(rows[-1]["step"]) if rows else 0
    if stopped.exists():
        return f"stopped at step {steps}: {json.loads(stopped.read_text(encoding='utf-8'))['message']}"
    if metadata is None:
        return "not begun"
    differences = config_diff(comparable(metadata["config"]), comparable(to_dict(member.config)))
    if differences:
        raise UserError(
            f"{member.folder} holds a run with other settings:\n  "
            + "\n  ".join(differences)
            + "\nGive the sweep another folder, or remove that run"
        )
    return "done" if (member.folder / "checkpoints" / str(member.config.steps)).is_dir() else f"at step {steps}"


def is_over(text: str) -> bool:
    return text == "done" or text.startswith("stopped")


def run_sweep(sweep: Sweep, *, only: int | None = None, retry: bool = False, show: bool = True) -> Path:
    """Runs what is not yet done, and writes the comparison; returns its page.

    Args:
        only: the index of the one run to make, for arrays of jobs; None: all of them, in turn.
        retry: also runs that stopped with an error go on.

    Raises:
        UserError: no such index, or a run's folder is in the way.
        Terminated: SIGTERM came; the run under way has written a checkpoint.
    """
    if only is not None and not 0 <= only < len(sweep.members):
        raise UserError(f"{sweep.name}: there is no run {only}; their indices are 0 to {len(sweep.members) - 1}")
    chosen = sweep.members if only is None else sweep.members[only : only + 1]
    if sweep.imitation is not None:
        _imitate(sweep, sweep.imitation)
    with progress(len(chosen), sweep.name, unit="run", enabled=show) as bar:
        for member in chosen:
            bar.set_postfix_str(f"{member.kind} seed {member.seed}")
            if retry:
                (member.folder / STOPPED_FILE).unlink(missing_ok=True)
            if not is_over(state(member)):
                _run("train", member.config)
                if only is None:
                    write_comparison(sweep)
            bar.update()
    return write_comparison(sweep)


def write_comparison(sweep: Sweep) -> Path:
    """The page and tables of what the sweep's runs have come to so far."""
    runs = []
    for member in sweep.members:
        rows = read_metrics(member.folder) if (member.folder / METRICS_FILE).exists() else []
        runs.append(compare.Run(member.kind, f"seed {member.seed}", rows, state(member), member.settings))
    return compare.write_comparison(runs, sweep.folder, title=sweep.name, metrics=sweep.metrics, summary=sweep.summary)


def _imitate(sweep: Sweep, config: Config) -> None:
    """The supervised run and its export, unless they are there."""
    from mmeureka_jax.export import PROVENANCE_FILE

    if (sweep.start / PROVENANCE_FILE).exists():
        return
    stopped = Path(config.run_dir) / STOPPED_FILE
    stopped.unlink(missing_ok=True)
    _run("sft", config)
    if not stopped.exists():
        _run("export", config, f"--output={sweep.start}")
    if stopped.exists():
        message = json.loads(stopped.read_text(encoding="utf-8"))["message"]
        raise UserError(f"{sweep.name}: the imitation that all runs start from stopped: {message}")


def _run(command: str, config: Config, *options: str) -> None:
    """A command of ours on a run, as a process of its own. Its output goes to a file; an error is noted in the folder.

    Raises:
        UserError: the process crashed; the next start tries it again.
        Terminated: SIGTERM came, and was passed on.
    """
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / CONFIG_FILE)
    target, log = folder if command == "export" else folder / CONFIG_FILE, folder / LOG_FILE
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "mmeureka_jax.cli", command, str(target), *options],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        code = _wait(process)
    if code == 0:
        return
    said = log.read_bytes()[start:].decode("utf-8", "replace")
    if code == EXIT_BAD_INPUT:
        message = said.rpartition("mmeureka: error: ")[2].strip()
        write_atomic(folder / STOPPED_FILE, json.dumps({"message": message}, indent=1).encode())
    elif code in (EXIT_TERMINATED, -signal.SIGTERM):
        raise Terminated(f"stopped by SIGTERM during {folder}; the same command goes on from there")
    elif code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    else:
        last = "\n".join(said.strip().splitlines()[-5:])
        raise UserError(f"{folder}: the run crashed (exit code {code}); {log} has its output, which ends\n{last}")


def _wait(process: subprocess.Popen) -> int:
    """Waits for the process, and passes SIGTERM on to it."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.terminate()

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        return process.wait()
    except BaseException:
        process.wait()  # an interrupt from the keyboard has reached it too
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
