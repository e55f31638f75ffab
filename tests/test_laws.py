"""Scaling laws: their closed forms, recovery by fits, and calibration of the intervals."""

from dataclasses import astuple

import numpy as np
import pytest

from isoform.scaling.fitting import (
    fit_chinchilla,
    fit_data_constrained,
    fit_kaplan,
    fit_power_law,
)
from isoform.scaling.forms import ChinchillaForm, DataConstrainedForm, KaplanForm, PowerLawForm
from isoform.scaling.laws import Chinchilla, DataConstrained, Kaplan, Points, PowerLaw
from isoform.scaling.minima import fit_exponent, isoflop_minima
from isoform.scaling.simulation import Design, isoflop_design, ladder_design, recovery, simulate_ladder

BESIROGLU = Chinchilla(1.8172, 482.01, 0.3478, 2085.43, 0.3658)
HOFFMANN = Chinchilla(1.6934, 406.4, 0.3392, 410.7, 0.2849)
KAPLAN = Kaplan(8.8e13, 0.076, 5.4e13, 0.095)
MUENNIGHOFF = DataConstrained(*astuple(BESIROGLU), 15.39, 5.31)
PLANE = isoflop_design()
REPEATING = Design(PLANE.parameters, PLANE.tokens, np.tile([2e8, 1e9, 3e9, np.inf], 10))


def ladder(law, design, noise=0.0, seed=0) -> Points:
    return simulate_ladder(law, design, noise, np.random.default_rng(seed))


TWO = [ladder(PowerLaw(scale, 0.2, 2.0), ladder_design(), 0.01) for scale in (1e18, 3e17)]


def test_points_compute_their_flops_and_refuse_invalid_losses():
    points = Points([1e6, 2e6], [1e8, 1e8], [3.0, 2.5], [1e7, np.inf])
    np.testing.assert_allclose(points.compute, [6e14, 1.2e15])
    assert len(points.where(points.loss < 2.8)) == 1
    np.testing.assert_allclose(Points.from_compute(np.array([1e15, 3e15]), np.array([2.0, 1.0])).compute, [1e15, 3e15])
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="loss of run 1"):
            Points([1e6, 2e6], [1e8, 1e8], [3.0, bad])
    with pytest.raises(ValueError, match="shape"):
        Points([1e6], [1e8, 1e8], [3.0, 2.0])
    with pytest.raises(ValueError, match="loss is missing"):
        fit_power_law(np.geomspace(1e15, 1e17, 9))


@pytest.mark.parametrize(
    "law, exponent, ratio", [(BESIROGLU, 0.513, 18), (HOFFMANN, 0.456, 59)], ids=["Besiroglu", "Hoffmann"]
)
def test_published_optima_at_gophers_compute(law, exponent, ratio):
    # Besiroglu et al. 2024 fit Hoffmann et al.'s third approach again, from the points of its figure.
    assert law.optimal_exponent == pytest.approx(exponent, abs=1e-3)
    assert law.tokens_per_parameter(5.76e23) == pytest.approx(ratio, abs=0.5)


@pytest.mark.parametrize("law", [BESIROGLU, HOFFMANN], ids=["Besiroglu", "Hoffmann"])
def test_the_optimum_is_the_least_loss_of_its_compute(law):
    compute = np.array([1e18, 1e21, 5.76e23])
    n, d = law.optimum(compute)
    np.testing.assert_allclose(6 * n * d, compute)
    for factor in (0.98, 1.02):
        assert (law.loss(n * factor, d / factor) > law.loss(n, d)).all()


@pytest.mark.parametrize("served", [0.0, 1e9, 1e12, 1e15])
def test_the_inference_optimum_is_the_least_cost_of_its_loss(served):
    from scipy.optimize import minimize_scalar

    target = 2.2

    def cost(log_n: float) -> float:
        n = np.exp(log_n)
        remaining = target - BESIROGLU.floor - BESIROGLU.scale_n * n**-BESIROGLU.alpha
        return float(np.log((6 * (BESIROGLU.scale_d / remaining) ** (1 / BESIROGLU.beta) + 2 * served) * n))

    n, d = BESIROGLU.inference_optimum(target, served)
    assert BESIROGLU.loss(n, d) == pytest.approx(target)
    least = np.log(BESIROGLU.scale_n / (target - BESIROGLU.floor)) / BESIROGLU.alpha
    best = minimize_scalar(cost, bounds=(least + 1e-6, least + 15), method="bounded", options={"xatol": 1e-9})
    assert np.log(n) == pytest.approx(best.x, abs=1e-5)
    if not served:
        np.testing.assert_allclose(BESIROGLU.optimum(6 * n * d), (n, d))
    with pytest.raises(ValueError, match="floor"):
        BESIROGLU.inference_optimum(1.8, served)


def test_kaplans_law_has_its_limits():
    assert KAPLAN.loss(1e9, 1e30) == pytest.approx((KAPLAN.critical_n / 1e9) ** KAPLAN.alpha_n)
    assert KAPLAN.loss(1e40, 1e9) == pytest.approx((KAPLAN.critical_d / 1e9) ** KAPLAN.alpha_d)


def test_repeats_have_diminishing_value_and_unique_data_follow_chinchilla():
    n, d = PLANE.parameters, PLANE.tokens
    np.testing.assert_allclose(MUENNIGHOFF.loss(n, d), BESIROGLU.loss(n, d), rtol=1e-14)
    np.testing.assert_allclose(MUENNIGHOFF.loss(n, d, 1e300), BESIROGLU.loss(n, d), rtol=1e-14)
    small, seen = 1e6, 1e8 * np.arange(1.0, 200)
    losses = MUENNIGHOFF.loss(small, seen, 1e8)
    assert (np.diff(losses) < 0).all() and (losses >= BESIROGLU.loss(small, seen) - 1e-12).all()
    # In the limit, U (1 + R*) effective tokens (Muennighoff et al. 2023, section 3).
    assert MUENNIGHOFF.loss(small, 1e14, 1e8) == pytest.approx(BESIROGLU.loss(small, 1e8 * 16.39))


@pytest.mark.parametrize(
    "law, design, fit",
    [
        (PowerLaw(1e18, 0.2, 2.0), ladder_design(), fit_power_law),
        (PowerLaw(2e25, 0.05), ladder_design(seeds=1), lambda p, **k: fit_power_law(p, with_floor=False, **k)),
        (BESIROGLU, PLANE, fit_chinchilla),
        (HOFFMANN, isoflop_design(1e15, 1e17, groups=3, sizes=4), fit_chinchilla),
        (KAPLAN, PLANE, fit_kaplan),
        (MUENNIGHOFF, REPEATING, fit_data_constrained),
    ],
    ids=["power law", "no floor", "Besiroglu", "Hoffmann", "Kaplan", "Muennighoff"],
)
def test_without_noise_the_law_is_recovered(law, design, fit):
    fitted = fit(ladder(law, design), replicates=3)
    np.testing.assert_allclose(astuple(fitted.law), astuple(law), rtol=1e-5)
    assert fitted.noise < 1e-8 and fitted.notes == ()
    # Without noise the replicates are the same law.
    np.testing.assert_allclose(astuple(fitted.replicates[0]), astuple(law), rtol=1e-4)


@pytest.mark.parametrize(
    "law, design, fit",
    [
        (PowerLaw(1e18, 0.2, 2.0), ladder_design(), fit_power_law),
        (BESIROGLU, PLANE, fit_chinchilla),
        (KAPLAN, PLANE, fit_kaplan),
        (MUENNIGHOFF, REPEATING, fit_data_constrained),
    ],
    ids=["power law", "Chinchilla", "Kaplan", "Muennighoff"],
)
def test_a_fit_is_a_local_optimum_and_repeats_by_seed(law, design, fit):
    from scipy.optimize import least_squares

    points = ladder(law, design, 0.005)
    fitted = fit(points, replicates=8, seed=3)
    again, reseeded = fit(points, replicates=8, seed=3), fit(points, replicates=8, seed=4)
    assert (fitted.law, fitted.replicates) == (again.law, again.replicates)
    assert fitted.law == reseeded.law and fitted.replicates != reseeded.replicates
    assert 0.003 < fitted.noise < 0.007

    # Least squares by scipy, in the logarithms of the law's parameters, from the fit.
    def residuals(logs):
        candidate = type(law)(*np.exp(logs))
        match candidate:
            case PowerLaw():
                predicted = candidate.loss(points.compute)
            case DataConstrained():
                predicted = candidate.loss(points.parameters, points.tokens, points.unique_tokens)
            case _:
                predicted = candidate.loss(points.parameters, points.tokens)
        return np.log(predicted / points.loss)

    start = np.log(astuple(fitted.law))
    np.testing.assert_allclose(residuals(start), -fitted.residuals, atol=1e-9)
    best = least_squares(residuals, start, x_scale="jac", xtol=1e-12, ftol=1e-12)
    assert (fitted.residuals**2).sum() < 2 * best.cost * 1.05


@pytest.mark.parametrize(
    "form",
    [
        PowerLawForm(ladder(PowerLaw(1e18, 0.2, 2.0), ladder_design(), 0.01), with_floor=True),
        ChinchillaForm(ladder(BESIROGLU, PLANE, 0.01)),
        KaplanForm(ladder(KAPLAN, PLANE, 0.01)),
        DataConstrainedForm(ladder(MUENNIGHOFF, REPEATING, 0.01), [BESIROGLU]),
    ],
    ids=lambda form: type(form).__name__,
)
def test_derivatives_are_those_of_the_prediction(form):
    theta = form.starts[[1, 3, -1]] * 1.02 + 0.01
    for i in range(theta.shape[1]):
        step = 1e-6 * np.eye(theta.shape[1])[i]
        numeric = (form.predict(theta + step)[0] - form.predict(theta - step)[0]) / 2e-6
        np.testing.assert_allclose(form.predict(theta)[1][..., i], numeric, rtol=1e-5, atol=1e-7)


def test_an_outlier_moves_little():
    points = ladder(BESIROGLU, PLANE, 0.005)
    loss = points.loss.copy()
    loss[17] *= 1.3
    spoilt = Points(points.parameters, points.tokens, loss)
    clean, robust = fit_chinchilla(points).law, fit_chinchilla(spoilt).law
    assert abs(robust.alpha / clean.alpha - 1) < 0.05 and abs(robust.beta / clean.beta - 1) < 0.05


def test_below_six_runs_there_is_no_interval():
    law = PowerLaw(1e18, 0.2, 2.0)
    for sizes, has in ((5, False), (6, True)):
        fit = fit_power_law(ladder(law, ladder_design(sizes=sizes, seeds=1), 0.005))
        assert (fit.interval(lambda law: law.exponent) is not None) == has
        forecast = fit.forecast(lambda law: law.loss(1e18))
        assert forecast.loss == fit.law.loss(1e18) and (forecast.low is not None) == has
    assert fit_power_law(fit.points, replicates=0).interval(lambda law: law.exponent) is None
    with pytest.raises(ValueError, match="level"):
        fit.interval(lambda law: law.exponent, 90)


def test_a_forecast_is_wider_than_the_law_is_uncertain():
    fit = fit_chinchilla(ladder(BESIROGLU, PLANE, 0.005))
    n, d = BESIROGLU.optimum(1e22)
    low, high = fit.interval(lambda law: law.loss(n, d))
    forecast = fit.forecast(lambda law: law.loss(n, d))
    assert forecast.low < low < forecast.loss < high < forecast.high
    wide = fit.interval(lambda law: law.loss(n, d), 0.98)
    assert wide[0] < low < high < wide[1]


def test_too_few_or_too_similar_runs_are_refused_with_how_many_more():
    line = ladder_design(sizes=8, seeds=1)
    with pytest.raises(ValueError, match=r"3 different runs for a law of 3 parameters: 1 more"):
        fit_power_law(ladder(PowerLaw(1e18, 0.2, 2.0), ladder_design(sizes=3)))
    with pytest.raises(ValueError, match=r"a factor of 1\.41: 1 more"):
        fit_power_law(ladder(PowerLaw(1e18, 0.2, 2.0), ladder_design(decades=0.15, sizes=6)))
    with pytest.raises(ValueError, match="2 more, with half and twice"):
        fit_chinchilla(ladder(BESIROGLU, line))
    with pytest.raises(ValueError, match="1 more"):
        fit_kaplan(ladder(KAPLAN, isoflop_design(groups=2, sizes=2)))
    with pytest.raises(ValueError, match="2 different sizes"):
        fit_chinchilla(ladder(BESIROGLU, Design(np.repeat([1e7, 1e8], 4), np.tile(np.geomspace(1e9, 1e10, 4), 2))))
    with pytest.raises(ValueError, match=r"runs that repeat their data.*: 0; 2 more"):
        fit_data_constrained(ladder(BESIROGLU, PLANE))


def test_degenerate_fits_are_reported():
    compute = np.geomspace(1e15, 1e17, 9)
    hanging = fit_power_law(compute, (1e20 / compute) ** 0.1 * np.exp(-0.002 * np.log(compute / 1e16) ** 2))
    bent = fit_power_law(compute, 3 + (1e15 / compute) ** 1.5)
    flat = fit_power_law(compute, 3 + 0.01 * np.cos(np.arange(9)))
    assert hanging.law.floor == pytest.approx(0, abs=1e-9) and "the floor is at its bound, 0" in hanging.notes
    assert bent.law.exponent == pytest.approx(1) and "the exponent is at its bound, 1" in bent.notes
    assert any("hardly falls" in note for note in flat.notes)
    # Data repeat, but no model is larger than one epoch of them would ask for.
    small = Design(PLANE.parameters, PLANE.tokens, np.maximum(PLANE.tokens / 3, 60 * PLANE.parameters))
    fit = fit_data_constrained(ladder(MUENNIGHOFF, small, 0.005))
    assert any("determine" in note for note in fit.notes)


def test_misfit_of_a_size_is_distinguished_from_noise_between_seeds():
    law, design = PowerLaw(1e18, 0.2, 2.0), ladder_design()
    rng = np.random.default_rng(5)
    points = ladder(law, design, 0.002)
    off = Points(points.parameters, points.tokens, points.loss * np.exp(np.repeat(0.01 * rng.standard_normal(9), 3)))
    grouped = fit_power_law(off)
    assert any("agree better with each other" in note for note in grouped.notes)
    # The same runs as if they were independent.
    jitter = np.tile([0.999, 1, 1.001], 9)
    independent = fit_power_law(Points(off.parameters * jitter, off.tokens, off.loss))

    def width(fit):
        low, high = fit.interval(lambda law: law.exponent)
        return high - low

    assert width(grouped) > 1.2 * width(independent)


def test_minima_of_equal_compute_and_the_exponent_through_them():
    points = ladder(BESIROGLU, isoflop_design(span=30), 0.0005)
    minima = isoflop_minima(points)
    assert len(minima) == 5 and minima.notes == ()
    n, d = BESIROGLU.optimum([m.compute for m in minima])
    np.testing.assert_allclose([m.parameters for m in minima], n, rtol=0.1)
    np.testing.assert_allclose([m.loss for m in minima], BESIROGLU.loss(n, d), rtol=2e-3)
    assert all(m.interval[0] < m.parameters < m.interval[1] for m in minima)
    assert all(m.tokens == pytest.approx(m.compute / 6 / m.parameters) for m in minima)
    line = fit_exponent(minima)
    assert line.interval[0] < BESIROGLU.optimal_exponent < line.interval[1] < line.interval[0] + 0.06
    assert line.coefficient * 1e20**line.exponent == pytest.approx(BESIROGLU.optimum(1e20)[0], rel=0.1)


def test_a_minimum_outside_its_sizes_is_excluded_with_a_note():
    points = ladder(BESIROGLU, isoflop_design(groups=3), 0.0005)
    labels = np.repeat([0, 1, 2], 8)
    ratio = points.tokens / points.parameters
    minima = isoflop_minima(points.where((labels != 1) | (ratio > 50)))
    assert len(minima) == 2 and "outside its sizes" in minima.notes[0]
    two = isoflop_minima(points.where((labels != 1) | (ratio < 4.5)))
    assert len(two) == 2 and "2 sizes" in two.notes[0]
    # Three runs per group leave no degrees of freedom for the noise.
    bare = isoflop_minima(ladder(BESIROGLU, isoflop_design(groups=3, sizes=3)))
    assert [m.interval for m in bare] == [None] * 3 and fit_exponent(bare).interval is None
    with pytest.raises(ValueError, match="spans a factor"):
        isoflop_minima(points, np.zeros(24, int))
    with pytest.raises(ValueError, match="shape"):
        isoflop_minima(points, np.zeros(3, int))
    with pytest.raises(ValueError, match=r"1 minima .* 1 more"):
        fit_exponent(isoflop_minima(points.where(labels == 0)))


@pytest.mark.parametrize(
    "law, names",
    [(BESIROGLU, ("alpha", "beta", "forecast")), (PowerLaw(4e17, 0.2, 2.0), ("exponent", "floor", "forecast"))],
    ids=["Chinchilla", "power law"],
)
def test_nine_in_ten_intervals_cover_the_truth(law, names):
    result = recovery(law, repetitions=100, replicates=100, seed=11)
    # Of 100 at 0.9: below 81 or above 98 happens once in 500 each.
    for name in names:
        coverage = result.coverage(name)
        assert 0.81 <= coverage.value <= 0.98, name
        assert coverage.low < coverage.value < coverage.high
    if isinstance(law, Chinchilla):
        assert max(result.median_error(name) for name in ("alpha", "beta")) < 0.05
        assert max(result.error_quantile(name) for name in ("alpha", "beta")) < 0.15
    assert 0.016 < result.forecast_width < 0.06
