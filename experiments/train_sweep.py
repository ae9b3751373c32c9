"""How do explained variance, death and specialization move with d_sae and k?

Trains one SAE for each combination of the flags on slices of a store, and scores them:

    python experiments/train_sweep.py --activations=runs/gsm8k/activations \
        --layer=25 --position=3 --d_sae=250,512 --k=50,100 --seeds=5 --output=runs/sweep

Every field of `SAEConfig` is a flag, such as --architecture, --normalize and --target_l0, and
takes several values. Writes the sweep, which `sae_jax.SweepResult.load` reads, and
`results.csv`, one row a member; with --report also `page.html`, the sweep and its latents to
look at. Cost: about 5 s a member at d_sae near 600 for 6,000 samples
of width 576 on 2 CPU cores. Expected on SmolLM2-135M, layer 25, position 3 of GSM8K: 95.7 %
explained variance at d_sae = 512, k = 50. A run that was stopped continues with --resume.

With --live and --epochs=1 it trains on what `extract_activations.py --window` extracts meanwhile,
and validates on the validation samples of --activations, a store of other problems.

Several processes, on one host or many, train one sweep with --distributed or --coordinator: see
docs/scale.md.
"""

import dataclasses
import shutil
from contextlib import ExitStack, nullcontext
from pathlib import Path

import command
import hosts
import member_flags
from absl import flags, logging

import sae_jax
from sae_jax.activations.locks import lock, lock_beside
from sae_jax.configs import CHOICES
from sae_jax.features.scoring import score_features
from sae_jax.ops.matmul import COMPUTE_DTYPES
from sae_jax.report import page
from sae_jax.report.tables import write_csv
from sae_jax.sweep.cache import use_compilation_cache
from sae_jax.sweep.loop import plan_for
from sae_jax.sweep.processes import enter, is_main, of_main
from sae_jax.sweep.result import check_free
from sae_jax.sweep.tensorboard import log_to

_ACTIVATIONS = flags.DEFINE_string("activations", None, "Folder of the store.", required=True)
_LIVE = flags.DEFINE_string(
    "live",
    None,
    "Folder of a live store to train on, with --epochs=1; --activations then validates.",
)
_LAYER = flags.DEFINE_list("layer", None, "Layers, comma-separated.", required=True)
_POSITION = flags.DEFINE_list(
    "position",
    None,
    "Positions as the store has them, comma-separated: 3, last, all.",
    required=True,
)
member_flags.define()
flags.adopt_module_key_flags(member_flags)
flags.adopt_module_key_flags(hosts)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Number of seeds, from 0.", lower_bound=1)
_VARY_ORDER = flags.DEFINE_bool(
    "vary_order", False, "Give each seed its own order of the data too."
)
_EPOCHS = flags.DEFINE_integer("epochs", 25, "Passes over the training samples.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Samples a step.")
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype", "float32", COMPUTE_DTYPES, "Of the matrix products."
)
_KERNEL = flags.DEFINE_enum(
    "kernel", "auto", CHOICES["kernel"], "Forces how decoding and gradients are computed."
)
_MESH = flags.DEFINE_string(
    "mesh", None, "Devices along each axis, as members:4,data:2; all of them by default."
)
_MEMORY_BUDGET = flags.DEFINE_string(
    "memory_budget",
    None,
    "Bytes of each device that training or scoring a group may take, such as 6GiB; by default"
    " half of the memory, and most of an accelerator's.",
)
_STREAM = flags.DEFINE_bool(
    "stream",
    None,
    "Read samples while training; by default where they would take over half the memory.",
)
_TRAIN_FRACTION = flags.DEFINE_float("train_fraction", 0.8, "Share of the problems to train on.")
_SPLIT_SEED = flags.DEFINE_integer("split_seed", 42, "Seed of the split.")
_MAX_NORM_RATIO = flags.DEFINE_float(
    "max_norm_ratio", None, "Leave out rows whose norm is more than so many times the median."
)
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every",
    None,
    "Epochs between checkpoints; by default as few as keep them below 5 % of the time.",
    lower_bound=1,
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the sweep.", required=True)
_LOG_DIR = flags.DEFINE_string(
    "log_dir",
    None,
    "Also keep losses and scores there, for `tensorboard --logdir`.",
    allow_override=True,  # absl's own, for files that nothing here writes.
)
_REPORT = flags.DEFINE_bool("report", False, "Also write page.html, to open in a browser.")
_RESUME = flags.DEFINE_bool("resume", False, "Continue a run that was stopped.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a sweep that is there.")


def work() -> None:
    """Trains, saves and scores the sweep; no other run may have the same output meanwhile."""
    logging.set_verbosity(logging.WARNING)  # Orbax reports each checkpoint
    use_compilation_cache()
    output = Path(_OUTPUT.value)
    with ExitStack() as stack:
        enter(stack, lock_beside(output))
        run(output, output.with_name(f"{output.name}.checkpoints"))


def run(output: Path, checkpoints: Path) -> None:
    """`work`, with the folders that it writes to."""
    overwrite = of_main(lambda: may_overwrite(output, checkpoints))
    splits = data_splits()
    train, val = [split.train for split in splits], [split.val for split in splits]
    if _LIVE.value is not None:
        if _MAX_NORM_RATIO.value is not None:
            raise ValueError("--max_norm_ratio leaves out rows, and --live trains on all of them")
        live = sae_jax.LiveStore.open(_LIVE.value)
        train = [live.select(part.layer, part.position) for part in train]
    configs = members(train)
    train_config = sae_jax.TrainConfig(
        epochs=_EPOCHS.value,
        batch_size=_BATCH_SIZE.value,
        compute_dtype=_COMPUTE_DTYPE.value,
        kernel=_KERNEL.value,
        memory_budget=command.num_bytes(_MEMORY_BUDGET),
        mesh=_MESH.value,
        stream=_STREAM.value,
    )
    print(plan_for(configs, train, train_config))
    if not _RESUME.value:
        of_main(lambda: remove(checkpoints))
    with log_to(_LOG_DIR.value) if _LOG_DIR.value else nullcontext() as log:
        result = sae_jax.train_sweep(
            configs,
            train,
            val,
            train_config,
            checkpoint_dir=checkpoints,
            output=output,
            overwrite=overwrite,
            checkpoint_every=_CHECKPOINT_EVERY.value,
            callbacks=[log] if log else (),
        )
    if is_main():
        report(result, val, output)
        shutil.rmtree(checkpoints)


def may_overwrite(output: Path, checkpoints: Path) -> bool:
    """Whether to replace a sweep that is there; refuses folders that are not to be written to."""
    # What a run saved before it was stopped is its own to write again.
    overwrite = _OVERWRITE.value or (_RESUME.value and checkpoints.exists())
    check_free(output, overwrite)
    if not _RESUME.value:
        check_free(checkpoints, _OVERWRITE.value)
    return overwrite


def remove(checkpoints: Path) -> None:
    """Removes the checkpoints of an earlier run, if there are any."""
    if checkpoints.exists():
        with lock(checkpoints):  # Another program may be training there.
            shutil.rmtree(checkpoints)


def report(result: sae_jax.SweepResult, val: list[sae_jax.Selection], output: Path) -> None:
    """Scores the members' latents, writes the table, and the page if it is asked for."""
    rows = score_features(result, val)
    write_csv(rows, output / "results.csv")
    for row in rows:
        print(line(row))
    print(output / "results.csv")
    if _REPORT.value:
        print(page(result, output / "page.html", val=val, rows=rows, title=output.name))


def data_splits() -> list[sae_jax.Split]:
    """The training and validation samples of every data slice."""
    store = sae_jax.ActivationStore.open(_ACTIVATIONS.value)
    splits = [
        store.select(layer=layer, position=store.parse_position(word)).split(
            train_fraction=_TRAIN_FRACTION.value, seed=_SPLIT_SEED.value
        )
        for layer in command.numbers(_LAYER)
        for word in _POSITION.value
    ]
    if _MAX_NORM_RATIO.value is not None:
        splits = [split.within_norm(_MAX_NORM_RATIO.value) for split in splits]
    return splits


def members(
    train: list[sae_jax.Selection] | list[sae_jax.LiveSelection],
) -> list[sae_jax.SAEConfig]:
    """Every combination of the flags, on every data slice."""
    configs = [
        config
        for part in train
        for config in member_flags.grid(
            layer=part.layer, position=part.position, seed=range(_SEEDS.value)
        )
    ]
    if _VARY_ORDER.value:
        configs = [dataclasses.replace(config, data_seed=config.seed) for config in configs]
    return configs


def line(row: dict) -> str:
    """A member and its main scores; `results.csv` has every field and score."""
    name = (
        f"{row['architecture']} layer {row['layer']} position {row['position']}"
        f" d_sae {row['d_sae']:5d} k {row['k']} learning rate {row['learning_rate']:g}"
        f" seed {row['seed']}"
    )
    if row["diverged_at"] is not None:
        return f"{name}: diverged at step {row['diverged_at']}"
    return (
        f"{name}: EV {row['explained_variance']:.2%}, fvu {row['fvu']:.2%},"
        f" dead {row['dead_fraction']:.1%}, specialized {row['published_rate']:.1%} (published"
        f" rule, {row['num_singletons']} latents fire once),"
        f" {row['calibrated_rate_supported']:.1%} (calibrated)"
    )


if __name__ == "__main__":
    command.start(work, hosts.joined)
