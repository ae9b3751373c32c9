"""The code of `docs/adding_an_architecture.md` does what the page says."""

import re
from pathlib import Path

import numpy as np
import pytest
from sweeps import samples

import sae_jax
from sae_jax.architectures.registry import ARCHITECTURES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "adding_an_architecture.md"


@pytest.fixture
def names(monkeypatch):
    """What the page's code defines."""
    monkeypatch.setattr("sae_jax.architectures.registry.ARCHITECTURES", dict(ARCHITECTURES))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    defined: dict = {}
    exec(code, defined)
    return defined


def test_a_toy_architecture_trains_is_tabulated_saved_and_loaded(names, tmp_path):
    x = samples(300)
    published = sae_jax.grid(d_sae=32, k=4, seed=range(2))
    result = sae_jax.train_sweep(
        [*names["sweep"], *published],
        x[:240],
        x[240:],
        sae_jax.TrainConfig(epochs=20, batch_size=32, max_padding=0.5),
        progress=False,
    )
    rows = result.table()
    assert [row["architecture"] for row in rows] == ["soft_threshold"] * 8 + ["abs_topk"] * 2
    assert all(row["diverged_at"] is None for row in rows)
    assert all(member.losses[-1] < member.losses[0] for member in result.members)
    # A larger coefficient leaves fewer latents, as it should.
    l0 = {c: np.mean([r["l0"] for r in rows if r["aux_coefficient"] == c]) for c in (1e-3, 1e-2)}
    assert l0[1e-2] < l0[1e-3]

    member = result.members[2]
    z = member.sae().encode(x[240:])
    pre = x[240:].astype(np.float64) @ member.params["w_enc"] + member.params["b_enc"]
    expected = np.sign(pre) * np.maximum(np.abs(pre) - 0.5, 0)
    np.testing.assert_allclose(z, expected, atol=1e-4)

    result.save(tmp_path / "sweep")
    read = sae_jax.SweepResult.load(tmp_path / "sweep")
    assert read.table() == rows
    np.testing.assert_array_equal(read.sae(2).encode(x[240:]), z)
    assert isinstance(read.sae(0), names["SoftThresholdSAE"])


def test_a_member_equals_its_solo_run(names):
    x = samples(150)
    config = sae_jax.TrainConfig(epochs=3, batch_size=32, max_padding=0.5)
    mixed = sae_jax.train_sweep(names["sweep"], x, x, config, progress=False)
    for i in (1, 6):
        alone = sae_jax.train_sweep([names["sweep"][i]], x, x, config, progress=False)
        np.testing.assert_allclose(mixed.members[i].losses, alone.members[0].losses, rtol=1e-5)


def test_a_name_is_taken_once_and_an_unknown_one_is_refused(names):
    sae_jax.register("soft_threshold", names["SoftThresholdSAE"])  # The same again.
    with pytest.raises(ValueError, match="architecture 'topk' is taken by TopKSAE"):
        sae_jax.register("topk", names["SoftThresholdSAE"])
    with pytest.raises(ValueError, match=r"architecture is 'gpt'; allowed are \['abs_topk', "):
        x = samples(20)
        sae_jax.train_sweep([sae_jax.SAEConfig(8, architecture="gpt")], x, x, progress=False)
