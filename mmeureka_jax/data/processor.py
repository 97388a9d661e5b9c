"""Problems to what a policy reads: tokens, rotary positions and picture patches, all NumPy, equal to Hugging Face's.

    Problem --prompt style, chat template--> text with one placeholder per picture --tokenizer, expansion--> tokens
    its pictures --header--> grids --decode, resize, cut--> patches by attention window (Qwen2.5-VL) or tile (InternVL)

`Processor` does one prompt at a time, in data workers; `collate` of models/batch.py stacks them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mmeureka_jax.data.chat_template import is_bounded
from mmeureka_jax.data.no_pictures import TextPreprocessor
from mmeureka_jax.data.pictures import PicturePreprocessor
from mmeureka_jax.data.prompts import PromptStyle, apply_prompt_style
from mmeureka_jax.data.record import Problem, RowError
from mmeureka_jax.data.tiles import TileGeometry, TilePreprocessor
from mmeureka_jax.data.vision_layout import Grid, VisionGeometry
from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.files import expect, read_json
from mmeureka_jax.formats.hugging_face import read_config
from mmeureka_jax.models.batch import Images, Prompt
from mmeureka_jax.models.families import PolicyConfig
from mmeureka_jax.models.internvl_config import InternVLConfig
from mmeureka_jax.models.qwen_vl_config import Qwen2_5VLConfig
from mmeureka_jax.models.text_only import TextOnlyConfig

# What cuts a family's pictures and writes their places into prompts.
PREPROCESSORS: dict[type, Any] = {
    Qwen2_5VLConfig: PicturePreprocessor,
    InternVLConfig: TilePreprocessor,
    TextOnlyConfig: TextPreprocessor,
}


@dataclass(frozen=True, eq=False)
class Processor:
    """Turns problems into prompts and tokens into text, as the checkpoint at `path` needs them.

    Picklable (the tokenizer is loaded again where it arrives) and usable from several threads.
    """

    path: Path
    config: PolicyConfig
    pictures: PicturePreprocessor | TilePreprocessor | TextPreprocessor
    prompt_style: PromptStyle
    max_prompt_tokens: int

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        prompt_style: PromptStyle = "instruct",
        max_prompt_tokens: int,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Processor:
        """Reads a checkpoint folder: `config.json`, the tokenizer with its chat template, the image processor's file
        (if the model reads pictures).

        Args:
            prompt_style: instructions put around each question; see `apply_prompt_style`.
            max_prompt_tokens: longest prompt, image tokens included; a longer one is refused, never cut.
            min_pixels, max_pixels: the area that pictures are resized into; None keeps the checkpoint's. InternVL: as
                many tiles as `max_pixels` holds, and at least one. Not used by text-only models.

        Raises:
            UserError: a file is missing or does not fit the others.
        """
        path = Path(path)
        config = read_config(path)
        pictures = PREPROCESSORS[type(config)].from_checkpoint(path, config, min_pixels, max_pixels)
        processor = cls(path, config, pictures, prompt_style, max_prompt_tokens)
        _ = processor._placeholders, processor._chat_template  # read now, so that a bad checkpoint fails now
        processor._check_template()
        return processor

    def __getstate__(self) -> dict[str, Any]:
        cached = ("tokenizer", "_chat_template", "_placeholders", "_special_tokens", "response_prefix")
        return {name: value for name, value in self.__dict__.items() if name not in cached}

    # What the checkpoint says.

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's (fast) Hugging Face tokenizer."""
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it misses PyTorch, which nothing here needs
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        settings = self.path / "tokenizer_config.json"
        try:
            # Code that a checkpoint brings is not run; next to a tokenizer.json it is not needed.
            own_code = settings.is_file() and "auto_map" in read_json(settings)
            fast = own_code and (self.path / "tokenizer.json").is_file()
            kind = PreTrainedTokenizerFast if fast else AutoTokenizer
            options: dict[str, Any] = {} if fast else {"trust_remote_code": False}
            tokenizer = kind.from_pretrained(str(self.path), local_files_only=True, **options)
        except BaseException as error:  # a faulty file makes transformers raise anything, Rust's panics included
            if isinstance(error, UserError | KeyboardInterrupt | SystemExit):
                raise
            raise UserError(
                f"{self.path}: its tokenizer cannot be loaded ({brief(error)}); one with code of its own needs a "
                "tokenizer.json beside it (docs/models.md)"
            ) from error
        if not tokenizer.is_fast:
            raise UserError(f"{self.path}: no tokenizer.json; save the tokenizer in the fast format")
        if not isinstance(tokenizer.eos_token_id, int | None) or not isinstance(tokenizer.bos_token, str | None):
            raise UserError(f"{settings}: eos_token or bos_token is no token")
        # Text is encoded by the Rust tokenizer itself, which threads can share once these are set.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _chat_template(self) -> str:
        """Where HF's processor looks: chat_template.jinja, chat_template.json, then the tokenizer's own (or what the
        family has in its place)."""
        legacy = self.path / "chat_template.json"
        file = self.path / "chat_template.jinja"
        if legacy.exists() and not file.exists():
            return expect(legacy, read_json(legacy), "chat_template", str, None)
        if self.pictures.chat_template is not None and not file.exists():
            return self.pictures.chat_template
        try:
            return expect(file, {"chat_template": self.tokenizer.get_chat_template()}, "chat_template", str, None)
        except ValueError:
            raise UserError(
                f"{self.path}: no chat template; add the chat_template.jinja or chat_template.json of the checkpoint"
            ) from None

    def _check_template(self) -> None:
        """
        Raises:
            UserError: the template does not end, cannot be rendered, or leaves the question out.
        """
        message = {"role": "user", "content": [{"type": "text", "text": "?"}]}
        variables = {"messages": self.pictures.for_template([message]), "add_generation_prompt": True}
        tokens = {name: token for name, token in self.tokenizer.special_tokens_map.items() if isinstance(token, str)}
        if not is_bounded(self._chat_template, json.dumps(variables | tokens)):
            raise UserError(
                f"{self.path}: its chat template does not come to an end, or takes all memory, for a question of one "
                "character; take that of the checkpoint that this one was made of"
            )
        if "?" not in self._rendered([message]):
            raise UserError(
                f"{self.path}: its chat template leaves the question out; take that of the checkpoint that this one "
                "was made of"
            )

    @cached_property
    def _placeholders(self) -> tuple[str, ...]:
        """The tokens that mark pictures, which no text may contain."""
        ids = self.config.placeholders
        tokens = {name: self.tokenizer.convert_ids_to_tokens(token_id) for name, token_id in ids.items()}
        for name, token in tokens.items():
            if not token:
                raise UserError(f"{self.path}: {name} of config.json is {ids[name]}, which its tokenizer does not have")
        return (*tokens.values(), *self.pictures.markers)

    @cached_property
    def _special_tokens(self) -> tuple[str, ...]:
        """Tokens that the tokenizer also makes from plain text: a row's text could end its turn and begin another."""
        tokens = self.tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        return tuple(token.content for token in tokens if token.special and token.content.strip())

    @property
    def image_token_id(self) -> int | None:
        """The token of each of a picture's places; None for a text-only model."""
        return self.config.image_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a response: those of generation_config.json, else of config.json."""
        return self.config.eos_token_ids

    @property
    def end_token_id(self) -> int:
        """The one that ends a turn of the chat: the tokenizer's eos, if it is among `eos_token_ids`."""
        eos = self.tokenizer.eos_token_id
        return eos if eos in self.eos_token_ids else self.eos_token_ids[0]

    @property
    def pad_token_id(self) -> int:
        return self.config.pad_token_id

    # Problems.

    def __call__(self, problem: Problem) -> Prompt:
        """Tokens, positions and patches of a problem's prompt.

        Raises:
            RowError: (a UserError) a picture that cannot be used, a placeholder token in a text, or more than
                `max_prompt_tokens` tokens; the message names the problem.
        """
        tokens, grids = self._tokens_and_grids(problem)
        try:
            patches = [self.pictures.patches(ref, grid) for ref, grid in zip(problem.images, grids, strict=True)]
        except UserError as error:
            raise _of(problem, error) from None
        return assemble_prompt(tokens, grids, patches, self.image_token_id, self.pictures.geometry)

    def filler(self) -> Prompt:
        """A prompt of one token and no picture, for rows that only fill up a batch."""
        return filler(self.config)

    def measure(self, problem: Problem) -> tuple[int, int]:
        """(tokens, windows) that the prompt will have, from picture headers only. Raises RowError as a call does."""
        tokens, grids = self._tokens_and_grids(problem)
        return len(tokens), sum(self.pictures.geometry.num_windows(grid) for grid in grids)

    def _tokens_and_grids(self, problem: Problem) -> tuple[Int[np.ndarray, " L"], list[Grid]]:
        try:
            grids = [self.pictures.grid(ref) for ref in problem.images]
            tokens = self._encode_prompt(apply_prompt_style(problem.messages, self.prompt_style), grids)
            if len(tokens) > self.max_prompt_tokens:
                pictures = sum(map(self.pictures.geometry.image_tokens, grids))
                raise RowError(
                    f"its prompt has {len(tokens)} tokens ({pictures} of them pictures), over max_prompt_tokens = "
                    f"{self.max_prompt_tokens}; raise the limit, lower max_pixels or drop the row",
                    kind="prompt too long",
                )
        except UserError as error:
            raise _of(problem, error) from None
        return tokens, grids

    def _rendered(self, messages: Sequence[dict[str, Any]]) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                self.pictures.for_template(messages),
                chat_template=self._chat_template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # a template may raise anything, for roles that it does not know for instance
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"the chat template of {self.path} refuses the turns {roles} ({type(error).__name__}: {brief(error)})"
            ) from error

    def _encode_prompt(self, messages: Sequence[dict[str, Any]], grids: Sequence[Grid]) -> Int[np.ndarray, " L"]:
        """Chat template, tokens, and each picture's placeholder repeated once per image token (as HF's processor).

        Messages that end with the assistant's turn ask for its continuation: its text follows the template's prompt.
        """
        for message in messages:
            for part in message["content"]:
                if part["type"] == "text":
                    self._refuse_tokens(part["text"])
        begun = ""
        if messages[-1]["role"] == "assistant":
            begun = "".join(part["text"] for part in messages[-1]["content"])
            messages = messages[:-1]
        text = self._rendered(messages)
        # As HF's processor: a tokenizer that begins a text with a token of its own does so, unless the template did.
        bos = self.tokenizer.bos_token
        has_bos = bos is not None and text.startswith(bos)
        tokens = self._encode(self.pictures.mark_pictures(text), add_special_tokens=not has_bos)
        is_image = tokens == self.image_token_id
        if is_image.sum() != len(grids):
            raise UserError(
                f"the chat template of {self.path} wrote {is_image.sum()} placeholders for {len(grids)} pictures"
            )
        repeats = np.ones(len(tokens), np.int64)
        repeats[is_image] = [self.pictures.geometry.image_tokens(grid) for grid in grids]
        return np.append(np.repeat(tokens, repeats), self._encode(begun))

    # Text.

    @cached_property
    def response_prefix(self) -> str:
        """What the chat template has already written of a response: "<think>" and a line's end, for some that reason.
        The reward rules read it before the response."""
        message = {"role": "user", "content": [{"type": "text", "text": "?"}]}
        text = self._rendered([message])
        return text[text.rindex("<think>") :] if text.rstrip().endswith("<think>") else ""

    def encode_response(self, text: str, *, finished: bool = True) -> Int[np.ndarray, " T"]:
        """Tokens of a response, its end token last, which the text itself may bring (and white space behind it).

        Args:
            finished: else there is an end token only where the text brings it.

        Raises:
            UserError: the text has another special token in it, a picture placeholder for instance.
        """
        body, end = self._split_end(text)
        self._refuse_tokens(body)
        ends = [self.end_token_id] if finished else [] if end is None else [end]
        return np.append(self._encode(body), np.array(ends, np.int32))

    def encode_marked(self, text: str, marker: str) -> Int[np.ndarray, " T"]:
        """Tokens of a text in which one special token may stand.

        Raises:
            UserError: the text has another special token in it.
        """
        for part in text.split(marker):
            self._refuse_tokens(part)
        return self._encode(text)

    def _split_end(self, text: str) -> tuple[str, int | None]:
        for token_id in self.eos_token_ids:
            token = self.tokenizer.convert_ids_to_tokens(token_id)
            if token and text.rstrip().endswith(token):
                return text.rstrip().removesuffix(token), token_id
        return text, None

    def decode(self, tokens: Sequence[int] | Int[np.ndarray, " T"]) -> str:
        """The text of tokens, without special tokens; ordinary added tokens such as <think> stay."""
        return self.tokenizer.backend_tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=True)

    def _encode(self, text: str, *, add_special_tokens: bool = False) -> Int[np.ndarray, " T"]:
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return np.array(encoding.ids, np.int32)

    def _refuse_tokens(self, text: str) -> None:
        for token in self._placeholders:
            if token in text:
                raise UserError(f"its text contains the literal token {token}, which marks pictures; remove it")
        for token in self._special_tokens:
            if token in text:
                raise UserError(f"its text contains the literal token {token}, a special one of the model; remove it")


def filler(config: PolicyConfig) -> Prompt:
    """A prompt of one token and no picture for a model of these sizes."""
    geometry = PREPROCESSORS[type(config)].geometry_of(config)
    return assemble_prompt(np.zeros(1, np.int32), (), (), None, geometry)


def assemble_prompt(
    tokens: Int[np.ndarray, " L"],
    grids: Sequence[Grid],
    patches: Sequence[Float[np.ndarray, "_ S C"]],
    image_token_id: int | None,
    geometry: VisionGeometry | TileGeometry,
) -> Prompt:
    """A prompt of its parts, unpadded.

    Args:
        tokens: with `image_token_id` at every image token of the pictures, which lie in order.
    """
    layouts = [geometry.layout(grid) for grid in grids]
    windows = np.array([len(layout.patch_mask) for layout in layouts], np.int64)
    counts = [geometry.image_tokens(grid) for grid in grids]

    image_places = np.flatnonzero(tokens == image_token_id)
    starts = image_places[np.cumsum([0, *counts[:-1]])] if counts else ()
    positions, next_position = geometry.positions(len(tokens), starts, grids)
    image_index = np.full(len(tokens), -1, np.int32)
    if layouts:
        first_window = np.cumsum(windows) - windows
        offsets = np.repeat(first_window * geometry.units_per_window, counts)
        image_index[image_places] = np.concatenate([layout.image_index for layout in layouts]) + offsets

    places = (geometry.patches_per_window,)
    return Prompt(
        tokens=tokens,
        positions=positions,
        length=np.asarray(len(tokens), np.int32),
        next_position=np.asarray(next_position, np.int32),
        image_index=image_index,
        images=Images(
            patches=_concatenate(patches, (*places, geometry.patch_dim), np.float32),
            patch_positions=_concatenate([layout.patch_positions for layout in layouts], (*places, 2), np.int32),
            patch_mask=_concatenate([layout.patch_mask for layout in layouts], places, bool),
            image_ids=np.repeat(np.arange(len(grids), dtype=np.int32), windows),
        ),
    )


def _of(problem: Problem, error: UserError) -> RowError:
    kind = error.kind if isinstance(error, RowError) else "unusable prompt"
    return RowError(f"problem {problem.id!r}: {error}", kind, problem.id)


def _concatenate(arrays: Sequence[np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Along the windows; without any array, one of no windows."""
    return np.concatenate(arrays) if arrays else np.zeros((0, *shape), dtype)
