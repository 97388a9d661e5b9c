"""The policy that a command works with: its checkpoint, found and checked, on a mesh of devices."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from mmeureka_jax.config.reading import config_diff, filled, to_dict
from mmeureka_jax.config.schema import LoraConfig, MeshConfig, ModelConfig, RandomModelConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import explain_write_errors, read_json, remove_folder
from mmeureka_jax.formats.hub import resolve_checkpoint
from mmeureka_jax.formats.hugging_face import load_params, read_config
from mmeureka_jax.formats.peft import StoredAdapters, open_adapters
from mmeureka_jax.hosts import barrier, is_main
from mmeureka_jax.mesh import make_mesh, sampler_mesh, tree_shardings
from mmeureka_jax.models.decoder_config import TextConfig
from mmeureka_jax.models.families import PolicyConfig
from mmeureka_jax.models.lora import Lora, initial_adapters
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.process.console import waiting
from mmeureka_jax.rl.optimizer import merge_params

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedPolicy:
    """A policy whose checkpoint has been found and checked, and whose parameters can be loaded.

    Attributes:
        policy: its static part.
        mesh: the devices that its parameters are spread over.
        checkpoint: the folder that its parameters are in.
        adapters: those that it starts with; None if it has none, or new ones.
    """

    policy: Policy
    mesh: Mesh
    checkpoint: Path
    adapters: StoredAdapters | None = None

    @property
    def sampler_mesh(self) -> Mesh:
        """The mesh that responses are sampled under; see `mesh.sampler_mesh`."""
        return sampler_mesh(self.mesh)

    def load_params(self, what: str = "the policy") -> Params:
        """The parameters to start from, sharded over the mesh: the checkpoint's, and adapters if the policy has any."""
        base = self.load_base(what)
        return base if self.policy.lora is None else merge_params(base, self.load_adapters())

    def load_adapters(self) -> Params:
        """The adapters to start from, of a policy that has any: a part of the parameter tree."""
        assert self.policy.lora is not None
        shapes = self.policy.abstract_params()
        values = self.adapters.read() if self.adapters else initial_adapters(shapes, self.policy.lora.seed)
        shardings = flatten_dict(self.shardings(), sep="/")
        placed = {
            path: jax.make_array_from_callback(value.shape, shardings[path], value.__getitem__)
            for path, value in values.items()
        }
        return unflatten_dict(placed, sep="/")

    def load_base(self, what: str = "the policy") -> Params:
        """The checkpoint's parameters: float32 masters, or under adapters of `lora.base_dtype`."""
        lora = self.policy.lora
        return self._load("float32" if lora is None else lora.base_dtype, what)

    def load_frozen(self, what: str) -> Params:
        """The checkpoint's parameters as it computes with them, for a model that is not trained."""
        return self._load(self.policy.compute_dtype, what)

    def _load(self, dtype: str, what: str) -> Params:
        with waiting(f"loading {what} from {self.checkpoint}"):
            return load_params(self.checkpoint, self.policy.config, self.shardings(), jnp.dtype(dtype))

    def abstract_frozen(self) -> Params:
        """Shapes and shardings of `load_frozen`."""
        dtype = jnp.dtype(self.policy.compute_dtype)
        return jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, dtype, sharding=sharding),
            self.policy.abstract_params(),
            self.shardings(),
        )

    def beside(self, checkpoint: Path, config: PolicyConfig) -> OpenedPolicy:
        """Another model, on the same devices and computed in the same way, without adapters.

        Raises:
            UserError: the mesh does not divide it.
        """
        other = OpenedPolicy(replace(self.policy, config=config, lora=None), self.mesh, checkpoint)
        _check_heads(config.text, self.mesh)
        other.shardings()  # raises where the mesh does not divide them
        return other

    def shardings(self) -> Params:
        """How each parameter is spread over the mesh.

        Raises:
            UserError: the mesh does not divide one of them.
        """
        return tree_shardings(self.mesh, self.policy.abstract_params(), self.policy.param_axes())


def compute_dtype(config: ModelConfig, mesh: Mesh) -> str:
    """`auto` is bfloat16 on accelerators and float32 on CPU."""
    if config.compute_dtype != "auto":
        return config.compute_dtype
    return "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"


def find_checkpoint(config: ModelConfig, run_dir: Path) -> Path:
    """The folder of the checkpoint that a run starts from. For `model.random` it is made, in the run's own folder.

    Raises:
        UserError: no such checkpoint; or see `open_random_model`.
    """
    if config.random is not None:
        return open_random_model(run_dir, config.random)
    if config.checkpoint is None:
        raise UserError(
            "no model: set model.checkpoint to a checkpoint folder or hub id (or model.random for a random one)"
        )
    return resolve_checkpoint(config.checkpoint, weights=False)


def open_policy(
    checkpoint: Path,
    config: ModelConfig,
    mesh: MeshConfig,
    *,
    seed: int = 0,
    devices: list[jax.Device] | None = None,
) -> OpenedPolicy:
    """Checks that a checkpoint can be used and fits the mesh. Reads no weights.

    Args:
        checkpoint: its folder, see `find_checkpoint`.
        config: how the policy computes, and its adapters.
        seed: of new adapters.
        devices: what the mesh is made of; all of JAX's by default. Those of a described topology serve to compile only.

    Raises:
        UserError: a family that is not supported, or a mesh that does not divide the devices or the model.
    """
    sizes = read_config(checkpoint)
    device_mesh = make_mesh(mesh, devices)
    _check_heads(sizes.text, device_mesh)
    policy = Policy(
        config=sizes,
        compute_dtype=compute_dtype(config, device_mesh),
        remat=config.remat == "full",
        logits_mb=config.logits_mb,
        attention=config.attention,
        lora=lora_of(config, seed),
    )
    opened = OpenedPolicy(policy, device_mesh, checkpoint, _open_adapters(config.lora, policy))
    opened.shardings()  # raises where the mesh does not divide them
    return opened


def _check_heads(text: TextConfig, mesh: Mesh) -> None:
    """Raises a UserError if `mesh.tensor` does not divide the heads of a decoder."""
    tensor = mesh.shape["tensor"]
    for name, count in (("query heads", text.num_heads), ("key/value heads", text.num_kv_heads)):
        if count % tensor:
            raise UserError(
                f"mesh.tensor = {tensor} does not divide the model's {count} {name}; choose a divisor of {count}"
            )


def lora_of(config: ModelConfig, seed: int) -> Lora | None:
    """The static part of the adapters that a config asks for."""
    lora = config.lora
    if lora is None:
        return None
    return Lora(lora.rank, lora.alpha, lora.targets, lora.dropout, lora.base_dtype, seed)


def lora_of_adapters(
    adapters: Path, checkpoint: Path, base_dtype: Literal["bfloat16", "float32"] = "float32"
) -> LoraConfig:
    """The settings that the adapters in a folder were trained with, next to a base of `base_dtype`."""
    stored = open_adapters(adapters, read_config(checkpoint))
    return LoraConfig(
        rank=stored.rank,
        alpha=stored.alpha,
        dropout=stored.dropout,
        targets=stored.targets,
        base_dtype=base_dtype,
        adapters=str(adapters),
    )


def _open_adapters(config: LoraConfig | None, policy: Policy) -> StoredAdapters | None:
    """The adapters that a config starts from; None for new ones.

    Raises:
        UserError: they are not those that the other keys describe.
    """
    if config is None or config.adapters is None or policy.lora is None:
        return None
    stored = open_adapters(resolve_checkpoint(config.adapters), policy.config)
    problems = [
        f"model.lora.{name} is {ours:g}, theirs is {theirs:g}"
        for name, ours, theirs in (("rank", config.rank, stored.rank), ("alpha", config.alpha, stored.alpha))
        if ours != theirs
    ]
    asked = set(policy.lora.paths(policy.config))
    there = set(stored.places)
    problems += [f"model.lora.targets gives {path} one, they have none" for path in sorted(asked - there)]
    problems += [f"they have one for {path}, model.lora.targets gives it none" for path in sorted(there - asked)]
    if problems:
        raise UserError(
            f"model.lora.adapters: {stored.folder} holds other adapters than the config says:\n  "
            + "\n  ".join(problems)
            + "\nset the keys to what they are"
        )
    return stored


def check_context(text: TextConfig, longest: int) -> None:
    """Warns of prompts and responses that together may be longer than what the checkpoint was trained on.

    Raises:
        UserError: the checkpoint asks for other rotary angles beyond that.
    """
    if longest <= text.max_position_embeddings:
        return
    message = (
        f"a prompt and its response may take {longest} positions, and the checkpoint was trained on "
        f"{text.max_position_embeddings} (max_position_embeddings)"
    )
    if text.dynamic_rope:
        raise UserError(
            f"{message}; beyond those its rotary angles change (rope_scaling dynamic), which the policy does not have: "
            "lower the limits of prompts or responses"
        )
    logger.warning("%s; responses beyond those are likely to be poor", message)


def open_random_model(run_dir: Path, config: RandomModelConfig) -> Path:
    """RUN/model: weights drawn as `config` says. The main process draws them, unless they are there.

    Raises:
        UserError: the run has checkpoints, and they started from other weights; or RUN/model is something else.
    """
    from mmeureka_jax.setup.random_models import RANDOM_MODEL_FILE, write_tiny_checkpoint

    folder = run_dir / "model"
    has_steps = any(path.name.isdigit() for path in (run_dir / "checkpoints").glob("*"))
    if has_steps or is_main():  # in a new run the others would look while the main process writes
        exists = (folder / "config.json").exists()
        record = folder / RANDOM_MODEL_FILE
        if exists and not record.exists() and not has_steps:
            raise UserError(f"{folder} holds a model that model.random did not make; use another run_dir or remove it")
        differences = []
        if record.exists():
            drawn = filled(read_json(record), to_dict(RandomModelConfig()))
            differences = config_diff(drawn, to_dict(config), "model.random.")
        if differences and has_steps:
            raise UserError(
                f"{run_dir} holds a run that started from other random weights:\n  "
                + "\n  ".join(differences)
                + "\nUse another run_dir or the old settings"
            )
        if is_main() and (differences or not exists):
            if differences:
                with explain_write_errors(folder):
                    remove_folder(folder)
            write_tiny_checkpoint(folder, config)
    barrier("random checkpoint written")
    return folder
