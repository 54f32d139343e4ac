"""Bases from what clients send: whole gradients, factors, or sketches; and what that costs."""

import copy
import weakref
from typing import Any

import pytest
import torch
from oracles import example_losses, full_gradient, numbers
from safetensors.torch import load
from test_initialize import _batches, _examples
from transformers import BertConfig, BertForSequenceClassification

from fedsb.adapter.attached import find_targets
from fedsb.adapter.linear import features
from fedsb.cli.cost import Question, method_cost
from fedsb.common.seeding import scoped_global_seed
from fedsb.errors import RunFailed
from fedsb.federation.start import from_gradients, sketches
from fedsb.federation.start.from_gradients import Calibration, bases_from_gradients
from fedsb.federation.start.settings import Start
from fedsb.federation.start.sketches import sketched_numbers
from fedsb.methods import Shape, fed_sb

DRAW = {0: list(range(8)), 1: list(range(8, 20)), 2: list(range(20, 24))}


def start(model: Any, draw: Any = None, *, num_clients: int = 4, **changes: Any) -> Any:
    defaults: dict[str, Any] = {"rule": "sign", "upload": "factors", "batch_size": 8, "rank": 4, "heads": 1}
    how = Start(**defaults | {"step_size": 1e-2, "seed": 0} | changes)
    calibration = Calibration(draw or DRAW, _examples(24), _batches, example_losses)
    targets = find_targets(model, ["query", "value"])
    return bases_from_gradients(model, targets, how, calibration, num_clients=num_clients)


@pytest.fixture(scope="module")
def wide_bert() -> Any:
    """Wide enough for sketches of rank 4 to be smaller than its gradients of 64 x 64."""
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=40, num_labels=3, pad_token_id=0, initializer_range=0.2, **size)
    with scoped_global_seed(0):
        return BertForSequenceClassification(config).eval()


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Smallest cosine of the principal angles between two column spaces."""
    return float(torch.linalg.svdvals(one.T @ other).min())


@pytest.mark.parametrize(
    ("rule", "upload"),
    [("sign", "factors"), ("raw", "factors"), ("moments", "factors"), ("sign", "sketch"), ("raw", "sketch")],
)
@pytest.mark.parametrize("heads", [1, 2])
def test_bases_are_orthonormal_and_repeat(make_bert: Any, rule: str, upload: str, heads: int) -> None:
    one, again = (start(make_bert(), rule=rule, upload=upload, heads=heads).factors for _ in range(2))
    for name, part in one.items():
        k = heads * 4
        torch.testing.assert_close(part.B.T @ part.B, torch.eye(k), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.A @ part.A.T, torch.eye(k), atol=1e-5, rtol=0)
        assert part.R.shape == (heads, 4, 4)
        assert all(torch.equal(a, b) for a, b in zip(part[:3], again[name][:3], strict=True))


def test_factors_of_full_rank_give_the_bases_of_whole_gradients(make_bert: Any) -> None:
    """A gradient of 32 x 32 has at most rank 32; with rank 15 its factors are still smaller, and cut."""
    model = make_bert()
    size = features(next(iter(find_targets(model, ["query"]).values())))[0]
    whole = start(model, rule="raw", upload="whole", rank=size).factors
    cut = start(model, rule="raw", rank=size).factors
    for name, part in whole.items():
        update = part.B @ part.R[0] @ part.A
        again = cut[name].B @ cut[name].R[0] @ cut[name].A
        torch.testing.assert_close(again, update, atol=1e-2 * float(update.abs().max()), rtol=0)


def test_cut_factors_find_nearly_the_subspace_of_the_whole(make_bert: Any) -> None:
    whole, cut = (start(make_bert(), rule="raw", upload=u, rank=8).factors for u in ("whole", "factors"))
    for name, part in whole.items():
        assert overlap(part.B[:, :2], cut[name].B) > 0.9


def test_clients_weigh_by_their_examples(make_bert: Any) -> None:
    model = make_bert()
    factors = start(model, rule="raw", upload="factors", rank=12).factors
    names = list(factors)
    batches = [_batches([_examples(24)[i] for i in range(24)], 24)[0]]
    expected = full_gradient(model, names, batches, example_losses)
    for name, part in factors.items():
        B, A = numbers(part.B), numbers(part.A)
        found = -numbers(part.B @ part.R[0] @ part.A) / 1e-2
        best = B @ (B.T @ expected[name] @ A.T) @ A
        assert abs(found - best).max() < 0.05 * abs(expected[name]).max()


@pytest.mark.parametrize(("rule", "directions"), [("raw", 2), ("sign", 1)])
def test_a_sketch_finds_nearly_the_leading_directions_of_the_whole(
    wide_bert: Any, rule: str, directions: int
) -> None:
    """Nearly, and only the leading ones: these gradients have a long tail, which a sketch mixes with their
    lesser directions, and the sign's spectrum is flat after the first. The limits hold for eight seeds.
    """
    whole, sketched = (start(wide_bert, rule=rule, upload=u).factors for u in ("whole", "sketch"))
    for name, part in whole.items():
        assert overlap(part.B[:, :directions], sketched[name].B) > 0.7
        assert overlap(part.A[:directions].T, sketched[name].A.T) > 0.7
        assert abs(part.R - sketched[name].R).max() < 0.3 * part.R.max()


@pytest.mark.parametrize("rule", ["sign", "raw"])
def test_where_the_matrix_is_smaller_it_travels_and_the_bases_are_those_of_the_whole(
    make_bert: Any, rule: str
) -> None:
    """A sketch of rank 4 has more numbers than 16 x 16."""
    whole, sketched = (start(make_bert(), rule=rule, upload=u).factors for u in ("whole", "sketch"))
    for name, part in whole.items():
        assert overlap(part.B[:, :2], sketched[name].B) > 0.99


def test_the_order_of_contributors_plays_no_part_in_sums_of_sketches(wide_bert: Any) -> None:
    forth, back = (
        start(wide_bert, {c: DRAW[c] for c in order}, rule="raw", upload="sketch").factors
        for order in ([0, 1, 2], [2, 1, 0])
    )
    for name, part in forth.items():
        torch.testing.assert_close(part.R, back[name].R, rtol=1e-5, atol=1e-9)
        assert overlap(part.B, back[name].B) > 1 - 1e-5


def test_how_a_contributor_batches_its_examples_plays_no_part_in_its_sketch(wide_bert: Any) -> None:
    """Rounding to bfloat16 alone differs."""
    one, many = (start(wide_bert, rule="raw", upload="sketch", batch_size=b).factors for b in (24, 5))
    for name, part in one.items():
        torch.testing.assert_close(part.R, many[name].R, rtol=1e-2, atol=1e-2 * float(part.R.max()))


def test_a_gradient_is_forgotten_once_it_is_sketched(wide_bert: Any, monkeypatch: Any) -> None:
    """Over layers, batches and contributors, dense gradients exist one at a time."""
    earlier: list[Any] = []
    real = sketches.sketch_of

    def watched(gradient: Any, probes: Any) -> Any:
        assert not any(reference() is not None for reference in earlier)
        earlier.append(weakref.ref(gradient))
        return real(gradient, probes)

    monkeypatch.setattr(sketches, "sketch_of", watched)
    start(wide_bert, upload="sketch", batch_size=4)
    assert len(earlier) == 4 * 6  # layers, batches of three contributors


def test_a_gradient_that_is_not_finite_is_refused(wide_bert: Any) -> None:
    broken = copy.deepcopy(wide_bert)
    broken.classifier.weight.data[0, 0] = float("nan")
    with pytest.raises(RunFailed, match=r"gradient of layer .* is not finite; try float32 or less data"):
        start(broken, upload="sketch")


@pytest.mark.parametrize("upload", ["factors", "sketch", "whole"])
def test_the_formula_of_the_cost_counts_what_is_sent(wide_bert: Any, upload: str) -> None:
    found = start(wide_bert, upload=upload, num_clients=3)
    shapes = [Shape(*features(layer)) for layer in find_targets(wide_bert, ["query", "value"]).values()]
    cost = method_cost(fed_sb, 4, shapes, 0, Question(clients=3, upload=upload))
    up, down = found.traffic
    assert up.parameters == 3 * cost.once_upload_parameters_per_client
    assert down.parameters == 3 * cost.once_parameters_per_client
    names_and_shapes = 6 * 1500  # of the six messages, in their headers
    assert 0 <= up.bytes + down.bytes - cost.once_bytes < names_and_shapes


@pytest.mark.parametrize(
    ("rule", "upload"), [("sign", "factors"), ("moments", "factors"), ("sign", "sketch"), ("sign", "whole")]
)
def test_what_goes_up_and_down_is_booked(wide_bert: Any, rule: str, upload: str, monkeypatch: Any) -> None:
    messages: list[bytes] = []
    real = from_gradients.save
    monkeypatch.setattr(
        from_gradients, "save", lambda tensors: messages.append(real(tensors)) or messages[-1]
    )
    model = wide_bert
    found = start(model, rule=rule, upload=upload)
    up, down = found.traffic
    shapes = [Shape(*features(layer)) for layer in find_targets(model, ["query", "value"]).values()]
    width = {"sign": 4, "moments": 6}[rule]
    layer_numbers = {
        "factors": lambda shape: sum(shape) * width,
        "sketch": lambda shape: sketched_numbers(shape, 4),
        "whole": lambda shape: shape.out * shape.n_in,
    }
    each = sum(map(layer_numbers[upload], shapes))
    assert (up.direction, up.clients, up.parameters) == ("up", 3, 3 * each)
    assert (down.direction, down.clients, down.parameters) == (
        "down",
        4,
        4 * sum(4 * (m + n) for m, n in shapes),
    )
    assert up.measured == (upload != "whole")
    assert up.bytes == (sum(map(len, messages[:3])) if up.measured else 4 * up.parameters)
    assert sum(t.numel() for t in load(messages[-1]).values()) * 4 == down.parameters  # four clients
    kinds = {t.dtype for m in messages for t in load(m).values()}
    assert kinds == {torch.bfloat16} | ({torch.float32} if rule == "moments" else set())


def test_one_contributor_takes_the_svd_itself(make_bert: Any) -> None:
    found = start(make_bert(), {2: list(range(24))})
    assert [entry.what for entry in found.traffic] == ["bases from the one contributor", "bases B and A"]
    whole = start(make_bert(), {2: list(range(24))}, upload="whole")
    for name, part in found.factors.items():
        assert torch.equal(part.B, whole.factors[name].B)


@pytest.mark.parametrize(
    ("rule", "upload"), [("sign", "factors"), ("moments", "factors"), ("sign", "sketch")]
)
def test_the_model_is_as_before(make_bert: Any, rule: str, upload: str) -> None:
    model = make_bert()
    model.classifier.requires_grad_(True)
    before = {n: (p.detach().clone(), p.requires_grad, p.grad) for n, p in model.named_parameters()}
    start(model, rule=rule, upload=upload)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.requires_grad == before[name][1]
        assert p.grad is None
