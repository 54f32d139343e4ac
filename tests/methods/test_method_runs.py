"""Whole runs of every method: traffic as the formulas say, what is left behind, refreshed bases, resume."""

import copy
import json
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from oracles import dense_update, numbers, relative_error
from peft import PeftModel
from run_helpers import (
    adapter_bytes,
    causal_config,
    classification_config,
    metrics_of,
    timeless,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    write_data,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fedsb import RunConfig, run
from fedsb.adapter import Factors, LowRankLinear
from fedsb.adapter.attached import Attached, detach
from fedsb.federation.start import refresh
from fedsb.methods import ALL, Shape, by_name
from fedsb.runner import loop as runner
from fedsb.runner import rounds
from fedsb.runner.export import export_merged

PROBE = (torch.arange(3 * 9).reshape(3, 9) * 7 + 4) % 27
NAMES = [method.name for method in ALL]
RANK, CLIENTS, ROUNDS = 6, 3, 3
SHAPES = [Shape(32, 32), Shape(64, 32)] * 2
"""Two blocks' query and intermediate.dense. FLoRA's stack is dense for one and factors for the other."""
HEAD = 32 * 3 + 3
OVERHEAD = 400
"""No message's header is longer."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    tiny_bert(folder / "bert"), tiny_llama(folder / "llama"), tiny_gpt2(folder / "gpt2")
    write_data(folder / "data", train=36, test=12)
    return folder


def config_of(world, name, **changes):
    settings = {
        "method__name": name,
        "method__rank": RANK,
        "method__targets": ["query", "intermediate.dense"],
        "method__init__head_warmup": None,
        "federation__rounds": ROUNDS,
        "evaluation__every": ROUNDS,
    }
    if by_name(name).experts is not None:
        settings |= {"method__experts": {"hard_rounds": ROUNDS}, "federation__client_experts": [0, 1, 1]}
    return classification_config(world / "bert", world / "data", **settings | changes)


def start(config, folder, **options):
    return run(RunConfig.from_dict(config), folder, **options)


@pytest.fixture(scope="module")
def runs(world):
    """One run of each method, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = start(config_of(world, name), world / f"run-{name}")
        return made[name]

    return get


def ledger_of(folder):
    return json.loads((folder / "ledger.json").read_text())["entries"]


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=PROBE, attention_mask=torch.ones_like(PROBE)).logits.float()


def adapter_layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, LowRankLinear)}


def taken_off(model):
    return detach(Attached(model, adapter_layers(model), defaultdict(bool)))


# ---------------------------------------------------------------- traffic


def expected_numbers(name, number):
    """(down, up) of one client in this round of a full cohort."""
    method, heads = by_name(name), by_name(name).heads
    costs = [method.cost(shape, RANK, heads, CLIENTS) for shape in SHAPES]
    down, up = (HEAD + sum(getattr(cost, way) for cost in costs) for way in ("down", "up"))
    if name == "rolora" and number % 2 == 0:
        up = HEAD + sum(RANK * shape.n_in for shape in SHAPES)
    if method.changes_base and number == 1:
        factors = sum(RANK * (shape.out + shape.n_in) for shape in SHAPES)
        down = HEAD + (factors if method.sends else 0)
    return down, up


@pytest.mark.parametrize("name", NAMES)
def test_a_full_cohort_costs_what_the_formula_says(runs, name):
    entries = [e for e in ledger_of(runs(name).folder) if e["round"] > 0]
    what = ["broadcast", "updates"]
    if by_name(name).follow_up is not None:
        what += ["second question", "second answers"]
    assert [(e["round"], e["what"]) for e in entries] == [(n, w) for n in (1, 2, 3) for w in what]
    if by_name(name).follow_up is not None:
        entries = [joined(first, second) for first, second in both_exchanges(entries)]
    for entry in entries:
        expected = expected_numbers(name, entry["round"])[entry["direction"] == "up"]
        if name == "fedmomentum" and entry["direction"] == "down" and entry["round"] > 1:
            factors = expected_numbers("fedit", entry["round"])[0]  # then the rest, at the rank that holds it
            assert CLIENTS * factors < entry["parameters"] <= CLIENTS * expected
            continue
        assert entry["parameters"] == CLIENTS * expected, entry
        assert 0 < entry["bytes"] - 4 * entry["parameters"] < CLIENTS * OVERHEAD * len(what) / 2


def both_exchanges(entries):
    """The lines of one round and direction, by two."""
    return [
        [e for e in entries if (e["round"], e["direction"]) == (number, way)]
        for number in (1, 2, 3)
        for way in ("down", "up")
    ]


def joined(first, second):
    return first | {key: first[key] + second[key] for key in ("bytes", "parameters")}


@pytest.mark.parametrize("name", NAMES)
def test_metrics_and_ledger_count_the_same_bytes(runs, name):
    assert_metrics_match_ledger(runs(name).folder)


def assert_metrics_match_ledger(folder):
    entries = ledger_of(folder)
    for line in metrics_of(folder)[1:]:
        for way, key in (("up", "upload_bytes"), ("down", "download_bytes")):
            mine = [e["bytes"] for e in entries if e["round"] == line["round"] and e["direction"] == way]
            assert line[key] == sum(mine)


def test_a_method_that_is_exact_has_no_deviation_and_fedex_mends_its_own(runs):
    with_one = {name for name in NAMES if "deviation" in metrics_of(runs(name).folder)[1]}
    assert with_one == {
        "fedit",
        "fedex-lora",
        "flexlora",
        "fedrot-lora",
        "lora-fair",
        "fedmomentum",
        "fr-lora",
        "la-lora",
        "florg",
    }


MIXED = [(m.name, "all") for m in ALL if m.mixed_ranks] + [("fed-sb", "owners"), ("hetlora", "owners")]


@pytest.mark.parametrize(("name", "padding"), MIXED)
def test_mixed_ranks_travel_at_each_clients_rank(world, name, padding):
    ranks, method = [6, 3, 1], by_name(name)
    config = config_of(world, name, federation__client_ranks=ranks, federation__padding=padding)
    folder = start(config, world / f"ranks-{name}-{padding}").folder
    for entry in ledger_of(folder):
        if entry["round"] == 0:
            continue
        each = [sum(method.cost(s, r, method.heads, 3).up for s in SHAPES) for r in ranks]
        expected = sum(each) + CLIENTS * HEAD
        if method.changes_base and entry["direction"] == "down":
            stack = sum(min(sum(ranks) * (s.out + s.n_in), s.out * s.n_in) for s in SHAPES)
            expected = CLIENTS * (HEAD + (stack if entry["round"] > 1 else 0))
        assert entry["parameters"] == expected, entry


@pytest.mark.parametrize("name", ["fed-sb", "lora-xs", "ravan"])
@pytest.mark.parametrize("ranks", [[6, 6, 6], [6, 3, 1]], ids=["one rank", "mixed ranks"])
def test_clients_that_train_some_heads_send_those(world, name, ranks):
    changes = {"method__heads": 3, "federation__client_heads": [3, 2, 1], "federation__client_ranks": ranks}
    folder = start(config_of(world, name, **changes), world / f"heads-{name}-{ranks[1]}").folder
    assert not any(line["rejected"] for line in metrics_of(folder))
    for entry in ledger_of(folder):
        if entry["round"] > 0:
            heads = [3, 2, 1] if entry["direction"] == "up" else [3, 3, 3]
            core = sum(h * r * r for h, r in zip(heads, ranks, strict=True))
            assert entry["parameters"] == CLIENTS * HEAD + len(SHAPES) * core


# ---------------------------------------------------------------- what a run leaves


def fresh_base(world, family, **options):
    if family == "bert":
        return AutoModelForSequenceClassification.from_pretrained(world / family, num_labels=3, **options)
    return AutoModelForCausalLM.from_pretrained(world / family, **options)


def assert_folder_and_base(world, family, result, tolerance=1e-4):
    """peft alone gives the run's logits, and without the adapter the base is what it was on disk."""
    found = logits_of(PeftModel.from_pretrained(fresh_base(world, family), result.folder / "adapter"))
    mine = logits_of(result.model)
    assert (mine - found).abs().max() < tolerance * mine.abs().max().clamp_min(1.0)
    base = dict(fresh_base(world, family).base_model.named_parameters())
    assert (logits_of(result.model) - logits_of(taken_off(result.model))).abs().max() > 1e-3
    for name, parameter in result.model.base_model.named_parameters():
        assert torch.equal(parameter, base[name]), name


@pytest.mark.parametrize("name", [m.name for m in ALL if m.experts is None and not m.stays])
def test_the_folder_gives_the_runs_logits_and_the_base_is_untouched(world, runs, name):
    result = runs(name)
    finished = replace(result.finished, model=copy.deepcopy(result.model))
    assert_folder_and_base(world, "bert", replace(result, finished=finished))


@pytest.mark.parametrize(("family", "name"), [("gpt2", "flora"), ("llama", "fedex-lora"), ("gpt2", "fedsvd")])
def test_methods_that_change_the_base_do_so_over_other_families(world, family, name):
    config = causal_config(world / family, world / "data", method__name=name, federation__clients=3)
    result = start(config, world / f"run-{family}-{name}")
    assert_folder_and_base(world, family, result)


@pytest.mark.parametrize(
    "changes", [{"name": "flora"}, {"name": "fedex-lora"}, {"name": "fed-sb", "refresh_every": 1}], ids=str
)
def test_over_a_bfloat16_base_the_run_scores_what_its_adapter_scores(world, changes):
    """Additions to W0 are small beside it: cast to bfloat16 with it, they are lost from the run alone."""
    method = {f"method__{key}": value for key, value in changes.items()}
    name = f"bf16-{changes['name']}"
    result = start(config_of(world, changes["name"], model__dtype="bfloat16", **method), world / name)
    base = fresh_base(world, "bert", dtype=torch.bfloat16)
    for name, layer in adapter_layers(result.model).items():
        assert torch.equal(layer.base.weight, base.get_submodule(name).weight)
        assert layer.base_update.dtype == torch.float32
        assert layer.base_update.any()
    again = PeftModel.from_pretrained(
        fresh_base(world, "bert", dtype=torch.bfloat16), result.folder / "adapter"
    )
    ours, theirs = logits_of(result.model), logits_of(again)
    assert (ours - theirs).abs().max() < 0.03 * ours.abs().max()
    model = taken_off(result.model)
    assert all(
        torch.equal(model.get_submodule(n).weight, m.weight)
        for n, m in base.named_modules()
        if n.endswith("query")
    )


@pytest.mark.parametrize("name", ["flora", "fedex-lora"])
def test_merged_weights_hold_what_was_added_to_the_base(world, runs, name):
    export_merged(runs(name).folder, world / f"merged-{name}")
    merged = AutoModelForSequenceClassification.from_pretrained(world / f"merged-{name}")
    mine = logits_of(runs(name).model)
    assert (logits_of(merged) - mine).abs().max() < 1e-4 * mine.abs().max().clamp_min(1.0)


def test_every_method_learns(runs):
    for name in NAMES:
        lines = metrics_of(runs(name).folder)
        assert lines[-1]["train_loss"] < lines[1]["train_loss"], name


# ---------------------------------------------------------------- heads and refreshed bases


@pytest.mark.parametrize("changes", [{"method__heads": 1}, {"method__refresh_every": ROUNDS}], ids=str)
def test_one_head_and_no_refresh_are_plain_fed_sb_bit_for_bit(world, runs, changes):
    name = "-".join(changes)
    result = start(config_of(world, "fed-sb", **changes), world / f"plain-{name}")
    assert adapter_bytes(result.folder) == adapter_bytes(runs("fed-sb").folder)
    assert timeless(result.folder) == timeless(runs("fed-sb").folder)
    assert ledger_of(result.folder) == ledger_of(runs("fed-sb").folder)


@pytest.fixture
def refreshes(monkeypatch):
    """What the model held around each refresh: (logits, own update by layer) before and after."""
    seen, real = [], rounds.refresh

    def own_updates(local_model):
        return {
            n: dense_update(Factors(layer.B.detach(), layer.A.detach(), layer.R.detach()))
            for n, layer in local_model.attached.layers.items()
        }

    def watched(local_model, *args, **kwargs):
        before = logits_of(local_model.model), own_updates(local_model)
        refreshed = real(local_model, *args, **kwargs)
        seen.append((before, (logits_of(local_model.model), own_updates(local_model))))
        return refreshed

    monkeypatch.setattr(rounds, "refresh", watched)
    return seen


def test_new_bases_are_estimated_on_the_model_as_it_was_folded(world, refreshes, monkeypatch):
    """Neither without the last core nor with it counted twice."""
    during, real = [], refresh.start_factors

    def watched(model, *args, **kwargs):
        during.append(logits_of(model))
        return real(model, *args, **kwargs)

    monkeypatch.setattr(refresh, "start_factors", watched)
    start(refreshing(world), world / "estimated")
    assert len(during) == ROUNDS - 1
    for ((before, _), _), folded in zip(refreshes, during, strict=True):
        assert (before - folded).abs().max() < 1e-5


def refreshing(world, name="fed-sb", **changes):
    return config_of(world, name, method__refresh_every=1, **changes)


@pytest.mark.parametrize("name", ["fed-sb", "lora-xs"])
def test_folding_leaves_the_model_as_it_was(world, refreshes, name):
    config = refreshing(world, name, method__init__step_size=0.0)
    result = start(config, world / f"zero-{name}")
    assert len(refreshes) == ROUNDS - 1  # none after the last round
    for (before, update), (after, new) in refreshes:
        assert (before - after).abs().max() < 1e-5
        assert all(part.any() for part in update.values())
        assert not any(part.any() for part in new.values())
    assert_total_is_the_sum(result, refreshes)
    assert_folder_and_base(world, "bert", result)


def test_after_folding_only_the_new_R0_is_there(world, refreshes):
    result = start(refreshing(world, method__heads=2), world / "with-R0")
    for (before, _), (after, new) in refreshes:
        assert all(part.any() for part in new.values())
        assert (before - after).abs().max() > 1e-6
    assert_total_is_the_sum(result, refreshes)
    assert_folder_and_base(world, "bert", result)


def assert_total_is_the_sum(result, refreshes):
    """Each fold counts whole, R0 included: it is where the round's training began."""
    for name, layer in adapter_layers(result.model).items():
        folds = sum(update[name] for (_, update), _ in refreshes)
        assert relative_error(numbers(layer.base_update), folds) < 1e-5
        own = dense_update(Factors(layer.B.detach(), layer.A.detach(), layer.R.detach()))
        assert relative_error(numbers(layer.update()), folds + own) < 1e-5


def test_new_bases_are_booked_under_their_round(world):
    folder = start(refreshing(world), world / "booked").folder
    booked = defaultdict(list)
    for entry in ledger_of(folder):
        booked[entry["round"]].append((entry["what"], entry["direction"], entry["clients"]))
    news = ["cores to fold", "gradients of the target layers, as factors", "bases B and A"]
    usual = ["broadcast", "updates"]
    assert [[what for what, *_ in booked[n]] for n in (1, 2, 3)] == [usual + news, usual + news, usual]
    assert [way for _, way, _ in booked[1]] == ["down", "up", "down", "up", "down"]
    once = [e for e in ledger_of(folder) if e["what"] in news]
    core = HEAD + len(SHAPES) * RANK**2
    factors = sum(RANK * (s.out + s.n_in) for s in SHAPES)
    refreshed = [e["parameters"] for e in once if e["round"] == 1]
    sent = sum(min(RANK * (s.out + s.n_in), s.out * s.n_in) for s in SHAPES)
    assert refreshed == [CLIENTS * core, CLIENTS * sent, CLIENTS * factors]
    assert_metrics_match_ledger(folder)


def test_data_free_bases_cost_the_cores_alone_to_refresh(world):
    folder = start(refreshing(world, "lora-xs"), world / "booked-xs").folder
    assert [e["what"] for e in ledger_of(folder) if e["round"] == 1] == [
        "broadcast",
        "updates",
        "cores to fold",
    ]


# ---------------------------------------------------------------- stopped and resumed


class Killed(BaseException):
    """As good as SIGKILL here."""


PARTLY = {"federation__clients": 4, "federation__clients_per_round": 2, "federation__rounds": 4}
STOPPED = {
    "refresh": ("fed-sb", {"method__refresh_every": 1}),
    "refresh of heads": (
        "lora-xs",
        {"method__refresh_every": 2, "method__heads": 2, "federation__rounds": 4},
    ),
    "flora": ("flora", PARTLY),
    "fedex": ("fedex-lora", PARTLY),
    "truncated": ("fedex-lora", {"method__residual_rank": 2, **PARTLY}),
    "ranks": ("flora", {"federation__client_ranks": [6, 2, 1, 4], **PARTLY}),
    "svd": ("fedsvd", PARTLY),
    "turns": ("rolora", PARTLY),
    "two exchanges": ("fedask", PARTLY),
    "less the start": ("fr-lora", PARTLY),
    "rest": ("fedmomentum", PARTLY),
    "gram": ("florg", PARTLY),
    "ravan": ("ravan", {"federation__client_heads": [4, 2, 1, 1], **PARTLY}),
}


@pytest.mark.parametrize("case", STOPPED)
def test_a_run_killed_between_rounds_goes_on_to_the_same_adapter(world, monkeypatch, case):
    name, changes = STOPPED[case]
    config = config_of(world, name, **changes)
    whole = start(config, world / f"whole {case}").folder
    folder, real = world / f"killed {case}", runner.play_round
    for stop in (2, 3):

        def killed(session, saved, number, chosen, stop=stop):
            if number == stop:
                raise Killed
            return real(session, saved, number, chosen)

        with monkeypatch.context() as patch:
            patch.setattr(runner, "play_round", killed)
            with pytest.raises(Killed):
                start(config, folder, resume=stop > 2)
    start(config, folder, resume=True)
    assert adapter_bytes(folder) == adapter_bytes(whole)
    assert timeless(folder) == timeless(whole)
    assert ledger_of(folder) == ledger_of(whole)


def test_a_run_killed_while_it_made_new_bases_goes_on_to_the_same_adapter(world, monkeypatch):
    config = refreshing(world)
    whole = start(config, world / "whole-refresh").folder
    folder, real = world / "killed-refresh", rounds.refresh

    def killed(local_model, state, *args, **kwargs):
        refreshed = real(local_model, state, *args, **kwargs)
        if state.round == 2:
            raise Killed
        return refreshed

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "refresh", killed)
        with pytest.raises(Killed):
            start(config, folder)
    start(config, folder, resume=True)
    assert adapter_bytes(folder) == adapter_bytes(whole)
    assert ledger_of(folder) == ledger_of(whole)
