"""Tiny models made in memory, generators, the real data where it is; no test reaches the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers have a core each; threads that spin would take it

import gc
import ipaddress
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook
from torch import nn

# Shapes in signatures are checked while the tests run. Modules that take in foreign bytes (wire) or any
# callable's tensors (update_estimate) are left out: what they refuse, they refuse with their own errors.
install_import_hook(
    [
        "fedsb.adapter.layer",
        "fedsb.adapter.attached",
        "fedsb.adapter.bases",
        "fedsb.adapter.routing",
        "fedsb.federation.exchange",
        "fedsb.adapter.linear",
        "fedsb.methods",
        "fedsb.federation.server",
        "fedsb.federation.start.sketches",
    ],
    "beartype.beartype",
)

settings.register_profile(
    "fedsb",
    deadline=None,
    max_examples=25,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("fedsb")
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
VOCABULARY = 40
PAD = 0

Build = Callable[..., nn.Module]


# ---------------------------------------------------------------- the network is out of reach


class NetworkForbidden(AssertionError):
    """A test tried to reach another machine."""


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):  # a Unix socket
        return True
    host = address[0]
    if host in ("", "localhost", None):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def connect(self: socket.socket, address: Any) -> Any:
            if not _is_local(address):
                raise NetworkForbidden(f"tests may not reach the network: {address}")
            return real(self, address)

        return connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        yield


# ---------------------------------------------------------------- the real data and models


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data and models in ../shared, beside the checkout; that folder is absent")
    return SHARED


def pytest_collection_finish() -> None:
    """The libraries' objects, half a million, are never garbage: no collection looks at them again."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers() -> int:
    """A worker more than there are cores: tests of several processes wait for them most of the time."""
    return 1 + (os.cpu_count() or 1)


LONG = (
    "test_loopback",
    "test_docs",
    "test_flower_apps",
    "test_resume",
    "test_private_run",
    "test_faults",
    "test_processes",
)
"""Begun first, so that no worker is left with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason="needs ../shared beside the checkout; it is absent"))


# ---------------------------------------------------------------- whole runs without what their parts show


PARTS = ("adapter", "federation", "methods", "models", "privacy")


@pytest.fixture(autouse=True, scope="module")
def _shapes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shapes are checked where the parts are tested: in whole runs that is an eighth of their time."""
    room = request.path.relative_to(Path(__file__).parent).parts[0]
    jaxtyping_config.update("jaxtyping_disable", room not in PARTS)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="session")
def _disk() -> Iterator[None]:
    """No power fails while tests run, so none waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def _plots(request: pytest.FixtureRequest) -> Iterator[None]:
    """Half of a tiny run's time goes into the plots of its page: only modules marked `plots` draw them."""
    from fedsb.report.canvas import Plot

    with pytest.MonkeyPatch.context() as patch:
        if not request.node.get_closest_marker("plots"):
            patch.setattr(Plot, "svg", "<svg></svg>")
        yield


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """No page at all, in modules whose many runs have one that nothing looks at."""
    monkeypatch.setattr("fedsb.report.write.build_page", lambda *args, **more: "")


# ---------------------------------------------------------------- randomness


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---------------------------------------------------------------- tiny models, built and not downloaded


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


@pytest.fixture(scope="session")
def make_bert() -> Build:
    """BERT with a fresh classification head; `dropout` is 0 unless asked for."""
    from transformers import BertConfig, BertForSequenceClassification

    def make(*, seed: int = 0, dropout: float = 0.0, num_labels: int = 3) -> nn.Module:
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            num_labels=num_labels,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            pad_token_id=PAD,
            initializer_range=0.2,
        )
        return _seeded(lambda: BertForSequenceClassification(config), seed)

    return make


@pytest.fixture(scope="session")
def make_llama() -> Build:
    """A Llama language model with grouped queries: 4 heads of queries, 2 of keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(*, seed: int = 0) -> nn.Module:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            pad_token_id=PAD,
            initializer_range=0.2,
        )
        return _seeded(lambda: LlamaForCausalLM(config), seed)

    return make


def _gpt2_config(**more: Any) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=1,
        initializer_range=0.2,
        **more,
    )


@pytest.fixture(scope="session")
def make_gpt2() -> Build:
    """A GPT-2 language model: its projections are Conv1D, whose weights are transposed."""
    from transformers import GPT2LMHeadModel

    return lambda *, seed=0: _seeded(lambda: GPT2LMHeadModel(_gpt2_config()), seed)


@pytest.fixture(scope="session")
def make_gpt2_classifier() -> Build:
    """GPT-2 with a classification head, whose base model is called `transformer`."""
    from transformers import GPT2ForSequenceClassification

    return lambda *, seed=0: _seeded(lambda: GPT2ForSequenceClassification(_gpt2_config(num_labels=3)), seed)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family (as in families.py) -> folder of its tiny model; "data" -> folder of rows."""
    from families import FAMILIES
    from run_helpers import write_data

    folder = tmp_path_factory.mktemp("families")
    write_data(folder / "data", train=12, test=6)
    return {"data": folder / "data"} | {name: f.save(folder / name) for name, f in FAMILIES.items()}


@pytest.fixture
def bert(make_bert: Build) -> nn.Module:
    return make_bert()


@pytest.fixture
def llama(make_llama: Build) -> nn.Module:
    return make_llama()


@pytest.fixture
def gpt2(make_gpt2: Build) -> nn.Module:
    return make_gpt2()


TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "llama": ["q_proj", "k_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
}


@pytest.fixture(params=list(TARGETS))
def any_model(request: pytest.FixtureRequest) -> tuple[nn.Module, list[str]]:
    """Each tiny model in turn, with layers to adapt in it."""
    return request.getfixturevalue(f"make_{request.param}")(), TARGETS[request.param]


@pytest.fixture
def token_batch() -> dict[str, torch.Tensor]:
    """Four texts of 3 to 7 tokens, padded to 7, with a label each."""
    draw = torch.Generator().manual_seed(5)
    lengths = torch.tensor([7, 3, 5, 6])
    mask = (torch.arange(7) < lengths[:, None]).long()
    tokens = torch.randint(2, VOCABULARY, (4, 7), generator=draw)
    return {
        "input_ids": torch.where(mask.bool(), tokens, PAD),
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 2, 1]),
    }
