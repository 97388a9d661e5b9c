"""A run's metrics and rollouts at Weights & Biases, for runs that ask for it (`tracking.wandb`).

The package is an extra and is imported nowhere else. A failure there does not end the run: it is reported once, and the
run continues without it. Whether and where it sends is decided as usual by `wandb login`, WANDB_MODE, WANDB_ENTITY and
the like.
"""

from __future__ import annotations

import io
import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.files import write_atomic
from mmeureka_jax.process.console import waiting

if TYPE_CHECKING:
    from mmeureka_jax.runs.rollout_samples import RolloutSample

ID_FILE = "wandb.json"  # in the run's folder: the id of this run at Weights & Biases

FINISH_WITHIN = 300.0  # seconds in which the end of a run sends what is left; `wandb sync` sends the rest
_COLUMNS = ["problem", "pictures", "question", "gold answer", "response", "reward", "rules", "tokens", "end"]

logger = logging.getLogger(__name__)


def import_wandb() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import wandb

        # A folder of that name, which the package creates, can be imported too and has no `init`.
        wandb.init  # noqa: B018
    except (ImportError, AttributeError):
        raise UserError(
            "tracking.wandb is set, but the package wandb is not installed: pip install 'mmeureka_jax[wandb]', or set "
            "tracking.wandb=null"
        ) from None
    return wandb


class WandbLog:
    """One run at Weights & Biases. A resumed run continues it."""

    def __init__(self, run_dir: Path, project: str, settings: Mapping[str, Any], *, resuming: bool) -> None:
        """
        Args:
            settings: the run's config.
        """
        self._wandb = import_wandb()
        self._run: Any = None
        run_id = _stored_id(run_dir, project) if resuming else None
        if run_id is None:
            run_id = secrets.token_hex(8)
            write_atomic(run_dir / ID_FILE, json.dumps({"project": project, "id": run_id}).encode())
        with waiting("starting Weights & Biases"):
            self._try(lambda: self._start(run_dir, project, run_id, settings))

    def _start(self, run_dir: Path, project: str, run_id: str, settings: Mapping[str, Any]) -> None:
        run = self._wandb.init(
            project=project,
            id=run_id,
            resume="allow",
            name=run_dir.resolve().name,
            dir=str(run_dir),
            config=dict(settings),
            # Copying the terminal would break the progress bars, and without a network finishing would never end.
            settings=self._wandb.Settings(console="off", finish_timeout=FINISH_WITHIN),
        )
        # The run's own steps: those after the last checkpoint come twice when it continues; wandb's may only grow.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        self._run = run

    def metrics(self, row: Mapping[str, float]) -> None:
        """A row of metrics, `step` among them."""
        self._send(lambda run: run.log(dict(row)))

    def rollouts(self, step: int, samples: Sequence[RolloutSample], pictures: Sequence[Sequence[bytes]]) -> None:
        """A table with a row for each response, and the pictures of its problem."""

        def send(run: Any) -> None:
            table = self._wandb.Table(columns=_COLUMNS)
            for sample, own in zip(samples, pictures, strict=True):
                images = [self._wandb.Image(Image.open(io.BytesIO(png))) for png in own]
                for one in sample.responses:
                    rules = ", ".join(f"{name} {value:g}" for name, value in one.parts.items())
                    told = (one.text, one.reward, rules, one.length, one.finish_reason)
                    table.add_data(sample.problem_id, images, sample.question, sample.answer, *told)
            run.log({"rollouts": table, "step": step})

        self._send(send)

    def finish(self, *, failed: bool) -> None:
        """Waits until everything is sent."""
        if self._run is not None:
            with waiting("sending the rest to Weights & Biases"):
                self._send(lambda run: run.finish(exit_code=int(failed)))
        self._run = None

    def _send(self, call: Callable[[Any], object]) -> None:
        run = self._run
        if run is not None:
            self._try(lambda: call(run))

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # whatever it is, it must not end the run
            self._run = None
            logger.warning(
                "Weights & Biases: %s: %s; the run continues without it (try `wandb login`, or WANDB_MODE=offline)",
                type(error).__name__, brief(error),
            )  # fmt: skip


def _stored_id(run_dir: Path, project: str) -> str | None:
    """The id under which this run was begun at Weights & Biases; None if it has none in this project."""
    try:
        stored = json.loads((run_dir / ID_FILE).read_bytes())
        if stored["project"] == project and isinstance(stored["id"], str):
            return stored["id"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None
