"""A tiny random policy in torch and in JAX, with weights lively enough that every part matters to its output."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import torch
from PIL import Image
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2ForCausalLM,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from mmeureka_jax.config.schema import RandomModelConfig
from mmeureka_jax.data.pictures import read_picture
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.data.record import ImageRef, Problem
from mmeureka_jax.formats.hugging_face import load_params, read_config
from mmeureka_jax.models.batch import Prompt, collate
from mmeureka_jax.models.families import weight_mappings
from mmeureka_jax.models.policy import Params, Policy, encode_images, token_log_probs
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings
from mmeureka_jax.setup.random_models import write_tiny_checkpoint


class WithoutVideo:
    """For a processor of transformers: leaves out its video part, which needs torchvision."""

    @classmethod
    def get_attributes(cls):
        return ["image_processor", "tokenizer"]

    def check_argument_for_proper_class(self, argument_name, argument):
        return type(argument)


TORCH_MODELS = {
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2": Qwen2ForCausalLM,
}
PIXELS = {"min_pixels": 4 * 28 * 28, "max_pixels": 256 * 28 * 28}


def start_folder(folder: Path) -> Path:
    return folder.with_name(folder.name + "_start")


def make_checkpoint(
    folder: Path, *, tied: bool = True, seed: int = 0, layers: int = 3, depth: int = 4, family: str = "qwen2_5_vl"
) -> PreTrainedModel:
    """Writes the checkpoint to `folder` and returns the torch model (float32, eager attention) that it holds.

    Every second block of Qwen2.5-VL's vision tower, of `depth`, attends within windows.

    `start_folder(folder)` holds the same architecture as it is initialised, with weights of deviation 0.02.
    """
    start = start_folder(folder)
    config = RandomModelConfig(
        family=family, hidden_size=64, intermediate_size=128, num_layers=layers, num_heads=4, num_kv_heads=2,
        tie_word_embeddings=tied, vision_hidden_size=32, vision_intermediate_size=64 if family == "qwen2_vl" else 48,
        vision_depth=depth, vision_num_heads=2, vision_full_attention_blocks=tuple(range(1, depth, 2)),
    )  # fmt: skip
    write_tiny_checkpoint(start, config)
    kind = TORCH_MODELS[family]
    model = enlivened(kind.from_pretrained(start, dtype=torch.float32, attn_implementation="eager"), seed)
    model.save_pretrained(folder)
    for file in start.iterdir():
        if file.suffix != ".safetensors" and not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    return model


def enlivened(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The model with other random weights, in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * (1.0 if "embed_tokens" in name else 1.5 / fan_in**0.5))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(1 + 0.2 * noise)
    return model.eval()


def picture(width: int, height: int, seed: int = 0) -> ImageRef:
    pixels = np.random.default_rng([width, height, seed]).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue())


def problem(name: str, text: str, *sizes: tuple[int, int]) -> Problem:
    """A problem whose question is between its pictures."""
    content = [{"type": "image"} for _ in sizes[:1]]
    content += [{"type": "text", "text": text}]
    content += [{"type": "image"} for _ in sizes[1:]]
    images = tuple(picture(*size, seed=i) for i, size in enumerate(sizes))
    return Problem(id=name, messages=({"role": "user", "content": content},), images=images, answer="1", metadata={})


PROBLEMS = {
    "text only": problem("a", "what is 1 + 1 ?"),
    "one window": problem("b", "how many dots ?", (112, 112)),
    "odd sizes": problem("c", "what is this ?", (200, 61)),
    "tall": problem("d", "how long is it ?", (40, 310)),
    "several pictures": problem("e", "compare the two", (150, 90), (64, 64), (113, 250)),
}


class Lively:
    """One lively checkpoint in both frameworks: `torch` is transformers' model, `policy` and `params` are ours."""

    def __init__(self, folder: Path, *, tied: bool, **settings: int | str):
        self.folder = folder
        self.torch = make_checkpoint(folder, tied=tied, **settings)
        self.config = read_config(folder)
        self.policy = Policy(self.config, compute_dtype="float32", remat=True, logits_mb=0.05)
        self.params = load_params(folder, self.config)
        self.start_params = load_params(start_folder(folder), self.config)
        self.processor = Processor.from_checkpoint(folder, prompt_style="plain", max_prompt_tokens=4096, **PIXELS)

    def batch(self, problems: Sequence[Problem], spare_tokens: int = 5, spare_windows: int = 2) -> Prompt:
        """A batch padded to its longest prompt and `spare` places more."""
        prompts = [self.processor(item) for item in problems]
        length = max(len(prompt.tokens) for prompt in prompts) + spare_tokens
        windows = max(prompt.images.num_windows for prompt in prompts)
        return collate(prompts, length, windows + spare_windows if windows else 0)

    def torch_inputs(self, item: Problem, response: np.ndarray) -> tuple[dict[str, torch.Tensor], int]:
        """What transformers wants for one problem followed by one response, and where the response starts."""
        prompt = self.processor(item)
        ids = torch.tensor(np.concatenate([prompt.tokens, response]))[None].long()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.config.image_token_id is not None:
            inputs["mm_token_type_ids"] = (ids == self.config.image_token_id).int()
        if item.images:
            images = [read_picture(image) for image in item.images]
            pictures = Qwen2VLImageProcessorPil(**PIXELS)(images=images, return_tensors="pt")
            inputs |= {"pixel_values": pictures["pixel_values"], "image_grid_thw": pictures["image_grid_thw"]}
        return inputs, len(prompt.tokens)

    def torch_log_probs(
        self, item: Problem, response: np.ndarray, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the response's tokens, and of the whole vocabulary at their places."""
        inputs, start = self.torch_inputs(item, response)
        logits = self.torch(**inputs).logits[0, start - 1 : -1]
        table = torch.log_softmax(logits.float() / temperature, -1)
        return table[torch.arange(len(response)), torch.tensor(response).long()], table

    def torch_gradients(self) -> Params:
        """What backward() left in the torch model, in our tree."""
        gradients = self.torch.named_parameters()
        return self.as_tree({_hub_name(name): p.grad.numpy() for name, p in gradients if p.grad is not None})

    def as_tree(self, stored: dict[str, np.ndarray]) -> Params:
        """Tensors by their stored names, in our tree."""
        tree: Params = {}
        for mapping in weight_mappings(self.config):
            layers = [mapping.of_leaf(stored.pop(name)) for name, _ in mapping.tensors()]
            *parents, last = mapping.leaf.split("/")
            node = functools.reduce(lambda node, name: node.setdefault(name, {}), parents, tree)
            node[last] = layers[0] if mapping.layers is None else np.stack(layers)
        assert not stored, f"tensors without a place: {sorted(stored)}"
        return tree


def _hub_name(name: str) -> str:
    for old, new in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


@functools.partial(jax.jit, static_argnums=0)
def encode_and_score(policy, params, batch, responses):
    """Log-probabilities and entropies of the responses' tokens; pictures are encoded first."""
    return token_log_probs(policy, params, batch, encode_images(policy, params, batch.images), responses)


def responses_for(count, n, length, seed=0, vocab=250):
    """Random tokens [count, n, length], the same each time."""
    return np.random.default_rng(seed).integers(5, vocab, (count, n, length)).astype(np.int32)


def assert_gradients_equal(ours: Params, theirs: Params, *, vanishing=lambda name: False) -> None:
    """Within 1e-3 of each tensor's norm, layer by layer; those whose name is `vanishing` are 0 but for rounding."""
    for (path, mine), expected in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        name = jax.tree_util.keystr(path)
        if vanishing(name):
            assert max(np.abs(mine).max(), np.abs(expected).max()) < 1e-4
            continue
        stacked = "blocks" in name or "layers" in name  # each layer is a tensor of its own
        for one, of_torch in zip(mine, expected, strict=True) if stacked else [(mine, expected)]:
            assert np.linalg.norm(one - of_torch) <= 1e-3 * np.linalg.norm(of_torch), name


def assert_greedy_equals_transformers(model: Lively, items: Sequence[Problem], length: int) -> None:
    """Token for token, up to the first end token."""
    config = model.config
    settings = SamplingSettings(
        temperature=0.0, group_size=1, max_new_tokens=length, eos_token_ids=config.eos_token_ids,
        pad_token_id=config.pad_token_id,
    )  # fmt: skip
    request = Request.of([item.id for item in items], model.batch(items))
    samples, _ = Sampler(model.policy, settings, "rollout").sample(model.params, request)
    for i, item in enumerate(items):
        inputs, start = model.torch_inputs(item, np.zeros(0, np.int32))
        with torch.no_grad():
            out = model.torch.generate(
                **inputs, max_new_tokens=length, do_sample=False, eos_token_id=list(config.eos_token_ids),
                pad_token_id=config.pad_token_id, suppress_tokens=list(model.policy.forbidden_tokens) or None,
            )  # fmt: skip
        expected = out[0, start:].numpy()
        assert samples.lengths[i, 0] == len(expected)
        np.testing.assert_array_equal(samples.tokens[i, 0, : len(expected)], expected, err_msg=item.id)
    assert len(np.unique(samples.tokens)) > 10  # not a test of stuck answers
