"""The page of a run in progress: it says so, loads itself again, and stops doing so when the run ends."""

from pathlib import Path

import pytest
from report_runs import Make
from run_helpers import classification_config, tiny_bert, write_data
from test_report import Outline

from fedsb import RunConfig
from fedsb.report import write as live
from fedsb.report import write_report
from fedsb.report.progress import Silent
from fedsb.report.write import LivePage, is_live
from fedsb.runner import loop
from fedsb.runner.folder import finished_summary

pytestmark = pytest.mark.plots


def reload_of(page: Path) -> str | None:
    outline = Outline(page.read_text(encoding="utf-8"))
    metas = [attrs for tag, attrs in outline.tags if tag == "meta"]
    return next((attrs["content"] for attrs in metas if attrs.get("http-equiv") == "refresh"), None)


def test_a_live_page_loads_itself_anew_and_says_how_far_the_run_is(make: Make) -> None:
    folder = make(summary=None)
    page = write_report([folder], folder / "report.html", live=True)
    assert reload_of(page) == "5"
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert "This run is in progress: 5 of 5 rounds done. This page loads itself again every 5 seconds" in text
    assert "did not finish" not in text


def test_any_other_page_stays_as_it_is(make: Make) -> None:
    folder = make()
    page = write_report([folder], folder / "report.html")
    assert reload_of(page) is None
    assert not is_live(page)
    assert finished_summary(folder) is not None


def test_a_run_whose_page_is_still_live_has_not_left_everything(make: Make) -> None:
    """Killed between its summary and its page: the next start writes the page."""
    folder = make()
    assert is_live(write_report([folder], folder / "report.html", live=True))
    assert finished_summary(folder) is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the page goes by."""
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    return now


def test_a_page_is_not_written_too_often(
    make: Make, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the first seconds, and then for a twentieth of the time at most."""
    folder, written = make(), []

    def write(*args: object, **more: object) -> None:
        written.append(clock[0])
        clock[0] += 2.0

    monkeypatch.setattr("fedsb.report.write.write_report", write)
    page = LivePage(folder, 1000)
    while clock[0] < 200:
        clock[0] += 1
        page.follow([{"round": 3}])
    assert written == [5.0, 47.0, 89.0, 131.0, 173.0]


def test_the_page_of_a_run_that_ends_early_stops_reloading(make: Make, clock: list[float]) -> None:
    folder = make(summary=None)
    page, file = LivePage(folder, 9), folder / "report.html"
    clock[0] = 10
    page.follow([{"round": 5}])
    assert is_live(file)
    page.close(finished=False)
    assert not is_live(file)
    assert "This run did not finish" in file.read_text(encoding="utf-8")


def test_the_last_page_is_left_to_the_run(make: Make, clock: list[float]) -> None:
    page = LivePage(make(), 5)
    clock[0] = 10
    page.follow([{"round": 5}])
    page.close(finished=True)
    assert not (page.folder / "report.html").exists()


def test_a_run_shows_its_rounds_as_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_bert(tmp_path / "bert")
    write_data(tmp_path / "data", train=45, test=9)
    monkeypatch.setattr(live, "FEWEST_SECONDS", -1.0)
    monkeypatch.setattr(live, "SHARE", float("inf"))
    seen, file = [], tmp_path / "run" / "report.html"

    class Look(Silent):
        def round_begins(self, *args: object) -> None:
            seen.append(file.read_text(encoding="utf-8"))

    config = classification_config(
        tmp_path / "bert", tmp_path / "data", method__init={"kind": "weights", "head_warmup": None}
    )
    loop.run(RunConfig.from_dict(config), file.parent, progress=Look())
    assert [f"{n} of 3 rounds done" in page for n, page in enumerate(seen)] == [True] * 3
    assert not is_live(file)
