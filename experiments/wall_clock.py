"""How long does one wait for the published grid, from a fresh process to a table of scores?

    python experiments/wall_clock.py --contender="SAELens loop" --activations=x.npy --epochs=3

Trains the 14 published members on the first 80 % of the rows, scores all on the rest, and prints
one line of JSON. `seconds` runs from after the libraries are imported, which is
`import_seconds`, to the table; everything is compiled within it. A contender imports its own
libraries alone, so this module imports no library of arrays but NumPy.
"""

import importlib
import json
import time
from importlib.util import find_spec
from typing import Any

import numpy as np
from absl import app, flags

# Modules that are imported, and the name among the contenders of `torch_contenders`.
_IN_TORCH = {
    "SAELens loop": (["sae_lens"], "SAELens abstopk"),
    "SAELens MultiSAETrainer": (
        ["sae_lens", "sae_lens.training.multi_sae_trainer"],
        "SAELens MultiSAETrainer",
    ),
    "PyTorch loop": (["torch"], "PyTorch loop"),
    "PyTorch loop, fused Adam": (["torch"], "PyTorch loop, fused Adam"),
    "PyTorch loop, bfloat16 autocast": (["torch"], "PyTorch loop, bfloat16 autocast"),
    "dictionary_learning trainSAE": (
        ["dictionary_learning.training", "dictionary_learning.trainers.top_k"],
        "dictionary_learning trainSAE",
    ),
}
_DTYPES = {"sae_jax float32": "float32", "sae_jax bfloat16": "bfloat16"}
CONTENDERS = [*_DTYPES, *_IN_TORCH]

_TRAIN_FRACTION = 0.8


def is_installed(contender: str) -> bool:
    """Whether the library of a contender is there."""
    return contender in _DTYPES or all(
        find_spec(module.split(".")[0]) for module in _IN_TORCH[contender][0]
    )


def row(contender: str, activations: str, epochs: int) -> dict[str, str | int | float]:
    """Imports, trains and scores; see the module."""
    in_jax = contender in _DTYPES
    start = time.perf_counter()
    for module in ["sae_jax"] if in_jax else [*_IN_TORCH[contender][0], "torch_contenders"]:
        importlib.import_module(module)
    imported = time.perf_counter()
    x = np.load(activations, allow_pickle=False).astype(np.float32)
    num_train = int(_TRAIN_FRACTION * len(x))
    train, val = x[:num_train], x[num_train:]
    if in_jax:
        table = _sae_jax_table(train, val, epochs, _DTYPES[contender])
    else:
        table = torch_table(_IN_TORCH[contender][1], train, val, epochs)
    return {
        "contender": contender,
        "epochs": epochs,
        "import_seconds": imported - start,
        "seconds": time.perf_counter() - imported,
        "mean_explained_variance": float(np.mean([line["explained_variance"] for line in table])),
    }


def _sae_jax_table(
    train: np.ndarray, val: np.ndarray, epochs: int, dtype: Any
) -> list[dict[str, Any]]:
    import jax

    import sae_jax
    from sae_jax.report import reference

    jax.config.update("jax_enable_compilation_cache", False)
    config = sae_jax.TrainConfig(epochs=epochs, compute_dtype=dtype)
    members = reference.grid(num_seeds=1)
    return sae_jax.train_sweep(members, train, val, config, progress=False).table()


def torch_table(
    contender: str, train: np.ndarray, val: np.ndarray, epochs: int
) -> list[dict[str, float]]:
    """Trains the published members by a contender of `torch_contenders`; the scores of each."""
    import torch
    import torch_contenders
    import torch_reference
    from workload import PUBLISHED_SIZES, Workload

    num_train, d_in = train.shape
    workload = Workload(PUBLISHED_SIZES, d_in, num_train)
    contenders = torch_contenders.LOOPS | torch_contenders.LIBRARIES
    torch.manual_seed(0)
    runner = contenders[contender](workload, train)
    for _ in range(epochs):
        runner.run()
    samples = torch.tensor(val, device=torch_contenders.DEVICE)
    return [torch_reference.scores(sae.encode, sae.decode, samples) for sae in runner.saes]


def main(argv: list[str]) -> None:
    """Prints the line of JSON."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    print(json.dumps(row(_CONTENDER.value, _ACTIVATIONS.value, _EPOCHS.value)))


if __name__ == "__main__":
    _CONTENDER = flags.DEFINE_enum("contender", None, CONTENDERS, "Who trains.", required=True)
    _ACTIVATIONS = flags.DEFINE_string(
        "activations", None, "A .npy file [n, d_in] of activations.", required=True
    )
    _EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs.")
    app.run(main)
