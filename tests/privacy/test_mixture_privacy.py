"""Private training of a mixture: each example's gradients, noise for every expert, whole private runs."""

import pytest
import torch
from run_helpers import classification_config, metrics_of, tiny_bert, write_data
from torch.nn import functional as F

from fedsb import RunConfig, run
from fedsb.adapter import Factors
from fedsb.adapter.attached import set_trained
from fedsb.adapter.mixture import Mixture, attach_mixture
from fedsb.adapter.routing import Terms, routing_of, tell
from fedsb.errors import InputError
from fedsb.federation.routed_losses import with_penalties
from fedsb.privacy.per_example import per_example_gradients

RANK, EXPERTS = 3, 3


def mixture_on(model, targets, route):
    draw = torch.Generator().manual_seed(2)
    factors = {}
    for name, module in list(model.named_modules()):
        if name.endswith(targets):
            out, n_in = module.weight.shape
            factors[name] = Factors(
                B=0.5 * torch.randn(out, RANK, generator=draw),
                A=0.5 * torch.randn(RANK, n_in, generator=draw),
                R=torch.randn(EXPERTS, RANK, RANK, generator=draw),
                G=torch.randn(EXPERTS, RANK + 1, generator=draw),
            )
    return attach_mixture(model, Mixture(("a", "b", "c"), factors, route))


def task_losses(model, batch):
    logits = model(**tell(model, batch)).logits
    if logits.dim() == 2:
        return F.cross_entropy(logits, batch["labels"], reduction="none")
    nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    kept = batch["attention_mask"][:, 1:]
    return (nll * kept).sum(1) / kept.sum(1)


@pytest.mark.parametrize("stage", ["hard", "router", "both"])
@pytest.mark.parametrize("route", ["sequence", "token"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_gradients_of_each_example_are_those_of_a_loop(request, token_batch, family, route, stage):
    """With entropy and balance in the loss, padding in the batch, and, for decoders, a prompt of its own."""
    model = request.getfixturevalue(f"make_{family}")()
    attached = mixture_on(model, ("query", "value") if family == "bert" else ("q_proj", "v_proj"), route)
    model.double()
    trains = {"hard": ("R",), "router": ("G",), "both": ("R", "G")}[stage]
    parameters = set_trained(attached, trains)
    routing_of(model).hard = stage == "hard"
    losses = with_penalties(task_losses, attached, Terms(entropy=0.7, balance=0.3))
    batch = token_batch | {"experts": torch.tensor([2, 0, 2, 1])}
    if family == "llama":
        batch["asked"] = batch["attention_mask"].bool() & (torch.arange(7) < 3)
    expected = {name: [] for name in parameters}
    for n, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        one = {k: v[n : n + 1, :length] if v.dim() == 2 else v[n : n + 1] for k, v in batch.items()}
        gradients = torch.autograd.grad(losses(model, one).sum(), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            expected[name].append(gradient)
    model.train()
    with per_example_gradients(model):
        losses(model, batch).sum().backward()
        for name, parameter in parameters.items():
            wanted = torch.stack(expected[name])
            assert (parameter.grad_sample - wanted).norm() <= 1e-6 * wanted.norm(), name


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture-privacy")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=48, test=6)
    return folder


def config_of(world, **changes):
    few = {
        "method": {"name": "fed-mixer", "rank": 4, "targets": ["query", "value"]},
        "method__init": {"kind": "orthonormal"},
        "method__experts": {"by": "site", "start": "zero", "hard_rounds": 2},
        "federation": {"clients": 2, "rounds": 3, "partition": {"kind": "by-column", "column": "site"}},
        "privacy": {"unit": "example", "noise_multiplier": 1.0, "insecure_seed": 1},
        "evaluation__every": None,
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def test_a_private_run_trains_experts_and_gate_from_one_budget(world):
    result = run(
        RunConfig.from_dict(config_of(world, privacy={"epsilon": 5.0, "clip_norm": 0.5})), world / "private"
    )
    facts = result.summary["privacy"]
    assert 0 < facts["epsilon"] <= 5.0
    assert facts["rounds"] == 3
    assert "how many of each expert" in facts["statement"]
    spent = [line["epsilon"] for line in metrics_of(world / "private")]
    assert spent == sorted(spent)
    assert spent[0] == 0 < spent[1] < spent[2] < spent[3]


@pytest.mark.parametrize("batch", [[0], []], ids=["one example", "none"])
def test_every_expert_that_is_held_gets_noise_whoever_was_drawn(world, tmp_path, monkeypatch, batch):
    """One example in each step, so of one expert, or none: the cores of both that a client holds move."""
    from fedsb.privacy.plan import ExamplePlan

    monkeypatch.setattr(ExamplePlan, "batches", lambda self, coins, *_: iter([batch] * 2))
    config = config_of(
        world, federation__rounds=1, method__experts={"by": "site", "start": "zero", "hard_rounds": 1}
    )
    result = run(RunConfig.from_dict(config), tmp_path / "run")
    layer = next(m for m in result.model.modules() if getattr(m, "G", None) is not None)
    assert all(core.abs().min() > 0 for core in layer.R)


REFUSED = {
    "method__experts": (
        {"by": "site"},
        "method.experts.start: statistics are sums over private rows without noise; set start: zero",
    ),
    "method__experts__balance": (0.1, "method.experts.balance: it would tell how private rows were routed"),
    "method__experts__keep": (0.1, "method.experts.keep: it would go past the clipping"),
    "privacy__unit": ("client", "privacy.unit: client needs a method that averages factors, found fed-mixer"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_would_tell_of_private_rows_is_refused(world, tmp_path, key):
    value, message = REFUSED[key]
    config = config_of(
        world, **({key: value} | ({"method__experts__train": "both"} if key.endswith("keep") else {}))
    )
    with pytest.raises(InputError, match=message):
        run(RunConfig.from_dict(config), tmp_path / "run")
    config = config_of(world, method__experts={"count": 2, "start": "zero"})
    with pytest.raises(InputError, match=r"method\.experts\.count: groups are found by looking"):
        run(RunConfig.from_dict(config), tmp_path / "run")
