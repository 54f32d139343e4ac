"""A process that lasts answers as fresh ones do, and keeps nothing where that could differ."""

from pathlib import Path

import pytest
import torch
import yaml
from run_helpers import (
    changed,
    classification_config,
    metrics_of,
    parts_of,
    tiny_bert,
    write_config,
    write_data,
)

from fedsb import RunConfig, run
from fedsb.deploy.node import OpenNode
from fedsb.errors import InputError
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.clients import RemoteClients, simulate_cohort

CLIENTS = 2
RUN, OTHER_RUN = "1" * 32, "2" * 32
EXAMPLE = {"unit": "example", "noise_multiplier": 1.0, "delta": 1e-3, "clip_norm": 0.5}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=40, test=12)
    return folder


def config_of(world, **changes):
    few = {
        "federation__rounds": 3,
        "federation__clients": CLIENTS,
        "task__labels": ["pos", "neg", "flat"],
        "method__init": {"kind": "weights", "head_warmup": None},
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def node_files(config, parts, folder):
    rows = Path(config["data"]["train"]).read_text().splitlines(keepends=True)
    files = []
    for client, part in enumerate(parts):
        (folder / f"{client}.jsonl").write_text("".join(rows[i] for i in part))
        own = {"client": client, "data": {"train": f"{client}.jsonl"}, "state": f"state-{client}"}
        files.append(write_config(folder / f"node-{client}.yaml", own))
    return files


def asked(config, files, helds, run_name=RUN):
    """Peers that each keep one `OpenNode`."""

    def ask(kind, cohort, message_to):
        def answer(client):
            node = helds[client].opened(kind, RunConfig.from_dict(config), files[client], run_name)
            return node.answer(kind, message_to(client))

        yield from simulate_cohort(cohort, answer)

    return ask


def run_with(config, folder, name, parts, ask):
    return run(RunConfig.from_dict(config), folder / name, remote=RemoteClients([len(p) for p in parts], ask))


def simulated_parts(config, folder):
    run(RunConfig.from_dict(config), folder / "simulated")
    return parts_of(folder / "simulated")


def assert_equal(folder, one="simulated", other="deployed"):
    for a, b in zip(metrics_of(folder / one), metrics_of(folder / other), strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}
    a, b = (load_checkpoint(folder / name / "checkpoint").state for name in (one, other))
    assert torch.equal(a.vector, b.vector)
    for name, total in a.base.total.items():
        torch.testing.assert_close(total, b.base.total[name], rtol=0, atol=1e-6)


CASES = {
    "fed-sb": {"method__init": {"samples": 24, "head_warmup": {"rounds": 1, "steps": 5}}},
    "fedex-lora": {"method__name": "fedex-lora"},
    "flora": {"method__name": "flora"},
    "private": {"privacy": EXAMPLE | {"insecure_seed": 3}, "federation__rounds": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_the_run_of_a_lasting_process_equals_the_simulated_one(world, tmp_path, name):
    config = config_of(world, **CASES[name])
    parts = simulated_parts(config, tmp_path)
    files, helds = node_files(config, parts, tmp_path), [OpenNode() for _ in range(CLIENTS)]
    run_with(config, tmp_path, "deployed", parts, asked(config, files, helds))
    assert_equal(tmp_path)


@pytest.mark.parametrize("method", ["fed-sb", "flora"])
def test_a_second_run_inherits_nothing_from_the_first(world, tmp_path, method):
    """Another seed and rate in between, in the same processes."""
    config = config_of(world, method__name=method)
    parts = simulated_parts(config, tmp_path)
    files, helds = node_files(config, parts, tmp_path), [OpenNode() for _ in range(CLIENTS)]
    other = changed(config, seed=9, training__learning_rate=0.1, federation__rounds=1)
    run_with(other, tmp_path, "first", parts, asked(other, files, helds, OTHER_RUN))
    run_with(config, tmp_path, "deployed", parts, asked(config, files, helds))
    assert_equal(tmp_path)


def test_what_is_asked_after_training_meets_an_untrained_model(world, tmp_path):
    """A server that starts again says hello again: the digest is the base model's, not the trained one's."""
    config = config_of(world, federation__rounds=1)
    parts = simulated_parts(config, tmp_path)
    files, helds = node_files(config, parts, tmp_path), [OpenNode() for _ in range(CLIENTS)]
    whole = RunConfig.from_dict(config)
    before = helds[0].opened("hello", whole, files[0], RUN).facts()
    run_with(config, tmp_path, "deployed", parts, asked(config, files, helds))
    assert helds[0].trained
    assert helds[0].opened("hello", whole, files[0], RUN).facts() == before


def opened_twice(config, file, change=lambda: None, kinds=("hello", "train"), runs=(RUN, RUN)):
    """Whether the same node answers before and after the change."""
    held, whole = OpenNode(), RunConfig.from_dict(config)
    first = held.opened(kinds[0], whole, file, runs[0])
    change()
    return held.opened(kinds[1], whole, file, runs[1]) is first


def test_a_node_is_kept_only_where_that_changes_nothing(world, tmp_path):
    config = config_of(world)
    file, _ = node_files(config, [range(20), range(20, 40)], tmp_path)
    assert opened_twice(config, file)
    assert opened_twice(config, file, kinds=("train", "train"))
    assert not opened_twice(config, file, kinds=("train", "contribute"))
    assert not opened_twice(config, file, runs=(RUN, OTHER_RUN))
    assert not opened_twice(config, file, lambda: (tmp_path / "0.jsonl").write_text(ROW * 7))
    own = yaml.safe_load(Path(file).read_text()) | {"audit": True}
    assert not opened_twice(config, file, lambda: write_config(file, own))


ROW = '{"text": "good food", "label": "pos"}\n'


def test_a_limit_that_was_lowered_counts_at_once(world, tmp_path):
    config = config_of(world)
    file, _ = node_files(config, [range(20), range(20, 40)], tmp_path)
    held, whole = OpenNode(), RunConfig.from_dict(config)
    held.opened("train", whole, file, RUN)
    write_config(file, yaml.safe_load(Path(file).read_text()) | {"limits": {"largest_epsilon": 1.0}})
    with pytest.raises(InputError, match=r"limits.largest_epsilon"):
        held.opened("train", whole, file, RUN)
    assert held.node is None


def test_a_private_round_asked_for_twice_has_other_batches(world, tmp_path):
    config = config_of(world, privacy=EXAMPLE)
    file, _ = node_files(config, [range(20), range(20, 40)], tmp_path)
    node = OpenNode().opened("train", RunConfig.from_dict(config), file, RUN)
    draws = {node._with_secret_batches().samples.stream("poisson", 1, 0, 0).read(1).item() for _ in range(3)}
    assert len(draws) == 3
