"""Update estimate + SVD on a BERT-base-sized random model, all 72 linear layers, 64 examples of 64 tokens in
two batches: time beside a plain full-gradient backward plus the same SVDs, and peak memory beyond the
activations as a share of one full set of fp32 gradients. Each way runs in a process of its own, in which
malloc gives freed blocks back at once (MALLOC_MMAP_THRESHOLD_): the peak is then that of live memory. With
glibc's default the heap's fragmentation adds some hundred MiB to each way.

    python benchmarks/update_estimate.py
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import BERT_BASE, example_losses, random_batch, random_bert, verdict

from fedsb.adapter.attached import find_targets
from fedsb.adapter.bases import bases_from_update
from fedsb.adapter.linear import features
from fedsb.adapter.update_estimate import estimate_update
from fedsb.models.targets import default_targets
from fedsb.runner.spill import SpilledTensors

RANK, EXAMPLES, BATCH, TOKENS = 64, 64, 32, 64
LAYERS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def reduce(name: str, update: torch.Tensor) -> object:
    return bases_from_update(update, RANK, generator=torch.Generator().manual_seed(0))


def ours(model, layers, batches) -> None:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        sums = SpilledTensors(Path(folder))
        model.requires_grad_(False)
        estimate_update(model, layers, batches, example_losses, reduce, learning_rate=1e-3, sums=sums)


def all_held(model, layers, batches) -> None:
    """Plain: every target gradient summed in memory, then the SVDs."""
    model.requires_grad_(False)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    for batch in batches:
        example_losses(model, batch).sum().backward()
    for name, layer in layers.items():
        reduce(name, -1e-3 * torch.sign(layer.weight.grad / EXAMPLES))


def activations_only(model, layers, batches) -> None:
    """A forward pass that keeps what the backward would need, and no backward."""
    model.requires_grad_(False)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    for batch in batches:
        example_losses(model, batch).sum()


LIVE = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
WAYS = {"ours": ours, "all held": all_held, "activations": activations_only}


def measure(way: str) -> None:
    """Run one way in this process; print its seconds, its growth of peak memory, the gradients' bytes."""
    model = random_bert(BERT_BASE)
    layers = find_targets(model, LAYERS)
    layers = {name: layer for name, layer in layers.items() if ".encoder." in name}
    batches = [random_batch(BATCH, TOKENS, seed=i) for i in range(EXAMPLES // BATCH)]
    before = peak_bytes()
    began = time.perf_counter()
    WAYS[way](model, layers, batches)
    gradients = 4 * sum(out * n_in for out, n_in in map(features, layers.values()))
    print(json.dumps([time.perf_counter() - began, peak_bytes() - before, gradients]))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    assert default_targets(random_bert(BERT_BASE)) == ["query", "value"]
    results = {}
    for way in WAYS:
        done = subprocess.run(
            [sys.executable, __file__, way], env=LIVE, capture_output=True, text=True, check=True
        )
        results[way] = json.loads(done.stdout.splitlines()[-1])
        print(f"{way:<12} {results[way][0]:6.1f} s   peak + {results[way][1] / 2**20:6.0f} MiB")
    floor, gradients = results["activations"][1], results["ours"][2]
    extra = {way: (results[way][1] - floor) / gradients for way in ("ours", "all held")}
    verdict("time: ours / plain full gradient + SVDs", results["ours"][0] / results["all held"][0], 1.5)
    verdict("memory beyond activations: ours / one set of gradients", extra["ours"], 0.25)
    print(f"for comparison, all gradients held: {extra['all held']:.3f}")


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
