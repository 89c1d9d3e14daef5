"""statistics.py computes what SciPy's permutation_test and bootstrap compute, and what can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hf_recipes.compare import measures, small_samples, statistics
from hf_recipes.compare.intervals import compute_interval, interval_of_groups, intervals_of_pair

LEVEL = 0.95


def _ones(values: np.ndarray) -> np.ndarray:
    """(N, 2) rows of a mean."""
    return np.stack([values, np.ones(len(values))], axis=1).astype(float)


def _difference(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    return y.mean(axis=axis) - x.mean(axis=axis)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("whole", [True, False])
def test_randomisation_is_scipys_permutation_test_of_pairs(shift: float, whole: bool) -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(size=60)
    second = first + rng.normal(shift, 0.5, 60)
    if whole:  # numbers of which many are equal take another way
        first, second = np.round(first * 2), np.round(second * 2)
    p = statistics.randomisation(_ones(first), _ones(second), measures.ratio, 20_000, 3)
    theirs = stats.permutation_test(
        (first, second), _difference, permutation_type="samples", n_resamples=20_000, vectorized=True, rng=5
    )
    assert p == pytest.approx(theirs.pvalue, abs=4 * (p * (1 - p) / 10_000) ** 0.5 + 1e-3)


def test_the_exact_permutations_of_a_few_pairs_give_the_same_p() -> None:
    first, second = np.zeros(8), np.array([1.0, 2, 3, 4, 5, 6, 7, -2])
    exact = stats.permutation_test(
        (first, second), _difference, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )  # all 256 of them
    p = statistics.randomisation(_ones(first), _ones(second), measures.ratio, 50_000, 0)
    assert p == pytest.approx(exact.pvalue, abs=0.003)


def test_a_p_value_is_never_zero_and_counts_the_observed_difference_once() -> None:
    rows = _ones(np.zeros(200)), _ones(np.ones(200))
    assert statistics.randomisation(*rows, measures.ratio, 99, 0) == 1 / 100
    assert statistics.randomisation(*rows, measures.ratio, 999, 0) == 1 / 1000


@pytest.mark.parametrize("whole", [True, False])
def test_the_interval_is_scipys_percentile_bootstrap(whole: bool) -> None:
    rng = np.random.default_rng(2)
    values = rng.integers(0, 2, 150).astype(float) if whole else rng.gamma(2.0, size=150)
    draws = measures.ratio(statistics.bootstrap(_ones(values), 20_000, 0))
    found = statistics.interval(float(values.mean()), draws)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=LEVEL, method="percentile", rng=7, vectorized=True
    )
    error = theirs.standard_error
    assert found.error == pytest.approx(error, rel=0.03)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.12 * error)
    narrow = statistics.interval(float(values.mean()), draws, 0.8)
    expected = np.quantile(theirs.bootstrap_distribution, [0.1, 0.9])
    assert (narrow.low, narrow.high) == pytest.approx(tuple(expected), abs=0.12 * error)


def test_the_bootstrap_of_a_ratio_is_scipys_of_pairs() -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(5, 200, 120).astype(float)
    nats = tokens * rng.gamma(20, 0.05, 120)
    draws = measures.ratio(statistics.bootstrap(np.stack([nats, tokens], axis=1), 20_000, 0))
    theirs = stats.bootstrap(
        (nats, tokens),
        lambda a, b, axis=-1: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=1,
        vectorized=True,
    )
    low, high = np.quantile(draws, [0.025, 0.975])
    expected = tuple(theirs.confidence_interval)
    assert (low, high) == pytest.approx(expected, abs=0.12 * theirs.standard_error)


def test_groups_of_seeds_without_spread_of_examples_are_welchs_test() -> None:
    """Every example alike: what is left is the spread of the seeds, and Welch's t test of their means."""
    levels = ([0.70, 0.74, 0.69, 0.73], [0.78, 0.80, 0.75])
    found, p, freedom = statistics.grouped(np.zeros((7, 7)), (np.array(levels[0]), np.array(levels[1])), 49)
    welch = stats.ttest_ind(levels[1], levels[0], equal_var=False)
    interval = welch.confidence_interval(LEVEL)
    assert (p, freedom) == pytest.approx((welch.pvalue, welch.df), rel=1e-6)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6)
    assert found.value == pytest.approx(np.mean(levels[1]) - np.mean(levels[0]))
    assert found.error == pytest.approx(np.sqrt(np.var(levels[0], ddof=1) / 4 + np.var(levels[1], ddof=1) / 3))


def test_groups_whose_seeds_agree_have_the_spread_of_their_examples() -> None:
    rng = np.random.default_rng(4)
    first, second = (rng.random(300) < share for share in (0.6, 0.7))
    groups = [[_ones(first)] * 2, [_ones(second)] * 3]
    found, p, freedom = interval_of_groups(measures.ACCURACY, *groups, 20_000, 0)
    apart = second.astype(float) - first
    error = apart.std() / np.sqrt(300)
    assert found.error == pytest.approx(error, rel=0.03) and freedom == pytest.approx(299)
    assert (found.low, found.high) == pytest.approx(
        (apart.mean() - 1.968 * error, apart.mean() + 1.968 * error), rel=0.03
    )
    assert p == pytest.approx(2 * stats.t.sf(apart.mean() / found.error, 299), rel=1e-6)


def test_groups_that_are_equal_in_every_example_and_seed_differ_by_nothing() -> None:
    rows = [_ones(np.ones(20))] * 2
    found, p, freedom = interval_of_groups(measures.BITS_PER_BYTE, rows, rows, 50, 0)
    assert (found.value, found.low, found.high, found.error, p, freedom) == (0, 0, 0, 0, 1.0, np.inf)
    other = [_ones(np.zeros(20))] * 2
    found, p, _ = interval_of_groups(measures.BITS_PER_BYTE, rows, other, 50, 0)
    assert found.value == pytest.approx(found.low) == pytest.approx(found.high) == -1 / np.log(2) and p < 1e-9


def test_a_seed_that_adds_nothing_leaves_the_spread_of_the_examples_counted_once() -> None:
    """Runs whose examples are right by chance alone: what the seeds' means spread by is the examples' own chance."""
    rng = np.random.default_rng(5)
    errors = []
    for _ in range(40):
        groups = [[_ones(rng.random(400) < 0.8) for _ in range(5)] for _ in range(2)]
        errors.append(interval_of_groups(measures.ACCURACY, *groups, 500, 0)[0].error)
    chance = np.sqrt(2 * 0.8 * 0.2 / 400 / 5)
    assert chance < np.mean(errors) < 1.2 * chance  # added up it would be 1.41 of it


# few examples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "n"), [(6, 6), (0, 6), (12, 20), (45, 50), (1, 1), (992, 1000)])
def test_the_interval_of_a_few_examples_is_wilsons(right: int, n: int) -> None:
    rows = _ones(np.arange(n) < right)
    found = compute_interval(measures.ACCURACY, rows, measures.ratio(statistics.bootstrap(rows, 200, 0)))
    wilson = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high))


@pytest.mark.parametrize("n", [5, 6, 10, 20, 30, 50])
def test_the_interval_of_a_few_examples_holds_any_share_in_89_of_100_and_most_in_95(n: int) -> None:
    """Summed over everything that can come out, for each share."""
    found = [compute_interval(measures.ACCURACY, _ones(np.arange(n) < right), np.zeros(1)) for right in range(n + 1)]
    low, high = (np.array([getattr(one, end) for one in found]) for end in ("low", "high"))
    covered = [
        stats.binom.pmf(np.arange(n + 1), n, share)[(low <= share) & (share <= high)].sum()
        for share in np.linspace(0.005, 0.995, 199)
    ]
    assert min(covered) > 0.89 and 0.95 < np.mean(covered) < 0.97
    assert np.mean(np.array(covered) < 0.93) < 0.13


def test_a_share_of_many_examples_that_is_not_near_an_end_is_the_bootstraps() -> None:
    rows = _ones(np.arange(500) < 350)
    draws = measures.ratio(statistics.bootstrap(rows, 500, 0))
    assert compute_interval(measures.ACCURACY, rows, draws) == statistics.interval(0.7, draws)


def test_no_share_of_a_few_examples_is_sure_of_itself() -> None:
    """All right in every task's rows: F1 of labels, of spans, accuracy over tags, by a run and between two."""
    labels = np.zeros((6, 3, 3))
    labels[np.arange(6), :, np.arange(6) % 3] = 1
    spans, tags = np.full((6, 3), 2.0), np.full((6, 2), 9.0)
    shares = ((measures.F1, labels.reshape(6, 9)), (measures.F1_WEIGHTED, labels.reshape(6, 9)))
    shares += ((measures.SPAN_F1, spans), (measures.ACCURACY, tags))
    for measure, rows in shares:
        ends, difference = intervals_of_pair(measure, rows, rows, 2000, 0)
        assert ends[0] == ends[1] and ends[0].high == 1 and 0.3 < ends[0].low < 0.65
        assert difference.value == 0 and -0.6 < difference.low < -0.2 and 0.2 < difference.high < 0.6
        between, _, _ = interval_of_groups(measure, [rows, rows], [rows, rows], 2000, 0)
        assert between.value == 0 and between.low < -0.2 and between.high > 0.2


@pytest.mark.parametrize("n", [1, 4])
def test_a_difference_on_fewer_than_five_examples_has_no_interval_and_no_verdict(n: int) -> None:
    from hf_recipes.compare.text import format_interval

    _, difference = intervals_of_pair(measures.ACCURACY, _ones(np.zeros(n)), _ones(np.ones(n)), 2000, 0)
    assert difference.value == 1 and format_interval(difference, True) == "not known"
    assert not (difference.low > 0 or difference.high < 0)


def test_many_examples_that_hardly_differ_have_a_difference_beyond_the_bootstraps() -> None:
    rows = _ones(np.ones(2000))
    _, difference = intervals_of_pair(measures.ACCURACY, rows, rows, 2000, 0)
    assert 0.001 < difference.high < 0.003 and -0.003 < difference.low < -0.001  # "rule of three": 3 in 2,000


def test_the_jackknife_of_documents_of_one_length_is_students_t() -> None:
    values = np.random.default_rng(6).normal(2, 0.3, (2, 12))
    found = small_samples.jackknife(_ones(values[0]), measures.ratio)
    expected = stats.ttest_1samp(values[0], 0).confidence_interval(LEVEL)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    found = small_samples.jackknife_difference(*(_ones(row) for row in values), measures.ratio)
    expected = stats.ttest_rel(values[1], values[0]).confidence_interval(LEVEL)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_document_says_nothing_about_others() -> None:
    rows = _ones(np.array([2.0]))
    assert np.isnan(small_samples.jackknife(rows, measures.exponential).low)
    assert np.isnan(small_samples.jackknife_difference(rows, rows, measures.exponential).high)


def test_the_smallest_detectable_difference_is_the_textbooks() -> None:
    expected = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)  # 2.80 standard errors
    assert statistics.detectable(2.0) == pytest.approx(2 * expected)
    assert statistics.detectable(2.0, 5) == pytest.approx(2 * (stats.t.ppf(0.975, 5) + stats.t.ppf(0.8, 5)))
    assert statistics.detectable(1.0, level=0.9, power=0.5) == pytest.approx(stats.norm.ppf(0.95))


def test_draws_that_are_not_finite_are_left_out_of_an_interval() -> None:
    draws = np.array([np.nan, 1.0, 2.0, 3.0, np.inf])
    found = statistics.interval(2.0, draws, 0.5)
    assert (found.low, found.high, found.error) == (1.5, 2.5, pytest.approx(np.std([1, 2, 3])))
    empty = statistics.interval(2.0, np.array([np.nan]))
    assert empty.value == 2.0 and all(np.isnan([empty.low, empty.high, empty.error]))


def test_holm_is_no_less_than_what_came_before_it_and_no_more_than_one() -> None:
    assert statistics.holm([0.01, 0.012, 0.5, 0.9]) == pytest.approx([0.04, 0.04, 1.0, 1.0])
    assert statistics.holm([0.6]) == [0.6] and statistics.holm([]) == []


def test_mcnemar_counts_only_what_differs() -> None:
    first = np.array([True, True, True, False, False])
    second = np.array([False, False, True, True, False])
    assert statistics.mcnemar(first, second) == pytest.approx(stats.binomtest(2, 3, 0.5).pvalue)
    assert statistics.mcnemar(second, first) == pytest.approx(stats.binomtest(1, 3, 0.5).pvalue)
    one_way = statistics.mcnemar(np.ones(10, bool), np.zeros(10, bool))
    assert one_way == pytest.approx(2 / 1024)


@pytest.mark.parametrize(("rows", "resamples"), [(40, 3), (40, 500), (3000, 7), (9000, 40)])
def test_every_way_of_resampling_draws_as_many_rows_as_there_are(rows: int, resamples: int) -> None:
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=rows), rng.integers(0, 2, rows)):
        sums = statistics.bootstrap(_ones(values), resamples, 0)
        assert sums.shape == (resamples, 2) and (sums[:, 1] == rows).all()
        assert abs(sums[:, 0].mean() - values.sum()) < 6 * np.sqrt(rows / resamples) * max(1, abs(values).max())


def test_a_swap_keeps_the_total_of_both_runs() -> None:
    rng = np.random.default_rng(0)
    for whole in (True, False):
        first, second = (rng.integers(0, 3, (50, 2)) if whole else rng.normal(size=(50, 2)) for _ in range(2))
        a, b = statistics.swapped(first, second, 400, 0)
        assert a.shape == b.shape == (400, 2)
        np.testing.assert_allclose(a + b, np.broadcast_to((first + second).sum(axis=0), (400, 2)), atol=1e-4)
        assert a.mean(axis=0) == pytest.approx((first + second).sum(axis=0) / 2, abs=2.5)
        half = np.sqrt(((second - first) ** 2).sum(axis=0)) / 2
        assert a.std(axis=0) == pytest.approx(half, rel=0.2)
    same = rng.normal(size=(9, 2))
    a, b = statistics.swapped(same, same, 5, 0)
    assert (a == same.sum(axis=0)).all() and (b == same.sum(axis=0)).all() and a.shape == (5, 2)


def test_the_bootstrap_t_interval_says_so_where_nothing_varies() -> None:
    rows = np.ones((30, 2)) * [2.0, 4.0]
    found, sums = statistics.studentised(rows, rows, measures.bits, measures.per_bit, 50, 0)
    assert (found.value, found.low, found.high) == (0, 0, 0) and sums.shape == (50, 4)


def test_the_standard_error_of_a_difference_of_ratios_is_the_delta_methods() -> None:
    """By numerical derivatives and each example's influence, without the moments that statistics.py resamples."""
    rng = np.random.default_rng(6)
    rows = np.stack([rng.gamma(3, 20, 40), rng.integers(5, 90, 40), rng.gamma(3, 15, 40), rng.integers(5, 90, 40)], 1)
    pairs = [(i, j) for i in range(4) for j in range(i, 4)]
    moments = np.stack([rows[:, i] * rows[:, j] for i, j in pairs], axis=1)
    sums = np.concatenate([rows, moments], axis=1).sum(axis=0)[None]
    for value, slope in ((measures.exponential, measures.exponential), (measures.bits, measures.per_bit)):

        def apart(total: np.ndarray, value: statistics.Value = value) -> float:
            return float(value(total[2:]) - value(total[:2]))

        total, step = rows.sum(axis=0), 1e-4
        steps = step * np.eye(4)
        gradient = np.array([(apart(total + one) - apart(total - one)) / (2 * step) for one in steps])
        difference, error = statistics._difference(sums, value, slope, pairs)
        assert difference[0] == pytest.approx(apart(total))
        assert error[0] == pytest.approx(np.sqrt(((rows @ gradient) ** 2).sum()), rel=1e-5)


def test_many_real_rows_are_weighted_by_poisson_whose_mean_and_variance_are_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "FEW", 1)
    rng = np.random.default_rng(7)
    values = rng.normal(10, 3, 500)
    sums = statistics.bootstrap(_ones(values), 4000, 0)
    assert sums[:, 1].mean() == pytest.approx(500, rel=0.01) and sums[:, 1].std() == pytest.approx(500**0.5, rel=0.05)
    ratio = measures.ratio(sums)
    assert ratio.mean() == pytest.approx(values.mean(), abs=0.02)
    assert ratio.std() == pytest.approx(values.std() / 500**0.5, rel=0.05)


@pytest.mark.parametrize("cells", [1, 400, 10**6])
def test_draws_that_are_made_in_parts_are_as_many_as_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    monkeypatch.setattr(statistics, "CELLS", cells)
    rng = np.random.default_rng(8)
    whole, real = rng.integers(0, 2, 30), rng.normal(size=30)
    for values in (whole, real):
        assert statistics.bootstrap(_ones(values), 101, 0).shape == (101, 2)
        a, b = statistics.swapped(_ones(values), _ones(values[::-1]), 101, 0)
        assert a.shape == b.shape == (101, 2)
    monkeypatch.setattr(statistics, "FEW", 100)
    for few in (100, 1):
        monkeypatch.setattr(statistics, "FEW", few)
        assert statistics.bootstrap(_ones(real), 101, 0).shape == (101, 2)


@pytest.mark.filterwarnings("error")
def test_losses_whose_perplexity_is_infinite_have_no_interval_and_no_warning_of_numpy() -> None:
    rows = np.array([[900.0, 1.0], [1000.0, 1.0], [1100.0, 1.0]])
    found = small_samples.jackknife(rows, measures.exponential)
    assert np.isinf(found.value) and np.isinf(found.high) and np.isnan(found.error)
