"""A client is who holds the key that was registered for it, and its answers are its own."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from keys import make_key, register
from stubs import RUN, StubHeld, StubNodes

from fedsb.deploy import asking, client_app
from fedsb.deploy import nodes as federation
from fedsb.deploy.identity import read_registered, sign, statement, verify
from fedsb.deploy.nodes import UNSIGNED
from fedsb.deploy.records import facts_of, pack, payload_of
from fedsb.errors import InputError, RunFailed

NOT_SIGNED = "not signed with the key registered for client"


@pytest.fixture(autouse=True)
def stubbed(monkeypatch):
    monkeypatch.setattr(client_app, "held", StubHeld())
    monkeypatch.setattr(asking, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(federation, "AGAIN_SECONDS", 0.0)


@pytest.fixture
def nodes(tmp_path):
    return StubNodes(tmp_path)


HONEST = {0: b"0: q", 1: b"1: q", 2: b"2: q"}


def test_registered_nodes_are_served(nodes):
    nodes.federation.gather(0.0)
    assert nodes.asked() == HONEST
    assert UNSIGNED not in nodes.said


def test_without_registered_keys_that_is_said_aloud(tmp_path):
    nodes = StubNodes(tmp_path, signed=False)
    nodes.federation.gather(0.0)
    assert nodes.asked() == HONEST
    assert UNSIGNED in nodes.said


# Who is client 0


@pytest.mark.parametrize(
    ("key", "reason"), [("stranger", NOT_SIGNED), ("client-2", NOT_SIGNED), (None, "not signed; set `key`")]
)
def test_nobody_else_is_client_0(nodes, key, reason):
    make_key(nodes.key("stranger"))
    nodes.add(103, 0, key)
    nodes.federation.gather(0.0)
    assert nodes.federation.nodes == {0: 100, 1: 101, 2: 102}
    assert nodes.asked() == HONEST
    assert (103, "train") not in nodes.grid.pushed
    (line,) = nodes.lines("node 103")
    assert reason in line


@pytest.mark.parametrize("key", ["stranger", "client-2", None])
def test_nor_while_client_0_is_away(nodes, key):
    make_key(nodes.key("stranger"))
    nodes.federation.gather(0.0)
    del nodes.grid.node_configs[100]
    nodes.add(103, 0, key)
    answers = nodes.asked()
    assert "node unavailable" in answers[0]
    assert (103, "train") not in nodes.grid.pushed


def test_who_overheard_its_hello_is_not_client_0_either(nodes):
    heard = []

    def replays(node, reply):
        if node == 100:
            heard.append(facts_of(reply.content))
        if node == 103:
            reply.content = pack(heard[0])
        return reply

    nodes.grid.harm = replays
    nodes.add(103, 0, "client-2")
    nodes.federation.gather(0.0)
    assert nodes.federation.nodes[0] == 100
    assert NOT_SIGNED in nodes.lines("node 103")[0]


def test_a_client_nobody_registered_is_named(nodes):
    (nodes.clients / "client-1.pub").unlink()
    with pytest.raises(RunFailed, match="no node for client 1 within"):
        nodes.federation.gather(0.0)
    assert "no key is registered for client 1" in nodes.lines("node 101")[0]


@pytest.mark.parametrize("gone", [True, False], ids=["the former is gone", "Flower still lists the former"])
def test_its_own_key_takes_its_place_under_another_node_id(nodes, gone):
    nodes.federation.gather(0.0)
    nodes.add(200, 0, "client-0")
    if gone:
        del nodes.grid.node_configs[100]
    assert nodes.asked() == HONEST
    assert (200, "train") in nodes.grid.pushed
    assert (100, "train") not in nodes.grid.pushed


def test_without_keys_nobody_takes_the_place_of_a_node_that_is_there(tmp_path):
    nodes = StubNodes(tmp_path, signed=False)
    nodes.federation.gather(0.0)
    nodes.add(200, 0, None)
    nodes.asked()
    assert nodes.federation.nodes[0] == 100
    del nodes.grid.node_configs[100]
    assert nodes.asked() == HONEST
    assert nodes.federation.nodes[0] == 200


# Its answers


def changed_payload(reply, heard):
    reply.content = pack(facts_of(reply.content), b"1: other")


def changed_facts(reply, heard):
    reply.content = pack(facts_of(reply.content) | {"num_examples": 2**40}, payload_of(reply.content))


def unsigned(reply, heard):
    reply.content = pack({}, payload_of(reply.content))


def of_the_round_before(reply, heard):
    reply.content = heard[-1]


def of_another_client(reply, heard):
    reply.content = pack({"signature": sign(heard[0], b"x")}, b"0: q")


def cut_signature(reply, heard):
    reply.content = pack({"signature": facts_of(reply.content)["signature"][:-1]}, b"1: q")


def a_signature_of_text(reply, heard):
    reply.content = pack({"signature": "yes"}, b"1: q")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (changed_payload, NOT_SIGNED),
        (changed_facts, NOT_SIGNED),
        (unsigned, "is not signed; set `key`"),
        (of_the_round_before, NOT_SIGNED),
        (of_another_client, NOT_SIGNED),
        (cut_signature, NOT_SIGNED),
        (a_signature_of_text, "its signature is none"),
    ],
)
def test_an_answer_that_is_not_its_own_to_this_question_is_refused(nodes, harm, reason):
    nodes.federation.gather(0.0)
    heard = [nodes.key("client-0")]
    nodes.grid.harm = lambda node, reply: heard.append(reply.content) or reply if node == 101 else reply
    assert nodes.asked() == HONEST
    nodes.grid.harm = lambda node, reply: harm(reply, heard) or reply if node == 101 else reply
    answers = nodes.asked()
    assert (answers[0], answers[2]) == (HONEST[0], HONEST[2])
    assert reason in answers[1]
    nodes.grid.harm = lambda node, reply: reply
    assert nodes.asked() == HONEST


@pytest.mark.parametrize("part", range(7))
def test_a_signature_is_for_one_answer_alone(nodes, part):
    answer = [RUN, "train", "n1", 100, 0, {"a": 1}, b"payload"]
    other = ["f" * 32, "hello", "n2", 101, 1, {"a": True}, b"Payload"]
    key = read_registered(nodes.clients)[0]
    signature = sign(nodes.key("client-0"), statement(*answer))
    assert verify(key, signature, statement(*answer))
    answer[part] = other[part]
    assert not verify(key, signature, statement(*answer))


# While the run lasts


def test_a_revoked_client_is_dropped_and_let_in_again(nodes):
    nodes.federation.gather(0.0)
    (nodes.clients / "client-1.pub").unlink()
    answers = nodes.asked()
    assert answers == HONEST | {1: "no key is registered for it"}
    assert nodes.lines("client 1: its key was revoked or replaced; node 101 is left out")
    assert (101, "train") not in nodes.grid.pushed
    register(nodes.key("client-1"), 1, nodes.clients)
    assert nodes.asked() == HONEST


def test_a_replaced_key_is_the_only_one_that_serves(nodes):
    nodes.federation.gather(0.0)
    register(make_key(nodes.key("new")), 1, nodes.clients)
    assert nodes.asked()[1] == "its node is not connected"
    nodes.add(101, 1, "new")
    assert nodes.asked() == HONEST


# The files


def test_each_client_needs_a_key_of_its_own(nodes):
    register(nodes.key("client-0"), 1, nodes.clients)
    with pytest.raises(InputError, match=r"client-1.pub: another client has the same key"):
        nodes.federation.gather(0.0)


def test_what_is_no_clients_key_is_passed_over(nodes):
    for name in (".client-3.pub.part", "README", "client-01.pub", "client-x.pub", "client-3.pub~"):
        (nodes.clients / name).write_text("no key")
    assert sorted(read_registered(nodes.clients)) == [0, 1, 2]


def other_curve(clients, key):
    register(make_key(key, ec.SECP256R1()), 3, clients)


def a_private_key(clients, key):
    (clients / "client-3.pub").write_bytes(make_key(key).read_bytes())


def a_link(clients, key):
    (clients / "client-3.pub").symlink_to(make_key(key).with_name(f"{key.name}.pub"))


def a_folder(clients, key):
    (clients / "client-3.pub").mkdir()


def writable_file(clients, key):
    register(make_key(key), 3, clients)
    (clients / "client-3.pub").chmod(0o666)


def writable_folder(clients, key):
    clients.chmod(0o777)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_curve, "expected an EC P-384 key"),
        (a_private_key, "expected a public key as ssh-keygen writes it"),
        (a_link, "cannot read this key"),
        (a_folder, "found no plain file"),
        (writable_file, "mode is 0666, open to others; run chmod 644"),
        (writable_folder, "mode is 0777, open to others; run chmod 755"),
    ],
)
def test_a_folder_of_other_things_is_refused(nodes, spoil, message):
    spoil(nodes.clients, nodes.key("other"))
    with pytest.raises(InputError, match=message):
        read_registered(nodes.clients)


def test_without_the_folder_nobody_is_served(nodes):
    with pytest.raises(InputError, match="expected the folder of registered keys"):
        read_registered(nodes.folder / "none")


def test_a_private_key_is_for_its_owner_alone(nodes):
    nodes.key("client-0").chmod(0o640)
    with pytest.raises(InputError, match=r"mode is 0640, open to others; run chmod 600"):
        sign(nodes.key("client-0"), b"")
    public = nodes.key("client-1").with_name("client-1.pub")
    public.chmod(0o600)
    with pytest.raises(InputError, match="expected a private key of OpenSSH"):
        sign(public, b"")
    with pytest.raises(InputError, match="expected an EC P-384 key"):
        sign(make_key(nodes.key("other"), ec.SECP256R1()), b"")
    with pytest.raises(InputError, match="cannot read this key"):
        sign(nodes.key("none"), b"")


def test_a_node_with_a_bad_key_says_so_at_home_alone(nodes, caplog):
    nodes.key("client-1").write_text("nonsense")
    with pytest.raises(RunFailed):
        nodes.federation.gather(0.0)
    assert nodes.lines("node 101") == ["node 101: this node failed (InputError); its own log says why"]
    assert "client-1: expected a private key of OpenSSH" in caplog.text
