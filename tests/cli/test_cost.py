"""`fedsb cost`: the paper's published counts, each method's numbers by hand, what is read and refused."""

import json

import pytest
from run_helpers import main_status
from transformers import BertConfig, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, RobertaConfig

from fedsb.cli.cost import CHOICES
from fedsb.methods import ALL
from fedsb.models.shapes import build_on_meta

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "mistral": MistralConfig(
        architectures=["MistralForCausalLM"],
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
    ),
    "gemma": Gemma2Config(
        architectures=["Gemma2ForCausalLM"],
        hidden_size=3584,
        intermediate_size=14336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
    ),
    "llama": LlamaConfig(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        tie_word_embeddings=False,
    ),
    "bert": BertConfig(architectures=["BertForMaskedLM"], num_labels=3),
    "small-llama": LlamaConfig(num_key_value_heads=2, vocab_size=50, tie_word_embeddings=False, **SMALL),
    "small-classifier": LlamaConfig(
        architectures=["LlamaForSequenceClassification"], num_labels=5, vocab_size=50, **SMALL
    ),
    "small-roberta": RobertaConfig(vocab_size=50, num_labels=4, **SMALL),
    "small-gpt2": GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4),
}
SMALL_LLAMA_LAYERS = 2 * [(32, 32), (16, 32), (16, 32), (32, 32), (64, 32), (64, 32), (32, 64)]
SMALL_GPT2_LAYERS = 2 * [(96, 32), (32, 32), (128, 32), (32, 128)]
MISTRAL_LAYERS = 32 * [
    (4096, 4096),
    (1024, 4096),
    (1024, 4096),
    (4096, 4096),
    (14336, 4096),
    (14336, 4096),
    (4096, 14336),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One folder per model, with config.json alone in it."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in MODELS.items():
        config.save_pretrained(folder / name)
        assert [p.name for p in (folder / name).iterdir()] == ["config.json"]
    assert_no_storage(folder / "small-llama")  # before 9 billion parameters are tried
    return folder


def assert_no_storage(folder):
    model = build_on_meta(str(folder))
    tensors = [*model.parameters(), *model.buffers()]
    assert tensors
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.fixture
def fedsb(monkeypatch, capsys):
    """Call the command in this process: (status, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        status = main_status(monkeypatch, *arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def ask(fedsb, models):
    """The JSON document of `fedsb cost` on one of the models."""

    def call(model, clients, *options):
        status, out, err = fedsb("cost", "--model", models / model, "--clients", clients, *options, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return call


# The published tables

M, K = 1e6, 1e3
PUBLISHED = [
    ("mistral", 25, "fedit:32,ffa-lora:32,fedex-lora:32,flora:32", [83.88, 41.94, 2097.34, 2097.34], M),
    ("mistral", 25, "fed-sb:120", [3.22], M),
    ("mistral", 25, "fed-sb:160", [5.73], M),
    ("mistral", 25, "fed-sb:200", [8.96], M),
    ("gemma", 25, "fedit:32,ffa-lora:32,fedex-lora:32,flora:32", [108.04, 54.02, 2701.12, 2701.12], M),
    ("gemma", 25, "fed-sb:120", [4.23], M),
    ("gemma", 25, "fed-sb:160", [7.53], M),
    ("gemma", 25, "fed-sb:200", [11.76], M),
    ("llama", 5, "fedit:32,ffa-lora:32,fedex-lora:32,flora:32", [48.63, 24.31, 243.15, 243.15], M),
    ("llama", 5, "fed-sb:120", [2.83], M),
    ("llama", 5, "fed-sb:160", [5.02], M),
    ("llama", 5, "fed-sb:200", [7.85], M),
    ("bert", 3, "fedit:32,ffa-lora:32,fedex-lora:32,flora:32", [1181.96, 592.13, 3541.26, 3541.26], K),
    ("bert", 3, "fed-sb:32", [26.88], K),
    ("bert", 3, "fed-sb:48", [57.59], K),
    ("bert", 3, "fed-sb:64", [100.61], K),
]


@pytest.mark.parametrize(("model", "clients", "methods", "figures", "unit"), PUBLISHED)
def test_published_counts(ask, model, clients, methods, figures, unit):
    """To 0.1 % or one in the last printed digit, where the tables have only three (2.83 M is 196 * 120^2)."""
    costs = ask(model, clients, "--methods", methods)["methods"]
    names = [entry.split(":")[0] for entry in methods.split(",")]
    counts = [costs[name]["paper_parameters_per_round"] / unit for name in names]
    assert counts == [pytest.approx(figure, rel=1e-3, abs=0.0101) for figure in figures]


@pytest.mark.parametrize(
    ("model", "rank", "layers", "head"),
    [("mistral", 200, 224, 0), ("gemma", 160, 294, 0), ("llama", 120, 196, 0), ("bert", 48, 24, 3 * 769)],
)
def test_fed_sb_counts_exactly(ask, model, rank, layers, head):
    document = ask(model, 3, "--rank", rank, "--methods", "fed-sb")
    cost = document["methods"]["fed-sb"]
    assert (document["target_layers"], document["head_parameters"]) == (layers, head)
    for what in ("trained_parameters", "upload_parameters_per_client", "download_parameters_per_client"):
        assert cost[what] == layers * rank**2 + head
    assert cost["paper_parameters_per_round"] == layers * rank**2 + head


@pytest.mark.parametrize(
    ("model", "rank", "millions"),
    [("mistral", 200, 524.3), ("gemma", 200, 675.2), ("llama", 200, 303.9), ("bert", 64, 2.36)],
)
def test_one_time_broadcast_of_fed_sb(ask, model, rank, millions):
    cost = ask(model, 25, "--rank", rank, "--methods", "fed-sb")["methods"]["fed-sb"]
    assert cost["once_parameters_per_client"] / M == pytest.approx(millions, rel=1e-3)


def test_what_the_tables_count_otherwise(ask):
    """FFA-LoRA: half of LoRA in the tables, B in fact. FedIT's tables count one client, FLoRA's all."""
    costs = ask("mistral", 25, "--rank", 32, "--methods", "fedit,ffa-lora,flora")["methods"]
    outs, both = sum(out for out, _ in MISTRAL_LAYERS), sum(out + n_in for out, n_in in MISTRAL_LAYERS)
    assert costs["ffa-lora"]["upload_parameters_per_client"] == 32 * outs == 44040192
    assert costs["ffa-lora"]["paper_parameters_per_round"] == 16 * both == 41943040
    assert costs["fedit"]["paper_parameters_per_round"] == costs["fedit"]["upload_parameters_per_client"]
    assert costs["flora"]["paper_parameters_per_round"] == 25 * 32 * both


# Each method, counted by hand


def by_hand(method, out, n_in, rank, clients):
    """(trained, up, down) of one layer."""
    both, B, square = (out + n_in) * rank, out * rank, rank * rank
    sketch = min(rank + 4, out, n_in)
    return {
        "fed-sb": (square, square, square),
        "lora-xs": (square, square, square),
        "fed-mixer": (square, square, square),  # of a client of one expert
        "ravan": (4 * square + 4, 4 * square, 4 * square),
        "fedit": (both, both, both),
        "hetlora": (both, both, both),
        "flexlora": (both, both, both),
        "ffa-lora": (B, B, B),
        "fedsvd": (B, B, both),
        "rolora": (B, B, both),
        "fedsa-lora": (both, n_in * rank, n_in * rank),
        "flora": (both, both, min(clients * both, out * n_in)),
        "fedex-lora": (both, both, both + min((clients - 1) * both, out * n_in)),
        "fedrot-lora": (both, both, both),
        "lora-fair": (both, both, both),
        "fedmomentum": (both, both, both + min((clients - 1) * both, out * n_in)),
        "la-lora": (both, both, both),
        "florg": (min(out, n_in) * rank,) * 3,
        "fedask": (B, sketch * (out + n_in), both + sketch * out),
        "fr-lora": (both, both, min(2 * both, out * n_in)),
    }[method]


@pytest.mark.parametrize("clients", [1, 2, 7])
@pytest.mark.parametrize("labels", [None, 3])
@pytest.mark.parametrize("method", [m.name for m in ALL])
def test_counts_by_hand(ask, method, labels, clients):
    head = 0 if labels is None else 32 * labels
    options = () if labels is None else ("--labels", labels)
    document = ask("small-llama", clients, "--rank", 4, "--rounds", 3, "--methods", method, *options)
    assert document["head_parameters"] == head
    cost = document["methods"][method]
    counts = [by_hand(method, *shape, 4, clients) for shape in SMALL_LLAMA_LAYERS]
    trained, up, down = (head + sum(column) for column in zip(*counts, strict=True))
    assert cost["trained_parameters"] == trained
    assert cost["upload_parameters_per_client"] == up
    assert cost["download_parameters_per_client"] == down
    assert cost["bytes_per_round"] == 4 * clients * (up + down)
    once = 0
    if method in ("fed-sb", "fed-mixer"):
        once = sum(min(4 * (m + n), m * n) + 4 * (m + n) for m, n in SMALL_LLAMA_LAYERS)
    assert cost["once_bytes"] == 2 * clients * once
    assert cost["total_bytes"] == 3 * 4 * clients * (up + down) + cost["once_bytes"]


def test_conv1d_layers_are_counted_the_right_way_round(ask):
    document = ask("small-gpt2", 2, "--rank", 4, "--methods", "ffa-lora,fedit")
    assert document["target_layers"] == len(SMALL_GPT2_LAYERS)
    costs = document["methods"]
    assert costs["ffa-lora"]["trained_parameters"] == 4 * sum(out for out, _ in SMALL_GPT2_LAYERS)
    assert costs["fedit"]["trained_parameters"] == 4 * sum(map(sum, SMALL_GPT2_LAYERS))


@pytest.mark.parametrize(
    ("model", "options", "head"),
    [
        ("small-llama", (), 0),
        ("small-llama", ("--labels", 7), 7 * 32),
        ("small-classifier", (), 5 * 32),
        ("small-classifier", ("--labels", 2), 2 * 32),
        ("small-roberta", (), 32 * 33 + 4 * 33),
        ("bert", ("--labels", 2), 2 * 769),
    ],
)
def test_the_head_is_counted_once_in_each_direction(ask, model, options, head):
    document = ask(model, 5, "--rank", 4, "--methods", "fed-sb", *options)
    cores = 16 * document["target_layers"]
    cost = document["methods"]["fed-sb"]
    assert document["head_parameters"] == head
    assert cost["trained_parameters"] == cost["upload_parameters_per_client"] == cores + head
    assert cost["paper_parameters_per_round"] == cost["download_parameters_per_client"] == cores + head


# Options


def test_json_is_what_the_contract_says(ask):
    document = ask("small-llama", 3, "--rank", 4)
    assert document.keys() >= {"model", "clients", "methods"}
    assert "rounds" not in document
    assert list(document["methods"]) == [m.name for m in ALL]
    assert document["left_out"] == {}
    for method in ALL:
        cost = document["methods"][method.name]
        assert cost.keys() == {
            "rank",
            "heads",
            "exact",
            "trained_parameters",
            "upload_parameters_per_client",
            "download_parameters_per_client",
            "once_parameters_per_client",
            "once_upload_parameters_per_client",
            "paper_parameters_per_round",
            "mask_bytes_per_round",
            "bytes_per_round",
            "refresh_bytes",
            "once_bytes",
        }
        assert (cost["rank"], cost["exact"], cost["heads"]) == (4, method.exact, method.heads)


@pytest.mark.parametrize("init", ["weights", "orthonormal"])
def test_only_a_gradient_start_is_sent(ask, init):
    options = ("--rank", 4, "--rounds", 2, "--methods", "fed-sb")
    sent = ask("small-llama", 3, *options)["methods"]["fed-sb"]
    derived = ask("small-llama", 3, *options, "--init", init)["methods"]["fed-sb"]
    assert sent["once_parameters_per_client"] == 4 * sum(map(sum, SMALL_LLAMA_LAYERS))
    factors = sum(min(4 * (out + n_in), out * n_in) for out, n_in in SMALL_LLAMA_LAYERS)
    assert sent["once_upload_parameters_per_client"] == factors
    assert (derived["once_parameters_per_client"], derived["once_upload_parameters_per_client"]) == (0, 0)
    assert sent["total_bytes"] - derived["total_bytes"] == sent["once_bytes"]
    assert derived["total_bytes"] == 2 * derived["bytes_per_round"] == 2 * sent["bytes_per_round"]


def test_what_is_sent_of_a_gradient_is_a_choice(ask):
    """Sketches of rank r: (2 r + 1) out + (4 r + 3) in numbers; a whole gradient has 4 bytes a number."""
    options = ("--rank", 2, "--methods", "fed-sb")
    asked = {way: ask("small-llama", 3, *options, "--upload", way) for way in CHOICES["upload"]}
    costs = {way: document["methods"]["fed-sb"] for way, document in asked.items()}
    once = {upload: cost["once_upload_parameters_per_client"] for upload, cost in costs.items()}
    assert once == {
        "factors": sum(2 * (out + n_in) for out, n_in in SMALL_LLAMA_LAYERS),
        "sketch": sum(min(5 * out + 11 * n_in, out * n_in) for out, n_in in SMALL_LLAMA_LAYERS),
        "whole": sum(out * n_in for out, n_in in SMALL_LLAMA_LAYERS),
    }
    for upload, cost in costs.items():
        each = 2 * cost["once_parameters_per_client"] + (4 if upload == "whole" else 2) * once[upload]
        assert cost["once_bytes"] == 3 * each


def test_ranks_of_a_spectrum_cost_no_more_a_round_and_at_most_so_much_once(ask):
    options = ("--rank", 2, "--methods", "fed-sb,lora-xs")
    asked = [ask("small-llama", 3, *options, "--ranks", ranks)["methods"] for ranks in CHOICES["ranks"]]
    equal, spectrum = (costs["fed-sb"] for costs in asked)
    assert asked[0]["lora-xs"] == asked[1]["lora-xs"]
    assert equal["bytes_per_round"] == spectrum["bytes_per_round"]
    sides = [out + n_in for out, n_in in SMALL_LLAMA_LAYERS]
    assert spectrum["once_parameters_per_client"] == int(2 * (len(sides) * sum(s * s for s in sides)) ** 0.5)
    assert spectrum["once_parameters_per_client"] >= equal["once_parameters_per_client"] == 2 * sum(sides)
    factors = sum(min(4 * (out + n_in), out * n_in) for out, n_in in SMALL_LLAMA_LAYERS)
    assert spectrum["once_upload_parameters_per_client"] == factors


@pytest.mark.parametrize(("dtype", "each"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_an_update_of_16_bits_costs_half(ask, dtype, each):
    cost = ask("small-llama", 3, "--rank", 2, "--upload-dtype", dtype)["methods"]["fedex-lora"]
    up, down = (cost[f"{way}_parameters_per_client"] for way in ("upload", "download"))
    assert cost["bytes_per_round"] == 3 * (each * up + 4 * down)


def test_heads_are_of_methods_that_train_a_core(ask):
    costs = ask("small-llama", 3, "--rank", 4, "--heads", 2)["methods"]
    heads = {name: cost["heads"] for name, cost in costs.items() if cost["heads"] != 1}
    assert heads == {"fed-sb": 2, "lora-xs": 2, "ravan": 2}
    assert costs["fed-sb"]["upload_parameters_per_client"] == 2 * 16 * 14
    assert costs["ravan"]["trained_parameters"] == (2 * 16 + 2) * 14
    assert costs["fed-sb"]["once_parameters_per_client"] == 8 * sum(map(sum, SMALL_LLAMA_LAYERS))


def test_targets_and_ranks_of_their_own(ask):
    document = ask(
        "small-llama", 2, "--targets", "k_proj, down_proj", "--rank", 3, "--methods", "fedit, fed-sb:8"
    )
    assert document["target_layers"] == 4
    assert list(document["methods"]) == ["fed-sb", "fedit"]
    assert document["methods"]["fed-sb"]["trained_parameters"] == 4 * 64
    assert document["methods"]["fedit"]["trained_parameters"] == 3 * 2 * (16 + 32 + 32 + 64)


def test_methods_that_do_not_fit_are_left_out_unless_they_are_named(ask, fedsb, models):
    document = ask("bert", 3, "--rank", 200)
    assert list(document["methods"]) == [m.name for m in ALL if m.name != "ravan"]
    assert "ravan with 4 heads: --rank: expected 1 to 192, found 200" in document["left_out"]["ravan"]
    named = ("cost", "--model", models / "bert", "--clients", 3, "--rank", 200, "--methods", "fed-sb,ravan")
    status, _, err = fedsb(*named)
    assert status == 2
    assert err.startswith("error: ravan with 4 heads: --rank: expected 1 to 192, found 200")


def test_the_choices_are_those_of_a_run():
    assert CHOICES["init"] == ("gradient", "weights", "orthonormal")
    assert CHOICES["upload"] == ("factors", "sketch", "whole")
    assert CHOICES["ranks"] == ("equal", "spectrum")
    assert CHOICES["upload_dtype"] == ("float32", "float16", "bfloat16")


# What is read, and what takes memory


@pytest.mark.parametrize("name", MODELS)
def test_the_model_has_no_storage(models, name):
    assert_no_storage(models / name)


def test_weights_are_not_read(ask, models):
    before = ask("small-llama", 3, "--rank", 4)
    weights = models / "small-llama" / "model.safetensors"
    weights.write_bytes(b"not weights at all")
    try:
        assert ask("small-llama", 3, "--rank", 4) == before
    finally:
        weights.unlink()


# The table


def test_the_table(fedsb, models):
    asked = ("cost", "--model", models / "mistral", "--clients", 25, "--rounds", 2)
    status, out, err = fedsb(*asked, "--methods", "fedit:32,fed-sb:200,ffa-lora:32")
    assert (status, err) == (0, "")
    lines = [line.replace("\u202f", " ") for line in out.splitlines()]
    rows = [line.split() for line in lines if line.startswith(("fed-sb ", "fedit ", "ffa-lora "))]
    size = ["8.96", "M"]
    assert rows[0][:8] == ["fed-sb", "200", *size, *size, *size]
    assert rows[0][8:] == ["524", "M", "524", "M", *size, "1.79", "GB", "56", "GB"]
    assert [row[0] for row in rows] == ["fed-sb", "fedit", "ffa-lora"]
    assert "224 target layers; 25 clients" in out
    assert "2 rounds" in out
    assert "leave out what is sent once" in out
    assert "half of LoRA's numbers for FFA-LoRA" in out


def test_the_table_names_what_it_leaves_out(fedsb, models):
    status, out, _ = fedsb("cost", "--model", models / "bert", "--clients", 3, "--rank", 200)
    assert status == 0
    assert "head of 2,307 numbers" in out
    assert "left out: ravan with 4 heads" in out
    assert "fedex-lora" in out  # no name is cut, whatever the width
    assert "rounds" not in out


# What is refused

WRONG_OPTIONS = {
    "no rank": (["--methods", "fed-sb:4,fedit"], ["--rank", "needed for fedit", "fedit:R"]),
    "rank 0": (["--rank", "0"], ["--rank", "1 or more", "found 0"]),
    "no clients": (["--rank", "4", "--clients", "0"], ["--clients", "1 or more", "found 0"]),
    "rounds": (["--rank", "4", "--rounds", "-1"], ["--rounds", "1 or more", "found -1"]),
    "heads": (["--rank", "4", "--heads", "0"], ["--heads", "1 or more", "found 0"]),
    "labels": (["--rank", "4", "--labels", "0"], ["--labels", "1 or more", "found 0"]),
    "init": (["--rank", "4", "--init", "svd"], ["--init", "gradient, weights, orthonormal", "'svd'"]),
    "upload": (["--rank", "4", "--upload", "svd"], ["--upload", "factors, sketch, whole", "'svd'"]),
    "ranks": (["--rank", "4", "--ranks", "best"], ["--ranks", "equal, spectrum", "'best'"]),
    "upload type": (["--rank", "4", "--upload-dtype", "int8"], ["--upload-dtype", "bfloat16", "'int8'"]),
    "unknown method": (
        ["--rank", "4", "--methods", "fed-sb,fedt"],
        ["--methods", "'fedt'", "Did you mean fedit"],
    ),
    "method twice": (["--rank", "4", "--methods", "fedit,fedit:8"], ["--methods", "fedit twice"]),
    "empty rank": (["--methods", "fed-sb:"], ["--methods", "NAME:RANK", "'fed-sb:'", "fed-sb:200,fedit:32"]),
    "rank in words": (["--methods", "fed-sb:many"], ["--methods", "NAME:RANK", "'fed-sb:many'"]),
    "rank 0 of a method": (["--methods", "fed-sb:0"], ["--methods", "1 or more", "'fed-sb:0'"]),
    "two ranks": (["--methods", "fed-sb:3:4"], ["--methods", "NAME:RANK", "'fed-sb:3:4'"]),
    "no method": (["--rank", "4", "--methods", ""], ["--methods", "NAME:RANK", "found ''"]),
    "rank over a layer": (["--rank", "17"], ["--rank", "1 to 16", "found 17", "16 x 32", "Lower --rank"]),
    "rank of a method over a layer": (["--methods", "fedit:17"], ["fedit: --rank", "1 to 16", "found 17"]),
    "heads over a layer": (
        ["--methods", "fed-sb:8", "--heads", "3"],
        ["fed-sb with 3 heads", "1 to 5", "found 8"],
    ),
    "no such layer": (
        ["--rank", "4", "--targets", "q_prj"],
        ["--targets", "'q_prj'", "Did you mean q_proj"],
    ),
    "no target": (["--rank", "4", "--targets", ","], ["--targets", "q_proj,v_proj", "','"]),
}


def assert_refused(answer, parts):
    """Exit status 2 and one message on stderr that holds all the parts, in the options' words."""
    status, out, err = answer
    assert status == 2, err
    assert out == ""
    assert err.startswith("error:")
    assert len(err.splitlines()) == 1
    assert "not expected" not in err
    assert "method." not in err
    assert "model.path" not in err
    for part in parts:
        assert part in err, f"{part!r} is not in: {err}"


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_wrong_options(fedsb, models, case):
    options, parts = WRONG_OPTIONS[case]
    asked = ("cost", "--model", models / "small-llama", "--clients", 3)
    assert_refused(fedsb(*asked, *options), parts)


WRONG_CONFIGS = {
    "none": (None, ["--model", "no config.json", "Hugging Face model folder"]),
    "not JSON": ("{", ["config.json", "expected JSON that can be read"]),
    "no type": ("{}", ["--model", "no config could be read", "model_type"]),
    "unknown type": ('{"model_type": "zebra"}', ["--model", "zebra", "expected a folder"]),
    "a wrong value": ('{"model_type": "bert", "hidden_size": "wide"}', ["--model", "hidden_size", "'wide'"]),
    "sizes that do not fit": (
        '{"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}',
        ["--model", "no classifier of texts can be built", "30"],
    ),
    "no language model": ('{"model_type": "hubert"}', ["--model", "no language model can be built"]),
    "code of its own": (
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}',
        ["--model", "no config could be read"],
    ),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_wrong_configs(fedsb, tmp_path, case):
    content, parts = WRONG_CONFIGS[case]
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    answer = fedsb("cost", "--model", tmp_path, "--clients", 3, "--rank", 4)
    assert_refused(answer, [str(tmp_path), *parts])


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("./nowhere", ["--model", "'./nowhere' does not exist"]),
        ("nobody/nothing", ["--model", "'nobody/nothing'", "connect", "id of a model on the hub"]),
    ],
)
def test_models_that_are_nowhere(fedsb, model, parts):
    assert_refused(fedsb("cost", "--model", model, "--clients", 3, "--rank", 4), parts)


@pytest.mark.parametrize("missing", ["--model", "--clients"])
def test_options_that_are_needed(fedsb, models, missing):
    options = {"--model": models / "bert", "--clients": 3, "--rank": 4}
    words = [word for name, value in options.items() if name != missing for word in (name, value)]
    status, _, err = fedsb("cost", *words)
    assert status == 2
    assert missing in err


def test_help_has_examples(fedsb):
    status, out, _ = fedsb("cost", "--help")
    assert status == 0
    assert "Examples:" in out
    assert "fedsb cost" in out
