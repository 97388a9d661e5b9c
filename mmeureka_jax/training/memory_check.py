"""Whether a run's arrays can fit into its devices, before any of them is made: from sizes only, nothing is compiled."""

from __future__ import annotations

import logging

import jax

from mmeureka_jax.hosts import is_main
from mmeureka_jax.setup.chips import chip_of_kind
from mmeureka_jax.training.programs import RunPrograms
from mmeureka_jax.training.sizes import always_there, device_bytes, live_bytes

logger = logging.getLogger(__name__)

_MOST = 0.9  # of a device's memory that may be spoken for before programs take what they compute with


def device_memory(device: jax.Device) -> int | None:
    """Bytes that programs can use on a device; None where neither it nor the table of chips says so, as on a CPU."""
    stats = (device.memory_stats() or {}) if device.platform != "cpu" else {}
    chip = chip_of_kind(device.device_kind)
    return stats.get("bytes_limit") or (None if chip is None else chip.memory_bytes)


def warn_of_memory(programs: RunPrograms) -> None:
    """Warns if the train state, or a program's arguments with what lies beside them, take (nearly) all of a device's
    memory. What programs need besides only `mmeureka plan` knows. Under `jax.set_mesh`."""
    memory = device_memory(programs.opened.mesh.devices.flat[0])
    if memory is None or not is_main():
        return
    recipe = programs.recipe
    always = always_there(
        programs.learner,
        with_reference=recipe.with_reference,
        process_model=recipe.abstract_process_model(programs.opened),
    )
    most, name = max((live_bytes(program, always), program.name) for program in programs.all)
    if most <= _MOST * memory:
        return
    logger.warning(
        "a device has %.1f GB for programs; the train state%s takes %.1f GB of it, and what is there while %r runs "
        "%.1f GB, before its temporaries: the run is likely to end for want of memory. `mmeureka plan CONFIG --on "
        "TARGET` compiles it without a device and says what it needs (docs/planning.md)",
        memory / 1e9,
        " with the reference policy" * recipe.with_reference
        + " and the process reward model" * (recipe.process_model is not None),
        device_bytes(always) / 1e9,
        name,
        most / 1e9,
    )
