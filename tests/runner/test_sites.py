"""Names of sites, scores on rows of their own, what they are compared with, and what stays with them."""

import json

import pytest
import torch
from run_helpers import (
    changed,
    classification_config,
    main_status,
    metrics_of,
    rows,
    timeless,
    tiny_bert,
    write_config,
    write_data,
)

from fedsb import RunConfig, run
from fedsb.config.checks import check_settings
from fedsb.errors import InputError
from fedsb.methods import METHODS
from fedsb.models.peft_folder import read_adapter
from fedsb.report.progress import Silent
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.export import export_lora
from fedsb.runner.prepare_data import prepare_data
from fedsb.runner.site_data import hold_out, site_names

SITES = ["north", "south", "<b>west</b>", "[red]east"]
STAYS = {
    "personal": {"method__name": "fed-sb", "method__personal": True, "training__personal_rate": 0.5},
    "fedsa": {"method__name": "fedsa-lora", "method__alpha": 8.0},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=120, test=12)
    return folder


def config_of(world, **changes):
    few = {
        "data__client_test": 0.2,
        "federation": {"clients": 4, "rounds": 2, "partition": {"kind": "by-column", "column": "site"}},
        "method__targets": ["query", "value"],
        "evaluation": {"at_clients": True},
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def without_test(config):
    del config["data"]["test"]
    return config


@pytest.fixture(scope="module")
def whole(world):
    """A run of everything: no test rows in one place, both baselines, names of their own."""
    config = without_test(
        config_of(world, evaluation__baselines=["local", "pooled"], federation__sites=SITES)
    )
    return run(RunConfig.from_dict(config), world / "whole")


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a", "b", "c"], "expected 4 names"),
        (["a", "b", "c", "A"], "no two alike"),
        (["a", "b", "c", "d\n"], "printable"),
        (["a", "b", "c", "x" * 65], "1 to 64"),
        (["a", "b", "c", "\x1b[31m"], "printable"),
        (["a", "b", "c", ""], "none empty"),
    ],
)
def test_names_that_cannot_be_are_refused(world, names, says):
    with pytest.raises(InputError, match=says) as error:
        check_settings(RunConfig.from_dict(config_of(world, federation__sites=names)))
    assert "federation.sites" in str(error.value)
    assert str(error.value).replace("\n", "").isprintable()


def names_by(world, clients, **changes):
    config = RunConfig.from_dict(config_of(world, federation__clients=clients, **changes))
    return prepare_data(config).sites


def test_without_names_sites_are_called_as_the_column_says(world):
    assert names_by(world, 4) == ("s0", "s1", "s2", "s3")
    assert names_by(world, 2) == ("s0 and 1 more", "s1 and 1 more")
    assert names_by(world, 5) == ("s0 (1)", "s0 (2)", "s1", "s2", "s3")
    assert names_by(world, 3, federation__partition={"kind": "iid"}) == ()


def test_a_private_runs_sites_are_not_called_by_its_rows(world):
    private = {
        "privacy": {"unit": "client", "noise_multiplier": 1.0},
        "evaluation": {},
        "data__client_test": None,
    }
    config = RunConfig.from_dict(config_of(world, **private))
    assert site_names(config, [[0], [1], [2], [3]], rows(4, seed=1)) == ()


def test_names_are_in_the_folder_and_on_the_page_and_ids_stay(whole):
    assert json.loads((whole.folder / "partition.json").read_text())["names"]["2"] == SITES[2]
    page = (whole.folder / "report.html").read_text()
    assert "north" in page
    assert "&lt;b&gt;west" in page
    assert SITES[2] not in page
    assert metrics_of(whole.folder)[-1]["clients"] == [0, 1, 2, 3]


def test_names_are_in_a_runs_lines_and_its_table(world, tmp_path, monkeypatch, capsys):
    config = config_of(world, federation__sites=SITES, federation__rounds=1)
    file = write_config(tmp_path / "run.yaml", config)
    assert main_status(monkeypatch, "run", file, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().out
    for name in SITES:
        assert f"  {name}: " in said
    assert "accuracy at each site" in said


# ---------------------------------------------------------------- held-out rows


def test_each_client_holds_out_its_share_of_every_label_and_trains_on_the_rest(world):
    data = prepare_data(RunConfig.from_dict(config_of(world)))
    assert data.labels is not None
    for part, tests in zip(data.parts, data.client_tests, strict=True):
        assert (len(part), len(tests)) == (24, 6)
        assert not set(part) & set(tests)
        assert sorted(data.labels[i] for i in tests) == ["flat"] * 2 + ["neg"] * 2 + ["pos"] * 2
    assert sorted(i for parts in (data.parts, data.client_tests) for part in parts for i in part) == list(
        range(120)
    )


def test_another_seed_holds_out_other_rows_and_too_few_hold_out_none(world):
    config = RunConfig.from_dict(config_of(world))
    _, tests = hold_out(config, [list(range(40)), list(range(40, 64))], None)
    assert [len(part) for part in tests] == [8, 5]
    _, others = hold_out(config.model_copy(update={"seed": 1}), [list(range(40))], None)
    assert tests[0] != others[0]
    assert hold_out(config, [list(range(20))], None) == ([list(range(20))], [[]])


def test_a_site_without_rows_to_spare_has_no_score_and_that_is_said(world, tmp_path):
    config = config_of(world, data__client_test=0.1, federation__rounds=1)
    said = []
    told = type("Told", (Silent,), {"stage": lambda self, text: said.append(text)})()
    result = run(RunConfig.from_dict(config), tmp_path / "run", progress=told)
    assert any("no score of its own has s0, s1, s2, s3" in line for line in said)
    assert metrics_of(tmp_path / "run")[-1]["sites"] == {}
    assert result.summary["final"]["accuracy"] >= 0  # of data.test


# ---------------------------------------------------------------- scores and baselines


def test_without_test_rows_in_one_place_the_score_is_the_sites_mean(whole):
    for line in metrics_of(whole.folder):
        each = [scores["accuracy"] for scores in line["sites"].values()]
        assert line["eval"]["accuracy"] == pytest.approx(sum(each) / 4)
    sites = whole.summary["sites"]
    values = {site: scores["accuracy"] for site, scores in sites["scores"].items()}
    assert sites["mean"] == whole.summary["final"]
    assert values[sites["worst"]] == min(values.values())
    assert sites["spread"] == pytest.approx(max(values.values()) - min(values.values()))
    assert whole.summary["num_test_examples"] == 0


def test_a_sites_score_is_what_the_final_model_scores_on_its_rows(world, whole):
    config = RunConfig.from_yaml(whole.folder / "config.yaml")
    data = prepare_data(config)
    for client, tests in enumerate(data.client_tests):
        expected = data.task.evaluate(whole.model, [data.train[i] for i in tests], batch_size=4)
        assert whole.summary["sites"]["scores"][str(client)] == pytest.approx(expected, abs=1e-5)


def test_baselines_are_runs_of_one_client(world, tmp_path):
    """Of the first site's rows, and of all training rows: the same start, rounds and batches."""
    start = {"kind": "orthonormal", "head_warmup": None}
    config = config_of(
        world,
        evaluation__baselines=["local", "pooled"],
        method__init=start,
        task__labels=["pos", "neg", "flat"],
    )
    run(RunConfig.from_dict(config), tmp_path / "run")
    first = metrics_of(tmp_path / "run")[0]
    made, partition = rows(120, seed=1), json.loads((tmp_path / "run" / "partition.json").read_text())
    tests = list(partition["tests"].values())
    own = sorted(partition["clients"]["0"] + tests[0])
    pooled = [i for part in partition["clients"].values() for i in part]
    for name, chosen in (("own", own), ("pooled", pooled), ("test", tests[3])):
        (tmp_path / name).write_text("".join(json.dumps(made[i]) + "\n" for i in chosen))
        (tmp_path / name).rename(tmp_path / f"{name}.jsonl")
    one = changed(config, evaluation={}, federation__clients=1, federation__partition={"kind": "iid"})
    alone = changed(one, data__train=str(tmp_path / "own.jsonl"), evaluation__at_clients=True)
    run(RunConfig.from_dict(without_test(alone)), tmp_path / "alone")
    expected = metrics_of(tmp_path / "alone")[-1]["sites"]["0"]
    assert first["baselines"]["local"]["0"] == pytest.approx(expected, abs=1e-5)
    assert first["baselines"]["local"]["1"] != pytest.approx(expected, abs=1e-5)
    del one["data"]["client_test"]
    whole = changed(one, data__train=str(tmp_path / "pooled.jsonl"), data__test=str(tmp_path / "test.jsonl"))
    run(RunConfig.from_dict(whole), tmp_path / "pooled-run")
    expected = metrics_of(tmp_path / "pooled-run")[-1]["eval"]
    assert first["baselines"]["pooled"]["3"] == pytest.approx(expected, abs=1e-5)


def test_what_scores_cost_is_in_the_ledger_and_the_rounds(whole):
    entries = json.loads((whole.folder / "ledger.json").read_text())["entries"]
    whats = {(entry["round"], entry["what"], entry["direction"]) for entry in entries}
    assert {
        (2, "scores", "up"),
        (2, "models for scores", "down"),
        (0, "scores of training alone", "up"),
    } <= whats
    lines, sent = metrics_of(whole.folder), whole.summary["communication"]
    assert sent["upload_bytes"] == sum(line["upload_bytes"] for line in lines)
    assert sent["download_bytes"] == sum(line["download_bytes"] for line in lines)
    assert "in doubt" not in (whole.folder / "report.html").read_text()


def test_the_page_shows_every_site_beside_its_baselines(whole):
    page = (whole.folder / "report.html").read_text()
    for text in ("trained alone", "all rows in one place", "gain over alone", "Against training alone"):
        assert text in page


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"privacy": {"unit": "client", "noise_multiplier": 1.0}}, "evaluation.at_clients: with privacy"),
        ({"evaluation": {}, "privacy": {"noise_multiplier": 1.0}}, "data.client_test: with privacy"),
        ({"evaluation": {"at_clients": False}}, "data.client_test: with evaluation.at_clients: false"),
        ({"evaluation": {"at_clients": True, "every": None}}, "evaluation.every"),
        ({"evaluation": {"baselines": ["local"]}, "data__client_test": None}, "set evaluation.at_clients"),
        ({"evaluation__baselines": ["local"], "federation__client_ranks": [2] * 4}, "client_ranks"),
        ({"task__metric": "spearman"}, "rank correlation"),
        ({"data__group": "site", "data__test": 0.2}, "data.group: a client holds out rows one by one"),
        ({"method__name": "fedit", "method__personal": True}, "only fed-sb, lora-xs can"),
        ({"method__personal": True, "federation__processes": 2}, "one process"),
        ({"method__personal": True, "method__refresh_every": 1}, "refresh_every"),
        ({"method__personal": True, "federation__client_ranks": [2] * 4}, "client_ranks"),
        (
            {
                "method__name": "fedsa-lora",
                "evaluation": {},
                "data__client_test": None,
                "privacy": {"epsilon": 3.0},
            },
            "no ledger covers",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(world, changes, says):
    with pytest.raises(InputError, match=says):
        check_settings(RunConfig.from_dict(config_of(world, **changes)))


# ---------------------------------------------------------------- what stays with a site


class Killed(BaseException):
    """As good as SIGKILL here: nothing in a run catches it."""


class KilledInRound(Silent):
    """A process that ends in the second round, when a client has trained in it."""

    def round_begins(self, number, rounds, cohort):
        self.number = number

    def client_ends(self, client, problem):
        if getattr(self, "number", 0) == 2 and client == 1:
            raise Killed


@pytest.mark.parametrize("name", STAYS)
def test_what_stays_survives_a_kill_bit_for_bit_and_comes_out_as_a_lora(world, tmp_path, name):
    config = RunConfig.from_dict(without_test(config_of(world, **STAYS[name])))
    result = run(config, tmp_path / "unbroken")
    with pytest.raises(Killed):
        run(config, tmp_path / "run", progress=KilledInRound())
    run(config, tmp_path / "run", resume=True)
    assert timeless(tmp_path / "run") == timeless(tmp_path / "unbroken")
    one, other = (load_checkpoint(tmp_path / n / "checkpoint").kept for n in ("unbroken", "run"))
    assert set(one) == set(other) == {0, 1, 2, 3}
    for client, kept in one.items():
        assert all(torch.equal(kept[factor], other[client][factor]) for factor in kept)
    assert any((one[0][factor] != one[1][factor]).any() for factor in one[0])
    export_lora(tmp_path / "run", tmp_path / "lora", client="s2")
    _, pairs, _ = read_adapter(tmp_path / "lora")
    assert_gives_its_score(config, result, pairs, 2)
    assert "6 rows of that client's own" in (tmp_path / "lora" / "README.md").read_text()
    with pytest.raises(InputError, match="expected one of s0, s1"):
        export_lora(tmp_path / "run", tmp_path / "other", client="s7")


def assert_gives_its_score(config, result, pairs, client):
    """The base with this LoRA and the run's head scores what the client's model scored."""
    data = prepare_data(config)
    with torch.no_grad():
        for name, layer in result.model.named_modules():
            if name in pairs:
                layer.base.weight += pairs[name].B @ pairs[name].A
                layer.B.zero_()
    tests = [data.train[i] for i in data.client_tests[client]]
    found = data.task.evaluate(result.model, tests, batch_size=8)
    assert found == pytest.approx(result.summary["sites"]["scores"][str(client)], abs=1e-5)


def test_only_runs_in_which_something_stays_have_clients_to_export(whole, tmp_path):
    with pytest.raises(InputError, match=r"all clients have one model; .* method.personal"):
        export_lora(whole.folder, tmp_path / "lora", client="north")


def test_a_personal_run_without_training_of_the_own_core_is_the_plain_run(world, tmp_path):
    """At next to no rate of its own, P stays zero and R is averaged as ever."""
    start = {"kind": "orthonormal", "head_warmup": None}
    config = config_of(world, method__init=start, training__optimizer="sgd", federation__rounds=1)
    plain = run(RunConfig.from_dict(config), tmp_path / "plain")
    config = changed(config, method__personal=True, training__personal_rate=1e-30)
    personal = run(RunConfig.from_dict(config), tmp_path / "personal")
    for key in ("sites", "final"):
        assert json.dumps(plain.summary[key]) == json.dumps(personal.summary[key])


def test_test_rows_score_the_shared_part_and_the_run_says_so(world, tmp_path):
    config = config_of(world, evaluation={}, federation__rounds=1, **STAYS["fedsa"])
    del config["data"]["client_test"]
    said = []
    told = type("Told", (Silent,), {"stage": lambda self, text: said.append(text)})()
    run(RunConfig.from_dict(config), tmp_path / "run", progress=told)
    assert any("what stays with clients (B) is in no score" in line for line in said)
    assert [m.name for m in METHODS.all() if m.stays] == ["fedsa-lora"]
