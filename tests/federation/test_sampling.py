"""A cohort is a uniform sample of clients without repetition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsb.federation.cohort import cohort


@given(num_clients=st.integers(1, 50), wanted=st.none() | st.integers(1, 60), seed=st.integers(0, 99))
def test_a_cohort_is_ascending_and_without_repetition(num_clients, wanted, seed):
    chosen = cohort(num_clients, wanted, seed, 1)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(num_clients, wanted or num_clients)
    assert set(chosen) <= set(range(num_clients))
    assert {type(c) for c in chosen} == {int}
    assert chosen == cohort(num_clients, wanted, seed, 1)


def test_every_client_is_as_likely():
    times = np.zeros(10)
    for number in range(2000):
        times[cohort(10, 3, 0, number)] += 1
    assert times / 2000 == pytest.approx(0.3, abs=0.04)
