"""What the configs of all families share: end tokens, the other files of a checkpoint, and writing a config again."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmeureka_jax.errors import UserError
from mmeureka_jax.models.config_keys import LARGEST, Keys, first_given

TURN_END = "<|im_end|>"


@dataclass(frozen=True)
class OtherFiles:
    """What a checkpoint folder says next to its `config.json`; each is read when it is asked for.

    Attributes:
        added_tokens: the tokenizer's tokens that its vocabulary proper lacks, with their ids.
        tensors: the names of the stored tensors.
    """

    added_tokens: Callable[[], Mapping[str, int]] = dict
    tensors: Callable[[], Collection[str]] = tuple


class KeptConfig:
    """A config whose `config.json` is kept as it was read (`stored`) and written again as it was."""

    stored: str
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    bos_token_id: int | None

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """The dictionary of `config.json`: as it was read, except for `dtype`, that of the weights next to it."""
        config = json.loads(self.stored)
        config.pop("dtype", None)
        return {**config, "torch_dtype": dtype}

    def to_hf_generation(self) -> dict[str, Any]:
        """The dictionary of a `generation_config.json` with every end token."""
        return generation_config(self.eos_token_ids, self.pad_token_id, self.bos_token_id)


def generation_config(eos: tuple[int, ...], pad: int, bos: int | None) -> dict[str, Any]:
    generation = {"eos_token_id": list(eos) if len(eos) > 1 else eos[0], "pad_token_id": pad}
    return generation if bos is None else {"bos_token_id": bos, **generation}


def read_end_tokens(
    keys: Keys, generation: Mapping[str, Any] | None, other_files: OtherFiles
) -> tuple[tuple[int, ...], int, int | None]:
    """The tokens that end a response (`generation_config.json` decides, then the config), that pad, and that begin.

    The end of a turn is always among them if the tokenizer has it: chat templates write it, and base checkpoints name
    only the end of a text.

    Raises:
        UserError: none is named, or one is no token id.
    """
    generation = generation or {}
    eos = first_given(generation.get("eos_token_id"), keys.get("eos_token_id"))
    if eos is None:
        raise UserError(f"{keys.source}: neither it nor generation_config.json names an eos_token_id")
    eos_ids = tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
    pad = first_given(generation.get("pad_token_id"), keys.get("pad_token_id"))
    bos = first_given(keys.get("bos_token_id"), generation.get("bos_token_id"))
    ids = (*eos_ids, pad or 0, bos or 0)
    if not eos_ids or any(type(token) is not int or not -1 <= token <= LARGEST for token in ids):
        raise UserError(
            f"{keys.source}: eos_token_id {eos!r:.100}, pad_token_id {pad!r:.100} and bos_token_id {bos!r:.100} (here "
            "or in generation_config.json) must be token ids; only the first may be a list"
        )
    pad = pad if pad is not None else eos_ids[-1]
    turn_end = other_files.added_tokens().get(TURN_END)
    return eos_ids if turn_end is None or turn_end in eos_ids else (turn_end, *eos_ids), pad, bos


def refuse_misfits(source: str, checks: Iterable[tuple[bool, str]]) -> None:
    """
    Args:
        checks: (whether sizes fit together, what is wrong if they do not).

    Raises:
        UserError: some do not; it lists them all.
    """
    problems = [message for fits, message in checks if not fits]
    if problems:
        raise UserError(f"{source}: sizes do not fit together: " + "; ".join(problems))
