"""The gate: copies, empty and implausible pairs are drawn again, the override is loud, refusals are written down."""

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import call, copy_run, one_line
from scipy import ndimage

from nnunet_integration.sources import find_pairs, find_real
from sbldm.cases.geometry import NativeGrid
from sbldm.cases.lists import read_lists
from sbldm.cases.prepare import load_prepared, read_sidecar
from sbldm.metrics.copies import REACH, Memory
from sbldm.metrics.nearness import too_many_copies
from sbldm.metrics.tumours import shape_measures
from sbldm.metrics.volumes import evaluation_grid, to_volume
from sbldm.pages.datasheet import write_datasheet
from sbldm.run.errors import InputError, StateError
from sbldm.run.files import read_json, write_csv, write_json
from sbldm.run.folder import Run
from sbldm.synthesis import Gate, Pair, finish_pair, session
from sbldm.synthesis.gate import MEASURES, Tolerance, _limits, _unlike_request
from sbldm.synthesis.gate import _measures as gate_measures
from sbldm.tumour.characteristics import NAMES, measure, to_dict

REQUEST = dict(zip(NAMES, (30.0, 5000.0, 0.8, 10.0, 0.0, 0.0, 40.0, 40.0, 40.0), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, many_phantoms: list[Path]) -> Run:
    """A run with sixteen prepared phantoms, four of them held back."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "cases").mkdir()
    for case in many_phantoms[:16]:
        (folder / "cases" / case.name).symlink_to(case)
    (folder / "held.txt").write_text("".join(f"Phantom_{i:03d}\n" for i in range(12, 16)))
    done = call(
        *("prepare", "--data", folder / "cases", "--run", folder / "run", "--preset", "demo"),
        *("--validation-cases", folder / "held.txt"),
    )
    assert done.returncode == 0, done.stderr
    return Run.at(folder / "run")


@pytest.fixture(scope="module")
def gate(run: Run) -> Gate:
    """The gate of that run."""
    return Gate.of_run(str(run.folder))


def drawn_as(run: Run, name: str) -> tuple[Pair, np.ndarray, dict[str, float]]:
    """The pair that a model would draw which has learnt this case by heart; its affine, and a request that fits it."""
    volume, sidecar = load_prepared(run.prepared, name)
    native, working = (NativeGrid.from_state(sidecar[key]) for key in ("native", "working"))
    constants = {"intensities": sidecar["intensities"]}
    pair = finish_pair(volume, SimpleNamespace(preset=run.preset, native=native, working=working, constants=constants))
    return pair, native.affine(), to_dict(pair.measured)


def test_training_cases_are_copies_and_others_are_not(run: Run, gate: Gate) -> None:
    """All twelve training cases are refused, as they are and mirrored; new phantoms pass."""
    for name in read_lists(run.folder)["train"]:
        pair, affine, request = drawn_as(run, name)
        verdict = gate.verdict_of(pair, affine, request)
        assert verdict.refused and verdict.fault.startswith("copy of a training case") and verdict.near, name
        assert verdict.correlation > 0.6
        mirrored = Pair(pair.image[:, ::-1], pair.labels[::-1], pair.measured, "")
        assert gate.verdict_of(mirrored, affine, request).fault.startswith("copy of a training case")
    for name in read_lists(run.folder)["validation"]:
        verdict = gate.verdict_of(*drawn_as(run, name))
        assert not verdict.refused and verdict.record()["gate"] == "passed", verdict


def key_of_one_channel(run: Run, gate: Gate) -> str:
    """What a gate of one channel is kept by."""
    lists = read_lists(run.folder).items()
    cases = {role: sorted(read_sidecar(run.prepared, name)["content"] for name in names) for role, names in lists}
    return hashlib.sha256(f"9 {gate.grid} {json.dumps(cases)}".encode()).hexdigest()


def test_one_channel_is_as_before_there_were_several(run: Run, gate: Gate) -> None:
    """Files, key and numbers: what existing runs have kept is not measured anew."""
    assert sorted(path.name for path in run.gate.iterdir()) == ["memory.npz", "ranges.json", "tumours.npz"]
    assert read_json(run.gate / "ranges.json")["key"] == key_of_one_channel(run, gate)
    assert [gate.memory.near, gate.memory.copy] == pytest.approx([0.10296, 0.16625], abs=1e-4)
    held_back, train = (drawn_as(run, read_lists(run.folder)[role][0]) for role in ("validation", "train"))
    record = gate.verdict_of(*held_back).record()
    known = {"nearest_correlation": 0.2581, "nearest_excess": 0.1109, "tumour_dsc": 0.7069, "tumour_excess": 0.1873}
    assert record == {"gate": "passed", "near_copy": 1} | {k: pytest.approx(v, abs=1e-3) for k, v in known.items()}
    fault = "copy of a training case (correlation 1.00, 1.00 beyond the next)"
    assert gate.verdict_of(*train).fault == fault


def test_a_copy_in_one_of_several_channels_is_refused(tmp_path: Path, many_phantoms: list[Path]) -> None:
    """T1 alone is a training brain's: the fault names the channel, which FLAIR says nothing of; a canvas is real."""
    (tmp_path / "cases").mkdir()
    for case in many_phantoms[:8]:
        (tmp_path / "cases" / case.name).symlink_to(case)
    preset = {"inherits_from": "demo", "data": {"channels": ["flair", "t1"]}}
    (tmp_path / "two.yaml").write_text(json.dumps({"preset": preset | {"name": "two"}}))
    (tmp_path / "held.txt").write_text("Phantom_007\n")
    done = call(
        *("prepare", "--data", tmp_path / "cases", "--run", tmp_path / "run", "--preset", tmp_path / "two.yaml"),
        *("--validation-cases", tmp_path / "held.txt"),
    )
    assert done.returncode == 0, done.stderr
    run = Run.at(tmp_path / "run")
    gate = Gate.of_run(str(run.folder))
    honest, affine, request = drawn_as(run, "Phantom_007")
    own = gate.verdict_of(honest, affine, request)
    assert not own.refused and own.channel in ("FLAIR", "T1") and own.record()["gate"] == "passed", own
    flair, t1 = honest.image[0], drawn_as(run, "Phantom_003")[0].image[1]
    pair = replace(honest, image=np.stack([flair, t1]))
    verdict = gate.verdict_of(pair, affine, request)
    assert verdict.refused and verdict.near and verdict.record()["nearest_channel"] == "T1"
    assert verdict.fault == "copy of a training case (T1: correlation 1.00, 1.00 beyond the next)"
    blind = replace(gate, memories={"flair": gate.memories["flair"]})
    first = blind.verdict_of(replace(honest, image=flair[None]), affine, request)
    assert "copy" not in first.fault and first.excess <= own.excess and "nearest_channel" not in first.record()
    canvas = gate.verdict_of(pair, affine, request, real_brain=True)
    assert "copy" not in canvas.fault and "nearest_channel" not in canvas.record()

    names = ["memory.npz", "memory_t1.npz", "ranges.json", "tumours.npz"]
    files = [run.gate / name for name in names]
    assert sorted(path.name for path in run.gate.iterdir()) == names
    kept = [file.stat().st_mtime_ns for file in files]
    again = Gate.of_run(str(run.folder)).verdict_of(pair, affine, request)
    assert again == verdict and [file.stat().st_mtime_ns for file in files] == kept
    ranges, memory = read_json(files[2]), Memory.load(files[1])
    files[1].unlink()  # as of a gate that knew the first channel alone
    write_json(files[2], ranges | {"key": key_of_one_channel(run, gate)})
    assert [*Gate.of_run(str(run.folder)).memories] == ["flair", "t1"] and read_json(files[2]) == ranges
    assert Memory.load(files[1]).copy == memory.copy == gate.memory.copy


def test_copied_tumours_are_refused(run: Run, gate: Gate) -> None:
    """A training tumour in another brain, also on a canvas, where the brain is not looked at."""
    lists = read_lists(run.folder)
    tumour = drawn_as(run, lists["train"][0])[0].labels
    pair, affine, request = drawn_as(run, lists["validation"][0])
    for real_brain in (False, True):
        verdict = gate.verdict_of(Pair(pair.image, tumour, pair.measured, ""), affine, request, real_brain)
        assert verdict.refused and verdict.fault.startswith("copy of a training tumour (DSC 0.9")
    assert verdict.near and verdict.record()["near_copy"] == 1 and verdict.record()["nearest_excess"] == ""
    brain = drawn_as(run, lists["train"][1])[0].image  # a canvas
    verdict = gate.verdict_of(Pair(brain, pair.labels, pair.measured, ""), affine, request, real_brain=True)
    assert "copy" not in verdict.fault and verdict.tumour_excess < gate.tumours.copy


def test_override_is_written_down(run: Run, capsys: pytest.CaptureFixture) -> None:
    """--gate off is loud; a copy passes, and the manifest says what it is; an empty mask never passes."""
    gate = Gate.of_run(str(run.folder), "off")
    assert "Warning: --gate off" in capsys.readouterr().out
    pair, affine, request = drawn_as(run, read_lists(run.folder)["train"][0])
    verdict = gate.verdict_of(pair, affine, request)
    assert not verdict.refused
    record = verdict.record()
    assert record["gate"].startswith("OVERRIDDEN: copy of a training case") and record["near_copy"] == 1
    assert gate.verdict_of(Pair(pair.image, pair.labels, None, "empty mask"), affine, request).refused


def test_implausible_pairs_are_refused(run: Run, gate: Gate) -> None:
    """A small brain, a tumour of half the brain (unless it was asked for), and one without contrast."""
    pair, affine, request = drawn_as(run, read_lists(run.folder)["validation"][0])
    brain = pair.image[0] > 0
    small = affine @ np.diag([0.75, 0.75, 0.75, 1])
    assert (
        "implausible: volume_ml" in gate.verdict_of(pair, small, request).fault
        or "brain" in gate.verdict_of(pair, small, request).fault
    )

    cut = np.argwhere(brain)[:, 1].mean()
    half = brain & (np.arange(brain.shape[1])[None, :, None] > cut)
    huge = Pair(pair.image, half.astype(np.uint8), measure(half, affine), "")
    verdict = gate.verdict_of(huge, affine, request)
    assert verdict.refused and verdict.fault.startswith("implausible: volume_ml")
    asked = dict(zip(NAMES, huge.measured, strict=True))
    assert "volume_ml" not in gate.verdict_of(huge, affine, asked).fault  # the user's own wish

    rng = np.random.default_rng(0)
    flat = np.where(brain, rng.integers(400, 600, brain.shape), 0).astype(np.int16)[None]
    assert "implausible: contrast" in gate.verdict_of(Pair(flat, pair.labels, pair.measured, ""), affine, request).fault


def planted(run: Run, kind: str) -> tuple[Pair, np.ndarray, dict[str, float]]:
    """A real-like brain with a mask that is no tumour, its affine, and a request for just that."""
    pair, affine, request = drawn_as(run, read_lists(run.folder)["validation"][0])
    image, tumour, brain = pair.image.copy(), pair.labels > 0, pair.image[0] > 0
    voxels = np.array(np.meshgrid(*map(np.arange, brain.shape), indexing="ij"))
    deep = ndimage.binary_erosion(brain, iterations=3)
    middle = tuple(np.rint(np.argwhere(tumour).mean(axis=0)).astype(int))
    dotted = deep & (voxels % 3 == 0).all(axis=0)
    blocks = deep & (voxels % 5 < 2).all(axis=0)  # of .5 ml each: no specks, but no tumour either
    far = np.linalg.norm((voxels.T - middle).T, axis=0)
    masks = {
        "lost": far < 1.1,
        "specks": dotted,
        "pieces": blocks,
        "sheet": deep & (voxels[2] == middle[2]),
        "rim": brain & ~ndimage.binary_erosion(brain),
        "shell": deep & ~ndimage.binary_erosion(deep),
        "hollow": ndimage.binary_dilation(tumour) & ~ndimage.binary_erosion(tumour, iterations=2) & brain,
        "tumour and specks": tumour | (dotted & (far > 8)),
        "whole brain": brain,
        "air": np.roll(brain, 12, axis=0) & ~brain,
    }
    mask = masks.get(kind, tumour)
    if kind == "no brain":
        image[:] = 0
    elif kind == "constant":
        image[:, brain] = 500
    elif kind == "nan":
        image = np.where(brain, np.nan, 0.0)[None]
    measured = measure(mask, affine)
    request = (
        request | dict(zip(NAMES[:3], measured[:3], strict=True)) | dict(zip(NAMES[6:], measured[6:], strict=True))
    )
    return Pair(image, mask.astype(np.uint8), measured, ""), affine, request


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("specks", "implausible: the mask is made of specks: specks 1 "),
        ("pieces", "implausible: the mask lies scattered in pieces: largest 0.0"),
        ("sheet", "implausible: the mask is a sheet or a shell: thickness 0."),
        ("rim", "implausible: the mask is hollow"),
        ("shell", "implausible: the mask is"),
        ("hollow", "implausible: the mask is hollow"),
        ("tumour and specks", "implausible: the mask is made of specks"),
        ("whole brain", "implausible: "),
        ("air", "100 % of the mask outside the brain"),
        ("no brain", "empty image"),
        ("constant", "channel 0 is the same all over the brain"),
        ("nan", "voxels that are no numbers"),
    ],
)
def test_what_is_no_tumour(run: Run, gate: Gate, kind: str, fault: str) -> None:
    """Refused for its shape, or for what cannot be measured, though it was asked for."""
    verdict = gate.verdict_of(*planted(run, kind))
    assert verdict.refused and verdict.fault.startswith(fault), verdict


def test_lost_on_the_coarse_grid(run: Run, gate: Gate) -> None:
    """A mask that is nothing there is judged by what it is on its own grid; asked for, only its contrast is left."""
    pair, affine, request = planted(run, "lost")
    coarse = replace(gate, grid=evaluation_grid((9.0, 9.0, 9.0)))
    volume = to_volume("", pair.image[0], pair.labels > 0, affine, coarse.grid)
    assert not volume.mask.any() and pair.measured[0] < 0.5
    verdict = coarse.verdict_of(pair, affine, request | {"volume_ml": 40.0})
    assert verdict.refused and "implausible: volume_ml" in verdict.fault
    found = gate_measures(volume, pair, affine)
    assert found["volume_ml"] == pytest.approx(pair.measured[0]) and all(np.isfinite(found[name]) for name in MEASURES)


@pytest.mark.parametrize("name", MEASURES)
def test_what_cannot_be_measured_is_refused(run: Run, gate: Gate, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a single measure may be missing."""
    pair, affine, request = drawn_as(run, read_lists(run.folder)["validation"][0])
    monkeypatch.setattr("sbldm.synthesis.gate._measures", lambda *a: gate_measures(*a) | {name: np.nan})
    assert gate.verdict_of(pair, affine, request).fault == f"implausible: {name} cannot be measured"


def test_two_lesions_pass(run: Run, gate: Gate) -> None:
    """A tumour beside a second one of its size, as multi-focal disease has it, is not scattered."""
    pair, _, _ = drawn_as(run, read_lists(run.folder)["validation"][0])
    tumour = ndimage.binary_erosion(pair.labels > 0)
    both = tumour | tumour[::-1]
    assert ndimage.label(both)[1] == 2
    found = shape_measures(both, (4.0, 4.0, 4.0))
    assert found["largest"] == 0.5 and not found["specks"]
    assert all(gate.ranges[key][0] <= found[key] <= gate.ranges[key][1] for key in found)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, ""),
        ({"volume_ml": 2.9}, ""),
        ({"volume_ml": 3.2}, "ml instead of"),
        ({"volume_ml": 1 / 3.2}, "ml instead of"),
        ({"y_mm": 60}, ""),
        ({"y_mm": 100}, "mm from its place"),
        ({"x_mm": -60}, "on the other side"),
        ({"x_mm": -25}, ""),
    ],
)
def test_not_what_was_asked_for(changed: dict[str, float], fault: str) -> None:
    """Three times the volume, half a brain away, or clearly in the other half: no tolerance has to say so."""
    found = REQUEST | {"x_mm": 10.0, "brain_l_mm": 140.0, "brain_p_mm": 170.0, "brain_s_mm": 140.0}
    found |= {key: value * (found[key] if key == "volume_ml" else 1) for key, value in changed.items()}
    said = _unlike_request(found, REQUEST)
    assert said == fault == "" or (said.startswith("not what was asked for: ") and fault and fault in said)
    assert _unlike_request(found, {}) == ""  # models that take no requests


def test_far_from_the_request(run: Run, gate: Gate) -> None:
    """An honest pair, asked for as something else."""
    pair, affine, request = drawn_as(run, read_lists(run.folder)["validation"][0])
    verdict = gate.verdict_of(pair, affine, request | {"volume_ml": request["volume_ml"] * 4})
    assert verdict.refused and verdict.fault.startswith("not what was asked for: ")
    overridden = replace(gate, enforced=False).verdict_of(pair, affine, request | {"x_mm": -request["x_mm"] * 3})
    assert not overridden.refused


def test_the_gate_is_measured_once(run: Run, gate: Gate) -> None:
    """What it knows is kept, and measured anew when the cases change."""
    files = [run.folder / "gate" / name for name in ("memory.npz", "ranges.json")]
    before = [file.stat().st_mtime_ns for file in files]
    again = Gate.of_run(str(run.folder))
    assert [file.stat().st_mtime_ns for file in files] == before
    assert again.ranges == gate.ranges and again.memory.copy == gate.memory.copy
    ranges = read_json(files[1])
    write_json(files[1], ranges | {"key": "of other cases"})
    assert Gate.of_run(str(run.folder)).ranges == gate.ranges and read_json(files[1]) == ranges


def test_without_prepared_cases(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Copies cannot be looked for: nothing is drawn unless the gate is off, and then the manifest says so."""
    bare = tmp_path / "run"
    bare.mkdir()
    for name in ("preset.yaml", "lists.json"):
        shutil.copy(run.folder / name, bare)
    with pytest.raises(StateError, match=r"no yardstick: .*prepared.* --gate off draws without it"):
        Gate.of_run(str(bare))
    blind = Gate.of_run(str(bare), "off")
    assert "Nobody looks whether they are copies." in capsys.readouterr().out
    verdict = blind.verdict_of(*drawn_as(run, read_lists(run.folder)["train"][0]))
    assert not verdict.refused and verdict.record()["gate"] == "copies not looked for"


@pytest.mark.parametrize("name", ["memory.npz", "ranges.json"])
def test_damaged_yardstick_is_measured_again(run: Run, gate: Gate, name: str) -> None:
    """A file that is gone or damaged is no reason to let copies pass."""
    file = run.folder / "gate" / name
    for damage in (file.unlink, lambda: file.write_text("{}")):
        damage()
        again = Gate.of_run(str(run.folder))
        assert again.ranges == gate.ranges and again.memory.copy == gate.memory.copy


def test_limits() -> None:
    """At least 0.1 beyond the range; for few values far beyond it (Student's t: 9.92 for three values)."""
    many = np.linspace(-1, 1, 201)
    low, high = _limits(many)
    assert (low, high) == pytest.approx((-1.52, 1.52), abs=0.01)  # 2.60 SD of .582, and a little
    equal = _limits(np.full(5, 2.0))
    assert equal == pytest.approx([1.9, 2.1])
    few = np.array([-1.0, 0.0, 1.0])
    assert _limits(few)[1] == pytest.approx(9.9248 * 1 * np.sqrt(4 / 3), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "measured", "fault"),
    [
        ("", (300.0, 90.0), ""),
        ("20,10", (35.0, 9.0), ""),
        ("20,10", (37.0, 9.0), "volume 23 % off the request"),
        ("20%", (30.0, 50.0), ""),
        (",10", (300.0, 9.0), ""),
        (",10", (30.0, 11.0), "centre 11 mm off the request"),
    ],
)
def test_tolerance(text: str, measured: tuple[float, float], fault: str) -> None:
    """Volume (asked: 30 ml) in per cent, centre in mm (asked: 10, 0, 0), either alone."""
    volume, distance = measured
    values = np.array([volume, 1, 1, 10, distance, 0, 1, 1, 1])
    assert Tolerance.parse(text).fault(values, REQUEST) == fault


@pytest.mark.parametrize("text", ["close", "20,10,5", "-5", "0,10", "nan"])
def test_wrong_tolerance(text: str) -> None:
    """One line that says how to write it."""
    with pytest.raises(InputError, match=r"--tol.*as in 20,10"):
        Tolerance.parse(text)


def test_wrong_switch(run: Run) -> None:
    """The gate is on or off."""
    with pytest.raises(InputError, match="--gate maybe: write on or off"):
        Gate.of_run(str(run.folder), "maybe")


def rows(near: int, pairs: int) -> list[bool]:
    """Pairs of which the first are near to a training case."""
    return [k < near for k in range(pairs)]


def test_too_many_copies() -> None:
    """Only beyond what an honest generator has, and that is more the fewer brains the limit was measured on."""
    assert too_many_copies([], 30) == "" == too_many_copies([None] * 9, 30) == too_many_copies(rows(9, 9), 0)
    assert too_many_copies(rows(12, 100), 30) == "" == too_many_copies(rows(28, 100), 10)
    assert too_many_copies(rows(25, 100), 30).startswith("25 of 100 pairs") and too_many_copies(rows(50, 100), 10)
    # Honest generators of 100 pairs: 2.5 % are wrongly refused.
    rng = np.random.default_rng(0)
    for held_back in (10, 30, 100):
        limits = np.quantile(rng.uniform(size=(2000, held_back)), 0.95, axis=1, method="weibull")
        near = rng.binomial(100, 1 - limits)
        most = max(k for k in range(101) if not too_many_copies(rows(k, 100), held_back))
        assert (near > most).mean() < 0.04


def test_export_refuses_a_dataset_of_copies(tmp_path: Path, drawn_run: Path, capsys: pytest.CaptureFixture) -> None:
    """nnU-Net's arms do not take it, unless it was drawn with --gate off; then a warning says so."""
    run = Run.at(copy_run(drawn_run, tmp_path))
    folder = run.folder / "nnUNet_raw" / "Dataset501_SBLDM"
    with open(folder / "manifest.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert all(row["gate"] for row in found)
    write_csv(folder / "manifest.csv", [row | {"near_copy": 1, "gate": "passed"} for row in found])
    real = find_real(run)
    settings = read_json(folder / "synthesis.json")
    assert settings["gate"]["switch"] == "off" and settings["gate"]["honest_cases"] == 5
    write_json(folder / "synthesis.json", settings | {"gate": {"switch": "on", "honest_cases": 100}})
    with pytest.raises(StateError, match=r"3 of 3 pairs are nearer .* --gate off"):
        find_pairs((), run, real)
    write_json(folder / "synthesis.json", settings | {"gate": {"switch": "off", "honest_cases": 100}})
    assert len(find_pairs((), run, real)[0].cases) == 3 and "used all the same" in capsys.readouterr().out


def test_refusals_are_written_down(tmp_path: Path, drawn_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair out of tolerance is drawn again; one that never is within is given up and listed with every reason."""
    run = copy_run(drawn_run, tmp_path)
    monkeypatch.setattr(session, "ATTEMPTS", 3)
    message = one_line(call("synth", "--run", run, "--n", 2, "--dataset", 502, "--tol", "0.001"), 4)
    assert "2 pair(s) were refused 3 times each" in message and "off the request" in message
    with open(run / "nnUNet_raw" / "Dataset502_SBLDM" / "given_up.csv", newline="") as file:
        given_up = list(csv.DictReader(file))
    assert [row["pair"] for row in given_up] == ["SBLDM_000000", "SBLDM_000001"]
    assert all(row["attempts"] == "3" and row["refused_because"].count("; ") == 2 for row in given_up)


def test_the_gate_is_on_by_default(tmp_path: Path, drawn_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model that everything resembles: with a limit below any correlation every pair is a copy."""
    run = copy_run(drawn_run, tmp_path)
    monkeypatch.setattr(session, "ATTEMPTS", 2)
    limit = Memory.load
    monkeypatch.setattr(Memory, "load", classmethod(lambda cls, path: _with_limit(limit(path), -1.0)))
    done = call("synth", "--run", run, "--n", 1, "--dataset", 502, "--gate", "on")
    assert "copy of a training case" in one_line(done, 4)
    done = call("synth", "--run", run, "--n", 1, "--dataset", 503, "--name", "OFF", "--gate", "off")
    assert done.returncode == 0 and "Warning: --gate off" in done.stdout
    folder = run / "nnUNet_raw" / "Dataset503_OFF"
    with open(folder / "manifest.csv", newline="") as file:
        assert next(csv.DictReader(file))["gate"].startswith("OVERRIDDEN: copy")
    assert "the gate was overridden for 1 pairs" in (folder / "datasheet.md").read_text()


def _with_limit(memory: Memory, copy: float) -> Memory:
    values = {name: getattr(memory, name) for name in Memory.__dataclass_fields__}
    return Memory(**(values | {"copy": copy}))


def test_datasheet_keeps_what_was_filled_in(tmp_path: Path, drawn_run: Path) -> None:
    """Licence and evaluation stay when more pairs are drawn; without them the sheet says so."""
    folder = copy_run(drawn_run, tmp_path) / "nnUNet_raw" / "Dataset501_SBLDM"
    text = write_datasheet(folder).read_text()
    assert "not stated" in text and "not evaluated yet" in text and "3 **synthetic** pairs" in text
    assert f"- {REACH}\n" in text
    write_datasheet(folder, "CC BY 4.0, cite the authors", ["KID .2 against .0 between real cases"])
    text = write_datasheet(folder).read_text()
    assert "- CC BY 4.0, cite the authors" in text and "- KID .2 against .0" in text and "not stated" not in text
