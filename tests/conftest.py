"""Test session set-up: eight fake CPU devices, so that every sharding is a real one, and no accelerator or network."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
flags = os.environ.get("XLA_FLAGS", "")
if "host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()

# Annotated shapes and dtypes are checked at run time wherever a test calls the numeric core.
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(
    [f"mmeureka_jax.{name}" for name in ("models.attention", "models.layers", "models.policy")],
    "beartype.beartype",
)
