"""A folder with models, data and a finished run; the command in this process."""

import json
import shutil

import pytest
import torch
from run_helpers import (
    classification_config,
    main_status,
    rows,
    tiny_bert,
    tiny_llama,
    write_config,
    write_data,
    write_rows,
)
from safetensors.torch import save_file

from fedsb import RunConfig, run


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tiny_bert(folder / "bert"), tiny_llama(folder / "llama")
    write_data(folder / "data", train=36, test=12)
    strange = [{**row, "label": "odd"} if i == 4 else row for i, row in enumerate(rows(12, seed=2))]
    write_rows(folder / "data" / "strange.jsonl", strange)
    _broken_models(folder)
    config = classification_config(
        folder / "bert", folder / "data", federation__rounds=1, method__init__head_warmup=None
    )
    write_config(folder / "good.yaml", config)
    run(RunConfig.from_dict(config), folder / "done")
    return folder


def _broken_models(folder):
    for name in ("empty", "cut", "garbage", "other"):
        shutil.copytree(folder / "bert", folder / name)
    (folder / "empty" / "model.safetensors").unlink()
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (folder / "garbage" / "model.safetensors").write_bytes(b"not weights at all " * 50)
    config = json.loads((folder / "other" / "config.json").read_text())
    (folder / "other" / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    (folder / "folder-without-config").mkdir()
    shutil.copytree(folder / "bert", folder / "foreign")
    save_file({"something.else": torch.zeros(3)}, folder / "foreign" / "model.safetensors", {"format": "pt"})
    shutil.copytree(folder / "bert", folder / "no-tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "no-tokenizer" / name).unlink()


@pytest.fixture
def fedsb(monkeypatch, capsys):
    """Call the command in this process: (status, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        status = main_status(monkeypatch, *arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
