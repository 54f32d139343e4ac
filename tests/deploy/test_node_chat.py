"""Parties whose rows are conversations: a node needs its file and nothing else, in whatever shape it is."""

import pytest
import torch
from chat_families import save_chat_model
from run_helpers import metrics_of, parts_of, write_rows

from fedsb import RunConfig, run
from fedsb.deploy.node import Node
from fedsb.deploy.node_config import NodeConfig, check_run, config_digest
from fedsb.deploy.write import write_deployment
from fedsb.errors import InputError
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.clients import RemoteClients, simulate_cohort

PAIRS = [(f"what is {number} ?", f"It is {number}.") for number in range(8)]
SHAPES = [
    lambda ask, say: {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]},
    lambda ask, say: {"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": say}]},
    lambda ask, say: {"instruction": ask, "output": say},
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talk")
    save_chat_model(folder / "model", "qwen")
    file = write_rows(folder / "rows.jsonl", [SHAPES[0](*pair) for pair in PAIRS])
    return {
        "model": {"path": str(folder / "model")},
        "task": {"kind": "chat"},
        "data": {"train": str(file), "test": str(file), "limit": {"test": 3}},
        "method": {"rank": 2, "init": {"kind": "weights"}},
        "federation": {"clients": 3, "rounds": 1},
        "training": {"learning_rate": 0.01, "batch_size": 2, "max_length": 64},
    }


def test_nodes_of_three_shapes_do_what_the_simulation_does(config, tmp_path):
    run(RunConfig.from_dict(config), tmp_path / "simulated")
    parts = parts_of(tmp_path / "simulated")
    for client, part in enumerate(parts):
        write_rows(tmp_path / f"{client}.jsonl", [SHAPES[client](*PAIRS[i]) for i in part])

    def answer(kind, client, message):
        own = {"train": str(tmp_path / f"{client}.jsonl")}
        node = NodeConfig(client=client, data=own, state=str(tmp_path / f"state-{client}"))
        return Node(RunConfig.from_dict(config), node, "1" * 32).answer(kind, message)

    def ask(kind, cohort, message_to):
        yield from simulate_cohort(cohort, lambda client: answer(kind, client, message_to(client)))

    remote = RemoteClients([len(part) for part in parts], ask)
    run(RunConfig.from_dict(config), tmp_path / "deployed", remote=remote)
    for a, b in zip(metrics_of(tmp_path / "simulated"), metrics_of(tmp_path / "deployed"), strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}
    one, other = (load_checkpoint(tmp_path / name / "checkpoint") for name in ("simulated", "deployed"))
    torch.testing.assert_close(one.state.vector, other.state.vector, rtol=0, atol=1e-6)


def test_the_node_config_that_is_written_gives_every_shape_and_no_other_column(config, tmp_path):
    private = config | {"privacy": {"unit": "example", "epsilon": 3.0, "delta": 1e-3, "clip_norm": 0.5}}
    run_config = RunConfig.from_dict(private)
    write_deployment(tmp_path / "all", run_config, host="fl.example.org", port=9092)
    written = tmp_path / "all" / "nodes" / "client-0" / "node.yaml"
    node = NodeConfig.from_yaml(written, [f'approved=["{config_digest(run_config)}"]'])
    check_run(node, run_config)
    assert node.limits.largest_epsilon == 3.0
    assert {"messages", "conversations", "instruction", "prompt"} <= node.data.columns.keys()
    bare = node.model_copy(update={"data": node.data.model_copy(update={"columns": {}})})
    with pytest.raises(InputError, match="with limits this party must list the columns"):
        check_run(bare, run_config)
    other = RunConfig.from_dict(
        private | {"task": {"kind": "causal-lm", "prompt": "{ssn}", "response": "output"}}
    )
    with pytest.raises(InputError, match="uses the column 'ssn'"):
        check_run(node, other)
