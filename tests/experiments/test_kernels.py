"""What a compiled program's operations compute, read from its text."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks.kernels import Operation, operations, table


def found_in(f, *shapes):
    return operations(jax.jit(f).lower(*map(jnp.ones, shapes)).compile().as_text()).values()


def test_a_matrix_product_is_found_and_counted():
    found = found_in(lambda x, y: jnp.tanh(jnp.tanh(x) @ y), (64, 32), (32, 48))
    assert [operation.flops for operation in found if operation.kind == "matrix products"] == [2 * 64 * 32 * 48]


def test_products_of_a_loop_count_once_an_execution():
    def body(x, _):
        return jnp.tanh(x @ x), None

    found = found_in(lambda x: jax.lax.scan(body, x, None, 7)[0], (16, 16))
    assert [operation.flops for operation in found if operation.flops] == [2 * 16**3]


@pytest.mark.parametrize(
    ("f", "kind"),
    [
        (lambda x: jnp.tanh(x) + 1, "elementwise"),
        (lambda x: jnp.exp(x).sum(0), "reductions (moments, gradients of kernels)"),
        (lambda x: x.T, "copies"),
    ],
)
def test_the_kind_is_what_is_computed(f, kind):
    kinds = {operation.kind for operation in found_in(f, (64, 32))}
    assert kind in kinds and "matrix products" not in kinds


def test_the_table_sums_all_executions():
    named = {"a": Operation("matrix products", 1e9), "b": Operation("elementwise", 0.0), "c": Operation("copies", 0.0)}
    text = table({"a": 30.0, "b": 60.0, "c": 10.0}, {"a": 3, "b": 1, "c": 1}, named, 200e9)
    assert "| matrix products | 30 | 30 |" in text and "| all | 100 | 100 |" in text
    assert "have 3 GFLOP and run at 100 GFLOP/s, 0.50 of" in text
    assert "The heaviest single operation takes 60.0 %" in text
