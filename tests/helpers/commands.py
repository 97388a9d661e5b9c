"""The `mmeureka` command run in this process, benchmarks in one of their own, small files for it, and a full disk."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from mmeureka_jax.cli import main
from mmeureka_jax.config.schema import RandomModelConfig

TINY = RandomModelConfig(
    hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, num_kv_heads=2,
    vision_hidden_size=16, vision_intermediate_size=24, vision_depth=2, vision_num_heads=2,
    vision_full_attention_blocks=(1,),
)  # fmt: skip
# Smaller still, for the benchmarks.
SMALL = RandomModelConfig(
    hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1, vision_hidden_size=16,
    vision_intermediate_size=16, vision_depth=1, vision_num_heads=2, vision_full_attention_blocks=(0,),
)  # fmt: skip
# Overrides of a config whose model is random.
ONE_LAYER = [
    "model.random.num_layers=1", "model.random.vision_depth=1", "model.random.vision_full_attention_blocks=[0]",
]  # fmt: skip

ROOT = Path(__file__).parents[2]
_CACHES = tempfile.TemporaryDirectory(prefix="mmeureka-test-caches-")


def environment(devices: int = 1, torch: bool = False) -> dict[str, str]:
    """For a process that a test starts: the project from this folder, on so many CPU devices (the tests have eight),
    where torch can be imported or not."""
    flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
    path = os.pathsep.join([str(ROOT)] + [str(ROOT / "tests" / "without_torch")] * (not torch))
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path, "XDG_CACHE_HOME": _CACHES.name}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_script(name: str, *options: object, torch: bool = False) -> dict:
    """Runs `python -m benchmarks.NAME` on one device and reads the one JSON line, which is all of stdout."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, env=environment(torch=torch), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def mmeureka(*arguments: object) -> int:
    """The exit code. Nothing is read from or written to the user's caches."""
    with mock.patch.dict(os.environ, XDG_CACHE_HOME=_CACHES.name):
        try:
            return main([str(argument) for argument in arguments])
        except SystemExit as end:  # how argparse refuses what it does not know
            return int(end.code or 0)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompt_row(name: str, text: str, *images: str, **more: Any) -> dict[str, Any]:
    """An input row: pictures first, then the text."""
    parts: list[dict[str, str]] = [{"type": "image", "image": image} for image in images]
    return {"id": name, "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]} | more
