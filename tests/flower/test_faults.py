"""Runs in which things go wrong at random end with the right result. `scripts/faults` does more of them."""

import pytest
from faults import faulty_run, parts_of
from test_flower_apps import config_of, nodes_of, world  # noqa: F401

from fedsb.flower import asking


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch):
    monkeypatch.setattr(asking, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(asking, "LOOK_SECONDS", 0.0)


CASES = [
    ("fed-sb", 0, {"method__init": {"samples": 24, "head_warmup": {"rounds": 1, "steps": 5}}}),
    ("flora", 1, {}),
    ("fedex-lora", 2, {"federation__min_updates": 3}),
]


@pytest.mark.parametrize(("method", "seed", "changes"), CASES)
def test_a_run_with_random_faults_ends_with_the_right_result(world, tmp_path, method, seed, changes):  # noqa: F811
    changes = {"federation__deadline_seconds": 0.4, "federation__rounds": 3} | changes
    config = config_of(world, method__name=method, **changes)
    files = nodes_of(config, tmp_path)
    outcome = faulty_run(config, files, parts_of(tmp_path / "simulated"), tmp_path, seed)
    assert outcome.right, outcome
    assert outcome.happened, "no fault was drawn: take another seed"
    for stop in outcome.stops:
        assert "resume" in stop or "no client's update could be used" in stop, stop
