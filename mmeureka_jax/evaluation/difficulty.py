"""How hard problems are for a model: its accuracy over several answers to each (`mmeureka data difficulty`).

Source: the offline filter of MM-EUREKA's first paper (arXiv 2503.07365v1), which keeps problems that the model neither
always nor never solves. Training on problems of a range is in `setup.difficulty`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.examiner import Graded, open_examiner
from mmeureka_jax.evaluation.identity import ids_and_pictures, policy_identity
from mmeureka_jax.evaluation.options import EvalOptions, ModelOptions, questions
from mmeureka_jax.evaluation.partial_rows import partial_rows
from mmeureka_jax.files import read_json, write_atomic
from mmeureka_jax.process.console import progress
from mmeureka_jax.setup.difficulty import read_difficulty


def measure_difficulty(model: ModelOptions, options: EvalOptions, output: Path) -> list[dict[str, Any]]:
    """Samples answers to every problem and writes `{"id", "accuracy", "n", "length"}` for each, as a JSONL file in the
    order of the problems: the share of right answers, and their mean length in tokens. `OUTPUT.settings.json` says what
    the rows were made with.

    Where the file has some rows already, made with the same settings, they stay and the rest is added: an answer's
    noise is named by the seed, its problem and its number, not by the others of a batch. After an interruption the same
    call continues (see `partial_rows`).

    Returns:
        The rows of the problems that were asked for; the file keeps those of others.

    Raises:
        UserError: anything about the checkpoint, the data or the output that cannot work, before the first answer; a
            file of other settings.
    """
    options.check()
    with ExitStack() as stack:
        rows = stack.enter_context(partial_rows(output))
        opened = model.open("data difficulty")
        asked = questions(options, opened)
        examiner = stack.enter_context(open_examiner(opened, options, asked, stream="sample"))
        source = examiner.checked.source
        made_with = {
            "model": model.checkpoint,
            "adapters": opened.adapters.fingerprint() if opened.adapters is not None else None,
            "data": options.data,
            "data_fingerprint": source.fingerprint(),
            **{key: getattr(options, key) for key in ("n", "temperature", "seed")},
            **asked,
        }
        known = _known_rows(output, made_with)
        problems = examiner.problems()
        left = [problem for problem in problems if problem.id not in known]
        ids, pictures = ids_and_pictures(left)
        identity = {"command": "data difficulty", **policy_identity(opened), "pictures": pictures}
        done = rows.resume(identity | made_with | {"batch_size": options.batch_size}, ids, examiner.batch_rows)
        if done < len(left):
            already = len(problems) - len(left) + done
            with progress(len(problems), "difficulty", unit="problem", initial=already) as bar:
                for batch in examiner.batches(opened.load_params(), left[done:]):
                    new = list(_rows_of(batch, options.n))
                    rows.add(*new)
                    bar.update(len(new))
        known |= {row["id"]: row for row in rows}
        every_id = [source[row].id for row in examiner.checked.indices]
        write_atomic(_settings_file(output), (json.dumps(made_with, indent=1) + "\n").encode())
        lines = [json.dumps(known[name], ensure_ascii=False) + "\n" for name in every_id if name in known]
        write_atomic(output, "".join(lines).encode())
    return [known[problem.id] for problem in problems]


def _rows_of(graded: Sequence[Graded], n: int) -> Iterator[dict[str, Any]]:
    """A row for each problem, from its n graded answers, which follow one another."""
    for start in range(0, len(graded), n):
        answers = graded[start : start + n]
        accuracy = float(np.mean([answer.score.parts["accuracy"] for answer in answers]))
        length = float(np.mean([len(answer.response.tokens) for answer in answers]))
        yield {"id": answers[0].problem.id, "accuracy": accuracy, "n": n, "length": length}


def _known_rows(output: Path, made_with: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a file that is there, by id.

    Raises:
        UserError: it was made with other settings, or nothing says with which.
    """
    if not output.exists():
        return {}
    record = _settings_file(output)
    if not record.exists():
        raise UserError(f"{record} is missing, so nothing says what {output} was made with; give another file")
    before = read_json(record)
    differences = [key for key in made_with if before.get(key) != made_with[key]]
    if differences:
        raise UserError(
            f"{output} was made with other settings ({', '.join(differences)}); give another file or remove it"
        )
    return read_difficulty(output, allow_cut=True)  # earlier versions added rows to the file itself, and may have died


def _settings_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.settings.json")
