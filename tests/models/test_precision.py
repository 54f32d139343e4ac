"""bfloat16 on a CPU that has none is said to be slow, before a run takes ten times as long as it need."""

import pytest
import torch
from run_helpers import classification_config

from fedsb import RunConfig
from fedsb.cli.doctor import examine
from fedsb.models import devices
from fedsb.models.devices import cpu_has_bfloat16, slow_bfloat16


@pytest.fixture
def old_cpu(monkeypatch):
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: False)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"autocast": "bfloat16"}, "training.autocast: null"),
        ({"dtype": "bfloat16"}, "model.dtype: float32"),
    ],
)
def test_it_names_the_key_and_what_to_set(old_cpu, changes, key):
    assert key in slow_bfloat16(**{"dtype": "float32", "autocast": None, "device": "cpu", **changes})


def test_float32_is_never_slow(old_cpu):
    assert slow_bfloat16("float32", None, "cpu") is None


def test_a_cpu_with_bfloat16_is_left_alone(monkeypatch):
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: True)
    assert slow_bfloat16("float32", "bfloat16", "cpu") is None


def test_the_doctor_says_so(tmp_path, old_cpu):
    changes = {"model__device": "cpu", "training__autocast": "bfloat16"}
    config = RunConfig.from_dict(classification_config(tmp_path / "bert", tmp_path / "data", **changes))
    findings = {f.what: f for f in examine(config)}
    assert findings["precision"].ok
    assert "training.autocast: null" in findings["precision"].detail


def test_without_onednn_no_cpu_computes_in_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert cpu_has_bfloat16() is False


@pytest.mark.parametrize("answer", [True, False])
def test_onednn_has_the_word(monkeypatch, answer):
    """The question is torch's own and private: this fails if it is renamed."""
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: answer)
    assert cpu_has_bfloat16() is answer
