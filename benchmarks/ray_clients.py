"""The other side of `simulation.py`: peft LoRA clients under Flower's own simulation, which runs on Ray.

The base is loaded for each message, as Flower's own fine-tuning examples do, or kept by each Ray worker.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client, server = ClientApp(), ServerApp()


@lru_cache(maxsize=1)
def _settings() -> dict[str, Any]:
    return json.loads(os.environ["FEDSB_BENCH"])  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def _kept_model() -> torch.nn.Module:
    return _model()


def _model() -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(1)
    base = AutoModelForSequenceClassification.from_pretrained(_settings()["model"], num_labels=2)
    rank, targets = _settings()["rank"], ["query", "value"]
    return get_peft_model(
        base, LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=rank, target_modules=targets)
    )


@lru_cache(maxsize=1)
def _rows() -> dict[str, torch.Tensor]:
    from transformers import AutoTokenizer

    rows = [json.loads(line) for line in Path(_settings()["train"]).read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(_settings()["model"])
    encoded = tokenizer(
        [row["text"] for row in rows], padding=True, truncation=True, max_length=32, return_tensors="pt"
    )
    return {**encoded, "labels": torch.tensor([row["label"] for row in rows])}


@client.train()
def train(message: Message, context: Context) -> Message:
    """One epoch over this client's rows."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    model, each = _kept_model() if _settings()["kept"] else _model(), _settings()["rows_per_client"]
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    start = int(context.node_config["partition-id"]) * each
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    for i in range(start, start + each, _settings()["batch_size"]):
        optimizer.zero_grad()
        loss = model(
            **{name: tensor[i : i + _settings()["batch_size"]] for name, tensor in _rows().items()}
        ).loss
        loss.backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": each, "train_loss": loss.item()})
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    from peft import get_peft_model_state_dict

    clients = _settings()["clients"]
    strategy = FedAvg(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
    )
    arrays = ArrayRecord(get_peft_model_state_dict(_model()))
    result = strategy.start(grid, arrays, num_rounds=_settings()["rounds"], train_config=ConfigRecord())
    losses = result.train_metrics_clientapp
    assert len(losses) == _settings()["rounds"], losses
    print("losses", {n: round(float(m["train_loss"]), 3) for n, m in losses.items()})  # type: ignore[arg-type]


if __name__ == "__main__":
    import ray_clients  # so that Ray's workers find the apps by module
    from flwr.simulation import run_simulation

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(ray_clients.server, ray_clients.client, _settings()["clients"], backend_config=resources)
