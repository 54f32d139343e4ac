"""What decides a private run's batches is a secret of the run, and nothing that is shown tells of it."""

import json

import pytest
from run_helpers import adapter_bytes, classification_config, parts_of, tiny_bert, write_data

from fedsb import RunConfig, run
from fedsb.cli.status import run_status
from fedsb.errors import InputError
from fedsb.privacy import plan
from fedsb.report import write_report
from fedsb.runner.client_privacy import secret_cohort
from fedsb.runner.model_card import model_card
from fedsb.runner.prepare_privacy import prepare_privacy
from fedsb.runner.private_state import SampleSecret, sampling_secret, write_privately

EXAMPLE = {"unit": "example", "noise_multiplier": 2.0, "delta": 1e-3, "clip_norm": 0.5}
CLIENT = {"unit": "client", "noise_multiplier": 2.0, "delta": 1e-2, "clip_norm": 0.5}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secret")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=60, test=6)
    return folder


def config_of(world, privacy=EXAMPLE, **changes):
    few = {"federation__rounds": 1, "method__init": {"kind": "weights"}, "privacy": privacy}
    return RunConfig.from_dict(classification_config(world / "bert", world / "data", **few | changes))


@pytest.fixture(scope="module")
def two_runs(world, tmp_path_factory):
    """Two runs of one config, and the batches of each."""
    folder, batches, poisson = tmp_path_factory.mktemp("runs"), {}, plan.cyclic_batches
    for name in ("one", "two"):
        drawn = batches.setdefault(name, [])
        with pytest.MonkeyPatch.context() as patch:

            def watched(*arguments, into=drawn):
                into.append(list(poisson(*arguments)))
                return into[-1]

            patch.setattr(plan, "cyclic_batches", watched)
            run(config_of(world), folder / name)
    return folder, batches


def test_two_runs_of_one_seed_have_other_batches(two_runs):
    _, batches = two_runs
    assert all(one != two for one, two in zip(batches["one"], batches["two"], strict=True))


def test_the_secret_is_its_owner_s_alone(two_runs):
    folder, _ = two_runs
    secrets = [folder / name / "private/sampling-secret" for name in ("one", "two")]
    for secret in secrets:
        assert secret.stat().st_mode & 0o777 == 0o600
        assert secret.parent.stat().st_mode & 0o777 == 0o700
        assert (secret.parent / "partition.json").stat().st_mode & 0o777 == 0o600
        assert sorted(path.name for path in secret.parent.iterdir()) == ["partition.json", "sampling-secret"]
    assert secrets[0].read_bytes() != secrets[1].read_bytes()
    assert {len(secret.read_bytes()) for secret in secrets} == {32}


def test_no_file_that_is_shown_tells_who_has_what_or_how_batches_are_drawn(two_runs):
    folder, _ = two_runs
    one = folder / "one"
    assert json.loads((one / "partition.json").read_text()) == {
        "kind": "iid",
        "clients": {"0": 20, "1": 20, "2": 20},
    }
    parts, secret = parts_of(one), (one / "private/sampling-secret").read_bytes()
    assert sorted(i for part in parts for i in part) == list(range(60))
    shown = [path for path in one.rglob("*") if path.is_file() and path.parent.name != "private"]
    assert len(shown) > 8
    for path in shown:
        content = path.read_bytes()
        assert secret not in content
        assert secret.hex().encode() not in content
        numbers = b"".join(content.split())
        assert not any(b",".join(str(i).encode() for i in part[:4]) in numbers for part in parts), path
    assert json.loads((one / "ledger.json").read_text())["calibration"] == {}


def test_a_report_a_card_and_a_status_need_nothing_private(two_runs):
    folder, _ = two_runs
    one = folder / "one"
    page, card = (one / "report.html").read_text(), model_card(one, rank=4)
    (one / "private").rename(folder / "away")
    write_report([one], one / "report.html")
    assert (one / "report.html").read_text() == page
    assert model_card(one, rank=4) == card
    assert run_status(one)["finished"]
    (folder / "away").rename(one / "private")


@pytest.mark.parametrize("privacy", [EXAMPLE, CLIENT], ids=["example", "client"])
def test_the_statement_assumes_nothing_of_the_seed(world, tmp_path, privacy):
    config = config_of(world, privacy, federation__weighting="uniform")
    facts = run(config, tmp_path / "run").summary["privacy"]
    assert "seed" not in facts["statement"]
    assert "sampling_secret" not in facts
    assert facts["noise_source"] in facts["statement"]
    assert "present or blanked" in facts["statement"]


def test_a_run_that_is_resumed_reads_its_secret_again(world, tmp_path):
    folder = tmp_path / "run"
    run(config_of(world), folder)
    before = (folder / "private/sampling-secret").read_bytes()
    (folder / "summary.json").unlink()
    run(config_of(world), folder, resume=True)
    assert (folder / "private/sampling-secret").read_bytes() == before


def test_a_cohort_comes_from_the_secret_and_not_from_the_seed(world, tmp_path):
    config = config_of(world, CLIENT, federation__clients=40, federation__clients_per_round=10)
    private = [prepare_privacy(config, dict.fromkeys(range(40), 2), tmp_path / name) for name in "aab"]
    first, again, other = (secret_cohort(run, 1) for run in private)
    assert first == again != other


def test_streams_are_of_one_secret_and_one_purpose_and_may_be_of_one_answer(tmp_path):
    secret = SampleSecret(tmp_path)
    streams = [secret.stream("poisson", 1), secret.stream("poisson", 2), secret.stream("cohort", 1)]
    streams += [secret.once().stream("poisson", 1), secret.once().stream("poisson", 1)]
    assert len({stream.read(1).item() for stream in streams}) == 5
    assert secret.stream("a").read(1) == SampleSecret(tmp_path).stream("a").read(1)


def test_only_streams_for_tests_come_from_a_seed(tmp_path):
    one, other = SampleSecret(tmp_path, insecure_seed=1), SampleSecret(tmp_path, insecure_seed=2)
    assert one.stream("a").read(1) == one.once().stream("a").read(1) != other.stream("a").read(1)
    assert not (tmp_path / "private").exists()


def test_insecure_runs_repeat(world, tmp_path):
    for name in ("one", "two"):
        run(config_of(world, EXAMPLE | {"insecure_seed": 4}), tmp_path / name)
    assert adapter_bytes(tmp_path / "one") == adapter_bytes(tmp_path / "two")


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33)])
def test_a_secret_that_is_not_whole_is_refused(tmp_path, content):
    write_privately(tmp_path / "private/sampling-secret", content)
    with pytest.raises(InputError, match=r"sampling-secret: expected 32 bytes, found \d+; remove it"):
        sampling_secret(tmp_path)


@pytest.mark.parametrize("target", ["other", "nowhere"])
def test_a_secret_is_not_read_through_a_link(tmp_path, target):
    (tmp_path / "other").write_bytes(bytes(32))
    (tmp_path / "private").mkdir()
    (tmp_path / "private/sampling-secret").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match=r"sampling-secret: cannot be read"):
        sampling_secret(tmp_path)


def test_what_is_written_privately_follows_no_link_and_leaves_no_part(tmp_path):
    (tmp_path / "elsewhere").write_text("as it was")
    (tmp_path / "private").mkdir(mode=0o755)
    (tmp_path / "private/file").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="this is a link"):
        write_privately(tmp_path / "private/file", b"new")
    assert (tmp_path / "elsewhere").read_text() == "as it was"
    (tmp_path / "private/file").unlink()
    write_privately(tmp_path / "private/file", b"new")
    assert (tmp_path / "private/file").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "private").iterdir()] == ["file"]
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o700
