"""What a client refuses, and what a server sees of it."""

import hashlib
import re
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from oracles import dense_secret

from fedsb.errors import RunFailed, UpdateRejected
from fedsb.federation.secure import member as member_module
from fedsb.federation.secure import messages, shares
from fedsb.federation.secure.fixed_point import FixedPoint
from fedsb.federation.secure.here import Here
from fedsb.federation.secure.masks import add_mask, agree, derived, key_pair, seal, unsealed
from fedsb.federation.secure.member import Member
from fedsb.federation.secure.messages import named
from fedsb.federation.secure.server import SecureSum, SpoiledSum, new_terms
from fedsb.federation.secure.summands import Summand
from fedsb.federation.secure.terms import EVERYBODY, Circle, Rules, reach
from fedsb.federation.server import Failed
from fedsb.federation.start.messages import pack_start, unpack_start

RULES = Rules("a run", 0.67, 8.0)
COUNT, SIZE = 4, 4096


def here(work, coding, members=None):
    members = {} if members is None else members
    return Here(RULES, work, lambda client, summand: summand.integers(coding, 1), coding, members)


class Recorded:
    """A session of COUNT clients with equal numbers, every question and answer kept."""

    def __init__(self, numbers=0.0, size=SIZE, number=1, members=None, cohort=range(COUNT)):
        self.coding, self.asked, self.answers = FixedPoint(32, 8.0, COUNT), {}, {}
        self.here = here(self._work, self.coding, members)
        self.numbers = torch.full((size,), float(numbers))
        self.terms = new_terms("train", number, cohort)
        SecureSum(self._ask, self.terms, RULES, b"q", self.coding, size).total()

    def _work(self, clients, question_to):
        for client in clients:
            question_to(client)
            yield client, Summand(self.numbers)

    def _ask(self, kind, clients, message_to):
        def kept(client):
            self.asked[kind, client] = message_to(client)
            return self.asked[kind, client]

        for outcome in self.here(kind, clients, kept):
            self.answers[kind, outcome.client] = outcome.message
            yield outcome

    def masked(self, client):
        return unpack_start(self.answers["train", client])[1]["masked"].numpy().view(np.uint32)[:SIZE]


# The server's view


def p_value(numbers):
    """Of the chi-square test that all bytes are equally likely."""
    from scipy.stats import chisquare

    return chisquare(np.bincount(numbers.view(np.uint8), minlength=256)).pvalue


def test_what_a_server_sees_of_a_client_is_uniform():
    """Of equal numbers, the plainest there are: bytes of all values equally often, no two clients alike."""
    session = Recorded(numbers=1.5)
    seen = [session.masked(client) for client in range(COUNT)]
    assert min(map(p_value, seen)) > 1e-6
    differences = [seen[a] - seen[b] for a in range(COUNT) for b in range(a)]
    assert min(map(p_value, differences)) > 1e-6


def test_that_test_fails_when_masks_are_left_out(monkeypatch):
    monkeypatch.setattr(member_module, "add_mask", lambda numbers, key, sign: None)
    with pytest.raises(AssertionError):
        test_what_a_server_sees_of_a_client_is_uniform()


def test_it_fails_when_all_take_one_mask(monkeypatch):
    """Each alone looks uniform; together they do not."""
    monkeypatch.setattr(member_module, "add_mask", lambda numbers, key, sign: add_mask(numbers, bytes(32), 1))
    with pytest.raises(AssertionError):
        test_what_a_server_sees_of_a_client_is_uniform()


def test_no_mask_is_used_twice():
    members = {}
    first, second = Recorded(number=1, members=members), Recorded(number=2, members=members)
    assert p_value(first.masked(0) - second.masked(0)) > 1e-6


def test_clients_that_were_asked_different_things_give_noise():
    """The same session, another model to one client: its masks cancel with nobody's."""
    coding, values = FixedPoint(32, 8.0, COUNT), torch.ones(SIZE)

    def work(clients, question_to):
        for client in clients:
            question_to(client)
            yield client, Summand(values)

    asked = here(work, coding)

    def ask(kind, clients, message_to):
        def other(client):
            message = message_to(client)
            return message[:-1] + b"?" if kind == "train" and client == 2 else message

        return asked(kind, clients, other)

    total = SecureSum(ask, new_terms("train", 1, range(COUNT)), RULES, b"q", coding, SIZE).total()
    assert p_value((total.values / coding.step).numpy().astype(np.int64).astype(np.uint32)) > 1e-6


# What a client refuses


def test_both_kinds_of_share_of_one_client_are_refused():
    session = Recorded()
    alone = replace_members(session, 0)
    asked = lists(survivors=[0, 1, 2, 3], lost=[3])
    with pytest.raises(UpdateRejected, match="both kinds of share"):
        alone.unmask(pack_start(named("unmask", session.terms), asked))


def test_another_list_of_survivors_is_refused_and_the_same_one_answered_again():
    session = Recorded()
    member = session.here.members[0]
    again = member.unmask(session.asked["unmask", 0])
    assert again == session.answers["unmask", 0]
    with pytest.raises(UpdateRejected, match="other survivors"):
        member.unmask(pack_start(named("unmask", session.terms), lists([0, 1, 2], [3])))


def replace_members(session, client):
    """This member as it was before it gave shares."""
    member = session.here.members[client]
    return replace(member, held=replace(member.held, survivors=()))


def lists(survivors, lost):
    return {"survivors": messages.ids(survivors), "lost": messages.ids(lost)}


@pytest.mark.parametrize(
    ("stage", "again"), [("shares", "were given"), ("train", "was answered"), ("unmask", None)]
)
def test_each_question_of_a_session_is_answered_once(stage, again):
    session = Recorded()
    member, question = session.here.members[1], session.asked[stage, 1]
    if again is None:
        member.answer(stage, question)
        return
    with pytest.raises(UpdateRejected, match=again):
        member.opened("train", question) if stage == "train" else member.answer(stage, question)


def test_numbers_are_given_once_to_a_session():
    session = Recorded()
    with pytest.raises(UpdateRejected, match="was answered"):
        session.here.members[1].masked(np.zeros(SIZE + 3, np.int64), session.coding)


def test_no_earlier_round_is_repeated_and_none_often():
    members = {}
    for _ in range(member_module.MOST_SESSIONS):
        Recorded(number=5, members=members)
    for number in (5, 4):
        with pytest.raises(UpdateRejected, match="gave its part of round 5 3 times"):
            members[0].keys(messages.pack_keys_question(new_terms("train", number, range(COUNT))))
    Recorded(number=6, members=members)


@pytest.mark.parametrize("cohort", [[0, 1, 2], [1, 2, 3, 4, 5]])
def test_a_cohort_below_the_clients_own_minimum_or_without_it_is_refused(cohort):
    member = Member(0, RULES, fewest=4)
    with pytest.raises(UpdateRejected, match=r"sums of 4 or more|not in the cohort"):
        member.keys(messages.pack_keys_question(new_terms("train", 1, cohort)))


def test_a_sum_that_shrank_below_the_clients_minimum_is_not_unmasked():
    session = Recorded()
    member = replace(replace_members(session, 0), fewest=4)
    with pytest.raises(UpdateRejected, match="sums of 4 or more"):
        member.unmask(pack_start(named("unmask", session.terms), lists([0, 1, 2], [3])))


def test_keys_that_their_client_did_not_sign_are_refused():
    """The server cannot stand in for anybody: a key of its own making lacks the signature."""

    def sign(text):
        return hashlib.sha256(b"secret 0" + text).digest()

    def verify(client, signature, text):
        return signature == hashlib.sha256(b"secret %d" % client + text).digest()

    member = Member(0, RULES, sign=sign, verify=verify)
    terms = new_terms("train", 1, range(2))
    own = unpack_start(member.keys(messages.pack_keys_question(terms)))[1]
    false = key_pair().public + key_pair().public
    question = {
        "clients": messages.ids([0, 1]),
        "keys": messages.rows([bytes(own["keys"].numpy()), false], messages.BOTH_KEYS),
        "signatures": messages.rows(
            [bytes(own["signature"].numpy()), messages.padded(sign(b"?"))], messages.SIGNATURE_BYTES
        ),
    }
    with pytest.raises(UpdateRejected, match="client 1 did not sign"):
        member.shares(pack_start(named("shares", terms), question))


def test_a_share_that_was_altered_is_refused():
    key = derived(b"s" * 32, "share", b"terms", 0, 1)
    sealed = bytearray(seal(key, b"x" * 66))
    assert unsealed(key, bytes(sealed)) == b"x" * 66
    sealed[5] ^= 1
    with pytest.raises(UpdateRejected, match="altered"):
        unsealed(key, bytes(sealed))


def test_a_public_key_of_low_order_is_refused():
    with pytest.raises(UpdateRejected, match="public key"):
        agree(key_pair().private, [bytes(32)])


@pytest.mark.parametrize("stage", ["shares", "unmask"])
def test_one_share_that_is_a_lie_costs_nothing_while_others_suffice(stage):
    """Of four, three are needed."""
    members = here(partial(work, torch.ones(16)), FixedPoint(32, 8.0, COUNT))

    def ask(kind, clients, message_to):
        for outcome in members(kind, clients, message_to):
            liar = kind == stage and outcome.client == 2
            yield replace(outcome, message=outcome.message[:-20] + bytes(20)) if liar else outcome

    made = SecureSum(ask, new_terms("train", 1, range(COUNT)), RULES, b"q", FixedPoint(32, 8.0, COUNT), 16)
    expected = torch.full((16,), 4.0).double()
    torch.testing.assert_close(made.total().values, expected, rtol=0, atol=1e-6)


def test_a_dealer_whose_shares_are_of_no_use_spoils_the_sum_and_is_named():
    members = here(partial(work, torch.ones(16)), FixedPoint(32, 8.0, COUNT))

    def ask(kind, clients, message_to):
        for outcome in members(kind, clients, message_to):
            if kind == "shares" and outcome.client == 2:
                facts, tensors = unpack_start(outcome.message)
                worthless = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
                outcome = replace(outcome, message=pack_start(facts, worthless))
            yield outcome

    made = SecureSum(ask, new_terms("train", 1, range(COUNT)), RULES, b"q", FixedPoint(32, 8.0, COUNT), 16)
    with pytest.raises(SpoiledSum, match="client 2") as spoiled:
        made.total()
    assert spoiled.value.client == 2


# Shares and circles


def test_the_prime_is_one():
    """Miller and Rabin's test, to forty bases."""
    rest, twos = shares.PRIME - 1, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    for base in range(2, 42):
        x = pow(base, rest, shares.PRIME)
        powers = [pow(x, 2**k, shares.PRIME) for k in range(twos)]
        assert x == 1 or shares.PRIME - 1 in powers


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(range(32))])
def test_any_threshold_of_shares_give_the_secret_and_fewer_do_not(secret):
    split = shares.split(secret, [0, 3, 7, 11, 999], 3)
    for chosen in ([0, 3, 7], [999, 11, 3], [0, 3, 7, 11, 999]):
        some = {holder: split[holder] for holder in chosen}
        assert shares.combine(some) == secret == dense_secret(some, shares.PRIME)
    with pytest.raises((UpdateRejected, AssertionError)):
        assert shares.combine({holder: split[holder] for holder in (0, 3)}) == secret


def test_in_a_large_circle_neighbours_are_mutual_and_as_many_for_all():
    around = Circle(tuple(np.random.default_rng(0).permutation(200).tolist()), 29)
    for client in range(200):
        holders = around.holders(client)
        assert len(holders) == 59
        assert client in holders
        assert all(client in around.holders(other) for other in holders)


def test_neighbours_grow_slowly_with_the_cohort():
    assert reach(EVERYBODY, RULES) * 2 + 1 >= EVERYBODY
    assert 2 * reach(1000, RULES) < 200


# Hostile bytes


def mutated(message, rng):
    """The message with some bytes changed, cut off, or put in."""
    changed = bytearray(message)
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(0, min(len(changed), 1200)))
        what = rng.integers(0, 3)
        if what == 0:
            changed[place] = int(rng.integers(0, 256))
        elif what == 1:
            del changed[place : place + int(rng.integers(1, 40))]
        else:
            changed[place:place] = bytes(rng.integers(0, 256, 4, dtype=np.uint8))
    return bytes(changed)


@pytest.mark.parametrize("stage", ["keys", "shares", "train", "unmask"])
def test_whatever_a_server_sends_is_answered_or_refused(stage):
    """At every stage, to a member that is ready for it."""
    rng, session = np.random.default_rng(1), Recorded(size=16)
    for _ in range(40):
        member = Member(1, RULES)
        for earlier in ("keys", "shares", "train"):
            if earlier == stage:
                break
            step(member, earlier, as_before(session, member, earlier))
        question = mutated(as_before(session, member, stage), rng)
        with suppress(UpdateRejected):
            step(member, stage, question)


def as_before(session, member, stage):
    """A recorded question of this stage, its keys and shares replaced by what this fresh member can read."""
    if stage == "keys":
        return session.asked["keys", 1]
    if stage == "shares":
        facts, tensors = unpack_start(session.asked["shares", 1])
        held = member.held
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        own = key_pair(held.share_key).public + key_pair(held.mask_key).public
        tensors["keys"][1] = messages.rows([own], messages.BOTH_KEYS)[0]
        return pack_start(facts, tensors)
    if stage == "train":
        told, question = messages.parted(session.asked["train", 1])
        facts, tensors = unpack_start(told)
        sealed = [resealed(session, member, other) for other in range(COUNT)]
        return messages.with_question(
            pack_start(facts, tensors | {"sealed": messages.rows(sealed, messages.SEALED)}), question
        )
    return session.asked["unmask", 1]


def resealed(session, member, other):
    """A pair of shares under the key that this member shares with the other."""
    (secret,) = agree(member.held.share_key, [member.held.keys[other][:32]])
    key = derived(secret, "share", member.held.terms.digest(RULES), other, 1)
    return seal(key, bytes(66))


def step(member, stage, question):
    if stage != "train":
        return member.answer(stage, question)
    member.opened("train", question)
    return member.masked(np.zeros(16 + messages.TAIL, np.int64), FixedPoint(32, 8.0, COUNT))


@pytest.mark.parametrize("stage", ["keys", "shares", "train", "unmask"])
def test_whatever_a_client_sends_costs_that_client_or_the_round_and_no_more(stage):
    rng, values = np.random.default_rng(2), torch.ones(16)
    for _ in range(12):
        total = total_with_hostile(stage, rng, values)
        if isinstance(total, str):
            assert re.search("client 2|shares of|weights", total), total
        elif 2 not in total.clients or stage == "unmask":
            torch.testing.assert_close(total.values, len(total.clients) * values.double(), rtol=0, atol=1e-5)


def total_with_hostile(stage, rng, values):
    """A sum in which client 2's answer to one question is mutated; or why there is none."""
    coding = FixedPoint(32, 8.0, COUNT)
    members = here(partial(work, values), coding)

    def ask(kind, clients, message_to):
        for outcome in members(kind, clients, message_to):
            hostile = kind == stage and outcome.client == 2
            yield replace(outcome, message=mutated(outcome.message, rng)) if hostile else outcome

    try:
        return SecureSum(ask, new_terms("train", 1, range(COUNT)), RULES, b"q", coding, 16).total()
    except RunFailed as reason:
        return str(reason)


def work(values, clients, question_to):
    for client in clients:
        try:
            question_to(client)
        except UpdateRejected as reason:
            yield Failed(client, str(reason))
        else:
            yield client, Summand(values)
