"""The shape of the text decoder that all families share, read from their `config.json`."""

from __future__ import annotations

from dataclasses import dataclass

from mmeureka_jax.errors import UserError
from mmeureka_jax.models.config_keys import MOST_LAYERS, Keys, first_given

_PADDED_TO = 128


@dataclass(frozen=True)
class TextConfig:
    """The text decoder (HF `Qwen2_5_VLTextConfig`, `Qwen2Config`, `Qwen3Config`, `LlamaConfig`, `InternLM2Config`)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary frequencies that follow (time, row, column); sum = head_dim / 2
    tie_word_embeddings: bool
    max_position_embeddings: int = 128000  # that it was trained on; the policy itself has no limit
    attention_bias: bool = True  # for queries, keys and values (Qwen2; not Llama, Qwen3 and InternLM2)
    qk_norm: bool = False  # each head's queries and keys are normalised (Qwen3)
    fused_qkv: bool = False  # queries, keys and values come from one matrix (InternLM2)
    dynamic_rope: bool = False  # angles change beyond max_position_embeddings, which the policy does not do

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and columns of the output head as parameters; those past `vocab_size` stay zero."""
        return padded_vocabulary(self.vocab_size)


def padded_vocabulary(size: int) -> int:
    """A vocabulary that `mesh.tensor` can split: `size` if 8 divides it, else the next multiple of 128.

    It depends on the model alone, so that a run has the same arrays on every mesh.
    """
    return size if size % 8 == 0 else -(-size // _PADDED_TO) * _PADDED_TO


@dataclass(frozen=True)
class DecoderKind:
    """What decoders of one `model_type` have in common, and the defaults of keys that their files leave out.

    Attributes:
        attention_bias, qk_norm, fused_qkv: see `TextConfig`.
        multimodal: a token has three rotary positions (time, row, column), not one.
        head_dim: None: hidden_size / num_attention_heads.
    """

    attention_bias: bool = False
    qk_norm: bool = False
    fused_qkv: bool = False
    multimodal: bool = False
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


# By `model_type`.
_KINDS = {
    "qwen2": DecoderKind(attention_bias=True),
    "qwen3": DecoderKind(qk_norm=True, head_dim=128),
    "llama": DecoderKind(),
    "internlm2": DecoderKind(fused_qkv=True),
}


def read_decoder(keys: Keys, tied: bool, kind: DecoderKind | None = None) -> TextConfig:
    """The decoder that a section of `config.json` describes.

    Args:
        kind: for a family with one kind of decoder; None: `model_type` says which.

    Raises:
        UserError: another decoder, a missing or malformed key, or a feature that the policy does not have.
    """
    kind = kind or _named_kind(keys)
    keys.require("hidden_act", "silu")
    num_layers = keys.integer("num_hidden_layers", at_most=MOST_LAYERS)
    num_heads = keys.integer("num_attention_heads")
    hidden_size = keys.integer("hidden_size")
    _refuse_sliding_window(keys, num_layers)
    if num_heads <= 0:
        raise UserError(f"{keys.source}: {keys.prefix}num_attention_heads {num_heads} is not usable")
    head_dim = keys.integer("head_dim", default=kind.head_dim or hidden_size // num_heads)
    # A file of transformers 5 has `rope_parameters`, with theta in it; one of transformers 4 `rope_scaling`, or none.
    rope = Keys(keys.section("rope_parameters") or keys.section("rope_scaling"), keys.source, keys.prefix)
    theta = first_given(rope.get("rope_theta"), keys.get("rope_theta"))
    return TextConfig(
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=keys.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=keys.integer("num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        rms_norm_eps=keys.real("rms_norm_eps", default=kind.rms_norm_eps),
        rope_theta=Keys({"rope_theta": theta}, keys.source, keys.prefix).real("rope_theta", default=kind.rope_theta),
        mrope_section=_multimodal_sections(rope) if kind.multimodal else (head_dim // 2, 0, 0),
        tie_word_embeddings=tied,
        max_position_embeddings=keys.integer("max_position_embeddings", default=32768),
        attention_bias=kind.attention_bias,
        qk_norm=kind.qk_norm,
        fused_qkv=kind.fused_qkv,
        dynamic_rope=not kind.multimodal and _is_dynamic(rope),
    )


def _named_kind(keys: Keys) -> DecoderKind:
    name = keys.get("model_type")
    if not isinstance(name, str) or name not in _KINDS:
        raise UserError(f"{keys.source}: {keys.prefix}model_type is {name!r}, expected one of {', '.join(_KINDS)}")
    kind = _KINDS[name]
    keys.require("attention_bias", kind.attention_bias, False)
    keys.require("bias", False)  # InternLM2's key
    keys.require("mlp_bias", False)
    return kind


def _is_dynamic(rope: Keys) -> bool:
    """Whether angles are scaled beyond max_position_embeddings; up to there, the dynamic kind is the plain one."""
    scaling = first_given(rope.get("rope_type"), rope.get("type"), "default")
    if scaling not in ("default", "dynamic"):
        raise UserError(f"{rope.source}: {rope.prefix}rope_scaling {dict(rope.values)!r} is not supported")
    return scaling == "dynamic"


def _multimodal_sections(rope: Keys) -> tuple[int, int, int]:
    kinds = {rope.values.get("rope_type", "default"), rope.values.get("type", "default")}
    if not kinds <= {"mrope", "default"} or "mrope_section" not in rope.values:
        raise UserError(
            f"{rope.source}: rotary settings {dict(rope.values)!r} are not supported; the policy has the plain "
            "multimodal kind, {'type': 'mrope', 'mrope_section': [..]} (no yarn or other scaling)"
        )
    section = Keys(rope.values, rope.source, "rope_scaling.").integers("mrope_section")
    if len(section) != 3:
        raise UserError(f"{rope.source}: mrope_section {list(section)} is not usable")
    return section[0], section[1], section[2]


def _refuse_sliding_window(keys: Keys, num_layers: int) -> None:
    layer_types = keys.get("layer_types")
    if layer_types is None:
        used = (
            bool(keys.get("use_sliding_window", False))
            and keys.get("sliding_window") is not None
            and keys.integer("max_window_layers", default=num_layers) < num_layers
        )
    else:
        used = any(kind != "full_attention" for kind in layer_types)
    if used:
        raise UserError(
            f"{keys.source}: sliding-window attention is in use (use_sliding_window or layer_types), which the policy "
            "does not have; the released checkpoints do not use it"
        )
