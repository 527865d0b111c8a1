"""The GPUs that programs are compiled for without one at hand, in the words that XLA wants.

Figures are those of the vendors' data sheets and of the CUDA guide's table of compute capabilities. Timing
decisions of XLA read them; whether a kernel compiles, and into what, depends on the capability alone.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """One GPU. Sizes are in bytes, rates in bytes a second."""

    name: str  # as the driver calls the device
    short: str
    capability: tuple[int, int]
    cores: int
    lanes: int  # float32 units of a core
    clock_ghz: float
    memory: int
    bandwidth: int
    l2_cache: int
    core_shared: int
    block_shared: int  # the most that a block may ask for
    core_threads: int
    own_instructions: bool = False  # such as wgmma, which no other capability has

    @property
    def description(self) -> str:
        """XLA's text form of a GPU."""
        major, minor = self.capability
        feature = "ACCELERATED_FEATURES" if self.own_instructions else "NONE"
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              shared_memory_per_block: 49152
              shared_memory_per_core: {self.core_shared}
              threads_per_core_limit: {self.core_threads}
              core_count: {self.cores}
              fpus_per_core: {self.lanes}
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              memory_bandwidth: {self.bandwidth}
              l2_cache_size: {self.l2_cache}
              clock_rate_ghz: {self.clock_ghz}
              device_memory_size: {self.memory}
              shared_memory_per_block_optin: {self.block_shared}
              cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              thread_dim_limit_x: 1024
              thread_dim_limit_y: 1024
              thread_dim_limit_z: 64
              device_vendor: "NVIDIA Corporation"
              device_address_bits: 64
              name: "{self.name}"
              driver_version: "13.0.0"
              runtime_version: "13.0.0"
              compile_time_toolkit_version: "13.0.0"
              dnn_version: "9.10.0"
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 }}
            device_description_str: "{self.name}"
        """


KIB = 1024
TARGETS = {
    "sm_80": Target(
        name="NVIDIA A100-SXM4-80GB",
        short="A100",
        capability=(8, 0),
        cores=108,
        lanes=64,
        clock_ghz=1.41,
        memory=85_100_068_864,
        bandwidth=2_039_040_000_000,
        l2_cache=40 * KIB**2,
        core_shared=164 * KIB,
        block_shared=163 * KIB,
        core_threads=2048,
    ),
    "sm_89": Target(
        name="NVIDIA GeForce RTX 4090",
        short="RTX 4090",
        capability=(8, 9),
        cores=128,
        lanes=128,
        clock_ghz=2.52,
        memory=25_393_692_672,
        bandwidth=1_008_096_000_000,
        l2_cache=72 * KIB**2,
        core_shared=100 * KIB,
        block_shared=99 * KIB,
        core_threads=1536,
    ),
    "sm_90": Target(
        name="NVIDIA H100 80GB HBM3",
        short="H100",
        capability=(9, 0),
        cores=132,
        lanes=128,
        clock_ghz=1.98,
        memory=84_942_979_072,
        bandwidth=3_352_320_000_000,
        l2_cache=50 * KIB**2,
        core_shared=228 * KIB,
        block_shared=227 * KIB,
        core_threads=2048,
        own_instructions=True,
    ),
}
