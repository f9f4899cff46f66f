"""A run folder: where each step of one journey leaves its work, and the preset that all of them share."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sbldm.run.errors import InputError, StateError
from sbldm.run.files import BUNDLE, atomic_path, user_path
from sbldm.run.limits import MOST_MINUTES
from sbldm.run.models import MODELS, check_model
from sbldm.run.preset import SCHEMAS, Preset, RegionsDiffusion, RegionsNetwork
from sbldm.run.schema import nearest, read_yaml

__all__ = ["PRESETS", "Run", "load_preset", "read_preset", "with_refiner", "within_regions"]

PRESETS = BUNDLE / "configs" / "presets"
BASELINES = PRESETS.parent / "baselines"
PREPARED_WITH = ("data", "grid", "intensity")  # parts of a preset that each prepared case keeps
KINDS = ("kind", "sampler")  # what tells apart mappings with other names in them
NAMED_BY_USERS = ("labels", "scheme")  # mappings whose names are no names of ours


def load_preset(name_or_path: str, model: str = "", minutes: float | None = None) -> Preset:
    """Read a preset by its name (`small`) or file, with what it inherits.

    Args:
        name_or_path: a preset of SBLDM, or of the model's own file in `configs/baselines`; or a YAML file.
        model: one of `MODELS`; empty: SBLDM, or what the file says.
        minutes: training time to aim at in place of the preset's own; its iterations are scaled in proportion.

    Raises:
        InputError: no such preset or model (the known ones are listed), or a part of it is missing.
    """
    wanted, path = check_model(model), user_path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        preset = _whole(path, _read_file(path))
    else:
        path, preset = _named(name_or_path, wanted, "--preset ")
    preset = Preset.of(preset, f"{path}: ")
    if preset.model != (model or preset.model):
        raise InputError(f"--model {model}: {path} is a preset of the model {preset.model}.")
    return preset if minutes is None else _scaled(preset, minutes)


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise InputError(f"--preset {path}: no such preset; choose one of {known}, or name a YAML file.")
    content = read_yaml(path, "a preset")
    if not isinstance(content, dict) or not isinstance(content.get("preset"), dict):
        example = "configs/presets/small.yaml"
        raise InputError(f"{path}: is no preset; its values stand below the key `preset`, see {example}.")
    if others := [str(key) for key in content if key != "preset"]:
        raise InputError(f"{path}: {others[0]} stands beside `preset`, where nothing else is read; remove it.")
    return content["preset"]


def _named(name: str, model: str, where: str, heirs: tuple[str, ...] = ()) -> tuple[Path, dict[str, Any]]:
    """A shipped preset and its file; `where` (a file or an option) asks for it, for presets that inherit from it."""
    if (own := f"{model}/{name}") in heirs:
        raise InputError(f"{where}{name}: {' -> '.join([*heirs, own])} is a circle; inherit from another preset.")
    path = BASELINES / f"{model}.yaml"
    if model == "sbldm":
        known = {file.stem: file for file in sorted(PRESETS.glob("*.yaml"))}
    else:
        known = read_yaml(path, "a preset")["presets"]
    if name not in known:
        of = "" if model == "sbldm" else f"the model {model} has "
        raise InputError(
            f"{where}{name}: {of}no such preset; choose one of {', '.join(known)}, or name a YAML file"
            f"{nearest(name, known)}."
        )
    if model == "sbldm":
        return known[name], _whole(known[name], _read_file(known[name]), (*heirs, own))
    return path, _whole(path, {"name": name, "model": model} | known[name], (*heirs, own))


def _whole(path: Path, values: dict[str, Any], heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a preset laid over those of the preset that it `inherits_from` (bundle/docs/README.md, "Presets").

    Raises:
        InputError: there is no such preset, or it inherits from its heir.
    """
    own = {key: value for key, value in values.items() if key != "inherits_from"}
    if own == values:
        return own
    if not isinstance(asked := values["inherits_from"], str):
        raise InputError(f"{path}: inherits_from: {asked!r} is no name of a preset, as small or ldm3d/small are.")
    before, _, name = asked.rpartition("/")
    before = before or own.get("model", "sbldm")
    if before not in list(MODELS):
        raise InputError(f"{path}: inherits_from {asked}: no model {before}; choose one of {', '.join(MODELS)}.")
    _, parent = _named(name, before, f"{path}: inherits_from ", heirs)
    own = {"model": before} | own
    fields = SCHEMAS.get(str(own["model"]), Preset).model_fields
    return _laid_over({part: value for part, value in parent.items() if part in fields}, own)


def _laid_over(parent: Any, own: Any, place: str = "") -> Any:
    """One value over another: a mapping keeps what it does not name, but for those that begin anew."""
    if not isinstance(parent, dict) or not isinstance(own, dict) or not own or place in NAMED_BY_USERS:
        return own
    if any(key in own and own[key] != parent.get(key) for key in KINDS):
        return own
    return parent | {key: _laid_over(parent.get(key), value, key) for key, value in own.items()}


def _scaled(preset: Preset, minutes: float) -> Preset:
    """Scale the iterations of all trainings to another time, in whole epochs, and with them the moving average."""
    if not 0 < minutes <= MOST_MINUTES:
        raise InputError(f"--minutes {minutes:g}: must be above 0, and a year ({MOST_MINUTES}) at most.")
    if not preset.minutes:
        raise InputError(f"--minutes {minutes:g}: the preset '{preset.name}' does not say how long it trains.")
    changed: dict[str, Any] = {"minutes": float(minutes)}
    for name in [*preset.stages, "regions", "refiner"]:
        if stage := getattr(preset, name, None):
            epoch = stage.iterations_per_epoch
            scaled = {"iterations": max(1, round(stage.iterations * minutes / preset.minutes / epoch)) * epoch}
            if decay := getattr(stage, "ema_decay", 0):  # the average keeps its share of the training
                left = min(0.1, (1 - decay) * stage.iterations / scaled["iterations"])
                scaled["ema_decay"] = round(1 - left, 6)
            changed[name] = stage.but(**scaled)
    return preset.but(**changed)


def within_regions(preset: Preset) -> Preset:
    """A preset whose stage 2 is the training within regions.

    Raises:
        InputError: it has none.
    """
    if not (values := getattr(preset, "regions", None)):
        raise InputError(
            f"the preset '{preset.name}' has no `regions`: it cannot be taught to draw into real brains; "
            "prepare with --preset small or fast."
        )
    own = {name: value for name, value in values if name in RegionsDiffusion.model_fields}
    network = RegionsNetwork(**dict(preset.diffusion.network))
    stage = RegionsDiffusion(**dict(preset.diffusion) | own | {"network": network})
    return preset.model_copy(update={"diffusion": stage, "sampling": preset.sampling.but(guidance=values.guidance)})


def with_refiner(preset: Preset) -> Preset:
    """A preset with the training of a refiner; one from before there was any takes it from the shipped one of its name.

    Raises:
        InputError: neither says how, or that one does not fit its grid.
    """
    if getattr(preset, "refiner", None):
        return preset
    shipped = PRESETS / f"{preset.name}.yaml"
    values = getattr(load_preset(preset.name), "refiner", None) if shipped.is_file() else None
    if preset.model != "sbldm":
        raise InputError(f"the model {preset.model} has no refiner: its pairs cannot be sharpened by one.")
    if values is None:
        raise InputError(
            f"the preset '{preset.name}' has no `refiner`: give the run's preset.yaml the part that "
            "configs/presets/small.yaml has, or prepare with a preset that has one (small, fast, multimodal)."
        )
    where = f"the preset '{preset.name}' has no `refiner`, and that of the shipped one does not fit it: "
    return Preset.of(preset.state() | {"refiner": values.state()}, where)


def read_preset(run_dir: str | Path) -> Preset:
    """The preset that a run was prepared with; what the configs call. Raises as `Run.preset`."""
    return Run.at(run_dir).preset


@dataclass(frozen=True)
class Run:
    """Paths of one run folder."""

    folder: Path

    @classmethod
    def at(cls, folder: str | Path) -> Run:
        """The run at a folder, which need not exist yet."""
        return cls(Path(os.path.abspath(user_path(folder))))

    @property
    def typed(self) -> str:
        """Its folder as it is typed in a shell, for advice that is copied."""
        return shlex.quote(str(self.folder))

    def to_draw(self, n: int = 100, number: int | str | None = None) -> str:
        """The command that draws pairs here, into the dataset of a number."""
        return f"sbldm synth --run {self.typed}{f' --dataset {int(number)}' if number is not None else ''} --n {n}"

    @property
    def preset_file(self) -> Path:
        """The preset in force, an overlay for every training config."""
        return self.folder / "preset.yaml"

    @property
    def prepared(self) -> Path:
        """Prepared cases: `NAME.npz` and the sidecar `NAME.json`."""
        return self.folder / "prepared"

    @property
    def latents(self) -> Path:
        """Latent store: `NAME.npz`, `constants.json` and `reconstruction.csv`."""
        return self.folder / "latents"

    @property
    def raw(self) -> Path:
        """nnU-Net raw datasets of pairs: `DatasetNNN_NAME`."""
        return self.folder / "nnUNet_raw"

    def datasets(self, number: int | str | None = None) -> list[Path]:
        """Raw datasets of pairs by their folders: all of them, or those of one number."""
        which = "*" if number is None else f"{int(number):03d}"
        return sorted(path.parent for path in self.raw.glob(f"Dataset{which}_*/dataset.json"))

    @property
    def gate(self) -> Path:
        """What the gate knows of the training cases."""
        return self.folder / "gate"

    @property
    def canvas(self) -> Path:
        """Real brains that tumours are drawn into, read and encoded."""
        return self.folder / "canvas"

    @property
    def reference(self) -> Path:
        """Real cases on the way that pairs take, a folder for each way."""
        return self.folder / "reference"

    @property
    def figures(self) -> Path:
        """Pictures of pairs and sweeps."""
        return self.folder / "figures"

    @property
    def evaluation(self) -> Path:
        """Evaluations, a folder for each dataset, and sweeps."""
        return self.folder / "evaluation"

    @property
    def table2(self) -> Path:
        """The ablation with nnU-Net."""
        return self.folder / "table2"

    def checkpoint(self, stage: str, which: str = "best") -> Path:
        """Checkpoint of a stage (`autoencoder`, ..): `best` (weights and constants) or `last` (to resume)."""
        return self.folder / stage / f"{which}.pt"

    @property
    def preset(self) -> Preset:
        """The preset this run was prepared with.

        Raises:
            StateError: nothing is prepared here, the file is damaged, or says something else than the prepared cases.
        """
        if not self.preset_file.is_file():
            raise StateError(
                f"{self.folder}: no prepared cases here; run `sbldm prepare --data /path/to/cases --run {self.typed}`."
            )
        try:
            preset = load_preset(str(self.preset_file))
        except InputError as error:
            raise StateError(
                f"{str(error).partition('; see ')[0].rstrip('.')}; this file is part of the run: remove it and run "
                f"`sbldm prepare --data /path/to/cases --run {self.typed}` again, --preset as then."
            ) from None
        self._check_sidecar(preset)
        return preset

    def _check_sidecar(self, preset: Preset) -> None:
        """Each prepared case says with which values it was made; a hand-edited preset is not believed against it."""
        for path in sorted(self.prepared.glob("*.json")):
            try:
                settings = json.loads(path.read_text())["settings"]
                settings = {part: settings[part] for part in PREPARED_WITH}
            except (OSError, ValueError, KeyError, TypeError):  # said where that case is needed
                continue
            parts = [part for part, values in settings.items() if not getattr(preset, part).equals(values)]
            if parts:
                raise StateError(
                    f"{self.preset_file}: its {' and '.join(parts)} differ from what the cases were prepared with "
                    f"({path.name}); put the values back, or prepare a new --run with yours."
                )
            return

    def check_preset(self, preset: Preset) -> None:
        """Refuse another preset than the one this run was prepared with; a `StateError` names both."""
        if self.preset_file.exists() and (held := self.preset.model) != preset.model:
            raise StateError(
                f"{self.folder}: holds a run of the model {held}, not of {preset.model}; choose another --run."
            )
        if self.preset_file.exists() and not self.preset.continues(preset):
            raise StateError(
                f"{self.preset_file}: prepared with the preset '{self.preset.name}' and other values than "
                f"'{preset.name}'; choose another --run or remove this folder."
            )

    def save_preset(self, preset: Preset) -> None:
        """Keep the preset with the run."""
        with atomic_path(self.preset_file) as temporary:
            temporary.write_text(
                yaml.safe_dump({"preset": preset.state()}, sort_keys=False, default_flow_style=None, width=120)
            )
