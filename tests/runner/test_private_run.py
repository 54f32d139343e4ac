"""Whole private runs: every method, both units, every start, a budget that runs out, kills and refusals."""

import json

import pytest
import torch
from run_helpers import (
    adapter_bytes,
    causal_config,
    changed,
    classification_config,
    main_status,
    metrics_of,
    tiny_bert,
    tiny_llama,
    write_config,
    write_data,
)
from torch import nn

from fedsb import RunConfig, run
from fedsb.methods import ALL, by_name
from fedsb.models import load_base
from fedsb.privacy import plan
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.runner.client_privacy import secret_cohort, server_release
from fedsb.runner.example_privacy import private_start
from fedsb.runner.prepare_privacy import prepare_privacy

EXAMPLE = {"unit": "example", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.5}
CLIENT = {"unit": "client", "epsilon": 8.0, "delta": 1e-2, "clip_norm": 0.5}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    tiny_bert(folder / "bert")
    tiny_llama(folder / "llama")
    write_data(folder / "data", train=90, test=12)
    return folder


def private_config(world, *, privacy=EXAMPLE, **changes):
    few = {"federation__rounds": 2, "method__init": {"kind": "weights"}, "privacy": privacy}
    return classification_config(world / "bert", world / "data", **few | changes)


def do(config, out):
    return run(RunConfig.from_dict(config), out)


@pytest.mark.parametrize("name", [m.name for m in ALL if not m.stays])
def test_every_method_trains_privately_within_its_budget(world, tmp_path, name):
    config = private_config(world, method__name=name)
    if by_name(name).experts is not None:
        config["method"]["experts"] = {"start": "zero", "hard_rounds": 1}
        config["federation"]["client_experts"] = [0, 1, 1]
    summary = do(config, tmp_path / "run").summary
    facts = summary["privacy"]
    assert facts["private"]
    assert 7.0 < facts["epsilon"] <= 8.0
    assert {of["steps"] for of in facts["per_client"].values()} == {2 * 3}
    records = metrics_of(tmp_path / "run")
    assert [r["epsilon"] for r in records] == sorted(r["epsilon"] for r in records)
    assert records[-1]["epsilon"] == facts["epsilon"]
    assert all(r["train_loss"] is None for r in records), "a loss of private rows left without noise"


def test_epsilon_is_that_of_the_ledger_recomputed_by_hand(world, tmp_path):
    facts = do(private_config(world), tmp_path / "run").summary["privacy"]
    lines = [json.loads(line) for line in (tmp_path / "run/privacy.jsonl").read_text().splitlines()]
    assert [(line["client"], line["round"]) for line in lines] == [(c, n) for n in (1, 2) for c in range(3)]
    charged = [Mechanism(**line["mechanism"]) for line in lines if line["client"] == 0]
    assert charged == [Mechanism(facts["noise_multiplier"], 10 / 30, 3)] * 2
    assert facts["per_client"]["0"]["epsilon"] == epsilon(charged, 1e-3)
    assert str(facts["delta"]) in facts["statement"]
    assert "with at most epsilon = " in facts["statement"]


def test_a_decoder_trains_privately(world, tmp_path):
    config = causal_config(
        world / "llama", world / "data", method__init={"kind": "orthonormal"}, privacy=EXAMPLE
    )
    assert do(config, tmp_path / "run").summary["privacy"]["epsilon"] <= 8.0


def test_gradient_checkpointing_and_a_bfloat16_base_work(world, tmp_path):
    config = private_config(
        world, model__dtype="bfloat16", training__gradient_checkpointing=True, training__accumulation=2
    )
    facts = do(config, tmp_path / "run").summary["privacy"]
    assert facts["per_client"]["0"]["sampling_probability"] == pytest.approx(20 / 30)
    assert facts["epsilon"] <= 8.0


def test_a_private_start_pays_its_share_and_moves_no_raw_gradient(world, tmp_path):
    init = {"kind": "gradient", "private": True, "budget_share": 0.25, "samples": 45}
    summary = do(private_config(world, method__init=init), tmp_path / "run").summary
    facts = summary["privacy"]["per_client"]["1"]
    assert 0.9 * 2.0 < facts["epsilon_start"] <= 2.0
    assert facts["epsilon"] <= 8.0 < facts["epsilon_start"] + facts["epsilon_rounds"]
    assert "and the initialization" in summary["privacy"]["statement"]
    sent = [entry["what"] for entry in summary["communication"]["one_time"]]
    assert sent == ["noised sums of clipped gradients", "bases B and A"]
    assert summary["initialization"]["samples"] == {}


def test_a_public_file_gives_bases_and_a_warm_head_for_nothing(world, tmp_path):
    init = {"kind": "gradient", "public": str(world / "data/test.jsonl"), "samples": 12}
    config = private_config(world, method__init=init)
    summary = do(config, tmp_path / "run").summary
    assert summary["privacy"]["per_client"]["0"]["epsilon_start"] == 0
    assert [entry["what"] for entry in summary["communication"]["one_time"]] == ["bases B and A"]
    assert RunConfig.from_yaml(tmp_path / "run/config.yaml").method.init.head_warmup is not None


def test_without_public_rows_there_is_no_warm_up(world):
    config = RunConfig.from_dict(private_config(world))
    assert config.method.init.head_warmup is None
    assert RunConfig.from_dict(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", [m.name for m in ALL if m.averages and not m.stays])
def test_client_level_privacy_for_every_method_that_averages(world, tmp_path, name):
    config = private_config(
        world,
        privacy=CLIENT | {"quantile": 0.5},
        method__name=name,
        federation__clients=9,
        federation__clients_per_round=3,
        federation__weighting="uniform",
        federation__rounds=3,
    )
    facts = do(config, tmp_path / "run").summary["privacy"]
    assert list(facts["per_client"]) == ["all"]
    assert 7.0 < facts["epsilon"] <= 8.0
    assert facts["per_client"]["all"]["steps"] == 3
    records = metrics_of(tmp_path / "run")
    assert all(r["train_loss"] is None for r in records)
    assert len({r["clip_norm"] for r in records[1:]}) == 3


def test_a_used_up_budget_stops_the_run(world, tmp_path):
    mechanism = Mechanism(2.0, 10 / 30, 3)
    two_rounds = epsilon([mechanism] * 2, 1e-3)
    privacy = EXAMPLE | {"epsilon": two_rounds * 1.01, "noise_multiplier": 2.0}
    config = private_config(world, privacy=privacy, federation__rounds=5, evaluation={"every": 5})
    summary = do(config, tmp_path / "run").summary
    assert summary["rounds"] == 2
    assert summary["privacy"]["stopped_early"]
    assert summary["privacy"]["epsilon"] == two_rounds
    assert summary["final"]["accuracy"] >= 0
    assert metrics_of(tmp_path / "run")[-1]["eval"]


class Killed(BaseException):
    """As good as SIGKILL: nothing in a run catches it."""


def test_kill_and_resume_pays_again_and_draws_new_noise(world, tmp_path, monkeypatch):
    """Killed after two clients of round 2 were charged: their round is charged twice."""
    from fedsb.runner import clients as party

    config = private_config(world, privacy=EXAMPLE | {"noise_multiplier": 2.0, "epsilon": 50.0})
    answers, real = [], party.client_update

    def watched(message, *arguments, **more):
        if len(answers) == 5:
            raise Killed
        answers.append(real(message, *arguments, **more))
        return answers[-1]

    monkeypatch.setattr(party, "client_update", watched)
    with pytest.raises(Killed):
        do(config, tmp_path / "run")
    killed = list(answers)
    monkeypatch.setattr(party, "client_update", lambda *a, **m: answers.append(real(*a, **m)) or answers[-1])
    answers.clear()
    summary = run(RunConfig.from_dict(config), tmp_path / "run", resume=True).summary
    assert len(answers) == 3, "round 2 again"
    assert answers[0] != killed[3], "the same noise twice"
    steps = {client: of["steps"] for client, of in summary["privacy"]["per_client"].items()}
    assert steps == {"0": 9, "1": 9, "2": 6}
    assert summary["privacy"]["epsilon"] == epsilon([Mechanism(2.0, 10 / 30, 9)], 1e-3)
    assert metrics_of(tmp_path / "run")[-1]["epsilon"] == summary["privacy"]["epsilon"]


def test_a_repeated_round_has_other_batches(world, tmp_path, monkeypatch):
    """Composed as independent samples, they must be: one batch with half the noise energy tells more."""
    from fedsb.runner import clients as party

    fixed = {"noise_multiplier": 2.0, "epsilon": 50.0, "insecure_seed": 1}
    config = private_config(world, privacy=EXAMPLE | fixed)
    batches, rounds, poisson = [], [], plan.cyclic_batches

    def drawn(*arguments):
        batches.append(list(poisson(*arguments)))
        return batches[-1]

    def until_killed(*arguments, **more):
        rounds.append(1)
        if len(rounds) == 5:
            raise Killed
        return client_update(*arguments, **more)

    client_update = party.client_update
    monkeypatch.setattr(plan, "cyclic_batches", drawn)
    monkeypatch.setattr(party, "client_update", until_killed)
    with pytest.raises(Killed):
        do(config, tmp_path / "run")
    run(RunConfig.from_dict(config), tmp_path / "run", resume=True)
    monkeypatch.setattr(party, "client_update", client_update)
    do(config, tmp_path / "whole")
    before, after, whole = batches[:4], batches[4:7], batches[7:]
    assert before == whole[:4], "streams of a fixed seed repeat"
    assert after[0] != before[3], "client 0 had been charged for round 2"
    assert after[1:] == whole[4:], "the others had not"


def test_what_was_charged_is_sampled_again(world, tmp_path):
    """The cohort of a repeated round, and the sample behind bases that are made a second time."""
    config = private_config(world, privacy=CLIENT, federation__clients=40, federation__clients_per_round=10)
    private = prepare_privacy(RunConfig.from_dict(config), dict.fromkeys(range(40), 2), tmp_path)
    first = secret_cohort(private, 1)
    assert secret_cohort(private, 1) == first
    server_release(private, 1, 0.5)
    assert secret_cohort(private, 1) != first

    init = {"kind": "gradient", "private": True, "budget_share": 0.25, "samples": 60}
    config = RunConfig.from_dict(private_config(world, method__init=init))
    (tmp_path / "start").mkdir()
    private = prepare_privacy(config, dict.fromkeys(range(3), 30), tmp_path / "start")
    start = private_start(private)
    first = start.sample(1)
    start.charge(1)
    assert private_start(private).sample(1) != first
    assert private_start(private).sample(2) == start.sample(2)


def test_a_ledger_that_lost_lines_is_refused(world, tmp_path, monkeypatch, capsys):
    from fedsb.runner import clients as party

    file = write_config(tmp_path / "c.yaml", private_config(world))
    real, calls = party.client_update, []

    def killed(*arguments, **more):
        calls.append(1)
        if len(calls) == 5:
            raise Killed
        return real(*arguments, **more)

    monkeypatch.setattr(party, "client_update", killed)
    with pytest.raises(Killed):
        run(RunConfig.from_yaml(file), tmp_path / "run")
    ledger = tmp_path / "run/privacy.jsonl"
    ledger.write_text("")
    assert main_status(monkeypatch, "run", file, "--out", tmp_path / "run", "--resume") == 2
    assert "lines are missing" in " ".join(capsys.readouterr().err.split())


def test_two_runs_of_one_seed_agree_in_all_but_batches_and_noise(world, tmp_path):
    config = private_config(world, privacy=EXAMPLE | {"noise_multiplier": 1.0})
    do(config, tmp_path / "one")
    do(config, tmp_path / "two")
    same = ("partition.json", "config.yaml")
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in same)
    assert adapter_bytes(tmp_path / "one") != adapter_bytes(tmp_path / "two")


def test_insecure_noise_repeats_and_says_so(world, tmp_path):
    config = private_config(world, privacy=EXAMPLE | {"insecure_seed": 4})
    summary = do(config, tmp_path / "one").summary
    do(config, tmp_path / "two")
    assert adapter_bytes(tmp_path / "one") == adapter_bytes(tmp_path / "two")
    facts = summary["privacy"]
    assert (facts["private"], facts["epsilon"]) == (False, None)
    assert "NOT private" in facts["statement"]


def test_almost_no_noise_and_no_clipping_is_nearly_the_run_without_privacy(world, tmp_path):
    """SGD over all examples at once, so that Poisson sampling plays no part."""
    same = {
        "federation__clients": 1,
        "training__optimizer": "sgd",
        "training__batch_size": 90,
        "training__learning_rate": 0.5,
        "method__init": {"kind": "weights", "head_warmup": None},
    }
    model = tiny_bert(tmp_path / "bert")
    settings = json.loads((model / "config.json").read_text())
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(settings | off))
    same["model__path"] = str(model)
    tiny = {"unit": "example", "noise_multiplier": 1e-9, "delta": 1e-3, "clip_norm": 1e4}
    private = do(private_config(world, privacy=tiny, **same), tmp_path / "private")
    plain = do(private_config(world, privacy=None, **same), tmp_path / "plain")
    for one, two in zip(private.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    assert private.summary["privacy"]["epsilon"] > 1e6


REFUSALS = {
    "raw gradients": ({"method__init": {"kind": "gradient"}}, "raw gradients"),
    "warm-up on private rows": (
        {"method__init": {"kind": "weights", "head_warmup": {"rounds": 1}}},
        "head_warmup",
    ),
    "delta too large": ({"privacy__delta": 0.05}, "1 / 30"),
    "clip norm zero": ({"privacy__clip_norm": 0}, "clip_norm"),
    "no budget": ({"privacy__epsilon": None}, "set epsilon"),
    "unreachable": (
        {
            "method__init": {"kind": "gradient", "private": True, "samples": 90, "budget_share": 0.999999},
            "privacy__epsilon": 1e-7,
        },
        "privacy.epsilon: 1e-07 at delta 0.001 cannot be reached",
    ),
    "two clips": ({"training__grad_clip": 1.0}, "grad_clip"),
    "a start without privacy": (
        {"privacy": None, "method__init": {"kind": "gradient", "private": True}},
        "private",
    ),
    "stacked factors per client": (
        {"privacy__unit": "client", "method__name": "flora", "federation__weighting": "uniform"},
        "averages",
    ),
    "weights by examples per client": (
        {"privacy__unit": "client", "federation__weighting": "examples"},
        "uniform",
    ),
    "failures that nobody was charged for": ({"federation__upload_dtype": "float16"}, "take bfloat16"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_settings_are_refused_before_anything_starts(world, tmp_path, monkeypatch, capsys, case):
    changes, expected = REFUSALS[case]
    config = changed(private_config(world), **changes)
    file = write_config(tmp_path / "c.yaml", config)
    assert main_status(monkeypatch, "run", file, "--out", tmp_path / "run") == 2
    assert expected in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_public_rows_that_are_training_rows_are_refused(world, tmp_path, monkeypatch, capsys, command):
    public = tmp_path / "public.jsonl"
    train = (world / "data/train.jsonl").read_text().splitlines(keepends=True)
    public.write_text(train[7] + (world / "data/test.jsonl").read_text())
    init = {"kind": "gradient", "public": str(public), "samples": 13}
    file = write_config(tmp_path / "c.yaml", private_config(world, method__init=init))
    assert main_status(monkeypatch, command, file) != 0
    told = capsys.readouterr()
    assert "1 of the 13 different inputs" in " ".join((told.out + told.err).split())


def test_the_doctor_finds_a_delta_that_is_too_large(world, tmp_path, monkeypatch, capsys):
    file = write_config(tmp_path / "c.yaml", changed(private_config(world), privacy__delta=0.05))
    main_status(monkeypatch, "doctor", file)
    assert "expected less than 1 / 30" in " ".join(capsys.readouterr().out.split())


def test_a_comparison_says_what_each_run_may_claim(world, tmp_path, monkeypatch, capsys):
    section = {"compare": {"learning_rates": [0.01]}}
    file = write_config(tmp_path / "c.yaml", private_config(world, federation__rounds=1) | section)
    arguments = ("--methods", "fed-sb,fedit", "--seeds", "0", "--out", tmp_path / "c")
    assert main_status(monkeypatch, "compare", file, *arguments) == 0
    runs = json.loads((tmp_path / "c/comparison.json").read_text())["runs"]
    for run_ in runs:
        stated = json.loads((tmp_path / "c" / run_["run"] / "summary.json").read_text())["privacy"]
        assert run_["privacy"] == {key: stated[key] for key in run_["privacy"]}
        assert run_["privacy"]["epsilon"] == pytest.approx(8, rel=0.01)
    said = "Each run alone is differentially private, with epsilon 8 and delta 0.001 for one example"
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in (tmp_path / "c/report.html").read_text()


def test_all_that_privacy_rules_out_is_named_at_once(world, tmp_path, monkeypatch, capsys):
    raw = {"kind": "gradient", "head_warmup": {"rounds": 1}}
    config = changed(private_config(world), method__init=raw, training__grad_clip=1.0)
    assert main_status(monkeypatch, "run", write_config(tmp_path / "c.yaml", config)) == 2
    said = capsys.readouterr().err
    assert "config: 3 wrong" in said
    assert [line.split(":")[0].strip() for line in said.splitlines() if line.startswith("  ")] == [
        "method.init.kind",
        "method.init.head_warmup",
        "training.grad_clip",
    ]


def test_a_resumed_run_with_another_budget_is_refused(world, tmp_path, monkeypatch, capsys):
    config = private_config(world, federation__rounds=1)
    do(config, tmp_path / "run")
    file = write_config(tmp_path / "c.yaml", changed(config, privacy__epsilon=9.0))
    assert main_status(monkeypatch, "run", file, "--out", tmp_path / "run", "--resume") == 2
    assert "privacy.epsilon: 8.0 -> 9.0" in " ".join(capsys.readouterr().err.split())


def test_a_model_with_batch_norm_is_refused(world, tmp_path, monkeypatch, capsys):
    def with_batch_norm(*args, **kwargs):
        model = load_base(*args, **kwargs)
        model.mixing = nn.BatchNorm1d(3)
        return model

    monkeypatch.setattr("fedsb.runner.prepare_model.load_base", with_batch_norm)
    file = write_config(tmp_path / "c.yaml", private_config(world))
    assert main_status(monkeypatch, "run", file, "--out", tmp_path / "run") == 2
    assert "mixing is a batch norm" in " ".join(capsys.readouterr().err.split())
