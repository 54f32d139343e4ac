"""Generation: alone or in a batch the same, stop strings, sampling by seed, vLLM behind one interface."""

import sys
import types

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedsb.errors import InputError
from fedsb.runner.vllm import check_vllm, vllm_engines
from fedsb.tasks.generate import Decoding, cut_at, generate_texts, stream_text, transformers_engine

LETTERS = "abcdefghijklmnop#\n"
EOS = len(LETTERS)
PROMPTS = [[0, 1, 2], [3], [4, 5, 6, 7, 8, 9], [1, 1], [2, 9, 4, 0, 3, 3, 3]]


@pytest.fixture(scope="module")
def tokenizer():
    """A letter is a token."""
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)} | {"</s>": EOS, "<unk>": EOS + 1}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    torch.manual_seed(1)
    ends = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": EOS, "vocab_size": EOS + 2}
    if request.param == "llama":
        size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = LlamaConfig(initializer_range=0.5, max_position_embeddings=64, **size, **ends)
        return LlamaForCausalLM(config).eval()
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5, **ends)
    return GPT2LMHeadModel(config).eval()


def texts(model, tokenizer, size=5, **how):
    engine = transformers_engine(model, tokenizer, Decoding(max_new_tokens=20, **how))
    return [text for at in range(0, 5, size) for text in engine(PROMPTS[at : at + size], at)]


def test_a_batch_of_one_and_of_many_give_the_same_greedy_texts(model, tokenizer):
    alone = texts(model, tokenizer, 1)
    assert texts(model, tokenizer, 5) == texts(model, tokenizer, 2) == alone
    assert generate_texts(model, tokenizer, PROMPTS, max_new_tokens=20, batch_size=3) == alone
    assert len(set(alone)) > 2


@pytest.mark.parametrize("stop", [(), ("#",), ("ab", "\n")])
def test_a_text_is_said_as_it_is_made_and_nothing_is_taken_back(model, tokenizer, stop):
    for number, prompt in enumerate(PROMPTS):
        decoding = Decoding(max_new_tokens=20, stop=stop, temperature=1.5, seed=number)
        (expected,) = transformers_engine(model, tokenizer, decoding)([prompt], number)
        said = []
        text = stream_text(model, tokenizer, prompt, decoding, said.append, number=number)
        assert "".join(said) == text == expected
        assert len(said) > 2 or len(expected) < 3


def test_texts_end_before_a_stop_string_also_in_a_batch(model, tokenizer):
    plain = texts(model, tokenizer)
    for text in plain:
        stop = text[3:5]
        if len(stop) == 2:
            expected = [cut_at(other, [stop]) for other in plain]
            assert texts(model, tokenizer, stop=(stop,)) == expected
            assert texts(model, tokenizer, 1, stop=("never", stop)) == expected


def test_a_stop_string_ends_the_work(model, tokenizer, monkeypatch):
    calls = []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    plain, whole = texts(model, tokenizer), len(calls)
    texts(model, tokenizer, stop=tuple({text[0] for text in plain if text}))
    assert 0 < len(calls) - whole < whole / 2


def test_cut_at():
    assert cut_at("ab#c", ["#", "b"]) == "a"
    assert cut_at("abc", ["#"]) == "abc"
    assert cut_at("abc", []) == "abc"


def test_sampling_repeats_with_its_seed_and_leaves_the_global_generator_alone(model, tokenizer):
    hot = {"temperature": 2.0, "top_p": 0.9, "top_k": 10}
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = texts(model, tokenizer, seed=1, **hot)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert texts(model, tokenizer, seed=1, **hot) == first
    assert texts(model, tokenizer, seed=2, **hot) != first
    assert texts(model, tokenizer, temperature=0.01, seed=3) == texts(model, tokenizer)


def test_beams_find_texts_at_least_as_likely(model, tokenizer):
    def log_likelihood(prompt, text):
        ids = [*prompt, *[LETTERS.index(letter) for letter in text]]
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(logs[i - 1, ids[i]].item() for i in range(len(prompt), len(ids)))

    for prompt in PROMPTS[:3]:
        found = {}
        for beams in (1, 6):
            decoding = Decoding(max_new_tokens=3, beams=beams, length_penalty=0.0)
            found[beams] = transformers_engine(model, tokenizer, decoding)([prompt], 0)[0]
        assert log_likelihood(prompt, found[6]) >= log_likelihood(prompt, found[1]) - 1e-4


# vLLM


@pytest.fixture
def vllm(monkeypatch):
    """A stand-in for the library that notes what it is asked."""
    noted = {}

    class LLM:
        def __init__(self, **how):
            noted["model"] = how

        def generate(self, prompts, parameters, use_tqdm):
            noted["prompts"], noted["parameters"] = prompts, parameters
            answer = [
                types.SimpleNamespace(text=f"{len(p['prompt_token_ids'])} tokens#more") for p in prompts
            ]
            return [types.SimpleNamespace(outputs=[one]) for one in answer]

    module = types.SimpleNamespace(LLM=LLM, SamplingParams=lambda **how: how)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return noted


def test_vllm_is_asked_for_the_same_tokens(vllm):
    engine = vllm_engines("folder", dtype="bfloat16")(
        Decoding(max_new_tokens=7, stop=("#",), temperature=0.5)
    )
    assert engine(PROMPTS[:2], 0) == ["3 tokens", "1 tokens"]
    assert vllm["model"] == {"model": "folder", "dtype": "bfloat16", "trust_remote_code": False}
    assert vllm["prompts"] == [{"prompt_token_ids": [0, 1, 2]}, {"prompt_token_ids": [3]}]
    asked = vllm["parameters"]
    assert (asked["max_tokens"], asked["temperature"], asked["stop"], asked["top_k"]) == (7, 0.5, ["#"], -1)
    engine(PROMPTS[:2], 1)
    assert vllm["parameters"]["seed"] != asked["seed"]


def test_without_vllm_there_is_a_cure(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"engine: vllm is not installed here; pip install vllm"):
        check_vllm()
