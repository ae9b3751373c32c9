"""What `train_sweep` promises: of members, against PyTorch, of its data and refusals."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from metric_oracle import oracle
from random_saes import forward
from sweeps import batches, quietly, samples, top_k
from torch_reference import train as train_in_torch

from sae_jax import SAEConfig, TrainConfig, grid, train_sweep
from sae_jax.activations.writer import write_store
from sae_jax.architectures.initialization import init_params
from sae_jax.problems import Problem


@pytest.fixture(scope="module")
def split():
    x = samples(400, d_in=24)
    return x[:320], x[320:]


@pytest.fixture(scope="module")
def mixed(split):
    """Members of several sizes, k, seeds and learning rates, in one group but the last."""
    configs = [
        SAEConfig(40, 8, seed=0),
        SAEConfig(33, 4, seed=1),
        SAEConfig(40, 40, seed=2, learning_rate=3e-3),
        SAEConfig(33, 1, seed=0),
        SAEConfig(10, 3, seed=4),
    ]
    return quietly(configs, *split, epochs=8, batch_size=60, max_padding=0.2)


def test_members_come_in_the_order_of_their_configs(mixed):
    assert [(c.d_sae, c.k, c.seed) for c in mixed.configs] == [
        (40, 8, 0),
        (33, 4, 1),
        (40, 40, 2),
        (33, 1, 0),
        (10, 3, 4),
    ]
    for i, member in enumerate(mixed.members):
        assert mixed.sae(i).d_sae == member.config.d_sae
        assert mixed.sae(i).k == member.config.k
        assert member.losses.shape == (8 * 6,)
        assert member.losses[-6:].mean() < member.losses[:6].mean()


@pytest.mark.parametrize("i", range(5))
def test_a_member_equals_its_solo_run(mixed, split, i):
    solo = quietly([mixed.configs[i]], *split, epochs=8, batch_size=60).members[0]
    np.testing.assert_allclose(mixed.members[i].losses[:20], solo.losses[:20], rtol=1e-5)
    difference = mixed.members[i].metrics["explained_variance"] - solo.metrics["explained_variance"]
    assert abs(difference) < 5e-4


@pytest.mark.parametrize("i", range(5))
def test_a_row_equals_float64_numpy(mixed, split, i):
    member, (_, val) = mixed.members[i], split
    z, x_hat = forward(member.params, val, top_k(member.config.k))
    largest = np.zeros(len(val), bool)
    largest[np.argmax(np.linalg.norm(val, axis=1))] = True  # 1 % of 80 rows, at least one.
    want = oracle(val, z, x_hat, largest)
    row = mixed.table()[i]
    np.testing.assert_allclose(member.firing_rate, want.pop("firing_rate"), rtol=1e-6)
    del want["mean_magnitude"]
    for name, value in want.items():
        np.testing.assert_allclose(row[name], value, rtol=5e-5, atol=1e-6, err_msg=name)
    directions = member.params["w_dec"][member.firing_rate > 0].astype(np.float64)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    cosine = np.abs(directions @ directions.T)[~np.eye(len(directions), dtype=bool)]
    np.testing.assert_allclose(row["decoder_coherence_max"], cosine.max(), rtol=1e-5)
    np.testing.assert_allclose(row["decoder_coherence_mean"], cosine.mean(), rtol=1e-5)
    assert row["diverged_at"] is None


@pytest.mark.parametrize("k", [1, 8, 40])
def test_training_equals_pytorch_to_the_metrics(split, k):
    train, val = split
    result = quietly([SAEConfig(40, k, seed=7)], train, val, epochs=10, batch_size=60)
    start = jax.device_get(init_params(jax.random.key(7), 24, 40, 40))
    losses, params = train_in_torch(start, train, batches(320, 60, epochs=10), k=k)
    assert len(losses) == 60
    np.testing.assert_allclose(result.members[0].losses, losses, rtol=1e-4)
    z, x_hat = forward(params, val, top_k(k))
    largest = np.zeros(len(val), bool)
    largest[np.argmax(np.linalg.norm(val, axis=1))] = True  # 1 % of 80 rows, at least one.
    want = oracle(val, z, x_hat, largest)
    row = result.table()[0]
    for name in ("mse", "explained_variance", "fvu", "cosine_similarity", "mean_activation"):
        np.testing.assert_allclose(row[name], want[name], rtol=1e-3, err_msg=name)
    assert row["num_alive"] == want["num_alive"]


def test_epochs_continue_the_same_run(split):
    config = [SAEConfig(40, 8)]
    short = quietly(config, *split, epochs=2, batch_size=60).members[0]
    long = quietly(config, *split, epochs=3, batch_size=60).members[0]
    np.testing.assert_array_equal(long.losses[:12], short.losses)


def test_the_same_call_gives_the_same_bits(split):
    configs = grid(d_sae=40, k=(4, 8, 9))
    first, second = (quietly(configs, *split, epochs=2, batch_size=60) for _ in range(2))
    for a, b in zip(first.members, second.members, strict=True):
        np.testing.assert_array_equal(a.losses, b.losses)
        for name in a.params:
            np.testing.assert_array_equal(a.params[name], b.params[name])


def test_a_diverging_member_is_marked_with_its_step_and_disturbs_no_other(split):
    calm = grid(d_sae=40, k=8, seed=range(2))
    wild = SAEConfig(40, 8, seed=5, learning_rate=1e30)
    alone = quietly([*calm, SAEConfig(40, 8, seed=5)], *split, epochs=2, batch_size=60)
    result = quietly([*calm, wild], *split, epochs=2, batch_size=60)
    rows = result.table()
    assert [row["diverged_at"] for row in rows] == [None, None, 1]
    assert np.isfinite(result.members[2].losses[0])
    assert not np.isfinite(result.members[2].metrics["mse"])
    assert rows[2]["mse"] is None
    for i in range(2):
        np.testing.assert_array_equal(result.members[i].losses, alone.members[i].losses)
        assert rows[i] == alone.table()[i]


ONE_SAMPLE = pytest.mark.filterwarnings("ignore:all rows of val are equal")


@ONE_SAMPLE
def test_divergence_in_the_last_step_is_marked(split):
    train, val = split
    wild = SAEConfig(40, 8, learning_rate=1e30)
    result = quietly([wild], train[:10], val[:1], epochs=1, batch_size=60)
    assert np.isfinite(result.members[0].losses).all()
    assert result.table()[0]["diverged_at"] == 1


def test_a_diverged_member_is_saved_and_read(split, tmp_path):
    result = quietly([SAEConfig(40, 8, learning_rate=1e30)], *split, epochs=1, batch_size=60)
    result.save(tmp_path / "sweep")
    read = type(result).load(tmp_path / "sweep")
    assert read.table()[0]["diverged_at"] == 1
    np.testing.assert_array_equal(read.members[0].losses, result.members[0].losses)


def test_several_slices_in_one_call(split):
    train, val = split
    data = {(14, 3): train, (15, 3): train[::-1] * 2}
    val_data = {(14, 3): val, (15, 3): val * 2}
    configs = grid(d_sae=40, k=8, layer=(15, 14), position=3)
    result = quietly(configs, data, val_data, epochs=2, batch_size=60)
    assert [row["layer"] for row in result.table()] == [15, 14]
    for member in result.members:
        key = member.config.data_slice
        plain = dataclasses.replace(member.config, layer=None, position=None)
        solo = quietly([plain], data[key], val_data[key], epochs=2, batch_size=60).members[0]
        np.testing.assert_allclose(member.losses, solo.losses, rtol=1e-5)
        assert member.metrics["mse"] == pytest.approx(solo.metrics["mse"], rel=1e-4)


def test_selections_of_a_store(split, tmp_path):
    x = np.concatenate(split)
    problems = [Problem(str(i), "?", "1", ()) for i in range(len(x))]
    store = write_store(tmp_path / "store", {(14, 3): x, (14, 4): 2 * x}, problems, {}, model="m")
    halves = [store.select(14, p).split(train_fraction=0.8, seed=42) for p in (3, 4)]
    train, val = [half.train for half in halves], [half.val for half in halves]
    configs = grid(d_sae=40, k=8, layer=14, position=(3, 4))
    result = quietly(configs, train, val, epochs=1, batch_size=60)
    one = quietly([SAEConfig(40, 8)], train[0], val[0], epochs=1, batch_size=60)
    assert one.configs == [configs[0]]
    order = np.random.RandomState(42).permutation(400)
    rows = x[order[80:]], x[order[:80]]
    plain = quietly([SAEConfig(40, 8)], *rows, epochs=1, batch_size=60)
    for other in (result, one):
        np.testing.assert_allclose(other.members[0].losses, plain.members[0].losses, rtol=1e-5)


@ONE_SAMPLE
def test_training_data_smaller_than_a_batch(split):
    train, val = split
    result = quietly([SAEConfig(40, 8)], train[:10], val[:1], epochs=3, batch_size=60)
    assert result.members[0].losses.shape == (3,)
    assert result.table()[0]["l0"] == 8


@pytest.mark.parametrize(
    ("configs", "train", "val", "message"),
    [
        ([], {}, {}, "train holds no activations"),
        ([], None, None, "the sweep has no members"),
        ([SAEConfig(8, 2, layer=3, position=1)], None, None, r"wants .* \(3, 1\); the data has"),
        ([SAEConfig(8, 2)], None, "narrow", r"train has activations of width 24, val of 23"),
        ([SAEConfig(8, 2)], None, {(3, 1): np.ones((2, 24), "f4")}, r"train has slices \[\(None"),
        ([SAEConfig(8, 2)], None, "nan", "val is not finite in 1 of 80 rows, .* row 4"),
        ([SAEConfig(8, 2)], np.ones((2, 2, 2), "f4"), None, r"train has shape \(2, 2, 2\)"),
        (SAEConfig(8, 2), None, None, r"configs is one SAEConfig; expected a sequence"),
        ([{"d_sae": 8, "k": 2}], None, None, r"configs\[0\] is \{'d_sae': 8, .*, a dict; expected"),
        (grid(d_sae=8, k=2, seed=[0, 1, 0]), None, None, r"configs\[0\] and configs\[2\] are both"),
    ],
)
def test_refused(split, configs, train, val, message):
    spoilt = split[1].copy()
    spoilt[4, 0] = np.nan
    val = {"narrow": split[1][:, 1:], "nan": spoilt}.get(val, val) if isinstance(val, str) else val
    train = split[0] if train is None else train
    val = split[1] if val is None else val
    with pytest.raises(ValueError, match=message):
        quietly(configs, train, val)


def test_a_config_without_a_slice_is_refused_where_there_are_several(split):
    train, val = ({(14, p): x for p in (0, 3)} for x in split)
    with pytest.raises(ValueError, match=r"wants \(layer, position\) \(None, None\); the data has"):
        quietly([SAEConfig(8, 2)], train, val)


def test_a_member_named_with_and_without_its_slice_is_the_same_member_twice(split):
    train, val = ({(14, 3): x} for x in split)
    configs = [SAEConfig(8, 2), SAEConfig(8, 2, layer=14, position=3)]
    with pytest.raises(ValueError, match=r"configs\[0\] and configs\[1\] are both"):
        quietly(configs, train, val)


def test_data_that_could_not_be_saved_is_refused_before_training(split, tmp_path):
    with pytest.raises(ValueError, match=r"data\['where'\] is PosixPath"):
        train_sweep([SAEConfig(8, 2)], *split, data={"where": tmp_path}, progress=False)


def test_a_sweep_written_as_it_trains_is_the_one_in_memory(split, tmp_path):
    configs = [SAEConfig(40, 8), SAEConfig(10, 3), SAEConfig(40, 8, learning_rate=1e30)]
    config = TrainConfig(epochs=2, batch_size=60)
    there = train_sweep(configs, *split, config, progress=False)
    written = train_sweep(configs, *split, config, output=tmp_path / "sweep", progress=False)
    for got, want in zip(written.members, there.members, strict=True):
        assert got.row() == want.row()
        np.testing.assert_array_equal(got.losses, want.losses)
        for name, array in want.params.items():
            np.testing.assert_array_equal(got.params[name], array)
    before = sorted((tmp_path / "sweep").rglob("*"))
    with pytest.raises(ValueError, match="already holds"):
        train_sweep(configs, *split, config, output=tmp_path / "sweep", progress=False)
    assert sorted((tmp_path / "sweep").rglob("*")) == before


def test_validation_without_variance_is_said(split):
    train, val = split
    with pytest.warns(UserWarning, match="all rows of val are equal: fvu and r2 are undefined"):
        result = quietly([SAEConfig(8, 2)], train, np.repeat(val[:1], 5, axis=0), epochs=1)
    (row,) = result.table()
    assert row["diverged_at"] is None
    assert np.isfinite(row["mse"])


def test_infinite_scores_alone_are_no_divergence(split, tmp_path):
    """Samples beyond 1e19 have no finite squared error in float32, whatever the SAE."""
    train, val = split
    config = TrainConfig(epochs=1, batch_size=60)
    result = train_sweep(
        [SAEConfig(8, 2)], train, 1e25 * val, config, output=tmp_path / "sweep", progress=False
    )
    (row,) = result.table()
    assert row["mse"] == np.inf
    assert row["diverged_at"] is None


def test_a_member_may_have_an_order_of_its_own(split):
    configs = [
        SAEConfig(40, 8),
        SAEConfig(40, 8, data_seed=7),
        SAEConfig(33, 8, seed=1, data_seed=7),
    ]
    result = quietly(configs, *split, epochs=2, batch_size=60, max_padding=0.3)
    common = quietly([SAEConfig(40, 8)], *split, epochs=2, batch_size=60)
    shifted = quietly([SAEConfig(40, 8)], *split, epochs=2, batch_size=60, data_seed=7)
    for got, expected in ((0, common), (1, shifted)):
        np.testing.assert_allclose(
            result.members[got].losses, expected.members[0].losses, rtol=1e-5
        )
    assert not np.allclose(result.members[0].losses, result.members[1].losses, rtol=1e-3)


def test_rows_of_extreme_norm_are_warned_of(split):
    """A SAE's error on most rows is hidden behind a few that attention sinks might have."""
    train, val = (np.tile(x, (2, 1)) for x in split)
    calm = quietly([SAEConfig(8, 2)], train, val, epochs=1).table()[0]
    assert calm["outlier_variance_share"] < 0.25
    for x in (train, val):
        x[:1] = 300 * np.median(np.linalg.norm(x, axis=1)) * np.eye(24, dtype=np.float32)[:1]
    with pytest.warns(UserWarning, match="1 % of the rows of val hold 9.% of its variance"):
        (row,) = quietly([SAEConfig(8, 2)], train, val, epochs=1).table()
    assert row["outlier_variance_share"] > 0.9


PEAK = """
import re, sys
from pathlib import Path
import jax
import numpy as np
from sae_jax import SAEConfig, TrainConfig, plan_for, train_sweep

def peak():
    # Not getrusage, whose maximum begins with that of the process before exec.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])

x = np.random.default_rng(0).standard_normal((512, 256), np.float32)
train_config = TrainConfig(epochs=2)
small = [SAEConfig(64, 4, seed) for seed in range(2)]
train_sweep(small, x, x, train_config, progress=False)
before = peak()
configs = [SAEConfig(4096, 16, seed) for seed in range(16)]
(group,) = plan_for(configs, x, train_config).groups
train_sweep(configs, x, x, train_config, checkpoint_dir=sys.argv[1], progress=False)
print(peak() - before, group.num_bytes * len(jax.devices()))
"""


def test_a_group_takes_no_more_memory_than_planned(tmp_path):
    # The resumed run only reads and scores, and puts no checkpoint together.
    for share in (1 / 2, 1 / 3):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path / "checkpoints")],
            capture_output=True,
            text=True,
            check=True,
        )
        taken, planned = map(int, done.stdout.split())
        # Compiled programs and the allocator's leftovers are no part of the plan.
        assert share * planned < taken <= planned + 64 * 2**20
