"""The adapter computes W0 x + s B R A x exactly, and leaves no trace when it is taken off."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import dense_update, numbers, plain_weight, random_factors, relative_error
from safetensors import safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedsb.adapter.attached import (
    attach,
    check_rank,
    collect,
    detach,
    find_targets,
    fold,
    linear_layers,
    load,
    merge,
    set_base_updates,
    set_factors,
    set_trained,
)
from fedsb.adapter.layer import Factors, LoraPair, LowRankLinear, leading
from fedsb.adapter.linear import dense_weight, features
from fedsb.errors import InputError
from fedsb.models.head import head_parameters
from fedsb.models.peft_folder import at_rank, base_weights_of, read_adapter, write_adapter

sizes = st.integers(1, 12)
counts = st.integers(1, 4)


def make_layer(kind: str, out: int, n_in: int, *, bias: bool = True) -> nn.Module:
    layer = Conv1D(out, n_in) if kind == "Conv1D" else nn.Linear(n_in, out, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(out + n_in)))
    return layer


def attach_random(model, targets, generator, *, rank=3, heads=1, core=True, trains=("R",), scale=1.0):
    layers = find_targets(model, targets)
    factors = {
        name: random_factors(*features(layer), rank, heads=heads, core=core, generator=generator)
        for name, layer in layers.items()
    }
    small = {n: Factors(B=0.1 * f.B, A=f.A, R=f.R) for n, f in factors.items()}
    return attach(model, small, trains=trains, scale=scale)


# ---------------------------------------------------------------- one layer


@given(
    kind=st.sampled_from(["Linear", "Conv1D"]),
    out=sizes,
    n_in=sizes,
    rank=counts,
    heads=st.integers(1, 3),
    core=st.booleans(),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.5, -3.0, 0.0]),
    batch=st.lists(st.integers(1, 4), max_size=2),
    seed=st.integers(0, 100),
)
def test_forward_equals_the_dense_sum(kind, out, n_in, rank, heads, core, bias, scale, batch, seed):
    draw = torch.Generator().manual_seed(seed)
    base = make_layer(kind, out, n_in, bias=bias)
    factors = random_factors(out, n_in, rank, heads=heads, core=core, generator=draw)
    batch = batch or [2]
    x = torch.randn(*batch, n_in, generator=draw)
    shift = numbers(base.bias) if base.bias is not None else 0.0
    expected = numbers(x) @ (plain_weight(base) + dense_update(factors, scale)).T + shift
    found = numbers(LowRankLinear(base, factors, scale=scale)(x))
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("heads", [1, 2])
def test_a_bfloat16_base_keeps_fp32_factors_and_its_own_output_type(generator, heads):
    base = make_layer("Linear", 8, 10).bfloat16()
    factors = random_factors(8, 10, 2, heads=heads, generator=generator)
    layer = LowRankLinear(base, factors)
    x = torch.randn(5, 10, generator=generator).bfloat16()
    y = layer(x)
    expected = numbers(x) @ (numbers(base.weight) + dense_update(factors)).T + numbers(base.bias)
    assert y.dtype == torch.bfloat16
    assert {p.dtype for p in layer.factors().values()} == {torch.float32}
    assert relative_error(numbers(y), expected) < 0.03
    y.float().sum().backward()
    assert layer.R.grad.dtype == torch.float32


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_the_gradient_of_R_is_Bt_g_At(generator, kind, heads):
    """Chain rule: g the gradient in the dense weight, block by block along the diagonal."""
    base = make_layer(kind, 7, 6)
    factors = random_factors(7, 6, 2, heads=heads, generator=generator)
    x, probe = torch.randn(5, 6, generator=generator), torch.randn(5, 7, generator=generator)
    layer = LowRankLinear(base, factors, scale=1.5)
    (layer(x).sin() * probe).sum().backward()
    weight = torch.tensor(plain_weight(base) + dense_update(factors, 1.5), requires_grad=True)
    dense_out = x.double() @ weight.T + base.bias.double()
    (g,) = torch.autograd.grad((dense_out.sin() * probe.double()).sum(), weight)
    whole = 1.5 * factors.B.double().T @ g @ factors.A.double().T
    for h in range(heads):
        block = slice(2 * h, 2 * h + 2)
        np.testing.assert_allclose(numbers(layer.R.grad[h]), numbers(whole[block, block]), atol=1e-3)


@pytest.mark.parametrize(
    ("factor", "shape"), [("A", (2, 5)), ("A", (3, 6)), ("B", (6, 2)), ("B", (7, 3)), ("R", (1, 2, 3))]
)
def test_factors_that_do_not_fit_are_refused_by_name(generator, factor, shape):
    factors = random_factors(7, 6, 2, generator=generator)._replace(**{factor: torch.zeros(shape)})
    with pytest.raises(ValueError, match=r"factor [ABR]: expected shape .* over a 7 x 6 layer, found"):
        LowRankLinear(nn.Linear(6, 7), factors)


def test_the_factors_are_copies(generator):
    factors = random_factors(4, 4, 2, generator=generator)
    layer = LowRankLinear(nn.Linear(4, 4), factors)
    with torch.no_grad():
        layer.R.zero_()
    assert factors.R.abs().sum() > 0


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_features_and_dense_weight_are_in_out_in_order(kind):
    layer = make_layer(kind, 3, 5)
    assert features(layer) == (3, 5)
    np.testing.assert_allclose(numbers(dense_weight(layer)), plain_weight(layer), atol=1e-5)
    assert dense_weight(layer.bfloat16()).dtype == torch.float32


# ---------------------------------------------------------------- whole models


@pytest.mark.parametrize("trains", [("R",), ("A", "B"), ("B",), ("A", "B", "R")])
def test_only_the_chosen_factors_train(any_model, generator, trains):
    model, targets = any_model
    attached = attach_random(model, targets, generator, trains=trains)
    training = {name for name, p in model.named_parameters() if p.requires_grad}
    assert training == {f"{layer}.{factor}" for layer in attached.layers for factor in trains}


def test_fed_sb_trains_r_squared_numbers_per_layer(bert, generator):
    attached = attach_random(bert, ["query", "value"], generator, rank=3)
    assert sum(p.numel() for p in bert.parameters() if p.requires_grad) == 3 * 3 * len(attached.layers)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("core", [True, False])
def test_merging_keeps_the_outputs(any_model, token_batch, generator, heads, core):
    model, targets = any_model
    del token_batch["labels"]
    before = model(**token_batch).logits
    attached = attach_random(model, targets, generator, rank=2, heads=heads, core=core, scale=0.7)
    adapted = model(**token_batch).logits
    merged = merge(attached)
    assert (adapted - before).abs().max() > 0.05  # the adapter does something
    torch.testing.assert_close(merged(**token_batch).logits, adapted, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, LowRankLinear) for module in merged.modules())


def test_merging_into_an_output_layer_tied_to_the_embedding_keeps_the_outputs(gpt2, token_batch, generator):
    del token_batch["labels"]
    assert gpt2.lm_head.weight is gpt2.transformer.wte.weight
    attached = attach_random(gpt2, ["lm_head"], generator)
    adapted = gpt2(**token_batch).logits
    torch.testing.assert_close(merge(attached)(**token_batch).logits, adapted, atol=1e-4, rtol=1e-4)


def test_attaching_factors_that_do_not_fit_leaves_the_model_as_it_was(bert, generator):
    names = list(find_targets(bert, ["query"]))
    factors = {name: random_factors(16, 16, 2, generator=generator) for name in names}
    factors[names[-1]] = random_factors(16, 9, 2, generator=generator)
    kinds = [(name, id(module)) for name, module in bert.named_modules()]
    with pytest.raises(ValueError, match="factor A"):
        attach(bert, factors)
    assert [(name, id(module)) for name, module in bert.named_modules()] == kinds
    assert all(p.requires_grad for p in bert.parameters())


def test_merging_into_bfloat16_rounds_the_fp32_sum_once(generator):
    model = nn.Sequential(make_layer("Linear", 6, 6)).bfloat16()
    base = model[0].weight.detach().clone()
    factors = random_factors(6, 6, 2, generator=generator)
    merge(attach(model, {"0": factors}))
    once = (base.double() + torch.tensor(dense_update(factors))).float().bfloat16()
    assert (model[0].weight != once).float().mean() < 0.05  # up to ties in the last fp32 digit


@pytest.mark.parametrize("heads", [1, 3])
def test_folding_gives_an_equal_lora(generator, heads):
    model = nn.Sequential(nn.Linear(9, 8))
    factors = random_factors(8, 9, 2, heads=heads, generator=generator)
    pair = fold(attach(model, {"0": factors}, scale=0.25))["0"]
    assert pair.A.shape == (2 * heads, 9)
    np.testing.assert_allclose(numbers(pair.B) @ numbers(pair.A), dense_update(factors, 0.25), atol=1e-4)
    again = attach_random(nn.Sequential(nn.Linear(9, 8)), ["0"], generator).layers["0"]
    assert set(again.factors()) == {"A", "R", "B"}


def test_detaching_leaves_the_model_bit_for_bit_as_it_was(any_model, token_batch, generator):
    model, targets = any_model
    del token_batch["labels"]
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)
    kinds = [(name, type(module), id(module)) for name, module in model.named_modules()]
    flags = [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()]
    state = copy.deepcopy(model.state_dict())
    output = model(**token_batch).logits
    attached = attach_random(model, targets, generator, trains=("A", "R", "B"))
    model(**token_batch).logits.sum().backward()
    assert detach(attached) is model
    assert [(name, type(module), id(module)) for name, module in model.named_modules()] == kinds
    assert [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()] == flags
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(**token_batch).logits, output)
    assert all(p.grad is None for p in model.parameters())


def test_collecting_and_loading_copies_an_adapter(make_bert, token_batch, generator):
    del token_batch["labels"]
    one = attach_random(make_bert(), ["query", "value"], generator)
    other = attach_random(make_bert(), ["query", "value"], generator)
    assert set(collect(one)) == {f"{name}.R" for name in one.layers}
    everything = collect(one, ["A", "R", "B"])
    load(other, everything)
    assert torch.equal(one.model(**token_batch).logits, other.model(**token_batch).logits)
    next(iter(everything.values())).zero_()  # collect gave copies
    assert torch.equal(one.model(**token_batch).logits, other.model(**token_batch).logits)


def test_loading_refuses_unknown_keys_and_wrong_shapes(bert, generator):
    attached = attach_random(bert, ["query"], generator)
    key = next(iter(collect(attached)))
    with pytest.raises(KeyError, match="no adapter factor is called 'nowhere"):
        load(attached, {"nowhere.R": torch.zeros(1, 3, 3)})
    with pytest.raises(ValueError, match=r"expected \(1, 3, 3\), found \(1, 2, 2\)"):
        load(attached, {key: torch.zeros(1, 2, 2)})


# ---------------------------------------------------------------- finding layers


def test_targets_match_whole_dotted_endings_in_the_models_order(bert):
    found = list(find_targets(bert, ["value", "query"]))
    assert [name.rsplit(".", 1)[1] for name in found] == ["query", "value"] * 2
    assert not find_targets(bert, ["attention.output.dense"]).keys() & find_targets(bert, ["query"]).keys()
    one = found[0]
    assert list(find_targets(bert, [one, "query"])) == [n for n in found if n.endswith("query")]


def test_a_part_of_a_layers_name_is_no_target(bert):
    for part in ("uery", "self", "layer.0"):
        with pytest.raises(InputError, match="no linear layer is called"):
            find_targets(bert, [part])


def test_a_wrong_target_lists_the_layers_and_the_close_ones(bert, llama):
    with pytest.raises(InputError, match=r"no linear layer is called 'querry'. Did you mean query\?.*value"):
        find_targets(bert, ["value", "querry"])
    with pytest.raises(InputError, match=r"'word_embeddings'.*end in: .*down_proj.*q_proj"):
        find_targets(llama, ["word_embeddings"])


def test_linear_layers_have_conv1d_but_no_embeddings(gpt2):
    found = linear_layers(gpt2)
    assert {name.rsplit(".", 1)[-1] for name in found} == {"c_attn", "c_proj", "c_fc", "lm_head"}


def test_a_rank_too_large_names_the_smallest_layer(llama):
    layers = find_targets(llama, ["q_proj", "k_proj"])
    check_rank(layers, 8)
    with pytest.raises(
        InputError, match=r"method.rank: expected 1 to 8, found 9: layer '.*k_proj' is 8 x 16"
    ):
        check_rank(layers, 9)
    with pytest.raises(InputError, match="expected 1 to 4, found 5"):
        check_rank(layers, 5, heads=2)


# ---------------------------------------------------------------- scales of heads


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_s_scales_head_by_head(generator, kind):
    base, factors = make_layer(kind, 7, 9), random_factors(7, 9, 2, heads=3, generator=generator)
    s = torch.tensor([2.0, 0.0, -1.5])
    layer = LowRankLinear(base, factors._replace(s=s), trains=("R", "s"), scale=0.5)
    scaled = factors._replace(R=torch.stack([c * R for c, R in zip(s, factors.R, strict=True)]))
    expected = dense_update(scaled, 0.5)
    np.testing.assert_allclose(numbers(layer.update()), expected, atol=1e-5)
    pair = layer.lora()
    np.testing.assert_allclose(numbers(pair.B) @ numbers(pair.A), expected, atol=1e-5)
    x = torch.randn(4, 9, generator=generator)
    np.testing.assert_allclose(
        numbers(layer(x) - base(x)), numbers(x) @ expected.T, atol=1e-4, err_msg="forward"
    )
    layer(x).square().sum().backward()
    assert layer.s.grad.abs().min() > 0
    assert layer.R.grad[1].abs().max() == 0  # its s is 0
    assert list(layer.factors()) == ["A", "R", "B", "s"]


def test_s_of_another_length_is_refused(generator):
    factors = random_factors(7, 6, 2, heads=2, generator=generator)._replace(s=torch.ones(3))
    with pytest.raises(ValueError, match=r"factor s: expected shape \(2,\) over a 7 x 6 layer"):
        LowRankLinear(nn.Linear(6, 7), factors)


# ---------------------------------------------------------------- other values and ranks


def test_values_of_the_same_shape_are_copied_in_and_the_parameter_stays(generator):
    layer = LowRankLinear(nn.Linear(6, 7), random_factors(7, 6, 2, generator=generator))
    parameter, value = layer.R, torch.randn(1, 2, 2, generator=generator)
    layer.set_factor("R", value)
    assert layer.R is parameter
    assert torch.equal(layer.R, value)
    value.zero_()
    assert layer.R.abs().max() > 0


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("core", [True, False])
def test_a_layer_at_a_smaller_rank_computes_with_the_leading_directions_of_each_head(generator, heads, core):
    heads = heads if core else 1
    factors = random_factors(12, 13, 4, heads=heads, core=core, generator=generator)
    model = nn.Sequential(make_layer("Linear", 12, 13))
    attached = attach(model, {"0": factors}, trains=("R",) if core else ("A", "B"))
    layer = attached.layers["0"]
    trained = {name: p.requires_grad for name, p in layer.factors().items()}
    for rank in (2, 4, 1):
        part = leading(factors, rank)
        set_factors(attached, {"0": {n: v for n, v in part._asdict().items() if v is not None}})
        expected = np.zeros((12, 13))
        for h in range(heads):
            keep = slice(4 * h, 4 * h + rank)
            middle = numbers(factors.R[h])[:rank, :rank] if core else np.eye(rank)
            expected += numbers(factors.B)[:, keep] @ middle @ numbers(factors.A)[keep]
        np.testing.assert_allclose(numbers(layer.update()), expected, atol=1e-5)
        x = torch.randn(3, 13, generator=generator)
        np.testing.assert_allclose(numbers(layer(x) - layer.base(x)), numbers(x) @ expected.T, atol=1e-4)
        assert {name: p.requires_grad for name, p in layer.factors().items()} == trained
    assert leading(factors, 4) is factors


def test_set_trained_switches_which_factors_get_gradients(any_model, generator):
    model, targets = any_model
    attached = attach_random(model, targets, generator, core=False, trains=("B",))
    found = set_trained(attached, ("A",))
    assert found == {f"{name}.A": layer.A for name, layer in attached.layers.items()}
    wanted = {id(p) for p in found.values()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == wanted


# ---------------------------------------------------------------- base weights that change


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_update_is_added_to_W0_and_taken_back_bit_for_bit(generator, kind, dtype):
    base = make_layer(kind, 7, 9).to(dtype)
    own, before = base.weight, base.weight.detach().clone()
    layer = LowRankLinear(base, random_factors(7, 9, 2, generator=generator))
    plain = dense_weight(base)
    first, second = torch.randn(7, 9, generator=generator), torch.randn(7, 9, generator=generator)
    alone = numbers(layer.update())
    for update in (first, second):  # each replaces the one before, nothing adds up
        layer.set_base_update(update)
        assert torch.equal(dense_weight(base), plain + update if dtype == torch.float32 else plain)
        assert base.weight.dtype == dtype
        np.testing.assert_allclose(numbers(layer.update()), alone + numbers(update), atol=1e-5)
    layer.set_base_update(None)
    assert base.weight is own
    assert torch.equal(base.weight, before)
    assert layer.base_update is None
    np.testing.assert_array_equal(numbers(layer.update()), alone)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-5, 1e-3, 1.0])
def test_a_small_update_is_not_lost_in_a_16_bit_base(generator, kind, dtype, size):
    """Cast to bfloat16, W0 + update loses all of an update of 1e-5: the sum's rounding is 4e-3 of W0."""
    layer = LowRankLinear(make_layer(kind, 24, 32).to(dtype), random_factors(24, 32, 2, generator=generator))
    W0 = numbers(dense_weight(layer.base))
    update = size * torch.randn(24, 32, generator=generator)
    layer.set_base_update(update)
    layer.base.bias.data.zero_()
    layer.B.data.zero_()
    x = torch.eye(32, dtype=dtype)  # gives the weight itself, rounded once
    with torch.no_grad():
        layer.base.weight.data.zero_() if dtype != torch.float32 else None
        kept = numbers(layer(x).float().T) - (W0 if dtype == torch.float32 else 0)
    assert relative_error(kept, numbers(update)) < 5e-3


def test_a_base_update_is_no_parameter_and_no_part_of_the_state(generator):
    model = nn.Sequential(make_layer("Linear", 7, 9))
    attached = attach(model, {"0": random_factors(7, 9, 2, generator=generator)})
    names = [name for name, _ in model.named_parameters()]
    state = list(model.state_dict())
    attached.layers["0"].set_base_update(torch.ones(7, 9))
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == state


def test_layers_that_are_not_named_get_W0_back(any_model, generator):
    model, targets = any_model
    attached = attach_random(model, targets, generator)
    before = {n: dense_weight(layer.base) for n, layer in attached.layers.items()}
    updates = {n: torch.ones(features(layer.base)) for n, layer in attached.layers.items()}
    set_base_updates(attached, updates)
    first = next(iter(updates))
    set_base_updates(attached, {first: updates[first]})
    for name, layer in attached.layers.items():
        changed = before[name] + 1 if name == first else before[name]
        assert torch.equal(dense_weight(layer.base), changed)


def test_detach_gives_W0_back_after_base_updates(any_model, generator, token_batch):
    model, targets = any_model
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    attached = attach_random(model, targets, generator)
    set_base_updates(attached, {n: torch.ones(features(layer.base)) for n, layer in attached.layers.items()})
    detach(attached)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


@pytest.mark.parametrize("rank_of_update", [1, 4])
def test_folded_and_merged_layers_hold_the_base_update_too(any_model, generator, token_batch, rank_of_update):
    model, targets = any_model
    attached = attach_random(model, targets, generator)
    updates = {}
    for name, layer in attached.layers.items():
        out, n_in = features(layer.base)
        left, right = torch.randn(out, rank_of_update), torch.randn(rank_of_update, n_in)
        updates[name] = 0.05 * left @ right
    set_base_updates(attached, updates)
    logits = model(**{k: v for k, v in token_batch.items() if k != "labels"}).logits
    whole = {name: numbers(layer.update()) for name, layer in attached.layers.items()}
    before = {
        name: numbers(dense_weight(layer.base)) - numbers(updates[name])
        for name, layer in attached.layers.items()
    }
    for name, pair in fold(attached).items():
        np.testing.assert_allclose(numbers(pair.B) @ numbers(pair.A), whole[name], atol=1e-5)
        assert pair.A.shape[0] <= min(3 + rank_of_update, *whole[name].shape) + 2
    merged = merge(attached)
    assert not any(isinstance(m, LowRankLinear) for m in merged.modules())
    for name in whole:
        found = numbers(dense_weight(merged.get_submodule(name)))
        np.testing.assert_allclose(found, before[name] + whole[name], atol=1e-5)
    again = merged(**{k: v for k, v in token_batch.items() if k != "labels"}).logits
    torch.testing.assert_close(again, logits, atol=1e-4, rtol=1e-4)


def test_an_update_of_zero_still_folds_to_a_pair(generator):
    factors = random_factors(5, 6, 2, core=False, generator=generator)._replace(B=torch.zeros(5, 2))
    layer = LowRankLinear(nn.Linear(6, 5), factors)
    layer.set_base_update(torch.zeros(5, 6))
    pair = layer.lora()
    assert pair.A.shape == (1, 6)
    assert not (pair.B @ pair.A).any()


def test_a_base_in_4_bits_takes_no_update_and_says_what_to_do(generator):
    layer = LowRankLinear(nn.Linear(6, 5), random_factors(5, 6, 2, generator=generator))
    layer.base.weight.quant_state = object()
    layer.set_base_update(None)
    with pytest.raises(InputError, match=r"4 bits: set model.load_in_4bit to false"):
        layer.set_base_update(torch.zeros(5, 6))


# ---------------------------------------------------------------- on disk, as peft has it


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_peft_alone_loads_the_folder_and_computes_the_same(request, name, token_batch, generator, tmp_path):
    from peft import PeftModel

    make = request.getfixturevalue(f"make_{name}")
    del token_batch["labels"]
    targets = {"bert": ["query", "value"], "gpt2": ["c_attn", "c_proj"]}[name]
    attached = attach_random(make(), targets, generator, heads=2)
    causal = name == "gpt2"
    head = {} if causal else head_parameters(attached.model)
    task_type = "CAUSAL_LM" if causal else "SEQ_CLS"
    write_adapter(
        tmp_path / "a",
        fold(attached),
        base_model="tiny",
        task_type=task_type,
        fan_in_fan_out=causal,
        head=head,
    )
    with torch.no_grad():
        ours = attached.model(**token_batch).logits
        theirs = PeftModel.from_pretrained(make(), tmp_path / "a").eval()(**token_batch).logits
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_an_adapter_folder_reads_back_equal_with_its_head(generator, tmp_path):
    pairs = {
        "a.query": LoraPair(torch.randn(4, 2, generator=generator), torch.randn(2, 5, generator=generator))
    }
    head = {"classifier.weight": torch.randn(3, 4, generator=generator)}
    write_adapter(tmp_path, pairs, base_model="tiny", task_type="SEQ_CLS", head=head)
    config, read, read_head = read_adapter(tmp_path)
    assert config["modules_to_save"] == ["classifier"]
    assert config["r"] == config["lora_alpha"] == 2
    assert list(read) == ["a.query"]
    assert torch.equal(read["a.query"].B @ read["a.query"].A, pairs["a.query"].B @ pairs["a.query"].A)
    assert torch.equal(read_head["classifier.weight"], head["classifier.weight"])


def test_the_same_adapter_gives_the_same_bytes_and_names_its_base(generator, tmp_path):
    pairs = {"q": LoraPair(torch.randn(4, 2, generator=generator), torch.randn(2, 5, generator=generator))}
    files = []
    for number in range(20):  # safetensors writes two metadata in any order, file by file
        folder = tmp_path / str(number)
        write_adapter(
            folder, pairs, base_model="tiny", task_type="SEQ_CLS", base_weights="float32:0123456789abcdef"
        )
        files.append((folder / "adapter_model.safetensors").read_bytes())
        assert base_weights_of(folder) == "float32:0123456789abcdef"
    assert len(set(files)) == 1
    with safe_open(tmp_path / "0" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_reading_an_adapter_folds_its_scale_into_B(generator, tmp_path):
    pair = LoraPair(torch.randn(4, 2, generator=generator), torch.randn(2, 5, generator=generator))
    write_adapter(tmp_path, {"q": pair}, base_model="tiny", task_type="SEQ_CLS")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 6}))
    _, read, _ = read_adapter(tmp_path)
    torch.testing.assert_close(read["q"].B @ read["q"].A, 6 / 2 * pair.B @ pair.A)


@pytest.mark.parametrize("break_it", ["weights", "config", "garbage"])
def test_an_adapter_folder_that_cannot_be_read_is_an_input_error(generator, tmp_path, break_it):
    pairs = {"q": LoraPair(torch.zeros(4, 2), torch.zeros(2, 5))}
    write_adapter(tmp_path, pairs, base_model="tiny", task_type="SEQ_CLS")
    files = {"weights": "adapter_model.safetensors", "config": "adapter_config.json"}
    if break_it == "garbage":
        (tmp_path / files["weights"]).write_bytes(b"not safetensors")
    else:
        (tmp_path / files[break_it]).unlink()
    with pytest.raises(InputError, match="adapter"):
        read_adapter(tmp_path)


def test_padding_to_a_higher_rank_is_exact(generator):
    pair = LoraPair(torch.randn(4, 2, generator=generator), torch.randn(2, 5, generator=generator))
    padded = at_rank(pair, 6)
    assert padded.A.shape == (6, 5)
    torch.testing.assert_close(padded.B @ padded.A, pair.B @ pair.A)
    with pytest.raises(InputError, match="rank 2 and 1 would lose"):
        at_rank(pair, 1)
