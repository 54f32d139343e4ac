"""The plan's parts come from the same fields; the ledger keeps what was spent."""

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest

from fedsb.errors import InputError
from fedsb.privacy.account import BudgetSpent, Guard
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.ledger import PrivacyLedger, Spend, read_spends
from fedsb.privacy.plan import ExamplePlan, StartPlan

PLAN = ExamplePlan(num_examples=500, expected_batch_size=50, steps_per_round=10, rounds=4, clip_norm=0.3)


def test_sampler_noise_and_accounting_read_the_same_fields():
    plan = replace(PLAN, noise_multiplier=1.5)
    assert plan.of_round(1) == Mechanism(1.5, 0.1, 10)
    assert plan.noise_std == 1.5 * 0.3
    batches = list(plan.batches(Keystream(bytes(32))))
    assert len(batches) == 10
    assert np.mean([len(b) for b in batches]) == pytest.approx(50, rel=0.15)


def test_batches_are_poisson():
    """Binomial sizes, every example equally often, batches independent."""
    plan = replace(PLAN, steps_per_round=3000)
    batches = list(plan.batches(Keystream(bytes(32))))
    sizes = np.array([len(b) for b in batches])
    assert sizes.mean() == pytest.approx(50, rel=0.01)
    assert sizes.var() == pytest.approx(500 * 0.1 * 0.9, rel=0.1)
    counts = np.bincount(np.concatenate(batches), minlength=500)
    assert counts.std() == pytest.approx((3000 * 0.1 * 0.9) ** 0.5, rel=0.15)
    assert abs(np.corrcoef(sizes[:-1], sizes[1:])[0, 1]) < 0.06


def test_batches_may_be_empty_and_never_more_than_all():
    few = replace(PLAN, num_examples=3, expected_batch_size=1, steps_per_round=200)
    sizes = {len(b) for b in few.batches(Keystream(bytes(32)))}
    assert 0 in sizes
    assert replace(PLAN, num_examples=20).sampling_probability == 1.0


def test_a_plan_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        PLAN.clip_norm = 1.0


def test_a_calibrated_plan_and_its_start_spend_the_budget_together():
    start = StartPlan(num_examples=500, expected_samples=100).calibrated(0.5, 1e-4)
    plan = PLAN.calibrated(3.0, 1e-4, before=[start.release])
    together = epsilon([start.release, plan.whole], 1e-4)
    assert 2.98 < together <= 3.0
    assert epsilon([start.release], 1e-4) <= 0.5
    assert plan.noise_multiplier > PLAN.calibrated(3.0, 1e-4).noise_multiplier


def test_a_share_that_no_noise_reaches_is_named_as_the_start_s():
    with pytest.raises(InputError, match=r"budget_share: 1e-09 .* raise either"):
        StartPlan(num_examples=500, expected_samples=500).calibrated(1e-9, 1e-9)


def spend(number=1, client=0):
    return Spend(client, "round", number, Mechanism(1.0, 0.1, 5))


def charge(ledger, release):
    with ledger.held():
        ledger.append(release)


def test_a_ledger_reads_back_what_was_charged(tmp_path):
    ledger = PrivacyLedger(tmp_path / "privacy.jsonl")
    for number in (1, 2, 2):
        charge(ledger, spend(number))
    charge(ledger, spend(1, client=None))
    again = PrivacyLedger(tmp_path / "privacy.jsonl")
    assert again.spends == ledger.spends
    assert again.mechanisms(0) == [Mechanism(1.0, 0.1, 5)] * 3
    assert again.mechanisms(None) == [Mechanism(1.0, 0.1, 5)]


def test_a_charge_is_on_disk_when_it_returns(tmp_path):
    charge(PrivacyLedger(tmp_path / "privacy.jsonl"), spend())
    assert json.loads((tmp_path / "privacy.jsonl").read_text())["round"] == 1


def test_a_line_cut_off_by_a_kill_was_never_charged(tmp_path):
    path = tmp_path / "privacy.jsonl"
    charge(PrivacyLedger(path), spend())
    path.write_text(path.read_text() + '{"client": 0, "pha')
    ledger = PrivacyLedger(path)
    charge(ledger, spend(2))
    assert [s.round for s in PrivacyLedger(path).spends] == [1, 2]


def test_dropping_a_line_cut_off_never_writes_the_others_again(tmp_path, monkeypatch):
    path = tmp_path / "privacy.jsonl"
    charge(PrivacyLedger(path), spend())
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"client": 0, "pha')

    def killed(*_: object, **__: object) -> None:
        raise AssertionError("a kill within this write would have emptied the ledger")

    monkeypatch.setattr(Path, "write_text", killed)
    monkeypatch.setattr(Path, "write_bytes", killed)
    PrivacyLedger(path)
    assert path.read_bytes() == whole


def test_a_ledger_that_is_being_written_is_read_as_it_is(tmp_path):
    path = tmp_path / "privacy.jsonl"
    charge(PrivacyLedger(path), spend())
    torn = path.read_text() + '{"client": 0, "pha'
    path.write_text(torn)
    assert [s.round for s in read_spends(path)] == [1]
    assert path.read_text() == torn
    assert read_spends(tmp_path / "none.jsonl") == []


def test_a_ledger_that_cannot_be_read_is_refused(tmp_path):
    path = tmp_path / "privacy.jsonl"
    path.write_text("{}\n")
    with pytest.raises(InputError, match="cannot be read"):
        PrivacyLedger(path)


def test_nothing_passes_the_guard_beyond_the_budget(tmp_path):
    one = epsilon([Mechanism(1.0, 0.1, 5)], 1e-5)
    guard = Guard(PrivacyLedger(tmp_path / "privacy.jsonl"), 1e-5, one * 1.01)
    guard.charge(0, "round", 1, Mechanism(1.0, 0.1, 5))
    guard.charge(1, "round", 1, Mechanism(1.0, 0.1, 5))
    with pytest.raises(BudgetSpent, match="used up"):
        guard.charge(0, "round", 2, Mechanism(1.0, 0.1, 5))
    assert len(guard.ledger.spends) == 2
    assert guard.epsilon(0) == one
