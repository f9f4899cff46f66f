"""Drawing in several processes: the same files as by one, whatever is there and whoever draws a block twice."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import call, copy_run, one_line, snapshot
from test_synthesis import file_size

from sbldm.run.errors import InputError
from sbldm.synthesis import blocks
from sbldm.synthesis.blocks import count_workers, draw_block

DATASET = Path("nnUNet_raw") / "Dataset501_SBLDM"
N, ASKED = 12, ("--batch", 2, "--volume-ml", 90, "--tol", "30,")  # some are drawn again


def content(run: Path) -> tuple[dict[str, bytes], list[dict[str, str]], dict[str, bytes]]:
    """Images and masks, the manifest but for seconds, and the other files of a dataset."""
    folder = run / DATASET
    with open(folder / "manifest.csv", newline="") as file:
        rows = [row | {"seconds": ""} for row in csv.DictReader(file)]
    others = ("dataset.json", "lineage.json", "synthesis.json")
    return (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*Tr/*")},
        rows,
        {name: (folder / name).read_bytes() for name in others},
    )


def drawn(run: Path, *asked: object) -> list[str]:
    """Draw, and return what is said of the pairs."""
    done = call("synth", "--run", run, "--n", N, *ASKED, *asked)
    assert done.returncode == 0, done.stderr
    return [line.split(": ")[1] for line in done.stdout.splitlines() if "drawn" in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> tuple[Path, list[str]]:
    """A run with all pairs drawn by one process, and what was said."""
    run = copy_run(trained_run, tmp_path_factory.mktemp("whole"))
    return run, drawn(run)


def here(seen: list[str], twice: bool = False) -> Callable[..., list[Any]]:
    """In place of processes: all blocks in this one, from the last to the first, or each twice."""

    def share(function: Any, items: Sequence[Any], workers: int, *_: Any) -> list[Any]:
        seen.extend(item.name for item in items)
        return [function(item) for item in reversed(items) for _ in range(1 + twice)]

    return share


def test_two_processes(tmp_path: Path, trained_run: Path, whole: tuple[Path, list[str]]) -> None:
    """Really two: equal bytes, equal manifests, and the same is said."""
    run, said = whole
    rows = content(run)[1]
    assert len(rows) == N and sum(int(row["redrawn"]) for row in rows) > 0
    other = copy_run(trained_run, tmp_path)
    assert drawn(other, "--workers", 2) == said
    assert content(other) == content(run)


def test_whatever_is_there(
    tmp_path: Path, trained_run: Path, whole: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five first, then twelve; then with pairs lost out of the middle of both blocks: always the same files."""
    run, names = copy_run(trained_run, tmp_path), []
    monkeypatch.setattr(blocks, "map_in_processes", here(names))
    assert call("synth", "--run", run, "--n", 5, *ASKED, "--workers", 2).returncode == 0
    assert not names  # one block: drawn as ever
    drawn(run, "--workers", 2)
    assert names == ["SBLDM_000000 to SBLDM_000007", "SBLDM_000008 to SBLDM_000015"]
    assert content(run) == content(whole[0])
    for lost in ("records/SBLDM_000003.json", "labelsTr/SBLDM_000006.nii.gz", "imagesTr/SBLDM_000009_0000.nii.gz"):
        (run / DATASET / lost).unlink()
    kept = snapshot(run / DATASET / "records")
    drawn(run, "--workers", 2)
    assert content(run) == content(whole[0])
    after = snapshot(run / DATASET / "records")
    changed = {name for name in after if after[name] != kept.get(name)}
    assert changed == {f"SBLDM_00000{i}.json" for i in (3, 6, 9)}


def test_a_block_twice(
    tmp_path: Path, trained_run: Path, whole: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a killed worker: the second call writes nothing, and what is said counts each pair once."""
    run, loaded = copy_run(trained_run, tmp_path), []
    load = blocks.ConfigParser.get_parsed_content
    monkeypatch.setattr(
        blocks.ConfigParser, "get_parsed_content", lambda self, name="", **how: loaded.append(name) or load(self, name)
    )
    monkeypatch.setattr(blocks, "map_in_processes", here([], twice=True))
    assert drawn(run, "--workers", 2) == whole[1]
    assert content(run) == content(whole[0])
    assert loaded.count("model") == 1 and loaded.count("dataset") == 4 and loaded.count("evaluator") == 2


def test_a_worker_that_fails(tmp_path: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and its exit code; pairs that were finished before stay, and stand in the manifest."""
    run = copy_run(trained_run, tmp_path)
    assert call("synth", "--run", run, "--n", 2, *ASKED).returncode == 0
    monkeypatch.setattr(blocks, "map_in_processes", here([]))
    with file_size(10_000):
        message = one_line(call("synth", "--run", run, "--n", N, *ASKED, "--workers", 2), 5)
    assert "_0000.nii.gz: cannot be written" in message
    assert [row["pair"] for row in content(run)[1]] == ["SBLDM_000000", "SBLDM_000001"]


def test_another_checkpoint(tmp_path: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that finds another model than the one that planned draws nothing with it."""
    run = copy_run(trained_run, tmp_path)

    def share(function: Any, items: Sequence[Any], *_: Any) -> None:
        mark = run / DATASET / "synthesis.json"
        mark.write_text(mark.read_text().replace('"checkpoint_sha256": "', '"checkpoint_sha256": "0'))
        function(items[0])

    monkeypatch.setattr(blocks, "map_in_processes", share)
    message = one_line(call("synth", "--run", run, "--n", N, *ASKED, "--workers", 2), 4)
    assert "holds pairs drawn with checkpoint_sha256 = 0" in message
    assert not list((run / DATASET / "records").glob("*.json"))


def test_number_of_processes(tmp_path: Path, trained_run: Path) -> None:
    """Whole numbers from 1, on either command line; expressions reach no process."""
    assert [count_workers(asked) for asked in (1, "4", 1024)] == [1, 4, 1024]
    for wrong in (0, -1, "two", 1.5, 1025, None):
        with pytest.raises(InputError, match=f"--workers {wrong}: must be a whole number from 1 to 1024"):
            count_workers(wrong)
    assert "--workers 0: must be a whole number" in one_line(call("synth", "--run", trained_run, "--workers", 0), 2)
    with pytest.raises(InputError, match="is an expression"):
        draw_block(blocks.Block("a", {"run_dir": "$print(1)"}, "mark", {0: None}))
