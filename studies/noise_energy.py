"""How much of the noise on the factors arrives in the weights: one round of noise alone, through each
method's own messages and average, beside the formula.

    python studies/noise_energy.py

A layer m x n, c clients, per-number noise of standard deviation t on every trained factor (Sun et al. 2024,
arXiv 2403.12313; Lee et al. 2025, arXiv 2505.12805), energies as E||noise in W||_F^2:

    fed-sb              t^2 r^2 / c
    ffa-lora, fedsvd    t^2 m ||A||^2 / c
    fedit               t^2 (m ||A||^2 + n ||B||^2) / c + t^4 m n r / c^2
    flora, fedex-lora   t^2 (m ||A||^2 + n ||B||^2) / c + t^4 m n r / c
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from fedsb.adapter import Factors
from fedsb.adapter.attached import attach
from fedsb.adapter.bases import orthonormal_bases
from fedsb.federation.client import client_update
from fedsb.federation.exchange import Exchange
from fedsb.federation.local_model import LocalModel, load_state
from fedsb.federation.server import Arrived, aggregate, broadcast
from fedsb.federation.state import ServerState
from fedsb.federation.training import LocalTraining
from fedsb.methods import Method, Shape, by_name
from fedsb.privacy.noise import NoiseSource, add_noise

OUT, IN, RANKS, CLIENTS, STDS = 384, 384, {"fed-sb": 64}, 3, (0.002, 0.05)
NAMES, LORA_RANK, ROUNDS = ("fed-sb", "ffa-lora", "fedsvd", "fedit", "flora", "fedex-lora"), 32, 20


def start_of(method: Method, out: int, n_in: int, rank: int) -> Factors:
    """Factors amid a run: LoRA's with a B of a tenth of A's norm, for FedSVD with orthonormal A."""
    draw = torch.Generator().manual_seed(0)
    bases = orthonormal_bases(out, n_in, rank, generator=draw)
    if method.has_core:
        return bases
    A = bases.A if method.name == "fedsvd" else torch.randn(rank, n_in, generator=draw) / rank**0.5
    return Factors(B=0.1 * torch.randn(out, rank, generator=draw) / rank**0.5, A=A, R=None)


def formula(method: Method, start: Factors, std: float, clients: int) -> float:
    """Expected energy of the noise in W after one round that began at `start`."""
    m, n, r = start.B.shape[0], start.A.shape[1], start.A.shape[0]
    if method.has_core:
        return std**2 * r**2 / clients
    left = m * float(start.A.square().sum())
    if method.name in ("ffa-lora", "fedsvd"):
        return std**2 * left / clients
    both = left + n * float(start.B.square().sum())
    quadratic = std**4 * m * n * r
    return std**2 * both / clients + quadratic / (clients**2 if method.name == "fedit" else clients)


def measured(method: Method, start: Factors, std: float, clients: int, rounds: int) -> float:
    """Mean energy of what a round of pure noise changes in W, over independent rounds."""
    return sum(_one_round(method, start, std, clients) for _ in range(rounds)) / rounds


def _one_round(method: Method, start: Factors, std: float, clients: int) -> float:
    exchange = Exchange(method, {"0": Shape(len(start.B), start.A.shape[1])}, len(start.A), 1, {})
    party = _party(method, start, exchange)
    sent = {f"0.{name}": getattr(start, name) for name in method.sends}
    state = ServerState(0, exchange.down(len(start.A)).flatten(sent))
    (layer,) = party.attached.layers.values()
    before = start.B @ (start.A if start.R is None else start.R.sum(0) @ start.A)
    train_with = partial(_noise_alone, start=start, std=std, source=NoiseSource())
    outcomes = []
    for client in range(clients):
        message = broadcast(state, exchange, client, exchange.whole)
        answer = client_update(
            message, party, [{}], LocalTraining(), client=client, seed=0, train_with=train_with
        )
        outcomes.append(Arrived(client, answer))
    state, _ = aggregate(state, outcomes, exchange, weighting="uniform")
    load_state(party, state.vector, state.base.total, round_number=1, seed=0)
    return float((layer.update() - before).square().sum())


def _party(method: Method, start: Factors, exchange: Exchange) -> LocalModel:
    model = nn.Sequential(nn.Linear(start.A.shape[1], len(start.B), bias=False))
    attached = attach(model, {"0": start}, trains=method.trains(1))
    return LocalModel(attached, {}, exchange, {"0": start}, list, lambda m, b: b, torch.device("cpu"))


def _noise_alone(
    local_model: LocalModel,
    parameters: dict[str, nn.Parameter],
    *_: Any,
    start: Factors,
    std: float,
    source: NoiseSource,
    **__: Any,
) -> float:
    """Ends at the start plus noise, whatever the method broadcast: FLoRA's clients begin again each round."""
    for name, parameter in parameters.items():
        value = getattr(start, name.rsplit(".", 1)[-1])
        parameter.data.copy_(add_noise(value, std, source.stream()))
    return 0.0


def main() -> None:
    print(f"one layer {OUT} x {IN}, {CLIENTS} clients, LoRA rank {LORA_RANK}, Fed-SB rank {RANKS['fed-sb']}")
    for std in STDS:
        for name in NAMES:
            method = by_name(name)
            start = start_of(method, OUT, IN, RANKS.get(name, LORA_RANK))
            found = measured(method, start, std, CLIENTS, ROUNDS)
            wanted = formula(method, start, std, CLIENTS)
            print(
                f"std {std:<6} {name:12} energy {found:12.5f}   formula {wanted:12.5f}   {found / wanted:.3f}"
            )


if __name__ == "__main__":
    main()
