"""Runs in which things go wrong at random end with the right result. `scripts/faults` does more of them."""

import pytest
from faults import equal, faulty_run, parts_of, without_faults
from test_flower_apps import config_of, nodes_of, world  # noqa: F401

from fedsb.deploy import asking


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
    changes = {"federation__deadline_seconds": 1.5, "federation__rounds": 3} | changes
    config = config_of(world, method__name=method, **changes)
    files = nodes_of(config, tmp_path)
    outcome = faulty_run(config, files, parts_of(tmp_path / "simulated"), tmp_path, seed)
    assert outcome.right, outcome
    assert outcome.happened, "no fault was drawn: take another seed"
    for stop in outcome.stops:
        assert "resume" in stop or "no client's update could be used" in stop, stop


def test_runs_of_other_clients_are_not_equal(world, tmp_path):  # noqa: F811
    """What the verdict of these runs rests on."""
    config = config_of(world)
    files = nodes_of(config, tmp_path)
    parts = parts_of(tmp_path / "simulated")
    runs = []
    for name, last in (("all", [0, 1, 2]), ("without one", [0, 2])):
        (tmp_path / name).mkdir()
        runs.append(without_faults(config, files, parts, tmp_path / name, [[0, 1, 2], last]))
    assert equal(runs[0], tmp_path / "simulated")
    assert not equal(runs[0], runs[1])
