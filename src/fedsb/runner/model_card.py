"""README.md of an exported model: what was trained on what, what it cost, what it scores, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fedsb.common.files import read_json
from fedsb.common.printable import printable
from fedsb.config import RunConfig
from fedsb.report.units import human_bytes, plural
from fedsb.runner.vllm import VLLM_RANKS, serving_rank

LOADERS = {False: "AutoModelForCausalLM", True: "AutoModelForSequenceClassification"}
"""By whether the model classifies."""


def model_card(run: Path, *, rank: int | None) -> str:
    """The card of a finished run's export; `rank` is the LoRA folder's, None for merged weights.

    Names of data and models are file or hub names, never paths of this machine.
    """
    config = RunConfig.from_yaml(run / "config.yaml")
    summary = read_json(run / "summary.json")
    sections = [
        _front_matter(config, rank),
        f"# {_name(config.model.path)}, fine-tuned with {summary['method']}",
        _what(config, summary),
        "## Scores\n\n" + _scores(summary),
        "## Traffic\n\n" + _traffic(summary),
        "## Privacy\n\n" + _privacy(summary),
        "## Use\n\n" + _use(config, summary, rank),
        "## Made with\n\n" + ", ".join(f"{n} {v}" for n, v in summary["versions"].items()) + ".",
    ]
    return printable("\n\n".join(sections), None, keep="\n") + "\n"


def _name(path: str) -> str:
    """A hub id as it is, the last part of a path on this machine."""
    return Path(path).name if Path(path).is_absolute() or path.startswith((".", "~")) else path


def _front_matter(config: RunConfig, rank: int | None) -> str:
    tags = ["federated-learning", "lora", config.method.name]
    values = {"base_model": _name(config.model.path), "tags": tags}
    values["library_name"] = "transformers" if rank is None else "peft"
    values["datasets"] = _data_names(config)
    return f"---\n{yaml.safe_dump(values, sort_keys=False).strip()}\n---"


def _data_names(config: RunConfig) -> list[str]:
    train = config.data.train
    return [_name(source) for source in (train.values() if isinstance(train, dict) else [train])]


def _what(config: RunConfig, summary: dict[str, Any]) -> str:
    method, federation, start = config.method, config.federation, summary["initialization"]["kind"]
    data = ", ".join(f"`{name}`" for name in _data_names(config))
    exact = "is exactly" if summary["exact"] else "is not exactly"
    return (
        f"{plural(federation.clients, 'client')} trained on parts of {data} "
        f"({federation.partition.kind} partition) over {plural(summary['rounds'], 'round')}, with "
        f"{summary['method']} at rank {method.rank}; bases started from: {start}. "
        f"With this method the averaged model {exact} the mean of the clients' models. Seed {config.seed}."
    )


def _scores(summary: dict[str, Any]) -> str:
    """A table of the base model's and the final scores."""
    rows = [
        f"| {name.replace('_', ' ')} | {_value(summary['base'].get(name))} | {_value(value)} |"
        for name, value in summary["final"].items()
    ]
    head = "| metric | base model | this model |\n|---|---|---|\n"
    return f"{head}" + "\n".join(rows) + f"\n\nOn {summary['num_test_examples']} test examples."


def _value(number: float | None) -> str:
    return "-" if number is None else f"{number:.4g}"


def _traffic(summary: dict[str, Any]) -> str:
    sent = summary["communication"]
    each = sent["upload_parameters_per_client_per_round"]
    return (
        f"Once {human_bytes(sent['init_bytes'])}; then {human_bytes(sent['upload_bytes'])} up and "
        f"{human_bytes(sent['download_bytes'])} down over all clients and rounds, {each:,} numbers an upload."
    )


def _privacy(summary: dict[str, Any]) -> str:
    privacy = summary["privacy"]
    if privacy is None:
        return "No differential privacy: the updates were averaged as they were."
    return str(privacy["statement"])


def _use(config: RunConfig, summary: dict[str, Any], rank: int | None) -> str:
    loader, base = LOADERS[config.task.classifies], _name(config.model.path)
    names = summary["label_names"]
    labels = f", num_labels={len(names) if names else 1}" if config.task.classifies else ""
    if rank is None:
        return (
            f"```python\nfrom transformers import {loader}\n\nmodel = {loader}.from_pretrained(FOLDER)\n```"
        )
    text = (
        f"```python\nfrom peft import PeftModel\nfrom transformers import {loader}\n\n"
        f'base = {loader}.from_pretrained("{base}"{labels})\n'
        "model = PeftModel.from_pretrained(base, FOLDER)\n```"
    )
    return text + (_vllm(base, rank) if not config.task.classifies and rank <= VLLM_RANKS[-1] else "")


def _vllm(base: str, rank: int) -> str:
    return (
        f"\n\n```sh\nvllm serve {base} --enable-lora --max-lora-rank {serving_rank(rank)} "
        "--lora-modules tuned=FOLDER\n```"
    )
