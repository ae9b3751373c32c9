"""The contenders in PyTorch: lean loops of the published recipe, and the libraries people use.

A loop trains member after member on an epoch of shared batches; of equal members it trains one.
Those that step many SAEs at once train all. A library is imported when its contender is prepared.
"""

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch_reference
from workload import LEARNING_RATE, Contender, LeftOut, Runner, Workload

Step = Callable[[torch.Tensor], object]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where all of them train."""

# More steps than any contender takes, for those whose learning rate depends on how many there are.
_MANY_STEPS = 10**6


def lean_loop(*, fused: bool = True, loss_of: Any = torch_reference.loss_of) -> Contender:
    """A lean PyTorch loop of the published recipe.

    Args:
      fused: whether Adam is PyTorch's faster implementation.
      loss_of: how the loss is computed, as `torch_reference.loss_of`.
    """

    def prepare(workload: Workload, x: np.ndarray) -> Runner:
        saes = [_random_sae(workload, *size) for size in workload.sizes_of_loop]
        steps = [_lean_step(sae, fused=fused, loss_of=loss_of) for sae in saes]
        return _looped(steps, workload, x, saes)

    return prepare


def compiled_loop(workload: Workload, x: np.ndarray) -> Runner:
    """The lean loop with `torch.compile`, for the two batch sizes of an epoch, and fused Adam.

    Raises:
      LeftOut: if it cannot be compiled here.
    """
    saes = [_random_sae(workload, *size) for size in workload.sizes_of_loop]
    batches = torch.tensor(x, device=DEVICE).split(workload.batch_size)
    # Beyond a limit PyTorch would go on uncompiled, with a warning at most.
    torch._dynamo.config.recompile_limit = 2 * len(saes)
    loss_of = torch.compile(torch_reference.loss_of, dynamic=False, fullgraph=True)
    steps = [_lean_step(sae, fused=True, loss_of=loss_of) for sae in saes]
    start = time.perf_counter()
    try:
        for step in steps:
            for batch in (batches[0], batches[-1]):
                step(batch)
    except RuntimeError as error:
        raise LeftOut(f"torch.compile: {str(error).splitlines()[0]}") from error
    compile_seconds = time.perf_counter() - start
    return _looped(steps, workload, x, saes, compile_seconds=compile_seconds)


def ensemble(workload: Workload, x: np.ndarray) -> Runner:
    """All members side by side by `torch.func.vmap`, with fused Adam.

    Raises:
      LeftOut: if members differ in size.
    """
    if len(set(workload.sizes)) > 1:
        raise LeftOut("vmap stacks members of one size, and these differ")
    saes = [_random_sae(workload, *size) for size in workload.sizes]
    stacked, losses_of = torch_reference.ensemble(saes)
    optimizer = torch_reference.adam(stacked.values(), LEARNING_RATE, fused=True)
    step = partial(torch_reference.step, stacked, optimizer, loss_of=losses_of)
    return _looped([step], workload, x, members=len(saes))


def in_tf32(contender: Contender) -> Contender:
    """The contender with products in TF32, on GPUs that have it."""

    def prepare(workload: Workload, x: np.ndarray) -> Runner:
        runner = contender(workload, x)

        def run() -> None:
            torch.set_float32_matmul_precision("high")
            try:
                runner.run()
            finally:
                torch.set_float32_matmul_precision("highest")

        return dataclasses.replace(runner, run=run)

    return prepare


def _random_sae(workload: Workload, d_sae: int, k: int) -> torch_reference.TorchTopKSAE:
    params = torch_reference.random_params(workload.d_in, d_sae)
    return torch_reference.TorchTopKSAE(params, k).to(DEVICE)


def _lean_step(sae: torch.nn.Module, *, fused: bool, loss_of: Any) -> Step:
    optimizer = torch_reference.adam(sae.parameters(), LEARNING_RATE, fused=fused)
    return partial(torch_reference.step, sae, optimizer, loss_of=loss_of)


def sae_lens(architecture: str = "topk", **fields: Any) -> Contender:
    """SAELens' trainer of one of its architectures, with its defaults.

    Args:
      architecture: its name there.
      **fields: of the architecture's config there, if not the workload's k alone.
    """

    def prepare(workload: Workload, x: np.ndarray) -> Runner:
        from sae_lens import SAETrainer

        saes = [
            _sae_lens_sae(architecture, workload.d_in, d_sae, fields or {"k": k})
            for d_sae, k in workload.sizes_of_loop
        ]
        config = _sae_lens_config(workload)
        steps = [SAETrainer(config, sae, iter(())).step for sae in saes]
        return _looped(steps, workload, x, saes)

    return prepare


def multi_sae_trainer(workload: Workload, x: np.ndarray) -> Runner:
    """SAELens' trainer of several SAEs on shared batches, with its defaults and AbsTopK."""
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer

    saes = {
        str(i): _sae_lens_sae("abstopk", workload.d_in, d_sae, {"k": k})
        for i, (d_sae, k) in enumerate(workload.sizes)
    }
    trainer = MultiSAETrainer(
        _sae_lens_config(workload), saes, dict.fromkeys(saes, "samples"), iter(())
    )
    samples = torch.tensor(x, device=DEVICE)

    def run() -> None:
        trainer.data_provider = ({"samples": samples[rows]} for rows in _epoch(workload))
        trainer.cfg.total_training_samples = trainer.n_training_samples + len(samples)
        with _no_progress_bar():
            trainer.fit()
        _finish()

    return Runner(run, len(saes), saes=list(saes.values()))


def _sae_lens_sae(architecture: str, d_in: int, d_sae: int, fields: dict[str, Any]) -> Any:
    from sae_lens.registry import get_sae_training_class

    sae_class, config_class = get_sae_training_class(architecture)
    return sae_class(config_class(d_in=d_in, d_sae=d_sae, device=DEVICE, **fields))


def _sae_lens_config(workload: Workload) -> Any:
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    return SAETrainerConfig(
        total_training_samples=_MANY_STEPS * workload.batch_size,
        train_batch_size_samples=workload.batch_size,
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE,
        device=DEVICE,
        logger=LoggingConfig(log_to_wandb=False),
    )


def dictionary_learning(workload: Workload, x: np.ndarray) -> Runner:
    """dictionary_learning's TopK trainer with its defaults, but no warm-up."""
    trainers = _top_k_trainers(workload, workload.sizes_of_loop)
    # The step's number is the trainer's own.
    steps = [partial(trainer.update, None) for trainer in trainers]
    return _looped(steps, workload, x, [trainer.ae for trainer in trainers])


def train_sae(workload: Workload, x: np.ndarray) -> Runner:
    """dictionary_learning's `trainSAE`, which steps several trainers on shared batches."""
    from dictionary_learning.training import trainSAE

    trainers = _top_k_trainers(workload, workload.sizes)
    samples = torch.tensor(x, device=DEVICE)

    def run() -> None:
        batches = (samples[rows] for rows in _epoch(workload))
        # What is called to make a trainer gives one that has been made.
        configs = [{"trainer": partial(_same, trainer)} for trainer in trainers]
        with _no_progress_bar():
            trainSAE(batches, configs, steps=workload.num_steps, device=DEVICE)
        _finish()

    return Runner(run, len(trainers), saes=[trainer.ae for trainer in trainers])


def _top_k_trainers(workload: Workload, sizes: Sequence[tuple[int, int]]) -> list[Any]:
    from dictionary_learning.trainers.top_k import TopKTrainer

    class Continued(TopKTrainer):
        """Goes on where the epoch before ended, whatever number its step is given."""

        num_done = 0

        def update(self, step: int | None, x: torch.Tensor) -> object:
            self.num_done += 1
            return super().update(self.num_done - 1, x)

    return [
        Continued(
            steps=_MANY_STEPS,
            activation_dim=workload.d_in,
            dict_size=d_sae,
            k=k,
            layer=0,
            lm_name="none",
            lr=LEARNING_RATE,
            warmup_steps=0,
            device=DEVICE,
        )
        for d_sae, k in sizes
    ]


def _same(thing: Any) -> Any:
    return thing


def sparsify(workload: Workload, x: np.ndarray) -> Runner:
    """sparsify's SparseCoder with Adam, stepped as its trainer does.

    That trainer itself, which takes several seeds, trains inside a transformer that it runs.
    """
    from sparsify import SparseCoder, SparseCoderConfig

    def step_of(coder: Any) -> Step:
        optimizer = torch.optim.Adam(coder.parameters(), lr=LEARNING_RATE)

        def step(batch: torch.Tensor) -> None:
            coder.set_decoder_norm_to_unit_norm()
            coder(batch).fvu.backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            optimizer.step()
            optimizer.zero_grad()

        return step

    coders = [
        SparseCoder(workload.d_in, SparseCoderConfig(num_latents=d_sae, k=k), device=DEVICE)
        for d_sae, k in workload.sizes_of_loop
    ]
    return _looped([step_of(coder) for coder in coders], workload, x)


def _looped(
    steps: Sequence[Step],
    workload: Workload,
    x: np.ndarray,
    saes: Sequence[Any] = (),
    *,
    members: int | None = None,
    compile_seconds: float = 0.0,
) -> Runner:
    samples = torch.tensor(x, device=DEVICE)

    def run() -> None:
        batches = _epoch(workload)
        for step in steps:
            for rows in batches:
                step(samples[rows])
        _finish()

    return Runner(run, members or len(steps), compile_seconds, saes)


def _epoch(workload: Workload) -> tuple[torch.Tensor, ...]:
    """The rows of each batch of an epoch, in random order."""
    return torch.randperm(workload.num_samples, device=DEVICE).split(workload.batch_size)


def _finish() -> None:
    """Waits for what a GPU has been told to do."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _no_progress_bar() -> contextlib.AbstractContextManager:
    return contextlib.redirect_stderr(io.StringIO())


TORCH_LOOP = "PyTorch loop"
LOOPS: dict[str, Contender] = {
    TORCH_LOOP: lean_loop(fused=False),
    "PyTorch loop, fused Adam": lean_loop(),
    "PyTorch loop, bfloat16 autocast": lean_loop(loss_of=torch_reference.autocast_loss_of),
    "PyTorch loop, torch.compile": compiled_loop,
    "PyTorch vmap ensemble": ensemble,
}
if DEVICE == "cuda":
    LOOPS |= {
        "PyTorch loop, fused Adam, TF32": in_tf32(lean_loop()),
        "PyTorch vmap ensemble, TF32": in_tf32(ensemble),
    }
_LIBRARIES: dict[str, tuple[str, Contender]] = {
    "SAELens": ("sae_lens", sae_lens()),
    "SAELens abstopk": ("sae_lens", sae_lens("abstopk")),
    "SAELens MultiSAETrainer": ("sae_lens", multi_sae_trainer),
    "dictionary_learning": ("dictionary_learning", dictionary_learning),
    "dictionary_learning trainSAE": ("dictionary_learning", train_sae),
    "sparsify": ("sparsify", sparsify),
}
LIBRARIES = {
    name: contender for name, (package, contender) in _LIBRARIES.items() if find_spec(package)
}
