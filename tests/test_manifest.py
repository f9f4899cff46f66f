"""What a dataset of pairs says about itself: read once, each value in one place, damage named with its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sbldm.run.errors import DamagedError, StateError
from sbldm.run.manifest import MEASURED, REQUESTED, Manifest, PairRecord
from sbldm.tumour.characteristics import NAMES

COPYPASTE = ("pair", "seed", "measured_volume_ml", "redrawn")


def _manifest(folder: Path, columns: tuple[str, ...] | None = None, **changes: Any) -> Manifest:
    """Two pairs as the drawing writes them; `changes` apply to the second."""
    base = {"pair": "A_000003", "seed": 3} | {f"requested_{n}": 0.5 + i for i, n in enumerate(NAMES)}
    base |= {f"measured_{n}": 1.5 for n in NAMES} | {"extrapolated": "", "redrawn": 0, "sampler": "ddim"}
    rows = [base | dict.fromkeys(changes, ""), base | {"pair": "A_000004", "seed": 4} | changes]
    rows[0] |= {name: base[name] for name in changes if name in base}
    columns = [c for c in rows[1] if columns is None or c in columns]
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return Manifest(folder)


def test_requests_and_what_was_drawn(tmp_path: Path) -> None:
    """They come back as numbers, beside name, seed, redraws and in what a request goes too far."""
    far = 'volume_ml 900 is above 5 to 200; "far", too'
    manifest = _manifest(tmp_path, extrapolated=far, redrawn=2, requested_x_mm=-12.25)
    assert [(p.name, p.seed, p.redrawn, p.extrapolated) for p in manifest.pairs] == [
        ("A_000003", 3, 0, ""),
        ("A_000004", 4, 2, far),
    ]
    requests = manifest.values(REQUESTED, NAMES)
    assert requests[0].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5] and requests[1, 3] == -12.25
    assert (manifest.values(MEASURED, NAMES) == np.full((2, 9), 1.5)).all()
    assert manifest.drawn == 4 and manifest.given_up == []
    (tmp_path / "given_up.csv").write_text("pair,seed,attempts,refused_because\nA_000005,5,8,too small\n")
    assert Manifest(tmp_path).drawn == 12


def test_what_a_dataset_does_not_say(tmp_path: Path) -> None:
    """Copy-paste asks for nothing and has no gate; columns that only other kinds of pairs have are None or empty."""
    manifest = _manifest(tmp_path, columns=COPYPASTE)
    first = manifest.pairs[0]
    assert not first.requested and first.measured == {"volume_ml": 1.5}
    assert first.gate is first.near is first.parents is first.seconds is None and first.canvas == "" == first.checkpoint
    assert first.satellite_ml == 0 and not first.overridden and not manifest.overridden
    with pytest.raises(DamagedError, match="line 2: the column measured_surface_mm2 is missing"):
        manifest.values(MEASURED, NAMES)
    assert not manifest.is_ours and not manifest.has_settings and not manifest.has_lineage


def test_what_a_reader_needs(tmp_path: Path) -> None:
    """An empty cell is named before it is missed, and of how many were drawn nothing is said then."""
    manifest = _manifest(tmp_path, seconds="", redrawn="")
    assert manifest.drawn is None
    manifest.need("seed")
    with pytest.raises(DamagedError, match="line 2: a cell of the column seconds is missing"):
        manifest.need("seed", "seconds")


def test_gate_and_nearness(tmp_path: Path) -> None:
    """What the gate said of a pair, and whether somebody looked how near it is to a training case."""
    manifest = _manifest(tmp_path, gate="OVERRIDDEN: too small", near_copy="1", satellite_ml="2.5")
    assert [pair.near for pair in manifest.pairs] == [None, True]
    assert [pair.name for pair in manifest.overridden] == ["A_000004"] and manifest.pairs[1].satellite_ml == 2.5


def test_whose_brain_a_pair_shows_and_whom_it_descends_from(tmp_path: Path) -> None:
    """Parents if it names them; of a generator from elsewhere its canvas; else all of the lineage."""
    whole = _manifest(tmp_path)
    assert whole.shows_real_brains == "" and whole.pairs[1].ancestors(True) is None
    canvas = _manifest(tmp_path, canvas="Case_1", canvas_content="ab")
    assert "is a real one" in canvas.shows_real_brains and canvas.pairs[1].canvas_content == "ab"
    assert canvas.pairs[1].ancestors(False) is None and canvas.pairs[1].ancestors(True) == {"Case_1"}
    parents = _manifest(tmp_path, canvas="Case_1", parents="Case_2;Case_3")
    assert "repeats a real brain" in parents.shows_real_brains
    assert parents.pairs[1].ancestors(True) == parents.pairs[1].ancestors(False) == {"Case_2", "Case_3"}
    assert Manifest(tmp_path / "nothing").shows_real_brains == "" and Manifest(tmp_path / "nothing").readable == ()


def test_a_generator_from_elsewhere(tmp_path: Path) -> None:
    """It is one by its weights: those of a training that went on from it are another matter."""
    origin = {"data": "D", "licence": "L", "cases": 3, "seen": [{"salt": "s", "hashes": ["h"]}], "weights_sha256": "aa"}
    lineage = {"cases": {"Case_1": "c1"}, "generator": origin}
    (tmp_path / "lineage.json").write_text(json.dumps(lineage))
    for sha, expected in (("aa", True), ("bb", False)):
        (tmp_path / "synthesis.json").write_text(json.dumps({"checkpoint_sha256": sha, "seed": 0}))
        manifest = Manifest(tmp_path)
        assert manifest.from_elsewhere is expected and manifest.lineage == {"Case_1": "c1"}
        assert manifest.origin["cases"] == 3
    (tmp_path / "lineage.json").write_text(json.dumps({"cases": {}, "generator": origin | {"cases": "three"}}))
    with pytest.raises(DamagedError, match=r"lineage\.json: damaged \('cases' is missing"):
        Manifest(tmp_path).origin  # noqa: B018


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requested_y_mm": "much"}, "line 3: could not convert string to float: 'much'"),
        ({"requested_volume_ml": "nan"}, "line 3: holds an impossible request"),
        ({"requested_d_mm": -4}, "line 3: holds an impossible request"),
        ({"redrawn": "twice"}, "line 3: invalid literal"),
        ({"seconds": "long"}, "line 3: could not convert"),
        ({"pair": "A_000003"}, "line 3: A_000003 comes twice"),
        ({"columns": ("seed", "requested_volume_ml")}, "the column pair is missing"),
    ],
)
def test_damaged_cells(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Each fault is one line that names file, place and mend."""
    manifest = _manifest(tmp_path, **changes)
    with pytest.raises(DamagedError, match=message) as error:
        manifest.pairs  # noqa: B018
    assert str(error.value).startswith(str(manifest.file)) and "again" in str(error.value) and not manifest.readable


def test_a_characteristic_that_was_not_written(tmp_path: Path) -> None:
    """What scores need is asked for by name, and its absence named."""
    columns = ("pair", "seed", "requested_volume_ml", "redrawn", "extrapolated")
    with pytest.raises(DamagedError, match="line 2: the column requested_surface_mm2 is missing"):
        _manifest(tmp_path, columns=columns).values(REQUESTED, NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"pair,seed\n", "lists no pairs"),
        (b"\x1f\x8b\xff\xfe", "no text"),
        (b'pair,seed\n"A_000003,3\n', "cut off"),
        (None, "is missing"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    """Empty, cut off, binary or missing."""
    manifest = Manifest(tmp_path)
    if content is not None:
        manifest.file.write_bytes(content)
    with pytest.raises(StateError, match=message):
        manifest.pairs  # noqa: B018


def test_cut_line(tmp_path: Path) -> None:
    """A manifest that ends in the middle of a line."""
    manifest = _manifest(tmp_path)
    manifest.file.write_bytes(manifest.file.read_bytes()[:-30])
    with pytest.raises(DamagedError, match="the end of its last line is missing"):
        manifest.pairs  # noqa: B018


def test_a_record_keeps_its_line() -> None:
    """A filtered dataset writes the lines of the kept pairs again, with all that stood there."""
    cells = {"pair": "A_000001", "seed": "1", "another": "x"}
    assert PairRecord.of(cells).cells == cells and PairRecord.of(cells).redrawn is None
