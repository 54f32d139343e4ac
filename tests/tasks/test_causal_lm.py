"""Causal LM: the mask is right to the token, a loss is its example's own, padding never changes an answer."""

import math

import pyarrow
import pytest
import torch
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedsb.errors import InputError
from fedsb.tasks import causal_lm, generate_texts
from fedsb.tasks.prompts import columns_of, fill, parse_template
from fedsb.tasks.rows import read_rows

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", ":", "{", "}"]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
BOS, EOS, PAD = 1, 2, 3
ROWS = [
    {"q": "a b", "a": "c"},
    {"q": "d", "a": "e f g h"},
    {"q": "a b c d e f g", "a": "h i"},
    {"q": "l", "a": "k j i h g f e d"},
]


def make_tokenizer(*, adds_bos: bool, pad: bool) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | (
        {"pad_token": "<pad>"} if pad else {}
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=len(SPECIAL + WORDS), initializer_range=0.5, **size, **ends)
    return LlamaForCausalLM(config).eval(), make_tokenizer(adds_bos=True, pad=True)


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    ends = {"bos_token_id": BOS, "eos_token_id": EOS}
    config = GPT2Config(vocab_size=len(SPECIAL + WORDS), initializer_range=0.5, **size, **ends)
    return GPT2LMHeadModel(config).eval(), make_tokenizer(adds_bos=False, pad=False)


@pytest.fixture(params=["llama", "gpt2"])
def pair(request):
    """(model, tokenizer): one that adds bos and has a pad token, one that does neither."""
    return request.getfixturevalue(request.param)


def build(tokenizer, *, prompt="{q} :", max_length=32, max_new_tokens=6, **more):
    return causal_lm(
        tokenizer, prompt=prompt, response="a", max_length=max_length, max_new_tokens=max_new_tokens, **more
    )


def ids(text: str) -> list[int]:
    return [(SPECIAL + WORDS).index(word) for word in text.split()]


# Templates


def test_template_pieces():
    def pieces(prompt):
        return [(text, column) for text, column, _ in parse_template(prompt)]

    assert pieces("Q: {q}\n{{A}}: ") == [("Q: ", "q"), ("\n{", None), ("A}", None), (": ", None)]
    assert pieces("") == []
    assert pieces("{a b}{c.d}[{e}]{is it?}") == [("", "a b"), ("", "c.d"), ("[", "e"), ("]", "is it?")]
    assert [piece.optional for piece in parse_template("{a:optional} {b}")] == [True, False]
    assert columns_of(parse_template("{a:optional} {b} {c} ")) == ["b", "c"]


def test_literal_braces_and_numbers_in_a_prompt(llama):
    _, tokenizer = llama
    (example,) = build(tokenizer, prompt="{{ {q} }} {n}").encode([{"q": "a b", "n": 7, "a": "c"}], "x.csv")
    assert example["prompt_ids"] == ids("<s> { a b } <unk>")


@pytest.mark.parametrize("prompt", ["{q", "q}", "{}", "{q!r}", "{q:>10}", "{0", "{q:{w}}"])
def test_bad_template(prompt, llama):
    with pytest.raises(
        InputError, match=r"task\.prompt: .*write \{column\} or .*, and \{\{ or \}\} for a brace"
    ):
        build(llama[1], prompt=prompt)


def test_wrong_rows(llama):
    task = build(llama[1])
    with pytest.raises(InputError, match=r"x\.csv: task\.prompt names the column 'q', which is not there"):
        task.encode([{"Q": "a", "a": "b"}], "x.csv")
    with pytest.raises(InputError, match=r"x\.csv: task\.response names the column 'a'"):
        task.encode([{"q": "a"}], "x.csv")
    with pytest.raises(InputError, match=r"x\.csv: row 2 has no value in column 'q'"):
        task.encode([ROWS[0], {"q": None, "a": "b"}], "x.csv")
    with pytest.raises(InputError, match=r"x\.csv: row 2 has no value in column 'a'"):
        task.encode([ROWS[0], {"q": "b"}], "x.csv")


def test_tokenizer_without_end_token():
    core = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    with pytest.raises(InputError, match=r"model\.path: expected a tokenizer with an end-of-sequence token"):
        build(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"))


# Layout


def test_mask_is_right_to_the_token(llama, gpt2):
    for (_, tokenizer), bos in ((llama, ["<s>"]), (gpt2, [])):
        for row, example in zip(ROWS, build(tokenizer).encode(ROWS, "x.csv"), strict=True):
            prompt, response = [*bos, *row["q"].split(), ":"], [*row["a"].split(), "</s>"]
            assert example["input_ids"] == ids(" ".join(prompt + response))
            assert example["labels"] == [-100] * len(prompt) + ids(" ".join(response))


def test_prompt_at_generation_is_the_prompt_of_training(pair):
    for example in build(pair[1]).encode(ROWS, "x.csv"):
        length = len(example["prompt_ids"])
        assert example["prompt_ids"] == example["input_ids"][:length]
        assert example["labels"][length - 1] == -100
        assert example["labels"][length] == example["input_ids"][length]


LONG = [{"q": "a b c d e f", "a": "g h i"}]


@pytest.mark.parametrize(
    ("max_length", "expected", "trained"),
    [
        (12, "<s> a b c d e f : g h i </s>", 4),
        (11, "<s> b c d e f : g h i </s>", 4),
        (7, "<s> f : g h i </s>", 4),
        (5, "<s> g h i </s>", 4),
        (4, "<s> g h i", 3),
        (2, "<s> g", 1),
        (1, "<s>", 0),
    ],
)
def test_too_long_cuts_the_prompt_first_and_on_its_left(max_length, expected, trained, llama):
    task = build(llama[1], max_length=max_length, allow_cut_responses=True)
    (example,) = task.encode(LONG, "x.csv")
    assert example["input_ids"] == ids(expected)
    assert sum(label != -100 for label in example["labels"]) == trained
    assert len(example["labels"]) == len(example["input_ids"])


def test_too_long_without_bos(gpt2):
    task = build(gpt2[1], max_length=6)
    (example,) = task.encode(LONG, "x.csv")
    assert example["input_ids"] == ids("f : g h i </s>")
    (example,) = build(gpt2[1], max_length=4).encode(LONG, "x.csv")
    assert example["labels"] == ids("g h i </s>")


def test_prompt_for_generation_does_not_depend_on_the_response(llama):
    task = build(llama[1], max_length=7)
    short, long = task.encode([{"q": "a b c d e f", "a": "g"}, {"q": "a b c d e f", "a": "g h i j"}], "x.csv")
    assert short["prompt_ids"] == long["prompt_ids"] == ids("<s> b c d e f :")


def test_collate_masks_by_length_not_by_id(gpt2):
    _, tokenizer = gpt2  # no pad token: the end token fills, and the real end tokens still count
    task = build(tokenizer)
    examples = task.encode(ROWS, "x.csv")
    batch = task.collate(examples)
    assert batch["attention_mask"].sum(1).tolist() == [len(example["input_ids"]) for example in examples]
    for example, row, labels in zip(examples, batch["input_ids"], batch["labels"], strict=True):
        size = len(example["input_ids"])
        assert row.tolist() == example["input_ids"] + [EOS] * (len(row) - size)
        assert labels.tolist() == example["labels"] + [-100] * (len(row) - size)
        assert labels[size - 1] == EOS


# Losses


def loss_by_hand(model, example) -> tuple[float, int]:
    """(sum of the response's negative log-likelihood, its tokens), from one unpadded forward pass."""
    with torch.no_grad():
        log_probs = F.log_softmax(model(torch.tensor([example["input_ids"]])).logits[0], dim=-1)
    places = [i for i, label in enumerate(example["labels"]) if label != -100 and i > 0]
    return -sum(log_probs[i - 1, example["labels"][i]].item() for i in places), len(places)


def test_losses_equal_one_example_at_a_time(pair):
    model, tokenizer = pair
    task = build(tokenizer)
    examples = task.encode(ROWS, "x.csv")
    losses = task.losses(model, task.collate(examples))
    by_hand = [total / count for total, count in (loss_by_hand(model, example) for example in examples)]
    alone = [task.losses(model, task.collate([example])).item() for example in examples]
    assert losses.tolist() == pytest.approx(by_hand, abs=1e-5)
    assert losses.tolist() == pytest.approx(alone, abs=1e-5)


def test_gradient_of_the_sum_is_the_sum_of_gradients(pair):
    model, tokenizer = pair
    task = build(tokenizer)
    examples = task.encode(ROWS, "x.csv")
    weight = next(model.parameters())
    together = torch.autograd.grad(task.losses(model, task.collate(examples)).sum(), weight)[0]
    alone = [torch.autograd.grad(task.losses(model, task.collate([e])).sum(), weight)[0] for e in examples]
    torch.testing.assert_close(together, torch.stack(alone).sum(0), atol=1e-5, rtol=1e-4)


def test_example_without_labels_has_loss_zero(llama):
    model, tokenizer = llama
    task = build(tokenizer, max_length=1, allow_cut_responses=True)
    losses = task.losses(model, task.collate(task.encode(ROWS, "x.csv")))
    assert losses.tolist() == [0.0] * len(ROWS)
    losses.sum().backward()  # may be in a batch that is trained
    mixed = task.encode(ROWS[:1], "x.csv") + build(tokenizer).encode(ROWS[1:], "x.csv")
    losses = task.losses(model, task.collate(mixed))
    assert losses[0] == 0
    assert bool((losses[1:] > 0).all())
    model.zero_grad()


def test_losses_are_fp32_for_a_bf16_model(llama):
    model, tokenizer = llama
    task = build(tokenizer)
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    assert task.losses(half, task.collate(task.encode(ROWS, "x.csv"))).dtype == torch.float32


# Metrics


def test_loss_is_per_token_over_all_and_perplexity_its_exponential(pair):
    model, tokenizer = pair
    task = build(tokenizer)
    examples = task.encode(ROWS, "x.csv")
    sums = [loss_by_hand(model, example) for example in examples]
    expected = sum(total for total, _ in sums) / sum(count for _, count in sums)
    for batch_size in (1, 3, 100):
        found = task.evaluate(model, examples, batch_size=batch_size)
        assert found == pytest.approx({"loss": expected, "perplexity": math.exp(expected)}, rel=1e-5)


def test_evaluate_leaves_modes_as_they_were_and_tells_progress(llama):
    model, tokenizer = llama
    task = build(tokenizer)
    model.train()
    model.lm_head.eval()
    before = [module.training for module in model.modules()]
    told = []
    examples = task.encode(ROWS, "x.csv")
    task.evaluate(model, examples, batch_size=3, generate=2, progress=lambda *state: told.append(state))
    assert [module.training for module in model.modules()] == before
    assert told == [(3, 6), (4, 6), (6, 6)]
    model.eval()
    with pytest.raises(ValueError, match="at least one example"):
        task.evaluate(model, [], batch_size=2)


# Generation


def continue_by_hand(model, tokenizer, prompt: list[int], most: int) -> str:
    """Greedy search without cache, batch or library."""
    tokens = list(prompt)
    with torch.no_grad():
        while len(tokens) < len(prompt) + most and tokens[-1] != EOS:
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    new = tokens[len(prompt) :]
    return tokenizer.decode(new[:-1] if new[-1] == EOS else new, skip_special_tokens=True)


def test_batched_generation_equals_greedy_search_by_hand(pair):
    model, tokenizer = pair
    prompts = [example["prompt_ids"] for example in build(tokenizer).encode(ROWS, "x.csv")]
    by_hand = [continue_by_hand(model, tokenizer, prompt, 6) for prompt in prompts]
    for batch_size in (1, 3, 4):
        texts = generate_texts(model, tokenizer, prompts, max_new_tokens=6, batch_size=batch_size)
        assert texts == by_hand
    assert len(set(by_hand)) > 1  # else the test would show little


def test_generation_ignores_sampling_settings_of_the_model(llama):
    model, tokenizer = llama
    prompts = [example["prompt_ids"] for example in build(tokenizer).encode(ROWS, "x.csv")]
    plain = generate_texts(model, tokenizer, prompts, max_new_tokens=6, batch_size=4)
    before = model.generation_config.to_dict()
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, num_beams=3)
    try:
        assert generate_texts(model, tokenizer, prompts, max_new_tokens=6, batch_size=4) == plain
    finally:
        model.generation_config.update(**before)


def test_text_ends_before_the_end_token(pair, monkeypatch):
    model, tokenizer = pair
    answers = torch.tensor([[*ids("a b"), EOS, *ids("c")], ids("d e f g")])
    monkeypatch.setattr(model, "generate", lambda input_ids, **_: torch.cat([input_ids, answers], dim=1))
    prompts = [ids("h i"), ids("j k")]
    assert generate_texts(model, tokenizer, prompts, max_new_tokens=4, batch_size=2) == ["a b", "d e f g"]


def test_exact_match_counts_the_first_examples(pair):
    model, tokenizer = pair
    task = build(tokenizer)
    prompts = [example["prompt_ids"] for example in task.encode(ROWS, "x.csv")]
    answers = generate_texts(model, tokenizer, prompts, max_new_tokens=6, batch_size=4)
    rows = [{**row, "a": f" {text}\n"} for row, text in zip(ROWS, answers, strict=True)]
    rows[1]["a"] = rows[3]["a"] = "something else"
    examples = task.encode(rows, "x.csv")
    for generate, expected in ((1, 1.0), (2, 0.5), (3, 2 / 3), (99, 0.5)):
        found = task.evaluate(model, examples, batch_size=2, generate=generate)
        assert found["exact_match"] == pytest.approx(expected)
    for generate in (None, 0):
        assert "exact_match" not in task.evaluate(model, examples, batch_size=2, generate=generate)


def test_prompts_give_way_to_the_models_positions(gpt2):
    model, tokenizer = gpt2
    prompt = ids("a b c d e f g h i j") * 6  # 60 of 64 positions
    (text,) = generate_texts(model, tokenizer, [prompt], max_new_tokens=8, batch_size=1)
    assert text == continue_by_hand(model, tokenizer, prompt[-56:], 8)
    with pytest.raises(
        InputError, match=r"task\.max_new_tokens: expected less than the model's 64 positions"
    ):
        generate_texts(model, tokenizer, [prompt], max_new_tokens=64, batch_size=1)


def test_prompt_without_tokens_cannot_be_generated_from(gpt2, llama):
    model, tokenizer = gpt2
    task = build(tokenizer, prompt="")
    examples = task.encode(ROWS, "x.csv")
    task.evaluate(model, examples, batch_size=2)
    with pytest.raises(InputError, match=r"task\.prompt: a prompt has no tokens"):
        task.evaluate(model, examples, batch_size=2, generate=1)
    model, tokenizer = llama  # bos is enough to start from
    task = build(tokenizer, prompt="")
    task.evaluate(model, task.encode(ROWS, "x.csv"), batch_size=2, generate=1)


# Cells that a row may lack

INPUTS = [
    ("a.jsonl", '{"q": "a", "x": null, "a": "b"}\n{"q": "c", "a": "d"}\n{"q": "c", "x": "e", "a": "d"}\n'),
    ("a.json", '[{"q": "a", "a": "b"}, {"q": "c", "x": null, "a": "d"}, {"q": "c", "x": "e", "a": "d"}]'),
    ("a.csv", 'q,x,a\na,,b\nc,"",d\nc,e,d\n'),
    ("a.tsv", "q\tx\ta\na\t\tb\nc\t\td\nc\te\td\n"),
    ("b.csv", "q,x,a\na,,b\nc,,d\nc,7,d\n"),  # a column of numbers otherwise
    ("a.parquet", None),
]


@pytest.mark.parametrize(("name", "content"), INPUTS, ids=[name for name, _ in INPUTS])
def test_a_marked_column_is_empty_where_a_row_has_no_value_in_every_format(tmp_path, name, content):
    path = tmp_path / name
    if content is None:
        table = pyarrow.table({"q": ["a", "c", "c"], "x": [None, None, "e"], "a": ["b", "d", "d"]})
        parquet.write_table(table, path)
    else:
        path.write_text(content)
    rows = read_rows(str(path))
    prompts = [fill(parse_template("{q} <{x:optional}>"), row, name, 0) for row in rows]
    assert prompts == ["a <>", "c <>", f"c <{rows[2]['x']}>"]
    with pytest.raises(
        InputError, match=rf"{name}: row 1( .line 2.)? has no value in column 'x'; .*\{{x:optional\}}"
    ):
        fill(parse_template("{q} {x}"), rows[0], name, 0)


def test_a_marked_column_may_be_in_no_row_and_an_empty_text_needs_no_mark(llama):
    rows = [{"q": "a", "a": "b"}, {"q": "a", "x": "", "a": "b"}]
    marked, unmarked = build(llama[1], prompt="{q} {x:optional}"), build(llama[1], prompt="{q} {x}")
    assert marked.encode(rows[:1], "x.json") == marked.encode(rows[1:], "x.json")
    assert unmarked.encode(rows[1:], "x.json") == marked.encode(rows[1:], "x.json")
    with pytest.raises(
        InputError, match=r"x\.json: row 1, column 'x': expected text or a number, got an array"
    ):
        marked.encode([{"q": "a", "x": ["b"], "a": "b"}], "x.json")
    with pytest.raises(InputError, match=r"x\.json: row 1, column 'q': a NUL character"):
        marked.encode([{"q": "a\0", "a": "b"}], "x.json")
