"""How well predicted masks match their references: overlap, surfaces and lesions of the foreground, overlap of regions.

Empty masks: when reference and prediction are both empty, DSC = IoU = NSD = 1 and HD95 = 0 mm; when one of them is,
DSC = IoU = NSD = 0 and HD95 = 374 mm (the rule of BraTS; nnU-Net's summary.json has NaN for the first case).
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from sbldm.cases.volumes import load_image, whole_numbers
from sbldm.run.errors import DataError, StateError
from sbldm.run.files import reading

__all__ = ["METRICS", "SIZE_BINS_ML", "score_case", "score_folder", "size_bin"]

METRICS = ("dsc", "iou", "hd95_mm", "nsd_1mm")

SIZE_BINS_ML = (1, 10, 50)
LEAST_ML = 0.1  # smaller components are no lesions
FOUND_SHARE = 0.1  # of a lesion's voxels
NSD_TOLERANCE_MM = 1.0
HD95_ONE_EMPTY_MM = 374.0  # about the diagonal of a BraTS volume
SAME_AFFINE_MM = 1e-3


def size_bin(volume_ml: float) -> str:
    """Name of the size bin of a lesion: "<1 ml", "1-10 ml", "10-50 ml" or ">=50 ml"; lower ends belong to a bin."""
    least, *_, most = SIZE_BINS_ML
    inner = [f"{low}-{high} ml" for low, high in pairwise(SIZE_BINS_ML)]
    return [f"<{least} ml", *inner, f">={most} ml"][bisect_right(SIZE_BINS_ML, volume_ml)]


def _surface_scores(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """HD95 in mm and NSD of two masks [X, Y, Z], by the rule for empty ones."""
    if not (reference.any() and prediction.any()):
        return (HD95_ONE_EMPTY_MM, 0.0) if reference.any() or prediction.any() else (0.0, 1.0)
    # The margin keeps surfaces where a mask touches the border of the image.
    masks = [torch.from_numpy(np.pad(mask, 1))[None, None] for mask in (prediction, reference)]
    options = {"include_background": True, "spacing": spacing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 calls itself with an argument it has deprecated
        hd95 = compute_hausdorff_distance(*masks, percentile=95, **options)
        nsd = compute_surface_dice(*masks, [NSD_TOLERANCE_MM], use_subvoxels=True, **options)
    return hd95.item(), nsd.item()


def _components(mask: np.ndarray, other: np.ndarray, voxel_mm3: float) -> tuple[np.ndarray, np.ndarray]:
    """Volumes in ml of a mask's 26-connected components from `LEAST_ML` on, and their shares that lie in `other`."""
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes, common = (np.bincount(found, minlength=count + 1)[1:] for found in (labels[mask], labels[mask & other]))
    volumes = sizes * voxel_mm3 / 1000
    kept = volumes >= LEAST_ML
    return volumes[kept], common[kept] / sizes[kept]


def score_case(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Compare the predicted foreground of one case with its reference.

    DSC = 2TP / (2TP + FP + FN) and IoU = TP / (TP + FP + FN) are those of nnU-Net. HD95: 95th percentile of the
    distances from each border voxel (a voxel with a face to the outside) to the other mask's nearest border voxel, the
    larger of both directions. NSD: share of both surfaces, in mm2, that lies within 1 mm of the other one. Its surface
    elements are those of marching cubes at the spacing (Nikolov et al., arXiv:1809.04430; DeepMind's definition), so
    that long and short voxel faces count by their area, not alike as in MONAI's default.

    A lesion is a 26-connected component of the reference of at least 0.1 ml; it is found when at least 10 % of its
    voxels are predicted. A false lesion is such a component of the prediction that shares no voxel with the reference.

    Args:
        reference: bool [X, Y, Z].
        prediction: bool [X, Y, Z] on the same grid.
        spacing: of the three axes, mm.

    Returns:
        dsc, iou, hd95_mm, nsd_1mm, reference_ml, predicted_ml, lesions, lesions_found and false_lesions; and for each
        lesion volume_ml and found (0 or 1).

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"The shapes differ: reference {reference.shape}, prediction {prediction.shape}.")
    # Affines carry float32 noise, which must not decide whether 1 mm is within 1 mm.
    spacing = [round(float(s), 5) for s in spacing]
    voxel_mm3 = float(np.prod(spacing))
    box = ndimage.find_objects((reference | prediction).astype(np.uint8))
    if box:
        reference, prediction = reference[box[0]], prediction[box[0]]

    n_reference, n_prediction, both = (int(m.sum()) for m in (reference, prediction, reference & prediction))
    total = n_reference + n_prediction
    hd95, nsd = _surface_scores(reference, prediction, spacing)
    volumes, found_shares = _components(reference, prediction, voxel_mm3)
    _, true_shares = _components(prediction, reference, voxel_mm3)
    lesions = [
        {"volume_ml": float(volume), "found": int(share >= FOUND_SHARE)}
        for volume, share in zip(volumes, found_shares, strict=True)
    ]
    scores = {
        "dsc": 2 * both / total if total else 1.0,
        "iou": both / (total - both) if total else 1.0,
        "hd95_mm": hd95,
        "nsd_1mm": nsd,
        "reference_ml": n_reference * voxel_mm3 / 1000,
        "predicted_ml": n_prediction * voxel_mm3 / 1000,
        "lesions": len(lesions),
        "lesions_found": sum(lesion["found"] for lesion in lesions),
        "false_lesions": int((true_shares == 0).sum()),
    }
    return scores, lesions


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels [X, Y, Z] and 4x4 affine in mm of a label file."""
    with reading(path, "make it again", error=DataError):
        image = load_image(path)
        return whole_numbers(np.asanyarray(image.dataobj)), image.affine


def score_folder(
    predictions: Path, references: Path, names: Sequence[str], regions: Mapping[str, Sequence[int]] | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Score the predictions NAME.nii.gz in one folder against the references of the same names in another.

    Args:
        predictions: folder of nnU-Net's output.
        references: folder of label files; foreground is every label above 0, and the spacing is that of the affine.
        names: cases, in the order of the rows.
        regions: label numbers of further foregrounds, by name; the four `METRICS` are taken of each too.

    Returns:
        A row per case and a row per lesion as in `score_case`, each with the name first, as "case". The scores of a
        region stand behind the others, called as in "dsc tumour core".

    Raises:
        StateError: a prediction or reference is missing.
        DataError: a file cannot be read, or the shapes or affines (by more than 0.001 mm) of a pair differ.
    """
    cases, lesions = [], []
    for name in names:
        predicted, expected = (Path(folder) / f"{name}.nii.gz" for folder in (predictions, references))
        if not predicted.is_file():
            raise StateError(f"{predicted}: this prediction is missing; predict first.")
        if not expected.is_file():
            raise StateError(f"{expected}: this reference is missing; name the folder that the cases came from.")
        (prediction, placed), (reference, affine) = _read(predicted), _read(expected)
        if reference.ndim != 3 or prediction.shape != reference.shape:
            raise DataError(f"{predicted}: has shape {prediction.shape}, its reference {reference.shape}.")
        if not (abs(placed - affine) <= SAME_AFFINE_MM).all():
            raise DataError(f"{predicted}: its affine is not that of its reference {expected}.")
        spacing = nib.affines.voxel_sizes(affine)
        scores, found = score_case(reference > 0, prediction > 0, spacing)
        for region, numbers in (regions or {}).items():
            own, _ = score_case(np.isin(reference, numbers), np.isin(prediction, numbers), spacing)
            scores |= {f"{metric} {region}": own[metric] for metric in METRICS}
        cases.append({"case": name, **scores})
        lesions += [{"case": name, **lesion} for lesion in found]
    return cases, lesions
