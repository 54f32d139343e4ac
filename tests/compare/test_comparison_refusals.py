"""What a comparison refuses, before any run."""

import pytest
import yaml
from comparison_helpers import TWO, assert_refused
from run_helpers import (
    changed,
    snapshot,
    write_config,
)

from fedsb import RunConfig
from fedsb.compare.config import settings_from_dict
from fedsb.compare.results import (
    privacy_sentence,
)
from fedsb.errors import InputError

ARMS = {
    "unknown method": ("fed-sb,fedsb", ["--methods", "expected one of", "'fedsb'", "Did you mean fed-sb"]),
    "an arm of the config misspelt": ("fedlt", ["--methods", "'fedlt'", "Arms of this config: fedit"]),
    "a method twice": ("fed-sb,fedit,fed-sb", ["--methods", "fed-sb is named twice"]),
    "no method": ("", ["--methods", "empty", "--methods fed-sb,fedit"]),
    "an empty item": ("fed-sb,,fedit", ["--methods", "an item is empty"]),
}
SEEDS = {
    "seeds that are no numbers": ("0,one", ["--seeds", "whole numbers", "'one'"]),
    "a fraction": ("0.5", ["--seeds", "whole numbers", "'0.5'"]),
    "a seed twice": ("0,1,0", ["--seeds", "0 is named twice"]),
    "no seed": ("", ["--seeds", "empty", "--seeds 0,1,2"]),
}
SECTIONS = {
    "unknown key": ({"learning_rate": [1]}, ["compare.learning_rate: unknown key", "learning_rates"]),
    "no section": ([1], ["compare", "expected keys", "list"]),
    "a rate of zero": ({"learning_rates": [0.0]}, ["compare.learning_rates", "greater than 0", "0.0"]),
    "an empty grid": ({"learning_rates": []}, ["compare.learning_rates.default", "at least 1"]),
    "a rate twice": ({"learning_rates": [1, 1.0]}, ["compare.learning_rates", "default has a rate twice"]),
    "rates of no arm": (
        {"learning_rates": {"fedti": [1]}},
        ["compare.learning_rates.fedti", "no such arm or method", "fedit"],
    ),
    "too much held out": ({"validation": 46}, ["compare.validation", "at most 45", "48", "46", "lower it"]),
    "one and a half rows": ({"validation": 1.5}, ["compare.validation", "whole number"]),
    "no rounds": ({"tuning_rounds": 0}, ["compare.tuning_rounds", "greater than 0"]),
    "an arm with other data": (
        {"arms": {"fed-sb": {"data.limit.train": 3}}},
        ["compare.arms", "data.limit.train", "same for every arm"],
    ),
    "an arm with another seed": ({"arms": {"fed-sb": {"seed": 3}}}, ["compare.arms", "same for every arm"]),
    "an arm without dots": ({"arms": {"fed-sb": {"method": {"rank": 3}}}}, ["dotted keys", "'method'"]),
    "an arm with an unknown key": ({"arms": {"fed-sb": {"method.rnk": 3}}}, ["compare.arms.fed-sb", "rnk"]),
    "an arm with a wrong value": ({"arms": {"fed-sb": {"method.rank": 0}}}, ["method.rank", "greater than"]),
    "an arm of an unknown method": ({"arms": {"fed-sb": {"method.name": "x"}}}, ["method.name", "'x'"]),
    "an arm named like another method": (
        {"arms": {"fed-sb": {"method.name": "fedit"}}},
        ["compare.arms.fed-sb", "named like a method", "rename"],
    ),
    "a name that is no folder": ({"arms": {"../x": {}}}, ["compare.arms", "'../x'", "letters, digits"]),
    "a rank over a layer": (
        {"arms": {"fed-sb": {"method.rank": 33}}},
        ["method.rank", "1 to 32", "found 33"],
    ),
    "settings a method cannot do": (
        {"arms": {"fedit": {"method.heads": 2}, "fed-sb": {"method.rank": 3, "method.heads": 2}}},
        ["arm fed-sb", "method.heads", "divisor of method.rank = 3"],
    ),
    "a cohort over the clients": (
        {"arms": {"fed-sb": {"federation.clients_per_round": 4}}},
        ["federation.clients_per_round", "at most 3"],
    ),
}


@pytest.mark.parametrize(
    ("methods", "seeds", "section", "parts"),
    [
        *((methods, "0", ..., parts) for methods, parts in ARMS.values()),
        *(("fed-sb", seeds, ..., parts) for seeds, parts in SEEDS.values()),
        *(("fed-sb", "0", section, parts) for section, parts in SECTIONS.values()),
    ],
    ids=[*ARMS, *SEEDS, *SECTIONS],
)
def test_wrong_input_gives_one_message_and_no_folder(config, tmp_path, fedsb, methods, seeds, section, parts):
    given_ = config if section is ... else {**config, "compare": section}
    path = write_config(tmp_path / "bad.yaml", given_)
    arguments = ("--methods", methods, "--seeds", seeds, "--out", tmp_path / "out")
    assert_refused(fedsb("compare", path, *arguments), parts)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_wrong_test_file_is_found_before_any_run(world, tmp_path, fedsb):
    wrong = ("-s", f"data.test={world / 'none.jsonl'}")
    answer = fedsb("compare", world / "good.yaml", *TWO, "--out", tmp_path / "out", *wrong)
    assert_refused(answer, ["none.jsonl", "no such file"])
    assert list(tmp_path.iterdir()) == []


PRIVATE = {"privacy.unit": "example", "privacy.epsilon": 8.0, "privacy.delta": 1e-3}
LATER_ARMS = {
    "raw gradients": (
        PRIVATE | {"method.init.kind": "gradient"},
        ["arm later", "method.init.kind", "raw gradients"],
    ),
    "delta": (
        PRIVATE | {"privacy.delta": 0.5, "method.init.kind": "weights"},
        ["arm later", "privacy.delta", "1 / "],
    ),
    "epsilon out of reach": (
        PRIVATE
        | {"privacy.epsilon": 1e-7, "method.init.private": True, "method.init.budget_share": 0.999999}
        | {"method.init.kind": "gradient"},
        ["arm later", "privacy.epsilon", "cannot be reached"],
    ),
    "public rows": (
        {"method.init.public": "none.jsonl"},
        ["none.jsonl", "no such file"],
    ),
    "cohort": (
        {"federation.clients_per_round": 99},
        ["arm later", "federation.clients_per_round", "99"],
    ),
}


@pytest.mark.parametrize(("changes", "parts"), LATER_ARMS.values(), ids=LATER_ARMS)
def test_what_is_wrong_with_a_later_arm_is_found_before_any_run(config, tmp_path, fedsb, changes, parts):
    later = {"method.name": "fed-sb"} | changes
    section = {"arms": {"fedit": {}, "later": later}, "learning_rates": [0.01], "validation": 0.25}
    path = write_config(tmp_path / "bad.yaml", {**config, "compare": section})
    answer = fedsb("compare", path, "--methods", "fedit,later", "--seeds", "0", "--out", tmp_path / "out")
    assert_refused(answer, parts)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


CLAIM = {"unit": "example", "private": True, "epsilon": 2.9912, "delta": 1e-5, "stopped_early": False}
ALONE = (
    "Each run alone is differentially private, with epsilon 3 and delta 1e-05 for one example of a client."
)
TOGETHER = " All of them together, on the same data, spend more."
CLAIMS = {
    "none": ([None, None], None),
    "all": ([CLAIM, CLAIM], ALONE + TOGETHER),
    "some, unlike each other": (
        [None, CLAIM, CLAIM | {"epsilon": 0.9991, "unit": "client"}],
        "Of 3 runs, 2 alone are differentially private, with epsilon 1 to 3 and delta 1e-05 "
        "for one example of a client or one whole client." + TOGETHER,
    ),
    "one": ([CLAIM], ALONE),
    "noise from a seed": (
        [CLAIM | {"private": False, "epsilon": None}],
        "No run is private: the noise came from a fixed seed.",
    ),
}


@pytest.mark.parametrize(("claims", "said"), CLAIMS.values(), ids=CLAIMS)
def test_what_a_comparison_says_of_privacy(claims, said):
    assert privacy_sentence([{"privacy": claim} for claim in claims]) == said


def test_places_where_no_comparison_can_be(world, whole, tmp_path, fedsb):
    (tmp_path / "mine.txt").write_text("keep")
    call = ("compare", world / "good.yaml", *TWO, "--out")
    assert_refused(fedsb(*call, tmp_path), ["--out", "not empty"])
    assert_refused(fedsb(*call, tmp_path / "mine.txt"), ["--out", "is a file"])
    run = whole / "runs/fedit/seed-0"
    assert_refused(fedsb(*call, run), ["--out", "holds a run, not a comparison"])
    assert_refused(fedsb(*call, tmp_path / "new", "--jobs", "0"), ["--jobs", "1 or more"])
    assert snapshot(tmp_path) == {"mine.txt": b"keep"}


def test_a_run_ignores_the_section(world, config, tmp_path):
    plain = write_config(tmp_path / "plain.yaml", {k: v for k, v in config.items() if k != "compare"})
    assert RunConfig.from_yaml(world / "good.yaml") == RunConfig.from_yaml(plain)
    with pytest.raises(InputError, match="compare: unknown key"):
        RunConfig.from_dict(config)


def test_settings_come_with_overrides_and_go_into_the_folder(world, whole):
    from fedsb.compare.config import settings_from_yaml

    settings = settings_from_yaml(
        world / "good.yaml", ["compare.validation=7", "compare.arms.a={method.rank: 2}"]
    )
    assert (settings.validation, settings.arms["a"]) == (7, {"method.rank": 2})
    kept = yaml.safe_load((whole / "config.yaml").read_text())["compare"]
    assert settings_from_dict(kept) == settings_from_yaml(world / "good.yaml")


def test_scores_that_would_say_the_wrong_thing_are_refused(config, fedsb, tmp_path):
    """Rates chosen on rows that clients are scored on, and a part of a model in place of the whole."""
    at_clients = changed(config, data__test=None, evaluation__at_clients=True)
    file = write_config(tmp_path / "at-clients.yaml", at_clients)
    answer = fedsb("compare", file, *TWO, "--out", tmp_path / "a")
    assert_refused(answer, ["compare.learning_rates", "clients are scored on", "give one rate"])
    kept = changed(config, method__name="fedsa-lora", method__rank=2)
    file = write_config(tmp_path / "kept.yaml", kept)
    answer = fedsb("compare", file, "--methods", "fedsa-lora", "--out", tmp_path / "b")
    assert_refused(answer, ["method.name: fedsa-lora", "data.test", "evaluation.at_clients: true"])
