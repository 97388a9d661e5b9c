"""Temporary files and folders: what a killed process leaves is used up by the next one that writes the same target."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers.commands import TINY, environment, prompt_row, write_rows

from mmeureka_jax.errors import UserError
from mmeureka_jax.files import atomic_writer, exclusive, remove_folder, temporary_folder, write_atomic
from mmeureka_jax.setup.random_models import write_tiny_checkpoint


def leave(target: Path, kind: str) -> None:
    """A process is killed while it writes `target`."""
    code = f"""
        import os, signal
        from pathlib import Path
        from mmeureka_jax.files import {kind}
        with {kind}(Path({str(target)!r})) as made:
            made(b"half") if callable(made) else (made / "half").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment())
    assert len(list(target.parent.iterdir())) == 1


def test_the_leftover_of_a_file_is_used_up(tmp_path):
    leave(tmp_path / "o.jsonl", "atomic_writer")
    write_atomic(tmp_path / "o.jsonl", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl"]
    assert (tmp_path / "o.jsonl").read_bytes() == b"whole"


def test_the_leftover_of_a_folder_is_used_up(tmp_path):
    leave(tmp_path / "model", "temporary_folder")
    with temporary_folder(tmp_path / "model") as folder:
        assert list(folder.iterdir()) == []
        (folder / "whole").touch()
        folder.rename(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model", "whole"]


def test_what_another_is_writing_is_not_touched(tmp_path):
    target = tmp_path / "o.jsonl"
    with atomic_writer(target) as first:
        first(b"first")
        with atomic_writer(target) as second:
            second(b"second")
        assert target.read_bytes() == b"second"
    assert target.read_bytes() == b"first"
    with temporary_folder(tmp_path / "f") as one, temporary_folder(tmp_path / "f") as other:
        (one / "a").touch()
        assert one != other and list(other.iterdir()) == []
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_several_at_once_are_used_up(tmp_path):
    target = tmp_path / "o.jsonl"
    with atomic_writer(target):
        subprocess.run(
            [sys.executable, "-c", f"""
import os, signal
from pathlib import Path
from mmeureka_jax.files import atomic_writer
with atomic_writer(Path({str(target)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""], env=environment(),
        )  # fmt: skip
        assert len(list(tmp_path.iterdir())) == 2
    write_atomic(target, b"whole")
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_writer(tmp_path / "o.jsonl") as write:
        write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), temporary_folder(tmp_path / "model") as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_failed_library_still_writes_is_removed(tmp_path, monkeypatch):
    """Its threads go on for a while, and make the folder anew."""
    late = iter(["0", "1", None, "2"])

    def write_while_waiting(seconds):
        if (name := next(late, None)) is not None:
            (folder / "params").mkdir(parents=True, exist_ok=True)
            (folder / "params" / name).write_text("late")

    monkeypatch.setattr("time.sleep", write_while_waiting)
    with pytest.raises(OSError, match="full"), temporary_folder(tmp_path / "model") as folder:
        raise OSError("the disk is full")
    assert list(tmp_path.iterdir()) == []
    assert next(late, "all written") == "all written"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with atomic_writer(tmp_path / "o.jsonl") as first, atomic_writer(tmp_path / "o.jsonl") as second:
        first(b"first")
        second(b"second")
    assert (tmp_path / "o.jsonl").read_bytes() == b"first"
    with temporary_folder(tmp_path / "f") as one, temporary_folder(tmp_path / "f") as other:
        assert one != other
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl"]


def test_a_folder_is_removed_whole(tmp_path):
    (tmp_path / "f" / "sub").mkdir(parents=True)
    (tmp_path / "f" / "sub" / "file").touch()
    remove_folder(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("given") / "model"
    write_tiny_checkpoint(folder, TINY)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("convert MODEL --output out/checkpoint", "checkpoint"),
        ("convert MODEL --output out/checkpoint --to hf --dtype bfloat16", "checkpoint"),
        ("data build MODEL/../p.jsonl --name mine --output out", "mine"),
        ("data show MODEL/../p.jsonl --rows : --output out/page.html", "page.html"),
    ],
)
def test_a_killed_command_leaves_nothing_after_its_next_run(model, tmp_path, command, written):
    write_rows(model.parent / "p.jsonl", [prompt_row(f"p{i}", "what is 1 + 1 ?", answer="2") for i in range(2000)])
    (tmp_path / "out").mkdir()
    arguments = command.replace("MODEL", str(model)).split()
    killed = """
import os, pathlib, signal
rename, replace = pathlib.Path.rename, pathlib.Path.replace
def kill_or(move):
    return lambda path, to: os.kill(os.getpid(), signal.SIGKILL) if "/out/." in str(path.absolute()) else move(path, to)
pathlib.Path.rename, pathlib.Path.replace = kill_or(rename), kill_or(replace)
from mmeureka_jax.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", killed, *arguments], cwd=tmp_path, env=environment())
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "out" / f".{written}.0.tmp").exists()
    subprocess.run([sys.executable, "-m", "mmeureka_jax", *arguments], cwd=tmp_path, env=environment(), check=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [written]
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_path_of_too_many_folders(tmp_path):
    with pytest.raises(UserError, match="too many folders"), exclusive(tmp_path.joinpath(*["x"] * 1900)):
        pass
