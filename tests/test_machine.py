"""The energy counters of a machine."""

import os

import pytest

from isoform.machine import Energy


def counters(root, *microjoules, wrap=1000):
    for i, value in enumerate(microjoules):
        folder = root / f"intel-rapl:{i}"
        folder.mkdir(exist_ok=True)
        (folder / "energy_uj").write_text(f"{value}\n")
        (folder / "max_energy_range_uj").write_text(f"{wrap}\n")


def test_energy_is_the_sum_over_packages_through_wrapping_counters(tmp_path):
    counters(tmp_path, 100, 900)
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of a package, counted in it
    (tmp_path / "intel-rapl:0:0/energy_uj").write_text("5")
    energy = Energy(tmp_path)
    assert energy.joules == 0
    counters(tmp_path, 300, 50)
    assert energy.joules == pytest.approx(350e-6)
    counters(tmp_path, 299, 50)
    assert energy.joules == pytest.approx((350 + 999) * 1e-6)


def test_energy_that_cant_be_read_is_absent(tmp_path):
    assert Energy(tmp_path).joules is None
    assert Energy(tmp_path / "nowhere").joules is None
    counters(tmp_path, 1)
    energy = Energy(tmp_path)
    (tmp_path / "intel-rapl:0/energy_uj").unlink()
    assert energy.joules is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_energy_that_may_not_be_read_is_absent(tmp_path):
    counters(tmp_path, 1)
    (tmp_path / "intel-rapl:0/energy_uj").chmod(0)
    assert Energy(tmp_path).joules is None
