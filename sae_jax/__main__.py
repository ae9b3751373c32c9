"""The command line: lists the scripts, and runs one.

    sae-jax                     lists them
    sae-jax train --help        its flags
    python -m sae_jax train ...

The scripts are files, those of `experiments/` in a checkout and of `sae_jax/scripts/` in an
installed wheel, and do the same when they are run as files.
"""

import ast
import runpy
import sys
from pathlib import Path

COMMANDS = {
    "extract": "extract_activations",
    "train": "train_sweep",
    "report": "report",
    "analyze": "analyze_features",
    "convert": "convert",
    "export": "export",
    "dictionary-scaling": "dictionary_scaling",
    "architectures": "architectures",
    "study": "study",
}
"""The script that each command runs."""


def main() -> None:
    """Runs the script that the first argument names; lists them if there is none.

    The exit status is 2 if the argument names none, else that of the script.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(listing())
    elif name not in COMMANDS:
        print(f"there is no command {name!r}\n\n{listing()}", file=sys.stderr)
        sys.exit(2)
    else:
        script = scripts_folder() / f"{COMMANDS[name]}.py"
        # As if the script had been started: it names itself so, and imports from its folder.
        sys.argv = [f"sae-jax {name}", *sys.argv[2:]]
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")


def listing() -> str:
    """One line for each command: what its script answers."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {_question(script)}" for name, script in COMMANDS.items()]
    return "\n".join(
        ["usage: sae-jax COMMAND [flags]; flags of one: sae-jax COMMAND --help", *lines]
    )


def scripts_folder() -> Path:
    """The folder of the scripts: in the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    packaged = package / "scripts"
    return packaged if packaged.is_dir() else package.parent / "experiments"


def _question(script: str) -> str:
    source = (scripts_folder() / f"{script}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
