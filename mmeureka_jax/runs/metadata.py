"""What a run was made with: RUN/metadata.json."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from mmeureka_jax.config.checks import check_stored
from mmeureka_jax.config.reading import filled, known_part, to_dict
from mmeureka_jax.config.schema import Config
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import expect, read_json, write_atomic

METADATA_FILE = "metadata.json"
PACKAGES = (
    "mmeureka_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "grain",
    "math-verify",
    "sympy",
)


def package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def write_metadata(run_dir: Path, metadata: dict[str, Any]) -> None:
    """RUN/metadata.json: config, package versions, data fingerprint, devices. Replaced as a whole."""
    write_atomic(Path(run_dir) / METADATA_FILE, json.dumps(metadata, indent=1, sort_keys=True).encode())


def read_metadata(run_dir: Path) -> dict[str, Any] | None:
    """What a run was made with; None where there is no such file. Keys that the run's version did not write are filled
    in.

    Raises:
        UserError: the file cannot be read, or is not what a run writes.
    """
    path = Path(run_dir) / METADATA_FILE
    if not path.exists():
        return None
    metadata = read_json(path)
    if "config" not in metadata:
        raise UserError(f"{path}: 'config' is missing; restore the file from a backup or start a new run folder")
    tree = expect(path, metadata, "config", dict, None)
    try:
        check_stored(known_part(Config, tree, "config"))
    except UserError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None
    fields: dict[str, tuple[type | tuple[type, ...], Any]] = {
        **dict.fromkeys(("kind", "data_fingerprint", "checkpoint", "devices"), (str, "unknown")),
        "adapters_fingerprint": ((str, type(None)), None),
        "process_model_fingerprint": ((str, type(None)), None),
        "packages": (dict, {}),
    }
    found = {key: expect(path, metadata, key, kind, default) for key, (kind, default) in fields.items()}
    return metadata | found | {"config": filled(tree, to_dict(Config()))}
