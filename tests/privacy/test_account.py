"""One budget per data set over all runs: however runs are named, however many processes charge it at once,
and whatever happened to the file."""

import json
import math
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from run_helpers import classification_config, main_status, tiny_bert, write_config, write_data

from fedsb import RunConfig, run
from fedsb.compare import compare, tuning
from fedsb.compare.config import CompareConfig
from fedsb.deploy.node import Node
from fedsb.deploy.node_account import node_account, node_place
from fedsb.deploy.node_config import NodeConfig, Refused, check_limits, config_digest
from fedsb.errors import InputError
from fedsb.federation.training import ClientFailed
from fedsb.privacy.account import Account, BudgetSpent, Guard, epsilon_of
from fedsb.privacy.accounting import ORDERS, Mechanism, epsilon
from fedsb.privacy.composition import epsilon_over_runs
from fedsb.privacy.data_ledger import DataLedger, place_beside
from fedsb.privacy.ledger import PrivacyLedger, Spend
from fedsb.privacy.statement import rounded_up
from fedsb.runner.prepare_privacy import prepare_privacy

RELEASE = Mechanism(2.0, 0.2, 3)
DELTA = 1e-3
ONE, TWO, THREE = (epsilon([RELEASE] * count, DELTA) for count in (1, 2, 3))


def owner(folder, *, limit=None, state="state", file="rows.jsonl", approved=(), **data):
    """A node's own config. Its rows are of no importance: nothing here trains."""
    rows = folder / "data" / file
    rows.parent.mkdir(exist_ok=True)
    if not rows.exists():
        rows.write_text('{"text": "one", "label": "pos"}\n')
    limits = {} if limit is None else {"lifetime_epsilon": limit}
    more = {"train": str(rows), "columns": {"text": "text", "label": "label"}, **data}
    digests = [config_digest(config) for config in approved]
    return NodeConfig(client=1, data=more, state=str(folder / state), limits=limits, approved=digests)


def account(own, name="run-1", **changes):
    return replace(node_account(own, name, "example", secret_noise=True), **changes)


def release(own, name="run-1", number=1):
    """As a node's process would: everything opened from the disk."""
    return account(own, name).charge(Spend(1, "round", number, RELEASE), DELTA)


def charges(own):
    return DataLedger(node_place(own)).charges()


# ---------------------------------------------------------------- composition


def test_one_run_is_exact_and_alike_clients_compose_exactly():
    unlike = {0: [RELEASE], 1: [Mechanism(1.0, 1.0, 3)]}
    assert epsilon_over_runs([unlike], DELTA) == epsilon([Mechanism(1.0, 1.0, 3)], DELTA)
    alike = {client: [Mechanism(9.0, 1.0, 1), RELEASE, RELEASE] for client in range(3)}
    expected = epsilon([Mechanism(9.0, 1.0, 2), *[RELEASE] * 4], DELTA)
    assert epsilon_over_runs([alike, alike, {}], DELTA) == expected
    assert epsilon_over_runs([], DELTA) == 0


def test_over_runs_of_unlike_clients_no_row_costs_more_whichever_clients_had_it():
    one = {0: [RELEASE], 1: [Mechanism(6.0, 1.0, 2)], 2: []}
    other = {0: [Mechanism(9.0, 1.0, 1), RELEASE], 1: [Mechanism(8.0, 1.0, 1)]}
    bound = epsilon_over_runs([one, other], DELTA)
    true = [epsilon([*a, *b], DELTA) for a in one.values() for b in other.values()]
    assert max(true) <= bound < 4 * max(true)


# ---------------------------------------------------------------- one budget, whatever runs are called


def test_a_new_name_is_no_new_budget(tmp_path):
    own = owner(tmp_path, limit=TWO)
    answered = [name for name in map(str, range(20)) if release(own, name)]
    assert answered == ["0", "1"]
    assert epsilon_of(charges(own)) == TWO
    assert [charge.run for charge in charges(own)] == answered


def test_the_largest_delta_of_a_run_counts_unless_the_owner_names_one(tmp_path):
    own = owner(tmp_path, limit=ONE)
    assert not account(own).affords([RELEASE], 1e-6)
    assert account(own).affords([RELEASE], DELTA)
    assert not account(own, largest_delta=1e-6).affords([RELEASE], DELTA)


def test_limits_stand_in_for_each_other(tmp_path):
    def limits(**given):
        return NodeConfig(client=0, data={"train": "x"}, state="s", limits=given).limits

    assert (limits(largest_epsilon=3).of_a_run, limits(largest_epsilon=3).of_all_runs) == (3, 3)
    assert (limits(lifetime_epsilon=8).of_a_run, limits(lifetime_epsilon=8).of_all_runs) == (8, 8)
    both = limits(largest_epsilon=3, lifetime_epsilon=8)
    assert (both.of_a_run, both.of_all_runs) == (3, 8)
    assert limits().of_all_runs is None


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("account")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=60, test=6)
    return folder


def config_of(world, *, privacy, **changes):
    few = {
        "federation__rounds": 1,
        "federation__clients": 2,
        "task__labels": ["pos", "neg", "flat"],
        "method__init": {"kind": "weights"},
        "privacy": {"unit": "example", "delta": DELTA} | privacy,
    }
    return RunConfig.from_dict(classification_config(world / "bert", world / "data", **few | changes))


def test_a_node_refuses_a_run_that_its_rows_cannot_pay_for_as_a_whole(world, tmp_path):
    """Before a round is charged that leads nowhere; the server is told why, and no number of the ledger."""
    shutil.copytree(world / "data", tmp_path / "data")
    one_round = epsilon([Mechanism(2.0, 10 / 60, 6)], DELTA)
    config = config_of(world, privacy={"epsilon": one_round, "noise_multiplier": 2.0})
    own = owner(tmp_path, limit=one_round, file="train.jsonl", approved=[config])
    privately = [Node(config, own, f"{n:032x}").private for n in (1, 2)]
    first, late = (private.release(1, 1, lambda: b"answer") for private in privately[:1]), privately[1]
    assert list(first) == [b"answer"]
    assert privately[0].guard.ledger.times(1, "round", 1) == 1
    with pytest.raises(ClientFailed, match="over all runs"):
        late.release(1, 1, lambda: pytest.fail("nothing is to be trained"))
    with pytest.raises(BudgetSpent, match=r"limits.lifetime_epsilon") as refusal:
        _ = Node(config, own, f"{3:032x}").private
    assert "this run" in str(refusal.value)
    assert Node(config, own, f"{1:032x}").private.guard.ledger.times(1, "round", 1) == 1, "it has begun"


def test_a_node_takes_no_ledger_from_a_server_and_no_unprotected_run_with_a_lifetime_alone(world, tmp_path):
    with pytest.raises(Refused, match=r"privacy.ledger: this party keeps its own"):
        check_limits(owner(tmp_path), config_of(world, privacy={"epsilon": 1.0, "ledger": "/tmp/x.jsonl"}))
    config = config_of(world, privacy={"epsilon": 1.0})
    with pytest.raises(Refused, match="no such privacy"):
        check_limits(owner(tmp_path, limit=1.0), config.model_copy(update={"privacy": None}))


# ---------------------------------------------------------------- many at once


def at_once(work, count):
    """What `work(number)` gives in so many processes that start together."""
    fork = multiprocessing.get_context("fork")
    barrier, queue = fork.Barrier(count), fork.Queue()

    def child(number):
        barrier.wait()
        try:
            queue.put(work(number))
        except Exception as error:
            queue.put(f"{type(error).__name__}: {error}")

    children = [fork.Process(target=child, args=(number,)) for number in range(count)]
    for process in children:
        process.start()
    answers = [queue.get(timeout=60) for _ in children]
    for process in children:
        process.join()
    return answers


@pytest.mark.parametrize("names", [["a"] * 4, ["a", "b", "c", "d"]], ids=["one run", "four runs"])
def test_four_processes_of_one_node_never_spend_more_than_the_budget(world, tmp_path, names):
    """All have opened the node, and checked, before the first of them charges."""
    own, config = owner(tmp_path, limit=TWO), config_of(world, privacy={"noise_multiplier": 2.0})
    config = config.model_copy(update={"privacy": config.privacy.model_copy(update={"epsilon": TWO})})
    opened = []
    for name in names:
        private = prepare_privacy(config, {1: 50}, tmp_path / "state" / name, account(own, name))
        (tmp_path / "state" / name).mkdir(parents=True, exist_ok=True)
        opened.append(replace(private, plans={1: replace(private.plans[1], steps_per_round=3)}))
    assert opened[0].plans[1].of_round(1) == RELEASE
    answers = at_once(lambda number: opened[number].release(1, 1, lambda: b"answer"), 4)
    assert answers.count(b"answer") == 2
    assert all("ClientFailed" in str(answer) for answer in answers if answer != b"answer")
    assert epsilon_of(charges(own)) == TWO


def test_a_run_resumed_twice_at_once_never_spends_more_than_its_budget(tmp_path):
    guards = [Guard(PrivacyLedger(tmp_path / "privacy.jsonl"), DELTA, THREE) for _ in range(2)]

    def spend(number):
        done = 0
        for count in range(4):
            try:
                guards[number].charge(0, "round", count, RELEASE)
                done += 1
            except BudgetSpent:
                pass
        return done

    assert sum(at_once(spend, 2)) == 3
    assert guards[0].epsilon(0) == guards[1].epsilon(0) == THREE


def test_two_state_folders_for_one_file_are_one_budget(tmp_path):
    """Whoever comes second finds the head that the first left beside the rows."""
    owners = [owner(tmp_path, limit=TWO, state=f"state-{n}") for n in range(2)]
    answers = at_once(lambda number: release(owners[number]), 2)
    assert answers.count(True) == 1
    assert "another state folder" in str(next(answer for answer in answers if answer is not True))
    assert release(owner(tmp_path, state="state-3")), "without a limit each folder accounts for itself"
    for own in owners:
        with pytest.raises(InputError, match="another state folder"):
            release(own, number=2)


def test_a_state_folder_may_be_moved(tmp_path):
    own = owner(tmp_path, limit=TWO)
    release(own)
    (tmp_path / "state").rename(tmp_path / "moved")
    moved = owner(tmp_path, limit=TWO, state="moved")
    assert [release(moved, number=number) for number in (2, 3)] == [True, False]
    with pytest.raises(InputError, match="is gone or empty"):
        release(own, number=4)


# ---------------------------------------------------------------- what happened to the file


def cut_at_a_line(ledger, before):
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:2]))


def cut_in_a_line(ledger, before):
    ledger.write_bytes(ledger.read_bytes()[:-30])


def restored(ledger, before):
    ledger.write_bytes(before)


def restored_with_its_own_head(ledger, before):
    """A backup of the whole state folder was put back: the head beside the rows knows better."""
    shutil.rmtree(ledger.parent)
    shutil.copytree(ledger.parent.with_name("yesterday"), ledger.parent)


def deleted(ledger, before):
    ledger.unlink()


def deleted_with_the_state(ledger, before):
    shutil.rmtree(ledger.parent.parent)


def emptied(ledger, before):
    ledger.write_text("")


def one_taken_out(ledger, before):
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:1] + lines[2:]))


def noise_made_larger(ledger, before):
    ledger.write_text(ledger.read_text().replace('"noise_multiplier": 2.0', '"noise_multiplier": 9.0'))


def last_one_made_larger(ledger, before):
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]) + lines[-1].replace("2.0", "9.0"))


def garbage(ledger, before):
    ledger.write_bytes(b"\xff\n" + ledger.read_bytes())


def written_again(ledger, before):
    """A chain that is right in itself, of as many releases as there were."""
    other = owner(ledger.parents[2] / "elsewhere", id=ledger.stem)
    for number in range(3):
        account(other, "other").charge(Spend(1, "round", number, Mechanism(9.0, 0.1, 1)), DELTA)
    shutil.copy(node_place(other).ledger, ledger)


def heads_gone(ledger, before):
    for head in [*ledger.parent.glob(".*.head"), *(ledger.parents[2] / "data").glob(".*head")]:
        head.unlink()


DAMAGE = {
    cut_at_a_line: r"holds 2 releases, and .* knows of 3",
    cut_in_a_line: r"holds 2 releases, and .* knows of 3",
    restored: r"holds 1 releases, and .* knows of 3",
    restored_with_its_own_head: r"holds 1 releases, and .*rows.jsonl.privacy-head knows of 3",
    deleted: r"is gone or empty, and .* knows of 3",
    deleted_with_the_state: r"is gone or empty, and .*rows.jsonl.privacy-head knows of 3",
    emptied: r"is gone or empty",
    one_taken_out: r"is broken: line 2 does not follow",
    noise_made_larger: r"is broken: line 1 does not follow",
    last_one_made_larger: r"is broken: line 3 does not follow",
    garbage: r"is broken",
    written_again: r"line 3 of this privacy ledger is not the one that .* knows",
    heads_gone: r"where this privacy ledger ends are gone",
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.items(), ids=[damage.__name__ for damage in DAMAGE])
def test_a_ledger_that_is_not_what_it_was_releases_nothing_and_says_what_happened(tmp_path, damage, said):
    (tmp_path / "elsewhere").mkdir()
    own = owner(tmp_path, limit=100.0)
    ledger = node_place(own).ledger
    release(own, number=1)
    yesterday, open_since = ledger.read_bytes(), account(own)
    shutil.copytree(ledger.parent, ledger.parent.with_name("yesterday"))
    release(own, number=2)
    open_since.charge(Spend(1, "round", 3, RELEASE), DELTA)
    damage(ledger, yesterday)
    for way in (account(own).check, lambda: release(own, "new"), lambda: account(own).affords([], DELTA)):
        with pytest.raises(InputError, match=said) as refusal:
            way()
        assert "Nothing was released. Put its newest copy back" in str(refusal.value)
    with pytest.raises(InputError, match="privacy ledger"):
        open_since.charge(Spend(1, "round", 4, RELEASE), DELTA)


def test_a_process_killed_before_it_wrote_the_heads_leaves_a_ledger_that_is_ahead_of_them(tmp_path):
    own = owner(tmp_path)
    place = node_place(own)
    release(own, number=1)
    heads = {file: file.read_bytes() for file in place.heads}
    release(own, number=2)
    for file, content in heads.items():
        file.write_bytes(content)
    assert len(charges(own)) == 2
    assert release(own, number=3)
    heads = [json.loads(file.read_text())[str(place.ledger)] for file in place.heads]
    assert [head["releases"] for head in heads] == [3, 3]


def test_a_process_killed_at_its_first_charge_leaves_one_line_and_no_head(tmp_path):
    own = owner(tmp_path)
    release(own)
    heads_gone(node_place(own).ledger, b"")
    assert release(own, number=2)
    assert len(charges(own)) == 2


def test_a_torn_last_line_was_never_released_and_is_cut_away(tmp_path):
    own = owner(tmp_path)
    release(own, number=1)
    with open(node_place(own).ledger, "ab") as file:
        file.write(b'{"at": "2026-')
    assert release(own, number=2)
    assert [charge.round for charge in charges(own)] == [1, 2]


def test_what_is_kept_is_for_its_owner_alone(tmp_path):
    own = owner(tmp_path)
    release(own)
    place = node_place(own)
    assert {file.stat().st_mode & 0o777 for file in (place.ledger, *place.heads)} == {0o600}
    assert place.ledger.parent.stat().st_mode & 0o777 == 0o700
    assert not list(place.ledger.parent.glob("*.part"))


# ---------------------------------------------------------------- which rows


def test_rows_that_were_changed_go_on_with_their_ledger(tmp_path):
    own = owner(tmp_path, limit=TWO, id="patients")
    release(own)
    (tmp_path / "data" / "rows.jsonl").write_text('{"text": "two", "label": "neg"}\n')
    assert release(own, "second")
    assert not release(own, "third")
    moved = owner(tmp_path, limit=TWO, id="patients", file="moved.jsonl")
    assert not release(moved, "fourth")


@pytest.mark.parametrize("lost", [False, True], ids=["ledger there", "ledger removed"])
def test_the_same_rows_under_another_name_are_refused(tmp_path, lost):
    own = owner(tmp_path, id="first")
    release(own)
    if lost:
        node_place(own).ledger.unlink()
    for other in (owner(tmp_path, id="second"), owner(tmp_path, state="state-2", id="second")):
        with pytest.raises(InputError, match=r"no new budget. Set data.id: first"):
            release(other)
    shutil.copy(tmp_path / "data" / "rows.jsonl", tmp_path / "data" / "copy.jsonl")
    with pytest.raises(InputError, match=r"the rows of 'copy-\w{8}' were charged as 'first'"):
        release(owner(tmp_path, file="copy.jsonl"))


def test_other_rows_under_another_name_have_a_budget_of_their_own(tmp_path):
    own = owner(tmp_path, limit=ONE, id="first")
    release(own)
    Path(own.data.train).write_text('{"text": "other", "label": "neg"}\n')
    assert release(owner(tmp_path, limit=ONE, id="second"))


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", "", "x" * 101])
def test_an_id_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="id"):
        owner(tmp_path, id=name)


def test_units_do_not_mix(tmp_path):
    ledger = DataLedger(place_beside(tmp_path / "ledger.jsonl"))
    Account(ledger, "one", "example").charge(Spend(0, "round", 1, RELEASE), DELTA)
    with pytest.raises(InputError, match="Give it a ledger of its own"):
        Account(ledger, "two", "client").charge(Spend(None, "round", 1, RELEASE), DELTA)


def test_noise_that_everyone_knows_counts_as_none(tmp_path):
    own = owner(tmp_path)
    account(own, secret_noise=False).charge(Spend(1, "round", 1, RELEASE), DELTA)
    assert epsilon_of(charges(own)) == float("inf")
    assert not release(owner(tmp_path, limit=100.0))


# ---------------------------------------------------------------- simulated runs, and what is shown


def test_simulated_runs_share_a_ledger_where_they_are_told_to(world, tmp_path, monkeypatch, capsys):
    ledger = tmp_path / "ledgers" / "letters.jsonl"
    for seed in (0, 1):
        privacy = {"noise_multiplier": 3.0, "ledger": str(ledger)}
        run(config_of(world, privacy=privacy, seed=seed, training__epochs=0.3), tmp_path / f"run-{seed}")
    own = [json.loads(line) for line in (tmp_path / "run-0" / "privacy.jsonl").read_text().splitlines()]
    together = epsilon([Mechanism(**own[0]["mechanism"])] * 2, DELTA)
    assert main_status(monkeypatch, "privacy", "--ledger", ledger, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["releases"], found["epsilon"]) == (4, together)
    assert [of["run"] for of in found["runs"]] == [str(tmp_path / f"run-{seed}") for seed in (0, 1)]
    assert (
        main_status(monkeypatch, "privacy", "--ledger", tmp_path / "run-1" / "privacy.jsonl", "--json") == 0
    )
    assert json.loads(capsys.readouterr().out)["epsilon"] == found["runs"][1]["epsilon"] < together


def test_a_nodes_ledger_is_shown_in_words(tmp_path, monkeypatch, capsys):
    file = write_config(tmp_path / "node.yaml", owner(tmp_path, limit=2 * TWO).model_dump(mode="json"))
    assert main_status(monkeypatch, "privacy", "--ledger", file) == 0
    assert "Nothing was released from these rows." in capsys.readouterr().out
    own = NodeConfig.from_yaml(file)
    for name in ("march", "april"):
        release(own, name)
    assert main_status(monkeypatch, "privacy", "--ledger", file) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 runs made 2 releases from these rows. Together they cost epsilon" in said
    assert "march 1 " in said
    assert f"The limit over all runs is epsilon {2 * TWO:g}: {TWO:.3g} is left." in said
    assert "The ledger is whole" in said
    node_place(own).ledger.unlink()
    assert main_status(monkeypatch, "privacy", "--ledger", file) == 2
    assert "is gone or empty" in capsys.readouterr().err


def test_a_comparison_says_what_its_runs_cost_together(world, tmp_path):
    """Two that chose the rate on fewer rows, and the one at that rate."""
    config = config_of(world, privacy={"noise_multiplier": 4.0}, training__epochs=0.3)
    settings = CompareConfig(learning_rates=[0.01, 0.02], validation=20)
    document = compare(config, settings, ["fed-sb"], [0], tmp_path / "out").document
    ledgers = sorted((tmp_path / "out").glob("*/*/*/privacy.jsonl"))
    lines = [json.loads(ledger.read_text().splitlines()[0]) for ledger in ledgers]
    together = epsilon([Mechanism(**line["mechanism"]) for line in lines], DELTA)
    (total,) = document["privacy_together"]
    renyi = epsilon([Mechanism(**line["mechanism"]) for line in lines], DELTA, accountant="rdp")
    assert total == {
        "unit": "example",
        "runs": 3,
        "selections": 0,
        "epsilon": together,
        "epsilon_rdp": pytest.approx(renyi),
        "delta": DELTA,
    }
    assert together > max(of["privacy"]["epsilon"] for of in document["runs"])
    said = "3 private runs on the same rows, with those that chose learning rates or were stopped, together "
    assert said + f"cost epsilon {rounded_up(together):.3g} at delta 0.001" in document["privacy"]
    assert said in (tmp_path / "out" / "report.html").read_text()


def test_private_selection_states_its_cost_and_hides_what_was_tried(world, tmp_path, monkeypatch):
    """Three runs were drawn, two on average; the data set's ledger has every one of them."""
    monkeypatch.setattr(tuning, "drawn", lambda rates, mean: [rates[0], rates[1], rates[0]])
    ledger = tmp_path / "all.jsonl"
    config = config_of(world, privacy={"noise_multiplier": 4.0, "ledger": str(ledger)}, training__epochs=0.3)
    settings = CompareConfig(learning_rates=[0.01, 0.02], validation=20, selected_runs=2.0)
    document = compare(config, settings, ["fed-sb"], [0], tmp_path / "out").document
    tried = sorted((tmp_path / "out/tuning").glob("fed-sb/draw-*/privacy.jsonl"))
    final = next((tmp_path / "out/runs").glob("*/*/privacy.jsonl"))
    assert len(tried) == 3
    one, last = (
        Mechanism(**json.loads(f.read_text().splitlines()[0])["mechanism"]) for f in (tried[0], final)
    )
    (total,) = document["privacy_together"]
    assert (total["runs"], total["selections"]) == (1, 1)
    assert total["epsilon"] == pytest.approx(renyi_of_selection(one, 2.0, last, DELTA), rel=1e-6)
    assert "1 learning rate chosen by private selection" in document["privacy"]
    (line,) = document["tuning"]
    assert line["chosen"]
    clients = {charge.client for charge in DataLedger(place_beside(ledger)).charges()}
    assert len(DataLedger(place_beside(ledger)).charges()) == 4 * len(clients)
    again = compare(config, settings, ["fed-sb"], [0], tmp_path / "out").document
    assert again["tuning"] == document["tuning"]


def renyi_of_selection(one, mean, last, delta):
    """Theorem 2 of Papernot and Steinke (2022) at eta = 1, written out order by order."""
    accountant = RdpAccountant(ORDERS)
    event = PoissonSampledDpEvent(one.sampling_probability, GaussianDpEvent(one.noise_multiplier))
    accountant.compose(event, one.steps)
    rdp = dict(zip(accountant._orders, accountant._rdp, strict=True))
    plain = RdpAccountant(ORDERS)
    event = PoissonSampledDpEvent(last.sampling_probability, GaussianDpEvent(last.noise_multiplier))
    plain.compose(event, last.steps)
    finals = dict(zip(plain._orders, plain._rdp, strict=True))
    best = math.inf
    least = min((1 - 1 / at) * rdp[at] + math.log(mean) / at for at in rdp)
    for order in rdp:
        selected = rdp[order] + 2 * least + math.log(mean) / (order - 1)
        total = selected + finals[order]
        spent = total + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        best = min(best, spent)
    return best


def test_rates_are_drawn_a_geometric_number_of_times():
    sizes = [len(tuning.drawn([1.0, 2.0], 3.0)) for _ in range(4000)]
    assert min(sizes) == 1
    assert sum(sizes) / 4000 == pytest.approx(3.0, abs=0.2)
    assert sizes.count(1) / 4000 == pytest.approx(1 / 3, abs=0.04)


@pytest.mark.parametrize("name", ["none.jsonl", "none.yaml"])
def test_a_ledger_that_is_not_there_is_named(tmp_path, monkeypatch, capsys, name):
    assert main_status(monkeypatch, "privacy", "--ledger", tmp_path / name) == 2
    assert name in capsys.readouterr().err
