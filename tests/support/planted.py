"""A sweep whose every latent is known: each reads one dimension of the samples."""

import dataclasses

import numpy as np

from sae_jax import SAEConfig, SweepResult, TrainConfig
from sae_jax.activations.writer import StorePlan, StoreWriter, write_store
from sae_jax.problems import Problem
from sae_jax.sweep.result import Member

D_IN, NUM_PROBLEMS = 8, 60
DIVISION, ADDITION = 0, 1
STRONGEST = 58
HOSTILE = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


def problems():
    """Every second problem divides; the others add. The strongest asks for a script."""
    return [
        Problem(
            f"p-{i}",
            HOSTILE
            if i == STRONGEST
            else f"Question number {i} about {'apples' if i % 4 else 'bakeries'}?",
            answer=str(i),
            steps=("6/2=3",) if i % 2 == 0 else ("1+2=3",),
        )
        for i in range(NUM_PROBLEMS)
    ]


def activations():
    """`[60, 8]`: dimension 0 is large where a problem divides, 1 where it adds."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.01, 0.5, size=(NUM_PROBLEMS, D_IN))
    even = np.arange(NUM_PROBLEMS) % 2 == 0
    x[even, DIVISION] = 5 + np.arange(NUM_PROBLEMS)[even] / 10
    x[~even, DIVISION] = 0
    x[~even, ADDITION] = 4
    x[even, ADDITION] = 0
    return x.astype(np.float32)


def order_of(seed, d_sae=D_IN):
    """Dimension that each latent reads."""
    return np.random.default_rng(seed).permutation(D_IN)[:d_sae]


def member(config, x, order):
    """A top-2 SAE whose latent f reads and writes dimension `order[f]`."""
    w_dec = np.eye(D_IN, dtype=np.float32)[order]
    params = {
        "w_enc": w_dec.T.copy(),
        "b_enc": np.zeros(len(order), np.float32),
        "w_dec": w_dec,
        "b_dec": np.zeros(D_IN, np.float32),
    }
    pre = x @ w_dec.T
    z = np.where(pre >= np.sort(pre, axis=1)[:, -2:-1], pre, 0)
    error = ((x - z @ w_dec) ** 2).sum()
    fvu = error / ((x - x.mean(axis=0)) ** 2).sum()
    rate = (z != 0).mean(axis=0)
    metrics = {
        "mse": float(error / x.size),
        "fvu": float(fvu),
        "explained_variance": float(1 - fvu),
        "l0": float((z != 0).sum(axis=1).mean()),
        "dead_fraction": float((rate == 0).mean()),
    }
    losses = np.geomspace(10, 0.1, 200).astype(np.float32)
    return Member(config, params, metrics, rate.astype(np.float32), losses), z


def planted(folder):
    """A store, a sweep of 2 sizes x 3 seeds on it, and the latents of each member."""
    x = activations()
    store = write_store(folder, {(3, 1): x}, problems())
    members, latents = [], []
    for d_sae in (D_IN, D_IN - 2):
        for seed in range(3):
            config = SAEConfig(
                d_sae=d_sae, k=2, seed=seed, layer=3, position=1, architecture="topk"
            )
            made, z = member(config, x, order_of(seed, d_sae))
            members.append(made)
            latents.append(z)
    return store, SweepResult(members, TrainConfig()), latents


def token_store(folder):
    """A store of two tokens a problem, half of its activation and all of it; and its samples."""
    samples = np.stack([activations() / 2, activations()], axis=1).reshape(-1, D_IN)
    counts = [2] * NUM_PROBLEMS
    plan = StorePlan(
        "tiny", [3], ["all"], D_IN, problems(), dtype="float32", rows_per_problem=counts
    )
    folder.mkdir()
    writer = StoreWriter(folder, plan)
    writer.prepare()
    writer.write_shard(0, samples[None, None])
    return writer.finish(), samples


def repeated(result, count):
    """A sweep of `count` members like those of `result`, of seeds 0, 1 and so on."""
    rng = np.random.default_rng(1)
    members = []
    for i in range(count):
        of = result.members[i % len(result)]
        config = dataclasses.replace(
            of.config, seed=i % 18, k=2 + i // 18 % 4, learning_rate=1e-3 * (1 + i // 72)
        )
        metrics = {name: value * rng.uniform(0.9, 1.1) for name, value in of.metrics.items()}
        members.append(
            dataclasses.replace(of, config=config, metrics=metrics | {"l0": float(config.k)})
        )
    return SweepResult(members, result.train_config)
