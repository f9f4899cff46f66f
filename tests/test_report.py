"""The report: its marks follow the numbers, and the page shows all of them, nothing foreign, and no real case."""

from __future__ import annotations

import csv
import errno
import html
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from sbldm.evaluation import findings
from sbldm.evaluation.findings import SUBJECTS, Finding, summarise
from sbldm.evaluation.protocols import Score, protocol
from sbldm.evaluation.written import GROUPS
from sbldm.pages import pictures, report
from sbldm.pages.report import _strip, write_report
from sbldm.run.errors import OutputError, StateError
from sbldm.run.folder import Run, load_preset
from sbldm.run.manifest import PairRecord
from sbldm.training.checkpoints import FORMAT

HOSTILE = "<script>alert(1)</script>"
PLOTS = ("slices", "seam", "tumours", "place", "requests", "fit", "copies", "worst")


def score(
    name: str, group: str, value: float, half: float, floor: float, floor_half: float = math.nan, **more: Any
) -> Score:
    """A score with symmetric intervals; a floor without one is known exactly."""
    ends = (value - half, value + half)
    n, floor_n = more.pop("n", (100, 30)), more.pop("floor_n", (100, 30))
    return Score(name, group, value, *ends, n, floor, floor - floor_half, floor + floor_half, floor_n, **more)


def share(name: str, count: int, of: int, honest: float) -> Score:
    """So many of the pairs are near copies, with the exact interval."""
    low, high = binomtest(count, of).proportion_ci(0.95, "exact")
    more = {"floor_n": (30, 100), "aim": "low", "note": f"{count} pairs beyond r = 0.871"}
    return Score(name, "copies", count / of, low, high, (of, 100), honest, **more)


def images(mmd: float = 0.004, precision: float = 0.9, half: float = 0.05) -> list[Score]:
    """MMD with its floor at .004, precision and recall with theirs at .9."""
    return [
        score("mmd-laplace.heldout", "distribution", mmd, 0.01, 0.004, 0.01, aim="low"),
        score("precision.heldout", "distribution", precision, half, 0.9, 0.05),
        score("recall.heldout", "distribution", 0.9, half, 0.9, 0.05),
    ]


def slices(worst: float = 0.0, half: float = 0.3) -> list[Score]:
    """Four measures without a difference, and one with this one."""
    names = ("z_gradient_ratio", "adjacent_ssim", "banding", "mask_flicker", "mask_islands")
    values = (worst, 0, 0, 0, 0)
    return [score(f"{n}.effect", "slices", v, half, 0.1, 0.3) for n, v in zip(names, values, strict=True)]


def seam(noise: float = 0.0) -> list[Score]:
    """Three measures without a difference, or one with this one."""
    return [score(f"seam.{n}", "seam", v, 0.3, 0.1, 0.3) for n, v in (("step", 0.1), ("noise", noise), ("texture", 0))]


def tumours(*values: float) -> list[Score]:
    """Wasserstein distances, beside floors of .2."""
    names = ("volume_ml", "sphericity", "x_mm", "contrast")
    return [score(f"w1.{n}", "tumours", v, 0.15, 0.2, 0.15, aim="low") for n, v in zip(names, values, strict=True)]


def requests(volume: float = 0.15, centre: float = 12, bias: float = 0.0, half: float = 0.03) -> list[Score]:
    """Errors with their shuffled controls at 65 % and 56 mm."""
    more = {"n": (100, 100), "floor_n": (100, 100)}
    return [
        score("spearman.volume", "requests", 0.9, 0.05, 0.0, aim="high", **more),
        score("request.volume_error", "requests", volume, half, 0.65, aim="low", **more),
        score("request.volume_bias", "requests", bias, 0.05, bias, aim="low", **more),
        score("request.centre_mm", "requests", centre, 1.5, 56.0, aim="low", unit="mm", **more),
    ]


def fit(dsc: float = 0.88, low: float = 0.05, high: float = 0.05) -> list[Score]:
    """Agreement with its floor at .88, and both tails at 5 % among real cases."""
    return [
        score("fit.dsc", "fit", dsc, 0.02, 0.88, 0.02, n=(100, 100), floor_n=(30, 30)),
        score("fit.low-tail", "fit", low, 0.04, 0.05),
        score("fit.high-tail", "fit", high, 0.04, 0.05),
    ]


def copies(near: int = 3, sure: int = 0, of: int = 100) -> list[Score]:
    """Counts of near and of sure copies."""
    masks = score("copies.masks", "copies", 0.6, 0.02, 0.6, 0.03, aim="low")
    limit = replace(share("copies.near", near, of, 0.05), floor_low=0.0, floor_high=0.10)
    return [limit, share("copies.sure", sure, of, 0.001), *copied_tumours(), masks]


def copied_tumours(near: int = 3, sure: int = 0, of: int = 100) -> list[Score]:
    """The same of tumours."""
    limit = replace(share("copies.tumours.near", near, of, 0.05), floor_low=0.0, floor_high=0.10)
    return [limit, share("copies.tumours.sure", sure, of, 0.001)]


def everything() -> list[Score]:
    """All groups, as real."""
    similarity = score("psnr.all-pairs.heldout", "similarity", 14.2, 0.1, 13.6, 0.2, unit="dB")
    similarity = references(similarity, half=0.1, path=14.3)
    return [*images(), *slices(), *seam(), *tumours(0.2, 0.2, 0.2, 0.2), *requests(), *fit(), *copies(), similarity]


def content(scores: Sequence[Score], left_out: Sequence[Sequence[str]] = (), **provenance: Any) -> dict[str, Any]:
    """What `evaluation.json` holds."""
    known = {"made": "2026-01-31", "minutes": 7.5, "cases": {"synthetic": 100, "train": 90, "heldout": 30}}
    rows = [s.row() for s in scores]
    return {"scores": rows, "left_out": list(left_out), "remarks": [], "provenance": known | provenance}


def finding(group: str, scores: Sequence[Score], **more: Any) -> Finding:
    """The statement about one group."""
    return next(found for found in summarise(content(scores, **more)) if found.group == group)


# --- the summary ------------------------------------------------------------------------------------------------------


def test_all_as_real() -> None:
    """Seven statements and the advice, all good, in the order of the tables; numbers with n and floor."""
    found = summarise(content(everything()))
    groups = [g for g in GROUPS if g in SUBJECTS and g not in findings.SEVERAL]  # of which there is but one
    assert [f.group for f in found] == [*groups, "advice"] and len(found) == 8
    assert {f.mark for f in found} == {"good"}
    first, *_, counted, advice = ("\n".join((f.statement, *f.evidence)).replace("\u00a0", " ") for f in found)
    one = "0.0040 [-0.0060, 0.0140], n = 100 / 30"
    assert f"MMD, all planes: {one}; real against real: {one}." in first
    assert "0 of 100 pairs were found to be copies of training cases (excess correlation beyond 0.871)" in counted
    assert "0 of 100 tumours were found to be copies of training tumours (excess DSC beyond 0.871)" in counted
    assert "[0.0, 3.6] %; an honest generator: 0.1 %" in counted
    assert "No score here measures whether the pairs help." in advice


@pytest.mark.parametrize(("value", "mark"), [(-9.0, "bad"), (0.0, "good")])
def test_channels_that_do_not_fit_are_said(value: float, mark: str) -> None:
    """With several channels there is a statement more, and the advice counts it."""
    fit = Score("channel.fit.flair-t1", "channels", value, value - 0.2, value + 0.2, (30, 30), 0, -0.2, 0.2, (30, 30))
    found = {f.group: f for f in summarise(content([*everything(), fit]))}
    assert found["channels"].mark == mark and ("do not fit" in found["channels"].statement) == (mark == "bad")
    assert ("fit of the channels" in " ".join(found["advice"].evidence)) and len(found) == 9


@pytest.mark.parametrize(("margin", "expected"), [(0.501, "alike"), (0.499, "unclear")])
def test_interval_of_a_difference(margin: float, expected: str) -> None:
    """Half widths of .3 and .4 give one of .5, as independent normal errors do; either direction can be the worse."""
    alike = score("w1.volume_ml", "tumours", 1.0, 0.3, 1.0, 0.4)
    for worse in ("more", "less"):
        assert findings._standing(alike, margin, worse) == expected
    apart = score("w1.volume_ml", "tumours", 2.0, 0.3, 1.0, 0.4)
    mirrored = score("w1.volume_ml", "tumours", -2.0, 0.3, -1.0, 0.4)
    far = "much worse" if margin < 0.5 else "worse"  # the difference is 1 - .5 at least
    assert [findings._standing(apart, margin, worse) for worse in ("more", "less", "either")] == [far, "alike", far]
    assert [findings._standing(mirrored, margin, worse) for worse in ("more", "less", "either")] == ["alike", far, far]


def test_images_told_from_real_ones() -> None:
    """A higher MMD is bad with a loss of precision, mixed without one; both numbers are named."""
    found = finding("distribution", images(mmd=0.123, precision=0.5))
    assert found.mark == "bad" and found.statement.startswith("The images do not yet look like real ones: many")
    assert "planes:\u00a0" not in found.evidence[0] and "0.123" in found.evidence[0] and "0.004" in found.evidence[0]
    assert finding("distribution", images(mmd=0.123)).mark == "mixed"
    assert finding("distribution", images(precision=0.5)).mark == "mixed"
    assert finding("distribution", images(mmd=0.123)[:1]).mark == "bad"
    older = [replace(images(mmd=0.123)[0], protocol="kid.heldout"), *images(precision=0.5)[1:]]
    assert finding("distribution", older).mark == "bad", "of evaluations from before there was another first figure"


def references(s: Score, half: float = 0.01, **values: float) -> Score:
    """The score, beside real cases through the path, or through path and autoencoder."""
    for side, value in values.items():
        more = {side: value, f"{side}_low": value - half, f"{side}_high": value + half, f"{side}_n": (100, 30)}
        s = replace(s, **more)
    return s


def test_as_real_cases_through_the_path() -> None:
    """What the path alone costs is said, and of what: of all that differs, of a part of it, or of nothing."""
    first, precision, recall = images(mmd=0.123, precision=0.5)
    both = [references(first, path=0.12), references(precision, path=0.45, half=0.05), recall]
    found = finding("distribution", both)
    assert found.mark == "bad" and found.statement.endswith(
        "real. Real cases brought through the path alone do no better."
    )
    assert (
        "; real through the path: 0.120\u00a0[0.110,\u00a00.130], n\u00a0=\u00a0100\u00a0/\u00a030."
        in found.evidence[0]
    )
    part = finding("distribution", [references(first, path=0.05, autoencoder=0.12), both[1], recall])
    assert "Real cases brought through the path alone do no better in precision (realistic images)." in part.statement
    assert "Real cases through path and autoencoder do no better in MMD all planes." in part.statement
    assert "Real cases" not in finding("distribution", [references(first, path=0.05), precision, recall]).statement
    off = [references(slices(1.8)[0], path=1.9, half=0.3), *slices()[1:]]
    assert "Real cases brought through the path alone do no better." in finding("slices", off).statement


def test_wide_intervals_claim_nothing() -> None:
    """Equal values with wide intervals are not known, not good; so are no copies among 20 pairs."""
    assert finding("distribution", images(half=0.4)).mark == "unknown"
    found = finding("slices", slices(half=1.5))
    assert found.mark == "unknown" and "for 5 of 5 the cases are too few" in found.statement
    assert finding("copies", copies(near=0, of=20)).mark == "unknown"
    assert finding("requests", requests(volume=0.3, half=0.29)[1:2] + requests()[2:]).mark == "mixed"
    no_interval = [Score("mmd-laplace.heldout", "distribution", 0.5, math.nan, math.nan, (100, 30), 0.0)]
    assert finding("distribution", no_interval).mark == "unknown"


@pytest.mark.parametrize(
    ("worst", "mark"), [(0.3, "good"), (0.9, "mixed"), (-0.9, "mixed"), (1.8, "bad"), (-1.8, "bad")]
)
def test_slices(worst: float, mark: str) -> None:
    """One of five measures off by .9 SD is mixed, surely by more than .8 SD is bad, in either direction."""
    found = finding("slices", slices(worst))
    assert found.mark == mark
    if mark != "good":
        assert "gradient across slices over that within differs. 4 of 5 measures are alike." in found.statement


def test_tumours() -> None:
    """Half of the measures off is bad, one of four is mixed and named."""
    assert finding("tumours", tumours(0.6, 0.6, 0.2, 0.2)).mark == "bad"
    found = finding("tumours", tumours(0.2, 0.2, 0.6, 0.2))
    assert found.mark == "mixed" and "centre left to right differs" in found.statement
    assert found.evidence == (
        "Centre, left to right, in SD: 0.600\u00a0[0.450,\u00a00.750], n\u00a0=\u00a0100\u00a0/\u00a030; "
        "real against real: 0.200\u00a0[0.050,\u00a00.350], n\u00a0=\u00a0100\u00a0/\u00a030.",
    )


@pytest.mark.parametrize(
    ("more", "mark", "said"),
    [
        ({}, "good", "half of the pairs within 15 % of the volume, half within 12 mm of the place"),
        ({"volume": 0.26}, "mixed", "in part"),
        ({"volume": 0.6}, "bad", "only half of the pairs within 60 %"),
        ({"volume": 0.64}, "bad", "not drawn as asked"),
        ({"centre": 33}, "bad", "33 mm"),
        ({"bias": math.log(0.75)}, "mixed", "in part"),
        ({"bias": math.log(0.4)}, "bad", "not drawn as asked"),
    ],
)
def test_requests(more: dict[str, float], mark: str, said: str) -> None:
    """Good up to 25 % and 15 mm, bad beyond 50 % and 30 mm, with the mean error of the volume too."""
    found = finding("requests", requests(**more))
    assert (found.mark, said in found.statement) == (mark, True)


def test_requests_that_are_ignored() -> None:
    """A characteristic that is followed no better than shuffled requests would be is named; bias is in per cent."""
    ignored = score("spearman.sphericity", "requests", 0.1, 0.2, 0.0, aim="high")
    found = finding("requests", [*requests(bias=math.log(0.8)), ignored])
    assert found.mark == "mixed" and "Not found to be followed at all: sphericity." in found.evidence
    assert found.evidence[2] == "Volume, drawn against asked on average: -20\u00a0% [-24, -16], n\u00a0=\u00a0100."
    beyond = [s for s in requests() if s.protocol.startswith("spearman")]
    assert finding("requests", beyond).mark == "unknown"


@pytest.mark.parametrize(
    ("more", "mark"),
    [({}, "good"), ({"dsc": 0.83}, "mixed"), ({"dsc": 0.7}, "bad"), ({"low": 0.4}, "bad"), ({"high": 0.3}, "mixed")],
)
def test_fit(more: dict[str, float], mark: str) -> None:
    """Lower agreement is mixed, much lower or a heavy low tail bad, too easy tumours mixed."""
    assert finding("fit", fit(**more)).mark == mark


def test_copies() -> None:
    """More near pairs than chance explains are bad, one sure copy is mixed, the very voxels of a case are bad."""
    found = finding("copies", copies(near=12))
    assert found.mark == "bad" and found.statement.startswith("12 of 100 pairs are near to a training case")
    assert finding("copies", copies(near=7)).mark in ("good", "unknown")  # an honest generator has 10 at most
    assert finding("copies", copies(near=5, sure=5)).statement.startswith("5 of 100 pairs are copies")
    found = finding("copies", copies(sure=1))
    assert found.mark == "mixed" and found.statement.startswith("1 of 100 pairs may be copies")
    masks = score("copies.masks", "copies", 0.8, 0.02, 0.6, 0.03, aim="low")
    assert finding("copies", [*copies()[:2], masks]).mark == "mixed"
    found = finding("copies", [*copies(), *copied_tumours(sure=5)])
    assert found.mark == "bad" and found.statement.startswith("5 of 100 tumours are copies of training tumours")
    found = finding("copies", copied_tumours())  # on canvases
    assert found.mark == "good" and "real ones by design" in found.statement and len(found.evidence) == 2
    contents = {"synthetic": ["a", "b"], "train": ["b"], "heldout": ["c"]}
    assert finding("copies", copies(), contents=contents).mark == "bad"


def test_fit_of_a_region() -> None:
    """A region that the network does not find again is as bad as a whole tumour would be, and is named."""
    region = replace(fit(dsc=0.7)[0], protocol="fit.dsc.enhancing tumour")
    found = finding("fit", [*fit(), region])
    assert found.mark == "bad" and "DSC of mask and segmentation, enhancing tumour: 0.700" in " ".join(found.evidence)


def test_seam() -> None:
    """Told by the measures that differ."""
    assert finding("seam", seam()).mark == "good"
    found = finding("seam", seam(2.0))
    assert found.mark == "bad" and "grain around the tumour differs" in found.statement


def test_boundless_floor() -> None:
    """A floor without an upper bound is drawn as its value alone."""
    known = replace(score("mask_islands.effect", "slices", 0.3, 0.1, 0.2, 0.1), floor_high=math.inf)
    strip = _strip(known)
    assert set(strip) == {"value", "low", "high", "floor"} and 0 <= min(strip.values()) < max(strip.values()) <= 100


def test_what_was_left_out() -> None:
    """It is not known, with the reason, of whatever part of the group; too little gives no advice."""
    left_out = [("distribution", "4 synthetic case(s); 10 are the least."), ("banding.effect", "few cases.")]
    left_out.append(("fit", "/home/me/some where/x.nii.gz: cannot be read."))
    found = {f.group: f for f in summarise(content(copies(), left_out))}
    assert {group: f.mark for group, f in found.items() if group != "copies"} == dict.fromkeys(
        ("distribution", "slices", "seam", "tumours", "requests", "fit", "advice"), "unknown"
    )
    assert found["distribution"].evidence == ("4 synthetic case(s); 10 are the least.",)
    assert found["slices"].evidence == ("Few cases.",) and found["fit"].evidence == ("x.nii.gz: cannot be read.",)
    assert "Not known: images, stacking of slices, seams, tumours, requests, masks." in found["advice"].evidence


@pytest.mark.parametrize(
    ("scores", "mark", "said"),
    [
        ([*everything(), *copies(near=12)], "bad", "Do not train on these pairs"),
        ([*everything(), *images(mmd=0.2, precision=0.4)], "bad", "do not count on these pairs"),
        ([*everything(), *fit(dsc=0.6)], "bad", "do not count on these pairs"),
        ([*everything(), *slices(1.8)], "mixed", "at most"),
        (everything(), "good", "nothing here speaks against it"),
    ],
)
def test_advice(scores: Sequence[Score], mark: str, said: str) -> None:
    """Copies forbid, bad images or masks advise against, everything else that is not good limits to a trial."""
    found = summarise(content(scores))[-1]
    assert (found.mark, said in found.statement) == (mark, True)


# --- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text += " " * (tag in ("br", "dd", "dt", "li", "td", "th"))
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write_evaluation(out: Path, made: dict[str, Any], plots: Sequence[str] = PLOTS) -> Path:
    """A folder as `evaluate` leaves it, with one-coloured figures."""
    (out / "figures").mkdir(parents=True)
    (out / "evaluation.json").write_text(json.dumps(made))
    for name in plots:
        Image.new("RGB", (90, 60), "white").save(out / "figures" / f"{name}.png")
    return out


def write_dataset(folder: Path, names: Sequence[str], **columns: str) -> Path:
    """A raw dataset of small brains with balls in them, and its manifest."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    away = np.linalg.norm(np.indices((16, 16, 12)).T - np.array([7.5, 7.5, 5.5]), axis=-1).T
    for name in names:
        for path, array in ((f"imagesTr/{name}_0000", 500 * (away < 6)), (f"labelsTr/{name}", 1 * (away < 3))):
            nib.save(nib.Nifti1Image(array.astype(np.int16), np.diag([8.0, 8, 8, 1])), folder / f"{path}.nii.gz")
    (folder / "dataset.json").write_text("{}")
    with open(folder / "manifest.csv", "w", newline="") as file:
        rows = [{"pair": name, "seed": k} | columns for k, name in enumerate(names)]
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an evaluation with all groups, pairs with a hostile name, and a run."""
    folder = tmp_path_factory.mktemp("full")
    run = folder / "run"
    dataset = write_dataset(
        run / "nnUNet_raw" / "Dataset501_SBLDM",
        [f"SBLDM_{k:06d}" for k in range(3)],
        **{"seconds": "8.04", "redrawn": "1", "sampler": "ddim", "checkpoint_sha256": "ab" * 32, "gate": HOSTILE},
    )
    (dataset / "synthesis.json").write_text(json.dumps({"gate": {"volume": 0.2}, "asked": []}))
    (dataset / "datasheet.md").write_text(f"# x\n\n## Licence note\n- Only for {HOSTILE}.\n\n## Checked\n- no\n")
    (run / "lists.json").write_text(json.dumps({"data": "/home/me/data", "train": ["T_01"], "validation": ["H_01"]}))
    made = content(
        everything(),
        [("requests.extrapolated", "2 pair(s); 3 are the least.")],
        synthetic=HOSTILE,
        dataset=str(dataset),
        contents={"synthetic": ["s"], "train": ["b", "a"], "heldout": ["h"]},
        versions={"torch": "2.14"},
        spacing_mm=[2.0, 2.0, 2.5],
    )
    made["remarks"] = [f"/home/me/T_{HOSTILE}.nii.gz: left out.", "See https://example.org for more."]
    out = write_evaluation(folder / "out", made)
    with open(out / "pairs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["pair", "nearest_case", "nearest_correlation", "feature_ratio"])
        writer.writerows([[f"P{k}", f"T_{k:02d}", 0.1 * k, 1.5] for k in range(9)])
        writer.writerow([HOSTILE, HOSTILE, 0.95, 0.01])
    return write_report(out, Run.at(run))


def test_nothing_is_fetched(full: Path) -> None:
    """No script, no link but to a place on the page, every picture inside; one file of moderate size."""
    page = Page(full)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert "url(" not in page.source and "@import" not in page.source
    pictures = [*page.values("src"), *page.values("srcset")]
    assert all(source.startswith("data:image/") for source in pictures)
    ids = page.values("id")
    assert len(ids) == len(set(ids)) and {href.removeprefix("#") for href in page.values("href")} <= set(ids)
    assert full.stat().st_size < 8e6 and not list(full.parent.glob(".partial*"))


def test_every_figure_is_shown_and_described(full: Path) -> None:
    """Eight plots, the animation with its still, and the methods side by side, each with a text in its place."""
    page = Page(full)
    assert len(page.of("img")) == len(PLOTS) + 3 and len(page.of("figure")) == len(PLOTS) + 2
    assert all(len(image["alt"]) > 20 and int(image["width"]) > 0 for image in page.of("img"))
    kinds = [image["src"][:16] for image in page.of("img")]
    assert kinds.count("data:image/gif;b") == 1 and kinds.count("data:image/jpeg;") == 1


def test_every_number_has_its_protocol(full: Path) -> None:
    """Each score stands in a table with interval, n, floor and reading, and its protocol is spelt out."""
    page, text = Page(full), " ".join(Page(full).text.split())
    for s in everything():
        assert f"protocol-{s.protocol}" in page.values("id")
        assert protocol(s.protocol)["text"] in text
    name = "Masks that fit worse than 95 % of real ones fit.low-tail"
    assert f"{name} 0.0500 [0.0100, 0.0900] 100 / 30 0.0500 100 / 30 as expected" in text
    one = "0.880 [0.860, 0.900]"
    assert f"DSC of mask and segmentation fit.dsc {one} 100 {one} 30 {fit()[0].verdict}" in text
    of_path = "psnr.all-pairs.heldout 14.2 dB [14.1, 14.3] 100 / 30 13.6 dB [13.4, 13.8] 100 / 30 14.3 dB [14.2, 14.4]"
    assert f"{of_path} n = 100 / 30 higher, as the path alone" in text
    assert "real through the path [95 %]" in text and "autoencoder [95 %]" not in text
    headings = [cell.get("scope") for cell in page.of("th")]
    assert len(headings) > 50 and set(headings) == {"col", "row"}


def test_hostile_names_are_text(full: Path) -> None:
    """What files are called is never markup; folders of the machine are not named."""
    page = Page(full)
    assert HOSTILE not in page.source and page.source.count(html.escape(HOSTILE)) > 4
    assert page.text.count(HOSTILE) > 4 and "/home" not in page.text


def test_pairs_costs_and_provenance(full: Path) -> None:
    """The six nearest pairs in order, what is known of costs, hashes of the lists, settings and licence."""
    text = " ".join(Page(full).text.split())
    table = text[text.index("distance ratio") :]
    nearest = (f"{HOSTILE} {HOSTILE} 0.950 0.010", "P8 T_08 0.800 1.500", "P4 T_04 0.400")
    places = [table.index(entry) for entry in nearest]
    assert places == sorted(places) and "P3 T_03" not in table
    for said in (
        "One pair: 8.04 seconds (median of 3).",
        "6 pairs were drawn for 3 that were accepted.",
        "This evaluation: 7.5 minutes.",
        "Grid of the evaluation 2 x 2 x 2.5 mm",
        "Seeds of the pairs 0 to 2",
        "Synthesis, gate volume 0.2",
        f"Licence note: Only for {HOSTILE}.",
        "2 pair(s); 3 are the least.",
        "7e18f737311b2dc3",  # sha256 of "a\nb"
        "Held-back cases of the run: 1 names",
    ):
        assert said in text, said
    assert "Synthesis, asked" not in text


def test_alone(tmp_path: Path) -> None:
    """Without run, manifest, pairs or most groups there is still a page, which says what is missing."""
    made = content(copies(), dataset=str(tmp_path / "gone"), synthetic="X")
    out = write_evaluation(tmp_path / "out", made, ["copies", "worst"])
    page = Page(write_report(out, None))
    assert "no pictures, as the pairs are not there" in page.text and len(page.of("img")) == 2
    assert "Not looked at: whether the masks fit their images." in page.text
    assert "Latent diffusion" not in page.text and "tumours" not in page.values("id")
    with pytest.raises(StateError, match="holds no evaluation"):
        write_report(tmp_path, None)


def test_every_group_has_its_section(tmp_path: Path) -> None:
    """Each with a link, a heading and a lead, those that not every evaluation has too."""
    fit = Score("channel.fit.flair-t1", "channels", -2.7, -4.8, -2.1, (10, 10), -0.6, -1.6, 0.3, (10, 10))
    bare = Score("nesting.bare.tumour core", "tissues", 0.7, 0.6, 0.8, (10, 10), 0.2, 0.1, 0.3, (10, 10), "low")
    made = content([*everything(), fit, bare], dataset=str(tmp_path / "gone"), synthetic="X")
    page = Page(write_report(write_evaluation(tmp_path / "out", made), None))
    assert set(GROUPS) <= set(page.values("id")) and all(question in page.text for question in GROUPS.values())
    assert "FLAIR and T1: how the two channels fit each other" in page.text
    assert "Surface of tumour core that is bare: 0.700" in page.text.replace("\u00a0", " ")


def test_missing_figures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and only where a group has scores."""
    out = write_evaluation(tmp_path / "out", content(tumours(0.2, 0.2, 0.2, 0.2)), ["tumours", "fit"])
    drawn = []

    def draw(folder: Path) -> None:
        drawn.append(folder)
        Image.new("RGB", (90, 60)).save(folder / "figures" / "place.png")

    monkeypatch.setattr(pictures, "draw_figures", draw)
    for _ in range(2):
        page = Page(write_report(out, None))
        assert len(page.of("img")) == 2 and drawn == [out]


@pytest.fixture
def datasets(tmp_path: Path) -> Iterator[tuple[Path, Run]]:
    """An evaluated dataset in a run, beside one of another method and four that could show a real case."""
    raw = tmp_path / "run" / "nnUNet_raw"
    dataset = write_dataset(raw / "Dataset501_A", ["A_0", "A_1"])
    write_dataset(raw / "Dataset502_B", ["B_0"])
    write_dataset(raw / "Dataset503_PASTE", ["C_0"], parents="BraTS_1;BraTS_2")
    write_dataset(raw / "Dataset506_CANVAS", ["F_0"], canvas="BraTS_3")
    (write_dataset(raw / "Dataset504_REAL", ["D_0"]) / "manifest.csv").unlink()
    mixed = write_dataset(raw / "Dataset505_MIXED", ["E_0"])
    for name in ("labelsTr/BraTS_1.nii.gz", "imagesTr/BraTS_1_0000.nii.gz"):
        (mixed / name).write_bytes((dataset / name.replace("BraTS_1", "A_0")).read_bytes())
    made = content(copies(), dataset=str(dataset), synthetic="Dataset501_A")
    yield write_evaluation(tmp_path / "out", made, ["copies", "worst"]), Run.at(tmp_path / "run")


def test_no_real_case_is_shown(datasets: tuple[Path, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only datasets whose every pair is known to be synthetic stand side by side; the reason is given for others."""
    out, run = datasets
    shown, side_by_side = [], pictures.side_by_side

    def draw(methods: dict[str, Path], path: Path) -> None:
        shown.append(list(methods))
        side_by_side(methods, path)

    monkeypatch.setattr(pictures, "side_by_side", draw)
    page = Page(write_report(out, run))
    assert shown == [["Dataset501_A", "Dataset502_B"]] and len(page.of("img")) == 5
    assert "Dataset503_PASTE: no pictures, as each pair repeats a real brain." in page.text
    assert "Dataset506_CANVAS: no pictures, as each brain is a real one." in page.text
    assert "Dataset504_REAL: no pictures, as no manifest says that its pairs are synthetic." in page.text
    assert "Dataset505_MIXED: no pictures, as its manifest does not name BraTS_1.nii.gz" in page.text

    for number, dataset in (("503", "Dataset503_PASTE"), ("505", "Dataset505_MIXED")):
        made = content(copies(), dataset=str(run.folder / "nnUNet_raw" / dataset))
        (out / "evaluation.json").write_text(json.dumps(made))
        assert len(Page(write_report(out, run)).of("img")) == 2, number
    same = {"synthetic": ["a"], "train": ["a"], "heldout": []}
    made = content(copies(), dataset=str(run.folder / "nnUNet_raw" / "Dataset501_A"), contents=same)
    (out / "evaluation.json").write_text(json.dumps(made))
    page = Page(write_report(out, run))
    assert len(page.of("img")) == 2 and "some of its pairs hold the voxels of a real case" in page.text


def test_pictures_follow_the_pairs(datasets: tuple[Path, Run]) -> None:
    """The animation is drawn again for a younger manifest alone, the methods whenever they are others."""
    out, run = datasets
    animation, methods = (out / "figures" / name for name in ("animation.gif", "side_by_side.png"))
    write_report(out, run)
    before, both = animation.stat().st_mtime_ns, methods.read_bytes()
    write_report(out, None)
    assert animation.stat().st_mtime_ns == before and methods.read_bytes() != both
    later = before + 10**9
    os.utime(run.folder / "nnUNet_raw" / "Dataset501_A" / "manifest.csv", ns=(later, later))
    write_report(out, run)
    assert animation.stat().st_mtime_ns > before and methods.read_bytes() == both


def test_damaged_pairs_cost_the_pictures_alone(datasets: tuple[Path, Run]) -> None:
    """The page is written, and names the file without its folder."""
    out, run = datasets
    (run.folder / "nnUNet_raw" / "Dataset502_B" / "labelsTr" / "B_0.nii.gz").write_bytes(b"no image")
    page = Page(write_report(out, run))
    assert "Pictures of pairs are missing: B_0.nii.gz: cannot be read" in page.text and len(page.of("img")) == 4


def test_sweeps_in_numbers(datasets: tuple[Path, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked and drawn stands by the picture, and that another checkpoint drew it; without sweeps nothing."""
    out, run = datasets
    asked = {"volume_ml": 10.2, "x_mm": -30, "y_mm": 0, "z_mm": 5}
    step = {"name": "size_1", "requested": asked, "measured": asked | {"volume_ml": 12, "x_mm": -27, "z_mm": 9}}
    drawn = {"seed": 0, "measured": step["measured"], "fault": ""}
    draws = [drawn, drawn | {"seed": 1, "measured": asked | {"volume_ml": 14}}]
    step |= {"checkpoint_sha256": "ab", "fault": HOSTILE, "sweep": "size", "draws": draws}
    steps = [step, step | {"measured": None, "fault": "", "sweep": "place"}]
    monkeypatch.setattr(pictures, "read_sweeps", lambda folder: steps)
    monkeypatch.setattr(pictures, "sweep_figure", lambda folder, path: Image.new("RGB", (90, 60)).save(path))
    page = Page(write_report(out, run))
    text = " ".join(page.text.split())
    real = text.index("Other requests in one real brain")  # both are there: of the second the numbers alone
    assert "The same noise, other requests." in text[:real] and "size 1 10 ml 12 ml 5 mm" in text[real:]
    assert len([one for one in page.of("img") if "Ten synthetic pairs" in one["alt"]]) == 1
    over = "13 ± 1 ml, centre 2 ± 4 mm off (2 seeds)"  # 12 and 14 ml, 5 and 0 mm
    assert f"size 1 10 ml 12 ml 5 mm refuses: {HOSTILE} {over}" in text
    assert f"size 1 10 ml no tumour - passes {over}" in text
    # 12 / 10.2 and 14 / 10.2 less 1: mean .275, SD .139, and 12.7 times that over the root of 2
    assert "Volume over the sizes: +27 % [-97, +152] over 2 seeds, no bias shown." in text
    assert (
        text.count("Drawn by another checkpoint of the generator") == 1
    )  # of whole pairs; canvases have other weights
    assert "Drawn by another checkpoint of the generator" in text[:real]
    monkeypatch.undo()
    assert "The same noise" not in Page(write_report(out, run)).text


def test_written_whole_or_not_at_all(datasets: tuple[Path, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the earlier report as it was, and nothing beside it."""
    out, _ = datasets
    path = write_report(out, None)
    before, write = path.read_bytes(), Path.write_text

    def full_disk(self: Path, text: str, **more: Any) -> None:
        write(self, text[:1000], **more)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OutputError, match=r"report\.html"):
        write_report(out, None)
    assert path.read_bytes() == before and not list(out.glob(".partial*"))


def test_costs_of_training(tmp_path: Path) -> None:
    """Iterations of the last epoch, parameters of the network, hours of overlapping sessions counted once."""
    run, logs = Run.at(tmp_path), tmp_path / "diffusion" / "tensorboard"
    logs.mkdir(parents=True)
    for k, (first, last) in enumerate([(0, 3600), (1800, 5400), (9000, 12600), (20000, 20000)]):
        with open(logs / f"events.out.tfevents.{k}", "wb") as file:
            writer = RecordWriter(file)
            for time in (first, last):
                writer.write(Event(wall_time=1e9 + time, step=1).SerializeToString())
    (tmp_path / "diffusion" / "history.csv").write_text("epoch,iteration,train_loss\n1,200,0.5\n2,1400,0.4\n")
    network = {"weight": torch.zeros(3, 400), "bias": torch.zeros(5)}
    content = {
        "format": FORMAT,
        "stage": "diffusion",
        "preset": load_preset("demo").state(),
        "constants": {},
        "epoch": 1,
        "scores": {},
    }
    torch.save(content | {"network": network}, run.checkpoint("diffusion"))
    costs = report._costs(run, [], None)
    title = {"title": "Latent diffusion"}
    assert costs["stages"] == [title | {"iterations": "1,400", "time": "2.5 h", "parameters": "1,205"}]
    assert "seconds" not in costs and not costs["other_checkpoint"]
    assert report._costs(run, [PairRecord.of({"pair": "A", "checkpoint_sha256": "other"})], None)["other_checkpoint"]


def test_numbers_of_a_row_share_their_decimals() -> None:
    """Three digits of the largest, none of the smaller ones to more places, no negative zero, units and per cent."""
    row = findings.numbers_of(score("mmd-laplace.heldout", "distribution", 0.782, 0.1, -0.0004, 0.02))
    assert (row["value"], row["interval"]) == ("0.782", "[0.682, 0.882]")
    assert (row["floor"], row["floor_interval"], row["n"]) == ("0.000", "[-0.020, 0.020]", "100 / 30")
    row = findings.numbers_of(score("request.volume_error", "requests", 0.147, 0.03, 0.65, n=(9, 9)), percent=True)
    assert (row["value"], row["interval"], row["floor"], row["n"], row["unit"]) == ("15", "[12, 18]", "65", "9", "%")
    row = findings.numbers_of(Score("tv.place", "tumours", math.nan, math.nan, math.nan, (1, 2)))
    assert (row["value"], row["interval"], row["floor"], row["floor_n"]) == ("-", "", "", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/a b/c d/x.nii.gz: cannot be read.", "x.nii.gz: cannot be read."),
        ("see /home/me/x.csv, or 3/4 of y/z", "see x.csv, or 3/4 of y/z"),
    ],
)
def test_folders_are_cut(text: str, said: str) -> None:
    """Absolute paths lose their folders, shares and relative paths stay."""
    assert findings.without_folders(text) == said
