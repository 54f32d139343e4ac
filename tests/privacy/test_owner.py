"""All rows of one owner as the unit: what they can do to a sum, who is refused, and what is said."""

import json

import numpy as np
import pytest
import torch
from private_world import PrivateWorld
from run_helpers import classification_config, rows, tiny_bert, write_data, write_rows
from scipy.optimize import brentq
from scipy.stats import binom, norm

from fedsb import RunConfig, run
from fedsb.config.checks import check_settings
from fedsb.config.privacy_checks import check_delta
from fedsb.errors import InputError
from fedsb.methods import ALL
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.privacy.data_ledger import DataLedger, place_beside
from fedsb.privacy.groups import group_epsilon
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.plan import ExamplePlan
from fedsb.runner.prepare_data import prepare_data
from fedsb.tasks.owners import count_owners, owner_like, owner_numbers

CLIP_NORM = 0.05
"""Less than any owner's summed gradient here: every one is clipped."""
ROUNDING = 1e-3
PRIVATE = {"unit": "example", "owner": "patient", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.5}
NOISED = {**PRIVATE, "epsilon": None, "noise_multiplier": 2.0}


def owned(count, *, each=4, seed=1):
    """Rows of so many a patient on average, one of them with half of all."""
    made = rows(count, seed=seed)
    most = count // 2
    return [row | {"patient": "p0" if i < most else f"p{1 + i // each}"} for i, row in enumerate(made)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("owners")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=24, test=6)
    write_rows(folder / "data" / "train.jsonl", owned(24))
    return folder


def config_of(folder, **changes):
    fixed = {
        "federation__clients": 1,
        "federation__rounds": 1,
        "method__init": {"kind": "orthonormal"},
        "training__max_length": 32,
        "privacy": PRIVATE,
    }
    return classification_config(folder / "bert", folder / "data", **fixed | changes)


# What the rows of one owner can do


@pytest.mark.parametrize("name", [m.name for m in ALL if m.experts is None and not m.stays])
def test_all_rows_of_an_owner_move_the_sum_by_at_most_one_clip_norm(folder, name):
    """With half of all rows of one owner put in, taken out, and given other labels, in physical batches."""
    world = PrivateWorld(config_of(folder, method__name=name))
    examples, first = world.data.train, world.data.train[0]["owner"]
    others = [example for example in examples if example["owner"] != first]
    assert len(others) < 0.6 * len(examples)
    relabelled = [e | {"labels": (e["labels"] + 1) % 3} if e["owner"] == first else e for e in examples]
    for number in (1, 2):  # some methods alternate
        released = [
            world.clipped_sum(these, CLIP_NORM, number=number, batch_size=5)
            for these in (examples, others, relabelled)
        ]
        assert released[1].norm() > 2 * CLIP_NORM, "a sum that nothing can move"
        assert 0.9 < float((released[0] - released[1]).norm()) / CLIP_NORM <= 1 + ROUNDING
        assert float((released[2] - released[1]).norm()) / CLIP_NORM <= 1 + ROUNDING


def test_this_test_sees_owners_that_are_clipped_row_by_row(folder):
    world = PrivateWorld(config_of(folder))
    plain = [{k: v for k, v in e.items() if k != "owner"} for e in world.data.train]
    others = [p for p, e in zip(plain, world.data.train, strict=True) if e["owner"] != 0]
    moved = world.clipped_sum(plain, CLIP_NORM) - world.clipped_sum(others, CLIP_NORM)
    assert float(moved.norm()) > 1.5 * CLIP_NORM


def test_an_owner_s_gradient_is_the_sum_over_its_rows_whatever_the_physical_batches(folder):
    world = PrivateWorld(config_of(folder))
    unclipped = {size: world.clipped_sum(world.data.train, 1e9, batch_size=size) for size in (3, 24)}
    plain = [{k: v for k, v in e.items() if k != "owner"} for e in world.data.train]
    for total in unclipped.values():
        torch.testing.assert_close(total, world.clipped_sum(plain, 1e9), rtol=1e-4, atol=1e-5)


def test_owners_are_drawn_whole_and_counted_as_rows_are():
    """As many rows in a batch on average as without owners, by one coin for each owner."""
    plan = ExamplePlan(
        num_examples=1000, expected_batch_size=50, steps_per_round=4000, rounds=1, clip_norm=1.0, owners=200
    )
    batches = list(plan.batches(Keystream(bytes(32))))
    sizes = np.array([len(batch) for batch in batches])
    assert max(max(batch) for batch in batches if batch) == 199
    assert sizes.mean() == pytest.approx(plan.expected_units, rel=0.02)
    assert plan.expected_units == 10
    assert plan.round == Mechanism(0.0, 0.05, 4000)


def test_delta_is_measured_by_owners(folder):
    config = RunConfig.from_dict(config_of(folder, privacy=PRIVATE | {"delta": None}))
    assert check_delta(config, [20_000, 40_000]) == pytest.approx(5e-6)
    with pytest.raises(InputError, match=r"1 / 7 .the owners of the smallest client"):
        check_delta(RunConfig.from_dict(config_of(folder, privacy=PRIVATE | {"delta": 0.2})), [7, 90])


def test_a_run_says_what_it_protects(folder, tmp_path):
    ledger = tmp_path / "all.jsonl"
    config = config_of(folder, privacy=NOISED | {"ledger": str(ledger)}, training__batch_size=4)
    facts = run(RunConfig.from_dict(config), tmp_path / "run").summary["privacy"]
    assert facts["unit"] == "owner"
    assert facts["units"] == len({row["patient"] for row in owned(24)})
    assert "all examples of one owner (column patient) at that client" in facts["statement"]
    assert "No owner has examples at several clients: that was checked." in facts["statement"]
    assert "how many examples and owners each client has" in facts["statement"]
    assert "per owner" in (tmp_path / "run/report.html").read_text()
    assert json.loads((tmp_path / "run/partition.json").read_text())["owners"] == {"0": facts["units"]}
    assert {charge.unit for charge in DataLedger(place_beside(ledger)).charges()} == {"owner (patient)"}
    plain = config_of(folder, privacy={**NOISED, "owner": None, "ledger": str(ledger)})
    with pytest.raises(InputError, match=r"about every owner \(patient\)"):
        run(RunConfig.from_dict(plain), tmp_path / "other")


# Refusals


def test_rows_without_an_owner_are_named_and_not_shown(folder, tmp_path):
    made = owned(24)
    made[3]["patient"], made[7]["patient"], made[8]["patient"] = None, "  ", None
    write_data(tmp_path, train=1, test=2)
    write_rows(tmp_path / "train.jsonl", made)
    config = RunConfig.from_dict(config_of(folder, data__train=str(tmp_path / "train.jsonl")))
    with pytest.raises(InputError, match="3 of 24 rows have no value in the column 'patient'") as caught:
        prepare_data(config)
    text = str(caught.value)
    assert [f"row {n}" in text for n in (4, 8, 9)] == [True] * 3
    assert "p0" not in text
    assert not any(row["text"] in text for row in made)


def test_owners_at_several_clients_are_refused_and_dealt_whole(folder):
    dealt = {"federation__clients": 2, "federation__partition": {"kind": "iid"}}
    with pytest.raises(InputError, match=r"of 4 owners have rows at several clients.*kind: by-column"):
        prepare_data(RunConfig.from_dict(config_of(folder, **dealt)))
    whole = {"kind": "by-column", "column": "patient"}
    data = prepare_data(RunConfig.from_dict(config_of(folder, **dealt | {"federation__partition": whole})))
    assert sum(data.owners) == 4
    assert count_owners([0, 0, 1], [[0, 1], [2]]) == [1, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"method__init": {"kind": "gradient", "private": True}},
            "method.init.private: its noise covers single",
        ),
        (
            {"evaluation__at_clients": True, "privacy": PRIVATE | {"score_noise_multiplier": 4.0}},
            "evaluation.at_clients: the noise on counts covers single rows",
        ),
        ({"data__group": "site", "data__test": 0.2}, "data.group: the rows of one owner stay"),
    ],
    ids=["start", "scores", "group"],
)
def test_what_covers_rows_alone_is_refused(folder, changes, said):
    with pytest.raises(InputError, match=said):
        check_settings(RunConfig.from_dict(config_of(folder, **changes)))


def test_whole_clients_have_no_owners(folder):
    with pytest.raises(InputError, match="owner is about the rows of a client"):
        RunConfig.from_dict(config_of(folder, privacy=PRIVATE | {"unit": "client"}))


def test_test_rows_are_other_owners(folder):
    data = prepare_data(RunConfig.from_dict(config_of(folder, data__test=0.3)))
    assert data.split is not None
    made = owned(24)
    sides = [{made[i]["patient"] for i in side} for side in data.split]
    assert not sides[0] & sides[1]


def test_public_rows_of_a_protected_owner_are_refused(folder, tmp_path):
    public = [row | {"text": "other words here"} for row in owned(24, seed=5)[:2]]
    write_rows(tmp_path / "public.jsonl", public)
    init = {"kind": "gradient", "public": str(tmp_path / "public.jsonl")}
    with pytest.raises(InputError, match=r"1 owners .patient. .* have training rows, too"):
        prepare_data(RunConfig.from_dict(config_of(folder, method__init=init)))


# Rows of one person where rows are the unit


def test_a_column_that_repeats_looks_like_an_owner():
    made = [{"text": f"a long text {i}", "label": i % 2, "pid": f"n{i // 4}", "when": i} for i in range(60)]
    assert owner_like(made, ["text", "label"]) == "pid"
    assert owner_like([row | {"pid": "one"} for row in made], ["text", "label"]) is None
    assert owner_like([row | {"pid": f"n{row['when']}"} for row in made], ["text", "label"]) is None
    assert owner_like(made, ["text", "label", "pid"]) is None
    assert owner_numbers(made, "pid", "rows")[:6] == [0, 0, 0, 0, 1, 1]


def test_the_report_says_what_a_person_with_several_rows_has(folder, tmp_path):
    write_data(tmp_path / "data", train=1, test=3)
    made = [row | {"pid": i // 2} for i, row in enumerate(rows(24, seed=1))]
    file = write_rows(tmp_path / "data/train.jsonl", made)
    privacy = {**NOISED, "owner": None}
    config = config_of(folder, privacy=privacy, data__train=str(file), training__batch_size=2)
    facts = run(RunConfig.from_dict(config), tmp_path / "run").summary["privacy"]
    assert facts["owner_like"] == "pid"
    assert facts["epsilon"] < facts["groups"]["5"] < facts["groups"]["10"]
    assert "The column pid has values that repeat" in facts["statement"]
    assert "a person with 5 examples epsilon = " in (tmp_path / "run/report.html").read_text()


def exact_group_epsilon(noise, q, size, delta):
    """One step by integration over the density, the slow and obvious way."""
    x = np.linspace(-9 * noise, size + 9 * noise, 20_001)
    chances = binom.pmf(np.arange(size + 1), size, q)
    mixed, without = norm.pdf(x[:, None], np.arange(size + 1), noise) @ chances, norm.pdf(x, 0, noise)

    def beyond(eps):
        pairs = ((mixed, without), (without, mixed))
        return max(np.trapezoid(np.maximum(0.0, p - np.exp(eps) * q), x) for p, q in pairs)

    return brentq(lambda eps: beyond(eps) - delta, 0.01, 60, xtol=1e-4)


@pytest.mark.parametrize(("noise", "q", "size"), [(1.0, 0.1, 3), (1.5, 0.3, 5), (2.0, 1.0, 2)])
def test_group_epsilon_is_that_of_the_densities(noise, q, size):
    exact = exact_group_epsilon(noise, q, size, 1e-3)
    found = group_epsilon([Mechanism(noise, q, 1)], 1e-3, size, grid=0.02)
    assert exact - 1e-3 <= found <= exact + 0.03


def test_a_group_of_one_is_one_and_of_several_less_than_by_multiplying():
    """The figures of 59,000 phrases, 35 steps of 256, at epsilon 3."""
    mechanism = Mechanism(0.5352377, 256 / 59_000, 35)
    assert group_epsilon([Mechanism(1.0, 0.1, 20)], 1e-4, 1) == pytest.approx(
        epsilon([Mechanism(1.0, 0.1, 20)], 1e-4), rel=0.01
    )
    assert group_epsilon([mechanism], 1e-5, 5, grid=0.1) == pytest.approx(9.9, abs=0.1)
    assert group_epsilon([], 1e-5, 5) == 0.0
