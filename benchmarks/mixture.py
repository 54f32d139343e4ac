"""A mixture of four experts beside one core, both of rank 64: on a MiniLM-sized encoder's query and value
a training step, one layer forward and backward, an update's bytes; generation with a small decoder.

    python benchmarks/mixture.py
"""

from collections.abc import Callable, Mapping

import torch
from common import MINILM, example_losses, random_batch, random_bert, side_by_side, verdict
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from fedsb.adapter.attached import attach, find_targets
from fedsb.adapter.bases import orthonormal_bases
from fedsb.adapter.layer import Factors, LowRankLinear
from fedsb.adapter.linear import features
from fedsb.adapter.mixture import start_gate, with_experts
from fedsb.adapter.routing import Routing, answering, tell
from fedsb.federation.wire import Header, pack

EXPERTS, RANK, REPEATS = 4, 64, 25
NAMES = tuple(f"expert {number}" for number in range(EXPERTS))
DECODER = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}


def bases(model: nn.Module, targets: list[str], *, experts: int = 1) -> dict[str, Factors]:
    """Orthonormal bases of each layer; with experts equal cores and a gate besides."""
    generator = torch.Generator().manual_seed(0)
    layers = find_targets(model, targets)
    starts = {n: orthonormal_bases(*features(m), RANK, generator=generator) for n, m in layers.items()}
    return {name: start if experts == 1 else routed(start, generator) for name, start in starts.items()}


def routed(start: Factors, generator: torch.Generator) -> Factors:
    gate = start_gate(EXPERTS, RANK, jitter=0.1, generator=generator)
    return with_experts(start, EXPERTS, gate)


def encoder(*, routing: Routing | None = None) -> nn.Module:
    model = random_bert(MINILM)
    factors = bases(model, ["query", "value"], experts=EXPERTS if routing else 1)
    attach(model, factors, trains=("R", "G") if routing else ("R",), routing=routing)
    return model


def training_step(model: nn.Module, batch: Mapping[str, Tensor]) -> Callable[[], None]:
    """Forward, backward and AdamW on what trains."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, foreach=True)

    def step() -> None:
        optimizer.zero_grad()
        example_losses(model, tell(model, batch) | {"labels": batch["labels"]}).mean().backward()
        optimizer.step()

    return step


def layer_step(size: int, *, routing: Routing | None = None) -> Callable[[], None]:
    """One layer, forward and backward to its input and to what trains, 32 rows of 64 tokens."""
    generator = torch.Generator().manual_seed(0)
    start = orthonormal_bases(size, size, RANK, generator=generator)
    base = nn.Linear(size, size).requires_grad_(False)
    layer = LowRankLinear(
        base,
        routed(start, generator) if routing else start,
        trains=("R", "G") if routing else ("R",),
        routing=routing,
    )
    x = torch.randn(32, 64, size, requires_grad=True)
    return lambda: layer(x).square().mean().backward()


def a_routing(*, hard: bool = False) -> Routing:
    """A soft routing by sequence; hard: each row by an expert of its own."""
    return Routing(
        NAMES,
        "sequence",
        hard=hard,
        experts=torch.arange(32) % EXPERTS,
        valid=torch.ones(32, 64, dtype=torch.bool),
        asked=torch.ones(32, 64, dtype=torch.bool),
    )


def decoder(*, routing: Routing | None = None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, max_position_embeddings=256, **DECODER)).eval()
    factors = bases(model, ["q_proj", "v_proj"], experts=EXPERTS if routing else 1)
    attach(model, factors, trains=(), routing=routing)
    return model


def generation(model: LlamaForCausalLM) -> Callable[[], None]:
    """64 new tokens after each of 8 prompts of 32, with the cache of keys and values."""
    ids = random_batch(8, 32)["input_ids"] % 8192
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def generate() -> None:
        with torch.no_grad(), answering(model):
            model.generate(
                **tell(model, prompt), max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0
            )

    return generate


def update_bytes() -> int:
    """Bytes of an update of one core of each layer: a client of one expert sends this in a hard round."""
    return len(pack(Header("fed-mixer", 1, "0" * 16, client=1, num_examples=1), torch.randn(12 * RANK**2)))


def main() -> None:
    batch = random_batch(32, 64)
    steps = side_by_side(
        {
            "one core": training_step(encoder(), batch),
            "four experts": training_step(encoder(routing=Routing(NAMES, "sequence")), batch),
        },
        repeats=REPEATS,
    )
    print(f"threads {torch.get_num_threads()}  " + "  ".join(f"{n} {s:.3f} s" for n, s in steps.items()))
    verdict("step of four experts / step of one core", steps["four experts"] / steps["one core"], 1.10)
    for size in (384, 768):
        layers = side_by_side(
            {
                "one": layer_step(size),
                "soft": layer_step(size, routing=a_routing()),
                "hard": layer_step(size, routing=a_routing(hard=True)),
            },
            repeats=4 * REPEATS,
        )
        verdict(f"layer of {size}, routed by its gate / one core", layers["soft"] / layers["one"], 1.25)
        verdict(f"layer of {size}, each row's own expert / one core", layers["hard"] / layers["one"], 1.25)
    verdict(
        "update of a hard round, bytes / (one core's + 64)", update_bytes() / (one_core_bytes() + 64), 1.0
    )
    texts = side_by_side(
        {"one": generation(decoder()), "four": generation(decoder(routing=Routing(NAMES, "sequence")))},
        repeats=5,
    )
    verdict("time of 8 x 64 new tokens, four experts / one core", texts["four"] / texts["one"], 1 / 0.9)


def one_core_bytes() -> int:
    return len(pack(Header("fed-sb", 1, "0" * 16, client=1, num_examples=1), torch.randn(12 * RANK**2)))


if __name__ == "__main__":
    main()
