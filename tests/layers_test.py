"""Imports only go down, PyTorch stays on its island, and importing the package is light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sae_jax

ROOT = Path(sae_jax.__file__).parent

# From the ground up. A module imports from lower layers and from its own folder.
LAYERS = (
    ("configs", "markdown", "problems"),
    ("activations",),
    ("ops",),
    ("architectures",),
    ("metrics",),
    ("formats",),
    ("sweep",),
    ("features",),
    ("report",),
    ("__main__",),
)
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
# PyTorch's island: it meets the rest in what is on disk alone.
ISLAND, BRIDGE = "extraction", {"problems", "activations"}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
}


def folder_of(module):
    return module.partition(".")[0]


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


def test_every_module_is_in_a_layer():
    assert {folder_of(module) for module in MODULES} == {*LAYER_OF, ISLAND}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    folder = folder_of(module)
    for other in map(folder_of, own_imports(module)):
        if other == folder:
            continue
        if folder == ISLAND:
            assert other in BRIDGE, f"{module} imports {other}"
        else:
            assert LAYER_OF[other] < LAYER_OF[folder], f"{module} imports {other}"


def test_imports_go_down_inside_folders_too():
    graph = {module: set(own_imports(module)) - {module} for module in MODULES}
    assert set(TopologicalSorter(graph).static_order()) >= set(MODULES)


def test_the_island_knows_no_jax_and_nobody_knows_the_island():
    for module in MODULES:
        if folder_of(module) == ISLAND:
            assert not libraries(module, top_level=False) & {"jax", "flax", "optax"}, module
        else:
            assert ISLAND not in map(folder_of, own_imports(module)), module


@pytest.mark.parametrize(
    ("library", "folders"),
    [
        ("torch", {"extraction"}),
        ("transformers", {"extraction"}),
        ("peft", {"extraction"}),
        ("matplotlib", {"report"}),
        ("jinja2", {"report"}),
        ("pyarrow", {"report"}),
        ("tensorboardX", {"sweep"}),
        ("orbax", {"sweep"}),
    ],
)
def test_a_library_is_imported_in_its_place_only(library, folders):
    found = {m.partition(".")[0] for m in MODULES if library in libraries(m, top_level=True)}
    assert found <= folders
    anywhere = {m.partition(".")[0] for m in MODULES if library in libraries(m, top_level=False)}
    assert anywhere <= folders | ({"formats"} if library == "torch" else set())


@pytest.mark.parametrize("module", sorted(m for m in MODULES if LAYER_OF.get(folder_of(m), 9) < 2))
def test_the_ground_layers_are_numpy_alone(module):
    assert not libraries(module, top_level=False) & {"jax", "flax", "torch"}, module


@pytest.mark.parametrize(
    ("library", "only"), [("orbax", "sweep.checkpoints"), ("grain", "sweep.streamed")]
)
def test_one_file_knows_a_library(library, only):
    found = {module for module in MODULES if library in libraries(module, top_level=False)}
    assert found == {only}


def test_importing_the_package_loads_no_heavy_library():
    heavy = ("torch", "transformers", "matplotlib", "pandas", "peft", "jinja2", "pyarrow")
    code = f"import sys, sae_jax; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []
