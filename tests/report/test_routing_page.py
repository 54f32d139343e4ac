"""What the page says of a mixture: scores by routing, where experts were used, how decided the gate is."""

import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import Make
from test_report import Outline, report, words

pytestmark = pytest.mark.plots

SCORES = {
    "routed": {"accuracy": 0.598, "macro_f1": 0.59, "loss": 1.02},
    "oracle": {"accuracy": 0.63, "macro_f1": 0.62, "loss": 0.98},
    "static": {"accuracy": 0.436, "macro_f1": 0.41, "loss": 1.6},
}
ROUTING: dict[str, Any] = {
    "route": "sequence",
    "experts": ["films", "grammar"],
    "domains": ["films", "grammar"],
    "layers": ["a.query", "a.value", "b.query"],
    "use": [[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], [[0.2, 0.8], [0.04, 0.96], [0.18, 0.82]]],
    "entropy": [0.1, 0.2, 0.3],
    "mutual_information": [0.4, 0.5, 0.6],
    "right": 0.925,
    "untrained": {"grammar": [2, 4]},
    "scores": SCORES,
}


def with_routing(make: Make, **changes: Any) -> Path:
    folder = make()
    (folder / "routing.json").write_text(json.dumps({**ROUTING, **changes}))
    return folder


def test_routed_oracle_and_static_stand_beside_each_other(make: Make) -> None:
    text = words(with_routing(make))
    assert "routed 59.8 % 59.0 %" in text
    assert "oracle 63.0 % 62.0 %" in text
    assert "static 43.6 % 41.0 %" in text
    assert "not the model that was trained" in text
    assert "most weight on their own expert" in text
    assert "92.5 % of the test rows" in text
    assert "Without an owner: grammar in 2 rounds." in text


def test_the_head_has_the_run_s_own_score_not_the_static_adapter_s(make: Make) -> None:
    page = Outline(report(with_routing(make)))
    head = page.text[: page.text.index("Results")]
    assert "91.3 %" in head
    assert "43.6 %" not in head


def test_heat_maps_say_their_shares_in_words_too(make: Make) -> None:
    page = Outline(report(with_routing(make)))
    said = [str(fields.get("aria-label")) for tag, fields in page.tags if fields.get("role") == "img"]
    (use,) = (text for text in said if "Experts used, by domain" in text)
    assert "row by row: 80 % 20 %; 14 % 86 %" in use.replace("\u202f", " ")
    (layers,) = (text for text in said if "Experts used, by layer" in text)
    assert "90 % 10 % 20 % 80 %" in layers.replace("\u202f", " ")
    assert "Of each domain, from left to right: films, grammar." in page.text
    (entropy,) = (text for text in said if "Entropy of the weights" in text)
    assert "0.1443 at layer 0, 0.4328 at layer 2" in entropy


def test_rows_of_unknown_domains_have_no_oracle(make: Make) -> None:
    text = words(with_routing(make, scores=SCORES | {"oracle": None}, right=None))
    assert "oracle — — — — — (the test rows do not say whose they are)" in text
    assert "most weight on their own expert" not in text


def test_what_a_lower_rank_lost_is_said(make: Make) -> None:
    text = words(with_routing(make, lost={"films": 0.12, "grammar": 0.0}))
    assert "Imported at a lower rank, the experts lost, of their updates' norm: films 12.0 %." in text


def test_a_run_without_a_mixture_has_no_such_part(make: Make) -> None:
    assert "<h2>Routing</h2>" not in report(make())


WITHOUT = {
    "Experts used, by domain": [{"use": [[[1]]]}, {"use": None}, {"layers": []}, {"experts": "x"}],
    "Entropy of the weights": [{"entropy": ["x"]}, {"entropy": None}],
    "not the model that was trained": [{"scores": []}, {"scores": None}],
}


@pytest.mark.parametrize("part", WITHOUT)
def test_what_the_file_does_not_have_whole_is_left_out(make: Make, part: str) -> None:
    folder = with_routing(make)
    assert part in report(folder)
    for changes in WITHOUT[part]:
        (folder / "routing.json").write_text(json.dumps(ROUTING | changes))
        assert part not in report(folder)


def test_names_are_escaped(make: Make) -> None:
    names = ["<b>x</b>", "films"]
    page = report(with_routing(make, experts=names, domains=names))
    assert "<b>x" not in page
