"""Noise on factors reaches the weights as the literature's formulas say, through the real round."""

import runpy
from pathlib import Path

import pytest

from fedsb.methods import by_name

STUDY = runpy.run_path(str(Path(__file__).parents[2] / "studies" / "noise_energy.py"))


@pytest.mark.parametrize("name", STUDY["NAMES"])
@pytest.mark.parametrize("clients", [1, 4])
def test_noise_energy_in_the_weights_follows_the_formula(name, clients):
    method, std = by_name(name), 0.3
    start = STUDY["start_of"](method, 24, 20, 4)
    found = STUDY["measured"](method, start, std, clients, 80)
    assert found == pytest.approx(STUDY["formula"](method, start, std, clients), rel=0.2)


def test_the_quadratic_term_is_seen():
    """FedIT's and FedEx-LoRA's energies differ by it alone, so the test above can tell them apart."""
    fedit, fedex = by_name("fedit"), by_name("fedex-lora")
    start = STUDY["start_of"](fedit, 24, 20, 4)
    one, other = (STUDY["formula"](method, start, 0.3, 4) for method in (fedit, fedex))
    assert other > 1.15 * one
