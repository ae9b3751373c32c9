"""What several tests need."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from sae_jax.ops import native

# A forgotten axis and a promotion of dtypes that nobody wrote down are errors.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Else their number would depend on which test comes first, and on the machine.
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_numpy_dtype_promotion", "strict")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _programs_are_traced_again():
    """`make mutants` asks which functions a test runs: a cached program would run none."""
    if os.environ.get("MUTANT_UNDER_TEST") == "stats":
        jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_dropped():
    """Each takes memory maps, of which a process that ran all tests would have too many."""
    yield
    jax.clear_caches()


@pytest.fixture
def without_loops(monkeypatch):
    """As where the loops in C++ are not built."""
    monkeypatch.setattr(native, "is_built", lambda: False)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def smollm2_split() -> tuple[np.ndarray, np.ndarray]:
    """Real activations `[5978, 576]` and `[1495, 576]`, split by problem as published."""
    path = SHARED / "data" / "smollm2_gsm8k" / "layer25_position3.npy"
    if not path.exists():
        pytest.skip(f"real activations are not there: {path}")
    x = np.load(path, allow_pickle=False).astype(np.float32)
    order = np.random.RandomState(42).permutation(len(x))
    return x[order[1495:]], x[order[:1495]]


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random LLaMA as transformers saves it."""
    from tiny_llama import save_tiny_llama  # Imports PyTorch, which most tests do without.

    return save_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))
