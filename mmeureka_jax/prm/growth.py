"""The checkpoint that a process reward model starts from: one with the tokens that it needs.

RUN/base/   the checkpoint of the config, its tokenizer, embeddings and output head grown by the marker
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmeureka_jax.errors import UserError
from mmeureka_jax.files import explain_write_errors, read_json, remove_folder, temporary_folder
from mmeureka_jax.formats.hub import fetch_weights
from mmeureka_jax.formats.hugging_face import (
    folder_files,
    read_config,
    read_tensors,
    stored_dtypes,
    stored_shapes,
    table_names,
    write_checkpoint,
)
from mmeureka_jax.hosts import is_main, raise_together
from mmeureka_jax.models.families import PolicyConfig
from mmeureka_jax.prm.form import NO, YES, token_of
from mmeureka_jax.prm.labels import MARKER
from mmeureka_jax.process.console import waiting

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BASE_FOLDER = "base"
BASE_FILE = "prm_base.json"  # what the folder was made of

_SAMPLED = 1 << 20  # bytes of a file of weights that are looked at, at its beginning and at its end


def open_base(run_dir: Path, source: Path) -> Path:
    """`source` if it has the tokens of a process reward model already, else RUN/base. The main process writes that,
    unless it is there.

    Raises:
        UserError: the run has checkpoints, and they started from another checkpoint; RUN/base is something else, or
            cannot be written.
    """
    folder = run_dir / BASE_FOLDER
    message = None
    if has_tokens(source):
        return source
    if is_main():  # the others would look while it writes
        try:
            _write_once(run_dir, folder, source)
        except UserError as error:
            message = str(error)
    raise_together(message)
    return folder


def has_tokens(source: Path) -> bool:
    tokenizer = _tokenizer(source)
    return all(token_of(tokenizer, text) is not None for text in (MARKER, YES, NO))


def _write_once(run_dir: Path, folder: Path, source: Path) -> None:
    has_steps = any(path.name.isdigit() for path in (run_dir / "checkpoints").glob("*"))
    if not has_steps:
        fetch_weights(source)
    state = _state(source)
    record = folder / BASE_FILE
    if (folder / "config.json").exists():
        if not record.exists():
            raise UserError(f"{folder} holds a checkpoint that `prm train` did not write; use another run_dir")
        before = read_json(record)
        if all(before.get(name) == content for name, content in state.items()):  # weights need not be there any more
            return
        if has_steps:
            raise UserError(
                f"{run_dir} holds a run that started from another checkpoint than {source} holds now; put that back, "
                "or use another run_dir"
            )
        with explain_write_errors(folder):
            remove_folder(folder)
    elif has_steps:
        raise UserError(f"{folder} is gone, which the run started from; restore it, or use another run_dir")
    with waiting(f"writing {folder}: {source} with the token {MARKER}"):
        write_grown(source, folder, state)


def _state(source: Path) -> dict[str, str]:
    """What tells a checkpoint from others, without reading its weights whole."""
    states = {}
    for file in sorted([source / "config.json", *source.glob("tokenizer*"), *source.glob("*.safetensors")]):
        with file.open("rb") as content:
            size = file.stat().st_size
            digest = hashlib.sha256(content.read(_SAMPLED))
            content.seek(max(size - _SAMPLED, 0))
            digest.update(content.read(_SAMPLED))
        states[file.name] = f"{size}:{digest.hexdigest()}"
    return states


def write_grown(source: Path, folder: Path, record: Mapping[str, Any] | None = None) -> None:
    """Writes the checkpoint `source` with the tokens of a process reward model. All other bits are as they were.

    A new row of the embedding, and of an output head of its own, is the mean of others: the marker's of the whole
    vocabulary, that of a word of the tokens which it consisted of. New tokens take spare rows first.

    Args:
        record: what is kept in the folder about it.

    Raises:
        UserError: `source` is damaged, or `folder` is taken or cannot be written.
    """
    config = read_config(source)
    tokenizer = _tokenizer(source)
    vocabulary = range(tokenizer.get_vocab_size(with_added_tokens=True))
    pieces = {
        text: tokenizer.encode(text, add_special_tokens=False).ids
        for text in (YES, NO)
        if token_of(tokenizer, text) is None
    }
    _add_tokens(tokenizer, list(pieces))
    means: dict[int, Sequence[int]] = {_id_of(tokenizer, text): own for text, own in pieces.items()}
    if (marker := _id_of(tokenizer, MARKER)) >= len(vocabulary):  # else the vocabulary had it
        means[marker] = vocabulary
    size = max([config.text.vocab_size, *(token + 1 for token in means)])
    with temporary_folder(folder.with_name(f"{folder.name}.files")) as companions:
        for name, content in folder_files(config, source, stored_dtypes(source)).items():
            (companions / name).write_bytes(content)
        tokenizer.save(str(companions / "tokenizer.json"))
        _say_tokens(companions / "tokenizer_config.json", tokenizer, [MARKER, *pieces])
        settings = json.dumps(_resized(read_json(source / "config.json"), config.text.vocab_size, size), indent=2)
        (companions / "config.json").write_text(settings + "\n", encoding="utf-8")
        grown = read_config(companions)
        files = {"config.json": settings.encode(), BASE_FILE: json.dumps(record or {}, indent=2).encode()}
        tensors = _grown(source, config, size, means)
        write_checkpoint(tensors, grown, folder, source=companions, dtype=stored_dtypes(source), files=files)


def _tokenizer(source: Path) -> Tokenizer:
    """The tokenizer's file as it is, once it has been loaded as others load it."""
    from tokenizers import Tokenizer

    from mmeureka_jax.data.processor import Processor

    loaded = Processor.from_checkpoint(source, max_prompt_tokens=1).tokenizer.backend_tokenizer
    file = source / "tokenizer.json"
    return Tokenizer.from_file(str(file)) if file.is_file() else loaded


def _add_tokens(tokenizer: Tokenizer, words: list[str]) -> None:
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(MARKER, normalized=False, special=True)])
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=False) for word in words])


def _id_of(tokenizer: Tokenizer, text: str) -> int:
    token = tokenizer.token_to_id(text)
    assert token is not None
    return token


def _say_tokens(file: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    """Adds new tokens to the settings of a tokenizer that list them (others read them from tokenizer.json)."""
    if not file.is_file() or "added_tokens_decoder" not in (settings := read_json(file)):
        return
    for text in texts:
        settings["added_tokens_decoder"][str(_id_of(tokenizer, text))] = {
            "content": text, "lstrip": False, "rstrip": False, "normalized": False, "single_word": text != MARKER,
            "special": text == MARKER,
        }  # fmt: skip
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _resized(content: dict[str, Any], before: int, after: int) -> dict[str, Any]:
    """A `config.json` with another size of the vocabulary, wherever it has one."""
    resized = {
        key: _resized(value, before, after) if isinstance(value, dict) else value for key, value in content.items()
    }
    return resized | ({"vocab_size": after} if resized.get("vocab_size") == before else {})


def _grown(source: Path, config: PolicyConfig, size: int, means: Mapping[int, Sequence[int]]) -> Iterator[np.ndarray]:
    """The stored tensors, with rows for new tokens: each the mean of those of others."""
    tables = table_names(config)
    for name, tensor in zip(stored_shapes(config), read_tensors(source, config), strict=True):
        if name not in tables:
            yield tensor
            continue
        grown = np.concatenate([tensor, np.zeros((size - len(tensor), *tensor.shape[1:]), tensor.dtype)])
        for token, others in means.items():
            rows = tensor[: len(others)] if isinstance(others, range) else tensor[list(others)]
            grown[token] = rows.mean(0, dtype=np.float32).astype(tensor.dtype)
        yield grown
