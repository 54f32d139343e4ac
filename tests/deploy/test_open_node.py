"""A process that lasts answers as fresh ones do, and keeps nothing where that could differ."""

from pathlib import Path

import pytest
import yaml
from run_helpers import changed, parts_of, write_config
from test_node import (  # noqa: F401
    CHARGED,
    CLIENTS,
    EXAMPLES_PROTECTED,
    RUN,
    assert_equal_runs,
    config_of,
    node_files,
    world,
)

from fedsb import RunConfig, run
from fedsb.deploy.open_node import OpenNode
from fedsb.errors import InputError
from fedsb.runner.clients import RemoteClients, simulate_cohort

OTHER_RUN = "2" * 32


def files_of(config, parts, folder):
    """Node config files, beside the rows of each."""
    nodes = node_files(config, parts, folder)
    return [write_config(folder / f"node-{node['client']}.yaml", node) for node in nodes]


def opened_by(config, files, helds, run_name=RUN):
    """Peers that each keep one `OpenNode`."""

    def ask(kind, cohort, message_to):
        def answer(client):
            node = helds[client].opened(kind, RunConfig.from_dict(config), files[client], run_name)
            return node.answer(kind, message_to(client))

        yield from simulate_cohort(cohort, answer)

    return ask


def run_with(config, folder, name, ask):
    sizes = [len(part) for part in parts_of(folder / "simulated")]
    return run(RunConfig.from_dict(config), folder / name, remote=RemoteClients(sizes, ask))


def simulated(config, folder):
    """The simulated run; the files of nodes with its parts, and what holds each node open."""
    run(RunConfig.from_dict(config), folder / "simulated")
    helds = [OpenNode() for _ in range(CLIENTS)]
    return files_of(config, parts_of(folder / "simulated"), folder), helds


CASES = {
    "fed-sb": {"method__init": {"samples": 24, "head_warmup": {"rounds": 1, "steps": 5}}},
    "fedex-lora": {"method__name": "fedex-lora"},
    "flora": {"method__name": "flora"},
    "ravan": {"method__name": "ravan"},
    "private": {"privacy": EXAMPLES_PROTECTED | {"insecure_seed": 3}, "method__init": CHARGED},
}


@pytest.mark.parametrize("name", CASES)
def test_the_run_of_a_lasting_process_equals_the_simulated_one(world, tmp_path, name):  # noqa: F811
    config = config_of(world, **CASES[name])
    files, helds = simulated(config, tmp_path)
    run_with(config, tmp_path, "deployed", opened_by(config, files, helds))
    assert_equal_runs(tmp_path)


@pytest.mark.parametrize("method", ["fed-sb", "flora"])
def test_a_second_run_inherits_nothing_from_the_first(world, tmp_path, method):  # noqa: F811
    """Another seed and rate in between, in the same processes."""
    config = config_of(world, method__name=method)
    files, helds = simulated(config, tmp_path)
    other = changed(config, seed=9, training__learning_rate=0.1, federation__rounds=1)
    run_with(other, tmp_path, "first", opened_by(other, files, helds, OTHER_RUN))
    run_with(config, tmp_path, "deployed", opened_by(config, files, helds))
    assert_equal_runs(tmp_path)


def test_what_is_asked_after_training_meets_an_untrained_model(world, tmp_path):  # noqa: F811
    """A server that starts again says hello again: the digest is the base model's, not the trained one's."""
    config = config_of(world, federation__rounds=1)
    files, helds = simulated(config, tmp_path)
    whole = RunConfig.from_dict(config)
    before = helds[0].opened("hello", whole, files[0], RUN).facts()
    run_with(config, tmp_path, "deployed", opened_by(config, files, helds))
    assert helds[0].trained
    assert helds[0].opened("hello", whole, files[0], RUN).facts() == before


def opened_twice(config, file, change=lambda: None, kinds=("hello", "train"), runs=(RUN, RUN)):
    """Whether the same node answers before and after the change."""
    held, whole = OpenNode(), RunConfig.from_dict(config)
    first = held.opened(kinds[0], whole, file, runs[0])
    change()
    return held.opened(kinds[1], whole, file, runs[1]) is first


def test_a_node_is_kept_only_where_that_changes_nothing(world, tmp_path):  # noqa: F811
    config = config_of(world)
    (file,) = files_of(config, [range(20)], tmp_path)
    assert opened_twice(config, file)
    assert opened_twice(config, file, kinds=("train", "train"))
    assert not opened_twice(config, file, kinds=("train", "contribute"))
    assert not opened_twice(config, file, runs=(RUN, OTHER_RUN))
    assert not opened_twice(config, file, lambda: (tmp_path / "0.jsonl").write_text(ROW * 7))
    node_config = yaml.safe_load(Path(file).read_text()) | {"audit": True}
    assert not opened_twice(config, file, lambda: write_config(file, node_config))


ROW = '{"note": "good food", "label": "pos"}\n'


def test_a_limit_that_was_lowered_counts_at_once(world, tmp_path):  # noqa: F811
    config = config_of(world)
    (file,) = files_of(config, [range(20)], tmp_path)
    held, whole = OpenNode(), RunConfig.from_dict(config)
    held.opened("train", whole, file, RUN)
    write_config(file, yaml.safe_load(Path(file).read_text()) | {"limits": {"largest_epsilon": 1.0}})
    with pytest.raises(InputError, match=r"limits.largest_epsilon"):
        held.opened("train", whole, file, RUN)
    assert held.node is None


def test_a_private_round_asked_for_twice_has_other_batches(world, tmp_path):  # noqa: F811
    config = config_of(world, privacy=EXAMPLES_PROTECTED)
    (file,) = files_of(config, [range(20)], tmp_path)
    node = OpenNode().opened("train", RunConfig.from_dict(config), file, RUN)
    draws = {node._with_secret_batches().samples.stream("poisson", 1, 0, 0).read(1).item() for _ in range(3)}
    assert len(draws) == 3
