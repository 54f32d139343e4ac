"""`fedsb cost` of what travels beside a method's numbers: what the ledgers of runs measure, to the number."""

import json
from functools import cache
from itertools import product

import pytest
import torch
from run_helpers import classification_config, main_status, tiny_bert, write_config, write_data

from fedsb import RunConfig, run
from fedsb.cli.cost import Question, costs
from fedsb.cli.cost_beside import Beside
from fedsb.errors import InputError
from fedsb.federation.secure import sizes
from fedsb.federation.secure import terms as terms_module
from fedsb.federation.secure.here import secure_sum_here
from fedsb.federation.secure.server import KEYS
from fedsb.federation.secure.sizes import session_bytes
from fedsb.federation.secure.summands import Summand
from fedsb.federation.secure.terms import Rules, Terms
from fedsb.federation.start.messages import pack_start
from fedsb.federation.start.refresh import FOLDED
from fedsb.federation.traffic import total_bytes
from fedsb.runner.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("no_page")

RANK, CLIENTS, LABELS = 3, 3, 3
ENVELOPE = 400
"""No message's header is longer."""
DATA_FREE = {"kind": "weights", "head_warmup": None}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=18, test=3)
    return folder


@pytest.fixture(scope="module")
def ledger(world):
    """The ledger of a run with these changes, made when first asked for."""

    @cache
    def made(text):
        folder = world / f"run {len(list(world.iterdir()))}"
        run(RunConfig.from_dict(json.loads(text)), folder)
        return load_checkpoint(folder / "checkpoint").traffic

    def get(name="fed-sb", **changes):
        few = {
            "method__name": name,
            "method__rank": RANK,
            "method__init": DATA_FREE,
            "federation__clients": CLIENTS,
            "federation__rounds": 1,
            "federation__weighting": "uniform",
            "evaluation__every": None,
        }
        config = classification_config(world / "bert", world / "data", **few | changes)
        return made(json.dumps(config))

    return get


@pytest.fixture
def cost(world):
    """What is foreseen of one method there."""

    def get(name="fed-sb", *, init="weights", upload="factors", **beside):
        question = Question(
            CLIENTS,
            init,
            RANK,
            rounds=2,
            methods=name,
            labels=LABELS,
            upload=upload,
            beside=Beside(**beside),
        )
        return costs(str(world / "bert"), question).methods[name]

    return get


def of_round(entries, number, *, keys=False):
    return [entry for entry in entries if entry.round == number and (entry.what == KEYS) is keys]


SGD = {"federation__control_variates": True, "training__optimizer": "sgd"}
COPIES = {
    "control variates": ("fed-sb", {"control_variates": True}, SGD, 2),
    "averaged moments": ("fedsa-lora", {"averaged_moments": True}, {"training__moments": "averaged"}, 3),
    "neither": ("fed-sb", {}, {}, 1),
}


@pytest.mark.parametrize("case", COPIES)
def test_what_goes_with_each_number_is_what_the_ledger_measures(ledger, cost, case):
    name, beside, changes, times = COPIES[case]
    foreseen, plain = cost(name, **beside), cost(name)
    down, up = of_round(ledger(name, **changes), 1)
    assert down.parameters == CLIENTS * foreseen.download_parameters_per_client
    assert up.parameters == CLIENTS * foreseen.upload_parameters_per_client
    assert 0 < down.bytes + up.bytes - foreseen.bytes_per_round < 2 * CLIENTS * ENVELOPE
    assert foreseen.upload_parameters_per_client == times * plain.upload_parameters_per_client
    assert foreseen.total_bytes == 2 * foreseen.bytes_per_round
    assert foreseen.trained_parameters == plain.trained_parameters


def test_masks_are_what_the_ledger_measures_to_the_byte(ledger, cost):
    """But for the envelopes of the messages that plain runs have too."""
    entries, foreseen = ledger(federation__secure_aggregation={"threshold": 0.67}), cost(threshold=0.67)
    question, _ = of_round(ledger(), 1)
    envelopes = question.bytes - 4 * question.parameters
    assert total_bytes(entries) == foreseen.bytes_per_round + envelopes
    assert foreseen.bytes_per_round == cost().bytes_per_round + foreseen.mask_bytes_per_round
    assert 0 < total_bytes(of_round(entries, 1, keys=True)) < foreseen.mask_bytes_per_round
    assert foreseen.once_bytes == 0


def test_masks_of_the_start_are_counted_once(ledger, cost):
    init = {"upload": "sketch", "samples": 12, "head_warmup": None}
    entries = ledger(federation__secure_aggregation={"threshold": 0.67}, method__init=init)
    foreseen, masked = cost(init="gradient", upload="sketch", threshold=0.67), cost(threshold=0.67)
    bases = next(entry for entry in entries if entry.what == "bases B and A")
    envelopes = bases.bytes - 2 * bases.parameters
    assert foreseen.once_bytes == total_bytes(entries, once=True) - envelopes
    assert foreseen.total_bytes == foreseen.once_bytes + masked.total_bytes


SESSIONS = {
    "two": (range(2), None),
    "numbers of many digits": ((3, 12, 98_765_432), None),
    "not everybody is everybody's neighbour": (range(13), 3),
}


@pytest.mark.parametrize("case", SESSIONS)
def test_a_session_of_any_size_to_the_byte(monkeypatch, case):
    clients, neighbours = SESSIONS[case]
    if neighbours is not None:
        for module in (terms_module, sizes):
            monkeypatch.setattr(module, "reach", lambda cohort, rules: neighbours)
    rules, size = Rules("", 0.67, 8.0), 997
    total = secure_sum_here(rules, "contribute", 0, lambda client: Summand(torch.zeros(size)), clients, size)
    terms = Terms("contribute", 0, "0" * 32, tuple(clients))
    foreseen = session_bytes(terms, rules, size, bits=64)
    assert foreseen.down == total.down.bytes - len(clients) * len("contribute")
    assert foreseen.up == total.up.bytes - 8 * len(clients) * size
    assert (foreseen.keys_down, foreseen.keys_up) == (total.keys_down.bytes, total.keys_up.bytes)


def test_an_envelope_of_numbers_that_are_not_made():
    facts = {"kind": "train", "client": 3}
    for count, dtype in product([10**power for power in range(6)], (torch.int32, torch.int64)):
        message = pack_start(facts, {"masked": torch.zeros(count, dtype=dtype)})
        assert sizes._envelope(facts, count, dtype.itemsize) == len(message) - count * dtype.itemsize


@pytest.mark.parametrize(
    "init", [DATA_FREE, {"samples": 12, "head_warmup": None}], ids=["weights", "gradient"]
)
def test_new_bases_are_what_the_ledger_measures(ledger, cost, init):
    entries = ledger(method__refresh_every=1, method__init=init, federation__rounds=2)
    new = [e for e in of_round(entries, 1) if e.what not in ("broadcast", "updates")]
    assert new[0].what == FOLDED
    numbers = [(4 if entry.what == FOLDED else 2) * entry.parameters for entry in new]
    assert cost(init=init.get("kind", "gradient")).refresh_bytes == sum(numbers)
    assert 0 < total_bytes(new) - sum(numbers) < len(new) * CLIENTS * 2000


def test_bases_stay_where_they_cannot_be_replaced(cost):
    assert cost("fedit").refresh_bytes is None
    assert cost(control_variates=True).refresh_bytes is None


# ---------------------------------------------------------------- on the command line


@pytest.fixture
def ask(world, monkeypatch, capsys):
    """(status, stdout, stderr) of the command with these options."""

    def call(*options):
        capsys.readouterr()
        asked = ("--model", world / "bert", "--clients", CLIENTS, "--rank", RANK, *options)
        return main_status(monkeypatch, "cost", *asked), *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("options", "beside"),
    [
        (("--control-variates",), {"control_variates": True}),
        (("--averaged-moments",), {"averaged_moments": True}),
        (("--secure-aggregation", "0.67"), {"threshold": 0.67}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_options_are_those_of_the_question(ask, cost, options, beside):
    status, out, err = ask("--labels", LABELS, "--init", "weights", "--json", *options)
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["methods"]["fed-sb"]["bytes_per_round"] == cost(**beside).bytes_per_round
    assert set(document["left_out"]) >= {"flora", "fed-mixer"}
    assert options[0] in document["left_out"]["flora"]


def test_the_table_says_what_new_bases_and_masks_cost(ask):
    status, out, _ = ask("--methods", "fed-sb,fedit")
    assert status == 0
    assert "new bases in the middle of a run: fed-sb" in out
    status, out, _ = ask("--methods", "fed-sb", "--secure-aggregation", "0.67")
    assert status == 0
    assert "new bases" not in out
    assert "of these for masks" in out


REFUSED = {
    "named": (("--methods", "flora", "--control-variates"), "flora: --control-variates is not for it"),
    "sgd and adam": (("--control-variates", "--averaged-moments"), "leave --control-variates or"),
    "not under masks": (("--averaged-moments", "--secure-aggregation", "0.67"), "is not under masks"),
    "half": (("--secure-aggregation", "0.5"), "above 0.5"),
    "more than there are": (("--secure-aggregation", "4"), "at most 3"),
    "no whole number": (("--secure-aggregation", "2.5"), "found 2.5"),
    "16 bits": (("--secure-aggregation", "0.67", "--upload-dtype", "float16"), "whole numbers of 32 bits"),
    "factors": (("--secure-aggregation", "0.67", "--upload", "factors"), "take sketch"),
    "alone": (("--secure-aggregation", "0.67", "--clients", "1"), "--clients 2 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together(ask, case):
    options, said = REFUSED[case]
    status, out, err = ask(*options)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert said in err


def test_a_method_of_another_kind_is_refused_by_name(world):
    question = Question(CLIENTS, rank=RANK, methods="fedsvd", beside=Beside(averaged_moments=True))
    with pytest.raises(InputError, match=r"fedsvd: --averaged-moments is not for it.* take one of fed-sb"):
        costs(str(world / "bert"), question)


def test_doctor_counts_what_goes_with_each_number(world, tmp_path, cost, monkeypatch, capsys):
    config = classification_config(world / "bert", world / "data", method__rank=RANK, **SGD)
    capsys.readouterr()
    assert main_status(monkeypatch, "doctor", write_config(tmp_path / "run.yaml", config), "--json") == 0
    found = {
        finding["what"]: finding["detail"] for finding in json.loads(capsys.readouterr().out)["findings"]
    }
    numbers = cost(control_variates=True).upload_parameters_per_client
    assert found["update"].startswith(f"{numbers} numbers; ")
