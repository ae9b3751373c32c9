"""XLA's compilation cache on disk, so that a second run of a script starts at once."""

import os
from pathlib import Path

import jax


def use_compilation_cache(folder: str | Path | None = None) -> None:
    """Keeps compiled programs in a folder; for scripts, since the setting is process-wide.

    Args:
      folder: where to; `JAX_COMPILATION_CACHE_DIR` or `~/.cache/sae_jax/xla` if `None`.
    """
    default = os.environ.get("JAX_COMPILATION_CACHE_DIR", Path.home() / ".cache/sae_jax/xla")
    jax.config.update("jax_compilation_cache_dir", str(folder or default))
    # By default programs that compile fast are not kept; a sweep runs dozens of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
