"""Training the head on kept base outputs is training it on the whole frozen model; federated as written."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import example_losses, numbers, weighted_mean

from fedsb.federation.exchange import Layout
from fedsb.federation.start.from_gradients import Calibration
from fedsb.federation.start.head_warmup import cache_base_outputs, train_head, warm_up_here
from fedsb.federation.start.initialize import draw_calibration, needs_data, start_factors
from fedsb.federation.start.settings import Start, Warmup
from fedsb.methods import fed_sb, fedit
from fedsb.models.head import head_parameters


def split(batch, sizes):
    parts = {name: tensor.split(sizes) for name, tensor in batch.items()}
    return [{name: tensors[i] for name, tensors in parts.items()} for i in range(len(sizes))]


@pytest.fixture(params=["bert", "gpt2_classifier"])
def classifier(request):
    """In training mode and, for BERT, with dropout: neither may get into the kept outputs."""
    dropout = {"dropout": 0.3} if request.param == "bert" else {}
    return request.getfixturevalue(f"make_{request.param}")(**dropout).train()


def train_whole_model(model, batches, *, steps, learning_rate):
    """The obvious way: the base frozen and in eval mode, one AdamW step per pass over everything."""
    names = list(head_parameters(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    model.eval()
    head = [model.get_parameter(name) for name in names]
    optimizer = torch.optim.AdamW(head, lr=learning_rate, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.cat([example_losses(model, batch) for batch in batches]).mean().backward()
        optimizer.step()
    return {name: model.get_parameter(name).detach() for name in names}


def test_the_head_is_what_is_outside_the_base(make_bert, make_gpt2_classifier, make_llama):
    assert set(head_parameters(make_bert())) == {"classifier.weight", "classifier.bias"}
    assert set(head_parameters(make_gpt2_classifier())) == {"score.weight"}
    assert set(head_parameters(make_llama())) == {"lm_head.weight"}


@pytest.mark.parametrize("sizes", [[4], [1, 3]])
def test_training_on_kept_outputs_equals_training_the_head_on_the_whole_model(classifier, token_batch, sizes):
    batches = split(token_batch, sizes)
    expected = train_whole_model(copy.deepcopy(classifier), batches, steps=7, learning_rate=0.05)
    head = head_parameters(classifier)
    start = {name: p.detach().clone() for name, p in head.items()}
    cached = cache_base_outputs(classifier, batches)
    train_head(classifier, head, cached, example_losses, Warmup(rounds=1, steps=7, learning_rate=0.05))
    for name, value in expected.items():
        assert (value - start[name]).abs().max() > 0.01
        torch.testing.assert_close(head[name].detach(), value, atol=1e-5, rtol=1e-5)


def test_the_base_runs_once_per_batch_and_not_in_training(classifier, token_batch):
    runs = []
    handle = classifier.base_model.register_forward_hook(lambda *a: runs.append(torch.is_grad_enabled()))
    batches = split(token_batch, [2, 2])
    cached = cache_base_outputs(classifier, batches)
    head = head_parameters(classifier)
    train_head(classifier, head, cached, example_losses, Warmup(rounds=1, steps=5, learning_rate=0.01))
    handle.remove()
    assert runs == [False, False]


def test_only_the_head_changes_and_flags_and_modules_are_put_back(classifier, token_batch):
    for index, parameter in enumerate(classifier.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    flags = [p.requires_grad for p in classifier.parameters()]
    modules = [(name, id(m)) for name, m in classifier.named_modules()]
    state = copy.deepcopy(classifier.state_dict())
    head = head_parameters(classifier)
    cached = cache_base_outputs(classifier, [token_batch])
    train_head(classifier, head, cached, example_losses, Warmup(rounds=1, steps=2, learning_rate=0.01))
    assert [p.requires_grad for p in classifier.parameters()] == flags
    assert [(name, id(m)) for name, m in classifier.named_modules()] == modules
    assert not any(m._forward_hooks for m in classifier.modules())
    changed = {name for name, value in classifier.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == set(head)


def test_the_base_is_put_back_even_if_training_fails(classifier, token_batch):
    modules = [(name, id(m)) for name, m in classifier.named_modules()]
    cached = cache_base_outputs(classifier, [token_batch])

    def broken(model, batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_head(
            classifier,
            head_parameters(classifier),
            cached,
            broken,
            Warmup(rounds=1, steps=1, learning_rate=0.1),
        )
    assert [(name, id(m)) for name, m in classifier.named_modules()] == modules


def calibration_of(token_batch, draw):
    examples = split(token_batch, [1] * 4)

    def batches(chosen, size):
        groups = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        return [{k: torch.cat([e[k] for e in group]) for k in group[0]} for group in groups]

    return Calibration(draw, examples, batches, example_losses)


def test_the_warm_up_is_federated_averaging_of_heads_trained_apart(make_bert, token_batch):
    draw = {0: [0], 4: [1, 2, 3]}
    warmup = Warmup(rounds=2, steps=3, learning_rate=0.05)
    model = make_bert()
    traffic = warm_up_here(model, head_parameters(model), warmup, 2, calibration_of(token_batch, draw))
    oracle, names = make_bert(), list(head_parameters(make_bert()))
    singles = split(token_batch, [1] * 4)
    for _ in range(2):
        ends = [
            train_whole_model(copy.deepcopy(oracle), [singles[i] for i in part], steps=3, learning_rate=0.05)
            for part in draw.values()
        ]
        for name in names:
            mean = weighted_mean([numbers(end[name]) for end in ends], [1, 3])
            oracle.get_parameter(name).data.copy_(torch.from_numpy(mean))
    for name in names:
        torch.testing.assert_close(
            model.get_parameter(name).detach(), oracle.get_parameter(name).detach(), atol=1e-4, rtol=1e-4
        )
    size = Layout.of(head_parameters(model)).size
    assert [(e.direction, e.clients, e.parameters, e.round) for e in traffic] == [
        ("down", 2, 2 * 2 * size, 0),
        ("up", 2, 2 * 2 * size, 0),
    ]
    assert all(4 * e.parameters < e.bytes <= 4 * e.parameters + 4 * 400 for e in traffic)


# ---------------------------------------------------------------- which examples, and whether any


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    samples=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_calibration_examples_are_drawn_equally_from_the_clients_own(sizes, samples, seed):
    ends = np.cumsum(sizes)
    parts = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    draw = draw_calibration(parts, samples, seed=seed)
    assert draw == draw_calibration(parts, samples, seed=seed)
    assert len(draw) == min(samples, len(parts))
    share = samples / len(draw)
    for client, indices in draw.items():
        assert indices == sorted(set(indices))
        assert set(indices) <= set(parts[client])
        assert min(int(share), len(parts[client])) <= len(indices) <= -int(-share // 1)
    if all(size >= -int(-share // 1) for size in sizes):
        assert sum(map(len, draw.values())) == samples


def start_of(kind, warmup=None):
    return Start(
        kind=kind, rule="sign", samples=4, batch_size=4, head_warmup=warmup, rank=2, step_size=0.1, seed=3
    )


def test_a_start_looks_at_examples_only_where_it_must():
    head, warmup = {"w": torch.zeros(1)}, Warmup(rounds=1, steps=1, learning_rate=0.1)
    assert needs_data(start_of("gradient"), fed_sb, {})
    assert not needs_data(start_of("gradient"), fedit, {})
    assert not needs_data(start_of("weights"), fed_sb, head)
    assert not needs_data(start_of("orthonormal", warmup), fed_sb, {})
    assert needs_data(start_of("orthonormal", warmup), fed_sb, head)


@pytest.mark.parametrize(
    ("kind", "method"), [("weights", fed_sb), ("orthonormal", fed_sb), ("gradient", fedit)]
)
def test_starts_without_data_send_nothing_and_differ_by_layer_and_seed(bert, token_batch, kind, method):
    targets = {n: m for n, m in bert.named_modules() if n.endswith("query")}
    calibration = calibration_of(token_batch, {})
    started = start_factors(bert, targets, {}, method, start_of(kind), calibration, num_clients=3)
    again = start_factors(bert, targets, {}, method, start_of(kind), calibration, num_clients=3)
    assert started.traffic == []
    assert list(started.factors) == list(targets)
    one, two = started.factors.values()
    assert not torch.equal(one.A, two.A)
    assert all(torch.equal(started.factors[n].A, again.factors[n].A) for n in targets)
