"""Per-example gradients are those of one-example microbatches, for every method's factors and the head."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedsb.adapter import Factors
from fedsb.adapter.attached import attach, find_targets, set_trained
from fedsb.adapter.linear import features
from fedsb.methods import ALL
from fedsb.privacy.per_example import batch_norms, per_example_gradients


def random_factors(method, layer, draw, rank=2):
    heads = method.heads
    out, n_in = features(layer)
    k = rank * heads if method.has_core else rank
    return Factors(
        B=0.3 * torch.randn(out, k, generator=draw),
        A=0.3 * torch.randn(k, n_in, generator=draw),
        R=torch.randn(heads, rank, rank, generator=draw) if method.has_core else None,
        s=torch.rand(heads, generator=draw) + 0.5 if "s" in method.trains(1) else None,
        F=torch.randn(3, k, generator=draw) if "F" in method.trains(1) else None,
    )


def adapted(model, targets, method, round_number=1):
    """The parameters that train: the method's factors, and the head where there is one."""
    draw = torch.Generator().manual_seed(0)
    layers = find_targets(model, targets)
    attached = attach(model, {n: random_factors(method, m, draw) for n, m in layers.items()}, scale=0.7)
    parameters = set_trained(attached, method.trains(round_number))
    base = {id(p) for p in model.base_model.parameters()}
    if hasattr(model.config, "num_labels") and not hasattr(model, "lm_head"):
        head = {n: p for n, p in model.named_parameters() if id(p) not in base}
        parameters |= {n: p.requires_grad_(True) for n, p in head.items()}
    return parameters


def example_losses(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if logits.dim() == 2:
        return F.cross_entropy(logits, batch["labels"], reduction="none")
    nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    kept = batch["attention_mask"][:, 1:]
    return (nll * kept).sum(1) / kept.sum(1)


def microbatch_gradients(model, parameters, batch):
    """One backward pass for each example, cut to its own length."""
    found = {name: [] for name in parameters}
    for n in range(len(batch["input_ids"])):
        length = int(batch["attention_mask"][n].sum())
        one = {k: v[n : n + 1, :length] if v.dim() == 2 else v[n : n + 1] for k, v in batch.items()}
        gradients = torch.autograd.grad(example_losses(model, one).sum(), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            found[name].append(gradient)
    return {name: torch.stack(parts) for name, parts in found.items()}


def check(model, parameters, batch):
    expected = microbatch_gradients(model, parameters, batch)
    model.train()
    with per_example_gradients(model):
        example_losses(model, batch).sum().backward()
        for name, parameter in parameters.items():
            error = (parameter.grad_sample - expected[name]).norm() / expected[name].norm()
            assert error < 1e-6, f"{name}: {error}"
    assert not any(hasattr(p, "grad_sample") for p in model.parameters())


@pytest.mark.parametrize("round_number", [1, 2])
@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_they_are_those_of_microbatches(any_model, token_batch, method, round_number):
    """With padding, in encoders and decoders; both rounds, since some methods alternate. In fp64, so that
    rounding cannot hide a mistake."""
    model, targets = any_model
    check(model.double(), adapted(model, targets, method, round_number), token_batch)


def test_through_gradient_checkpointing(bert, token_batch):
    from fedsb.methods import fed_sb
    from fedsb.models.load import enable_checkpointing

    parameters = adapted(bert, ["query", "value"], fed_sb)
    enable_checkpointing(bert)
    check(bert.double(), parameters, token_batch)


def test_over_a_bfloat16_base_they_are_fp32_and_near(make_bert, token_batch):
    from fedsb.methods import fed_sb
    from fedsb.models.head import keep_in_float32

    exact, rough = make_bert(), make_bert().to(torch.bfloat16)
    keep_in_float32(rough)
    wanted = adapted(exact, ["query", "value"], fed_sb)
    parameters = adapted(rough, ["query", "value"], fed_sb)
    expected = microbatch_gradients(exact, wanted, token_batch)
    rough.train()
    with per_example_gradients(rough):
        example_losses(rough, token_batch).sum().backward()
        for name, parameter in parameters.items():
            assert parameter.grad_sample.dtype == torch.float32
            error = (parameter.grad_sample - expected[name]).norm() / expected[name].norm()
            assert error < 0.1, name


def test_layers_that_mix_examples_are_found():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.LayerNorm(3))
    assert batch_norms(model) == ["1"]
    assert batch_norms(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))) == []
