"""Accelerators: what one of them can hold, compute and send, with the source of every figure.

A row describes what JAX calls a device. That is a whole chip, but on TPU7x each chip is two devices, which have half
of its memory, matrix units and links each; and a TPU v4 chip is one device (its cores are used as one, "megacore").

Memory is what programs can use: on a TPU the limit that its compiler (libtpu 0.0.42) names when it refuses a program,
less than the capacity on the data sheet; on a GPU what the driver reports. Rates are data sheet peaks, for dense
bfloat16 products with float32 sums, and nothing reaches them: a program's time is at least what they say.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A kind of accelerator, per JAX device. All bandwidths are bytes a second in one direction.

    Attributes:
        name: as targets call it: the part of `v5e:4x4` before the colon.
        title: as people call it.
        platform: as JAX calls it.
        device_kinds: what JAX calls such a device (`jax.Device.device_kind`).
        memory_bytes: device memory that programs can use.
        flops: bfloat16 operations a second, dense.
        memory_bandwidth: of device memory; reading and writing together.
        link_bandwidth: of one link.
        links: links of a device. On a TPU two for each dimension of the torus; on a GPU all go to a switch, and two
            devices can use all of them between each other.
        torus_dimensions: of the network within a slice; 0 for a switch.
        ring_from: an axis of the torus closes to a ring if its size is a multiple of this; a shorter one is a line.
        network_bandwidth: a device's share of the network between slices (TPU) or hosts (GPU).
        chips_per_host: devices of the hosts that large slices are made of.
        sources: where the figures are from; a figure that no public page of the vendor gives is said to be not
            verified.
    """

    name: str
    title: str
    platform: str
    device_kinds: tuple[str, ...]
    memory_bytes: int
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    links: int
    torus_dimensions: int
    ring_from: int
    network_bandwidth: float
    chips_per_host: int
    sources: tuple[str, ...]

    @property
    def interconnect_bandwidth(self) -> float:
        """All links of a device together, in one direction."""
        return self.link_bandwidth * self.links


_LIBTPU = "memory: the limit in the message of libtpu 0.0.42 about a program that is too large"
_ONE_WAY = "a link's bandwidth: the chip's bidirectional ICI bandwidth by the number of its links, by 2 directions"
_XLA_GPU = "memory: openxla/xla, xla/backends/gpu/target_config/specs/"

CHIPS = (
    Chip(
        name="v4",
        title="TPU v4",
        platform="tpu",
        device_kinds=("TPU v4",),
        memory_bytes=int(30.75 * GIB),
        flops=275e12,
        memory_bandwidth=1200e9,
        link_bandwidth=50e9,
        links=6,
        torus_dimensions=3,
        ring_from=4,
        network_bandwidth=3.125e9,
        chips_per_host=4,
        sources=(
            "https://docs.cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB, 1200 GB/s, 3D",
            "a link's bandwidth: Jouppi et al., TPU v4, arXiv 2304.01433, table 4",
            "network_bandwidth: not verified; taken as on v5e",
            _LIBTPU,
        ),
    ),
    Chip(
        name="v5e",
        title="TPU v5e",
        platform="tpu",
        device_kinds=("TPU v5 lite", "TPU v5e"),
        memory_bytes=int(15.75 * GIB),
        flops=197e12,
        memory_bandwidth=819e9,
        link_bandwidth=50e9,
        links=4,
        torus_dimensions=2,
        ring_from=16,
        network_bandwidth=3.125e9,
        chips_per_host=4,
        sources=(
            "https://docs.cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s, ICI 400 GB/s, 4 ports, 2D "
            "torus, 6.4 Tbit/s of data center network for 256 chips",
            _ONE_WAY,
            _LIBTPU,
        ),
    ),
    Chip(
        name="v5p",
        title="TPU v5p",
        platform="tpu",
        device_kinds=("TPU v5", "TPU v5p"),
        memory_bytes=int(95.74 * GIB),
        flops=459e12,
        memory_bandwidth=2765e9,
        link_bandwidth=100e9,
        links=6,
        torus_dimensions=3,
        ring_from=4,
        network_bandwidth=6.25e9,
        chips_per_host=4,
        sources=(
            "https://docs.cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB, 2765 GB/s, ICI 1200 GB/s, 3D torus, "
            "50 Gbit/s of data center network a chip",
            _ONE_WAY,
            _LIBTPU,
        ),
    ),
    Chip(
        name="v6e",
        title="TPU v6e (Trillium)",
        platform="tpu",
        device_kinds=("TPU v6 lite", "TPU v6e"),
        memory_bytes=int(31.25 * GIB),
        flops=918e12,
        memory_bandwidth=1638e9,
        link_bandwidth=100e9,
        links=4,
        torus_dimensions=2,
        ring_from=16,
        network_bandwidth=12.5e9,
        chips_per_host=4,
        sources=(
            "https://docs.cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, 1638 GB/s, ICI 800 GB/s, 4 ports, 2D "
            "torus",
            "https://docs.cloud.google.com/tpu/docs/tpu7x: 100 Gbit/s of data center network a chip",
            _ONE_WAY,
            _LIBTPU,
        ),
    ),
    Chip(
        name="tpu7x",
        title="TPU7x (Ironwood), half a chip",
        platform="tpu",
        device_kinds=("TPU7x",),
        memory_bytes=int(94.75 * GIB),
        flops=2307e12 / 2,
        memory_bandwidth=7380e9 / 2,
        link_bandwidth=100e9 / 2,
        links=6,
        torus_dimensions=3,
        ring_from=4,
        network_bandwidth=12.5e9 / 2,
        chips_per_host=8,
        sources=(
            "https://docs.cloud.google.com/tpu/docs/tpu7x: a chip has 2307 TFLOP/s, 192 GiB, 7380 GB/s, ICI 1200 GB/s, "
            "100 Gbit/s of data center network, and is two devices",
            "that the devices of a chip share its links evenly: not verified; between the two there is more",
            _ONE_WAY,
            _LIBTPU,
        ),
    ),
    Chip(
        name="a100",
        title="NVIDIA A100 80 GB SXM",
        platform="gpu",
        device_kinds=("NVIDIA A100-SXM4-80GB",),
        memory_bytes=85_100_068_864,
        flops=312e12,
        memory_bandwidth=2039e9,
        link_bandwidth=25e9,
        links=12,
        torus_dimensions=0,
        ring_from=1,
        network_bandwidth=25e9,
        chips_per_host=8,
        sources=(
            "NVIDIA A100 data sheet: 312 TFLOP/s, 2039 GB/s, NVLink 600 GB/s both ways",
            "network_bandwidth: a 200 Gbit/s InfiniBand port for each GPU, as in a DGX A100; other hosts differ",
            f"{_XLA_GPU}a100_sxm_80.txtpb",
        ),
    ),
    Chip(
        name="h100",
        title="NVIDIA H100 80 GB SXM",
        platform="gpu",
        device_kinds=("NVIDIA H100 80GB HBM3",),
        memory_bytes=84_942_979_072,
        flops=989.5e12,
        memory_bandwidth=3350e9,
        link_bandwidth=25e9,
        links=18,
        torus_dimensions=0,
        ring_from=1,
        network_bandwidth=50e9,
        chips_per_host=8,
        sources=(
            "NVIDIA H100 data sheet, SXM: 1979 TFLOP/s with sparsity, half of it dense; 3.35 TB/s, NVLink 900 GB/s "
            "both ways",
            "network_bandwidth: a 400 Gbit/s InfiniBand port for each GPU, as in a DGX H100; other hosts differ",
            f"{_XLA_GPU}h100_sxm.txtpb",
        ),
    ),
    Chip(
        name="h200",
        title="NVIDIA H200 141 GB SXM",
        platform="gpu",
        device_kinds=("NVIDIA H200", "NVIDIA H200 141GB HBM3e"),
        memory_bytes=151_397_597_184,
        flops=989.5e12,
        memory_bandwidth=4800e9,
        link_bandwidth=25e9,
        links=18,
        torus_dimensions=0,
        ring_from=1,
        network_bandwidth=50e9,
        chips_per_host=8,
        sources=(
            "NVIDIA H200 data sheet, SXM: 1979 TFLOP/s with sparsity, half of it dense; 4.8 TB/s, NVLink 900 GB/s both "
            "ways",
            "network_bandwidth: a 400 Gbit/s InfiniBand port for each GPU, as in a DGX H200; other hosts differ",
            f"{_XLA_GPU}h200.txtpb",
        ),
    ),
)


def chip_named(name: str) -> Chip | None:
    """The chip that targets call so (`v5e`, or all of `v5e:4x4`); None for another."""
    wanted = name.partition(":")[0].lower()
    return next((chip for chip in CHIPS if chip.name == wanted), None)


def chip_of_kind(device_kind: str) -> Chip | None:
    """The chip with this `jax.Device.device_kind`; None for one that is not in the table, a CPU among them."""
    return next((chip for chip in CHIPS if device_kind in chip.device_kinds), None)
