"""Every layout is found by itself and its label numbers come out as the source asks."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sbldm.cases.layouts import Source, find_cases, read_arrays, to_labels
from sbldm.run.errors import DataError, InputError

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
TISSUE_LABELS = {"oedema": ["oedema"], "core": ["necrotic", "enhancing"]}
MSD_JSON = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
}


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def image(value: int) -> np.ndarray:
    return np.full((4, 4, 4), value, np.int16)


def mask(*values: int) -> np.ndarray:
    """Voxels 0.. along the first axis hold 0 and then `values`; the rest is 0."""
    array = np.zeros((8, 4, 4), np.uint8)
    array[1 : 1 + len(values), 0, 0] = values
    return array


def brats(root: Path, name: str, separator: str = "_", ending: str = ".nii.gz", values: tuple[int, ...] = (1, 2, 4)):
    suffixes = ("flair", "t1", "t1ce", "t2") if separator == "_" else ("t2f", "t1n", "t1c", "t2w")
    for number, suffix in enumerate(suffixes):
        save(root / name / f"{name}{separator}{suffix}{ending}", image(10 + number))
    save(root / name / f"{name}{separator}seg{ending}", mask(*values))


def dataset(root: Path, content: dict) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(content))


def source(channels: tuple[str, ...] = ("flair",), labels: dict | None = None) -> Source:
    return Source.from_config(list(channels), labels or {"whole tumour": "all"})


def read_row(case, asked: Source) -> list[int]:
    """The labels along the row that `mask` filled."""
    return read_arrays(case, asked)[1][:, 0, 0].tolist()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("separator", "layout", "values", "whole", "tissues"),
    [
        ("_", "BraTS 2018-2021", (1, 2, 4, 3), [0, 1, 1, 1, 1, 0, 0, 0], [0, 2, 1, 2, 2, 0, 0, 0]),
        ("-", "BraTS 2023+", (1, 2, 3), [0, 1, 1, 1, 0, 0, 0, 0], [0, 2, 1, 2, 0, 0, 0, 0]),
    ],
)
def test_brats(tmp_path, ending, separator, layout, values, whole, tissues):
    brats(tmp_path, "B-001", separator, ending, values)
    brats(tmp_path, "A-001", separator, ending, values)
    cases = find_cases(tmp_path, source())
    assert [(case.name, case.layout) for case in cases] == [("A-001", layout), ("B-001", layout)]
    assert read_row(cases[0], source()) == whole
    asked = source(("t1ce", "flair"), TISSUE_LABELS)
    case = pickle.loads(pickle.dumps(find_cases(tmp_path, asked)[0]))
    assert read_row(case, asked) == tissues
    values, labels, affine = read_arrays(case, asked)
    assert values[:, 0, 0, 0].tolist() == [12, 10]
    assert (values.dtype, labels.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(affine, AFFINE)


def test_brats_one_level_deeper_with_stray_files(tmp_path):
    brats(tmp_path / "HGG", "b")
    brats(tmp_path / "LGG", "a")
    (tmp_path / "LGG" / "survival.csv").write_text("x")
    (tmp_path / "LGG" / ".hidden").mkdir()
    save(tmp_path / "LGG" / "._a" / "._a_flair.nii.gz", image(1))
    save(tmp_path / "LGG" / "a" / "._a_seg.nii.gz", image(1))
    assert [case.name for case in find_cases(tmp_path, source())] == ["a", "b"]


def test_one_name_twice(tmp_path):
    brats(tmp_path / "HGG", "a")
    brats(tmp_path / "LGG", "a")
    with pytest.raises(DataError, match="called a"):
        find_cases(tmp_path, source())


@pytest.mark.parametrize("gone", ["a_seg", "a_flair"])
def test_missing_partner_is_still_a_case(tmp_path, gone):
    brats(tmp_path, "a")
    path = tmp_path / "a" / f"{gone}.nii.gz"
    path.unlink()
    (case,) = find_cases(tmp_path, source())
    assert path in (*case.images, case.mask)


def test_msd(tmp_path):
    root = tmp_path / "Task01_BrainTumour"
    dataset(root, MSD_JSON)
    stack = np.stack([image(value) for value in (10, 11, 12, 13)], -1)
    save(root / "imagesTr/BRATS_001.nii.gz", stack)
    save(root / "imagesTr/._BRATS_001.nii.gz", stack)
    save(root / "labelsTr/BRATS_001.nii.gz", mask(1, 2, 3))
    save(root / "labelsTr/BRATS_002.nii.gz", mask(1))
    asked = source(("t1ce", "flair"), {"necrotic": "necrotic", "oedema": ["oedema"], "enhancing": ["enhancing"]})
    cases = find_cases(tmp_path, asked)  # the folder that holds the one data set will do
    assert [case.name for case in cases] == ["BRATS_001", "BRATS_002"]
    assert cases[0].volume == (2, 0) and cases[0].n_volumes == 4
    assert cases[0].label_values == {1: "oedema", 2: "necrotic", 3: "enhancing"}
    assert read_row(cases[0], asked) == [0, 2, 1, 3, 0, 0, 0, 0]
    assert read_arrays(cases[0], asked)[0][:, 0, 0, 0].tolist() == [12, 10]
    assert read_row(find_cases(root, source())[0], source()) == [0, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({"background": 0, "whole tumour": 1}, {1: None}),
        ({"background": 0, "anything": 1}, {1: None}),
        ({"background": 0, "Edema": 1, "NCR": 2, "ET": 3}, {1: "oedema", 2: "necrotic", 3: "enhancing"}),
        ({"background": 0, "tumor core": 1, "edema": 2}, {1: None, 2: "oedema"}),
        (
            {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
            {1: "oedema", 2: "necrotic", 3: "enhancing"},
        ),
    ],
)
def test_nnunet_label_names(tmp_path, labels, values):
    dataset(tmp_path, {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": labels})
    for index in range(2):
        save(tmp_path / f"imagesTr/x_1_{index:04d}.nii.gz", image(10 + index))
    save(tmp_path / "labelsTr/x_1.nii.gz", mask(*values))
    (case,) = find_cases(tmp_path, source())
    assert (case.name, case.layout, case.label_values) == ("x_1", "nnU-Net raw", values)
    assert read_row(case, source()) == [0] + [1] * len(values) + [0] * (7 - len(values))
    assert read_arrays(case, source())[0][0, 0, 0, 0] == 11


def test_nnunet_tissues(tmp_path):
    dataset(tmp_path, {"channel_names": {"0": "flair"}, "labels": {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3}})
    save(tmp_path / "imagesTr/x_0000.nii.gz", image(1))
    save(tmp_path / "labelsTr/x.nii.gz", mask(1, 2, 3))
    asked = source(labels=TISSUE_LABELS)
    assert read_row(find_cases(tmp_path, asked)[0], asked) == [0, 2, 1, 2, 0, 0, 0, 0]


TISSUES_APART = {"necrotic": "necrotic", "oedema": "oedema", "enhancing": "enhancing"}


@pytest.mark.parametrize(
    ("labels", "nested", "order"),
    [
        ({"whole tumour": "all"}, {"whole tumour": [1]}, None),
        ({"e": "enhancing"}, {"whole tumour": [1]}, None),
        (
            TISSUES_APART,
            {"whole tumour": [1, 2, 3], "tumour core": [1, 3], "enhancing tumour": [3]},
            [2, 1, 3],
        ),
        (
            {"core": ["necrotic", "enhancing"], "oedema": "oedema"},
            {"whole tumour": [1, 2], "tumour core": [1]},
            [2, 1],
        ),
        ({"oedema": "oedema", "enhancing": "enhancing"}, {"whole tumour": [1, 2], "enhancing tumour": [2]}, [1, 2]),
    ],
)
def test_nested_regions(labels, nested, order):
    """Those of BraTS that whole labels make up; painted over each other in this order they give the labels again."""
    plain, asked = (Source.from_config(["flair"], labels, regions=regions) for regions in (False, True))
    assert plain.nested == asked.nested == nested
    assert plain.description(4)["labels"] == {"background": 0} | {name: k for k, name in enumerate(labels, 1)}
    description = asked.description(4)
    assert description.get("regions_class_order") == order and description["numTraining"] == 4
    if order:
        painted = {}
        for numbers, label in zip(nested.values(), order, strict=True):
            painted |= dict.fromkeys(numbers, label)
        assert painted == {k: k for k in range(1, 1 + len(labels))}


def test_regions_that_do_not_tell_labels_apart():
    """Two labels that no region of BraTS separates cannot be learned as regions."""
    labels = {"n": "necrotic", "x": ["oedema", "enhancing"]}
    assert Source.from_config(["flair"], labels).nested == {"whole tumour": [1, 2]}
    with pytest.raises(
        InputError, match="n, x are not told apart by the regions whole tumour that they make up; ask for the tissues"
    ):
        Source.from_config(["flair"], labels, regions=True)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("labels", [TISSUES_APART, {"core": ["necrotic", "enhancing"], "oedema": "oedema"}])
def test_what_we_write_we_read(tmp_path, labels, regions):
    """A data set of ours gives its labels back by number, as regions too, and where a label joins tissues."""
    asked = Source.from_config(["flair"], labels, regions=regions)
    dataset(tmp_path, asked.description(1))
    save(tmp_path / "imagesTr/x_0000.nii.gz", image(7))
    save(tmp_path / "labelsTr/x.nii.gz", mask(*range(1, 1 + len(labels))))
    (case,) = find_cases(tmp_path, asked)
    assert read_row(case, asked)[: 1 + len(labels)] == [*range(1 + len(labels))]


def test_a_scheme_that_contradicts_our_own_names(tmp_path):
    """What was said with --labels is not passed over because the names of the data set are those asked for."""
    dataset(tmp_path, Source.from_config(["flair"], TISSUES_APART).description(1))
    save(tmp_path / "imagesTr/x_0000.nii.gz", image(7))
    save(tmp_path / "labelsTr/x.nii.gz", mask(1, 2, 3))
    scheme = {1: "cavity", 2: "oedema", 3: "enhancing"}
    with pytest.raises(InputError, match="calls label 1 necrotic, --labels cavity"):
        find_cases(tmp_path, Source.from_config(["flair"], TISSUES_APART, scheme))


def test_nnunet_cannot_give_what_it_lacks(tmp_path):
    dataset(tmp_path, {"channel_names": {"0": "flair"}, "labels": {"background": 0, "whole tumour": 1}})
    save(tmp_path / "imagesTr/x_0000.nii.gz", image(1))
    with pytest.raises(InputError, match="no channel t2"):
        find_cases(tmp_path, source(("t2",)))
    with pytest.raises(InputError, match="do not tell"):
        find_cases(tmp_path, source(labels=TISSUE_LABELS))


def test_dataset_json_missing_or_broken(tmp_path):
    save(tmp_path / "imagesTr/x_0000.nii.gz", image(1))
    with pytest.raises(DataError, match=r"dataset\.json: is missing"):
        find_cases(tmp_path, source())
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json: cannot be read"):
        find_cases(tmp_path, source())


def test_unasked_tissue_is_background_and_unknown_label_an_error(tmp_path):
    brats(tmp_path, "a")
    asked = source(labels={"enhancing": ["enhancing"]})
    (case,) = find_cases(tmp_path, asked)
    assert to_labels(np.array([0, 1, 2, 4]), case, asked).tolist() == [0, 0, 0, 1]
    for strange, message in (
        (7, "unknown label 7"),
        (-1, "unknown label -1"),
        (2.5, "2.5, no whole"),
        (np.nan, "nan, no"),
    ):
        with pytest.raises(DataError, match=message):
            to_labels(np.array([0, strange, 1]), case, asked)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="--data"):
        find_cases(tmp_path / "none", source())
    (tmp_path / "stray").mkdir()
    with pytest.raises(DataError, match=r"BraTS 2018-2021 .* BraTS 2023\+ .* MSD Task01 .* nnU-Net raw"):
        find_cases(tmp_path, source())


def test_names(tmp_path):
    for name in "abc":
        brats(tmp_path, name)
    assert [case.name for case in find_cases(tmp_path, source(), ["c", "a", "c"])] == ["c", "a"]
    with pytest.raises(DataError, match=r"2 of 3 cases asked for .*: x, y"):
        find_cases(tmp_path, source(), ["x", "a", "y"])


@pytest.mark.parametrize(
    ("channels", "labels", "message"),
    [
        (["pet"], {"wt": "all"}, "known are flair, t1, t1ce, t2"),
        (["flair", "flair"], {"wt": "all"}, "once"),
        ("flair", {"wt": "all"}, "must be a list"),
        ([], {"wt": "all"}, "channels"),
        (["flair"], {}, "at least one label"),
        (["flair"], None, "must map"),
        (["flair"], {"wt": 1}, "must be a list"),
        (["flair"], {"wt": []}, "must join tissues"),
        (["flair"], {"background": "all"}, "background"),
        (["flair"], {"core": ["bone"]}, "known are necrotic, oedema, enhancing"),
        (["flair"], {"wt": "all", "core": ["necrotic"]}, "necrotic stands in more than one"),
    ],
)
def test_source_is_validated(channels, labels, message):
    with pytest.raises(InputError, match=message):
        Source.from_config(channels, labels)
