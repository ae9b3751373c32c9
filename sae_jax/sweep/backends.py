"""What JAX's backends are told before they start."""

import os
from importlib.util import find_spec

from sae_jax.sweep.cores import make_cores_devices

_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_OWN_PRODUCTS = "xla_gpu_enable_triton_gemm"


def prepare_backends() -> None:
    """Makes each core a device of the CPU, and leaves products on GPUs to cuBLAS.

    What somebody has said of either stays, and what is said once JAX has computed something has no
    effect; results are the same but for rounding.
    """
    make_cores_devices()
    if any(map(find_spec, _CUDA_PLUGINS)):
        leave_products_to_cublas()


def leave_products_to_cublas() -> None:
    """Keeps XLA from compiling kernels of its own for each product, to see which is fastest.

    On an H100 a group's program in float32 then compiles in 2.4 s instead of 21, and its steps take
    as long (`gpu_products` in experiments/results/speed.md).
    """
    flags = os.environ.get("XLA_FLAGS", "")
    # It may also be the name of a file with flags, which nothing can be appended to.
    are_flags = not flags.strip() or flags.lstrip().startswith("-")
    if are_flags and _OWN_PRODUCTS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_OWN_PRODUCTS}=false".strip()
