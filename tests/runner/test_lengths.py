"""training.max_length: auto holds 99 of 100 examples, and is fixed where rows must not choose it."""

import pytest
from run_helpers import classification_config, rows, tiny_bert, tiny_llama, write_rows

from fedsb.config import RunConfig
from fedsb.runner.lengths import chosen_length, fixed_length, limit_of
from fedsb.runner.prepare_data import prepare_data


def of_lengths(*lengths):
    return [{"tokens": (length,)} for length in lengths]


@pytest.mark.parametrize(
    ("lengths", "limit", "tokens"),
    [
        ([5] * 99 + [40], 512, 40),  # all fit below 128, so none is cut
        ([5] * 99 + [61], 512, 64),
        ([5] * 99 + [128], 512, 128),
        ([5] * 99 + [400], 512, 128),  # one of a hundred
        ([5] * 97 + [300] * 3, 512, 304),
        ([5] * 97 + [600] * 3, 512, 512),
        ([30] * 10, 24, 24),
    ],
)
def test_the_length_holds_99_of_100_in_steps_of_8_within_the_limit(lengths, limit, tokens):
    length = chosen_length(of_lengths(*lengths), limit)
    assert length.tokens == tokens
    share = sum(n <= tokens for n in lengths) / len(lengths)
    assert length.said.endswith("all of them fit" if share == 1 else f"{share:.1%} of them fit")


def test_examples_that_do_not_say_their_length_have_the_fixed_one():
    assert chosen_length([{"input_ids": [1]}], 512).tokens == 128


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lengths")
    tiny_bert(folder / "bert"), tiny_llama(folder / "llama")
    long = {"text": " ".join(["w1"] * 100 + ["good"]), "label": "pos"}
    write_rows(folder / "train.jsonl", [*rows(30, seed=1), long])
    write_rows(folder / "test.jsonl", rows(6, seed=2))
    return folder


def test_the_limit_is_the_model_s(world):
    config = RunConfig.from_dict(classification_config(world / "bert", world, training__max_length="auto"))
    assert limit_of(config) == 64
    assert fixed_length(config).tokens == 64
    assert "no row may choose it" in fixed_length(config).said


def test_the_examples_are_those_of_the_number_that_was_chosen(world):
    """Texts that the limit alone cuts, and texts that the length chosen cuts."""
    for rest, length in ((-1, 8), (31, 64)):
        config = RunConfig.from_dict(
            classification_config(
                world / "bert", world, training__max_length="auto", data__limit={"train": 31 + min(rest, 0)}
            )
        )
        chosen = prepare_data(config)
        said = prepare_data(chosen.settled(config))
        assert (chosen.max_length, said.max_length) == (length, length)
        assert chosen.train == said.train
        assert chosen.test == said.test
        assert any("chosen by the rows" in note for note in chosen.notes)
        assert not any("max_length" in note for note in said.notes)


def test_long_examples_are_looked_at_in_part_and_kept_as_the_length_chosen_has_them(world, monkeypatch):
    monkeypatch.setattr("fedsb.runner.prepare_data.LOOKED_AT", 6)
    config = RunConfig.from_dict(classification_config(world / "bert", world, training__max_length="auto"))
    chosen = prepare_data(config)
    assert chosen.max_length == 64
    assert chosen.train == prepare_data(chosen.settled(config)).train
    assert max(len(example["input_ids"]) for example in chosen.train) == 64


def test_rows_of_a_private_run_choose_nothing(world):
    pytest.importorskip("opacus", reason="needs the extra: pip install 'fedsb[dp]'")
    privacy = {"unit": "example", "epsilon": 8.0, "delta": 0.01}
    changes = {"training__max_length": "auto", "privacy": privacy, "method__init": {"kind": "weights"}}
    config = classification_config(world / "bert", world, data__limit={"train": 30}, **changes)
    assert prepare_data(RunConfig.from_dict(config)).max_length == 64
