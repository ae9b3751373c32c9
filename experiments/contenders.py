"""The contenders of the benchmark: this engine and the PyTorch trainers that people use today.

Each contender takes a workload and samples, prepares, and returns a `Runner`, whose `run`
trains one epoch and returns when it has been computed.
"""

import dataclasses
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
import torch
import torch_reference

import sae_jax
from sae_jax.architectures.initialization import init_params
from sae_jax.sweep.batches import InMemory
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.step import Program, init_group, train_epoch

LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Workload:
    """Members of one size that train on activations `[num_samples, d_in]`."""

    members: int = 4
    d_sae: int = 512
    k: int = 50
    d_in: int = 2048
    num_samples: int = 4096
    batch_size: int = 256

    @property
    def num_steps(self) -> int:
        """Number of steps in one epoch, including the last, smaller batch."""
        return -(-self.num_samples // self.batch_size)

    @property
    def flops_per_member_step(self) -> int:
        """Floating-point operations of a step's five dense products: two forward, three back."""
        return 10 * self.batch_size * self.d_in * self.d_sae

    @property
    def optimizer_bytes(self) -> int:
        """Bytes that Adam moves: it reads parameter, gradient and two moments, and writes three."""
        return 7 * 4 * (2 * self.d_in * self.d_sae + self.d_sae + self.d_in)


@dataclasses.dataclass(frozen=True)
class Runner:
    """A contender that is ready to run.

    Attributes:
      run: function that trains one epoch.
      member_steps: number of steps of one SAE in that epoch.
      compile_seconds: seconds that compiling the program took.
    """

    run: Callable[[], None]
    member_steps: int
    compile_seconds: float = 0.0


Contender = Callable[[Workload, np.ndarray], Runner]


def engine(dtype: str, *, kernel: str = "auto", **fields: Any) -> Contender:
    """The train step of `sae_jax` for all members, with the planned kernel or a forced one.

    Args:
      dtype: how products are computed.
      kernel: as in `TrainConfig`.
      **fields: fields of `SAEConfig` beside size and seed, if not the workload's k alone.
    """

    def prepare(workload: Workload, x: np.ndarray) -> Runner:
        members = workload.members
        configs = sae_jax.grid(
            d_sae=workload.d_sae,
            seed=range(members),
            learning_rate=LEARNING_RATE,
            **(fields or {"k": workload.k}),
        )
        train_config = sae_jax.TrainConfig(
            batch_size=workload.batch_size, compute_dtype=dtype, kernel=kernel, memory_budget=2**40
        )
        (group,) = sae_jax.plan_for(configs, x, train_config).groups
        program = Program(
            template=configs[0].template,
            dtype=dtype,
            kernel=group.kernel,
            k_max=group.k_max,
            sequential=group.sequential,
        )
        hyper = hyperparameters(configs, train_config, *x.shape)
        state = init_group(hyper, x[0], program=program, d_in=workload.d_in, width=workload.d_sae)
        source = InMemory(x, workload.batch_size, Placement.default())
        start = time.perf_counter()
        epoch = train_epoch.lower(state, hyper, source.epoch(0, 0), 0, program=program).compile()
        compile_seconds = time.perf_counter() - start

        def run() -> None:
            nonlocal state
            state, losses = epoch(state, hyper, source.epoch(0, 0), 0)
            losses.block_until_ready()

        return Runner(run, workload.num_steps * members, compile_seconds)

    return prepare


def torch_loop(*, fused: bool) -> Contender:
    """A lean PyTorch loop of the published recipe."""

    def prepare(workload: Workload, x: np.ndarray) -> Runner:
        params = init_params(jax.random.key(0), workload.d_in, workload.d_sae, workload.d_sae)
        sae = torch_reference.TorchTopKSAE(jax.device_get(params), workload.k)
        optimizer = torch_reference.adam(sae, LEARNING_RATE, fused=fused)
        return _looped(lambda batch: torch_reference.step(sae, optimizer, batch), workload, x)

    return prepare


def sae_lens(architecture: str = "topk", **fields: Any) -> Contender:
    """SAELens' trainer of one of its architectures, with its defaults.

    Args:
      architecture: its name there.
      **fields: of the architecture's config there, if not the workload's k alone.
    """

    def prepare(workload: Workload, x: np.ndarray) -> Runner:
        from sae_lens import SAETrainer
        from sae_lens.config import SAETrainerConfig
        from sae_lens.registry import get_sae_training_class

        sae_class, config_class = get_sae_training_class(architecture)
        own = fields or {"k": workload.k}
        config = config_class(d_in=workload.d_in, d_sae=workload.d_sae, **own)
        trainer_config = SAETrainerConfig(
            total_training_samples=10**9,
            train_batch_size_samples=workload.batch_size,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE,
        )
        trainer = SAETrainer(trainer_config, sae_class(config), iter(()))
        return _looped(trainer.step, workload, x)

    return prepare


def dictionary_learning(workload: Workload, x: np.ndarray) -> Runner:
    """dictionary_learning's TopK trainer with its defaults."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10**6,
        activation_dim=workload.d_in,
        dict_size=workload.d_sae,
        k=workload.k,
        layer=0,
        lm_name="none",
        lr=LEARNING_RATE,
        device="cpu",
    )
    num_done = 0

    def step(batch: torch.Tensor) -> None:
        nonlocal num_done
        trainer.update(num_done, batch)
        num_done += 1

    return _looped(step, workload, x)


def sparsify(workload: Workload, x: np.ndarray) -> Runner:
    """sparsify's SparseCoder with Adam, stepped as its trainer does."""
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=workload.d_sae, k=workload.k)
    coder = SparseCoder(workload.d_in, config)
    optimizer = torch.optim.Adam(coder.parameters(), lr=LEARNING_RATE)

    def step(batch: torch.Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(batch).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return _looped(step, workload, x)


def _looped(step: Callable[[torch.Tensor], object], workload: Workload, x: np.ndarray) -> Runner:
    samples = torch.tensor(x)

    def run() -> None:
        for rows in torch.randperm(len(samples)).split(workload.batch_size):
            step(samples[rows])

    return Runner(run, workload.num_steps)


TORCH_LOOP = "PyTorch loop"
ENGINES: dict[str, Contender] = {
    "sae_jax float32": engine("float32"),
    "sae_jax bfloat16": engine("bfloat16"),
} | {
    f"sae_jax {dtype}, {kernel}": engine(dtype, kernel=kernel)
    for kernel in ("dense", "firing_rows", "selected_rows")
    for dtype in ("float32", "bfloat16")
}
LOOPS: dict[str, Contender] = {
    TORCH_LOOP: torch_loop(fused=False),
    "PyTorch loop, fused Adam": torch_loop(fused=True),
}
_LIBRARIES = {
    "SAELens": ("sae_lens", sae_lens()),
    "dictionary_learning": ("dictionary_learning", dictionary_learning),
    "sparsify": ("sparsify", sparsify),
}
LIBRARIES: dict[str, Contender] = {
    name: contender for name, (package, contender) in _LIBRARIES.items() if find_spec(package)
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
