"""Label schemes: every number becomes the right tissue, a wrong scheme is refused with what would fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sbldm.cases.labels import read_scheme
from sbldm.cases.layouts import Source, find_cases, read_arrays
from sbldm.cases.lists import read_lists
from sbldm.cases.pipeline import original_cases
from sbldm.run.errors import DataError, InputError
from sbldm.run.folder import Run
from tests.conftest import TINY, call, one_line

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
COUNTS = (0, 10, 20, 30, 40)  # voxels of each label, 2 mm3 each
TISSUES = {"necrotic": "necrotic", "oedema": "oedema", "enhancing": "enhancing"}


def write(root: Path, name: str, counts: tuple[int, ...] = COUNTS, flair: str = "-t2f", seg: str = "-seg") -> None:
    """A case whose mask holds label k in `counts[k]` voxels."""
    stored = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    mask = np.zeros((8, 8, 8), np.uint8)
    mask.flat[: stored.size] = stored
    (root / name).mkdir(parents=True)
    for suffix, array in ((flair, np.ones_like(mask)), (seg, mask)):
        nib.save(nib.Nifti1Image(array, AFFINE), root / name / f"{name}{suffix}.nii.gz")


def voxels(root: Path, scheme: object = "auto") -> tuple[int, dict[str, int]]:
    """Voxels of the whole tumour, and of each tissue."""
    whole = Source.from_config(["flair"], {"whole tumour": "all"}, scheme)
    (case,) = find_cases(root, whole)
    apart = Source.from_config(["flair"], TISSUES, scheme)
    labels = read_arrays(find_cases(root, apart)[0], apart)[1]
    return int((read_arrays(case, whole)[1] > 0).sum()), {
        name: int((labels == k).sum()) for k, name in enumerate(TISSUES, 1)
    }


@pytest.mark.parametrize(
    ("scheme", "counts", "whole", "necrotic", "oedema", "enhancing"),
    [
        ("brats21", (0, 10, 20, 0, 40), 70, 10, 20, 40),
        ("brats23", (0, 10, 20, 30), 60, 10, 20, 30),
        ("brats24", COUNTS, 60, 10, 20, 30),  # the cavity is no tumour
        ("peds", COUNTS, 100, 20 + 30, 40, 10),
        ({1: "enhancing", 2: "necrotic", 3: "cavity", 4: "oedema"}, COUNTS, 70, 20, 40, 10),
        ({1: "Edema", 2: "tumour", 3: "ET", "4": "background"}, COUNTS, 60, 0, 10, 30),
    ],
)
def test_schemes(tmp_path, scheme, counts, whole, necrotic, oedema, enhancing):
    write(tmp_path, "BraTS-GLI-00005-100", counts)
    assert voxels(tmp_path, scheme) == (whole, {"necrotic": necrotic, "oedema": oedema, "enhancing": enhancing})


@pytest.mark.parametrize("name", ["BraTS-PED-00001-000", "brats-peds-00012-001"])
def test_paediatric_cases_by_their_name(tmp_path, name):
    write(tmp_path, name)
    assert voxels(tmp_path) == (100, {"necrotic": 50, "oedema": 40, "enhancing": 10})
    assert voxels(tmp_path, "brats24")[0] == 60  # what is chosen goes before


def test_label_4_is_refused_with_the_schemes_that_know_it(tmp_path):
    write(tmp_path, "BraTS-GLI-00005-100")
    message = (
        r"unknown label 4; BraTS 2023\+ has 1, 2, 3; label 4 is enhancing in BraTS 2018-2021 \(--labels brats21\) or "
        r"the resection cavity in BraTS 2024 \(--labels brats24\) or oedema in BraTS-PEDs \(--labels peds\)"
    )
    with pytest.raises(DataError, match=message):
        voxels(tmp_path)
    write(tmp_path / "five", "BraTS-GLI-00006-000", (0, 1, 0, 0, 0, 1))
    with pytest.raises(DataError, match=r"unknown label 5; .* --labels file\.yaml"):
        voxels(tmp_path / "five")


@pytest.mark.parametrize(
    ("labels", "scheme", "whole"),
    [
        ({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}, "auto", 60),
        ({"background": 0, "ET": 1, "NET": 2, "CC": 3, "ED": 4}, "auto", 100),
        ({"background": 0, "one": 1, "two": 2, "three": 3, "four": 4}, "brats24", 60),
        ({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "left over": 4}, {1: "necrotic", 4: "cavity"}, 60),
    ],
)
def test_names_in_dataset_json(tmp_path, labels, scheme, whole):
    write(tmp_path, "a", flair="_0000", seg="")
    for part, name in (("imagesTr", "a_0000"), ("labelsTr", "a")):
        (tmp_path / part).mkdir()
        (tmp_path / "a" / f"{name}.nii.gz").rename(tmp_path / part / f"{name}.nii.gz")
    content = {"channel_names": {"0": "FLAIR"}, "labels": labels, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_bytes(json.dumps(content).encode("utf-8-sig"))
    asked = Source.from_config(["flair"], {"whole tumour": "all"}, scheme)
    assert (read_arrays(find_cases(tmp_path, asked)[0], asked)[1] > 0).sum() == whole
    if "SNFH" in labels:
        with pytest.raises(InputError, match="calls label 1 necrotic, --labels enhancing"):
            find_cases(tmp_path, Source(scheme="peds"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_scheme_of_ones_own(tmp_path, encoding, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_bytes("0: background\n3: Edema\n1: ET  # enhancing\n'2': NCR\n".encode(encoding))
    assert read_scheme("~/mine.yaml") == {1: "enhancing", 2: "necrotic", 3: "oedema"}
    assert read_scheme("BraTS24") == "brats24"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "1: enhansing",
            "1: 'enhansing' is no tissue; the nearest is enhancing. Known are necrotic, oedema",
        ),
        ("1: $__import__('os')", "is an expression"),
        ("1: '@image'", "is an expression"),
        ("_target_: os.system", "the key _target_ would be executed"),
        ("1: {_target_: os.system}", "_target_ would be executed"),
        ("1: !!python/object/apply:os.system [ls]", "is not readable as YAML"),
        ("enhancing: 1", "'enhancing' is no number of a mask; the number comes first, for example `1: enhancing`"),
        ("1.5: oedema", "1.5 is no number"),
        ("-1: oedema", "-1 is no number"),
        ("true: oedema", "True is no number"),
        ("1: oedema\n1: enhancing", "1 stands there twice"),
        ("1: oedema\n'1': enhancing", "1 stands there twice"),
        ("0: oedema", "0 is always background"),
        ("4: cavity", "names no tissue of a tumour"),
        ("1: yes", "1: True is no tissue"),
        ("", "None is neither"),
        ("[1, 2]", "is neither"),
        ("{", "is not readable as YAML"),
    ],
)
def test_wrong_schemes(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_scheme(str(path))
    assert str(path) in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_scheme():
    with pytest.raises(
        InputError, match=r"--labels brats2024: no such scheme or file; the nearest is brats24\. Known are"
    ):
        read_scheme("brats2024")
    with pytest.raises(InputError, match="scheme: 'brats99' is neither"):
        Source.from_config(["flair"], {"wt": "all"}, "brats99")


def test_the_scheme_stays_with_the_run(tmp_path, phantom_cases, monkeypatch):
    """Refused without; then every later reading takes the cavity for background, when the file has gone too."""
    for k, old in enumerate(sorted(phantom_cases.iterdir())[:2]):  # named as BraTS 2024 does, a third of it cavity
        name = f"BraTS-GLI-{k:05d}-100"
        (tmp_path / "cases" / name).mkdir(parents=True)
        shutil.copy(old / f"{old.name}_flair.nii.gz", tmp_path / "cases" / name / f"{name}-t2f.nii.gz")
        image = nib.load(old / f"{old.name}_seg.nii.gz")
        mask = np.asarray(image.dataobj) > 0
        points = np.argwhere(mask)
        mask = mask.astype(np.uint8)
        mask[tuple(points[: len(points) // 3].T)] = 4
        nib.save(nib.Nifti1Image(mask, image.affine), tmp_path / "cases" / name / f"{name}-seg.nii.gz")
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare = (
        "prepare",
        "--data",
        "~/cases",
        "--run",
        "~/run",
        "--validation-cases",
        "~/list.txt",
        "--preset",
        TINY,
        "--workers",
        1,
    )
    (tmp_path / "list.txt").write_bytes(f"BraTS-GLI-00001-100/{name}-seg.nii.gz \r\n".encode("utf-16"))
    refused = one_line(call(*prepare), 3)
    assert "--labels brats24" in refused and not (tmp_path / "run").exists()
    (tmp_path / "mine.yaml").write_text("{1: NETC, 2: SNFH, 3: ET, 4: RC}\n")
    for _ in range(2):
        done = call(*prepare, "--labels", "~/mine.yaml")
        assert done.returncode == 0, done.stderr
    (tmp_path / "mine.yaml").unlink()
    assert "other values" in one_line(call(*prepare, "--labels", "peds"), 4)
    run = Run.at(tmp_path / "run")
    assert run.preset.data.scheme == {"1": "necrotic", "2": "oedema", "3": "enhancing", "4": "cavity"}
    assert read_lists(run.folder) == {"train": ["BraTS-GLI-00000-100"], "validation": ["BraTS-GLI-00001-100"]}
    source = Source.from_config(**dict(run.preset.data))
    for case in [*original_cases(run, "train"), *original_cases(run, "validation")]:
        tumour = np.asarray(nib.load(case.mask).dataobj) == 1
        assert np.array_equal(read_arrays(case, source)[1] > 0, tumour)
        measured = json.loads((run.prepared / f"{case.name}.json").read_text())["characteristics"]["volume_ml"]
        assert measured == pytest.approx(tumour.sum() * 0.064, rel=1e-2)  # as it comes back
