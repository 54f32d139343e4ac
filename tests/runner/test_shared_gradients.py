"""unit: example with noise that clients share: a round is one step of SGD over all rows, as of one party that
has them; what it states, what it charges, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from private_world import PrivateWorld
from run_helpers import (
    changed,
    classification_config,
    main_status,
    metrics_of,
    rows,
    tiny_bert,
    write_config,
    write_data,
    write_rows,
)

from fedsb import RunConfig, run
from fedsb.config.checks import check_settings
from fedsb.errors import InputError, RunFailed
from fedsb.federation import wire
from fedsb.federation.dropout import without_dropout
from fedsb.federation.local_model import load_round
from fedsb.federation.private_sum import client_sum, clipped_sum
from fedsb.federation.secure import noise_shares
from fedsb.federation.secure.member import Member
from fedsb.federation.start.messages import pack_start, unpack_start
from fedsb.federation.training import ClientFailed
from fedsb.privacy.accounting import WHOLE_ORDERS
from fedsb.privacy.data_ledger import DataLedger, place_beside
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.ledger import LEDGER, read_spends
from fedsb.privacy.plan import ExamplePlan, Sharing
from fedsb.report.progress import Silent
from fedsb.runner import clients
from fedsb.runner.arguments import local_training, why_not_stacked
from fedsb.runner.audit import audit
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.prepare_data import check_can_deploy
from fedsb.runner.prepare_model import local_model_of
from fedsb.runner.prepared import prepare
from fedsb.runner.privacy_forecast import forecast
from fedsb.runner.round_zero import begin

pytestmark = pytest.mark.usefixtures("no_page")

RATE, SEED = 0.5, 7
PRIVATE = {"unit": "example", "noise": "shared", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.5}
NOISED = PRIVATE | {"epsilon": None, "noise_multiplier": 1.5}
REPEATED = NOISED | {"insecure_seed": SEED}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=60, test=12)
    owned = [row | {"patient": f"p{i % 20}"} for i, row in enumerate(rows(60, seed=1))]
    write_rows(folder / "data" / "owned.jsonl", owned)
    return folder


@pytest.fixture
def silent_noise(monkeypatch):
    monkeypatch.setattr(
        noise_shares, "discrete_gaussian", lambda count, std, stream: np.zeros(count, np.int64)
    )


def config_of(world, **changes):
    fixed = {
        "federation__rounds": 2,
        "federation__partition": {"kind": "dirichlet", "alpha": 1.0},
        "federation__secure_aggregation": {"threshold": 0.67},
        "method__init": {"kind": "weights", "head_warmup": None},
        "training__optimizer": "sgd",
        "training__epochs": RATE,
        "training__learning_rate": 2.0,
        "training__batch_size": 7,
        "evaluation__every": None,
        "privacy": NOISED,
    }
    return classification_config(world / "bert", world / "data", **fixed | changes)


def state_of(folder):
    return load_checkpoint(folder / "checkpoint").state.vector


# One step of SGD


def one_party(config, folder, *, momentum=0.0):
    """The numbers after all rounds if one party had all rows: row by row with plain autograd, each clipped by
    hand, in the same samples."""
    folder.mkdir()
    prepared = prepare(config, folder, Silent(), None, None)
    saved = begin(prepared)
    local_model = local_model_of(prepared.config, prepared.data, prepared.base, saved.factors)
    exchange, data, training = local_model.exchange, prepared.data, config.training
    down, vector, m, moved = exchange.down(exchange.rank), saved.state.vector.double(), 0.0, []
    for number in range(1, config.federation.rounds + 1):
        shared = down.unflatten(vector.float())
        parameters = load_round(local_model, shared, exchange.whole, round_number=number, seed=config.seed)
        total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
        for client, part in enumerate(data.parts):
            coins = Keystream.derived(str(SEED).encode(), "poisson", number, client, 0)
            for i, bits in zip(part, coins.read(len(part)), strict=True):
                if bits < RATE * 2.0**64:
                    for name, g in clipped(local_model, parameters, data.train[i], config).items():
                        total[name] += g
        factor = 1.0 if training.schedule == "constant" else 1 - (number - 1) / config.federation.rounds
        flat = torch.cat([total[name].flatten() for name, _ in exchange.up(number, exchange.whole).entries])
        step = -training.learning_rate * factor * flat / (RATE * len(data.train))
        m = momentum * m + step
        named = down.unflatten(vector.clone())
        at = 0
        for name, shape in exchange.up(number, exchange.whole).entries:
            size = named[name].numel()
            named[name] += m[at : at + size].view(shape)
            at += size
        vector = torch.cat([named[name].flatten() for name, _ in down.entries])
        moved.append(float(m.norm()))
    return vector, moved


def clipped(local_model, parameters, example, config):
    with without_dropout(local_model.model):
        loss = local_model.losses(local_model.model, local_model.collate([example])).sum()
        found = torch.autograd.grad(loss, list(parameters.values()))
    norm = torch.sqrt(sum((g.double() ** 2).sum() for g in found))
    scale = min(1.0, config.privacy.clip_norm / float(norm))
    return {name: g.double() * scale for name, g in zip(parameters, found, strict=True)}


@pytest.mark.parametrize(
    ("changes", "momentum"),
    [
        ({"method__name": "fedit", "federation__server": {"momentum": 0.5}}, 0.5),
        ({"method__name": "rolora", "training__schedule": "linear"}, 0.0),
    ],
)
def test_without_noise_it_is_sgd_of_one_party_with_all_rows(world, tmp_path, silent_noise, changes, momentum):
    config = RunConfig.from_dict(config_of(world, privacy=REPEATED, **changes))
    run(config, tmp_path / "run")
    expected, moved = one_party(config, tmp_path / "one", momentum=momentum)
    assert min(moved) > 0.05
    torch.testing.assert_close(state_of(tmp_path / "run").double(), expected, rtol=0, atol=2e-6)


def test_the_whole_run_s_noise_is_that_of_the_plan(world, tmp_path):
    """What a round moved with noise, less what it moved without: the sum's noise over the rows expected."""
    changes = {"federation__rounds": 1, "training__learning_rate": 1.0, "method__name": "fedit"}
    config = config_of(world, privacy=REPEATED, **changes)
    run(RunConfig.from_dict(config), tmp_path / "run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(noise_shares, "discrete_gaussian", lambda count, std, stream: np.zeros(count, int))
        run(RunConfig.from_dict(config), tmp_path / "silent")
    noise = (state_of(tmp_path / "run") - state_of(tmp_path / "silent")).double() * RATE * 60
    std = 1.5 * 0.5 * (3 / 2) ** 0.5  # of three, where two are counted on
    assert noise.numel() > 1000
    assert float(noise.std()) == pytest.approx(std, rel=4 / (2 * noise.numel()) ** 0.5)


@pytest.mark.parametrize("unit", ["example", "owner"])
def test_one_unit_moves_a_client_s_sum_by_at_most_the_clip_norm(world, unit):
    """In physical batches that its absence divides otherwise; at this clip norm every unit reaches it."""
    settings = {"owner": "patient"} if unit == "owner" else {}
    rows_of = str(world / "data" / "owned.jsonl")
    told = config_of(world, data__train=rows_of, federation__clients=2, privacy=NOISED | settings)
    here = PrivateWorld(changed(told, federation__partition={"kind": "by-column", "column": "patient"}))
    examples, training = here.data.train[:21], replace(local_training(here.config), batch_size=4)
    parameters = load_round(
        here.local_model, here.shared, here.local_model.exchange.whole, round_number=1, seed=0
    )

    def total(of):
        owners = len({e["owner"] for e in of}) if unit == "owner" else None
        plan = ExamplePlan(
            num_examples=len(of), expected_batch_size=9, steps_per_round=1, rounds=1, clip_norm=0.05,
            owners=owners, sharing=Sharing(rate=1.0, fewest=2, cohort=2),
        )  # fmt: skip
        (batch,) = plan.batches(Keystream.fresh())
        found = clipped_sum(here.local_model, parameters, of, training, plan, batch)
        return torch.cat([value.flatten() for value in found.values()])

    everything = total(examples)
    for left_out in (0, 8, 20):
        who = examples[left_out].get("owner")
        rest = [e for i, e in enumerate(examples) if (i != left_out if who is None else e["owner"] != who)]
        assert 0.049 < float((everything - total(rest)).norm()) <= 0.05 * (1 + 1e-4)


# What is charged and said


def test_it_charges_each_client_with_the_sampled_sum_and_says_who_is_trusted(world, tmp_path):
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    ledger = tmp_path / "all.jsonl"
    config = config_of(world, privacy=PRIVATE | {"honest": 0.9, "ledger": str(ledger)})
    facts = run(RunConfig.from_dict(config), tmp_path / "run").summary["privacy"]
    noise = facts["noise_multiplier"]
    accountant = RdpAccountant(WHOLE_ORDERS)
    accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(RATE, GaussianDpEvent(noise)), 2))
    assert facts["epsilon"] == pytest.approx(accountant.get_epsilon(1e-3), rel=1e-9)
    assert 7.9 < facts["epsilon"] == facts["epsilon_rdp"] <= 8
    assert (facts["fewest_honest"], facts["cohort"], facts["sampling"]) == (3, 3, "Poisson")
    spends = read_spends(tmp_path / "run" / LEDGER)
    assert [s.client for s in spends] == [0, 1, 2, 0, 1, 2]
    assert {s.mechanism for s in spends} == {(noise, RATE, 1, True)}
    assert len(DataLedger(place_beside(ledger)).charges()) == 6
    for said in (
        "differ in one training example of that client",
        "coin of probability 0.5",
        "No server is trusted with one client's sum. Trusted: that 3 clients or more of each sum",
        "Whoever had one client's sum without its masks would face a share alone, 0.577 of the noise",
        "Renyi DP",
    ):
        assert said in facts["statement"]
    assert [line["train_loss"] for line in metrics_of(tmp_path / "run")] == [None] * 3


def test_the_noise_of_a_mean_falls_with_the_root_of_the_clients(world):
    """Clients that each add all of theirs at the same rate have that much more beside what they learn."""
    shared = forecast(RunConfig.from_dict(config_of(world)), [20, 20, 20], 100)
    each = config_of(world, privacy=NOISED | {"noise": "each"}, training__batch_size=10)
    alone = forecast(RunConfig.from_dict(each), [20, 20, 20], 100)
    assert shared.batch == 3 * alone.batch == 30
    assert (shared.steps, shared.parties) == (2, 1)
    assert shared.signal_to_noise / alone.signal_to_noise == pytest.approx(3**0.5)


def test_owners_are_drawn_and_clipped_as_one(world, tmp_path):
    config = config_of(
        world,
        data__train=str(world / "data" / "owned.jsonl"),
        federation__partition={"kind": "by-column", "column": "patient"},
        privacy=NOISED | {"owner": "patient"},
        federation__rounds=1,
    )
    facts = run(RunConfig.from_dict(config), tmp_path / "run").summary["privacy"]
    assert facts["unit"] == "owner"
    assert "all examples of one owner (column patient)" in facts["statement"]
    assert "summed over all its examples, was clipped" in facts["statement"]


def test_a_dropout_beyond_the_plan_stops_the_round_and_what_was_looked_at_stays_charged(
    world, tmp_path, monkeypatch
):
    config = RunConfig.from_dict(config_of(world, privacy=NOISED | {"honest": 1.0}))
    original = clients.client_sum

    def failing(broadcast, *arguments, client, **more):
        if wire.header_of(broadcast).round == 2 and client == 1:
            raise ClientFailed("away")
        return original(broadcast, *arguments, client=client, **more)

    monkeypatch.setattr(clients, "client_sum", failing)
    with pytest.raises(RunFailed, match=r"round 2: 2 of 3 clients sent their numbers, .* needs 3 .*away"):
        run(config, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run/checkpoint").state.round == 1
    spends = read_spends(tmp_path / "run" / LEDGER)
    assert [s.client for s in spends if s.round == 2] == [0, 2]


def test_a_round_that_is_asked_again_is_another_sample_and_charged_again(world, tmp_path, monkeypatch):
    original, drawn = Member.shares, list[tuple[int, bytes]]()

    def worthless(member, question):
        facts, tensors = unpack_start(original(member, question))
        if member.client == 1:
            tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        return pack_start(facts, tensors)

    def noted(broadcast, *arguments, client, coins, **more):
        drawn.append((client, coins.read(8).tobytes()))
        return client_sum(broadcast, *arguments, client=client, coins=coins, **more)

    monkeypatch.setattr(Member, "shares", worthless)
    monkeypatch.setattr(clients, "client_sum", noted)
    run(RunConfig.from_dict(config_of(world, federation__rounds=1)), tmp_path / "run")
    assert metrics_of(tmp_path / "run")[1]["clients"] == [0, 2]
    assert [s.client for s in read_spends(tmp_path / "run" / LEDGER)] == [0, 1, 2, 0, 2]
    assert [client for client, _ in drawn] == [0, 1, 2, 0, 2]
    assert len({coins for _, coins in drawn}) == 5


# What is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"federation__secure_aggregation": None}, "privacy.noise: shared is added under the masks"),
        ({"training__optimizer": "adamw"}, "set training.optimizer: sgd"),
        ({"training__momentum": 0.9}, "set federation.server.momentum"),
        ({"training__weight_decay": 0.1}, "training.weight_decay: with"),
        ({"training__epochs": 2}, "expected at most 1, found 2"),
        ({"training__accumulation": 4}, "training.accumulation: with"),
        ({"federation__proximal": 0.1}, "federation.proximal: with"),
        ({"federation__weighting": "uniform"}, "every row weighs the same"),
        ({"method__name": "fedsa-lora"}, "method.name: fedsa-lora: what stays"),
        ({"method__name": "la-lora"}, "and la-lora sends something else; take one of fed-sb, fedit"),
        ({"method__name": "flora"}, "needs more of its clients' updates than their sum"),
        ({"method__personal": True}, "method.personal: what stays"),
        ({"method__init": {"private": True, "head_warmup": None}}, "method.init.private: each client"),
        ({"privacy": PRIVATE | {"mechanism": "banded"}}, "privacy.mechanism: with"),
        ({"privacy": PRIVATE | {"clip_norm": "auto"}}, "privacy.quantile: with"),
        ({"privacy": PRIVATE | {"noise": "each", "honest": 0.9}}, "privacy.honest: clients share"),
        (
            {"privacy": PRIVATE | {"unit": "client", "noise": "each"}, "federation__weighting": "uniform"},
            "privacy.noise: each: with privacy.unit: client",
        ),
        (
            {"federation__robust": {"average": "median"}, "federation__weighting": "uniform"},
            "federation.robust: a median",
        ),
    ],
)
def test_what_is_no_sum_of_gradients_is_refused(world, changes, said):
    with pytest.raises(InputError) as refused:
        check_settings(RunConfig.from_dict(config_of(world, **changes)))
    assert said in str(refused.value)
    assert ("config:" not in str(refused.value)) or "robust" in said


def test_each_client_may_still_add_all_its_noise(world):
    for noise in ("each", None):
        config = RunConfig.from_dict(config_of(world, privacy=PRIVATE | {"noise": noise}))
        check_settings(config)
        assert not config.shares_noise
    client = {"privacy": PRIVATE | {"unit": "client"}, "federation__weighting": "uniform"}
    config = RunConfig.from_dict(config_of(world, **client, training__optimizer="adamw"))
    check_settings(config)
    assert config.shares_noise
    assert not config.sums_gradients


def test_clients_that_give_sums_are_not_stacked(world):
    stacked = {"federation__engine": {"kind": "stacked"}}
    shared, each = (
        RunConfig.from_dict(config_of(world, privacy=PRIVATE | {"noise": noise}, **stacked))
        for noise in ("shared", "each")
    )
    assert str(why_not_stacked(shared)).startswith("privacy.noise shared")
    assert why_not_stacked(each) is None


def test_an_audit_is_refused(world, tmp_path):
    with pytest.raises(InputError, match=r"not what clients share; it is not for this run"):
        audit(RunConfig.from_dict(config_of(world)))


def test_over_the_network_delta_is_named(world):
    told = config_of(world, task__labels=["pos", "neg", "flat"], privacy=PRIVATE | {"delta": None})
    with pytest.raises(InputError, match=r"privacy.delta: name it beside privacy.noise: shared"):
        check_can_deploy(RunConfig.from_dict(told))
    check_can_deploy(RunConfig.from_dict(changed(told, privacy__delta=1e-3)))


def test_bad_input_is_one_message_and_exit_2(world, tmp_path, monkeypatch, capsys):
    file = write_config(tmp_path / "run.yaml", config_of(world))
    setting = ("-s", "training.epochs=3")
    assert main_status(monkeypatch, "run", file, *setting, "--out", tmp_path / "run") == 2
    told = " ".join("".join(capsys.readouterr()).split())
    assert "training.epochs: with privacy.noise: shared a round is one step" in told
    assert "Traceback" not in told
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
