"""On the path of the processes that tests start: they find no torch, as where the project alone is installed."""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]
