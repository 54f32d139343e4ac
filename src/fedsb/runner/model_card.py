"""README.md of an exported model: what was trained on what, what it cost, what it scores, how to load it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedsb.common.files import read_json
from fedsb.common.printable import printable
from fedsb.config import RunConfig
from fedsb.models.public_name import is_local, public_name
from fedsb.report.units import human_bytes, plural
from fedsb.runner.client_lora import client_number
from fedsb.runner.vllm import VLLM_RANKS, serving_rank


def model_card(
    run: Path,
    *,
    rank: int | None,
    merged: str | None = None,
    expert: str | None = None,
    client: str | None = None,
) -> str:
    """The card of a finished run's export; `rank` is the LoRA folder's, None for merged weights.

    Only what is on the hub is named as data or base model; no file or folder of this machine is.

    Args:
        merged: what merging the weights cost, in words.
        expert: of a mixture what was exported: one expert, or their mean.
        client: whose own model was exported.
    """
    config = RunConfig.from_yaml(run / "config.yaml")
    summary = read_json(run / "summary.json")
    scores = _scores(summary) if expert is None else _scores_of_one(summary, expert)
    if client is not None:
        scores = _scores_at(summary, client_number(run, client))
    use = _use(config, summary, rank)
    return _card(config, summary, rank, _what(config, summary), scores, use, merged)


def experts_card(run: Path, folders: Mapping[str, str], *, rank: int) -> str:
    """The card of the experts of a mixture, each in a folder of its own."""
    config = RunConfig.from_yaml(run / "config.yaml")
    summary = read_json(run / "summary.json")
    listed = "\n".join(f"| {expert} | `{folder}` |" for expert, folder in folders.items())
    what = (
        f"{_what(config, summary)} The experts of its mixture, each a LoRA of its own, exact where it works "
        f"alone:\n\n| expert | folder |\n|---|---|\n{listed}"
    )
    scores = "Of the mixture, with its router; no one expert has them.\n\n" + _scores(summary)
    use = _use(config, summary, rank, folders.values())
    return _card(config, summary, rank, what, scores, use)


def _card(
    config: RunConfig,
    summary: dict[str, Any],
    rank: int | None,
    what: str,
    scores: str,
    use: str,
    merged: str | None = None,
) -> str:
    sections = [
        _front_matter(config, rank),
        f"# {public_name(config.model.path)}, fine-tuned with {summary['method']}",
        what,
        "## Scores\n\n" + scores,
        "## Traffic\n\n" + _traffic(summary),
        "## Privacy\n\n" + _privacy(summary),
        *([f"## Weights\n\n{merged[0].upper()}{merged[1:]}."] if merged else []),
        "## Use\n\n" + use,
        "## Made with\n\n" + ", ".join(f"{n} {v}" for n, v in summary["versions"].items()) + ".",
    ]
    return printable("\n\n".join(sections), None, keep="\n") + "\n"


def _front_matter(config: RunConfig, rank: int | None) -> str:
    """Keys of the hub's cards. Names there become links: a local one would lead to a stranger's."""
    base, values = public_name(config.model.path), dict[str, Any]()
    if not is_local(config.model.path) or "/" in base:
        values["base_model"] = base
    values["tags"] = ["federated-learning", "lora", config.method.name]
    values["library_name"] = "transformers" if rank is None else "peft"
    if names := _hub_data(config):
        values["datasets"] = names
    return f"---\n{yaml.safe_dump(values, sort_keys=False).strip()}\n---"


def _hub_data(config: RunConfig) -> list[str]:
    """The ids of training data on the hub; files have none."""
    train = config.data.train
    sources = list(train.values()) if isinstance(train, dict) else [train]
    files = [file for source in sources for file in ([source] if isinstance(source, str) else source)]
    return [file for file in files if not is_local(file)]


def _what(config: RunConfig, summary: dict[str, Any]) -> str:
    method, federation, start = config.method, config.federation, summary["initialization"]["kind"]
    data = ", ".join(f"`{name}`" for name in _hub_data(config)) or "local files"
    exact = "is exactly" if summary["exact"] else "is not exactly"
    return (
        f"{plural(federation.clients, 'client')} trained on parts of {data} "
        f"({federation.partition.kind} partition) over {plural(summary['rounds'], 'round')}, with "
        f"{summary['method']} at rank {method.rank}{_own_ranks(summary)}; bases started from: {start}. "
        f"With this method the averaged model {exact} the mean of the clients' models. Seed {config.seed}."
    )


def _own_ranks(summary: dict[str, Any]) -> str:
    ranks = summary["initialization"].get("ranks")
    return f" ({min(ranks.values())} to {max(ranks.values())} by layer)" if ranks else ""


def _scores(summary: dict[str, Any]) -> str:
    """A table of the base model's and the final scores."""
    rows = [
        f"| {name.replace('_', ' ')} | {_value(summary['base'].get(name))} | {_value(value)} |"
        for name, value in summary["final"].items()
    ]
    head = "| metric | base model | this model |\n|---|---|---|\n"
    count, sites = summary["num_test_examples"], summary.get("sites")
    where = f"On {plural(count, 'test example')}."
    if not count and sites is not None:
        where = (
            f"Means over {plural(len(sites['scores']), 'client')}, each scored on rows of its own; the first "
            "column is the model as the run began with it."
        )
    return f"{head}" + "\n".join(rows) + f"\n\n{where}"


def _scores_at(summary: dict[str, Any], client: int) -> str:
    """What one client's own model scored on the client's own rows."""
    sites = summary.get("sites") or {"scores": {}, "rows": {}}
    scores = sites["scores"].get(str(client))
    text = "This is the model of one client: the shared part, and what stayed with that client."
    if scores is None:
        return f"{text} It was not scored."
    rows = [f"| {name.replace('_', ' ')} | {_value(value)} |" for name, value in scores.items()]
    table = "\n".join(["| metric | this model |", "|---|---|", *rows])
    return f"{text}\n\n{table}\n\nOn {plural(sites['rows'][str(client)], 'row')} of that client's own."


def _scores_of_one(summary: dict[str, Any], expert: str) -> str:
    """The scores of an adapter that is a part of a mixture: never the mixture's."""
    static = summary["mixture"].get("static")
    if expert in summary["mixture"]["experts"]:
        return f"This is the expert `{expert}` alone; the run scored its mixture, not this adapter."
    text = (
        "This is the mean of the experts, one adapter without a router, and not the mixture that was trained."
    )
    return f"{text}\n\n{_scores({**summary, 'final': static})}" if static else text


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


def _use(config: RunConfig, summary: dict[str, Any], rank: int | None, folders: Collection[str] = ()) -> str:
    """Code that loads what was written; `folders`: of several adapters."""
    loader, base = f"AutoModelFor{config.task.model_class}", public_name(config.model.path)
    names = summary["label_names"]
    labels = f", num_labels={len(names) if names else 1}" if config.task.classifies else ""
    if rank is None:
        return (
            f"```python\nfrom transformers import {loader}\n\nmodel = {loader}.from_pretrained(FOLDER)\n```"
        )
    text = (
        f"```python\nfrom peft import PeftModel\nfrom transformers import {loader}\n\n"
        f'base = {loader}.from_pretrained("{base}"{labels})\n{_loads(folders)}\n```'
    )
    modules = " ".join(f"{name}=FOLDER/{name}" for name in folders) or "tuned=FOLDER"
    return text + (
        _vllm(base, rank, modules) if not config.task.classifies and rank <= VLLM_RANKS[-1] else ""
    )


def _loads(folders: Collection[str]) -> str:
    """Lines that put one adapter, or each of several, on the base."""
    if not folders:
        return "model = PeftModel.from_pretrained(base, FOLDER)"
    first, *others = folders
    lines = [f'model = PeftModel.from_pretrained(base, "FOLDER/{first}", adapter_name="{first}")']
    lines += [f'model.load_adapter("FOLDER/{name}", adapter_name="{name}")' for name in others]
    return "\n".join([*lines, f'model.set_adapter("{first}")'])


def _vllm(base: str, rank: int, modules: str) -> str:
    return (
        f"\n\n```sh\nvllm serve {base} --enable-lora --max-lora-rank {serving_rank(rank)} "
        f"--lora-modules {modules}\n```"
    )
