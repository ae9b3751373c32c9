"""The contenders of the benchmark: this engine and the PyTorch trainers that people use today.

Each contender takes a workload and samples, prepares, and returns a `Runner`, whose `run`
trains one epoch and returns when it has been computed.
"""

import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from torch_contenders import DEVICE, LIBRARIES, LOOPS, sae_lens
from workload import LEARNING_RATE, Contender, Runner, Workload

import sae_jax
from sae_jax.ops.matmul import COMPUTE_DTYPES, ComputeDtype
from sae_jax.sweep.batches import InMemory
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.plan import Group
from sae_jax.sweep.step import Program, epoch_program, init_group

# Groups are planned as for a sweep so long that compiling does not count: steps are timed.
_EPOCHS = 1000


def engine(dtype: ComputeDtype, *, kernel: str = "auto", **fields: Any) -> Contender:
    """The train step of `sae_jax` for all members, with the planned kernel or a forced one.

    Args:
      dtype: how products are computed.
      kernel: as in `TrainConfig`.
      **fields: fields of `SAEConfig` beside size and seed, if not the workload's k alone.
    """

    def prepare(workload: Workload, x: np.ndarray) -> Runner:
        configs = [
            sae_jax.SAEConfig(
                d_sae=d_sae, seed=i, learning_rate=LEARNING_RATE, **(fields or {"k": k})
            )
            for i, (d_sae, k) in enumerate(workload.sizes)
        ]
        train_config = sae_jax.TrainConfig(
            epochs=_EPOCHS,
            batch_size=workload.batch_size,
            compute_dtype=dtype,
            kernel=kernel,
            memory_budget=2**40,
        )
        placement = Placement.of(train_config, configs)
        groups = [
            _group_runner(
                [configs[i] for i in group.members],
                group,
                train_config,
                placement.for_members(len(group.members)),
                x,
            )
            for group in sae_jax.plan_for(configs, x, train_config).groups
        ]

        def run() -> None:
            for group in groups:
                group.run()

        return Runner(run, len(configs), sum(group.compile_seconds for group in groups))

    return prepare


def _group_runner(
    configs: Sequence[sae_jax.SAEConfig],
    group: Group,
    train_config: sae_jax.TrainConfig,
    placement: Placement,
    x: np.ndarray,
) -> Runner:
    """Compiles the program of a group."""
    program = Program(
        template=configs[0].template,
        dtype=train_config.compute_dtype,
        kernel=group.kernel,
        k_max=group.k_max,
        sequential=group.sequential,
        placement=placement,
    )
    hyper = placement.spread(hyperparameters(configs, train_config, *x.shape))
    state = init_group(hyper, x[0], program=program, d_in=x.shape[1], width=group.width)
    source = InMemory(x, train_config.batch_size, placement)
    start = time.perf_counter()
    lowered = epoch_program(program).lower(state, hyper, source.epoch(0, 0), 0, program=program)
    epoch = lowered.compile()
    compile_seconds = time.perf_counter() - start

    def run() -> None:
        nonlocal state
        state, losses = epoch(state, hyper, source.epoch(0, 0), 0)
        losses.block_until_ready()

    return Runner(run, len(configs), compile_seconds)


# Without a GPU TF32 is float32 again.
_DTYPES: tuple[ComputeDtype, ...] = COMPUTE_DTYPES if DEVICE == "cuda" else ("float32", "bfloat16")
ENGINES: dict[str, Contender] = {f"sae_jax {dtype}": engine(dtype) for dtype in _DTYPES} | {
    f"sae_jax {dtype}, {kernel}": engine(dtype, kernel=kernel)
    for kernel in ("dense", "firing_rows", "selected_rows")
    for dtype in ("float32", "bfloat16")
}
CONTENDERS = ENGINES | LOOPS | LIBRARIES

# Fields of both sides of each architecture, at about the same sparsity; AuxK wherever SAELens
# has it.
_K, _D_SAE = 50, 512
_AUX = {"k": _K, "aux_coefficient": 1.0, "preset": "saelens"}
_PREFIXES = (_D_SAE // 8, _D_SAE // 2, _D_SAE)
_SAELENS_NAMES = {
    "abs_topk": ("abstopk", _AUX, {"k": _K}),
    "topk": ("topk", _AUX, {"k": _K}),
    "batch_topk": ("batchtopk", _AUX, {"k": _K}),
    "matryoshka": (
        "matryoshka_batchtopk",
        _AUX | {"prefix_fractions": tuple(size / _D_SAE for size in _PREFIXES)},
        {"k": _K, "matryoshka_widths": list(_PREFIXES)},
    ),
    "jumprelu": ("jumprelu", {"preset": "saelens"}, {"l0_coefficient": 1.0}),
    "gated": ("gated", {"preset": "saelens"}, {"l1_coefficient": 1.0}),
    "relu": ("standard", {"preset": "saelens"}, {"l1_coefficient": 1.0}),
}
ARCHITECTURES: dict[str, Contender] = {
    f"sae_jax {name}": engine("float32", architecture=name, **ours)
    for name, (_, ours, _) in _SAELENS_NAMES.items()
}
if find_spec("sae_lens"):
    ARCHITECTURES |= {
        f"SAELens {name}": sae_lens(theirs, **fields)
        for name, (theirs, _, fields) in _SAELENS_NAMES.items()
    }
