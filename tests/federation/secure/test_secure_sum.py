"""Secure sums against the plain weighted mean: sizes, weights, clients lost at every stage."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fedsb.errors import RunFailed
from fedsb.federation.secure.fixed_point import FixedPoint
from fedsb.federation.secure.here import Here
from fedsb.federation.secure.server import SecureSum, new_terms
from fedsb.federation.secure.summands import Summand
from fedsb.federation.secure.terms import Rules, clients_needed
from fedsb.federation.server import Failed

QUESTION = bytes(200_000)
RULES = Rules("a run", 0.67, 8.0)


class Clients:
    """Simulated clients; `gone`: stage -> who does not answer it."""

    def __init__(self, summands, coding, *, rules=RULES, gone=None):
        self.summands, self.gone, self.seen = summands, gone or {}, []
        heaviest = max(s.weight for s in summands.values())
        self.here = Here(rules, self.work, lambda client, summand: summand.integers(coding, heaviest), coding)
        self.terms = new_terms("train", 1, summands, heaviest)
        size = next(iter(summands.values())).values.numel()
        self.sum = SecureSum(self.ask, self.terms, rules, QUESTION, coding, size)

    def work(self, clients, question_to):
        for client in clients:
            assert question_to(client) == QUESTION
            yield client, self.summands[client]

    def ask(self, kind, clients, message_to) -> Iterator:
        gone = self.gone.get(kind, ())
        for client in gone:
            if client in clients:
                yield Failed(client, f"gone before {kind}")
        for outcome in self.here(kind, [c for c in clients if c not in gone], message_to):
            self.seen.append((kind, outcome))
            yield outcome


def drawn(rng, clients, size, largest=8.0):
    return {
        int(c): Summand(
            torch.from_numpy(rng.uniform(-largest, largest, size)).float(),
            int(rng.integers(1, 70_000)),
            float(rng.uniform(0, 5)),
        )
        for c in clients
    }


def check(total, summands, coding):
    """Values, weight and loss are those of the clients in the sum, to half a step for each of them, and to
    fp64's rounding."""
    chosen, heaviest = [summands[c] for c in total.clients], max(s.weight for s in summands.values())
    plain = sum(s.weight / heaviest * s.values.double() for s in chosen)
    assert float((total.values - plain).abs().max()) <= len(chosen) * (
        coding.step / 2 + coding.largest * 2**-51
    )
    assert total.weight == sum(s.weight for s in chosen)
    loss = sum(s.weight * s.loss for s in chosen)
    assert total.loss == pytest.approx(loss, abs=heaviest * 1e3 * len(summands) ** 2 * 2 / 2**coding.bits)


@pytest.mark.parametrize("seed", range(12))
def test_a_secure_sum_is_the_plain_one_whoever_is_lost_at_which_stage(seed):
    rng = np.random.default_rng(seed)
    count, size = int(rng.integers(2, 12)), int(rng.integers(1, 40))
    clients = np.sort(rng.choice(1000, count, replace=False))
    summands = drawn(rng, clients, size)
    coding = FixedPoint([32, 64][seed % 2], 8.0, count)
    may_go = count - RULES.needed(count, count)
    gone: dict[str, list[int]] = {"keys": [], "shares": [], "train": [], "unmask": []}
    for client in rng.choice(clients, may_go, replace=False):
        gone[str(rng.choice(list(gone)))].append(int(client))
    total = Clients(summands, coding, gone=gone).sum.total()
    before = {c for stage in ("keys", "shares", "train") for c in gone[stage]}
    assert total.clients == sorted(set(summands) - before)
    assert set(total.lost) == {c for stage in gone.values() for c in stage}
    check(total, summands, coding)


def test_of_a_large_cohort_each_shares_masks_with_some():
    rng = np.random.default_rng(3)
    summands, coding = drawn(rng, range(60), 7), FixedPoint(32, 8.0, 60)
    clients = Clients(summands, coding, gone={"train": [5, 6, 7, 50], "unmask": [9, 30]})
    check(clients.sum.total(), summands, coding)
    (sealed,) = {len(o.message) for kind, o in clients.seen if kind == "shares"}
    assert sealed < 60 * 82


@pytest.mark.parametrize("stage", ["keys", "shares", "train", "unmask"])
def test_with_fewer_clients_than_the_threshold_there_is_no_sum(stage):
    summands, coding = drawn(np.random.default_rng(0), range(5), 4), FixedPoint(32, 8.0, 5)
    clients = Clients(summands, coding, gone={stage: [0, 3, 4]})
    assert clients_needed(clients.terms, RULES) == 3
    with pytest.raises(RunFailed, match=r"of 5 clients .*needs 3 .*gone before.*resume"):
        clients.sum.total()


def test_what_lies_beyond_the_range_is_cut_and_the_sum_never_wraps_around():
    coding = FixedPoint(32, 8.0, 3)
    summands = {c: Summand(torch.tensor([1e9, -1e9, 3.0])) for c in range(3)}
    assert Clients(summands, coding).sum.total().values.tolist() == pytest.approx([24, -24, 9], abs=1e-6)


def test_a_step_is_the_range_times_the_clients_over_half_the_integers():
    assert FixedPoint(32, 8.0, 25).step == pytest.approx(8 * 25 / 2**31, rel=1e-6)
