"""What a run and an export leave works without fedsb installed, with the logits of the run's own model."""

import json
import shutil

import pytest
import torch
from run_helpers import (
    causal_config,
    classification_config,
    main_status,
    python,
    snapshot,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    write_data,
)
from safetensors.torch import load_file

from fedsb import RunConfig, run
from fedsb.errors import InputError
from fedsb.runner.export import export_lora, export_merged

PROBE = (torch.arange(3 * 9).reshape(3, 9) * 7 + 4) % 27
TOLERANCE = 1e-4

# Loads adapters or merged models as a stranger would, and compares logits. Told: a list of jobs.
STRANGER = """
import json, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fedsb":
            raise ImportError("fedsb is not installed here")

sys.meta_path.insert(0, Refused())
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

answers = {}
for name, job in json.loads(sys.argv[1]).items():
    loader = AutoModelForCausalLM if job["causal"] else AutoModelForSequenceClassification
    options = {} if job["causal"] or not job["adapter"] else {"num_labels": 3}
    model = loader.from_pretrained(job["model"], **options)
    if job["adapter"]:
        model = PeftModel.from_pretrained(model, job["adapter"])
    if job["auto"]:
        model = AutoPeftModelForCausalLM.from_pretrained(job["adapter"])
    if job["tokenizer"]:
        AutoTokenizer.from_pretrained(job["model"])("say good :")
    probe = torch.load(job["probe"])
    with torch.no_grad():
        logits = model.eval()(input_ids=probe["ids"], attention_mask=torch.ones_like(probe["ids"])).logits
    names = getattr(model.config, "id2label", None)
    answers[name] = {"worst": float((logits - probe["logits"]).abs().max()), "names": names}
assert not any(module.split(".")[0] == "fedsb" for module in sys.modules)
print(json.dumps(answers))
"""


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=PROBE, attention_mask=torch.ones_like(PROBE)).logits


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Runs of three families, trained far enough that the adapter matters, and exports of each."""
    folder = tmp_path_factory.mktemp("exports")
    write_data(folder / "data", train=36, test=12)
    for make, family in ((tiny_bert, "bert"), (tiny_llama, "llama"), (tiny_gpt2, "gpt2")):
        config = causal_config if family != "bert" else classification_config
        values = config(make(folder / family), folder / "data", federation__rounds=1)
        result = run(RunConfig.from_dict(values), folder / f"run-{family}")
        torch.save({"ids": PROBE, "logits": logits_of(result.model)}, folder / f"{family}.pt")
        export_lora(folder / f"run-{family}", folder / f"lora-{family}", rank=16)
        export_merged(folder / f"run-{family}", folder / f"merged-{family}")
    fedit = classification_config(
        folder / "bert", folder / "data", method__name="fedit", method__alpha=9, federation__rounds=1
    )
    result = run(RunConfig.from_dict(fedit), folder / "run-fedit")
    torch.save({"ids": PROBE, "logits": logits_of(result.model)}, folder / "fedit.pt")
    return folder


@pytest.fixture(scope="module")
def answers(world):
    """What one process without fedsb finds."""
    jobs = {}
    for family in ("bert", "llama", "gpt2"):
        kinds = {
            "adapter": (world / family, world / f"run-{family}" / "adapter", False),
            "lora": (world / family, world / f"lora-{family}", False),
            "auto": (world / family, world / f"run-{family}" / "adapter", True),
            "merged": (world / f"merged-{family}", None, False),
        }
        if family == "bert":
            del kinds["auto"]
        for kind, places in kinds.items():
            jobs[f"{family}-{kind}"] = _job(world, family, *places, tokenizer=kind == "merged")
    jobs["fedit-adapter"] = _job(world, "fedit", world / "bert", world / "run-fedit" / "adapter", False)
    done = python(STRANGER, json.dumps(jobs), cwd=world)  # where the folder that the adapter names lies
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _job(world, family, model, adapter, auto, *, tokenizer=False):
    return {
        "causal": family in ("llama", "gpt2"),
        "model": str(model),
        "adapter": adapter and str(adapter),
        "auto": auto,
        "tokenizer": tokenizer,
        "probe": str(world / f"{family}.pt"),
    }


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "fedit"])
def test_peft_alone_gives_the_run_s_logits(answers, family):
    assert answers[f"{family}-adapter"]["worst"] < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_finds_the_base_by_the_adapter_s_config(answers, family):
    assert answers[f"{family}-auto"]["worst"] < TOLERANCE


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_lora_of_a_higher_rank_gives_the_run_s_logits(world, answers, family):
    assert answers[f"{family}-lora"]["worst"] < TOLERANCE
    config = json.loads((world / f"lora-{family}" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 16
    tensors = load_file(world / f"lora-{family}" / "adapter_model.safetensors")
    assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {16}


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_transformers_alone_gives_the_run_s_logits_of_the_merged_model(answers, family):
    assert answers[f"{family}-merged"]["worst"] < TOLERANCE


def test_merged_classifier_knows_its_label_names(answers):
    assert answers["bert-merged"]["names"] == {"0": "flat", "1": "neg", "2": "pos"}


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_the_adapter_changes_the_logits(world, family):
    """Else the comparisons above would say nothing."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if family == "bert" else AutoModelForCausalLM
    base = auto.from_pretrained(world / family, **({"num_labels": 3} if family == "bert" else {}))
    if family == "bert":  # with the trained head, so that the layers alone make the difference
        head = load_file(world / "run-bert" / "adapter" / "adapter_model.safetensors")
        for name, parameter in base.classifier.named_parameters():
            parameter.data = head[f"base_model.model.classifier.{name}"]
    assert float((logits_of(base) - torch.load(world / f"{family}.pt")["logits"]).abs().max()) > 0.01


def test_half_precision_run_exports(world, tmp_path):
    config = classification_config(
        world / "bert", world / "data", model__dtype="bfloat16", federation__rounds=1
    )
    run(RunConfig.from_dict(config), tmp_path / "run")
    export_merged(tmp_path / "run", tmp_path / "merged")
    export_lora(tmp_path / "run", tmp_path / "lora")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


# Refusals


def test_lower_rank_is_refused_and_leaves_nothing(world, tmp_path):
    with pytest.raises(InputError, match=r"--rank: the adapter has rank 4 and 3 would lose.*4 or more"):
        export_lora(world / "run-bert", tmp_path / "out", rank=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_unfinished_run_is_refused(world, tmp_path, monkeypatch, capsys, form):
    shutil.copytree(world / "run-bert", tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    arguments = ("export", tmp_path / "run", "--format", form, "--out", tmp_path / "out")
    assert main_status(monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert "not finished" in err
    assert f"fedsb run --out {tmp_path / 'run'} --resume" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_existing_out_is_refused_and_left_alone(world, tmp_path, monkeypatch, capsys, form):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    arguments = ("export", world / "run-bert", "--format", form, "--out", tmp_path / "out")
    assert main_status(monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path / 'out'} exists already" in err
    assert "name a new folder" in err
    assert snapshot(tmp_path) == {"out/mine.txt": b"keep"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--format", "gguf"], ["--format", "lora, merged or experts", "'gguf'"]),
        (["--format", "merged", "--rank", "8"], ["--rank", "lora", "leave it out"]),
    ],
)
def test_wrong_form_is_refused(world, tmp_path, monkeypatch, capsys, arguments, parts):
    assert main_status(monkeypatch, "export", world / "run-bert", "--out", tmp_path / "o", *arguments) == 2
    err = capsys.readouterr().err
    assert all(part in err for part in parts)


def test_a_folder_that_is_no_run_is_refused(tmp_path, monkeypatch, capsys):
    assert main_status(monkeypatch, "export", tmp_path, "--out", tmp_path / "o") == 2
    assert "not a run folder (no config.yaml)" in capsys.readouterr().err


def test_export_on_the_command_line(world, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "lora"
    assert main_status(monkeypatch, "export", world / "run-gpt2", "--rank", 5, "--out", out) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 5
    assert [path.name for path in out.parent.iterdir()] == ["lora"]
