"""The rules, one file each: importing this imports all of them, and `RULES` has them by name."""

from __future__ import annotations

import importlib
import pkgutil

from mmeureka_jax.rewards.base import RULES

__all__ = ["RULES"]

for _file in sorted(pkgutil.iter_modules(__path__), key=lambda file: file.name):
    importlib.import_module(f"{__name__}.{_file.name}")
