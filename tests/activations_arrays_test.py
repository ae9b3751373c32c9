import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_jax.activations.arrays import as_float32


def float_arrays(dtype):
    return np.array([[1.5, -2.0, 0.25]], dtype)


class TestAsFloat32:
    @pytest.mark.parametrize(
        "dtype", ["f2", "f4", "f8", ">f4", ">f2", np.longdouble, ml_dtypes.bfloat16]
    )
    def test_floats_keep_their_values(self, dtype):
        found = as_float32(float_arrays(dtype), "x")
        assert found.dtype == np.float32
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, [[1.5, -2.0, 0.25]])

    def test_float32_is_not_copied(self):
        array = float_arrays(np.float32)
        assert as_float32(array, "x") is array

    def test_two_bytes_without_a_name_are_bfloat16(self, tmp_path):
        np.save(tmp_path / "a.npy", float_arrays(ml_dtypes.bfloat16))
        loaded = np.load(tmp_path / "a.npy")
        assert loaded.dtype.str == "|V2"
        np.testing.assert_array_equal(as_float32(loaded, "x"), [[1.5, -2.0, 0.25]])
        np.testing.assert_array_equal(as_float32(loaded.T, "x"), [[1.5], [-2.0], [0.25]])

    @settings(max_examples=50)
    @given(bits=st.integers(0, 2**16 - 1))
    def test_bfloat16_is_the_upper_half_of_a_float32(self, bits):
        stored = np.array([bits], np.uint16).view("V2")
        expected = np.array([bits << 16], np.uint32).view(np.float32)
        np.testing.assert_array_equal(as_float32(stored, "x"), expected)

    @pytest.mark.parametrize(
        ("array", "found"),
        [
            (np.zeros((1, 1), "V1"), r"\|V1 \(float8 types are saved so\)"),
            (np.zeros((1, 1), ml_dtypes.float8_e4m3fn), "float8_e4m3fn"),
            (np.zeros((1, 1), ml_dtypes.float8_e5m2), "float8_e5m2"),
            (np.zeros((1, 1), ml_dtypes.int4), "int4"),
            (np.zeros((1, 1), "V4"), r"\|V4"),
            (np.zeros((1, 1), [("a", "i1"), ("b", "i1")]), r"\[\('a', 'i1'\), \('b', 'i1'\)\]"),
            (np.zeros((1, 1), int), "int64"),
            (np.zeros((1, 1), bool), "bool"),
            (np.zeros((1, 1), complex), "complex128"),
            (np.zeros((1, 1), "M8[s]"), r"datetime64\[s\]"),
            (np.zeros((1, 1), "m8[s]"), r"timedelta64\[s\]"),
            (np.array([["1.5"]]), "<U3"),
            (np.array([[1.5]], object), "object"),
        ],
    )
    def test_what_is_no_float_is_refused_by_name(self, array, found):
        with pytest.raises(ValueError, match=f"x has dtype {found}; expected float16, bfloat16"):
            as_float32(array, "x")

    @pytest.mark.filterwarnings("error")
    def test_a_value_beyond_float32_is_refused(self):
        with pytest.raises(ValueError, match=r"x has the value 1e\+300.*beyond float32"):
            as_float32(np.array([1.0, 1e300]), "x")
        assert math.isinf(as_float32(np.array([np.inf]), "x")[0])
        assert math.isnan(as_float32(np.array([np.nan]), "x")[0])

    def test_masked_values_are_refused(self):
        masked = np.ma.masked_array(float_arrays("f4"), mask=[[False, True, False]])
        with pytest.raises(ValueError, match="x has 1 masked values"):
            as_float32(masked, "x")
        found = as_float32(np.ma.masked_array(float_arrays("f4")), "x")
        assert type(found) is np.ndarray
