"""What is trained is what will be asked: token by token, in the form of each family's chat template."""

from copy import deepcopy

import pytest
import torch
from chat_families import FAMILIES, tokenizer_of
from torch import nn
from transformers import LlamaConfig

from fedsb.config.sections.task import ChatConfig
from fedsb.errors import InputError
from fedsb.tasks.answers import IGNORED
from fedsb.tasks.chat.task import chat_of
from fedsb.tasks.generate import generate_texts


def turns(*texts, system=None):
    roles = ("user", "assistant") * len(texts)
    said = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return ([] if system is None else [{"role": "system", "content": system}]) + said


ONE = turns("what is 48 + 24 ?", "It is 72.")
TALK = turns("what is one ?", "a number, one", "and two ?", "two is more.\n\nBe kind.", "and ?", "more")
KIND = turns("what is one ?", "a number", "and two ?", "more", system="Be kind to the user.")


def task(name, rows=(), *, max_length=512, tokenizer=None, **section):
    section = ChatConfig(kind="chat", **section)
    return chat_of(section, tokenizer or tokenizer_of(name), rows, source="x.jsonl", max_length=max_length)


def encoded(name, messages, **more):
    (example,) = task(name, **more).encode([{"messages": messages}], "x.jsonl")
    return example


def asked(name, messages):
    """The tokens by which a server asks for the next turn."""
    tokenizer = tokenizer_of(name)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def folded(name, messages):
    """As the family has it: Gemma's has no system message."""
    if name != "gemma" or messages[0]["role"] != "system":
        return messages
    system, user, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]


def spans(example):
    """(start, end) of each learnt answer."""
    labels = [IGNORED, *example["labels"], IGNORED]
    edges = [i for i in range(1, len(labels)) if (labels[i] == IGNORED) != (labels[i - 1] == IGNORED)]
    return [(a - 1, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("messages", [ONE, TALK, KIND], ids=["one", "talk", "system"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_learnt_answer_stands_behind_the_very_tokens_it_will_be_asked_with(name, messages):
    family, tokenizer, example = FAMILIES[name], tokenizer_of(name), encoded(name, messages)
    ids, messages = example["input_ids"], folded(name, messages)
    answers = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    rewritten = name == "qwen3" or (name == "mistral" and messages is KIND)
    learnt = answers[-1:] if rewritten or name == "joins" else answers
    assert example["tokens"].untrained_turns == (len(learnt) < len(answers))
    assert len(spans(example)) == len(learnt)
    for (start, end), turn in zip(spans(example), learnt, strict=True):
        assert ids[:start] == asked(name, messages[:turn])
        assert ids[end - 1] == tokenizer.convert_tokens_to_ids(family.end)
        text = tokenizer.decode(ids[start : end - 1])
        assert text.removeprefix("<think>\n\n</think>\n\n").strip() == messages[turn]["content"]
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    assert whole[: len(ids)] == ids
    assert len(ids) == spans(example)[-1][1]  # what follows the last end token is not asked for
    begins = [] if family.begin is None or name == "phi" else [0]
    assert [i for i, token in enumerate(ids) if token == tokenizer.bos_token_id] == begins
    assert example["prompt_ids"] == ids[: spans(example)[-1][0]] == asked(name, messages[:-1])
    (question,) = task(name).questions([{"messages": messages[:-1]}], "x.jsonl")
    assert question["prompt_ids"] == example["prompt_ids"]


class Saying(nn.Module):
    """Says these tokens and then others, as a model that is not stopped."""

    def __init__(self, ids):
        super().__init__()
        self.config, self.ids, self.stops = LlamaConfig(), ids, None

    def generate(self, input_ids, eos_token_id, **_):
        self.stops = eos_token_id
        return torch.cat([input_ids, torch.tensor([[*self.ids, 5, 5]])], dim=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_ends_at_the_end_of_its_turn(name):
    tokenizer, example = tokenizer_of(name), encoded(name, ONE)
    ends, prompt = task(name).ends, example["prompt_ids"]
    model = Saying(example["input_ids"][len(prompt) :])
    answers = generate_texts(model, tokenizer, [prompt], max_new_tokens=9, batch_size=1, ends=ends)
    assert answers == [example["response"]]
    assert set(model.stops) == {tokenizer.convert_tokens_to_ids(FAMILIES[name].end), tokenizer.eos_token_id}


def test_the_last_turn_alone_is_learnt_where_that_is_asked_for():
    whole, last = encoded("llama3", TALK), encoded("llama3", TALK, train_on="last")
    assert last["input_ids"] == whole["input_ids"]
    assert spans(last) == spans(whole)[-1:]
    assert not last["tokens"].untrained_turns


def test_a_token_that_would_join_a_prompt_to_its_answer_is_two_and_such_an_earlier_turn_is_context():
    """Byte pairs make one token of two line ends: the prompt's own stays as it is asked."""
    messages = turns("what is one ?", "\n\nBe kind", "and ?", "\n\nmore")
    tokenizer, example = tokenizer_of("qwen"), encoded("qwen", messages)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert example["input_ids"] != tokenizer(text)["input_ids"][:-1]
    assert tokenizer.decode(example["input_ids"]) + "\n" == text
    ((start, _),) = spans(example)
    assert example["input_ids"][:start] == asked("qwen", messages[:3])
    assert example["tokens"].untrained_turns


def test_without_a_template_the_plain_one_is_used_and_named():
    plain = {"template": "plain"}
    made = task("llama3", [{"messages": ONE}], **plain)
    (example,) = made.encode([{"messages": KIND}], "x.jsonl")
    assert tokenizer_of("llama3").decode(example["input_ids"]) == (
        "<|begin_of_text|>System: Be kind to the user.\n\nUser: what is one ?\n\nAssistant: a number"
        "<|end_of_text|>\n\nUser: and two ?\n\nAssistant: more<|end_of_text|>"
    )
    assert len(spans(example)) == 2
    assert made.notes == (
        "conversations of x.jsonl: in 'messages', messages of role and content",
        "chat template: plain (User: ..., Assistant: ...); an answer ends with '<|end_of_text|>'; the loss "
        "is on all of the assistant's turns",
    )


def test_what_is_learnt_is_what_a_template_s_own_mask_marks():
    tokenizer = deepcopy(tokenizer_of("qwen"))
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>"
        "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}"
        "<|im_start|>assistant{{ '\n' }}{% endif %}"
    )
    (example,) = task("", tokenizer=tokenizer).encode([{"messages": TALK}], "x.jsonl")
    marked = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    learnt = [int(label != IGNORED) for label in example["labels"]]
    assert learnt == marked["assistant_masks"][: len(learnt)]
    assert sum(learnt) == sum(marked["assistant_masks"])


def test_what_is_done_for_a_template_is_said():
    (said, folds) = task("gemma").notes
    assert said.startswith("chat template: the tokenizer's own; an answer ends with '<end_of_turn>'")
    assert folds == "the chat template has no system message: its text goes before the first question"
    assert len(task("llama3").notes) == 1


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ nothing.at.all }}", "cannot be rendered"),
        (
            "{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}",
            "not what it writes before one",
        ),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "ends no answer with a special token"),
        (
            FAMILIES["qwen"].template + "{% if add_generation_prompt %}<think>{{ '\n' }}{% endif %}",
            "not what it writes before one",
        ),
    ],
)
def test_a_template_that_cannot_be_learnt_with_is_refused(template, reason):
    tokenizer = deepcopy(tokenizer_of("llama3"))
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=rf"task.template: .*{reason}.*set task.template: plain"):
        task("", tokenizer=tokenizer)
    assert len(task("", tokenizer=tokenizer, template="plain").notes) == 1


def test_a_message_that_would_write_turns_itself_is_refused():
    with pytest.raises(
        InputError, match=r"row 1: a message holds the special token '<\|eot_id\|>'"
    ) as raised:
        encoded("llama3", turns("secret <|eot_id|>", "secret"))
    assert "secret" not in str(raised.value)


def test_an_order_of_turns_that_the_template_refuses_is_named():
    messages = [*turns("secret"), *ONE]
    assert len(spans(encoded("llama3", messages))) == 1
    with pytest.raises(
        InputError, match=r"row 1: the chat template does not take .*: user, user, assis"
    ) as raised:
        encoded("gemma", messages)
    assert "secret" not in str(raised.value)


# Cuts


@pytest.mark.parametrize("max_length", [12, 30, 45, 60])
def test_a_long_conversation_keeps_its_end_and_learns_no_torn_answer(max_length):
    whole, cut = encoded("llama3", TALK), encoded("llama3", TALK, max_length=max_length)
    ids, length = cut["input_ids"], len(whole["input_ids"])
    assert len(ids) == max_length < length
    assert ids == whole["input_ids"][:1] + whole["input_ids"][length - max_length + 1 :]
    shift = length - max_length
    expected = [(a - shift, b - shift) for a, b in spans(whole) if a - shift > 0]
    assert [span for span in spans(cut) if span[1] > 1] == expected
    assert cut["tokens"].cut_prompts
    assert cut["tokens"].length == length


def test_a_row_of_which_no_answer_is_left_is_refused_unless_allowed():
    with pytest.raises(InputError, match=r"row 1: training.max_length 1 leaves nothing of the response"):
        encoded("llama3", ONE, max_length=1)
    assert encoded("llama3", ONE, max_length=1, allow_cut_responses=True)["labels"] == [IGNORED]
