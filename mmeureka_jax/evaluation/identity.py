"""What says whether the rows of an interrupted command are those that it would make now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmeureka_jax.runs.metadata import package_versions
from mmeureka_jax.setup.policy import OpenedPolicy

if TYPE_CHECKING:
    from mmeureka_jax.data.record import Problem

_CHECKPOINT_FILES = (
    "*.safetensors", "*config.json", "orbax_params.json", "tokenizer*", "vocab.json", "merges.txt", "chat_template*",
)  # fmt: skip

_PARTS = 256
_PART_BYTES = 2**16


def policy_identity(opened: OpenedPolicy) -> dict[str, Any]:
    """Names, sizes and times of the checkpoint's files, and what else decides what the policy computes, as JSON."""
    files = sorted({file for pattern in _CHECKPOINT_FILES for file in opened.checkpoint.glob(pattern)})
    states = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return {
        "checkpoint": hashlib.sha256(" ".join(states).encode()).hexdigest(),
        "adapters": opened.adapters.fingerprint() if opened.adapters is not None else None,
        "compute_dtype": opened.policy.compute_dtype,
        "packages": package_versions(),
    }


def checkpoint_digest(folder: Path) -> str:
    """A digest of what is in a checkpoint's files, wherever they lie. Of a large file it reads the beginning, where a
    safetensors file describes its tensors, and parts at even distances: training changes nearly all weights."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _CHECKPOINT_FILES for file in folder.glob(pattern)}):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}\n".encode())
        with file.open("rb") as content:
            for part in range(_PARTS):
                content.seek(part * size // _PARTS)
                digest.update(content.read(_PART_BYTES))
    return digest.hexdigest()


def ids_and_pictures(problems: Iterable[Problem]) -> tuple[list[str], str]:
    """The ids of problems, and the state of the picture files that they name."""
    from mmeureka_jax.data.check import image_state

    ids = []
    digest = hashlib.sha256()
    for problem in problems:
        ids.append(problem.id)
        digest.update(f"{image_state(problem)}\n".encode("utf-8", "surrogateescape"))
    return ids, digest.hexdigest()
