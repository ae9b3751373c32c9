"""Every lower bound in setup.py admits the version that the tests ran with."""

import re
import runpy
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]

# Below these the code loads files that run code, or does not work at all.
NEEDED = {
    "torch": "2.6",
    "transformers": "5.0",
    "peft": "0.18",
    "jax": "0.8.1",
    "flax": "0.12.1",
    "ml-dtypes": "0.5",
    "huggingface-hub": "1.0",
}


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def requirements():
    with pytest.MonkeyPatch.context() as patch:
        arguments = {}
        patch.setattr(setuptools, "setup", lambda **kwargs: arguments.update(kwargs))
        runpy.run_path(str(ROOT / "setup.py"))
    lists = [arguments["install_requires"], *arguments["extras_require"].values()]
    return [Requirement(text) for requirements in lists for text in requirements]


@pytest.fixture(scope="module")
def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if "==" in line]
    return {normalized(name): Version(version) for name, version in pins}


def test_every_bound_admits_the_tested_version(requirements, constraints):
    bounded = [r for r in requirements if r.specifier and normalized(r.name) in constraints]
    assert len(bounded) >= len(NEEDED)
    for requirement in bounded:
        tested = constraints[normalized(requirement.name)]
        assert requirement.specifier.contains(tested), f"{requirement} refuses {tested}"


@pytest.mark.parametrize("name", NEEDED)
def test_what_the_code_cannot_do_without_is_asked_for(requirements, name):
    # jax[cuda13] only adds to the jax that is asked for besides.
    found = [r for r in requirements if normalized(r.name) == name and not r.extras]
    assert found
    for requirement in found:
        (bound,) = [s for s in requirement.specifier if s.operator == ">="]
        assert Version(bound.version) >= Version(NEEDED[name]), requirement
