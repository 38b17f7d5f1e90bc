"""The table of a study and its paired test, against values worked out by hand."""

import math

import pytest

from experiments.tables import Row, differences, paired_test, table


def line(target, row, seed, r1, mean_ap):
    return {"run": f"method={row}", "target": target, "seed": seed, "R-1": r1, "mAP": mean_ap, "queries": 4}


def rows(*names, **paper):
    return [Row(name.upper(), {"method": name}, paper.get(name)) for name in names]


A, B, C = rows("a", "b", "c")


def test_the_table_is_mean_and_deviation_over_seeds():
    lines = [
        line("x", "metabin", 0, 0.50, 0.30),
        line("x", "bn", 0, 0.10, 0.20),
        line("x", "bn", 1, 0.20, 0.20),
        line("x", "bn", 2, 0.30, 0.20),
        line("x", "of another table", 0, 0.30, 0.20),
    ]
    assert table(rows("bn", "in", "metabin"), lines).splitlines() == [
        "| row | x | seeds |",
        "| --- | --- | --- |",
        "| BN | 20.0 ± 10.0 / 20.0 ± 0.0 | 3 |",
        "| METABIN | 50.0 / 30.0 | 1 |",
    ]


def test_the_papers_numbers_have_a_column_of_their_own():
    assert table(rows("bn", "in", "own", bn=(50.9, 59.5), own=None, **{"in": (54.9, 63.3)}), [
        line("x", "bn", 0, 0.1, 0.2), line("x", "own", 0, 0.3, 0.4),
    ]).splitlines() == [
        "| row | x | seeds | paper (reported) |",
        "| --- | --- | --- | --- |",
        "| BN | 10.0 / 20.0 | 1 | 50.9 / 59.5 |",
        "| IN | - | 0 | 54.9 / 63.3 |",
        "| OWN | 30.0 / 40.0 | 1 | - |",
    ]  # fmt: skip


def test_the_mean_over_targets_takes_complete_seeds_only():
    lines = [
        line("x", "bn", 0, 0.1, 0.2),
        line("y", "bn", 0, 0.3, 0.4),
        line("x", "bn", 1, 0.3, 0.4),
        line("y", "bn", 1, 0.5, 0.6),
        line("x", "bn", 2, 0.9, 0.9),
        line("y", "in", 0, 0.5, 0.5),
    ]
    lines = table(rows("bn", "in"), lines).splitlines()
    assert lines[0] == "| row | x | y | mean | seeds |"
    assert lines[2].endswith("| 40.0 ± 14.1 / 50.0 ± 14.1 | 30.0 ± 14.1 / 40.0 ± 14.1 | 2 |")
    assert lines[3] == "| IN | - | 50.0 / 50.0 | - | 0 |"


def test_a_field_of_some_lines_has_its_mean_in_a_column():
    lines = [line("x", "bn", seed, 0.1, 0.2) for seed in (0, 1, 2)] + [line("x", "in", 0, 0.5, 0.5)]
    lines[0]["rho_change"], lines[2]["rho_change"] = 0.00012, 0.00024
    assert [text.rpartition(" | ")[2] for text in table(rows("bn", "in"), lines, "rho_change").splitlines()] == [
        "rho_change |", "--- |", "0.00018 |", "- |",
    ]  # fmt: skip
    assert "rho_change" not in table(rows("bn"), lines)


def test_rows_of_other_tables_share_runs():
    """MetaBIN is the default method, fields come in any order, and being supervised makes another training."""
    fields = {"loss.base": ("triplet",), "meta.gamma": 0.5}
    run = "loss.base=('triplet',) meta.gamma=0.5 method=metabin"
    assert Row("x", fields).run == Row("y", dict(reversed(fields.items())) | {"method": "metabin"}).run == run
    assert Row("x", fields, supervised=True).run == f"{run} supervised"
    assert Row("x", {"method": "bn"}).run == "method=bn"
    assert Row("x", {"method": "bn"}, sources=3).run == "method=bn sources=3"


def two_rows(first, second, target="x"):
    return [
        line(target, row, seed, value, value / 2)
        for row, values in (("a", first), ("b", second))
        for seed, value in enumerate(values)
    ]


def test_the_paired_test_of_two_and_three_seeds_is_that_of_the_closed_forms():
    """Student's t with 1 degree of freedom is Cauchy; with 2, its distribution function is algebraic."""
    found = paired_test(two_rows((0.5, 0.8), (0.4, 0.4)), A, B, "R-1")
    t = 0.25 / (0.3 / math.sqrt(2) / math.sqrt(2))  # differences 0.1 and 0.4
    assert found.difference == pytest.approx(0.25) and found.seeds == 2
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(t))
    reach = 0.15 * math.tan(0.475 * math.pi)  # the quantile at 0.975, times the standard error
    assert (found.low, found.high) == (pytest.approx(0.25 - reach), pytest.approx(0.25 + reach))

    found = paired_test(two_rows((0.5, 0.8, 0.4), (0.4, 0.4, 0.5)), B, A, "mAP")
    mean, deviation = -0.2 / 3, math.sqrt(((0.05 - 0.2 / 3) ** 2 + (0.2 - 0.2 / 3) ** 2 + (0.05 + 0.2 / 3) ** 2) / 2)
    t = mean / (deviation / math.sqrt(3))
    assert found.difference == pytest.approx(mean) and found.seeds == 3
    assert found.p == pytest.approx(1 - abs(t) / math.sqrt(2 + t**2))
    quantile = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    assert found.low == pytest.approx(mean * (1 + quantile / abs(t)))
    assert found.high == pytest.approx(mean * (1 - quantile / abs(t)))


def test_the_test_is_paired():
    """Seeds that differ much more than the rows: an unpaired test would see nothing."""
    first, second = (0.1, 0.5, 0.9, 0.3), (0.08, 0.47, 0.88, 0.27)
    assert paired_test(two_rows(first, second), A, B, "R-1").p < 0.01
    assert paired_test(two_rows(first, second[::-1]), A, B, "R-1").p > 0.5


def test_only_seeds_that_both_rows_have_for_every_target_are_paired():
    lines = two_rows((0.5, 0.8, 0.1), (0.4, 0.4)) + two_rows((0.7, 0.8), (0.4, 0.2, 0.9), target="y")
    found = paired_test([*lines, line("z", "c", 0, 0.5, 0.5)], A, B, "R-1")
    assert found.seeds == 2
    assert found.difference == pytest.approx(((0.6 - 0.4) + (0.8 - 0.3)) / 2)


@pytest.mark.parametrize(
    ("first", "second"), [((), ()), ((0.5,), (0.4,)), ((0.5, 0.6), (0.4, 0.5)), ((0.5, 0.5), (0.5, 0.5))]
)
def test_no_p_value_where_there_is_none(first, second):
    found = paired_test(two_rows(first, second), A, B, "R-1")
    assert math.isnan(found.p) and math.isnan(found.low) and math.isnan(found.high)


def test_the_differences_are_a_table():
    lines = [*two_rows((0.5, 0.8), (0.4, 0.4)), line("x", "c", 1, 0.1, 0.2)]
    assert differences(lines, [(A, B), (C, A), (A, Row("D", {}))]).splitlines() == [
        "| difference | R-1 [95 % interval] | p | mAP [95 % interval] | p | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
        "| A - B | +25.0 [-165.6, +215.6] | 0.344 | +12.5 [-82.8, +107.8] | 0.344 | 2 |",
        "| C - A | -70.0 | - | -20.0 | - | 1 |",
    ]
    assert differences(lines, [(A, Row("D", {}))]) == ""
    far_apart = two_rows((0.5, 0.8, 0.6), (0.1, 0.4 + 1e-4, 0.2))
    assert differences(far_apart, [(A, B)]).count("| < 0.001 |") == 2
