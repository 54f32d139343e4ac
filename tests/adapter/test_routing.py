"""A mixture layer against loops, its gate from sums against all rows at once, its losses, its masks."""

import pytest
import torch
from oracles import mixture_loop, mixture_weights
from torch import nn

from fedsb.adapter import Factors, LowRankLinear
from fedsb.adapter.linear import features
from fedsb.adapter.mixture import Mixture, attach_mixture, mixture_of, with_experts
from fedsb.adapter.routing import (
    Routing,
    Statistics,
    answering,
    base_states,
    entropies,
    gate_from,
    mean_routes,
    mix,
    noting,
    routing_of,
    tell,
)
from fedsb.errors import InputError, RunFailed

N, T, IN, OUT, RANK, EXPERTS = 4, 5, 7, 6, 3, 3
LENGTHS = (5, 2, 4, 3)
ASKED = (2, 1, 4, 0)
"""Tokens of each row's prompt; the last row has none."""


def tokens(lengths):
    return torch.arange(T)[None] < torch.tensor(lengths)[:, None]


@pytest.fixture
def parts(generator):
    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": draw(N, T, IN),
        "weight": draw(OUT, IN),
        "B": draw(OUT, RANK),
        "A": draw(RANK, IN),
        "R": draw(EXPERTS, RANK, RANK),
        "G": draw(EXPERTS, RANK + 1),
    }


def layer_of(parts, routing):
    base = nn.Linear(IN, OUT, bias=False).double()
    base.weight.data.copy_(parts["weight"])
    factors = Factors(B=parts["B"].float(), A=parts["A"].float(), R=parts["R"].float(), G=parts["G"].float())
    layer = LowRankLinear(base, factors, trains=("R", "G"), routing=routing).double()
    for name in ("A", "B", "R", "G"):  # fp32 was copied in; the exact values are wanted
        getattr(layer, name).data.copy_(parts[name])
    return layer


def routing_for(route="sequence", **more):
    routing = Routing(("a", "b", "c"), route, **more)
    routing.valid = tokens(LENGTHS)
    asked = tokens(ASKED)
    routing.asked = torch.where(asked.any(1, keepdim=True), asked, routing.valid)
    return routing


def close(one, other, within=1e-10):
    assert (one - other).abs().max() <= within * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("route", ["sequence", "token"])
def test_forward_and_gradients_are_those_of_loops(parts, route):
    routing = routing_for(route)
    layer = layer_of(parts, routing)
    x = parts["x"].clone().requires_grad_()
    y = layer(x)
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
    found = torch.autograd.grad((y * seed).sum(), [x, layer.R, layer.G])
    slow = {name: value.clone().requires_grad_() for name, value in parts.items()}
    expected = mixture_loop(**slow, asked=routing.asked, route=route)
    close(y, expected)
    for one, other in zip(
        found, torch.autograd.grad((expected * seed).sum(), [slow["x"], slow["R"], slow["G"]]), strict=True
    ):
        close(one, other)


def test_the_largest_experts_alone_are_mixed_outside_training(parts):
    routing = routing_for(top_k=2)
    layer = layer_of(parts, routing)
    close(layer.eval()(parts["x"]), mixture_loop(**parts, asked=routing.asked, top_k=2))
    close(layer.train()(parts["x"]), mixture_loop(**parts, asked=routing.asked))


def test_hard_routing_is_a_soft_one_with_one_hot_weights(parts):
    routing = routing_for(hard=True)
    layer = layer_of(parts, routing)
    routing.experts = torch.tensor([2, 0, 1, 2])
    hard = layer(parts["x"])
    close(hard, mixture_loop(**parts, asked=routing.asked, experts=[2, 0, 1, 2]))
    one_hot = torch.eye(EXPERTS, dtype=torch.float64)[routing.experts][:, None]
    soft = parts["x"] @ parts["weight"].T + mix(parts["x"] @ parts["A"].T, one_hot, parts["R"]) @ parts["B"].T
    assert torch.equal(hard, soft)


def test_a_client_of_some_experts_holds_them_alone(parts):
    routing = routing_for(hard=True, held=(0, 2))
    layer = layer_of(parts, routing)
    layer.set_factor("R", parts["R"][[0, 2]])
    layer.double()
    layer.R.data.copy_(parts["R"][[0, 2]])
    routing.experts = torch.tensor([2, 0, 0, 2])
    close(layer(parts["x"]), mixture_loop(**parts, asked=routing.asked, experts=[2, 0, 0, 2]))


def test_one_expert_is_one_core_bit_for_bit(generator):
    base = nn.Linear(IN, OUT)
    factors = Factors(
        B=torch.randn(OUT, RANK, generator=generator),
        A=torch.randn(RANK, IN, generator=generator),
        R=torch.randn(1, RANK, RANK, generator=generator),
    )
    x = torch.randn(N, T, IN, generator=generator)
    plain, mixed = LowRankLinear(base, factors), LowRankLinear(base, factors, routing=Routing(("a",)))
    seed = torch.randn(N, T, OUT, generator=generator)
    found = [torch.autograd.grad((layer(x) * seed).sum(), layer.R) for layer in (plain, mixed)]
    assert torch.equal(plain(x), mixed(x))
    assert torch.equal(found[0][0], found[1][0])


def test_padding_never_counts(parts):
    """What stands at padding changes neither routes, nor losses, nor what real tokens give."""
    other = torch.where(tokens(LENGTHS)[..., None], parts["x"], 100.0 * torch.ones_like(parts["x"]))
    for route in ("sequence", "token"):
        routing = routing_for(route)
        layer = layer_of(parts, routing)
        routing.notes = []
        one, two = layer(parts["x"]), layer(other)
        assert torch.equal(one[tokens(LENGTHS)], two[tokens(LENGTHS)])
        (_, p, _), (_, p_too, _) = routing.notes
        assert torch.equal(entropies(p, routing.valid), entropies(p_too, routing.valid))
        assert torch.equal(mean_routes(p, routing.valid), mean_routes(p_too, routing.valid))


def test_entropies_and_mean_routes_are_those_of_loops(parts):
    routing = routing_for("token")
    layer = layer_of(parts, routing)
    routing.notes = []
    layer(parts["x"])
    (note,) = routing.notes
    z = parts["x"] @ parts["A"].T
    for n, length in enumerate(LENGTHS):
        rows = [
            mixture_weights(z, parts["G"], asked=routing.asked, route="token", n=n, t=t)
            for t in range(length)
        ]
        entropy = sum(-sum(q * torch.log(q) for q in p) for p in rows) / length
        close(entropies(note.p, routing.valid)[n], entropy)
        close(mean_routes(note.p, routing.valid)[n], sum(rows) / length)


def test_sums_of_clients_make_the_gate_of_all_rows(generator):
    q = torch.randn(60, RANK, generator=generator, dtype=torch.float64)
    experts = torch.randint(0, EXPERTS, (60,), generator=generator)
    q = q + torch.randn(EXPERTS, RANK, generator=generator, dtype=torch.float64)[experts]
    whole, summed = Statistics.zero(EXPERTS, RANK), Statistics.zero(EXPERTS, RANK)
    whole.add(q, experts)
    for start, end in ((0, 7), (7, 31), (31, 60)):
        part = Statistics.zero(EXPERTS, RANK)
        part.add(q[start:end], experts[start:end])
        summed += part
    for name in ("counts", "sums", "moment"):
        close(getattr(summed, name), getattr(whole, name), 1e-12)
    assert torch.allclose(gate_from(summed), gate_from(whole), rtol=1e-6)


def test_the_gate_is_linear_discriminant_analysis(generator):
    """Its scores choose the class whose mean is nearest by Mahalanobis' distance, found in a loop."""
    q = torch.randn(90, RANK, generator=generator, dtype=torch.float64)
    experts = torch.arange(90) % EXPERTS
    centres = 1.5 * torch.randn(EXPERTS, RANK, generator=generator, dtype=torch.float64)
    q = q + centres[experts]
    sums = Statistics.zero(EXPERTS, RANK)
    sums.add(q, experts)
    G = gate_from(sums).double()
    means = [sum(v for v, e in zip(q, experts, strict=True) if e == k) / 30 for k in range(EXPERTS)]
    within = (
        sum(torch.outer(v - means[e], v - means[e]) for v, e in zip(q, experts.tolist(), strict=True)) / 90
    )
    within = within + 0.05 * within.diagonal().mean() * torch.eye(RANK, dtype=torch.float64)
    inverse = torch.linalg.inv(within)
    for v in q:
        distances = torch.stack([(v - m) @ inverse @ (v - m) for m in means])
        scores = G[:, :-1] @ v + G[:, -1]
        close(scores - scores[0], -0.5 * (distances - distances[0]), 1e-5)


def test_an_expert_without_rows_gets_the_mean_of_all(generator):
    q, sums = torch.randn(20, RANK, generator=generator), Statistics.zero(3, RANK)
    sums.add(q, torch.arange(20) % 2)
    mean, G = q.double().mean(0), gate_from(sums).double()
    at_mean = G[:, :-1] @ mean + G[:, -1]
    assert at_mean.argmax() == 2
    assert G.isfinite().all()
    with pytest.raises(RunFailed, match="no client gave statistics"):
        gate_from(Statistics.zero(3, RANK))


def mixture_on(model, targets, generator, route="sequence", **more):
    factors = {}
    for name in targets:
        out, n_in = features(model.get_submodule(name))
        factors[name] = Factors(
            B=torch.linalg.qr(torch.randn(out, RANK, generator=generator)).Q,
            A=torch.linalg.qr(torch.randn(n_in, RANK, generator=generator)).Q.T.contiguous(),
            R=torch.randn(EXPERTS, RANK, RANK, generator=generator),
            G=torch.randn(EXPERTS, RANK + 1, generator=generator),
        )
    mixture = Mixture(("a", "b", "c"), factors, route, **more)
    return mixture, attach_mixture(model, mixture)


def encoder_layers(model):
    return [name for name, _ in model.named_modules() if name.endswith(("query", "value"))]


def test_a_mixture_is_put_on_a_model_and_taken_off(bert, token_batch, generator):
    from fedsb.adapter.attached import detach

    inputs = {name: token_batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        plain = bert(**inputs).logits
        mixture, attached = mixture_on(bert, encoder_layers(bert), generator)
        told = tell(bert, token_batch)
        assert "labels" not in told
        assert routing_of(bert).names == ("a", "b", "c")
        assert not torch.allclose(bert(**told).logits, plain, atol=1e-3)
        again = mixture_of(attached)
        for name, part in mixture.factors.items():
            assert all(torch.equal(getattr(part, f), getattr(again.factors[name], f)) for f in "BARG")
        assert torch.equal(detach(attached)(**inputs).logits, plain)
        assert routing_of(bert) is None


def test_a_row_is_routed_as_it_would_be_alone(bert, token_batch, generator):
    """Neither its neighbours nor their padding change what a row gives."""
    mixture_on(bert, encoder_layers(bert), generator)
    with torch.no_grad():
        together = bert(**tell(bert, token_batch)).logits
        for n, length in enumerate(token_batch["attention_mask"].sum(1).tolist()):
            one = {k: v[n : n + 1, :length] if v.dim() == 2 else v[n : n + 1] for k, v in token_batch.items()}
            assert torch.allclose(bert(**tell(bert, one)).logits[0], together[n], atol=1e-5)


def test_equal_experts_are_one_core_whatever_the_gate(bert, token_batch, generator):
    from fedsb.adapter.attached import attach, detach

    mixture, attached = mixture_on(bert, encoder_layers(bert), generator)
    detach(attached)
    one = {n: part._replace(R=part.R[:1], G=None) for n, part in mixture.factors.items()}
    with torch.no_grad():
        plain = attach(bert, one)
        expected = bert(**tell(bert, token_batch)).logits
        detach(plain)
        same = {n: with_experts(part, EXPERTS, mixture.factors[n].G) for n, part in one.items()}
        attach_mixture(bert, Mixture(("a", "b", "c"), same))
        assert torch.allclose(bert(**tell(bert, token_batch)).logits, expected, atol=1e-5)


def test_the_static_mean_is_the_layer_under_constant_weights(parts):
    routing = routing_for()
    routing.usage = torch.tensor([0.5, 0.2, 0.3])
    layer = layer_of(parts, routing)
    pair = layer.lora()
    core = sum(u * R for u, R in zip((0.5, 0.2, 0.3), parts["R"], strict=True))
    close(pair.B @ pair.A, parts["B"] @ core @ parts["A"], 1e-6)


def test_an_answer_keeps_what_its_prompt_chose(llama, generator):
    """The prompt's weights hold for every later pass, whatever its width."""
    layers = [name for name, _ in llama.named_modules() if name.endswith(("q_proj", "v_proj"))]
    mixture_on(llama, layers, generator)
    prompt = torch.tensor([[5, 6, 7], [8, 9, 4]])
    with torch.no_grad(), answering(llama), noting(llama) as notes:
        llama(**tell(llama, {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}))
        first = len(notes)
        kept = {layer: p.clone() for layer, p in routing_of(llama).kept.items()}
        llama(input_ids=prompt[:, :1])
        assert first == len(layers)
        assert len(notes) == first
        assert all(torch.equal(p, kept[layer]) for layer, p in routing_of(llama).kept.items())
    assert routing_of(llama).kept is None


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_states_of_a_request_are_the_same_wherever_it_is_padded(request, family, generator):
    model = request.getfixturevalue(family)
    layers = [n for n, _ in model.named_modules() if n.endswith(("c_attn", "q_proj"))]
    mixture_on(model, layers, generator, "request")
    ids, zeros = torch.tensor([[5, 6, 7]]), torch.zeros(1, 2, dtype=torch.long)
    ones = torch.ones_like(ids)
    sides = {"right": (ids, zeros), "left": (zeros, ids)}
    states = {
        side: base_states(
            model,
            tell(
                model,
                {
                    "input_ids": torch.cat(parts, 1),
                    "attention_mask": torch.cat([ones if p is ids else zeros for p in parts], 1),
                },
            ),
        )
        for side, parts in sides.items()
    }
    assert torch.allclose(states["left"], states["right"], atol=1e-5)


def test_layers_that_see_no_rows_are_named(bert, token_batch, generator):
    _, attached = mixture_on(bert, encoder_layers(bert), generator)
    tell(bert, token_batch)
    layer = next(iter(attached.layers.values()))
    with pytest.raises(InputError, match="cannot be chosen by row"):
        layer(torch.zeros(3, 9, 16))


def test_hard_routing_without_experts_is_refused(parts):
    layer = layer_of(parts, routing_for(hard=True))
    with pytest.raises(InputError, match="have none of their own"):
        layer(parts["x"])
