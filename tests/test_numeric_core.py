"""The numeric core and the rooms around it import no library of the edges: data pipeline, grader, tokenizer, torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

IMPORT_ALL = """
import importlib, pkgutil, sys
for name in ("grain", "tensorflow", "tensorflow_datasets", "array_record", "math_verify", "sympy", "torch",
             "transformers", "tokenizers", "huggingface_hub", "datasets", "pyarrow", "peft"):
    sys.modules[name] = None  # an import of it raises ImportError
count = 0
for package in ("models", "rl", "sampling", "formats", "runs", "setup", "training"):
    package = "mmeureka_jax." + package
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
        count += 1
print(count)
"""


def test_the_numeric_core_imports_without_the_libraries_of_the_edges():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40
