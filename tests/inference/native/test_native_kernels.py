import numpy as np
import pytest

from small_doge.inference import native

TYPES = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}
GROUP = {"int8": 128, "int4": 32}


def isas() -> list[str]:
    return native.available_isas() if native.is_available() else ["plain"]


def quantized_input(x: np.ndarray, group: int) -> np.ndarray:
    """x after symmetric 8-bit rounding in groups along the last axis."""
    tokens, cols = x.shape
    padded = np.zeros((tokens, -(-cols // group) * group), np.float32)
    padded[:, :cols] = x
    grouped = padded.reshape(tokens, -1, group)
    largest = np.abs(grouped).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return (np.rint(grouped * inverse) * (largest / np.float32(127))).reshape(tokens, -1)[:, :cols]


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 7, 13, 64], ids=lambda n: f"{n} tokens")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("isa", isas())
def test_product_equals_the_widened_weights_times_the_rounded_input(isa: str, dtype: str, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    for rows, cols in [(16, 128), (37, 96), (80, 200), (33, 17), (70, 2300)]:
        weight = rng.standard_normal((rows, cols), np.float32)
        x = rng.standard_normal((tokens, cols), np.float32)
        got = native._core.product(weight, x, TYPES[dtype], isa)
        wide = native._core.round_trip(weight, TYPES[dtype])
        rounded = x if dtype in ("fp32", "bf16") else quantized_input(x, GROUP[dtype])
        np.testing.assert_allclose(got, rounded @ wide.T, rtol=0, atol=2e-5 * cols)


@pytest.mark.parametrize("cols", [200, 2300], ids=lambda n: f"{n} columns")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("isa", isas())
def test_a_tokens_product_is_the_same_to_the_bit_in_any_company(isa: str, dtype: str, cols: int) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((80, cols), np.float32), rng.standard_normal((40, cols), np.float32)
    together = native._core.product(weight, x, TYPES[dtype], isa)
    for tokens in (*range(1, 20), 31):
        np.testing.assert_array_equal(native._core.product(weight, x[:tokens], TYPES[dtype], isa), together[:tokens])


@pytest.mark.parametrize("isa", isas())
def test_largest_bytes_do_not_overflow(isa: str) -> None:
    for sign_w, sign_x in [(1, 1), (1, -1), (-1, 1), (-1, -1)]:
        weight = np.full((32, 256), sign_w, np.float32)
        x = np.full((3, 256), sign_x, np.float32)
        for code in (2, 3):
            got = native._core.product(weight, x, code, isa)
            wide = native._core.round_trip(weight, code)
            np.testing.assert_allclose(got, x @ wide.T, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "worst"), [("fp32", 0.0), ("bf16", 0.002), ("int8", 0.008), ("int4", 0.10)], ids=lambda v: str(v)
)
def test_root_mean_square_error_of_each_weight_type_is_as_documented(dtype: str, worst: float) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 512), np.float32)
    error = native._core.round_trip(weight, TYPES[dtype]) - weight
    assert np.sqrt(np.mean(error**2)) <= worst


def test_zero_weights_and_zero_inputs_stay_zero() -> None:
    for code in TYPES.values():
        got = native._core.product(np.zeros((16, 128), np.float32), np.zeros((1, 128), np.float32), code, isas()[0])
        assert not got.any()


def test_an_instruction_set_that_is_not_here_is_refused() -> None:
    missing = next(i for i in ("avx512", "neon", "avx2") if i not in isas())
    with pytest.raises(ValueError, match="not available here"):
        native._core.product(np.zeros((16, 16), np.float32), np.zeros((1, 16), np.float32), 0, missing)
