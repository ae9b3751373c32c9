"""XLA's compilation cache on disk, with which a second run of a script starts at once."""

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, for the whole process: scripts call it, libraries do not.

    The folder is `JAX_COMPILATION_CACHE_DIR`, or `~/.cache/sae_jax/xla`.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", Path.home() / ".cache/sae_jax/xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default programs that compile fast are not kept; a sweep runs dozens of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
