"""Files that somebody hostile wrote: each is refused with one message, shows no cell of it, runs no code."""

import ast
import contextlib
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from run_helpers import (
    changed,
    classification_config,
    main_status,
    tiny_bert,
    write_config,
    write_data,
)
from safetensors.torch import load_file, save_file

import fedsb
from fedsb import RunConfig
from fedsb.common import files
from fedsb.common.strict_json import DEEPEST, parse_json
from fedsb.common.strict_yaml import parse_yaml
from fedsb.compare.config import settings_from_yaml
from fedsb.config.yaml_file import override, read_yaml
from fedsb.errors import InputError, RunFailed
from fedsb.models import load_base, load_tokenizer
from fedsb.models.peft_folder import put_on, read_adapter
from fedsb.models.shapes import build_on_meta
from fedsb.report.load import load_run
from fedsb.runner.evaluate import evaluate
from fedsb.runner.folder import finished_summary
from fedsb.runner.prepare_data import prepare_data
from fedsb.tasks.rows import read_rows
from fedsb.tasks.rows.text import LONGEST_LINE

SECRET = "patient 17 has it"
DEEP, LONG = "[" * 100_000, "9" * 5000


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=24, test=6)
    return folder


# ---------------------------------------------------------------- JSON

BAD_JSON = {
    "deep": DEEP,
    "deep and whole": "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
    "long number": f'{{"a": {LONG}}}',
    "long negative number": f'{{"a": -{LONG}}}',
    "beyond floats": '{"a": 1e400}',
    "half a surrogate pair": '{"a": "\\ud800"}',
    "cut off": '{"a": "' + SECRET,
    "empty": "",
}


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON)
def test_json_beyond_its_bounds_is_a_value_error_that_shows_nothing(text):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(text)
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_json_within_its_bounds_is_read():
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    assert parse_json('{"a": [1, -2.5e10, "\\ud83d\\ude00", null, true]}')["a"][2] == "\U0001f600"


ROW = json.dumps({"text": SECRET, "label": "pos"}) + "\n"


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
@pytest.mark.parametrize("kind", ["deep", "long number", "beyond floats"])
def test_data_with_such_a_row_are_refused_by_file_and_line(tmp_path, kind, ending):
    path = tmp_path / f"rows{ending}"
    whole = f"[{ROW}, {BAD_JSON[kind]}]" if ending == ".json" else 2 * ROW + BAD_JSON[kind] + "\n"
    path.write_text(whole)
    with pytest.raises(InputError, match="rows.*line 3 holds" if ending == ".jsonl" else "rows") as caught:
        read_rows(str(path))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("row", ['{"text": "\\ud800", "label": "neg"}', '{"text": "a", "label": "\\ud800"}'])
def test_half_a_surrogate_pair_is_refused_where_it_would_be_used(world, tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text(ROW + row + "\n")
    assert len(read_rows(str(path))) == 2
    few = {"data__train": str(path), "federation__clients": 1}
    config = classification_config(world / "bert", world / "data", **few)
    with pytest.raises(InputError, match=r"rows\.jsonl: row 2.*half a surrogate pair"):
        prepare_data(RunConfig.from_dict(config))


def test_a_row_as_long_as_a_memory_is_refused(tmp_path):
    path = tmp_path / "wide.jsonl"
    path.write_text(ROW + " " * (LONGEST_LINE + 2))
    with pytest.raises(InputError, match=r"line 2 has more than [\d,]+ characters"):
        read_rows(str(path))


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON)
def test_files_of_ours_that_were_spoiled_are_input_errors(tmp_path, text):
    for name in ("summary.json", "report.html", "metrics.jsonl", "config.yaml"):
        (tmp_path / name).write_text("{}\n" if name != "summary.json" else text)
    with pytest.raises(InputError, match=r"summary\.json"):
        finished_summary(tmp_path)
    with pytest.raises(InputError, match=r"summary\.json"):
        load_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n" + text + "\n{}\n")
    if text:
        with pytest.raises(InputError, match=r"metrics\.jsonl"):
            files.read_jsonl(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("content", [b"[1]", b"3", b"\xff\xfe\x00"])
def test_json_that_is_no_object_is_an_input_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: expected"):
        files.read_json(tmp_path / "a.json")


# ---------------------------------------------------------------- YAML

TENFOLD = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
BAD_YAML = {
    "aliases of aliases": (TENFOLD, "aliases written out"),
    "a chain of aliases": (
        "b0: &b0 [x]\n" + "".join(f"b{i}: &b{i} [*b{i - 1}]\n" for i in range(1, 300)),
        "aliases written out",
    ),
    "a long text, often": (f"t: &t {'x' * 90_000}\nu: [{', '.join(['*t'] * 99)}]", "aliases written out"),
    "an alias of itself": ("model: &m {path: *m}", "model.path: an alias"),
    "merged often": (
        "m0: &m0 {k: v}\n" + "".join(f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}\n" for i in range(1, 40)),
        "aliases written out",
    ),
    "a key twice": ("seed: 1\nmodel: {path: x}\nseed: 7\n", "line 3: the key 'seed' is there twice"),
    "an inner key twice": ("model: {path: x, path: y}", "line 1: the key 'path' is there twice"),
    "deep lists": ("[" * 5000, "within each other"),
    "deep mappings": ("{a: " * 5000, "within each other"),
    "deep blocks": ("- " * 5000, "within each other"),
    "a long number": (f"seed: {LONG}", "seed: a whole number of 5,000 digits"),
    "a long number in hex": (f"seed: 0x{'f' * 5000}", "seed: a whole number"),
    "a long number in base 60": ("seed: 1" + ":59" * 900, "seed: a whole number"),
    "a day that is none": ("seed: 2001-99-99", "value that its type cannot have"),
    "a tag that does not fit": ("seed: !!timestamp none", "value that its type cannot have"),
    "a tag of Python": ("seed: !!python/object/apply:os.getcwd []", "constructor for the tag"),
    "half a surrogate pair": ('seed: "\\ud800"', "invalid Unicode character"),
    "huge": ("# " + "x" * 300_000, "more than 262,144 characters"),
    "binary": ("a: \x00", "control characters"),
}


@pytest.mark.parametrize(("text", "message"), BAD_YAML.values(), ids=BAD_YAML)
def test_yaml_beyond_its_bounds_is_an_input_error(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    for reader in (read_yaml, RunConfig.from_yaml, settings_from_yaml):
        with pytest.raises(InputError, match=r"c\.yaml: not valid YAML: ") as caught:
            reader(path)
        assert message in str(caught.value)


def test_a_file_that_is_no_yaml_is_not_shown(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(ROW + "}" + ROW)
    with pytest.raises(InputError, match=r"rows\.jsonl: not valid YAML: line 2") as caught:
        read_yaml(path)
    assert SECRET not in str(caught.value)


def test_anchors_and_merge_keys_within_bounds_work():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]"
    assert parse_yaml(text)["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("value", [LONG, "[" * 5000, "&a [*a]", "{a: 1, a: 2}", "2001-99-99"])
def test_an_override_is_read_as_strictly(value):
    with pytest.raises(InputError, match=r"^-s seed=.*is not a YAML value") as caught:
        override({}, [f"seed={value}"])
    assert len(str(caught.value)) < 800


def test_an_override_of_a_thousand_parts_is_refused():
    with pytest.raises(InputError, match="a key of 1001 parts"):
        override({}, ["a." * 1000 + "b=1"])


NUMBERS = (
    "privacy.epsilon",
    "privacy.delta",
    "privacy.clip_norm",
    "privacy.noise_multiplier",
    "training.learning_rate",
    "training.weight_decay",
    "training.epochs",
    "method.alpha",
    "method.init.step_size",
    "federation.deadline_seconds",
    "evaluation.generation.length_penalty",
)


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400", "'NaN'"])
def test_no_number_of_a_config_is_infinite(world, key, value):
    config = classification_config(world / "bert", world / "data", privacy__epsilon=1)
    with pytest.raises(InputError, match=rf"(?m)^  {key}: .*(finite|greater)"):
        RunConfig.from_dict(override(config, [f"{key}={value}"]))


def test_a_wrong_value_is_shown_on_one_line(world):
    config = classification_config(world / "bert", world / "data")
    for value in (["x"] * 10_000, 10**5000, {"a": "b" * 10_000}):
        with pytest.raises(InputError, match=r"seed: ") as caught:
            RunConfig.from_dict(config | {"seed": value})
        assert len(str(caught.value)) < 500
    with pytest.raises(InputError, match=r"task\.labels") as caught:
        RunConfig.from_dict(changed(config, task__text=[1] * 5000, task__labels=[[1]] * 5000))
    assert len(str(caught.value)) < 50_000


# ---------------------------------------------------------------- files


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_file_is_its_owners_alone_whatever_the_umask(tmp_path):
    umask = os.umask(0)
    try:
        files.write_text(tmp_path / "key", "k", private=True)
        files.write_text(tmp_path / "page", "p")
    finally:
        os.umask(umask)
    assert (mode_of(tmp_path / "key"), mode_of(tmp_path / "page")) == (0o600, 0o666)


def test_no_link_is_followed_by_a_write(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "metrics.jsonl"
    victim.write_text("precious")
    link.symlink_to(victim)
    (tmp_path / ".metrics.jsonl.part").symlink_to(victim)  # where a temporary file of a known name would be
    with pytest.raises(InputError, match=r"metrics\.jsonl: this is a link"):
        files.write_text(link, "x", private=True)
    files.write_text(link, "x")
    assert (victim.read_text(), link.is_symlink(), link.read_text()) == ("precious", False, "x")


def test_a_temporary_file_is_a_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0")
    (tmp_path / ".a.0.part").write_text("of somebody else")
    with pytest.raises(FileExistsError):
        files.write_text(tmp_path / "a", "x")
    assert not (tmp_path / "a").exists()


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        files.write_text(tmp_path / "a", "x")
    assert not list(tmp_path.iterdir())


def test_a_lock_is_held_by_one_and_is_private_and_follows_no_link(tmp_path):
    lock = tmp_path / "run" / ".lock"
    with files.alone(lock, "the run"):
        assert mode_of(lock) == 0o600
        with (
            pytest.raises(RunFailed, match="the run: another process works on it"),
            files.alone(lock, "the run"),
        ):
            pass
        assert lock.exists()
    assert not lock.exists()
    lock.symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match=r"cannot be locked"), files.alone(lock, "the run"):
        pass
    assert not (tmp_path / "victim").exists()


# ---------------------------------------------------------------- model folders

LOADS = {"from_pretrained", "from_config", "load_dataset", "LLM"}
OF_PEFT = {"PeftModel.from_pretrained"}
"""Takes no such argument: peft loads tensors, and `put_on` has looked at the config."""


def loads():
    """(file, call) of every load by transformers, datasets, peft or vLLM in the package."""
    for path in sorted(Path(fedsb.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".", 1)[-1] in LOADS:
                yield path.name, node


def test_every_load_refuses_code():
    found = list(loads())
    assert len(found) >= 7
    for name, call in found:
        if ast.unparse(call.func) in OF_PEFT:
            assert name == "peft_folder.py"
            continue
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert given.get("trust_remote_code") == "False", f"{name}: {ast.unparse(call)}"


@pytest.fixture
def model(world, tmp_path):
    return Path(shutil.copytree(world / "bert", tmp_path / "model"))


def edit(file, **changes):
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


@pytest.fixture
def no_questions(monkeypatch):
    """Nobody is asked whether code may run."""

    def asked(*arguments):
        raise AssertionError("a question on the terminal")

    monkeypatch.setattr("builtins.input", asked)


def test_code_in_a_model_folder_is_not_run_and_nobody_is_asked(model, tmp_path, no_questions):
    fired = tmp_path / "fired"
    code = f"open({str(fired)!r}, 'w')\nfrom transformers import BertConfig as C, BertModel as M\nT = M\n"
    for name in ("evil.py", "custom_generate/generate.py", "modeling_evil.py"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(code)
    kinds = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM")
    auto = dict.fromkeys(kinds, "evil.M") | {"AutoConfig": "evil.C"}
    edit(model / "config.json", model_type="evil", architectures=["M"], auto_map=auto)
    edit(
        model / "tokenizer_config.json", tokenizer_class="T", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]}
    )
    for load in (
        lambda: load_base(str(model), tokenizer=None, num_labels=2),
        lambda: load_base(str(model), tokenizer=None, num_labels=None),
        lambda: build_on_meta(str(model)),
    ):
        with pytest.raises(
            InputError, match=r"no code from a model's folder is run; take .* remove auto_map"
        ):
            load()
    with contextlib.suppress(InputError):
        load_tokenizer(str(model))
    assert not fired.exists()


def test_attention_from_elsewhere_is_refused(model):
    edit(model / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(InputError, match="names code of its own as attn_implementation"):
        build_on_meta(str(model))


class Evil:
    def __init__(self, fired):
        self.fired = fired

    def __reduce__(self):
        return open, (str(self.fired), "w")


def test_a_pickle_of_weights_is_not_opened_and_one_of_tensors_is_read(model, tmp_path):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    assert load_base(str(model), tokenizer=None, num_labels=2)
    torch.save(weights | {"x": Evil(tmp_path / "fired")}, model / "pytorch_model.bin")
    with pytest.raises(InputError, match="a pickle with more than tensors in it, which is not opened"):
        load_base(str(model), tokenizer=None, num_labels=2)
    assert not (tmp_path / "fired").exists()


SIZES = {
    "vocab_size": 10**10,
    "hidden_size": 10**9,
    "intermediate_size": 1 << 30,
    "max_position_embeddings": 10**12,
    "type_vocab_size": 10**9,
    "num_attention_heads": 10**8,
    "num_hidden_layers": 10**6,
    "n_layer": 1001,
    "decoder_layers": 10**200,
    "num_experts": 10**5,
    "num_labels": 10**8,
}


@pytest.mark.parametrize("key", SIZES)
def test_sizes_that_no_model_has_are_refused_with_the_bound(model, key):
    edit(model / "config.json", **{key: SIZES[key]})
    with pytest.raises(InputError, match=rf"has {key}: \d+; at most [\d,]+ is accepted"):
        build_on_meta(str(model))
    edit(model / "config.json", **{key: ...}, text_config={key: SIZES[key]})
    with pytest.raises(InputError, match=rf"has {key}: \d+; at most"):
        load_base(str(model), tokenizer=None, num_labels=2)


def test_many_layers_of_many_experts_are_refused(model):
    edit(model / "config.json", num_hidden_layers=900, n_routed_experts=4000)
    with pytest.raises(InputError, match="900 layers of 4000 experts"):
        build_on_meta(str(model))


@pytest.mark.parametrize(
    "content", ["[]", "{", DEEP, f'{{"vocab_size": {LONG}}}', '{"model_type": []}', "{}"]
)
def test_a_config_json_that_is_none_is_an_input_error(model, content):
    (model / "config.json").write_text(content)
    for load in (
        lambda: build_on_meta(str(model)),
        lambda: load_base(str(model), tokenizer=None, num_labels=2),
    ):
        with pytest.raises(InputError, match=r"config\.json|model\.path"):
            load()


HUGE_SHAPE = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}).encode()
WEIGHTS = {
    "a header of 10^15 bytes": (10**15).to_bytes(8, "little") + b"{}",
    "a shape of 2^60": len(HUGE_SHAPE).to_bytes(8, "little") + HUGE_SHAPE + b"0000",
    "empty": b"",
    "deep": len(DEEP).to_bytes(8, "little") + DEEP.encode(),
}


@pytest.mark.parametrize("content", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_with_a_false_header_are_an_input_error(model, content):
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"corrupt|could not be loaded"):
        load_base(str(model), tokenizer=None, num_labels=2)


@pytest.mark.parametrize("content", ["", "[]", "{}", DEEP, '{"model": {"type": "WordLevel", "vocab": 3}}'])
def test_a_tokenizer_that_is_none_is_an_input_error(model, content):
    (model / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="no tokenizer could be loaded"):
        load_tokenizer(str(model))


def test_a_model_folder_that_holds_an_adapter_is_refused(model):
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter beside the model"):
        load_base(str(model), tokenizer=None, num_labels=2)


# ---------------------------------------------------------------- adapter folders

LAYER = "bert.encoder.layer.0.attention.self.query"
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def make_adapter(folder, base):
    """As peft writes one, with a head."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query"])
    get_peft_model(base, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lora(world):
    return make_adapter(world / "lora", bert(world))


def bert(world):
    return load_base(str(world / "bert"), tokenizer=None, num_labels=3)


@pytest.fixture
def adapter(lora, tmp_path):
    return Path(shutil.copytree(lora, tmp_path / "adapter"))


def test_an_adapter_of_peft_is_put_on_as_peft_does_it(world, adapter):
    from peft import PeftModel

    tensors = load_file(adapter / FILE)
    save_file({n: torch.randn_like(t) for n, t in tensors.items()}, adapter / FILE, {"format": "pt"})
    edit(adapter / CONFIG, target_modules=r".*\.(query)$")  # as older folders have it
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        ours = put_on(bert(world), adapter)(input_ids=ids).logits
        theirs = PeftModel.from_pretrained(bert(world), adapter).eval()(input_ids=ids).logits
    assert torch.equal(ours, theirs)


def test_dora_and_ranks_by_layer_are_put_on(world, tmp_path):
    from peft import LoraConfig, get_peft_model

    how = LoraConfig(
        task_type="SEQ_CLS", r=2, use_dora=True, target_modules=["query", "value"], rank_pattern={"value": 4}
    )
    get_peft_model(bert(world), how).save_pretrained(tmp_path)
    assert put_on(bert(world), tmp_path)
    with pytest.raises(InputError, match=r"expected plain LoRA|one scale"):
        read_adapter(tmp_path)


WRONG = {
    "r 0": {"r": 0},
    "r negative": {"r": -2},
    "r text": {"r": "x"},
    "r true": {"r": True},
    "r huge": {"r": 10**9},
    "r of another adapter": {"r": 3},
    "no r": {"r": ...},
    "no alpha": {"lora_alpha": ...},
    "alpha text": {"lora_alpha": "4"},
    "alpha 1e300": {"lora_alpha": 1e300},
    "alpha NaN": {"lora_alpha": float("nan")},
    "kind that is none": {"peft_type": "NOPE"},
    "kind that is a list": {"peft_type": ["LORA"]},
    "kind that loads a tokenizer": {"peft_type": "PROMPT_TUNING"},
    "no kind": {"peft_type": ...},
    "another kind": {"peft_type": "IA3"},
    "a module to import": {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
    "layers many times": {"layer_replication": [[0, 10**9]]},
    "a start that needs data": {"init_lora_weights": "corda"},
    "a rank pattern that is one": {"rank_pattern": {"(a+)+$": 2}},
    "an alpha pattern that is one": {"alpha_pattern": {"query": float("inf")}},
    "modules to save that are a pattern": {"modules_to_save": "(a+)+$"},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_an_adapter_config_that_is_wrong_is_one_input_error(world, adapter, changes):
    edit(adapter / CONFIG, **changes)
    with pytest.raises(InputError, match="adapter") as caught:
        put_on(bert(world), adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b"\xff\xfe\x00", DEEP.encode(), b"", b'{"r": ' + b"9" * 5000]
)
def test_an_adapter_config_that_is_no_config_is_an_input_error(world, adapter, content):
    (adapter / CONFIG).write_bytes(content)
    for read in (read_adapter, lambda folder: put_on(bert(world), folder)):
        with pytest.raises(InputError, match=r"adapter_config\.json"):
            read(adapter)


def test_a_pattern_that_takes_for_ever_is_not_used(world, adapter):
    edit(adapter / CONFIG, target_modules="((([a-z]|\\.)+)+)+\\d$", exclude_modules="(.*.*.*)*$")
    assert put_on(bert(world), adapter)
    edit(adapter / CONFIG, peft_type="IA3")
    with pytest.raises(InputError, match="expected names of layers, without patterns"):
        put_on(bert(world), adapter)


def _without(part):
    return lambda t: t.pop(next(n for n in t if part in n))


TENSORS = {
    "B alone": _without("lora_A"),
    "A alone": _without("lora_B"),
    "NaN": lambda t: t.update({n: v * float("nan") for n, v in t.items()}),
    "infinite head": lambda t: t.update({n: v / 0 for n, v in t.items() if "classifier" in n}),
    "a tensor of nothing": lambda t: t.update({"base_model.model.evil": torch.ones(3)}),
    "a weight of the base": lambda t: t.update(
        {"base_model.model.bert.embeddings.word_embeddings.weight": torch.zeros(27, 32)}
    ),
    "three dimensions": lambda t: t.update({n: v[None] for n, v in t.items() if "lora" in n}),
    "another model's layer": lambda t: t.update(
        {n.replace("layer.0", "layer.7"): v.clone() for n, v in list(t.items()) if "layer.0" in n}
    ),
    "another width": lambda t: t.update({n: v[:, :5] for n, v in t.items() if "lora_A" in n}),
    "no pair at all": lambda t: [t.pop(n) for n in list(t) if "lora" in n],
}


@pytest.mark.parametrize("spoil", TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_belong_are_one_input_error(world, adapter, spoil):
    tensors = load_file(adapter / FILE)
    spoil(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, adapter / FILE, {"format": "pt"})
    with pytest.raises(InputError, match="adapter"):
        put_on(bert(world), adapter)


def test_weights_that_are_no_safetensors_are_refused(world, adapter, tmp_path):
    whole = (adapter / FILE).read_bytes()
    for content in (whole[:100], b"", WEIGHTS["a header of 10^15 bytes"]):
        (adapter / FILE).write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            put_on(bert(world), adapter)
    (adapter / FILE).unlink()
    torch.save({"x": Evil(tmp_path / "fired")}, adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"\.bin: a pickle with more than tensors in it.* not opened"):
        put_on(bert(world), adapter)
    assert not (tmp_path / "fired").exists()


def test_the_command_says_it_in_one_line_and_ends_with_2(world, adapter, monkeypatch, capsys):
    config = changed(classification_config(world / "bert", world / "data"), evaluation__batch_size=4)
    path = write_config(world / "e.yaml", config)
    edit(adapter / CONFIG, r=0)
    arguments = ("evaluate", "--model", world / "bert", "--adapter", adapter, "--config", path, "--json")
    assert main_status(monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert "--adapter:" in err
    assert "Traceback" not in err
    with pytest.raises(InputError, match=r"--adapter: .*r: expected a whole number"):
        evaluate(RunConfig.from_dict(config), model=str(world / "bert"), adapter=adapter)
