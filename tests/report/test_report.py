"""The report: what it says, what it escapes, that it stands alone, that it is the same every time."""

import ast
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_runs import CONFIG, PRIVACY, SUMMARY, Make, metrics

import fedsb.report
from fedsb.errors import InputError
from fedsb.report import write_report
from fedsb.report.metrics import show_apart
from fedsb.report.units import DASH, THIN, short_name

pytestmark = pytest.mark.plots

EVIL = "<script>alert('x')</script>"


class Outline(HTMLParser):
    """What a browser would see: tags with attributes, and the text outside style sheets."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u202f", " ").split())


def report(*folders: Path) -> str:
    return write_report(folders, folders[0].parent / "report.html").read_text(encoding="utf-8")


def words(*folders: Path) -> str:
    return Outline(report(*folders)).text


def changed(value: dict[str, Any], **other: Any) -> dict[str, Any]:
    return {**value, **other}


def test_says_the_result_in_one_sentence(make: Make) -> None:
    assert "Accuracy 24.1 % → 91.3 % in 5 rounds, 5 clients, 803 kB sent per client." in words(make())


def test_ledger_adds_up_to_the_byte(make: Make) -> None:
    text = words(make())
    assert "gradient up 5 5,000 20 kB 20,000" in text
    assert "updates, 5 rounds up 5 998,440 3.99 MB 3,994,000" in text
    assert "averages, 5 rounds down 5 — 4.99 MB 4,992,500" in text
    assert f"total 9.11 MB {20_000 + 100_000 + 5 * (798_800 + 998_500):,}" in text
    assert "in doubt" not in text


def test_a_summary_that_contradicts_the_rounds_is_pointed_out(make: Make) -> None:
    wrong = changed(SUMMARY["communication"], upload_bytes=1)
    assert "metrics.jsonl adds up to 3,994,000 bytes up" in words(
        make(summary=changed(SUMMARY, communication=wrong))
    )


def test_traffic_of_round_0_is_not_counted_twice(make: Make) -> None:
    lines = metrics()
    lines[0]["upload_bytes"] = 20_000
    lines[0]["download_bytes"] = 100_000
    assert "total 9.11 MB 9,106,500" in words(make(metrics=lines))


def test_holds_every_section(make: Make) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", report(make()))
    assert titles == [
        "Results",
        "Traffic",
        "Clients",
        "Initialization",
        "Privacy",
        "Configuration",
        "Machine and versions",
    ]


def test_rejected_clients_come_with_their_reason(make: Make) -> None:
    text = words(make())
    assert "2 3 update is not finite" in text
    assert "1 update left out of an average" in text


def test_no_privacy_is_said_in_plain_words(make: Make) -> None:
    assert "No differential privacy: no noise was added" in words(make())


def test_privacy_shows_the_statement_and_each_client(make: Make) -> None:
    text = words(make(summary=changed(SUMMARY, privacy=PRIVACY)))
    assert PRIVACY["statement"] in text
    assert "ε = 2.97 δ = 1e−05, per example" in text
    assert "1 2.5 130" in text
    assert "No differential privacy" not in text


def test_every_plot_has_a_text_in_its_place(make: Make) -> None:
    images = [attrs for _, attrs in Outline(report(make())).tags if attrs.get("role") == "img"]
    assert len(images) == 7
    assert all(len(str(image["aria-label"])) > 20 for image in images)


def test_unfinished_run_says_so(make: Make) -> None:
    text = words(make(metrics=metrics(3)[:-1], summary=None))
    assert "This run did not finish" in text
    assert "Accuracy 24.1 % → 74.5 % after 2 of 5 rounds" in text


def test_torn_last_line_of_an_unfinished_run_is_dropped(make: Make) -> None:
    folder = make(summary=None)
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole[:-40])
    assert "after 4 of 5 rounds" in words(folder)


def test_run_without_any_round_still_gets_a_page(make: Make) -> None:
    assert "No evaluation after 0 of 5 rounds" in words(make(metrics=[], summary=None, partition=None))


def test_missing_keys_show_as_dashes(make: Make) -> None:
    page = words(make(config={}, metrics=[{"round": 0}, {"round": 1}], summary={}, partition={}))
    assert "unknown method" in page
    assert "1 — — — — 0 0 —" in page.replace("0 B 0 B", "— —")


def test_unknown_metric_is_shown(make: Make) -> None:
    lines = [{"round": n, "eval": {"chrf_plus": 0.25 * n}} for n in range(3)]
    text = words(make(metrics=lines, summary=None))
    assert "chrf plus 0 → 0.5" in text


def test_scores_with_their_intervals(make: Make) -> None:
    folder = make()
    (folder / "evaluation").mkdir()
    one = {"value": 0.5, "low": 0.42, "high": 0.58, "count": 150, "interval": "wilson"}
    two = {"value": 41.25, "low": 40.5, "high": 42.0, "count": 630, "interval": "bootstrap"}
    scores = {
        "metrics": {},
        "examples": 1,
        "scores": {"gsm8k_accuracy": one, "e2e_bleu": two, "x_macro_f1": one},
    }
    (folder / "evaluation" / "scores.json").write_text(json.dumps(scores))
    text = words(folder)
    assert "gsm8k: Accuracy 50.0 % 42.0 % to 58.0 % 150" in text
    assert "e2e: BLEU 41.25 40.5 to 42 630" in text
    assert "x: Macro F1 50.0 %" in text


def test_without_scores_there_is_no_such_section(make: Make) -> None:
    assert "95 % interval" not in words(make())


def test_numbers_that_are_not_finite_do_not_break_the_plots(make: Make) -> None:
    lines = metrics()
    lines[3]["train_loss"] = float("nan")
    lines[4]["eval"]["loss"] = float("inf")
    assert "nan" in words(make(metrics=lines))


def test_causal_lm_leads_with_loss(make: Make) -> None:
    lines = [
        {"round": n, "train_loss": 2.0 - n, "eval": {"loss": 3.0 - n, "perplexity": 20.0 / (n + 1)}}
        for n in range(3)
    ]
    final = changed(SUMMARY, primary_metric="loss", base=lines[0]["eval"], final=lines[2]["eval"])
    text = words(make(metrics=lines, summary=final))
    assert "Loss 3 → 1" in text
    assert "Perplexity by round" in text


def test_what_was_cut_is_told_and_tabled(make: Make) -> None:
    counts = {"examples": 1200, "max_length": 64, "cut": 30, "cut_prompts": 30, "lost_end_tokens": 1}
    length = {"p50": 20, "p95": 60, "p99": 90, "max": 1400}
    whole = {"examples": 1, "max_length": 64, "cut": 0, "begin_in_text": 1, "length": length}
    text = words(make(summary=changed(SUMMARY, tokens={"train": counts | {"length": length}, "test": whole})))
    assert (
        "training.max_length 64 cuts 30 of 1,200 train examples (30 prompts, 1 end token); that is "
        "2.5%, and 96 would hold 99 of 100, 1,400 would hold all, or shorten the texts."
    ) in text
    assert "1 of 1 test examples begin with the begin token by themselves" in text
    titles = "split examples half at most 95 % at most 99 % at most longest prompts cut end tokens cut"
    assert f"{titles} train 1,200 20 60 90 1,400 30 1 test 1 20 60 90 1,400 0 0" in text


def test_user_text_is_escaped_everywhere(make: Make) -> None:
    config = json.loads(json.dumps(CONFIG))
    config["model"]["path"] = config["method"]["name"] = config["note"] = EVIL
    lines = metrics()
    lines[1]["rejected"] = [{"client": EVIL, "reason": EVIL}]
    lines[1]["clients"] = [EVIL]
    lines[1]["eval"][EVIL] = 1.0
    split = {
        "kind": EVIL,
        "clients": {EVIL: [1, 2], "$x_$": [3]},
        "labels": {EVIL: {EVIL: 2, "_$\\frac$": 1}},
    }
    once = [{"what": EVIL, "direction": EVIL, "bytes": 3}]
    summary = changed(
        SUMMARY,
        method=EVIL,
        communication={"one_time": once},
        initialization={"kind": EVIL, "samples": {EVIL: [1]}},
        privacy={"unit": EVIL, "statement": EVIL, "per_client": {EVIL: EVIL}},
        tokens={EVIL: {"cut": 3, "examples": EVIL, "begin_in_text": 2}, "train": EVIL, "test": None},
        versions={EVIL: EVIL},
    )
    first = make(EVIL.replace("/", "_"), config=config, metrics=lines, summary=summary, partition=split)
    second = make("two", config=config, metrics=lines, summary=summary, partition=split)
    for page in (report(first), report(first, second)):
        assert "<script" not in page
        assert page.count("&lt;script&gt;") > 15
        Outline(page)


def test_needs_nothing_from_outside(make: Make) -> None:
    page = report(make(), make("two"))
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert "default-src 'none'" in page
    assert "@import" not in page
    for tag, attrs in Outline(page).tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base"}
        assert str(attrs.get("href", "#")).startswith("#")
        assert "src" not in attrs
        assert not [name for name in attrs if name.startswith("on")]


def test_ids_are_unique_and_references_resolve(make: Make) -> None:
    page = report(make(), make("two"), make("three", metrics=metrics(final=0.8)))
    used = re.findall(r'\bid="([^"]*)"', page)
    assert len(used) == len(set(used))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', page)) <= set(used)


def test_same_folders_give_the_same_bytes(make: Make, tmp_path: Path) -> None:
    folder = make()
    pages = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.html"
        code = "import sys, fedsb.report as r; from pathlib import Path; r.write_report(*eval(sys.argv[1]))"
        given = f"[Path({str(folder)!r})], Path({str(out)!r})"
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", code, given], check=True, env=environment)
        pages.append(out.read_bytes())
    assert pages[0] == pages[1]


def test_several_runs_are_told_apart(make: Make) -> None:
    lora = changed(CONFIG, method={"name": "fedit", "rank": 8})
    again = changed(CONFIG, seed=1)
    folders = [
        make("a"),
        make("b", config=again, metrics=metrics(final=0.9)),
        make("c", config=lora, summary=changed(SUMMARY, method="fedit")),
        make("d", config=lora, summary=None),
    ]
    page = report(*folders)
    text = Outline(page).text
    assert "4 runs compared" in text
    assert text.count("fed-sb · seed 1") == 1
    assert "Accuracy by traffic" in text
    assert "5 of 5, unfinished" in text
    assert "fed-sb 2 91.3 %" in text
    assert page.count('<details class="run"') == 4


def test_an_unfinished_run_is_neither_best_nor_cheapest_nor_averaged(make: Make) -> None:
    cheap = changed(SUMMARY, communication={"init_bytes": 7}, final={"accuracy": 0.5})
    folders = [
        make("a"),
        make("b", config=changed(CONFIG, seed=1)),
        make("c", config=changed(CONFIG, seed=2), metrics=metrics(2, final=0.99), summary=None),
        make("d", config=changed(CONFIG, method={"name": "fedit"}), summary=changed(cheap, method="fedit")),
    ]
    text = words(*folders)
    assert "Best accuracy: a, 91.3 % with 9.11 MB of traffic." in text
    assert "Least traffic: d, 50.0 % with 8.99 MB of traffic." in text
    assert "fed-sb 2 91.3 % 0.0 points 9.11 MB" in text


def test_runs_that_differ_late_in_their_configs_are_no_repeated_seeds(make: Make) -> None:
    odd = {"alpha": 1, "beta": 2, "gamma": 3}
    private = changed(CONFIG, **odd, privacy={"epsilon": 3.0})
    runs = [
        make("a"),
        make("b", config=private),
        make("c", config=changed(CONFIG, **odd, privacy={"epsilon": 8.0})),
    ]
    text = words(*runs)
    assert "over repeated seeds" not in text
    assert "alpha 1 · beta 2 · gamma 3 · epsilon 3.0" in text
    assert "alpha 1 · beta 2 · gamma 3 · epsilon 8.0" in text


def test_data_of_one_name_in_two_folders_are_two_settings(make: Make) -> None:
    here, there = (changed(CONFIG, data={"train": f"/{folder}/train.jsonl"}) for folder in ("here", "there"))
    text = words(make("a", config=here), make("b", config=there), make("c", config=changed(here, seed=1)))
    assert "train /there/train.jsonl" in text
    assert "fed-sb · train /here/train.jsonl 2 91.3 %" in text


def test_spreads_of_shares_are_in_points() -> None:
    assert show_apart("accuracy", 0.188).replace(THIN, " ") == "18.8 points"
    assert show_apart("loss", 0.25) == "0.25"
    assert show_apart("accuracy", None) == DASH


def test_what_a_run_does_without_is_not_listed(make: Make) -> None:
    facts = {"owner": None, "bands": 1, "epsilon_start": 0.0, "target_epsilon": 8.0, "scores": 0}
    rates = {"0.001": 0.02982, "0.01": 0.1032}
    each = {"0": {"epsilon": 2.97, "scores": 0, "start_noise_multiplier": None, "steps": 120}}
    stated = {**PRIVACY, **facts, "best_true_positive_rates": rates, "per_client": each}
    text = words(make(summary=changed(SUMMARY, privacy=stated))).replace(THIN, " ")
    assert "ε asked for 8" in text
    assert "most that can be found 3.0 % at 0.1 % false alarms, 10.3 % at 1 % false alarms" in text
    assert "client ε steps 0 2.97 120" in text
    assert not [word for word in ("owner", "bands", "of the start alone") if word in text]


def test_new_bases_and_what_brought_them_are_among_the_rounds(make: Make) -> None:
    start = {**SUMMARY["initialization"], "refreshed_after": [2, 4]}
    lines = [{**line, "core_change": 33.5} if line["round"] else line for line in metrics()]
    text = words(make(metrics=lines, summary=changed(SUMMARY, initialization=start)))
    assert "core change†" in text
    assert "33.5" in text
    assert "New bases after rounds 2, 4" in text
    assert "updates, 5 rounds, and gradients for new bases up 5 —" in text


def test_ranks_of_layers_are_summed_up(make: Make) -> None:
    start = {**SUMMARY["initialization"], "ranks": {"layer.0": 11, "layer.1": 19}}
    assert "by the spectrum of the start: 11 to 19." in words(
        make(summary=changed(SUMMARY, initialization=start))
    )


def test_a_lone_loss_is_called_by_its_name(make: Make) -> None:
    lines = [{**line, "train_loss": None} for line in metrics()]
    assert "Evaluation loss by round" in words(make(metrics=lines))


def test_runs_that_differ_in_a_setting_are_named_by_it(make: Make) -> None:
    wide = changed(CONFIG, method=changed(CONFIG["method"], rank=128))
    text = words(make("a"), make("b", config=wide))
    assert "fed-sb · rank 64" in text
    assert "fed-sb · rank 128" in text


def test_a_folder_that_is_no_run_is_refused_with_a_cure(make: Make, tmp_path: Path) -> None:
    make("inner")
    with pytest.raises(InputError, match=r"found no config.yaml and no metrics.jsonl; .*run folders inner"):
        write_report([tmp_path], tmp_path / "out.html")
    with pytest.raises(InputError, match="found nothing there"):
        write_report([tmp_path / "absent"], tmp_path / "out.html")
    with pytest.raises(InputError, match="at least one run folder"):
        write_report([], tmp_path / "out.html")
    assert not list(tmp_path.glob("*out.html*"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "a: [", "expected YAML"),
        ("summary.json", "[1]", "expected keys and values, found a list"),
        ("metrics.jsonl", '{"round": 0}\n{oops\n', "line 2: expected JSON"),
    ],
)
def test_a_damaged_file_is_named(make: Make, file: str, content: str, message: str) -> None:
    folder = make()
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=f"{file}.*{message}"):
        report(folder)


def test_an_old_page_is_replaced_and_no_scrap_is_left(make: Make, tmp_path: Path) -> None:
    folder, out = make(), tmp_path / "new" / "report.html"
    write_report([folder], out)
    out.write_text("old")
    assert write_report([folder], out) == out
    assert "Accuracy" in out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_imports_are_light() -> None:
    """No module imports matplotlib on loading, torch ever, or of fedsb more than leaves and report."""
    for path in Path(fedsb.report.__path__[0]).glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [name for name in _imported(tree.body) if name.startswith("matplotlib")]
        everywhere = _imported(list(ast.walk(tree)))
        assert "torch" not in {name.split(".")[0] for name in everywhere}
        leaves = ("fedsb.report", "fedsb.errors", "fedsb.common")
        assert all(n.startswith(leaves) for n in everywhere if n.startswith("fedsb"))


def _imported(nodes: list[Any]) -> list[str]:
    found = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return found + [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]


def test_a_language_models_answers_are_shown_and_escaped(make: Make, tmp_path: Path) -> None:
    folder = make()
    assert "Answers" not in write_report([folder], tmp_path / "without.html").read_text()
    line = {"prompt": "name[Alimentum] ->", "answer": EVIL, "expected": "Alimentum is a pub."}
    (folder / "samples.jsonl").write_text(json.dumps(line) + "\n")
    page = write_report([folder], tmp_path / "with.html").read_text()
    assert "name[Alimentum]" in page
    assert "&lt;script&gt;alert" in page
    assert EVIL not in page


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("stanfordnlp/sst2", "stanfordnlp/sst2"),
        ("/data/here/train.jsonl", "train.jsonl"),
        ({"boolq": "/a/train.json", "piqa": "b.json"}, "boolq, piqa"),
        (["/a/one.csv", "two.csv"], "one.csv, two.csv"),
        (8, "8"),
    ],
)
def test_a_setting_is_said_in_a_few_words(value, said):
    assert short_name(value) == said
