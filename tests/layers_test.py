"""Imports only go down, PyTorch stays on its island, and importing the package is light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sae_jax

ROOT = Path(sae_jax.__file__).parent

# From the ground up, by the longest prefix that fits. A module imports from lower layers
# and from its own folder.
LAYERS = (
    ("arrays", "locks", "manifest", "memory"),
    ("configs", "store", "products"),
    ("statistics", "store_writer", "topk", "data"),
    ("sae", "dense", "compact", "sparse"),
    ("losses", "metrics", "formats", "features"),
    ("sweep", "hub"),
    ("checkpoints", "evaluate", "features.scoring"),
    ("sweep.train",),
    ("extraction", "report"),
)
LAYER_OF = {prefix: layer for layer, prefixes in enumerate(LAYERS) for prefix in prefixes}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
}


def layer_of(module):
    parts = module.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    found = [LAYER_OF[prefix] for prefix in prefixes if prefix in LAYER_OF]
    assert found, f"sae_jax/{module} has no layer; place it in LAYERS"
    return found[0]


def imported(nodes):
    """Dotted names of what the import statements among `nodes` import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module):
    """The project's modules that a module imports, at its top or anywhere else."""
    for name in imported(ast.walk(ast.parse(MODULES[module].read_text("utf-8")))):
        if name.startswith("sae_jax."):
            inside = name.removeprefix("sae_jax.")
            yield inside if inside in MODULES else inside.rpartition(".")[0]


def libraries(module, *, top_level):
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    nodes = tree.body if top_level else ast.walk(tree)
    return {name.partition(".")[0] for name in imported(nodes)}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    folder = module.partition(".")[0]
    for other in own_imports(module):
        same_folder = other.partition(".")[0] == folder
        assert layer_of(other) < layer_of(module) or same_folder, f"{module} imports {other}"


def test_no_import_cycles():
    graph = {module: set(own_imports(module)) - {module} for module in MODULES}
    assert set(TopologicalSorter(graph).static_order()) >= set(MODULES)


def test_extraction_meets_the_rest_only_in_the_store():
    bridge = {"arrays", "store", "store_writer"}
    for module in MODULES:
        others = set(own_imports(module))
        if module.startswith("extraction"):
            assert all(other in bridge or other.startswith("extraction") for other in others)
            assert not libraries(module, top_level=False) & {"jax", "flax", "optax"}, module
        else:
            assert not any(other.startswith("extraction") for other in others), module


@pytest.mark.parametrize(
    ("library", "folders"),
    [
        ("torch", {"extraction"}),
        ("transformers", {"extraction"}),
        ("peft", {"extraction"}),
        ("matplotlib", {"report"}),
        ("jinja2", {"report"}),
        ("orbax", {"checkpoints"}),
    ],
)
def test_a_library_is_imported_in_its_place_only(library, folders):
    found = {m.partition(".")[0] for m in MODULES if library in libraries(m, top_level=True)}
    assert found <= folders
    anywhere = {m.partition(".")[0] for m in MODULES if library in libraries(m, top_level=False)}
    assert anywhere <= folders | ({"formats"} if library == "torch" else set())


def test_the_ground_layer_does_without_jax_where_it_holds_no_mathematics():
    for module in ("arrays", "configs", "locks", "manifest", "memory", "store", "store_writer"):
        assert not libraries(module, top_level=False) & {"jax", "flax", "torch"}, module


def test_importing_the_package_loads_no_heavy_library():
    heavy = ("torch", "transformers", "matplotlib", "pandas", "peft", "jinja2")
    code = f"import sys, sae_jax; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []
