"""The report and the card: self-contained, valid, escaped, and true to validation.json."""

import colorsys
import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import random_networks
from huggingface_hub import ModelCard

from stars_deploy import files
from stars_deploy.graph.metadata import GraphMetadata, metadata_of, with_metadata
from stars_deploy.graph.writer import write_graph
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.bundle import Golden, write_golden, write_manifest
from stars_deploy.validation.card import card_text
from stars_deploy.validation.report import report_html
from stars_deploy.workflow.samples import random_images

HOSTILE = '<script>alert("1")</script>|`$x^2$`'
VOID = {"meta", "link", "img", "br", "hr", "input"}


def write_folder(path):
    """A bundle of a network whose first class has a hostile name; no target needed."""
    graph = random_networks.random_graph(21, blocks=3, dyadic=True, pools=False, steps=(4, 4))
    metadata = metadata_of(graph)
    outputs = graph.nodes["fc"].weight.shape[0]
    names = (HOSTILE, *(f"class {index}" for index in range(1, outputs)))
    known = GraphMetadata(metadata.T, metadata.mean, metadata.std, names)
    graph = with_metadata(graph, known)
    path.mkdir()
    write_graph(graph, path / "graph.nir")
    shape = tuple(int(x) for x in graph.nodes["input"].input_type["input"])
    answer = FloatEngine(graph).run(random_images(3, shape))
    answer.logits[:, 0] = answer.logits.max() + 1  # so that the hostile class is predicted
    golden = Golden(
        random_images(3, shape), np.zeros(3, np.int64), "random",
        {"float": answer.logits}, {"float": answer.spikes},
    )  # fmt: skip
    write_golden(path / "golden.npz", golden)
    source = {"kind": "nir", "name": HOSTILE, "sha256": "0" * 64}
    write_manifest(path, source, None, ["nir", "onnx"], {"golden": 0})
    return path, graph


def layer(name, state="active", mismatches=0):
    return {
        "name": name, "neurons": 1234, "rate": 0.1234, "state": state, "spikes_reference": 5678,
        "spikes_target": 5679, "relative_difference": 1 / 5678, "mismatches": mismatches,
        "isolated_mismatches": mismatches, "near_ties": 0, "isolated_relative_difference": 0.0456,
        "first_step": 2 if mismatches else None, "first_at": None,
    }  # fmt: skip


def verdict(engine="integer", verdict="pass", **changes):
    document = {
        "schema": 1, "verdict": verdict, "reason": None if verdict == "pass" else "lif2: 7 differ",
        "profile": "loihi2", "engine": {"name": engine, "version": "9.9", "kind": "simulated"},
        "reference": {"engine": "float", "device": "cpu", "recorded": False}, "training": None,
        "images": "evaluation", "n": 2000,
        "accuracy": {"reference": 0.91, "target": 0.9049, "delta": -0.0051}, "agreement": 0.98,
        "layers": [layer("lif1"), layer("lif2", "silent", 7), layer("lif3", "saturated")],
        "first_divergence": {"node": "lif2", "image": 11, "step": 2, "neuron": [0, 3, 5],
                             "reference": 1, "target": 0, "margin": 0.0078, "near_tie": False},
        "readout": {"max_abs_difference": 0.0123, "isolated_max_abs_difference": None},
        "energy": [{"name": "total", "value": 12345.6, "unit": "nJ/image", "kind": "modeled",
                    "source": "Davies 2018"}],
        "tolerances": {"accuracy_delta": 0.01, "source": "choice"},
        "findings": [{"code": "x", "severity": "warning", "node": "lif2", "message": HOSTILE,
                      "value": None, "limit": None, "remedy": "do this"}],
        "also": [{"engine": {"name": "lava-netx", "version": "0.10.0", "kind": "simulated"},
                  "layers": [layer("lif1")], "first_divergence": None,
                  "readout": {"max_abs_difference": 0.0}}],
        "engines_not_run": [{"name": "lava", "reason": "not built"}],
        "command": "stars-deploy validate bundle --profile loihi2 --engine " + engine,
        "tool_version": "0.1.0", "manifest_sha256": "f" * 64, "earlier": [],
    }  # fmt: skip
    return {**document, **changes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("report") / "bundle")


@pytest.fixture(scope="module")
def page(folder):
    path, graph = folder
    return report_html(path, graph, verdict())


class Checker(HTMLParser):
    """Collects tags, attributes and visible text; every element must be closed in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.attributes, self.text, self.ids = [], [], [], []
        self.tags, self.elements = [], []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        self.tags.append(tag)
        self.elements.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


def parsed(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_first_difference_is_said_once_with_its_place(page):
    text = " ".join("".join(parsed(page).text).split())
    assert text.count("First difference:") == 1
    assert "lif2, image 11, step 2, neuron (0, 3, 5): 0 instead of 1, H − Vth = 0.0078." in text


def test_page_is_well_formed_and_named(page):
    checker = parsed(page)
    assert page.startswith("<!doctype html>")
    assert ("html", "lang", "en") in checker.attributes
    assert any(name == "content" and "width=device-width" in v for _, name, v in checker.attributes)


def test_page_fetches_nothing(page):
    checker = parsed(page)
    for tag, name, value in checker.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
    assert {tag for tag, *_ in checker.attributes} & {
        "script",
        "iframe",
        "object",
        "embed",
    } == set()
    assert "@import" not in page and "@font-face" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_hostile_names_are_shown_as_text(page):
    assert "<script" not in page and "alert(&#34;1&#34;)" in page
    text = "".join(parsed(page).text)
    assert text.count(HOSTILE) >= 4  # title, label, prediction, finding


def test_page_follows_scheme_width_and_printer(page):
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 30rem"):
        assert rule in page
    # Figures take their colours from the page: none is fixed to one scheme.
    figures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--reference)" in figures and "var(--ink)" in figures
    assert not re.search(r"(fill|stroke): ?#", figures)


def test_page_shows_the_numbers_of_the_verdict(page):
    text = " ".join("".join(parsed(page).text).split())
    for shown in (
        "90.49 %", "91.00 %", "1,234", "5,678", "5,679", "silent", "saturated", "active",
        "simulated", "modeled", "12,346 nJ/image", "Davies 2018", "not run", "not built",
        "lava-netx", "stars-deploy validate bundle --profile loihi2 --engine integer",
        "do this", "f" * 64, "2,000",
    ):  # fmt: skip
        assert shown in text, shown
    assert "What failed" not in text
    assert "lif1: 800 neurons" in text  # the raster's panels


def test_ids_are_unique_and_references_meet_one(folder):
    path, graph = folder
    page = report_html(path, graph, verdict(earlier=[verdict("onnx")]))
    ids = parsed(page).ids
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:aria-labelledby="|href="#|url\(#)([^")]+)', page))
    assert len(used) > 10 and used <= set(ids)


def test_headings_pictures_and_tables_are_for_everyone(page):
    checker = parsed(page)
    levels = [int(tag[1]) for tag in checker.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    named = {"img": "alt", "svg": "aria-label", "th": "scope"}
    for tag, attributes in checker.elements:
        if tag in named and attributes.get("aria-hidden") != "true":
            assert attributes.get(named[tag]), (tag, attributes)
        if attributes.get("tabindex") == "0":
            assert attributes["role"] == "region" and attributes["aria-label"]
    regions = [x["aria-label"] for _, x in checker.elements if x.get("role") == "region"]
    assert len(regions) == len(set(regions)) > 3


def test_contents_list_leads_to_every_section(page):
    checker = parsed(page)
    linked = {x["href"][1:] for tag, x in checker.elements if tag == "a"}
    sections = {x["aria-labelledby"] for tag, x in checker.elements if tag == "section"}
    assert sections == linked and len(sections) >= 9


def luminance(colour):
    """Relative luminance of #rrggbb, WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_texts_have_contrast_in_both_schemes(page):
    schemes = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
               for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL)[:2]]  # fmt: skip
    pairs = [(ink, back) for ink in ("ink", "muted", "reference") for back in ("page", "surface")]
    pairs += [(kind, f"{kind}-back") for kind in ("good", "bad", "warn")]
    pairs += [(kind, "surface") for kind in ("bad", "warn", "target")]
    assert schemes[0] != schemes[1]
    for scheme in schemes:
        for ink, back in pairs:
            assert contrast(scheme[ink], scheme[back]) >= 4.5, (ink, back)


def test_numbers_of_cores_have_contrast_on_every_hue(page):
    blocks = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    assert len(blocks) == 3  # light, dark, print
    for block in blocks:
        ink = re.search(r"--core-ink: (#[0-9a-f]{6})", block)[1]
        for name in ("core", "core-back"):
            share = re.search(rf"--{name}: (\d+)% (\d+)%", block)
            saturation, light = (int(value) / 100 for value in share.groups())
            for hue in range(0, 360, 5):
                rgb = colorsys.hls_to_rgb(hue / 360, light, saturation)
                back = "#" + "".join(f"{round(255 * x):02x}" for x in rgb)
                assert contrast(ink, back) >= 4.5, (name, hue)


def test_failed_page_says_so_first(folder):
    path, graph = folder
    document = verdict(verdict="fail", earlier=[verdict("onnx", accuracy=None)])
    page = report_html(path, graph, document)
    text = " ".join("".join(parsed(page).text).split())
    assert "1 of 2 comparisons failed" in text and "integer: lif2: 7 differ" in text
    assert "onnx against float" in text
    assert text.index("What failed") < text.index("Accuracy")


def test_engine_that_ran_earlier_is_not_listed_as_not_run(folder):
    path, graph = folder
    missing = [{"name": "lava", "reason": "not built"}, {"name": "onnx", "reason": "not asked for"}]
    document = verdict(engines_not_run=missing, earlier=[verdict("onnx")])
    page = report_html(path, graph, document)
    assert "not built" in page and "not asked for" not in page


def test_unlabelled_verdict_says_that_accuracy_is_unknown(folder):
    path, graph = folder
    page = report_html(path, graph, verdict(accuracy=None))
    assert "no accuracy is known" in page


def test_training_without_spikes_and_a_picture(tmp_path):
    path, graph = write_folder(tmp_path / "bundle")
    training = {"n": 2000, "device": "cpu", "accuracy": 0.8765, "data": HOSTILE}
    training |= {"spikes": {}, "T": 4}
    files.write_json(path / "training.json", training)
    (path / "synthetic.png").write_bytes(b"\x89PNG")
    rows = [
        {
            **layer("lif1"),
            "mismatches": None,
            "isolated_mismatches": None,
            "near_ties": None,
            "isolated_relative_difference": None,
        }
    ]
    document = verdict(
        "float", layers=rows, agreement=None,
        reference={"engine": "training", "device": "cpu", "recorded": True},
        readout={"max_abs_difference": None, "isolated_max_abs_difference": None},
    )  # fmt: skip
    page = report_html(path, graph, document)
    parsed(page)
    assert "87.65 %" in page and "float against training (cpu)" in page
    assert "data:image/png;base64,iVBORw==" in page
    card = card_text(path, graph, document)
    assert "| Student in training | 87.65 % | 86.14 to 89.02 % | 2000 |" in card


# ---- card --------------------------------------------------------------------------------------


def test_card_has_front_matter_and_results(folder):
    path, graph = folder
    card = card_text(path, graph, verdict())
    _, front, body = card.split("---\n", 2)
    assert "library_name: stars-deploy" in front and "- onnx" in front
    assert "| Integer parameters | 90.49 % | 89.14 to 91.71 % | 2000 | evaluation | " in body
    assert "| integer | float | 2000 | pass | 7 | 0.0123 |" in body
    assert "<script>" not in body and "&lt;script&gt;" in body and "\\`" in body


def test_card_is_read_by_the_hub(folder, tmp_path):
    path, graph = folder
    document = verdict(earlier=[verdict("onnx", n=16)])
    (tmp_path / "README.md").write_text(card_text(path, graph, document), encoding="utf-8")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "stars-deploy" and "nir" in card.data.tags
    assert card.data.license is None and card.data.base_model is None  # no file says them
    assert card.data.model_name == HOSTILE
    found = {(x.metric_name, x.metric_value) for x in card.data.eval_results}
    assert found == {
        ("Float graph (simulated, 2000 images)", 0.91),
        ("Integer parameters (simulated, 2000 images)", 0.9049),
    }
    headings = re.findall(r"^## (.*)$", card.text, re.MULTILINE)
    assert headings == [
        "Model description", "Intended use and limits", "Training procedure", "Evaluation",
        "Parity", "Energy (modeled)", "How to use", "How to reproduce",
    ]  # fmt: skip


def test_card_of_a_measured_run_is_a_hub_model_index(tmp_path):
    path, graph = write_folder(tmp_path / "bundle")
    training = {"n": 2000, "device": "cpu", "accuracy": 0.9, "data": 'a: "b"'}
    training |= {"spikes": {}, "T": 4}
    files.write_json(path / "training.json", training)
    card = card_text(path, graph, None)
    assert "Not validated yet" in card
    (line,) = (x for x in card.splitlines() if x.startswith("model-index: "))
    (entry,) = json.loads(line.removeprefix("model-index: "))
    (result,) = entry["results"]
    assert result["dataset"]["name"] == 'a: "b"' and result["metrics"][0]["value"] == 0.9
