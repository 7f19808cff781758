"""The page stands alone, is well formed, says what is missing, and is written whole or not at all."""

from __future__ import annotations

import base64
import io
import os
import re
import stat
import sys
import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kizu.errors import DataError, KizuError
from kizu.evaluate import Evaluation, Latency
from kizu.report import ReportError, render_report, write_report

WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = "x/<script>alert(1)</script>\"'><img src=http://evil.example/a.png onerror=b()>$a_$&amp;<u onclick=c()>.png"


class Page(HTMLParser):
    """Elements with their attributes and the text of each section; fails on what is not nested properly."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag: str, of_class: str = "") -> list[dict[str, str]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and (not of_class or of_class in attributes.get("class", "").split())
        ]

    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


@dataclass(frozen=True)
class Picture:
    name: str
    good: bool
    kind: str
    value: int
    color: bool = False
    group: str = ""
    error: Exception | None = None

    def read(self) -> NDArray[np.uint8]:
        if self.error is not None:
            raise self.error
        return np.full((40, 400, 3) if self.color else (40, 400), self.value, dtype=np.uint8)


def make(
    good: int = 40, anomalous: int = 25, *, threshold: float | None = 1.5, seed: int = 0, kinds: int = 2
) -> tuple[Evaluation, list[Picture]]:
    rng = np.random.default_rng(seed)
    n = good + anomalous
    labels = np.arange(n) >= good
    pictures = [
        Picture(
            f"part/{index:05d}.png",
            not labels[index],
            "good" if index < good else f"flaw {index % kinds}",
            index % 256,
        )
        for index in range(n)
    ]
    stages = np.abs(rng.normal(1e-3, 1e-4, (4, n)))
    evaluation = Evaluation(
        names=tuple(each.name for each in pictures),
        kinds=tuple(each.kind for each in pictures),
        groups=tuple(each.name for each in pictures),
        labels=labels,
        scores=rng.normal(size=n) + 2.5 * labels,
        threshold=threshold,
        latency=Latency(*stages),
    )
    return evaluation, pictures


HISTORY = [
    {"epoch": epoch, "loss_D": 1 / epoch, "loss_G": -1 / epoch}
    | ({"val_auroc": 0.5 + epoch / 100, "val_good": -epoch / 7} if epoch % 8 == 0 else {"val_auroc": None})
    for epoch in range(1, 33)
]


def render(evaluation: Evaluation, **options: object) -> str:
    arguments: dict[str, object] = {"bundle_info": {"method": "algan_image"}, "created": WHEN} | options
    return render_report(evaluation, **arguments)  # type: ignore[arg-type]


def assert_stands_alone(html: str) -> None:
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "foreignobject"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href", "srcset", "poster", "data", "action"}:
                assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:60])
            assert not re.search(r"url\((?!#)", value)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_holds_what_was_measured() -> None:
    evaluation, pictures = make()
    html = render(
        evaluation,
        history=HISTORY,
        chosen_epoch=24,
        samples=pictures,
        title="Tiles",
        runtime_info={"machine": "two cores", "engine": "openvino", "threads": 2},
        bundle_info={
            "method": "algan_image",
            "input_size": [256, 256],
            "lambda": 0.1,
            "seed": None,
            "versions": {"kizu": "0.1.0"},
        },
    )
    assert_stands_alone(html)
    assert not re.search(r"https?:", html)
    page = Page(html)
    words = page.words()
    counts, intervals = evaluation.confusion, evaluation.area_intervals
    assert counts is not None
    assert intervals is not None
    for expected in (
        f"{evaluation.auroc:.3f}",
        f"{intervals.auroc.low:.3f} to {intervals.auroc.high:.3f}",
        f"{evaluation.aupr:.3f}",
        f"{evaluation.f1:.3f}",
        f"{counts.false_positive} of 40; 95 % interval",
        f"{counts.false_negative} of 25; 95 % interval",
        "At the threshold 1.50",
        "two cores",
        "openvino",
        "256, 256",
        "not recorded",
        "kizu 0.1.0",
        "the epoch that was kept, 24",
        "2026-01-02 03:04 UTC",
    ):
        assert expected in words, expected
    labels = [each["aria-label"] for each in page.all("svg", "plot")]
    assert labels == [
        "Histogram of the anomaly scores of good and of anomalous images",
        f"ROC curve, area {evaluation.auroc:.3f}",
        "Training losses by epoch",
        "Validation areas by epoch",
        "Other validation figures by epoch",
    ]
    # A style sheet inside a figure would apply to the whole page.
    assert len(page.all("style")) == 1


def test_ids_are_unique_and_all_references_resolve() -> None:
    evaluation, pictures = make()
    html = render(evaluation, history=HISTORY, samples=pictures)
    ids = [attributes["id"] for _, attributes in Page(html).elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20
    references = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    references |= set(re.findall(r'aria-labelledby="([^"]+)"', html))
    assert references <= set(ids)
    assert html == render(evaluation, history=HISTORY, samples=pictures)


def test_pictures_are_the_hardest_and_the_clearest() -> None:
    evaluation, pictures = make()
    page = Page(render(evaluation, samples=pictures, examples=3, thumbnail=100))
    expected = [
        evaluation.names[index]
        for good, highest in ((False, False), (False, True), (True, True), (True, False))
        for index in evaluation.ranked(good=good, highest=highest, count=3)
    ]
    shown = page.all("img", "thumb")
    assert [each["alt"] for each in shown] == expected
    by_name = {each.name: each for each in pictures}
    for each in shown:
        image = Image.open(io.BytesIO(base64.b64decode(each["src"].split(",", 1)[1])))
        assert image.size == (100, 10)
        assert image.getextrema() == (by_name[each["alt"]].value,) * 2
    rejected = evaluation.rejected
    assert rejected is not None
    wrong = sum(
        bool(rejected[index]) != bool(evaluation.labels[index])
        for name in expected
        for index in [evaluation.names.index(name)]
    )
    assert 0 < wrong == len(page.all("figure", "wrong"))


def test_color_pictures_and_pictures_that_cannot_be_read() -> None:
    evaluation, pictures = make(2, 2)
    shown: list[Picture] = [
        Picture(pictures[0].name, True, "good", 7, color=True),
        Picture(pictures[1].name, True, "good", 7, error=DataError("moved")),
        Picture(pictures[2].name, False, "flaw", 7, error=OSError("gone")),
    ]
    page = Page(render(evaluation, samples=shown))
    assert len(page.all("img", "thumb")) == 1
    assert page.words().count("cannot be read") == 2
    assert page.words().count("no picture") == 1


@pytest.mark.filterwarnings("error")
def test_hostile_names_stay_text() -> None:
    evaluation, _ = make(3, 2)
    hostile = Evaluation(
        names=(HOSTILE, *evaluation.names[1:]),
        kinds=(HOSTILE, *evaluation.kinds[1:]),
        groups=evaluation.groups,
        labels=evaluation.labels,
        scores=evaluation.scores,
        threshold=evaluation.threshold,
    )
    html = render(
        hostile,
        title=HOSTILE,
        samples=[Picture(HOSTILE, True, HOSTILE, 3)],
        bundle_info={HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}},
        runtime_info={"machine": HOSTILE},
        history=[{"epoch": 1, f"loss{HOSTILE}": 1.0}, {"epoch": 2, f"loss{HOSTILE}": 2.0, "val $x^$": "3"}],
    )
    assert_stands_alone(html)
    page = Page(html)
    assert "<script" not in html
    assert [each["alt"] for each in page.all("img")] == [HOSTILE]
    assert page.words().count("<script>alert(1)") >= 5


def test_missing_history_is_said() -> None:
    evaluation, _ = make()
    for history in (None, [], [{"epoch": 1, "lr": 0.1}], [{"epoch": 1, "loss_D": float("nan")}]):
        html = render(evaluation, history=history)
        assert "there is no training curve" in Page(html).words()
        assert len(Page(html).all("svg", "plot")) == 2


def test_history_from_a_csv_file() -> None:
    evaluation, _ = make()
    rows = [
        {"epoch": "1", "loss_D": "0.5", "val_auroc": ""},
        {"epoch": "2", "loss_D": "0.4", "val_auroc": "0.9"},
    ]
    labels = [each["aria-label"] for each in Page(render(evaluation, history=rows)).all("svg", "plot")]
    assert labels[2:] == ["Training losses by epoch", "Validation areas by epoch"]


def test_no_anomalous_images() -> None:
    html = render(make(30, 0)[0])
    words = Page(html).words()
    assert_stands_alone(html)
    assert "needs anomalous images; there are none" in words
    assert "No ROC curve: it needs images of both classes, and there are no anomalous ones." in words
    assert "There are no anomalous images." in words
    assert "0.0 %" not in words.split("Misses")[1].split("Images")[0]


def test_no_good_images() -> None:
    words = Page(render(make(0, 30)[0])).words()
    assert "needs good images; there are none" in words
    assert "there are no good ones" in words


def test_no_threshold_and_no_latency() -> None:
    evaluation, pictures = make(threshold=None)
    untimed = Evaluation(
        names=evaluation.names,
        kinds=evaluation.kinds,
        groups=("one part",) * len(evaluation.names),
        labels=evaluation.labels,
        scores=evaluation.scores,
        threshold=None,
    )
    page = Page(render(untimed, samples=pictures))
    assert "No threshold is set" in page.words()
    assert "No frame was timed" in page.words()
    assert "Some parts are pictured more than once" in page.words()
    assert not page.all("span", "badge")
    assert not page.all("path", "threshold")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "scores",
    [
        [0.0] * 6,
        [-5.0, 1e300, 2.0, 3.0, -1e300, 0.0],
        [1e-200, 2e-200, 3e-200, 4e-200, 5e-200, 6e-200],
        [1e12 + index for index in range(6)],
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    ],
)
def test_scores_of_any_scale(scores: list[float]) -> None:
    evaluation, _ = make(3, 3)
    page = render(
        Evaluation(
            evaluation.names,
            evaluation.kinds,
            evaluation.groups,
            evaluation.labels,
            np.array(scores),
            threshold=float(np.median(scores)),
        )
    )
    assert_stands_alone(page)
    assert "nan" not in Page(page).words()
    assert not re.search(r'd="[^"]*(nan|inf)', page)


def test_a_large_set_makes_a_page_of_a_normal_size() -> None:
    evaluation, _ = make(6000, 6000, kinds=60)
    page = render(evaluation)
    assert len(page) < 1_500_000
    assert "37 more kinds" in Page(page).words()
    assert max(each["d"].count("M") for each in Page(page).all("path", "marks")) == 200


def test_outliers_do_not_flatten_the_histogram() -> None:
    evaluation, _ = make(200, 200)
    scores = evaluation.scores.copy()
    scores[-1] = 1e6
    page = render(
        Evaluation(
            evaluation.names,
            evaluation.kinds,
            evaluation.groups,
            evaluation.labels,
            scores,
            evaluation.threshold,
        )
    )
    assert "1 score beyond the axis is in the outermost bars" in Page(page).words()


def test_global_matplotlib_state_is_left_alone() -> None:
    import matplotlib as mpl

    before, loaded = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render(make()[0], history=HISTORY)
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


# --- writing --------------------------------------------------------------------------------------


def test_written_whole_with_ordinary_permissions(tmp_path: Path) -> None:
    evaluation, pictures = make()
    path = tmp_path / "new" / "folder" / "report.html"
    write_report(render(evaluation, bundle_info={"method": "m"}, samples=pictures, history=HISTORY), path)
    assert path.read_text(encoding="utf-8") == render(
        evaluation, bundle_info={"method": "m"}, samples=pictures, history=HISTORY
    )
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    evaluation, _ = make(2, 2)
    name = os.fsdecode(b"caf\xe9.png")
    odd = Evaluation(
        (name, *evaluation.names[1:]),
        evaluation.kinds,
        evaluation.groups,
        evaluation.labels,
        evaluation.scores,
        evaluation.threshold,
    )
    write_report(render(odd, bundle_info={}), tmp_path / "report.html")
    assert "caf?.png" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def failing_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)


@pytest.mark.usefixtures("failing_replace")
def test_a_failure_while_writing_leaves_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("the old page")
    with pytest.raises(ReportError, match=r"report.html: the report cannot be written: No space left"):
        write_report(render(make()[0], bundle_info={}), path)
    assert path.read_text() == "the old page"
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_a_failure_while_drawing_leaves_the_old_page(tmp_path: Path) -> None:
    class Broken(dict[str, object]):
        def items(self) -> object:  # type: ignore[override]
            raise RuntimeError("broken")

    path = tmp_path / "report.html"
    path.write_text("the old page")
    with pytest.raises(RuntimeError, match="broken"):
        write_report(render(make()[0], bundle_info=Broken(a=1)), path)
    assert path.read_text() == "the old page"
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot be written"):
        write_report(render(make()[0], bundle_info={}), tmp_path / "file" / "report.html")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(KizuError, match=r'pip install "kizu\[report\]"'):
        write_report(render(make()[0], bundle_info={}), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
