"""The arms of Table 2 as data: `arms.yaml` says what each one trains on, `budgets.yaml` how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sbldm.errors import InputError, refused

__all__ = ["Arm", "ArmBook", "load_budget"]

HERE = Path(__file__).parent
PARTS = ("real", "synth", "aug5")


@dataclass(frozen=True)
class Arm:
    """One row of Table 2.

    Attributes:
        name: as in the table; names the job folders too.
        train: what it trains on, of `real`, `synth` and `aug5`.
        augmentation: `none` or `nnunet` (online).
        amount: synthetic pairs for each real case.
        generator: whose pairs stand for `synth`; empty in an arm without any, and before `ArmBook.choose`.
    """

    name: str
    train: tuple[str, ...]
    augmentation: str
    amount: float = 1.0
    generator: str = ""

    @classmethod
    def from_config(cls, name: str, values: Mapping[str, Any], path: Path) -> Arm:
        """One entry of the YAML file; an `InputError` says what is wrong with it."""
        known = {"train", "augmentation", "amount"}
        train, augmentation = values.get("train"), values.get("augmentation")
        amount = values.get("amount", 1)
        if not isinstance(train, list) or not train or set(train) - set(PARTS) or set(values) - known:
            raise InputError(f"{path}: arm {name}: train must list one or more of {', '.join(PARTS)}.")
        if augmentation not in ("none", "nnunet"):
            raise InputError(f"{path}: arm {name}: augmentation {augmentation} is neither none nor nnunet.")
        if not isinstance(amount, int | float) or not amount > 0:
            raise InputError(f"{path}: arm {name}: amount {amount} must be a number above 0.")
        if ("synth" in train) != ("synth" in name.split("+")):
            raise InputError(f"{path}: arm {name}: 'synth' must stand in its name and in train, or in neither.")
        return cls(name, tuple(train), augmentation, float(amount))

    def of(self, generator: str) -> Arm:
        """This arm with the pairs of one generator, whose name takes the place of `synth`."""
        words = [generator if word == "synth" else word for word in self.name.split("+")]
        return replace(self, name="+".join(words), generator=generator)

    def times(self, amount: float) -> Arm:
        """This arm with another number of pairs for each real case, as in `real+sbldm@2x`."""
        return self if amount == self.amount else replace(self, name=f"{self.name}@{amount:g}x", amount=amount)


@dataclass(frozen=True)
class ArmBook:
    """All arms of a file.

    Attributes:
        arms: by name, `synth` still standing for any generator.
        standard: names that are run unless others are asked for.
        baseline: what all others are compared with.
        paper: DSC and IoU that the paper reports, by arm.
    """

    arms: dict[str, Arm]
    standard: tuple[str, ...]
    baseline: str
    paper: dict[str, tuple[float, float]]

    @classmethod
    def load(cls, path: str = "") -> ArmBook:
        """Read `arms.yaml`, or another file of its form.

        Raises:
            InputError: it cannot be read, or an arm in it is wrong.
        """
        file = Path(path) if path else HERE / "arms.yaml"
        try:
            content = yaml.safe_load(file.read_text())
            arms = {name: Arm.from_config(name, values, file) for name, values in content["arms"].items()}
            paper = {name: (float(dsc), float(iou)) for name, (dsc, iou) in content.get("paper", {}).items()}
            return cls(arms, tuple(content["standard"]), content["baseline"], paper)
        except OSError as error:
            raise InputError(f"ARMS_FILE={refused(file, error, 'read')}") from None
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{file}: needs arms, standard and baseline as in arms.yaml ({reason}).") from None

    def choose(self, names: Sequence[str], generators: Sequence[str]) -> list[Arm]:
        """The arms of these names with the pairs of these generators.

        Args:
            names: arms (`real+aug`), with a generator (`real+sbldm`) or for each of them (`real+synth`); without any,
                the standard ones for which there is a generator.
            generators: whose pairs there are.

        Raises:
            InputError: an unknown arm, or one whose generator is not among `generators`.
        """
        possible = {}
        for arm in self.arms.values():
            for one in [arm.of(generator) for generator in generators] if "synth" in arm.train else [arm]:
                possible[one.name] = one
        chosen: dict[str, Arm] = {}
        for name in names or self.standard:
            family = self.arms.get(name)
            of_each = [family.of(g) for g in generators] if family and "synth" in family.train else []
            if name in possible:
                chosen[name] = possible[name]
            elif of_each:
                chosen |= {arm.name: arm for arm in of_each}
            elif names:
                there = ", ".join(generators) or "none"
                raise InputError(
                    f"ARMS={name}: no such arm, or its generator is not in SYNTH (generators: {there}); "
                    f"possible now: {', '.join(possible)}."
                )
        return list(chosen.values())


def load_budget(name_or_path: str, **overrides: Any) -> dict[str, Any]:
    """Read one budget of `budgets.yaml` by its name, or the only one of another file.

    Args:
        name_or_path: `demo`, `small`, `paper`, or a YAML file.
        overrides: values that replace those of the file where they are not None, e.g. `iterations`.

    Raises:
        InputError: no such budget, values missing, or values that do not fit together.
    """
    path = Path(name_or_path) if name_or_path.endswith((".yaml", ".yml")) else HERE / "budgets.yaml"
    known = yaml.safe_load((HERE / "budgets.yaml").read_text())
    try:
        content = yaml.safe_load(path.read_text())
        name = name_or_path if path.parent == HERE and path.name == "budgets.yaml" else next(iter(content))
        budget = {"name": name} | content[name]
    except PermissionError as error:
        raise InputError(refused(path, error, "read")) from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, StopIteration):
        raise InputError(
            f"BUDGET={name_or_path}: no such budget; choose one of {', '.join(known)}, or a YAML file like it."
        ) from None
    budget |= {key: value for key, value in overrides.items() if value is not None}
    if missing := [key for key in known["small"] if key not in budget]:
        raise InputError(f"{path}: the budget {name} lacks {', '.join(missing)}; see budgets.yaml.")
    iterations, epoch = budget["iterations"], budget["iterations_per_epoch"]
    if iterations < epoch or iterations % epoch:
        raise InputError(f"ITERATIONS={iterations}: must be a multiple of iterations_per_epoch ({epoch}).")
    budget["snapshots"] = budget["snapshots"] or []
    wrong = [s for s in budget["snapshots"] if s % epoch]
    if wrong:
        raise InputError(f"SNAPSHOTS={wrong[0]}: must be a multiple of iterations_per_epoch ({epoch}).")
    budget["snapshots"] = [s for s in budget["snapshots"] if s < iterations]
    if budget["plan"]:
        _check_plan(budget["plan"], path)
    return budget


def _check_plan(plan: Mapping[str, Any], path: Path) -> None:
    """nnU-Net fails late, or not at all, on these: fewer than three stages make the loss nan."""
    if set(plan) != {"spacing", "patch_size", "batch_size", "features"}:
        raise InputError(f"{path}: plan must be null or give spacing, patch_size, batch_size and features.")
    halvings = 2 ** (len(plan["features"]) - 1)
    if len(plan["features"]) < 3:
        raise InputError(f"{path}: plan.features needs three stages or more.")
    if any(size % halvings or size // halvings < 2 for size in plan["patch_size"]):
        raise InputError(f"{path}: plan.patch_size must be a multiple of {halvings}, and {2 * halvings} or more.")
