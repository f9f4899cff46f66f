"""The output: an nnU-Net v2 raw dataset of finished pairs, with a manifest that says how each one came to be.

A pair is its label file, its image files, and last a record under `records/`, which marks it finished. The manifest and
`dataset.json` are compiled from the records, so a killed run leaves nothing that the next one cannot put right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sbldm.cases.layouts import Source
from sbldm.run.errors import DamagedError, InputError, OutputError, StateError
from sbldm.run.files import clear_partial, make_folder, read_json, write_csv, write_json, write_nifti
from sbldm.run.manifest import DRAWN_BY, GIVEN_UP, RECORD, Manifest
from sbldm.run.room import free_bytes, gigabytes, lasting

# Bytes of a compressed voxel: 130 real cases at 2 mm and 10 at 1 mm have .24 to .26 and .007 to .009 in the mean.
A_VOXEL, A_LABEL = 0.3, 0.01
BLOCKS = 3 * 4096  # what files take at least

__all__ = ["RawDataset"]


@dataclass(frozen=True)
class RawDataset:
    """`nnUNet_raw/DatasetNNN_NAME` of one run and one set of settings.

    Attributes:
        folder: of the dataset.
        prefix: of the pair names, followed by the seed.
        source: channels and labels.
        affine: voxel indices to RAS millimetres, for image and mask alike.
        settings: what all its pairs have in common, kept in `synthesis.json`.
        lineage: real cases that the pairs descend from and their content hashes, kept in `lineage.json`; a record that
            descends from some of them alone names those in `parents`, separated by semicolons.
        origin: of a generator from elsewhere, what it was trained on (`Weights.origin`), kept there too.
    """

    folder: Path
    prefix: str
    source: Source
    affine: np.ndarray
    settings: dict[str, Any]
    lineage: dict[str, str]
    origin: dict[str, Any] | None = None

    @classmethod
    def open(
        cls,
        root: str,
        dataset_id: Any,
        name: str,
        source: Source,
        affine: np.ndarray,
        settings: dict[str, Any],
        lineage: dict[str, str],
        origin: dict[str, Any] | None = None,
    ) -> RawDataset:
        """A new dataset, or one that was begun with the same `settings`; nothing is written yet.

        Raises:
            InputError: a bad number or name.
            StateError: it holds pairs drawn with other settings (the first difference is named).
        """
        if not re.fullmatch(r"[0-9]{1,3}", str(dataset_id)) or not 1 <= int(dataset_id) <= 999:
            raise InputError(f"--dataset {dataset_id}: must be a number from 1 to 999.")
        if not name.isidentifier():
            raise InputError(f"--name {name}: letters, digits and underscores only.")
        settings = {key: value for key, value in settings.items() if value is not None}
        folder = Path(root) / f"Dataset{int(dataset_id):03d}_{name}"
        others = [p for p in Path(root).glob(f"Dataset{int(dataset_id):03d}_*") if p != folder]
        if others:
            raise StateError(f"{others[0]}: number {dataset_id} is taken by this dataset; choose another --dataset.")
        mark = folder / "synthesis.json"
        if mark.exists() and (held := Manifest(folder).settings) != settings:
            key = next(k for k in held | settings if held.get(k) != settings.get(k))
            raise StateError(
                f"{folder}: holds pairs drawn with {key} = {held.get(key)}, now it is {settings.get(key)}; "
                f"choose another --dataset (for example --dataset {int(dataset_id) + 1}) or remove the folder."
            )
        return cls(folder, name, source, np.asarray(affine), settings, dict(lineage), origin)

    def begin(self) -> None:
        """Make the folders, and clear away partial files, damaged records, and own pairs without a record.

        Files under other names, such as real cases put beside the pairs, are not touched.
        """
        for part in ("imagesTr", "labelsTr", "records"):
            make_folder(self.folder / part)
        clear_partial(self.folder)
        write_json(self.folder / "synthesis.json", self.settings)
        finished = set()
        for path in (self.folder / "records").rglob("*.json"):
            if not _is_whole(path):  # this pair is drawn again, and is the same
                path.unlink()
                continue
            finished.add(path.stem)
            if "canvas" in (record := read_json(path)):  # of an earlier call, which may have had others
                self.descend(record["canvas"], record["canvas_content"])
        write_json(
            self.folder / "lineage.json", {"cases": self.lineage} | ({"generator": self.origin} if self.origin else {})
        )
        finished -= {path.stem for path in (self.folder / "records" / "given_up").glob("*.json")}
        own = re.compile(rf"({re.escape(self.prefix)}_\d{{6,}})(_\d{{4}})?\.nii\.gz")
        for part in ("imagesTr", "labelsTr"):
            for path in (self.folder / part).iterdir():
                if (match := own.fullmatch(path.name)) and match[1] not in finished:
                    path.unlink()

    def descend(self, name: str, content: str) -> None:
        """Add a real case and its content hash to the lineage, beside one of the same name with another content."""
        known = self.lineage.get(name, content) == content
        self.lineage[name if known else f"{name} (canvas {content[:8]})"] = content

    def check_room(self, n: int, size: Sequence[int]) -> None:
        """An `OutputError` when `n` pairs, with those that are there, do not fit on the disk.

        Args:
            n: pairs in all.
            size: of their native grid, voxels.
        """
        there = len(list((self.folder / "records").glob("*.json")))
        a_pair = BLOCKS + float(np.prod(size)) * (A_VOXEL * len(self.source.channels) + A_LABEL)
        free = free_bytes(self.folder)
        if (needed := (n - there) * a_pair) > free:
            raise OutputError(
                f"{self.folder}: {n - there} pairs need about {gigabytes(needed)} ({a_pair / 1e6:.1f} MB each), "
                f"{gigabytes(free)} are free; free space, or ask for no more than --n {there + int(free // a_pair)}."
            )

    def tell_time(self, left: int, say: Callable[[str], None] = print, processes: int = 1) -> bool:
        """Say how long so many pairs will take if that is more than a minute; False when no pair tells it yet."""
        records = sorted((self.folder / "records").glob("*.json"))[-10:]
        seconds = [record["seconds"] for record in map(read_json, records) if "seconds" in record]
        if seconds and (total := left * float(np.mean(seconds)) / processes) > 60:
            say(
                f"About {lasting(total)} for {left} pairs, at {np.mean(seconds):.2g} s a pair (measured on the "
                f"last {len(seconds)} here){f' in each of {processes} processes' if processes > 1 else ''}."
            )
        return bool(seconds)

    def name(self, seed: int) -> str:
        """Name of the pair with this seed."""
        return f"{self.prefix}_{seed:06d}"

    def finished(self, seed: int) -> bool:
        """Whether the pair with this seed is there as a whole."""
        name, folder = self.name(seed), self.folder
        files = [folder / "records" / f"{name}.json", folder / "labelsTr" / f"{name}.nii.gz"]
        files += [folder / "imagesTr" / f"{name}_{k:04d}.nii.gz" for k in range(len(self.source.channels))]
        return all(path.is_file() for path in files) and _is_whole(files[0])

    def outcome(self, seed: int) -> dict[str, Any]:
        """What became of the pair with this seed: its record, or that of a given-up one, which has `attempts`."""
        path = self.folder / "records" / f"{self.name(seed)}.json"
        if path.is_file():
            return read_json(path, RECORD, DRAWN_BY)
        return read_json(path.parent / "given_up" / path.name, GIVEN_UP, DRAWN_BY)

    def write(
        self,
        seed: int,
        image: np.ndarray,
        labels: np.ndarray,
        record: dict[str, Any],
        affine: np.ndarray | None = None,
    ) -> None:
        """Write one pair: `image` `[C, X, Y, Z]` int16, `labels` `[X, Y, Z]` uint8, its record, and its own affine."""
        name, affine = self.name(seed), self.affine if affine is None else affine
        write_nifti(self.folder / "labelsTr" / f"{name}.nii.gz", labels, affine, scratch=self.folder)
        for k, channel in enumerate(image):
            path = self.folder / "imagesTr" / f"{name}_{k:04d}.nii.gz"
            write_nifti(path, channel, affine, scratch=self.folder)
        write_json(self.folder / "records" / f"{name}.json", {"pair": name} | record)
        (self.folder / "records" / "given_up" / f"{name}.json").unlink(missing_ok=True)

    def give_up(self, seed: int, faults: Sequence[str]) -> None:
        """Write down why a pair was refused at every attempt."""
        name = self.name(seed)
        content = {"pair": name, "seed": seed, "attempts": len(faults), "refused_because": "; ".join(faults)}
        write_json(self.folder / "records" / "given_up" / f"{name}.json", content)

    def compile(self) -> int:
        """Write `manifest.csv`, `given_up.csv` and `dataset.json` from the records; return the number of pairs."""
        if records := _alike(sorted((self.folder / "records").glob("*.json")), RECORD):
            write_csv(self.folder / "manifest.csv", records)
        if given_up := _alike(sorted((self.folder / "records" / "given_up").glob("*.json")), GIVEN_UP):
            write_csv(self.folder / "given_up.csv", given_up)
        write_json(self.folder / "dataset.json", self.source.description(len(records)))
        return len(records)


def _is_whole(path: Path) -> bool:
    """Whether a record under `records/` says what it should."""
    try:
        read_json(path, GIVEN_UP if path.parent.name == "given_up" else RECORD)
    except DamagedError:
        return False
    return True


def _alike(paths: Sequence[Path], form: dict[str, Any]) -> list[dict[str, Any]]:
    """Records that make one table, in which cells that those of an older version lack are empty.

    Raises:
        DamagedError: one has an entry that the fullest lacks; it is named.
    """
    records = [read_json(path, form, DRAWN_BY) for path in paths]
    columns = max(records, key=len, default={})
    for path, record in zip(paths, records, strict=True):
        if odd := set(record) - set(columns):
            raise DamagedError(
                f"{path}: damaged ({min(odd)} is not in all records); remove the odd one and {DRAWN_BY}."
            )
    return [dict.fromkeys(columns, "") | record for record in records]
