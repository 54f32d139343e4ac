"""Whole runs on tiny models: what they leave, that they learn and repeat, how they take failing clients."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_helpers import (
    adapter_bytes,
    causal_config,
    classification_config,
    metrics_of,
    snapshot,
    timeless,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    write_data,
)

from fedsb import RunConfig
from fedsb.common.files import write_json
from fedsb.errors import RunFailed
from fedsb.federation import client, wire
from fedsb.federation.client import client_update
from fedsb.runner import clients as party
from fedsb.runner import loop

LINE_KEYS = {
    "round",
    "train_loss",
    "eval",
    "upload_bytes",
    "download_bytes",
    "upload_parameters",
    "clients",
    "rejected",
    "seconds",
}
SUMMARY_KEYS = {
    "method",
    "final",
    "rounds",
    "communication",
    "privacy",
    "seconds",
    "peak_memory_bytes",
    "versions",
}
WARMUP = {"rounds": 2, "steps": 15}
NO_WARMUP = {"method__init__head_warmup": None}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the models, learnable data and less of it."""
    folder = tmp_path_factory.mktemp("world")
    tiny_bert(folder / "bert"), tiny_llama(folder / "llama"), tiny_gpt2(folder / "gpt2")
    write_data(folder / "data")
    write_data(folder / "small", train=36, test=12)
    return folder


def start(config, folder, **options):
    return loop.run(RunConfig.from_dict(config), folder, **options)


@pytest.fixture(scope="module")
def learned(world):
    """The default method on the learnable data."""
    config = classification_config(world / "bert", world / "data", method__init__head_warmup=WARMUP)
    return start(config, world / "learned")


def small(world, **changes):
    """A BERT run of two short rounds without head warm-up."""
    settings = {"federation__rounds": 2, **NO_WARMUP, **changes}
    return classification_config(world / "bert", world / "small", **settings)


@pytest.fixture(scope="module")
def plain(world):
    return start(small(world), world / "plain")


# What a run leaves


def test_folder_holds_what_the_contract_lists(learned):
    names = {path.name for path in learned.folder.iterdir()}
    files = {"config.yaml", "partition.json", "metrics.jsonl", "summary.json", "ledger.json", "report.html"}
    assert names == files | {"adapter", "checkpoint"}
    adapter = {path.name for path in (learned.folder / "adapter").iterdir()}
    assert adapter == {"adapter_config.json", "adapter_model.safetensors"}
    page = (learned.folder / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html")
    assert page.rstrip().endswith("</html>")


def test_written_config_is_resolved_and_reloads_equal(world, learned):
    written = RunConfig.from_yaml(learned.folder / "config.yaml")
    assert isinstance(written.training.threads, int)
    chosen = {"method__init__head_warmup": WARMUP, "training__threads": written.training.threads}
    config = RunConfig.from_dict(classification_config(world / "bert", world / "data", **chosen))
    assert written == config.with_absolute_paths()
    assert RunConfig.from_dict(written.model_dump()) == written


def test_partition_gives_each_example_to_one_client(learned):
    record = json.loads((learned.folder / "partition.json").read_text())
    assert sorted(i for part in record["clients"].values() for i in part) == list(range(90))
    assert list(record["clients"]) == ["0", "1", "2"]
    assert sum(sum(counts.values()) for counts in record["labels"].values()) == 90


def test_metrics_have_one_whole_line_per_round_from_zero(learned):
    lines = metrics_of(learned.folder)
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    assert all(line.keys() >= LINE_KEYS for line in lines)
    assert lines[0]["train_loss"] is None
    assert lines[0]["upload_bytes"] == lines[0]["download_bytes"] == 0
    assert lines[0]["clients"] == []
    for line in lines[1:]:
        assert line["clients"] == [0, 1, 2]
        assert line["rejected"] == []
        assert line["train_loss"] > 0
        assert line["upload_parameters"] == 3 * (4 * 4 * 4 + 32 * 3 + 3)
        assert 4 * line["upload_parameters"] < line["upload_bytes"] < 4 * line["upload_parameters"] + 3 * 600


def test_summary_has_the_keys_of_the_contract(learned):
    summary = json.loads((learned.folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(learned.summary))
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["method"] == "fed-sb"
    assert summary["rounds"] == 3
    assert summary["privacy"] is None
    assert summary["seconds"] > 0
    assert summary["peak_memory_bytes"] > 50_000_000
    assert summary["versions"].keys() >= {"fedsb", "torch", "transformers", "peft"}
    lines = metrics_of(learned.folder)
    assert summary["base"] == lines[0]["eval"]
    assert summary["final"] == lines[-1]["eval"]


def test_ledger_adds_up_to_summary_and_metrics(learned):
    entries = json.loads((learned.folder / "ledger.json").read_text())["entries"]
    sent = json.loads((learned.folder / "summary.json").read_text())["communication"]
    lines = metrics_of(learned.folder)

    def total(direction, *, once, key="bytes"):
        return sum(e[key] for e in entries if e["direction"] == direction and (e["round"] == 0) == once)

    assert sent["init_bytes"] == total("up", once=True) + total("down", once=True) > 0
    assert sent["upload_bytes"] == total("up", once=False) == sum(line["upload_bytes"] for line in lines)
    assert sent["download_bytes"] == total("down", once=False) == sum(x["download_bytes"] for x in lines)
    numbers = total("up", once=False, key="parameters")
    assert numbers == sum(line["upload_parameters"] for line in lines)
    assert numbers == 3 * 3 * sent["upload_parameters_per_client_per_round"]


def test_calibration_examples_come_equally_from_each_client(learned):
    drawn = json.loads((learned.folder / "ledger.json").read_text())["calibration"]
    parts = json.loads((learned.folder / "partition.json").read_text())["clients"]
    assert {client: len(indices) for client, indices in drawn.items()} == {"0": 16, "1": 16, "2": 16}
    assert all(set(indices) <= set(parts[client]) for client, indices in drawn.items())


# Learning and repeating


def test_loss_falls_and_accuracy_rises(learned):
    assert learned.summary["final"]["accuracy"] >= 0.8 > 0.5 >= learned.summary["base"]["accuracy"]
    assert learned.summary["final"]["loss"] < 0.7 * learned.summary["base"]["loss"]
    losses = [line["train_loss"] for line in metrics_of(learned.folder)[1:]]
    assert losses[-1] < losses[0]


def test_one_config_gives_one_result(world, plain):
    again = start(RunConfig.from_yaml(plain.folder / "config.yaml").model_dump(), world / "plain-again")
    assert timeless(again.folder) == timeless(plain.folder)
    assert adapter_bytes(again.folder) == adapter_bytes(plain.folder)


def test_another_seed_gives_another_result(world, plain):
    other = start(small(world, seed=1), world / "seed1")
    assert adapter_bytes(other.folder) != adapter_bytes(plain.folder)


def test_result_does_not_depend_on_the_caller_s_random_state(world, plain):
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    again = start(small(world), world / "plain-third")
    assert timeless(again.folder) == timeless(plain.folder)
    assert torch.equal(torch.get_rng_state(), before)


# Methods, tasks and models


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("weights", {"method__init__kind": "weights"}),
        ("orthonormal", {"method__init__kind": "orthonormal"}),
        ("raw", {"method__init__rule": "raw"}),
        ("sketch", {"method__init__upload": "sketch"}),
        ("warm", {"method__init__head_warmup": {"rounds": 1, "steps": 3}}),
        ("fedit", {"method__name": "fedit", "method__alpha": 8}),
        ("bfloat16", {"model__dtype": "bfloat16"}),
        ("sgd", {"training__optimizer": "sgd", "training__learning_rate": 0.3, "training__grad_clip": 1.0}),
        ("recomputed", {"training__gradient_checkpointing": True}),
        ("grouped", {"training__group_by_length": True, "training__accumulation": 2}),
    ],
)
def test_variants_learn(world, name, changes):
    config = classification_config(world / "bert", world / "data", **{**NO_WARMUP, **changes})
    result = start(config, world / f"variant-{name}")
    lines = metrics_of(result.folder)
    assert result.summary["final"]["loss"] < result.summary["base"]["loss"]
    assert lines[-1]["train_loss"] < lines[1]["train_loss"]
    sent = result.summary["communication"]
    looks = name not in ("weights", "orthonormal", "fedit")
    assert (sent["init_bytes"] > 0) == looks
    assert (json.loads((result.folder / "ledger.json").read_text())["calibration"] != {}) == looks


def test_fedit_sends_both_factors(world):
    config = small(world, method__name="fedit", federation__rounds=1)
    sent = start(config, world / "fedit-size").summary["communication"]
    assert sent["upload_parameters_per_client_per_round"] == 4 * 4 * (32 + 32) + 32 * 3 + 3


def test_float_labels_are_a_regression(world):
    config = classification_config(world / "bert", world / "data", task__label="score", federation__rounds=2)
    result = start(config, world / "regression")
    assert result.summary["primary_metric"] == "pearson"
    assert result.summary["label_names"] is None
    assert result.summary["final"]["mse"] < 0.5 * result.summary["base"]["mse"]
    assert result.model.config.num_labels == 1
    assert "labels" not in json.loads((result.folder / "partition.json").read_text())


def test_two_text_columns(world):
    result = start(small(world, task__text=["text", "key"], federation__rounds=1), world / "pair")
    assert result.summary["final"].keys() == {"accuracy", "macro_f1", "matthews", "loss"}


@pytest.mark.parametrize(("family", "turned"), [("llama", False), ("gpt2", True)])
def test_causal_lm_with_generated_answers(world, family, turned):
    result = start(causal_config(world / family, world / "data"), world / f"causal-{family}")
    assert result.summary["final"].keys() == {"loss", "perplexity", "exact_match"}
    assert result.summary["final"]["loss"] < 0.5 * result.summary["base"]["loss"]
    assert result.summary["final"]["exact_match"] > result.summary["base"]["exact_match"] == 0.0
    adapter = json.loads((result.folder / "adapter" / "adapter_config.json").read_text())
    assert adapter["fan_in_fan_out"] is turned
    assert adapter["task_type"] == "CAUSAL_LM"
    assert adapter["modules_to_save"] is None
    assert adapter["lora_alpha"] == adapter["r"] == 4


# The federation


def test_one_client_is_central_training(world):
    result = start(small(world, federation__clients=1), world / "one")
    lines = metrics_of(result.folder)
    assert [line["clients"] for line in lines] == [[], [0], [0]]
    assert json.loads((result.folder / "partition.json").read_text())["clients"] == {"0": list(range(36))}


def test_some_clients_per_round(world):
    config = small(world, federation__clients=6, federation__clients_per_round=2, federation__rounds=4)
    lines = metrics_of(start(config, world / "cohorts").folder)
    cohorts = [tuple(line["clients"]) for line in lines[1:]]
    assert all(len(set(cohort)) == 2 and set(cohort) <= set(range(6)) for cohort in cohorts)
    assert len(set(cohorts)) > 1


@pytest.mark.parametrize(
    ("partition", "check"),
    [
        ({"kind": "dirichlet", "alpha": 0.3, "min_size": 4}, lambda counts: len(set(map(str, counts))) > 1),
        ({"kind": "shards", "shards_per_client": 1}, lambda counts: all(len(c) == 1 for c in counts)),
        ({"kind": "by-column", "column": "key"}, lambda counts: all(len(c) == 1 for c in counts)),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_uneven_partitions(world, partition, check):
    config = small(world, federation__partition=partition, federation__rounds=1)
    result = start(config, world / f"partition-{partition['kind']}")
    record = json.loads((result.folder / "partition.json").read_text())
    assert record["kind"] == partition["kind"]
    assert sorted(i for part in record["clients"].values() for i in part) == list(range(36))
    assert check([counts for counts in record["labels"].values()])


def test_weighting_changes_the_mean_of_unequal_clients(world):
    unequal = {"federation__partition": {"kind": "by-column", "column": "site"}, "federation__clients": 3}
    by_examples = start(small(world, federation__rounds=1, **unequal), world / "by-examples")
    sizes = json.loads((by_examples.folder / "partition.json").read_text())["clients"].values()
    assert len({len(part) for part in sizes}) > 1
    config = small(world, federation__rounds=1, federation__weighting="uniform", **unequal)
    uniform = start(config, world / "uniform")
    assert adapter_bytes(by_examples.folder) != adapter_bytes(uniform.folder)
    assert timeless(by_examples.folder)[0] == timeless(uniform.folder)[0]


def test_evaluation_every_other_round_and_after_the_last(world):
    config = small(world, evaluation__every=2, federation__rounds=3)
    lines = metrics_of(start(config, world / "every2").folder)
    assert [bool(line["eval"]) for line in lines] == [True, False, True, True]
    always = metrics_of(start(small(world, federation__rounds=3), world / "every1").folder)
    assert [lines[i]["eval"] for i in (2, 3)] == [
        always[i]["eval"] for i in (2, 3)
    ]  # looking changes nothing


# Clients that fail


def spoil(monkeypatch, client, what, *, rounds=(1, 2)):
    """Let one client (None: all) fail as `what` does it with its answer, in the given rounds."""

    def update(broadcast, local_model, examples, training, **options):
        answer = client_update(broadcast, local_model, examples, training, **options)
        chosen = client is None or options["client"] == client
        return what(answer) if chosen and wire.unpack(broadcast)[0].round in rounds else answer

    monkeypatch.setattr(party, "client_update", update)


def crash(answer):
    raise OSError("the link broke")


def not_finite(answer):
    header, vector = wire.unpack(answer)
    vector[3] = float("nan")
    return wire.pack(header, vector)


def too_short(answer):
    header, vector = wire.unpack(answer)
    return wire.pack(header, vector[:-1])


def stale(answer):
    header, vector = wire.unpack(answer)
    return wire.pack(replace(header, round=header.round + 5), vector)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (crash, "OSError: the link broke"),
        (not_finite, "not finite: 1 of"),
        (lambda answer: b"garbage", "not a fedsb-1 message"),
        (lambda answer: answer[:-7], "not a fedsb-1 message"),
        (too_short, "wrong shape"),
        (stale, "wrong round"),
    ],
    ids=["crash", "nan", "garbage", "cut", "short", "stale"],
)
def test_a_failing_client_is_left_out_with_its_reason(world, tmp_path, monkeypatch, what, reason):
    spoil(monkeypatch, 1, what, rounds=(1,))
    result = start(small(world), tmp_path / "run")
    lines = metrics_of(result.folder)
    assert lines[1]["clients"] == [0, 2]
    assert [fault["client"] for fault in lines[1]["rejected"]] == [1]
    assert reason in lines[1]["rejected"][0]["reason"]
    assert lines[2]["clients"] == [0, 1, 2]
    assert result.summary["rounds"] == 2
    ledger = json.loads((result.folder / "ledger.json").read_text())["entries"]
    assert (
        sum(e["bytes"] for e in ledger if e["round"] == 1 and e["direction"] == "up")
        == (lines[1]["upload_bytes"])
    )


def test_an_update_too_large_for_float16_is_left_out_and_bfloat16_takes_it(world, tmp_path, monkeypatch):
    def train(local_model, parameters, *more, **options):
        if options["client"] == 1:
            next(p for name, p in parameters.items() if name.endswith(".R")).data.fill_(7e4)
        return 0.5

    monkeypatch.setattr(client, "train", train)

    for dtype, clients in (("float16", [0, 2]), ("bfloat16", [0, 1, 2])):
        result = start(small(world, federation__upload_dtype=dtype, federation__rounds=1), tmp_path / dtype)
        line = metrics_of(result.folder)[1]
        assert line["clients"] == clients
        assert all("too large for float16" in fault["reason"] for fault in line["rejected"])
        assert 0 < line["upload_bytes"] - 2 * line["upload_parameters"] < 400 * len(clients)


def test_a_left_out_client_does_not_touch_the_mean(world, tmp_path, monkeypatch):
    """The others' mean is the same however the client failed."""
    results = []
    for name, what in (("crash", crash), ("nan", not_finite)):
        spoil(monkeypatch, 1, what)
        results.append(adapter_bytes(start(small(world), tmp_path / name).folder))
    assert results[0] == results[1]


def test_all_clients_failing_stops_the_run_and_resume_finishes_it(world, tmp_path, monkeypatch, plain):
    spoil(monkeypatch, None, not_finite, rounds=(2,))
    with pytest.raises(RunFailed, match=r"round 2: no client's update could be used \(client 0: update is"):
        start(small(world), tmp_path / "run")
    assert [line["round"] for line in metrics_of(tmp_path / "run")] == [0, 1]
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "adapter").exists()
    monkeypatch.undo()
    resumed = start(small(world), tmp_path / "run", resume=True)
    assert timeless(resumed.folder) == timeless(plain.folder)
    assert adapter_bytes(resumed.folder) == adapter_bytes(plain.folder)


def test_failing_in_the_first_round_leaves_the_base_model_s_score(world, tmp_path, monkeypatch, plain):
    spoil(monkeypatch, None, crash)
    with pytest.raises(RunFailed, match="round 1"):
        start(small(world), tmp_path / "run")
    assert timeless(tmp_path / "run") == timeless(plain.folder)[:1]


def test_clients_over_time_are_left_out(world, tmp_path):
    config = small(world, federation__client_timeout_seconds=1e-6)
    with pytest.raises(RunFailed, match="timed out after 1e-06 s"):
        start(config, tmp_path / "run")


def test_a_loss_that_is_not_finite_fails_with_the_cure(world, tmp_path):
    config = small(world, training__learning_rate=1e30, training__optimizer="sgd", training__epochs=3)
    with pytest.raises(RunFailed, match=r"not finite"):
        start(config, tmp_path / "run")


# The result in memory


def test_model_of_the_result_is_the_final_one(learned):
    from fedsb.adapter import LowRankLinear
    from fedsb.models.peft_folder import read_adapter

    _, pairs, head = read_adapter(learned.folder / "adapter")
    layers = {n: m for n, m in learned.model.named_modules() if isinstance(m, LowRankLinear)}
    assert layers.keys() == pairs.keys()
    for name, layer in layers.items():
        torch.testing.assert_close(layer.update(), pairs[name].B @ pairs[name].A)
    parameters = dict(learned.model.named_parameters())
    assert head.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(parameters[name], value) for name, value in head.items())


def test_resuming_a_finished_run_changes_no_byte(world, plain):
    before = snapshot(plain.folder)
    again = start(small(world), plain.folder, resume=True)
    assert snapshot(plain.folder) == before
    assert again.summary == json.loads(json.dumps(plain.summary))


def test_resume_makes_the_last_files_where_only_they_are_missing(world, tmp_path):
    config = small(world, federation__rounds=1)
    first = start(config, tmp_path / "run")
    before = adapter_bytes(first.folder)
    for name in ("summary.json", "report.html", "adapter/adapter_model.safetensors"):
        (first.folder / name).unlink()
    write_json(first.folder / "metrics.jsonl", {})  # older than the checkpoint
    start(config, first.folder, resume=True)
    assert adapter_bytes(first.folder) == before
    assert (first.folder / "report.html").is_file()
    assert [line["round"] for line in metrics_of(Path(first.folder))] == [0, 1]
