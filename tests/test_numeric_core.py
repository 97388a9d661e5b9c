"""The numeric core and the rooms around it import no library of the edges: data pipeline, grader, tokenizer, torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
libraries, packages = (argument.split() for argument in sys.argv[1:])
for name in libraries:
    sys.modules[name] = None  # an import of it raises ImportError
count = 0
for package in packages:
    package = "mmeureka_jax." + package
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
        count += 1
print(count)
"""


CORE = "models rl sampling"
EDGES = (
    "grain tensorflow tensorflow_datasets array_record math_verify sympy torch transformers tokenizers huggingface_hub "
    "datasets pyarrow peft"
)


@pytest.mark.parametrize(
    ("libraries", "packages", "modules"),
    [
        (EDGES, f"{CORE} formats runs setup training", 40),
        (f"{EDGES} orbax safetensors PIL matplotlib tensorboardX jinja2", CORE, 30),
    ],
    ids=["all but the edges", "the core alone"],
)
def test_imports_need_no_library_of_the_edges(libraries, packages, modules):
    command = [sys.executable, "-c", IMPORT_ALL, libraries, packages]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > modules
