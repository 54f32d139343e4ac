"""Fed-SB's bases in another frame, and with singular values kept in them: the same start, other numbers."""

import numpy as np
import pytest
import torch
from oracles import dense_update, numbers, relative_error
from run_helpers import adapter_bytes, classification_config, metrics_of, tiny_bert, write_data

from fedsb import RunConfig, run
from fedsb.adapter.bases import bases_from_update, bases_from_weight, turned, weighted_directions
from fedsb.config.checks import check_settings
from fedsb.errors import InputError
from fedsb.runner.checkpoint import load_checkpoint


def drawn(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("heads", [1, 3])
def test_a_turned_start_is_the_same_update_over_the_same_subspaces(heads, generator):
    start = bases_from_update(torch.randn(14, 11, generator=generator), 3, heads=heads, generator=generator)
    other = turned(start, generator=drawn(1))
    assert relative_error(dense_update(other), dense_update(start)) < 1e-5
    for mine, theirs in ((other.B, start.B), (other.A.T, start.A.T)):
        for h in range(heads):
            a, b = (numbers(x[:, 3 * h : 3 * h + 3]) for x in (mine, theirs))
            np.testing.assert_allclose(a.T @ a, np.eye(3), atol=1e-5)
            np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-5)
            assert np.abs(a - b).max() > 0.1
    assert torch.equal(turned(start, generator=drawn(1)).B, other.B)


@pytest.mark.parametrize("heads", [1, 2])
def test_singular_values_lengthen_the_columns_and_leave_the_update(heads, generator):
    update = torch.randn(14, 11, generator=generator)
    S = torch.from_numpy(np.linalg.svd(numbers(update), compute_uv=False)[: 3 * heads]).float()
    start = bases_from_update(update, 3, heads=heads, generator=generator)
    other = weighted_directions(start, S)
    assert relative_error(dense_update(other), dense_update(start)) < 1e-5
    np.testing.assert_allclose(numbers(other.B.norm(dim=0)), numbers(S / S.mean()), rtol=1e-5)
    R = numbers(torch.block_diag(*other.R))
    np.testing.assert_allclose(R, numbers(S.mean()) * np.eye(3 * heads), atol=1e-4)


def test_a_direction_of_no_length_stays_finite(generator):
    start = bases_from_weight(torch.ones(5, 4), 2, generator=generator)
    assert all(
        torch.isfinite(part).all() for part in weighted_directions(start, torch.tensor([2.0, 0.0]))[:3]
    )


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=36, test=12)
    return folder


def config_of(world, init, **changes):
    few = {
        "method__rank": 4,
        "method__targets": ["query"],
        "method__init": {"head_warmup": None, "samples": 12} | init,
        "federation__rounds": 1,
        "evaluation__every": None,
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def started(world, tmp_path, name, init, **changes):
    folder = tmp_path / name
    run(RunConfig.from_dict(config_of(world, init, **changes)), folder)
    return folder, load_checkpoint(folder / "checkpoint").factors


CHANGES = {
    "frame": {"frame": "random"},
    "values": {"singular_values": True},
    "both": {"frame": "random", "singular_values": True},
}


@pytest.mark.parametrize(
    ("kind", "change"), [("gradient", "frame"), *(("weights", change) for change in CHANGES)]
)
def test_a_run_starts_from_the_same_update_and_sends_as_much(world, tmp_path, kind, change):
    """Bases made of gradients travel as bfloat16, so the update is the same to its 8 digits."""
    (plain, before), (other, after) = (
        started(world, tmp_path, name, {"kind": kind} | more)
        for name, more in (("plain", {}), ("other", CHANGES[change]))
    )
    for layer, factors in after.items():
        theirs = dense_update(before[layer])
        assert np.abs(dense_update(factors) - theirs).max() <= 0.02 * max(np.abs(theirs).max(), 1e-12)
        assert not torch.equal(factors.B, before[layer].B)
        (B, _), (B0, _) = (np.linalg.qr(numbers(x.B)) for x in (factors, before[layer]))
        assert np.linalg.svd(B.T @ B0, compute_uv=False).min() > 0.98
    assert adapter_bytes(other) != adapter_bytes(plain)
    for a, b in zip(metrics_of(plain), metrics_of(other), strict=True):
        assert a["upload_parameters"] == b["upload_parameters"]


@pytest.mark.parametrize(
    ("init", "changes", "message"),
    [
        ({"frame": "random"}, {"method__name": "fedit"}, "method.init.frame: fedit has no core"),
        ({"singular_values": True}, {"method__name": "lora-xs"}, "lora-xs has bases of its own making"),
        ({"singular_values": True}, {}, "with method.init.kind: weights alone"),
    ],
)
def test_what_has_no_such_bases_is_refused(world, init, changes, message):
    with pytest.raises(InputError, match=message):
        check_settings(RunConfig.from_dict(config_of(world, init, **changes)))
