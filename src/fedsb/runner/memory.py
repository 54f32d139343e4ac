"""What a run will hold in memory, from the model's config alone; refused before loading if it will not fit.

The model is built on the meta device, where tensors have shapes and no numbers, and its forward pass there
tells what autograd would keep for the backward pass. The rest are counts. Not counted: Python and its
libraries, the data, and what generation keeps of past tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from fedsb.adapter import Factors
from fedsb.adapter.attached import attach, linear_layers
from fedsb.adapter.linear import features
from fedsb.adapter.mixture import with_experts
from fedsb.adapter.routing import Routing
from fedsb.common.stage import show_if_debugging
from fedsb.config import RunConfig
from fedsb.config.method import method_of
from fedsb.config.sections.federation import RayEngine
from fedsb.errors import InputError
from fedsb.federation.local_model import Example
from fedsb.federation.start.ranks import widest_rank
from fedsb.methods import Method, Shape
from fedsb.models.blank import blank_inputs, body_config, num_patches, takes_images
from fedsb.models.devices import visible_gpus
from fedsb.models.head import base_of, head_parameters
from fedsb.models.limits import text_config
from fedsb.models.shapes import build_on_meta
from fedsb.models.targets import group
from fedsb.report.units import human_bytes
from fedsb.runner.arguments import heads_of, most_in_one_pass
from fedsb.runner.external_experts import target_layers
from fedsb.tasks.task import length_of

BYTES_IN_4_BITS = 0.5 + 4 / 64
"""A packed weight and its share of a block's fp32 scale (bitsandbytes' blocks of 64)."""
MESSAGES = 4
"""Copies of what trains: the server's state, a broadcast, an upload, the running mean; all fp32."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by purpose.

    Attributes:
        weights: the base model.
        factors: bases and cores, live and as they started.
        training: gradients, optimizer state and messages of what trains.
        activations: what the forward pass keeps, logits included; the larger of training and evaluation.
        start: one layer's gradient and its decomposition; dense changes of base weights.
    """

    weights: int
    factors: int
    training: int
    activations: int
    start: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {human_bytes(number)}" for name, number in asdict(self).items() if number)
        return f"about {human_bytes(self.total)}: {parts}"


@dataclass(frozen=True)
class Longest:
    """The longest example: its tokens, and how many of them have a loss of their own (0: classifiers)."""

    tokens: int
    predicted: int

    @staticmethod
    def of(examples: list[Example]) -> Longest:
        """The longest of encoded examples; one token where there are none."""
        predicted = (e["labels"] for e in examples if isinstance(e.get("labels"), list))
        return Longest(
            max((length_of(e) for e in examples), default=1),
            max((sum(label >= 0 for label in labels) for labels in predicted), default=0),
        )


def estimate_memory(
    config: RunConfig, num_labels: int | None, longest: Longest, experts: int = 0
) -> Memory | None:
    """What one run needs, with as many clients at a time as `federation.engine` stacks (kind auto: one); None
    if the config alone does not say.

    An estimate is no reason to refuse a run that it fails on, whatever it fails with: loading the model says
    what is wrong with it, if anything is.

    Args:
        experts: of a mixture, how many there are; 0: one core.
    """
    try:
        return _estimate(config, num_labels, longest, experts)
    except Exception as error:
        show_if_debugging(error)
        return None


def _estimate(config: RunConfig, num_labels: int | None, longest: Longest, experts: int) -> Memory | None:
    model = build_on_meta(config.model.path, num_labels=num_labels, model_class=config.task.model_class)
    targets = target_layers(config, model).layers
    if getattr(model.config, "quantization_config", None) is not None:
        return None
    model = model.to(getattr(torch, config.model.dtype)).requires_grad_(False)
    method = method_of(config)
    head = sum(p.numel() for p in head_parameters(model).values()) if num_labels is not None else 0
    shapes = {name: Shape(*features(layer)) for name, layer in targets.items()}
    weights = _weights(model, config.model.load_in_4bit)
    return Memory(
        weights=weights,
        factors=2 * 4 * sum(_factor_numbers(shape, config, method, experts) for shape in shapes.values()),
        training=_training(config, method, shapes, head, experts),
        start=_start(config, method, shapes),
        activations=_activations(config, model, method, longest, experts),
    )


def check_memory(memory: Memory | None, available: int, config: RunConfig) -> None:
    """Refuse what will not fit; with worker processes, what will not fit beside them.

    Raises:
        InputError: with the largest part and what would make it smaller.
    """
    copies = _copies(config)
    if memory is None or copies * memory.total <= available or not config.model.check_memory:
        return
    times = f", and {copies} times that for {config.federation.apart}" if copies > 1 else ""
    if (stack := _stack(config)) > 1:
        times = f", with {stack} clients in one pass (federation.engine)"
    raise InputError(
        f"memory: this run needs {memory}{times}; {human_bytes(available)} are free where the model goes. "
        f"{advice(memory, config)}. model.check_memory: false runs all the same"
    )


def _stack(config: RunConfig) -> int:
    """How many clients train at a time here, where the config says so."""
    return most_in_one_pass(config) if config.federation.engine.kind == "stacked" else 1


def _copies(config: RunConfig) -> int:
    """How many processes share the memory: this one and its workers; on GPUs the first holds two."""
    workers = config.federation.side_by_side if config.federation.apart else 0
    if isinstance(config.federation.engine, RayEngine) and config.federation.engine.address is not None:
        workers = 0  # whose memory is elsewhere
    gpus = len(visible_gpus()) if config.model.device == "auto" else 0
    return 1 + (-(-workers // gpus) if gpus else workers)


def advice(memory: Memory, config: RunConfig) -> str:
    """What to change, for the largest part first."""
    parts = asdict(memory)
    ordered = sorted(parts, key=lambda name: -parts[name])
    cures = [cure for name in ordered[:2] for cure in _cures(name, config)]
    return "Try " + ", ".join(cures) if cures else "Take a smaller model, or a machine with more memory"


def _cures(part: str, config: RunConfig) -> list[str]:
    model, training = config.model, config.training
    several, stack = model.device_map is None and len(visible_gpus()) > 1, _stack(config)
    fewer = (f"federation.engine: {{kind: stacked, clients: {stack // 2}}}", stack > 1)
    offers = {
        "weights": [
            ("model.dtype: bfloat16", model.dtype == "float32" and not model.load_in_4bit),
            ("model.load_in_4bit: true (on a GPU)", not model.load_in_4bit),
            ("model.device_map: auto (all GPUs)", several),
        ],
        "factors": [("a lower method.rank", True), ("fewer method.targets", True)],
        "training": [
            fewer,
            ("a lower method.rank", True),
            ("training.optimizer: sgd", training.optimizer != "sgd"),
        ],
        "activations": [
            fewer,
            ("training.gradient_checkpointing: true", not training.gradient_checkpointing),
            (f"training.batch_size: {max(1, training.batch_size // 2)} with accumulation", True),
            ("a smaller evaluation.batch_size and method.init.batch_size", True),
            ("a smaller training.max_length", True),
        ],
        "start": [("method.init.kind: orthonormal", True)],
    }
    return [text for text, helps in offers[part] if helps]


def available_bytes(device: torch.device, *, all_gpus: bool = False) -> int:
    """Bytes that can still be taken on a device: of a GPU (or all), of the machine or of this container."""
    if device.type == "cuda":
        gpus = visible_gpus() if all_gpus else [device]
        return sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)
    import psutil

    return min(int(psutil.virtual_memory().available), _left_in_container(CGROUP))


def _left_in_container(folder: Path) -> int:
    """What a memory limit on this container leaves; very much where there is none."""
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # no such file, or "max"
        return 1 << 62


def _weights(model: nn.Module, in_4_bits: bool) -> int:
    """Bytes of the base. Packed are the linear layers but the output layer."""
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    packed = [m for m in linear_layers(model).values() if m is not output] if in_4_bits else []
    small = {id(layer.weight) for layer in packed}
    return round(
        sum(p.numel() * (BYTES_IN_4_BITS if id(p) in small else p.element_size()) for p in model.parameters())
    )


def _largest_rank(shape: Shape, config: RunConfig) -> int:
    """The largest rank that a layer may have."""
    rank = config.method.rank
    return rank if config.method.init.ranks == "equal" else widest_rank(shape, rank, heads_of(config))


def _factor_numbers(shape: Shape, config: RunConfig, method: Method, experts: int) -> int:
    rank, heads = config.method.rank, heads_of(config)
    if "F" in method.trains(1):
        return min(shape) * (shape.out + shape.n_in + rank)
    core = (experts or heads) * rank * rank + experts * (rank + 1) if method.has_core else 0
    return heads * _largest_rank(shape, config) * (shape.out + shape.n_in) + core


def _training(config: RunConfig, method: Method, shapes: Mapping[str, Shape], head: int, experts: int) -> int:
    """Bytes that go with each trained number: its gradient and moments for each client at a time, for private
    training its gradient for every example too.

    A client may hold all experts.
    """
    rank, training = config.method.rank, config.training
    costs = (method.cost(shape, rank, heads_of(config), 1) for shape in shapes.values())
    trained = head + max(experts, 1) * sum(numbers.trained for numbers in costs)
    gradients = 1 + training.batch_size * _copies_of_examples(config)
    moments = 2 if training.optimizer == "adamw" else 0
    own = 1 if _stack(config) > 1 else 0  # of a stack, the numbers as a client's round began with them
    return 4 * trained * (_stack(config) * (gradients + moments + own) + MESSAGES)


def _copies_of_examples(config: RunConfig) -> int:
    """Of each example's gradient in a physical batch: its own, and its owner's sum; in a stack, what it is
    the gradient of."""
    if config.privacy is None or config.privacy.unit != "example":
        return 0
    return 1 if config.privacy.owner is None and _stack(config) == 1 else 2


def _start(config: RunConfig, method: Method, shapes: Mapping[str, Shape]) -> int:
    """One layer's gradient with what its decomposition needs; what is added to base weights, where it is."""
    sizes = [shape.out * shape.n_in for shape in shapes.values()]
    decomposes = method.draw is None and config.method.init.kind != "orthonormal"
    dense = method.changes_base or config.method.refreshes is not None
    return 4 * (4 * max(sizes) if decomposes else 0) + 4 * (3 * sum(sizes) if dense else 0)


def _activations(config: RunConfig, model: nn.Module, method: Method, longest: Longest, experts: int) -> int:
    """Bytes of activations and logits at the widest place of a run, training or evaluation."""
    training, init = config.training, config.method.init
    estimates = method.draw is None and method.bases == "init" and init.kind == "gradient"
    examples = max(_stack(config) * training.batch_size, init.batch_size if estimates else 0)
    tokens = num_patches(model) if takes_images(model) else min(longest.tokens, training.tokens)
    predicted = 0 if config.task.classifies else longest.predicted
    blocks = len({_block(name) for name in group(model, "all-linear")})
    kept = _kept(config, model, method, examples, tokens, experts)
    if training.gradient_checkpointing:
        width = int(body_config(model).hidden_size)
        kept = kept // blocks + blocks * examples * tokens * width * _element_size(config)
    train = kept + _logits(config, model, examples, tokens, predicted, graph=True)
    batch = config.evaluation.batch_size
    widest = _widest(model)
    score = 4 * batch * tokens * widest * _element_size(config)
    return max(train, score + _logits(config, model, batch, tokens, predicted, graph=False))


def _logits(
    config: RunConfig, model: nn.Module, examples: int, tokens: int, predicted: int, *, graph: bool
) -> int:
    """Logits of a causal LM, and fp32 copies at trained tokens; with `graph`, their gradients too."""
    if not predicted:
        return 0
    vocabulary = int(text_config(model.config).vocab_size)
    whole = examples * tokens * vocabulary * _element_size(config)
    copies = 4 * examples * predicted * vocabulary
    return 2 * whole + 3 * copies if graph else whole + 2 * copies


def _widest(model: nn.Module) -> int:
    """Most features of a linear layer; of images, whose later layers see fewer places, in the first block."""
    layers = linear_layers(base_of(model))
    if takes_images(model):
        first = _block(group(model, "all-linear")[0])
        layers = {name: layer for name, layer in linear_layers(model).items() if name.startswith(f"{first}.")}
    return max(max(features(layer)) for layer in layers.values())


def _block(name: str) -> str:
    """The repeated block a layer is in: its name up to the first number."""
    parts = name.split(".")
    number = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: number + 1])


def _element_size(config: RunConfig) -> int:
    return torch.empty(0, dtype=getattr(torch, config.model.dtype)).element_size()


def _kept(
    config: RunConfig, model: nn.Module, method: Method, examples: int, tokens: int, experts: int
) -> int:
    """Bytes that autograd keeps of a forward pass with the adapter in the model, by one without numbers."""
    rank, heads = config.method.rank, heads_of(config)
    targets = target_layers(config, model).layers
    factors = {
        name: _empty_factors(layer, _largest_rank(Shape(*features(layer)), config), heads, method)
        for name, layer in targets.items()
    }
    if experts:
        gate = torch.empty(experts, rank + 1, device="meta")
        factors = {name: with_experts(part, experts, gate) for name, part in factors.items()}
    routing = Routing(tuple(map(str, range(experts)))) if experts else None
    attached = attach(model, factors, trains=method.trains(1), routing=routing)
    inputs = blank_inputs(model, examples, tokens, "meta")
    held = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in held:
            seen[storage._cdata] = storage  # held, so that no other storage gets its number
        return tensor

    try:
        with saved_tensors_hooks(remember, lambda tensor: tensor):
            attached.model.train()(**inputs)
    except Exception as error:  # DeBERTa looks at numbers
        show_if_debugging(error)
        return _kept_by_formula(config, model, examples, tokens)
    return sum(storage.nbytes() for storage in seen.values())


def _kept_by_formula(config: RunConfig, model: nn.Module, examples: int, tokens: int) -> int:
    """Two tensors for the output of every linear layer, six of attention weights for every block."""
    layers = group(model, "all-linear")
    outputs = sum(features(model.get_submodule(name))[0] for name in layers)
    attention = (
        int(getattr(body_config(model), "num_attention_heads", 0))
        * tokens
        * len({_block(name) for name in layers})
    )
    return examples * tokens * (2 * outputs + 6 * attention) * _element_size(config)


def _empty_factors(layer: nn.Module, rank: int, heads: int, method: Method) -> Factors:
    out, n_in = features(layer)
    if "F" in method.trains(1):
        k, gram = min(out, n_in), torch.empty(rank, min(out, n_in), device="meta")
    else:
        k, gram = rank * heads, None
    core = torch.empty(heads, rank, rank, device="meta") if method.has_core else None
    scales = torch.empty(heads, device="meta") if "s" in method.trains(1) else None
    B, A = torch.empty(out, k, device="meta"), torch.empty(k, n_in, device="meta")
    return Factors(B, A, core, scales, F=gram)
