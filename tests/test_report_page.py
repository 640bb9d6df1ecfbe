"""The report page: what it says is what was measured, and a real browser shows it without a fault."""

from __future__ import annotations

import builtins
import html
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import faiss
import numpy as np
import pytest
from conftest import make_vectors

from faiss_qama.cli.app import cli
from faiss_qama.comparison.methods import measure_alternatives
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation import recall
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.index_spec import IndexSpec
from faiss_qama.pipeline import fit_index
from faiss_qama.quantizer.calibration import KS
from faiss_qama.report import page as report_page
from faiss_qama.report.page_charts import page_charts
from faiss_qama.report.tables import fit_summary
from faiss_qama.training import FitConfig
from faiss_qama.training.pairs import read_pairs
from faiss_qama.training.train_config import TrainConfig

pytestmark = pytest.mark.slow

VOID = {"wbr", "meta", "link", "br", "hr", "img", "input"}
HOSTILE = "<script>alert(1)<_script>&\"'.npy"
COMMAND = "faiss-qama fit '<b>x</b>.npy' --report r.html"


class Page(HTMLParser):
    """The elements of a page with their attributes; fails where one is not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements, self.text, self.rows = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def made(folder, x, name="corpus.npy", rescore="fp16", pairs=None, **settings):
    np.save(folder / name, x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fitted on")
        outcome = fit_index(
            Corpus(folder / name),
            folder / "corpus.qama",
            FitConfig(**settings),
            faiss.METRIC_INNER_PRODUCT,
            IndexSpec(rescore=rescore),
            pairs=pairs,
            compare=True,
        )
    report_page.write_page(outcome, folder / "report.html", COMMAND)
    return outcome, folder / "report.html"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    train = TrainConfig(epochs=2, steps_per_epoch=3)
    return made(tmp_path_factory.mktemp("page"), make_vectors(1200), HOSTILE, layout="2x18", train=train)


LOSSES = {"adc.contrastive": 1, "hamming.contrastive": 1}


@pytest.fixture(scope="module")
def from_pairs(tmp_path_factory):
    """What was fitted on pairs and re-ranks from codes; and the same with float16 vectors."""
    x, rng = make_vectors(800), np.random.default_rng(1)
    rows = rng.integers(0, 500, 400)
    xq = x[rows] + rng.standard_normal((400, 36)) * ([1.5] * 12 + [0.1] * 24)  # a third of the dimensions mislead
    train = TrainConfig(epochs=3, steps_per_epoch=30, learning_rate=0.003, losses=LOSSES)
    pairs = read_pairs(xq, [(q, d, 1) for q, d in enumerate(rows)], Corpus(x))
    settings = {"pairs": pairs, "layout": "2x18", "train": train}
    return {
        rescore: made(tmp_path_factory.mktemp(rescore), x, rescore=rescore, **settings) for rescore in ("codes", "fp16")
    }


def test_what_learned_from_pairs_is_judged_by_relevance(from_pairs):
    outcome, path = from_pairs["codes"]
    assert outcome.untrained is not None
    headline, _ = report_page.summary(outcome)
    exact, codes = (method.mean.values["ndcg"] for method in (outcome.measured[0], outcome.measured[-1]))
    share, low, high = map(float, re.search(r"([\d.]+) % \(([\d.]+) to ([\d.]+)\) of the nDCG@10", headline).groups())
    assert share == pytest.approx(100 * codes.mean() / exact.mean(), abs=0.06)
    assert low < share < high
    tile = re.search(r"nDCG@10, codes only</dt><dd><strong>([\d.]+)", path.read_text())
    assert float(tile[1]) == pytest.approx(codes.mean(), abs=6e-4)


@pytest.mark.parametrize("rescore", ["codes", "fp16"])
def test_what_the_training_was_worth_compares_codes_with_codes(from_pairs, rescore):
    outcome, _ = from_pairs[rescore]
    _, note = report_page.summary(outcome)
    gains = [float(gain) for gain in re.findall(r"by ([+-][\d.]+) %", note)]
    names = [method.name for method in outcome.measured]
    codes = outcome.measured[names.index("codes only")].mean.values["ndcg"]
    before, seen = outcome.untrained.mean.values["ndcg"], outcome.split.test_seen
    assert gains == pytest.approx([100 * (codes[k].mean() / before[k].mean() - 1) for k in (seen, ~seen)], abs=0.06)


def test_the_page_is_well_formed_loads_nothing_and_runs_nothing(trained):
    page = Page(trained[1].read_text())
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "iframe", "object", "img", "foreignobject"} & set(tags)
    loads = {"src", "href", "xlink:href", "action", "data", "srcset"}
    links = [value for _, attrs in page.elements for name, value in attrs.items() if name in loads]
    assert links
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert not re.search(r"@import|url\((?!#)", trained[1].read_text())
    assert "#0102" not in trained[1].read_text()  # every stand-in became a variable of the style sheet


def test_hostile_names_are_text(trained):
    text = trained[1].read_text()
    assert HOSTILE not in text
    assert HOSTILE in html.unescape(text)
    assert COMMAND in "".join(Page(text).text)


def test_ids_are_unique_but_for_equal_definitions(trained):
    ids = {}
    for tag, attrs in Page(trained[1].read_text()).elements:
        if "id" in attrs:
            assert ids.setdefault(attrs["id"], tag) == tag
    assert not [i for i in ids if re.match("figure|axes|patch|text", i)]


def test_its_numbers_are_those_of_the_outcome(trained):
    outcome, path = trained
    page = Page(path.read_text())
    text = "".join(page.text)
    assert fit_summary(outcome) in text
    faster = float(re.search(r"at ([\d.]+) times the speed of exact search", text)[1])
    assert f"{faster} times as fast" in text
    assert f"{faster} times exact search" in text
    printed = re.findall(r"^(?:exact floats|codes \+ fp16 re-ranking) .* ([\d,]+)$", fit_summary(outcome), re.M)
    slow, fast = (float(speed.replace(",", "")) for speed in printed)
    assert faster == pytest.approx(fast / slow, rel=0.01, abs=0.05)  # of what the command prints
    for sentences in report_page.summary(outcome):
        assert sentences in text
    rows = [tuple(row) for row in page.rows]
    for measured in outcome.measured:
        mean, size = measured.mean, " + ".join(str(part) for part in measured.bytes if part)
        assert (measured.name, size, f"{mean.recall:.3f}", f"{mean.queries_per_second:,.0f}") in rows
    for trial in outcome.choice.trials:
        name = f"{trial.layout} {trial.rotation}" + " (chosen)" * (trial is outcome.choice.chosen)
        assert (name, str(trial.bytes), f"{trial.recall():.3f}") in [row[:3] for row in rows]
    calibration = outcome.index.quantizer.calibration
    row = KS.index(10)
    assert ("10", f"{calibration.floats[row, 0]:.3f}", f"{calibration.codes[row, 0]:.3f}") in rows
    for line in outcome.index.quantizer.fit_record.training.log:
        assert (str(line["epoch"]), f"{sum(line['losses'].values()):.4g}", f"{100 * line['gain']:+.2f}") in rows


@pytest.fixture(scope="module")
def of_two_codes(tmp_path_factory):
    return made(tmp_path_factory.mktemp("two"), make_vectors(1200), rescore="codes", layout="2x12,1.5x6+2x8,1x12")


def test_a_second_code_is_memory_and_is_named(of_two_codes):
    outcome, path = of_two_codes
    shared = sum(array.nbytes for array in outcome.index.quantizer.to_state()[0].values())
    own = sum(outcome.index.bytes_per_vector)
    total = f"{(1200 * own + shared) / 1000:.1f} kB"
    assert report_page.summary(outcome)[0].startswith(
        f"1,200 vectors of 36 dimensions take {total} of memory: {own} bytes each, "
        f"and {shared / 1000:.1f} kB for the quantizer that they share. As float32 they take 172.8 kB."
    )
    assert f"<dt>memory</dt><dd><strong>{total}</strong>" in path.read_text()
    assert f": {total} of memory ({shared / 1000:.1f} kB the quantizer)\n" in fit_summary(outcome)
    page = Page(path.read_text())
    assert ["residual code", "8 components of 4 levels (2 bits), 12 components of 2 levels (1 bit)"] in page.rows
    text = "".join(page.text)
    assert "on disk" not in text


def test_what_the_first_code_leaves_over_is_drawn_with_the_second(of_two_codes):
    outcome, _ = of_two_codes
    chart = next(chart for chart in page_charts(outcome) if chart.title == "Bits by component")
    x, first = outcome.split.train, outcome.index.quantizer.truncate(outcome.index.quantizer.layout.components)
    left = x - first.decode_unnormalized(first.encode(x))
    shares = [float(row[3]) for row in chart.rows]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100 * left.var(axis=0).sum() / x.var(axis=0).sum(), abs=0.02)
    assert [row[4] for row in chart.rows] == ["2"] * 8 + ["1"] * 12 + ["0"] * 16


def test_every_chart_says_in_words_what_it_shows(trained):
    charts = [attrs for tag, attrs in Page(trained[1].read_text()).elements if tag == "svg"]
    assert len(charts) == 6  # with the training
    assert all(attrs["role"] == "img" and re.search(r"\d", attrs["aria-label"]) for attrs in charts)


def test_it_says_whether_documents_stood_in_for_queries(trained, tmp_path):
    outcome, path = trained
    assert "Documents stood in for queries: recall was measured with 120 held-out documents" in path.read_text()
    queries = replace(outcome.split, train_queries=make_vectors(80, seed=1))
    _, note = report_page.summary(replace(outcome, split=queries))
    assert note == "It was measured with 120 held-out queries, which the fit did not use."


def test_it_says_why_where_codes_alone_are_slower_than_floats(trained):
    outcome, _ = trained
    for codes, floats in ((10.0, 20.0), (20.0, 10.0)):
        speeds = [1.0, codes, floats]
        measured = [
            replace(m, results=[replace(m.mean, queries_per_second=speed)])
            for m, speed in zip(outcome.measured, speeds, strict=True)
        ]
        (chart,) = (c for c in page_charts(replace(outcome, measured=measured)) if "exact search" in c.title)
        assert ("the score of a candidate sums a weight" in chart.caption) == (codes < floats)


def test_the_default_recall_is_one_number_and_what_is_aimed_at_is_explained(trained):
    outcome, _ = trained
    (chart,) = (chart for chart in page_charts(outcome) if chart.title == "Recall by number of candidates")
    key = dict(chart.key)
    assert key["recall by default"] == "0.95"
    assert key["recall with them here"] == "0.975 or more: half of the misses are kept for harder queries"


def test_the_summary_never_says_more_than_was_measured(trained):
    outcome, _ = trained
    shown = float(re.search(r"finds ([\d.]+) %", report_page.summary(outcome)[0])[1])
    assert 0 <= 100 * outcome.measured[-1].mean.recall - shown < 0.1 + 1e-3


def test_the_variance_is_that_of_singular_values(trained):
    outcome, _ = trained
    chart = next(chart for chart in page_charts(outcome) if chart.title == "Bits by component")
    sample = outcome.split.train.astype(np.float64)
    singular = np.linalg.svd(sample - sample.mean(axis=0), compute_uv=False) ** 2
    np.testing.assert_allclose([float(row[1]) for row in chart.rows], 100 * singular / singular.sum(), atol=6e-4)
    assert [row[2] for row in chart.rows] == ["2"] * 18 + ["0"] * 18


@pytest.mark.parametrize("half", ["0.5", "0.5or"])
def test_half_bits_belong_to_pairs(tmp_path, half):
    outcome, _ = made(tmp_path, make_vectors(200, d=20), layout=f"2x4,{half}x12")
    chart = next(chart for chart in page_charts(outcome) if chart.title == "Bits by component")
    assert [row[2] for row in chart.rows] == ["2"] * 4 + ["0.5"] * 12 + ["0"] * 4
    assert ("code", "4 components of 4 levels (2 bits), 12 components of 2 levels per pair (0.5 bits)") in chart.key
    assert ("components without bits", "4") in chart.key


def test_alternatives_are_measured_as_the_layouts_were(trained):
    outcome, _ = trained
    x, xq = outcome.split.train, outcome.split.validation
    index = faiss.IndexScalarQuantizer(x.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index.train(x)
    index.add(x)
    dataset = Dataset(Corpus(x), xq)
    expected = recall.evaluate(index, dataset, recall.exact(dataset, 10, faiss.METRIC_INNER_PRODUCT)).recall
    found = {m.name: m for m in measure_alternatives(dataset, 10, faiss.METRIC_INNER_PRODUCT)}
    assert found["scalar"].mean.recall == pytest.approx(expected)
    assert found["faiss:PQ9x4np"].bytes == (5, 0)


@pytest.mark.parametrize("n", [2, 15, 120])
def test_a_corpus_too_small_to_choose_by_still_gets_a_page(tmp_path, n):
    outcome, path = made(tmp_path, make_vectors(n, d=5))
    assert outcome.choice is None
    text = "".join(Page(path.read_text()).text)
    assert "Recall by bytes" not in text
    assert "Bits by component" in text
    assert ("too small" in report_page.summary(outcome)[1]) == (n < 10)


@pytest.fixture
def no_matplotlib(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name, name="matplotlib")
        return real(name, *arguments, **options)

    for module in ("page", "page_charts", "charts"):
        monkeypatch.delitem(sys.modules, f"faiss_qama.report.{module}")
    monkeypatch.setattr(builtins, "__import__", without)


def test_without_matplotlib_it_says_what_to_install_before_anything_is_fitted(tmp_path, no_matplotlib):
    np.save(tmp_path / "corpus.npy", make_vectors(50))
    command = ["fit", str(tmp_path / "corpus.npy"), "--report", str(tmp_path / "r.html")]
    with pytest.raises(ImportError, match=r"pip install '.\[report\]' in the clone"):
        cli(command, standalone_mode=False)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.npy"]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("none/r.html", "does not exist"),
        (".", "a folder is in the way"),
        ("corpus.npy", "would be replaced"),
        ("corpus.qama", "would be replaced"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_fitted(tmp_path, page, message):
    np.save(tmp_path / "corpus.npy", make_vectors(50))
    with pytest.raises((OSError, ValueError), match=message):
        cli(["fit", str(tmp_path / "corpus.npy"), "--report", str(tmp_path / page)], standalone_mode=False)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.npy"]


def test_the_command_on_the_page_is_the_one_that_was_typed(tmp_path):
    np.save(tmp_path / "my corpus.npy", make_vectors(300))
    typed = ["fit", "my corpus.npy", "--layout", "2x18", "-o", "a.qama", "--report", "r.html"]
    done = subprocess.run(
        [sys.executable, "-m", "faiss_qama", *typed], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "wrote r.html"
    command = "faiss-qama fit 'my corpus.npy' --layout 2x18 -o a.qama --report r.html"
    assert command in "".join(Page((tmp_path / "r.html").read_text()).text)


@pytest.fixture(scope="module")
def browser():
    driver = shutil.which("chromedriver")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if driver is None or binary is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        yield chrome


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it(browser, trained, width, scheme):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(Path(trained[1]).as_uri())
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(s => [s.clientWidth, s.clientHeight])"
    )
    assert len(sizes) == 6
    assert all(200 < w <= width and 100 < h for w, h in sizes)
    heights = browser.execute_script(
        "return [...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
    )
    assert min(heights) >= 9  # pixels: readable
    ink, paper = browser.execute_script(
        "const rgb = c => c.match(/\\d+/g).map(Number).reduce((a, b) => a + b);"
        "const text = getComputedStyle(document.querySelector('svg text')).fill;"
        "return [rgb(text), rgb(getComputedStyle(document.querySelector('.card')).backgroundColor)]"
    )
    assert (ink < paper) == (scheme == "light")
    assert abs(ink - paper) > 200


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_breaks_a_long_layout(browser, of_two_codes, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(Path(of_two_codes[1]).as_uri())
    overflows = "return [...document.querySelectorAll('.tiles strong')].map(t => t.scrollWidth - t.clientWidth)"
    assert max(browser.execute_script(overflows)) <= 0


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 900, 1300])
@pytest.mark.parametrize("page", ["trained", "of_two_codes", "from_pairs"])
def test_a_browser_clips_no_table_and_leaves_no_hole_in_a_card(browser, request, page, width):
    _, path = request.getfixturevalue(page)["fp16"] if page == "from_pairs" else request.getfixturevalue(page)
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(Path(path).as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    clipped = "return [...document.querySelectorAll('.scroll')].map(t => t.scrollWidth - t.clientWidth)"
    assert max(browser.execute_script(clipped)) <= 0
    holes = browser.execute_script(
        "return [...document.querySelectorAll('figure.card')].map(card => {"
        "  const boxes = [...card.children].map(part => part.getBoundingClientRect());"
        "  return boxes.slice(1).map((box, i) => box.top - boxes[i].bottom);"
        "}).flat()"
    )
    assert max(holes) < 40  # pixels, margins included


@pytest.mark.browser
def test_a_browser_opens_every_table_of_numbers(browser, trained):
    browser.get(Path(trained[1]).as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return [...document.querySelectorAll('table')].every(t => t.clientHeight > 0)")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
