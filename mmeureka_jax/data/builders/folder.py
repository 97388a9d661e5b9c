"""Where TFDS keeps its data sets."""

from __future__ import annotations

import os
from pathlib import Path


def tfds_data_dir() -> Path:
    """Where TFDS datasets are: `TFDS_DATA_DIR`, else TFDS's own default."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
