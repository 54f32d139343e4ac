"""Wrong configs are refused with the key, right ones are written back whole."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsb.config.run_config import RunConfig, differences
from fedsb.errors import InputError

MINIMAL = {
    "model": {"path": "tiny"},
    "task": {"text": "sentence"},
    "data": {"train": "train.jsonl", "test": "test.jsonl"},
}
CLASSIFY = MINIMAL | {"task": {"kind": "classification", "text": "sentence"}}
GENERATE = MINIMAL | {"task": {"kind": "causal-lm", "prompt": "Q: {q}\nA:", "response": "a"}}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(CLASSIFY))
    return path


def set_at(values, path, value):
    """A copy of the nested mapping with one value set."""
    head, _, rest = path.partition(".")
    inner = values.get(head, {})
    return values | {head: set_at(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


# ---------------------------------------------------------------- right configs


def test_the_defaults_are_fed_sb_of_rank_64_with_a_gradient_start():
    config = RunConfig.from_dict(CLASSIFY)
    assert (config.method.name, config.method.rank, config.method.init.kind) == ("fed-sb", 64, "gradient")
    assert config.task.text == ["sentence"]


PARTITIONS = [
    {"kind": "iid"},
    {"kind": "dirichlet", "alpha": 0.1, "min_size": 3},
    {"kind": "by-column", "column": "hospital"},
    {"kind": "shards", "shards_per_client": 5},
]


@given(
    base=st.sampled_from([CLASSIFY, GENERATE]),
    partition=st.sampled_from(PARTITIONS),
    rate=st.floats(1e-8, 10.0),
    epochs=st.floats(0.01, 20.0),
    warmup=st.none() | st.just({"rounds": 7}),
    seed=st.integers(-5, 10**9),
)
def test_a_config_written_as_yaml_reads_back_equal(base, partition, rate, epochs, warmup, seed):
    values = set_at(set_at(base, "federation.partition", partition), "method.init.head_warmup", warmup)
    values = set_at(set_at(values, "training.learning_rate", rate), "training.epochs", epochs) | {
        "seed": seed
    }
    config = RunConfig.from_dict(values)
    assert RunConfig.from_dict(yaml.safe_load(config.to_yaml())) == config
    assert differences(config, config) == []


def every_key(section, prefix=""):
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        yield prefix + name, field
        if hasattr(type(value), "model_fields"):
            yield from every_key(value, f"{prefix}{name}.")


@pytest.mark.parametrize("base", [CLASSIFY, GENERATE], ids=["classification", "causal-lm"])
def test_the_written_config_has_every_key(base):
    config = RunConfig.from_dict(base)
    written = yaml.safe_load(config.to_yaml())
    for key, _ in every_key(config):
        inner = written
        for part in key.split("."):
            assert part in inner, key
            inner = inner[part]


def test_a_config_cannot_be_changed():
    config = RunConfig.from_dict(CLASSIFY)
    with pytest.raises(ValidationError, match="frozen"):
        config.method.rank = 3


def test_every_recipe_in_the_repository_is_a_right_config():
    recipes = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
    for recipe in recipes:
        RunConfig.from_yaml(recipe)
    assert recipes, "no recipes found"


# ---------------------------------------------------------------- wrong configs


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("method.rnak", 3, r"method.rnak: unknown key. Did you mean rank"),
        ("trainign", {}, r"trainign: unknown key. Did you mean training"),
        ("training.learningrate", 0.1, r"training.learningrate: unknown key. Did you mean learning_rate"),
        ("task.lable", "x", r"task.lable: unknown key. Did you mean label"),
        ("federation.partition", {"kind": "iid", "alpha": 1}, r"federation.partition.alpha: unknown key"),
        ("federation.partition", {"kind": "dirichelt"}, r"federation.partition: .*dirichlet"),
        ("federation.partition", {"kind": "by-column"}, r"federation.partition.column: this key is needed"),
        ("method.rank", 0, r"method.rank: .*greater than 0, found 0"),
        ("method.rank", "many", r"method.rank: .*integer.*found 'many'"),
        ("training.learning_rate", -1.0, r"training.learning_rate: .*greater than 0"),
        ("training.warmup_ratio", 1.0, r"training.warmup_ratio: .*less than 1"),
        ("training.optimizer", "adam", r"training.optimizer: .*'adamw' or 'sgd', found 'adam'"),
        ("task.labels", ["yes", "no", "yes"], r"task.labels: .*every class once"),
        ("privacy", {"clip_norm": 1.0}, r"privacy: .*set epsilon"),
        ("privacy", {"epsilon": 0}, r"privacy.epsilon: .*greater than 0"),
        ("privacy", {"epsilon": 1, "unit": "patient"}, r"privacy.unit: .*'example' or 'client'"),
    ],
)
def test_a_wrong_config_names_the_key_and_the_cure(key, value, message):
    with pytest.raises(InputError, match=message):
        RunConfig.from_dict(set_at(CLASSIFY, key, value))


def test_all_faults_are_told_at_once():
    values = set_at(set_at(CLASSIFY, "method.rank", 0), "training.epochs", -1)
    with pytest.raises(InputError, match=r"(?s)config: 2 wrong.*method.rank.*training.epochs"):
        RunConfig.from_dict(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "found NoneType"),
        ("- a\n- b", "found list"),
        ("a: [1", "not valid YAML"),
        ("just text", "found str"),
    ],
)
def test_a_file_that_is_no_config_is_an_input_error(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=f"bad.yaml: .*{message}"):
        RunConfig.from_yaml(path)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot read this config: No such file"):
        RunConfig.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot read this config"):
        RunConfig.from_yaml(tmp_path)


def test_a_file_that_is_not_utf8_is_an_input_error(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("model: {path: Übung}".encode("latin-1"))
    with pytest.raises(InputError):
        RunConfig.from_yaml(path)


# ---------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("method.rank=32", lambda c: c.method.rank == 32),
        ("training.learning_rate=1e-4", lambda c: c.training.learning_rate == 1e-4),
        ("method.targets=[query, value]", lambda c: c.method.targets == ["query", "value"]),
        ("method.init.head_warmup=null", lambda c: c.method.init.head_warmup is None),
        ("method.init.head_warmup.steps=5", lambda c: c.method.init.head_warmup.steps == 5),
        ("data.train=a=b.jsonl", lambda c: c.data.train == "a=b.jsonl"),
        ("data.limit.train=10", lambda c: c.data.limit.train == 10),
        ("federation.partition.kind=shards", lambda c: c.federation.partition.shards_per_client == 2),
    ],
)
def test_an_override_changes_its_key_and_no_other(config_file, override, read):
    plain, changed = RunConfig.from_yaml(config_file), RunConfig.from_yaml(config_file, [override])
    assert read(changed)
    key = override.partition("=")[0]
    section = key.rsplit(".", 1)[0] if "kind" in key else key
    assert all(line.startswith(section) for line in differences(plain, changed))


def test_the_last_override_wins(config_file):
    assert RunConfig.from_yaml(config_file, ["method.rank=1", "method.rank=2"]).method.rank == 2


@pytest.mark.parametrize("override", ["method.rank", "=3", "method.rnak=3", "a..b=3"])
def test_a_wrong_override_is_an_input_error(config_file, override):
    with pytest.raises(InputError):
        RunConfig.from_yaml(config_file, [override])


@pytest.mark.parametrize("override", ["method.targets=[query", "data.train=a: b: c", "seed=*x"])
def test_an_override_that_is_not_yaml_is_an_input_error(config_file, override):
    with pytest.raises(InputError):
        RunConfig.from_yaml(config_file, [override])


# ---------------------------------------------------------------- comparing and paths


def test_differences_name_each_changed_value():
    one = RunConfig.from_dict(CLASSIFY)
    other = RunConfig.from_dict(set_at(set_at(CLASSIFY, "method.rank", 8), "seed", 1))
    assert differences(one, other) == ["method.rank: 64 -> 8", "seed: 0 -> 1"]


def test_a_switched_off_section_differs_from_one_switched_on():
    one = RunConfig.from_dict(CLASSIFY)
    other = RunConfig.from_dict(set_at(CLASSIFY, "method.init.head_warmup", None))
    assert any("method.init.head_warmup.rounds: 3 -> None" in line for line in differences(one, other))


def test_existing_paths_become_absolute_and_hub_ids_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").touch()
    config = RunConfig.from_dict(CLASSIFY).with_absolute_paths()
    assert config.data.train == str((tmp_path / "train.jsonl").resolve())
    assert (config.data.test, config.model.path) == ("test.jsonl", "tiny")
