"""How fast are the products of a step, alone: by XLA, and by PyTorch, which calls MKL and oneDNN?

Both work as a sweep does on a CPU: each core multiplies matrices of its own.
"""

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from sae_jax.ops.matmul import ComputeDtype, matmul

Medians = Callable[[Mapping[Hashable, Callable[[], object]]], dict[Hashable, float]]

_LATENTS, _BATCH = 512, 256
# A run is so many products, so that starting it does not count.
_NUM_PRODUCTS = 8
_DTYPES: tuple[ComputeDtype, ...] = ("float32", "bfloat16")


def product_rows(widths: tuple[int, ...], medians: Medians) -> list[dict[str, Any]]:
    """The three shapes of product that a step of 512 latents on 256 samples has.

    Args:
      widths: of activations, D.
      medians: median seconds of each of several runs.

    Returns:
      One row for each product, width and dtype, in GFLOP/s of all cores together.
    """
    shapes = {
        (name, width): (rows, inner, columns)
        for width in widths
        for name, rows, inner, columns in (
            ("pre-activations", _LATENTS, width, _BATCH),
            ("reconstructions", _BATCH, _LATENTS, width),
            ("gradients of weights", _LATENTS, _BATCH, width),
        )
    }
    runs = {
        (*key, dtype, by): make(*shape, dtype)
        for key, shape in shapes.items()
        for dtype in _DTYPES
        for by, make in (("XLA", _by_xla), ("PyTorch", _by_pytorch))
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = medians(runs)
    torch.set_num_threads(before)
    rows = []
    for (name, width), shape in shapes.items():
        flops = 2 * np.prod(shape) * _NUM_PRODUCTS * jax.device_count()
        for dtype in _DTYPES:
            rate = {by: flops / seconds[name, width, dtype, by] / 1e9 for by in ("XLA", "PyTorch")}
            rows.append(
                {"product": name, "d_in": width, "dtype": dtype}
                | {f"{by}_gflops": value for by, value in rate.items()}
                | {"PyTorch_over_XLA": rate["PyTorch"] / rate["XLA"]}
            )
    return rows


def _by_xla(rows: int, inner: int, columns: int, dtype: ComputeDtype) -> Callable[[], object]:
    def multiplied(_: list[jax.Array], a: jax.Array, bs: list[jax.Array]) -> list[jax.Array]:
        return [matmul(a, b, dtype) for b in bs]

    # Results take the memory of those before, as they do in an epoch.
    program = jax.jit(
        multiplied,
        donate_argnums=0,
        keep_unused=True,
        compiler_options={"xla_cpu_multi_thread_eigen": False},
    )

    def ones(device: jax.Device, dtype: ComputeDtype, *shape: int) -> jax.Array:
        return jax.device_put(jnp.ones(shape, dtype), device)

    operands = [
        (
            ones(device, dtype, rows, inner),
            [ones(device, dtype, inner, columns) for _ in range(_NUM_PRODUCTS)],
        )
        for device in jax.devices()
    ]
    results = [
        [ones(device, "float32", rows, columns) for _ in range(_NUM_PRODUCTS)]
        for device in jax.devices()
    ]

    def run() -> None:
        nonlocal results
        results = [program(out, *given) for out, given in zip(results, operands, strict=True)]
        jax.block_until_ready(results)

    return run


def _by_pytorch(rows: int, inner: int, columns: int, dtype: ComputeDtype) -> Callable[[], object]:
    def multiplied(operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        a, b, out = operands
        for _ in range(_NUM_PRODUCTS):
            torch.mm(a, b, out=out)

    shapes = ((rows, inner), (inner, columns), (rows, columns))
    operands = [
        tuple(torch.ones(shape, dtype=getattr(torch, dtype)) for shape in shapes)
        for _ in jax.devices()
    ]
    threads = ThreadPoolExecutor(len(operands))
    return lambda: list(threads.map(multiplied, operands))
