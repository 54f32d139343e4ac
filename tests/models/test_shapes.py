"""A base without weights: same names, shapes and head as the loaded one, nothing else in memory."""

import shutil

import pytest
import torch
from run_helpers import tiny_bert, tiny_gpt2, tiny_llama

from fedsb.errors import InputError
from fedsb.models import load_base
from fedsb.models.head import head_parameters
from fedsb.models.shapes import load_shapes

MAKE = {"bert": tiny_bert, "llama": tiny_llama, "gpt2": tiny_gpt2}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: make(folder / name) for name, make in MAKE.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "num_labels"), [("bert", 3), ("llama", 3), ("bert", 1), ("llama", None), ("gpt2", None)]
)
def test_it_is_the_loaded_one_without_its_weights(models, tmp_path, name, num_labels, dtype):
    whole = load_base(str(models[name]), tokenizer=None, num_labels=num_labels, dtype=dtype, seed=4)
    bare = shutil.copytree(models[name], tmp_path / name, ignore=lambda *_: ["model.safetensors"])
    shapes = load_shapes(str(bare), num_labels=num_labels, dtype=dtype, seed=4)
    found, wanted = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (shapes, whole))
    assert found == wanted
    heads = [head_parameters(model) if num_labels else {} for model in (shapes, whole)]
    assert all(torch.equal(heads[0][n], p) and heads[0][n].dtype == p.dtype for n, p in heads[1].items())
    assert {n for n, p in shapes.named_parameters() if p.device.type != "meta"} == set(heads[1])
    assert not any(p.requires_grad for p in shapes.parameters())


def test_without_a_config_it_says_so(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        load_shapes(str(tmp_path), num_labels=2)
