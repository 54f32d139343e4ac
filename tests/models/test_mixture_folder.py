"""A mixture's folder gives its logits and texts again: to fedsb, and to a program that has none of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_helpers import environment, tiny_bert, tiny_gpt2, tiny_llama
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fedsb.adapter.attached import detach, find_targets
from fedsb.adapter.layer import Factors
from fedsb.adapter.linear import features
from fedsb.adapter.mixture import Mixture, attach_mixture
from fedsb.adapter.routing import answering, routing_of, tell
from fedsb.errors import InputError
from fedsb.models.head import head_parameters
from fedsb.models.mixture_folder import put_mixture_on, read_mixture, write_mixture

EXPERTS = ("news", "code", "law")
MAKE = {"bert": tiny_bert, "llama": tiny_llama, "gpt2": tiny_gpt2}
TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
BATCH = {"input_ids": (torch.arange(18).reshape(3, 6) * 5 + 4) % 24 + 3, "attention_mask": MASK}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, make in MAKE.items():
        make(folder / name)
    return folder


def base_of(models: Path, name: str, seed: int = 0) -> nn.Module:
    if name == "bert":
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(models / name, num_labels=3).eval()
    return AutoModelForCausalLM.from_pretrained(models / name).eval()


def mixture_on(model: nn.Module, name: str, route: str = "sequence", top_k: int | None = None) -> Mixture:
    """Random experts that change a lot, and a gate that tells rows apart."""
    generator = torch.Generator().manual_seed(5)
    factors = {}
    for layer, module in find_targets(model, TARGETS[name]).items():
        out, n_in = features(module)
        draw = [torch.randn(*size, generator=generator) for size in ((out, 4), (4, n_in), (3, 4, 4), (3, 5))]
        factors[layer] = Factors(B=0.3 * draw[0], A=draw[1] / n_in**0.5, R=draw[2], G=2 * draw[3])
    usage = torch.tensor([0.5, 0.3, 0.2])
    if route != "request":
        return Mixture(EXPERTS, factors, route, top_k, usage)
    factors = {layer: part._replace(G=None) for layer, part in factors.items()}
    gate = torch.randn(3, model.config.hidden_size + 1, generator=generator)
    gate[:, -1] = 0.0
    return Mixture(EXPERTS, factors, route, top_k, usage, gate)


def routed(model: nn.Module, mixture: Mixture, **more: Tensor) -> Tensor:
    attached = attach_mixture(model, mixture)
    with torch.no_grad():
        logits = model.eval()(**tell(model, BATCH | more)).logits
    detach(attached)
    return logits


def write(folder: Path, model: nn.Module, name: str, mixture: Mixture) -> Path:
    head = head_parameters(model) if name == "bert" else {}
    write_mixture(folder, mixture, base_model="tiny", head=head)
    return folder


KINDS = [("bert", "sequence", None), ("bert", "token", 2), ("llama", "sequence", 1), ("gpt2", "token", None)]
KINDS += [("bert", "request", None), ("llama", "request", None)]


@pytest.mark.parametrize(("name", "route", "top_k"), KINDS)
def test_the_folder_reads_back_equal_and_gives_its_logits(models, tmp_path, name, route, top_k):
    model = base_of(models, name)
    mixture = mixture_on(model, name, route, top_k)
    expected, plain = routed(model, mixture), model(**BATCH).logits
    assert float((expected - plain).detach().abs().max()) > 0.1
    folder = write(tmp_path / "mixture", model, name, mixture)
    saved = read_mixture(folder)
    assert saved.mixture.experts == EXPERTS
    assert (saved.mixture.route, saved.mixture.top_k) == (route, top_k)
    for layer, factors in mixture.factors.items():
        pairs = zip(factors, saved.mixture.factors[layer], strict=True)
        assert all(a is b is None or torch.equal(a, b) for a, b in pairs)
    fresh = base_of(models, name, seed=1)  # another head, which the folder's replaces
    put_mixture_on(fresh, folder)
    assert routing_of(fresh).names == EXPERTS
    with torch.no_grad():
        assert torch.equal(fresh(**tell(fresh, BATCH)).logits, expected)


def loader_of(folder: Path):
    """The loader that lies in the folder, by its file alone."""
    names: dict[str, object] = {"__name__": "loader"}
    exec((folder / "load_mixture.py").read_text(), names)
    return names["load_mixture"]


@pytest.mark.parametrize(("name", "route", "top_k"), KINDS)
def test_the_loader_gives_the_logits_and_takes_itself_off(models, tmp_path, name, route, top_k):
    model = base_of(models, name)
    mixture = mixture_on(model, name, route, top_k)
    expected, plain = routed(model, mixture), model(**BATCH).logits
    folder = write(tmp_path, model, name, mixture)
    loaded = loader_of(folder)(fresh := base_of(models, name, seed=1), folder)
    with torch.no_grad():
        torch.testing.assert_close(fresh(**BATCH).logits, expected, atol=1e-5, rtol=1e-5)
        chosen = torch.tensor([2, 0, 1])
        loaded.chosen = chosen
        hard = fresh(**BATCH).logits
        loaded.remove()
        torch.testing.assert_close(fresh(**BATCH).logits, plain)
    attached = attach_mixture(model, mixture)
    routing_of(model).hard = True
    with torch.no_grad():
        ours = model.eval()(**tell(model, BATCH | {"experts": chosen})).logits
    detach(attached)
    torch.testing.assert_close(hard, ours, atol=1e-5, rtol=1e-5)


def test_the_loader_lets_some_tokens_decide(models, tmp_path):
    """As a prompt decides for the response that is scored with it; a row without any is decided by all."""
    model = base_of(models, "llama")
    mixture = mixture_on(model, "llama")
    asked = torch.tensor([[1, 1, 0, 0, 0, 0], [0] * 6, [1, 1, 1, 0, 0, 0]]).bool()
    expected = routed(model, mixture, asked=asked)
    loaded = loader_of(write(tmp_path, model, "llama", mixture))(model, tmp_path)
    for mask in (asked, asked[:, :3]):
        loaded.asked = mask
        with torch.no_grad():
            torch.testing.assert_close(model(**BATCH).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("route", ["sequence", "token", "request"])
@pytest.mark.parametrize("beams", [1, 3])
def test_the_loader_writes_fedsb_s_texts_with_and_without_a_cache(models, tmp_path, route, beams):
    model = base_of(models, "llama")
    mixture = mixture_on(model, "llama", route)
    left = {name: tensor.flip(1) for name, tensor in BATCH.items()}  # padding on the left
    how = {
        "max_new_tokens": 5,
        "do_sample": False,
        "num_beams": beams,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    attached = attach_mixture(model, mixture)
    with answering(model), torch.no_grad():
        expected = model.generate(**tell(model, left), **how)
    detach(attached)
    plain = model.generate(**left, **how)
    loaded = loader_of(write(tmp_path, model, "llama", mixture))(model, tmp_path)
    assert torch.equal(model.generate(**left, **how), expected)
    assert not torch.equal(expected, plain)
    loaded.asked = left["attention_mask"].bool()
    assert torch.equal(model.generate(**left, **how, use_cache=False), expected)


ALONE = """
import json, sys
sys.modules["fedsb"] = None  # importing it is an error
import torch
from transformers import AutoModelForCausalLM
sys.path.insert(0, sys.argv[2])
from load_mixture import load_mixture
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
load_mixture(model, sys.argv[2])
batch = {name: torch.tensor(rows) for name, rows in json.loads(sys.argv[3]).items()}
with torch.no_grad():
    logits = model(**batch).logits
print(json.dumps({"logits": logits.tolist(), "ours": [n for n in sys.modules if n.startswith("fedsb.")]}))
"""


def test_the_loader_runs_where_fedsb_cannot_be_imported(models, tmp_path):
    model = base_of(models, "llama")
    mixture = mixture_on(model, "llama")
    expected = routed(model, mixture)
    write(tmp_path, model, "llama", mixture)
    batch = json.dumps({name: rows.tolist() for name, rows in BATCH.items()})
    arguments = [sys.executable, "-c", ALONE, models / "llama", tmp_path, batch]
    done = subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, env=environment(PYTHONPATH=""), timeout=120
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["ours"] == []
    torch.testing.assert_close(torch.tensor(answer["logits"]), expected, atol=1e-5, rtol=1e-5)


# Refusals


@pytest.fixture
def folder(models, tmp_path) -> Path:
    model = base_of(models, "bert")
    return write(tmp_path / "mixture", model, "bert", mixture_on(model, "bert"))


CONFIGS = {
    "no experts": ({"experts": []}, "experts: expected different names"),
    "one name twice": ({"experts": ["a", "a", "b"]}, "experts: expected different names"),
    "experts of numbers": ({"experts": [1, 2, 3]}, "experts: expected different names"),
    "another number": ({"experts": ["a", "b"]}, "expected 2 rows|R \\(2, r, r\\)"),
    "a layer that is not there": ({"layers": ["x"]}, "x: expected B"),
    "route": ({"route": "sideways"}, "route: expected one of"),
    "a gate that is missing": ({"route": "request"}, "one gate for all layers"),
    "top_k": ({"top_k": 9}, "top_k: expected a whole number up to 3"),
}


@pytest.mark.parametrize(("changes", "reason"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_does_not_fit_is_one_input_error(models, folder, changes, reason):
    file = folder / "mixture.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=reason):
        put_mixture_on(base_of(models, "bert"), folder)


def _spoil(part: str, change):
    return lambda tensors: tensors.update({n: change(t) for n, t in tensors.items() if n.endswith(part)})


TENSORS = {
    "NaN": (_spoil(".R", lambda t: t * float("nan")), "expected finite numbers"),
    "whole numbers": (_spoil(".R", lambda t: t.int()), "expected finite numbers"),
    "another rank": (_spoil(".A", lambda t: t[:2]), "expected B"),
    "a flat core": (_spoil(".R", lambda t: t.flatten()), "expected B"),
    "a narrow gate": (_spoil(".G", lambda t: t[:, 1:]), "expected B"),
    "another width": (_spoil(".A", lambda t: t[:, 1:]), "made for another model"),
    "another head": (_spoil("classifier.weight", lambda t: t[1:]), "its head 'classifier.weight'"),
    "usage": (_spoil("usage", lambda t: t[1:]), "usage: expected 3 rows"),
}


@pytest.mark.parametrize(("spoil", "reason"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit_are_one_input_error(models, folder, spoil, reason):
    tensors = load_file(folder / "mixture.safetensors")
    spoil(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "mixture.safetensors")
    with pytest.raises(InputError, match=reason):
        put_mixture_on(base_of(models, "bert"), folder)


def test_a_folder_without_tensors_and_one_of_other_weights_are_refused(models, folder, tmp_path):
    model = base_of(models, "bert")
    other, digest = tmp_path / "other", "float32:0123456789abcdef"
    write_mixture(other, mixture_on(model, "bert"), base_model="x", base_weights=digest)
    with pytest.raises(InputError, match="trained on other weights"):
        put_mixture_on(base_of(models, "bert"), other)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "mixture.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="this mixture cannot be read"):
        put_mixture_on(model, tmp_path / "copy")
    with pytest.raises(ValueError, match="is it the base of this mixture"):
        loader_of(folder)(base_of(models, "llama"), folder)
