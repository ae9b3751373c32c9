"""Public numerics give the same values compiled or not."""

import chex
import numpy as np
from absl.testing import parameterized
from metric_oracle import oracle, samples
from random_saes import forward, random_jumprelu, random_params, random_topk

from sae_jax.metrics import quality
from sae_jax.ops.matmul import matmul
from sae_jax.ops.top_k import top_k_mask

everywhere = chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)


def abs_top_k(k):
    def keep(pre):
        kept = np.argsort(-np.abs(pre), axis=1, kind="stable")[:, :k]
        z = np.zeros_like(pre)
        np.put_along_axis(z, kept, np.take_along_axis(pre, kept, 1), 1)
        return z

    return keep


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @everywhere
    @parameterized.parameters(1, 7, 40)
    def test_top_k_mask(self, k):
        values = np.random.default_rng(k).random((9, 40)).astype(np.float32)
        kept = np.argsort(-values, axis=1, kind="stable")[:, :k]
        expected = np.zeros((9, 40), bool)
        np.put_along_axis(expected, kept, True, 1)
        np.testing.assert_array_equal(self.variant(top_k_mask)(values, k), expected)

    @everywhere
    def test_matmul(self):
        a, b = (np.random.default_rng(i).normal(size=(6, 6)).astype(np.float32) for i in (0, 1))
        found = self.variant(lambda a, b: matmul(a, b, "float32"))(a, b)
        np.testing.assert_allclose(found, a.astype(np.float64) @ b, rtol=1e-5, atol=1e-6)

    @everywhere
    def test_topk_sae(self):
        x = np.random.default_rng(0).normal(size=(11, 8)).astype(np.float32)
        sae = random_topk(0, 8, 24, 5)
        z, x_hat = forward(random_params(0, 8, 24), x, abs_top_k(5))
        np.testing.assert_allclose(self.variant(sae.encode)(x), z, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(self.variant(sae.__call__)(x), x_hat, rtol=1e-5, atol=1e-5)

    @everywhere
    def test_jumprelu_sae(self):
        x = np.random.default_rng(0).normal(size=(11, 8)).astype(np.float32)
        sae = random_jumprelu(0, 8, 24)
        threshold = np.asarray(sae.threshold[...])
        z, _ = forward(
            random_params(0, 8, 24), x, lambda pre: np.maximum(pre, 0) * (pre > threshold)
        )
        np.testing.assert_allclose(self.variant(sae.encode)(x), z, rtol=1e-5, atol=1e-6)

    @everywhere
    def test_metrics(self):
        x, z, x_hat = samples(n=60)
        outliers = quality.outlier_rows(x)
        batch_sums = self.variant(lambda *a: quality.batch_sums(*a[:3], outliers=a[3]))
        found = quality.finalize(batch_sums(x, z, x_hat, outliers))
        for name, value in oracle(x, z, x_hat, outliers).items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
