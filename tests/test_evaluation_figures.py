"""The pictures of an evaluation: which are written, and that they show the numbers and voxels they are given."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from sbldm.evaluation.protocols import Score
from sbldm.pages import brains, figures
from sbldm.pages.brains import animation, side_by_side
from sbldm.pages.figures import draw_figures
from sbldm.pages.style import OUTLINES
from sbldm.run.errors import DataError, OutputError, StateError
from sbldm.run.files import write_csv, write_json
from sbldm.tumour.characteristics import NAMES

ALL = ("tumours", "place", "slices", "seam", "copies", "worst", "requests", "fit")
ROLES = {"synthetic": 12, "train": 10, "heldout": 8}
RED, ORANGE = "#cc3311", (255, 157, 59)
HOT = (27, 30, 25)  # of the heat map: left, posterior, superior


def score(protocol: str, value: float, floor: float) -> dict:
    """A row of `evaluation.json`."""
    return Score(protocol, "tumours", value, value, value, (12, 8), floor, floor, floor, (10, 8)).row()


def evaluation(out: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A folder as `Evaluation.write` leaves it."""
    out.mkdir(exist_ok=True)
    np.savez(out / "arrays.npz", **arrays)
    write_csv(out / "pairs.csv", [{"pair": f"PAIR_{k:02d}"} for k in range(12)])
    scores = [score("ks.volume_ml", 0.25, 0.125), score("spearman.volume", -0.5, 0), score("tv.place", 0.5, 0.25)]
    write_json(out / "evaluation.json", {"scores": scores})
    return out


def whole() -> dict[str, np.ndarray]:
    """One array at least for each figure."""
    random = np.random.default_rng(0)
    arrays = {}
    for share, (role, n) in zip((1.0, 0.5, 0.0), ROLES.items(), strict=True):
        arrays[f"tumours.volume_ml.{role}"] = random.lognormal(3, 1, n)
        arrays[f"heat.{role}"] = np.zeros((32, 38, 32))
        arrays[f"heat.{role}"][HOT] = share
        arrays[f"curves.{role}"] = np.repeat([*np.arange(11) / 10, np.nan], 21).reshape(12, 21)
        arrays[f"slices.banding.{role}"] = random.random(n)
        arrays[f"seam.step.{role}"] = random.random(n)
    difference = np.zeros((2, 6, 8, 4))
    difference[:, 3:], difference[:, :3] = 1, -1  # brighter on the patient's left
    requested = random.uniform(1, 2, (6, len(NAMES)))
    return (
        arrays
        | {
            "copies.excess.synthetic": np.array([0.1] * 8 + [0.5, 0.8, 0.85, 0.95]),
            "copies.excess.heldout": np.linspace(0.1, 0.6, 8),
            "copies.limits": np.array([0.7, 0.9]),
            "copies.worst": np.array([11, 10]),
            "copies.differences": difference,
            "requested": requested,
            "measured": np.vstack([requested[:-1] + 0.1, np.full(len(NAMES), np.nan)]),  # the last without a tumour
            "requested.extrapolated": requested[:2] * 2,
            "measured.extrapolated": requested[:2],
            "fit.dsc.synthetic": random.random(12),
            "fit.dsc.heldout": random.random(8),
        }
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[str, Figure]]:
    """Files and figures of a whole evaluation."""
    out = evaluation(tmp_path_factory.mktemp("evaluation"), whole())
    kept = {}
    with pytest.MonkeyPatch.context() as patch:
        save = Figure.savefig

        def keep(figure: Figure, path: Path) -> None:
            kept[Path(path).stem] = figure
            save(figure, path)

        patch.setattr(Figure, "savefig", keep)
        return draw_figures(out), kept


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def at(figure: Figure, picture: np.ndarray, panel: Axes, x: float, y: float) -> np.ndarray:
    """The pixel of a drawn figure where a panel has x, y; the screen's resolution is not that of the file."""
    across, up = panel.transData.transform((x, y)) / figure.bbox.size
    return picture[int((1 - up) * picture.shape[0]), int(across * picture.shape[1])]


def test_every_figure_by_its_name_900_pixels_wide(drawn: tuple[list[Path], dict[str, Figure]]) -> None:
    """With all arrays there are exactly the seven files, in their order, and nothing half-written."""
    paths, _ = drawn
    folder = paths[0].parent
    assert [path.stem for path in paths] == list(ALL)
    assert sorted(folder.iterdir()) == sorted(paths) and folder.name == "figures"
    assert {Image.open(path).width for path in paths} == {900}


def test_texts_have_8_points_at_least(drawn: tuple[list[Path], dict[str, Figure]]) -> None:
    """At the width that the figures are made for."""
    for figure in drawn[1].values():
        texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text()]
        assert texts and min(text.get_fontsize() for text in texts) >= 8


def test_absent_arrays_leave_figures_out_and_remove_old_ones(tmp_path: Path) -> None:
    """A figure whose arrays are gone goes too; without any array there is none."""
    fit = {key: value for key, value in whole().items() if key.startswith("fit.")}
    assert [path.stem for path in draw_figures(evaluation(tmp_path, fit))] == ["fit"]
    copies = {"copies.excess.synthetic": np.full(3, np.nan), "copies.limits": np.array([0.7, 0.9])}
    assert draw_figures(evaluation(tmp_path, copies)) == []
    assert list((tmp_path / "figures").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("tumours", ["tumours.volume_ml.heldout"]),
        ("place", ["heat.synthetic"]),
        ("slices", ["curves.heldout"]),
        ("slices", ["slices.banding.train"]),
        ("seam", ["seam.step.synthetic"]),
        ("copies", ["copies.excess.synthetic"]),
        ("requests", ["requested.extrapolated", "measured.extrapolated"]),
        ("fit", ["fit.dsc.heldout"]),
        ("", ["copies.excess.heldout", "copies.differences", "requested"]),
    ],
)
def test_the_least_that_makes_a_figure(tmp_path: Path, name: str, keys: list[str]) -> None:
    """One role's arrays, without any score, make a figure; arrays without their counterpart make none."""
    evaluation(tmp_path, {key: whole()[key] for key in keys})
    write_json(tmp_path / "evaluation.json", {"scores": []})
    assert [path.stem for path in draw_figures(tmp_path)] == [name] * bool(name)


def test_nan_is_dropped(tmp_path: Path) -> None:
    """NaN among the values does not change a single pixel."""
    values = np.random.default_rng(0).random(9)
    arrays = {"fit.dsc.synthetic": values}
    without = pixels(draw_figures(evaluation(tmp_path, arrays))[0])
    arrays = {"fit.dsc.synthetic": np.insert(values, [0, 5], np.nan), "fit.dsc.heldout": np.full(3, np.nan)}
    assert np.array_equal(pixels(draw_figures(evaluation(tmp_path, arrays))[0]), without)


def test_no_evaluation(tmp_path: Path) -> None:
    """The missing file is named."""
    with pytest.raises(StateError, match=r"arrays\.npz"):
        draw_figures(tmp_path)


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the figure of before, and nothing half-written."""
    out = evaluation(tmp_path, {"fit.dsc.synthetic": np.arange(9) / 9})
    before = draw_figures(out)[0].read_bytes()

    def fail(figure: Figure, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OutputError, match=r"fit\.png"):
        draw_figures(out)
    assert [path.name for path in (out / "figures").iterdir()] == ["fit.png"]
    assert (out / "figures" / "fit.png").read_bytes() == before


def test_cumulative_distribution(drawn: tuple[list[Path], dict[str, Figure]]) -> None:
    """Each line rises by 1 / N at every sorted value, in the colour of its role; the score stands below."""
    figure = drawn[1]["tumours"]
    panel = figure.axes[0]
    colours = []
    for line, (role, n) in zip(panel.lines, ROLES.items(), strict=True):
        values = np.sort(whole()[f"tumours.volume_ml.{role}"])
        assert line.get_xdata()[1:] == pytest.approx(values)
        assert line.get_ydata()[1:] == pytest.approx((np.arange(n) + 1) / n)
        colours.append(line.get_color())
    assert len(set(colours)) == 3 and same_color(colours[0], RED)
    assert panel.get_title() == "volume (ml)" and panel.get_xlabel() == "KS 0.25, floor 0.12"


def test_roles_keep_their_colours_and_names(drawn: tuple[list[Path], dict[str, Figure]]) -> None:
    """Legends of all figures with roles call and colour them alike."""
    legends = [drawn[1][name].legends[0] for name in ("tumours", "slices", "fit")]
    found = {
        (text.get_text(), line.get_color())
        for legend in legends
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert found == {("synthetic", RED), ("training", "#0077bb"), ("held-back", "#404040")}


def test_hottest_cell_is_brightest_and_at_its_place(drawn: tuple[list[Path], dict[str, Figure]]) -> None:
    """A hot cell on the left, behind and above: there in all planes, at the end of the scale; half as hot, half up."""
    paths, figures = drawn
    picture, figure, scale = pixels(paths[1]), figures["place"], colormaps["inferno"]
    panels = [axes for axes in figure.axes if axes.images]
    places = [(31 - HOT[0], 37 - HOT[1]), (31 - HOT[0], HOT[2]), (37 - HOT[1], HOT[2])]
    for row, cells in enumerate((32, 38, 32)):  # along the line of sight
        for panel, share in zip(panels[3 * row :], (1.0, 0.5, 0.0), strict=False):
            (x, y), expected = places[row], np.array(scale(share * 32 / cells)[:3]) * 255
            assert at(figure, picture, panel, x, y) == pytest.approx(expected, abs=3)
            assert at(figure, picture, panel, x + 2, y) == pytest.approx([0, 0, 4], abs=3)
    letters = [label.get_text() for label in panels[0].get_xticklabels() + panels[0].get_yticklabels()]
    assert letters == ["L", "R", "P", "A"] and places[0][0] < 16 and places[0][1] < 19


def test_curve_and_band(drawn: tuple[list[Path], dict[str, Figure]]) -> None:
    """Of curves 0, 0.1, ... 1 the mean is 0.5, and the band goes from 0.1 to 0.9."""
    panel = drawn[1]["slices"].axes[0]
    for line, band in zip(panel.lines, panel.collections, strict=True):
        assert line.get_ydata() == pytest.approx(np.full(21, 0.5))
        assert np.unique(band.get_paths()[0].vertices[:, 1].round(9)) == pytest.approx([0.1, 0.9])


def test_strips_show_every_case(drawn: tuple[list[Path], dict[str, Figure]]) -> None:
    """As many points as cases at their values; the bars run from the first to the third quartile."""
    for panel, measure in ((drawn[1]["slices"].axes[1], "slices.banding"), (drawn[1]["seam"].axes[0], "seam.step")):
        strips_show(panel, measure)


def strips_show(panel: Axes, measure: str) -> None:
    points = [c.get_offsets()[:, 0] for c in panel.collections if isinstance(c, PathCollection)]
    bars = [c.get_segments()[0] for c in panel.collections if not isinstance(c, PathCollection)][::2]
    for role, shown, bar in zip(ROLES, points, bars, strict=True):
        values = whole()[f"{measure}.{role}"]
        assert np.asarray(shown) == pytest.approx(values)
        assert bar[:, 0] == pytest.approx(np.percentile(values, [25, 75]))
    assert [label.get_text() for label in panel.get_yticklabels()] == ["synthetic", "training", "held-back"]


def test_copies_are_counted(drawn: tuple[list[Path], dict[str, Figure]]) -> None:
    """Of 12 pairs three lie above 0.7 and one above 0.9; both histograms sum to 1, and the limits stand in place."""
    figure = drawn[1]["copies"]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [
        "synthetic (n = 12)",
        "held-back (n = 8)",
        "near copies, above 0.70: 3 of 12 pairs",
        "sure copies, above 0.90: 1 of 12 pairs",
    ]
    panel = figure.axes[0]
    assert [line.get_xdata()[0] for line in panel.lines] == [0.7, 0.9]
    for outline in panel.patches:  # a step up to each bin's share, and back along the bottom
        x, y = outline.get_xy().T
        upper = y[1 : 2 * 20 + 1 : 2]
        assert upper.sum() == pytest.approx(1) and x.max() == pytest.approx(0.95, abs=1e-5)


def test_differences_by_side(drawn: tuple[list[Path], dict[str, Figure]]) -> None:
    """Brighter on the patient's left is red on the left; each title names pair and correlation."""
    paths, figures = drawn
    figure, picture = figures["worst"], pixels(paths[5])
    panels = [axes for axes in figure.axes if axes.images]
    assert [panel.get_title() for panel in panels] == ["PAIR_11: 0.95", "PAIR_10: 0.85"]
    red, blue = (np.array(colormaps["RdBu_r"](end)[:3]) * 255 for end in (1.0, 0.0))
    for panel in panels:
        for x, colour in ((2, red), (5, blue), (10, red), (13, blue)):  # axial, then coronal, each with a margin
            assert at(figure, picture, panel, x, 4) == pytest.approx(colour, abs=3)


def test_difference_in_one_of_several_channels(tmp_path: Path) -> None:
    """Each title names the channel that is nearest."""
    arrays = {key: value for key, value in whole().items() if key.startswith("copies.")}
    out = evaluation(tmp_path, arrays | {"copies.channels": np.array(["T1CE", "FLAIR"])})
    figure = figures._worst(figures._read(out))
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles == ["PAIR_11: 0.95 (T1CE)", "PAIR_10: 0.85 (FLAIR)"]


def test_requests_beside_identity(drawn: tuple[list[Path], dict[str, Figure]]) -> None:
    """Points lie where asked and measured say, those extrapolated in another colour, the line from corner to corner."""
    figure, arrays = drawn[1]["requests"], whole()
    for k, panel in enumerate(figure.axes):
        assert np.array_equal(panel.lines[0].get_xdata(), panel.lines[0].get_ydata())
        assert panel.get_xlim() == panel.get_ylim()
        for points, part in zip(panel.collections, ("", ".extrapolated"), strict=True):
            pairs = np.stack([arrays[f"requested{part}"][:, k], arrays[f"measured{part}"][:, k]], axis=1)
            assert np.asarray(points.get_offsets()) == pytest.approx(pairs[np.isfinite(pairs[:, 1])])
        first, second = (points.get_facecolor()[0, :3] for points in panel.collections)
        assert first == pytest.approx(to_rgb(RED)) and np.abs(first - second).max() > 0.3
    assert [text.get_text() for text in figure.axes[0].texts] == ["\N{GREEK SMALL LETTER RHO} \N{MINUS SIGN}0.50"]
    assert not figure.axes[1].texts


# A brain of 60 x 80 x 50 mm with a cubic tumour of 20 mm that starts 5, 50 and 15 mm from its left, back and bottom.
SPACING = (2.5, 1.0, 1.25)
BRAIN = (24, 80, 40)
TUMOUR = (slice(2, 10), slice(50, 70), slice(12, 28))


def write_pairs(dataset: Path, count: int = 1, axes: str = "RAS", height: int = BRAIN[2]) -> Path:
    """A raw dataset of such brains, grey with a dark spot, voxels stored along other axes."""
    for folder in ("imagesTr", "labelsTr"):
        (dataset / folder).mkdir(parents=True)
    image = np.zeros((BRAIN[0] + 6, BRAIN[1] + 6, height + 6), np.float32)
    image[3:-3, 3:-3, 3:-3] = 100
    image[3:-3:4, 3, 3] = 200  # the brightest, so that the brain is half as bright
    mask = np.zeros(image.shape, np.uint8)
    mask[3:-3, 3:-3, 3:-3][TUMOUR] = 1
    affine = np.diag([*SPACING, 1])
    start = nib.orientations.io_orientation(affine)
    turn = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(axes))
    for k in range(count):
        for folder, voxels, ending in (("imagesTr", image * (k + 1), "_0000"), ("labelsTr", mask, "")):
            nib.save(nib.Nifti1Image(voxels, affine).as_reoriented(turn), dataset / folder / f"PAIR_{k}{ending}.nii.gz")
    return dataset


def is_orange(picture: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(picture, -1, 0)
    return (red > green + 20) & (green > blue + 20)


def bounds(found: np.ndarray, least: int = 1) -> list[tuple[int, int]]:
    """First and one beyond the last column, then row, that hold so many."""
    return [(int(k[0]), int(k[-1]) + 1) for k in (np.flatnonzero(found.sum(axis) >= least) for axis in (0, 1))]


def test_outline_lies_on_the_border_of_the_mask(tmp_path: Path) -> None:
    """The middle of the orange line is the border of a box of known place and size in all planes, within a pixel."""
    path = side_by_side({"a": write_pairs(tmp_path / "a")}, tmp_path / "figure.png")
    picture = pixels(path)
    assert picture.shape[1] == 900 and Image.open(path).format == "PNG"
    field = {"x": 60 + 4, "y": 80 + 4}  # brain and margin, mm
    scale = 900 / (2 * field["x"] + field["y"])
    lines = is_orange(picture)
    start = 0.0
    for across, wide, up, tall, (x0, y0) in (
        ("x", 60, "y", 80, (5, 50)),
        ("x", 60, "z", 50, (5, 15)),
        ("y", 80, "z", 50, (50, 15)),
    ):
        stop = start + field[across] * scale
        cut = slice(round(start), round(stop))
        (left, right), (top, bottom) = bounds(lines[:, cut])
        middle = (stop - start) / 2
        lower_end = picture.shape[0] - (84 - tall) / 2 * scale  # of the brain, in a field of 84 mm
        expected = [middle + (x0 - wide / 2) * scale, middle + (x0 + 20 - wide / 2) * scale]
        expected += [lower_end - (y0 + 20) * scale, lower_end - y0 * scale]
        half = 0.8 * 180 / 72 / 2  # of the line's width
        assert [left + half, right - half, top + half, bottom - half] == pytest.approx(expected, abs=1.5), (across, up)
        start = stop


def test_axes_of_the_file_do_not_matter(tmp_path: Path) -> None:
    """The same pair stored along R, A, S and along L, P, S and A, S, L gives the same picture."""
    paths = [
        side_by_side({"a": write_pairs(tmp_path / axes, axes=axes)}, tmp_path / f"{axes}.png")
        for axes in ("RAS", "LPS", "ASL")
    ]
    first, *others = map(pixels, paths)
    assert all(np.array_equal(first, other) for other in others)


TISSUE = (slice(2, 6), slice(50, 70), slice(12, 28))  # the left half of the tumour


def write_channels(dataset: Path, labels: dict[str, int | list[int]]) -> Path:
    """Such a pair in two channels, the second one grey and twice as bright on the right, and two tissues."""
    write_pairs(dataset)
    for folder, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
        file = nib.load(dataset / folder / f"PAIR_0{ending}.nii.gz")
        voxels = np.asarray(file.dataobj).copy()
        if folder == "labelsTr":
            voxels[3:-3, 3:-3, 3:-3][TISSUE] = 2
        else:
            voxels[voxels.shape[0] // 2 :] *= 2
        name = "PAIR_0_0001" if folder == "imagesTr" else "PAIR_0"
        nib.save(nib.Nifti1Image(voxels, file.affine), dataset / folder / f"{name}.nii.gz")
    described = {"channel_names": {"0": "FLAIR", "1": "T1CE"}, "numTraining": 1, "labels": {"background": 0} | labels}
    write_json(dataset / "dataset.json", described)
    return dataset


def test_channels_beside_each_other(tmp_path: Path) -> None:
    """Three planes below each other in each channel, both with the outline of each tissue in its colour, in place."""
    dataset = write_channels(tmp_path / "a", {"core": 1, "oedema": 2})
    assert brains.form_of(dataset) == (["FLAIR", "T1CE"], {"core": [1], "oedema": [2]})
    picture = pixels(side_by_side({"a": dataset}, tmp_path / "figure.png"))
    scale = 450 / 84  # a column as wide as the sagittal plane with its margin
    assert picture.shape[1] == 900 and picture.shape[0] == pytest.approx(
        (84 + 2 * 54) * scale + (0.1 + 3 * 0.17) * 180, abs=3
    )
    head = picture.shape[0] - (84 + 2 * 54) * scale  # with the caption of the pair
    levels = []
    for column in np.split(picture, 2, axis=1):
        axial = column[round(head) : round(head + 84 * scale)]
        for colour, (left, right) in zip(OUTLINES[:2], ((15, 25), (5, 15)), strict=True):
            line = np.abs(axial - np.array(to_rgb(colour)) * 255).sum(axis=-1) < 60
            found = bounds(line)[0]
            expected = [225 + (x - 30) * scale for x in (left, right)]
            assert np.mean(found) == pytest.approx(np.mean(expected), abs=4)
        levels.append(axial[round(42 * scale), [225 + round(x * scale) for x in (-27, 27)]].mean(axis=-1))
    (left, right), (other_left, other_right) = levels
    assert left == pytest.approx(right, abs=3) and other_right > other_left + 60


def test_regions_are_outlined_as_they_nest(tmp_path: Path) -> None:
    """Of a region-based dataset each region, not each label; without a description there is one channel and tumour."""
    dataset = write_channels(tmp_path / "a", {"whole tumour": [1, 2], "tumour core": 2})
    whole, core = brains._read_pair(dataset, "PAIR_0").outlined
    assert whole.sum() == 8 * 20 * 16 == 2 * core.sum() and (core <= whole).all()
    (dataset / "dataset.json").unlink()
    pair = brains._read_pair(dataset, "PAIR_0")
    assert len(pair.images) == len(pair.outlined) == 1 and pair.title == "8 ml"


def test_film_of_channels(tmp_path: Path) -> None:
    """Both channels of one pair beside each other, with both colours in each."""
    dataset = write_channels(tmp_path / "a", {"core": 1, "oedema": 2})
    frames = film(animation(dataset, tmp_path / "film.gif", pairs=2, width=320))
    for half in np.split(frames[20], 2, axis=1):
        for colour in OUTLINES[:2]:
            assert (half == np.array(to_rgb(colour)) * 255).all(axis=-1).sum() > 20


def test_methods_beside_each_other(tmp_path: Path) -> None:
    """Two methods share the width; the pairs of each row, and fewer where there are fewer, are in place."""
    methods = {"one": write_pairs(tmp_path / "a", count=5), "two": write_pairs(tmp_path / "b")}
    picture = is_orange(pixels(side_by_side(methods, tmp_path / "figure.png", rows=2)))
    halves = np.array_split(picture, 2, axis=1)
    upper = [half[: len(half) // 2].any() for half in halves]
    lower = [half[len(half) // 2 + 20 :].any() for half in halves]
    assert upper == [True, True] and lower == [True, False]


def test_pairs_are_chosen_evenly(tmp_path: Path) -> None:
    """Of five pairs the first, third and last, and of fewer than asked for all."""
    dataset = write_pairs(tmp_path, count=5)
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brains, "_read_pair", lambda _, name: read.append(name))
        brains._read_pairs(dataset, 3)
        brains._read_pairs(dataset, 9)
    assert read == ["PAIR_0", "PAIR_2", "PAIR_4", *(f"PAIR_{k}" for k in range(5))]


def test_datasets_that_cannot_be_drawn(tmp_path: Path) -> None:
    """No pairs, a missing image, an image of another shape: the folder or file is named, and nothing is written."""
    dataset = write_pairs(tmp_path / "a")
    with pytest.raises(DataError, match="holds no pairs"):
        side_by_side({"a": tmp_path}, tmp_path / "figure.png")
    image = dataset / "imagesTr" / "PAIR_0_0000.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4)), np.eye(4)), image)
    with pytest.raises(DataError, match="another shape"):
        animation(dataset, tmp_path / "film.gif")
    image.unlink()
    with pytest.raises(DataError, match=r"PAIR_0_0000\.nii\.gz"):
        animation(dataset, tmp_path / "film.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def film(path: Path) -> np.ndarray:
    """`[frames, rows, columns, 3]`."""
    with Image.open(path) as file:
        return np.stack([np.asarray((file.seek(k), file.convert("RGB"))[1]).astype(int) for k in range(file.n_frames)])


def test_film_shows_every_slice(tmp_path: Path) -> None:
    """A frame of 80 ms for each of 40 slices, for ever; the mask's border lies in its 16 slices, at its place."""
    path = animation(write_pairs(tmp_path / "a", count=2), tmp_path / "film.gif", pairs=2, width=320)
    with Image.open(path) as file:
        assert (file.n_frames, file.info["loop"], file.info["duration"]) == (40, 0, 80)
        assert file.width == 320
    frames = film(path)
    line = (frames == ORANGE).all(-1)
    assert [k for k in range(40) if line[k].any()] == list(range(12, 28))
    scale = 160 / (60 + 4)
    for start in (0, 160):  # of either pair
        (left, right), (top, bottom) = bounds(line[20, :, start : start + 160])
        lower_end = 20 + (84 + 80) / 2 * scale
        expected = [(2 + 5) * scale, (2 + 25) * scale, lower_end - 70 * scale, lower_end - 50 * scale]
        assert [left + 1, right - 1, top + 1, bottom - 1] == pytest.approx(expected, abs=1.5)


def test_film_of_a_tall_brain_has_60_frames(tmp_path: Path) -> None:
    """A hundred slices are thinned out, from the first to the last."""
    frames = film(animation(write_pairs(tmp_path / "a", height=100), tmp_path / "film.gif", pairs=1, width=120))
    shown = [k for k in range(60) if (frames[k] == ORANGE).all(-1).any()]
    assert len(frames) == 60
    assert shown == [k for k in range(60) if 12 <= int((k + 0.5) / 60 * 100) < 28]


def test_film_loses_greys_rather_than_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where 64 grey levels make too large a file there are fewer, 16 at last, and the colour of the outline stays."""
    dataset = write_pairs(tmp_path / "a")
    image = dataset / "imagesTr" / "PAIR_0_0000.nii.gz"
    noise = np.random.default_rng(0).uniform(1, 200, [n + 6 for n in BRAIN]).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, np.diag([*SPACING, 1])), image)
    levels, sizes = [], []
    for most in (brains.MOST_BYTES, 1):
        monkeypatch.setattr(brains, "MOST_BYTES", most)
        path = animation(dataset, tmp_path / "film.gif", pairs=1, width=120)
        colours = np.unique(film(path).reshape(-1, 3), axis=0)
        levels.append(len(colours) - 1)
        sizes.append(path.stat().st_size)
        assert list(ORANGE) in colours.tolist()
    assert levels == [64, 16] and sizes[1] < sizes[0] <= 3_000_000
