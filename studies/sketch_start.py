"""How near the bases come to those of whole gradients when clients send factors or sketches instead.

    python studies/sketch_start.py MODEL ROWS.jsonl [--text sentence] [--label label] [--rank 28] ...

MODEL is a folder or hub id, ROWS a classification's training rows, dealt to clients by Dirichlet(0.3) labels.
After the head's warm-up each client's gradient of every linear layer is taken once, and sent in each of the
ways that the table names: its best factors of the bases' rank r; sketches of k = 1r, 2r and 4r (+ 1) columns
and 2k + 1 rows, as bfloat16 unless the row says fp32; whole.

Columns: numbers and bytes that one client sends; mean, smallest and largest cosine of the principal angles
between the subspaces found and those of the pooled gradient (of its sign, with the rule sign), B's and A's
together; the share of that matrix's energy that the bases hold, the best bases of their rank holding 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fedsb.adapter.bases import quick_svd, truncated_svd
from fedsb.adapter.update_estimate import estimate_update
from fedsb.common.seeding import torch_generator
from fedsb.config import RunConfig
from fedsb.federation.start.from_gradients import Calibration
from fedsb.federation.start.head_warmup import warm_up_here
from fedsb.federation.start.settings import Warmup
from fedsb.federation.start.sketches import (
    MatrixSketch,
    add_sketches,
    draw_probes,
    matrix_of,
    sketch_of,
    sketched_numbers,
)
from fedsb.methods import Shape
from fedsb.methods.averaging.stack import stacked_numbers
from fedsb.runner.prepare_data import batches_of, prepare_data
from fedsb.runner.prepare_model import BaseModel, prepare_base

BATCH_SIZE, SEED, ALPHA = 32, 0, 0.3


class Way(NamedTuple):
    """One way to send a gradient: how many numbers a layer, their type, and what the server makes of all."""

    name: str
    numbers: Callable[[Shape], int]
    dtype: torch.dtype
    pooled: Callable[[str, list[Tensor]], Tensor]
    """(layer, each client's share of the mean gradient) -> what the server takes for the mean gradient."""


def ways(rank: int) -> list[Way]:
    """The rows of the table."""
    half, full = torch.bfloat16, torch.float32
    found = [
        Way("factors", lambda shape: stacked_numbers(shape, rank), half, by_factors(rank, half)),
        Way("whole", lambda shape: shape.out * shape.n_in, full, lambda _, shares: sum_of(shares)),
    ]
    for columns, dtype in ((1, half), (2, half), (2, full), (4, half)):
        name = f"sketch {columns}r" + (" fp32" if dtype == full else "")
        numbers = sketch_counter(rank, columns)
        found.append(Way(name, numbers, dtype, by_sketches(rank, columns, dtype)))
    return found


def sum_of(shares: list[Tensor]) -> Tensor:
    return torch.stack(shares).sum(0)


def sketch_counter(rank: int, columns: int) -> Callable[[Shape], int]:
    return lambda shape: sketched_numbers(shape, rank, columns)


def by_factors(rank: int, dtype: torch.dtype) -> Callable[[str, list[Tensor]], Tensor]:
    def pooled(layer: str, shares: list[Tensor]) -> Tensor:
        total = torch.zeros_like(shares[0])
        for share in shares:
            U, S, Vh = quick_svd(share, rank, generator=torch_generator(SEED, "cut", layer))
            total += (U * S).to(dtype).float() @ Vh.to(dtype).float()
        return total

    return pooled


def by_sketches(rank: int, columns: int, dtype: torch.dtype) -> Callable[[str, list[Tensor]], Tensor]:
    def pooled(layer: str, shares: list[Tensor]) -> Tensor:
        generator = torch_generator(SEED, "sketch", layer)
        shape = Shape(*shares[0].shape)
        probes = draw_probes(shape, rank, generator=generator, columns_per_direction=columns)
        total = None
        for share in shares:
            sent = MatrixSketch(*(side.to(dtype).double() for side in sketch_of(share, probes)))
            total = sent if total is None else add_sketches(total, sent)
        assert total is not None
        return matrix_of(total, probes)

    return pooled


def client_gradients(base: BaseModel, calibration: Calibration) -> Iterator[dict[str, Tensor]]:
    """Each client's share of the pooled mean gradient, by layer."""
    everyone = sum(map(len, calibration.draw.values()))
    for indices in calibration.draw.values():
        batches, share = calibration.batches_of(indices, BATCH_SIZE), len(indices) / everyone
        yield estimate_update(
            base.model,
            base.targets,
            batches,
            calibration.losses,
            lambda _, gradient: gradient.cpu(),
            learning_rate=-share,
            rule="raw",
        )


class Nearness(NamedTuple):
    """Of one layer: cosines of principal angles of B and A, and the energy held."""

    cosines: Tensor
    energy: float


def nearness(update: Tensor, best: tuple[Tensor, Tensor, Tensor], found: Tensor, rank: int) -> Nearness:
    """The bases of `found` beside those of `update`, whose SVD `best` is."""
    U, _, Vh = truncated_svd(found, rank, generator=torch_generator(SEED, "bases"))
    cosines = [torch.linalg.svdvals(U.T @ best[0]), torch.linalg.svdvals(Vh @ best[2].T)]
    held = (U.T @ update @ Vh.T).square().sum() / best[1].square().sum()
    return Nearness(torch.cat(cosines), float(held))


def compare(shares: list[Tensor], layer: str, rank: int) -> dict[tuple[str, str], Nearness]:
    """Every way and rule on one layer."""
    whole, found = sum_of(shares), {}
    pooled = {way.name: way.pooled(layer, shares) for way in ways(rank)}
    for rule, apply in (("sign", torch.sign), ("raw", lambda gradient: gradient)):
        update = apply(whole)
        best = truncated_svd(update, rank, generator=torch_generator(SEED, "bases"))
        for name, gradient in pooled.items():
            found[rule, name] = nearness(update, best, apply(gradient), rank)
    return found


def prepared(options: argparse.Namespace) -> tuple[BaseModel, Calibration]:
    """Model with a warm head, and all rows dealt to the clients."""
    config = RunConfig.from_dict(
        {
            "seed": SEED,
            "model": {"path": options.model},
            "task": {"kind": "classification", "text": options.text, "label": options.label},
            "data": {
                "train": options.rows,
                "test": options.rows,
                "limit": {"train": options.limit, "test": 8},
            },
            "method": {"rank": options.rank, "targets": "all-linear"},
            "federation": {
                "clients": options.clients,
                "partition": {"kind": "dirichlet", "alpha": ALPHA},
            },
        }
    )
    data = prepare_data(config)
    base = prepare_base(config, data)
    draw = {client: list(indices) for client, indices in enumerate(data.parts)}
    calibration = Calibration(draw, data.train, batches_of(data, base.device), data.task.losses)
    warm_up_here(
        base.model, base.task_head, Warmup(rounds=3, steps=30, learning_rate=0.01), BATCH_SIZE, calibration
    )
    base.model.requires_grad_(False)
    return base, calibration


def row(name: str, found: list[Nearness], sizes: str = "") -> str:
    """Mean, smallest and largest cosine, and mean energy."""
    cosines = torch.cat([each.cosines for each in found])
    energy = sum(each.energy for each in found) / len(found)
    figures = f"{cosines.mean():8.4f} {cosines.min():8.4f} {cosines.max():8.4f} {energy:8.4f}"
    return f"{name:<44} {sizes:>22} {figures}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--text", default="sentence", help="the column to read")
    parser.add_argument("--label", default="label")
    parser.add_argument("--rank", type=int, default=28)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--limit", type=int, default=1000, help="rows to take")
    options = parser.parse_args()
    base, calibration = prepared(options)
    sent = list(client_gradients(base, calibration))
    print_tables({name: [client.pop(name) for client in sent] for name in base.targets}, options.rank)


def print_tables(shares: dict[str, list[Tensor]], rank: int) -> None:
    """One table per rule over all layers, then the ways layer by layer."""
    shapes = [Shape(*each[0].shape) for each in shares.values()]
    found = {layer: compare(each, layer, rank) for layer, each in shares.items()}
    print(f"{'':<44} {'numbers':>11} {'bytes':>10}     mean smallest  largest   energy")
    for rule in ("sign", "raw"):
        for way in ways(rank):
            numbers = sum(map(way.numbers, shapes))
            sizes = f"{numbers:>11,} {numbers * way.dtype.itemsize:>10,}"
            print(row(f"{rule}: {way.name}", [each[rule, way.name] for each in found.values()], sizes))
    for rule in ("sign", "raw"):
        for way in ways(rank):
            print(f"\n{rule}: {way.name}, by layer")
            for layer, each in found.items():
                print(row(layer.removeprefix("base_model.")[-44:], [each[rule, way.name]]))


if __name__ == "__main__":
    main()
