"""The arms of Table 2 as data: `arms.yaml` says what each one trains on, `budgets.yaml` how long."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, StringConstraints, field_validator, model_validator

from sbldm.run.errors import InputError
from sbldm.run.files import user_path
from sbldm.run.schema import Values, checked, nearest, read_yaml

__all__ = ["Arm", "ArmBook", "default_budget", "load_budget"]

HERE = Path(__file__).parent
OWN = ("real", "aug5")  # what arms train on that is no generator's
GENERATOR = r"^[a-z][a-z0-9_]*$"


@dataclass(frozen=True)
class Arm:
    """One row of Table 2.

    Attributes:
        name: as in the table; names the job folders too.
        train: what it trains on: `real`, `aug5`, and generators by name (`synth` before `ArmBook.choose`).
        augmentation: `none` or `nnunet` (online).
        amount: synthetic pairs for each real case, of all its generators together.
        share: of draws that are synthetic, as corners (progress of the training, share) between which it runs straight;
            empty: every case and pair is drawn equally often.
        longer: the iterations are raised until real cases have as many as in other arms.
    """

    name: str
    train: tuple[str, ...]
    augmentation: str
    amount: float = 1.0
    share: tuple[tuple[float, float], ...] = ()
    longer: bool = False

    @property
    def generators(self) -> tuple[str, ...]:
        """Whose pairs it trains on."""
        return tuple(word for word in self.train if word not in OWN)

    @property
    def lengthening(self) -> float:
        """By how much its training is longer than that of the other arms: 1 unless `longer`."""
        if not self.longer:
            return 1.0
        corners = np.array(self.share).T
        return 1 / (1 - float(np.trapezoid(corners[1], corners[0])))

    def check_epochs(self, budget: dict[str, Any]) -> None:
        """Refuse a budget whose epochs are too few for what is drawn to change where `pretrain` says so.

        Raises:
            InputError: no epoch has its middle on one side of the change, so that pairs or real cases are never drawn.
        """
        changes = [at for (at, _), (then, _) in pairwise(self.share) if at == then]
        least = max((math.floor(0.5 / min(at, 1 - at)) + 1 for at in changes), default=1)
        if budget["iterations"] // budget["iterations_per_epoch"] < least:
            raise InputError(
                f"--iterations {budget['iterations']}: {self.name} changes from pairs to real cases on the way; "
                f"give {least * budget['iterations_per_epoch']} ({least} epochs) or more, or leave it out of --arms."
            )

    def of(self, generator: str) -> Arm:
        """This arm with the pairs of one generator, whose name takes the place of `synth`."""
        words = [generator if word == "synth" else word for word in self.name.split("+")]
        train = tuple(generator if word == "synth" else word for word in self.train)
        return replace(self, name="+".join(words), train=train)

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
        families: names of arms whose p values are adjusted together, see `family`.
        paper: DSC and IoU that the paper reports, by arm.
    """

    arms: dict[str, Arm]
    standard: tuple[str, ...]
    baseline: str
    families: tuple[tuple[str, ...], ...]
    paper: dict[str, tuple[float, float]]

    @classmethod
    def load(cls, path: str | Path | None = None) -> ArmBook:
        """Read `arms.yaml`, or another file of its form.

        Raises:
            InputError: it cannot be read, or an arm in it is wrong.
        """
        file = user_path(path) if path else HERE / "arms.yaml"
        book = checked(_Book, read_yaml(file, "a file of arms"), f"{file}: ", "see nnunet_integration/arms.yaml")
        arms = {
            name: Arm(name, tuple(a.train), a.augmentation, float(a.amount), a.corners, a.longer)
            for name, a in book.arms.items()
        }
        paper = {name: (dsc, iou) for name, (dsc, iou) in book.paper.items()}
        return cls(arms, tuple(book.standard), book.baseline, tuple(map(tuple, book.families)), paper)

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
            possible |= {one.name: one for one in _of_each(arm, generators)}
        chosen: dict[str, Arm] = {}
        for name in names or self.standard:
            of_each = _of_each(self.arms[name], generators) if "synth" in name.split("+") and name in self.arms else []
            if name in possible:
                chosen[name] = possible[name]
            elif of_each:
                chosen |= {arm.name: arm for arm in of_each}
            elif names:
                there = ", ".join(generators) or "none"
                raise InputError(
                    f"--arms {name}: no such arm, or its generator is not in --synth (generators: {there}); "
                    f"possible now: {', '.join(possible)}."
                )
        return list(chosen.values())

    def family(self, name: str) -> tuple[str, ...]:
        """The arms whose p values are adjusted together with that of one arm, itself among them; empty: exploratory.

        An entry of `families` with the arm's generator for `synth` and its amount of pairs, so that nothing else that
        is run, or added to the file, changes it. Arms without pairs belong to the families of all generators and
        amounts of their entry; their own is the entry as it stands, in which `synth` is nobody's: the strictest.
        A file without `families` has one entry, all its arms but the baseline: a new arm in it makes it larger.

        Args:
            name: of an arm as it was run, e.g. `real+sbldm+aug@5x`.
        """
        base, _, amount = name.partition("@")
        generators = ["synth"] if base in self.arms else base.split("+")
        for entry in self.families or (tuple(one for one in self.arms if one != self.baseline),):
            for arms in ([self.arms[one].of(generator) for one in entry] for generator in generators):
                if base in (arm.name for arm in arms):
                    return tuple(f"{arm.name}@{amount}" if amount and arm.generators else arm.name for arm in arms)
        return ()


def _of_each(arm: Arm, generators: Sequence[str]) -> list[Arm]:
    """An arm with each of these generators for `synth`, as far as those that it names itself are among them."""
    named = set(arm.generators) - {"synth"}
    if not named <= set(generators):
        return []
    return [arm.of(g) for g in generators if g not in named] if "synth" in arm.train else [arm]


def default_budget(preset: str) -> str:
    """The budget that goes with a preset: that of its name, else `small`, which is then said."""
    known = read_yaml(HERE / "budgets.yaml", "a budget")
    if preset not in known:
        print(f"Budget: small, as there is none of the preset's name ({preset}); --budget {'|'.join(known)} or a file.")
    return preset if preset in known else "small"


def load_budget(name_or_path: str, **overrides: Any) -> dict[str, Any]:
    """Read one budget of `budgets.yaml` by its name, or the only one of another file.

    Args:
        name_or_path: `demo`, `small`, `paper`, or a YAML file.
        overrides: values that replace those of the file where they are not None, e.g. `iterations`.

    Raises:
        InputError: no such budget, values missing or unknown, out of range, or values that do not fit together.
    """
    known = read_yaml(HERE / "budgets.yaml", "a budget")
    if name_or_path.endswith((".yaml", ".yml")):
        path = user_path(name_or_path)
        content = read_yaml(path, "a budget")
        if not isinstance(content, dict) or len(content) != 1:
            raise InputError(
                f"{path}: must hold one budget under its name, as each in nnunet_integration/budgets.yaml."
            )
        name = next(iter(content))
    elif name_or_path in known:
        path, content, name = HERE / "budgets.yaml", known, name_or_path
    else:
        raise InputError(
            f"--budget {name_or_path}: no such budget; choose one of {', '.join(known)}, or a YAML file like "
            f"nnunet_integration/budgets.yaml{nearest(name_or_path, known)}."
        )
    budget = content[name]
    if isinstance(budget, dict):
        budget = budget | {key: value for key, value in overrides.items() if value is not None}
    checked(_Budget, budget, f"{path}: budget {name}: ", "see nnunet_integration/budgets.yaml")
    iterations, epoch = budget["iterations"], budget["iterations_per_epoch"]
    if iterations < epoch or iterations % epoch:
        raise InputError(f"--iterations {iterations}: must be a multiple of iterations_per_epoch ({epoch}).")
    if wrong := [s for s in budget["snapshots"] or () if s % epoch]:
        raise InputError(f"--snapshots {wrong[0]}: must be a multiple of iterations_per_epoch ({epoch}).")
    return {"name": name} | budget | {"snapshots": [s for s in budget["snapshots"] or () if s < iterations]}


Count = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1)]
Three = Field(min_length=3, max_length=3)


class _Plan(Values):
    """What replaces nnU-Net's own values; it fails late, or not at all, on others: two stages make the loss NaN."""

    spacing: Annotated[list[Annotated[float, Field(ge=0.2, le=10)]], Three]
    patch_size: Annotated[list[Count], Three]
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    features: Annotated[list[Annotated[int, Field(ge=1, le=2**14)]], Field(min_length=3, max_length=8)]

    @model_validator(mode="after")
    def _halved(self) -> _Plan:
        halvings = 2 ** (len(self.features) - 1)
        if any(size % halvings or size // halvings < 2 for size in self.patch_size):
            raise ValueError(f"patch_size must be a multiple of {halvings}, and {2 * halvings} or more")
        return self


class _Budget(Values):
    """One entry of `budgets.yaml`."""

    plan: _Plan | None
    iterations: Count
    iterations_per_epoch: Count
    validation_iterations: Count
    snapshots: list[Count] | None
    save_every: Count
    threads: Annotated[int, Field(ge=1, le=1024)]
    augmentation_workers: Annotated[int, Field(ge=0, le=1024)]


class _Arm(Values):
    """One arm of `arms.yaml`."""

    train: Annotated[list[Annotated[str, StringConstraints(pattern=GENERATOR)]], Field(min_length=1)]
    augmentation: Literal["none", "nnunet"]
    amount: Annotated[float, Field(gt=0, le=1000)] = 1.0
    share: Share | Annotated[list[Share], Field(min_length=2, max_length=2)] | None = None
    pretrain: Annotated[float, Field(gt=0, lt=1)] | None = None
    longer: bool = False

    @field_validator("train")
    @classmethod
    def _once(cls, train: list[str]) -> list[str]:
        if len(set(train)) < len(train):
            raise ValueError("must name each once")
        return train

    @model_validator(mode="after")
    def _drawn(self) -> _Arm:
        mixed = "real" in self.train and any(word not in OWN for word in self.train)
        if (self.share is not None or self.pretrain is not None) and not mixed:
            raise ValueError("share and pretrain are for arms that train on real cases and pairs")
        if self.share is not None and self.pretrain is not None:
            raise ValueError("give share or pretrain, not both")
        if self.longer and not (self.pretrain or (self.share and self.share != 1 and self.share != [1, 1])):
            raise ValueError("longer is for arms with pretrain, or with a share above 0 and below 1")
        return self

    @property
    def corners(self) -> tuple[tuple[float, float], ...]:
        """See `Arm.share`."""
        if self.pretrain is not None:
            return ((0.0, 1.0), (self.pretrain, 1.0), (self.pretrain, 0.0), (1.0, 0.0))
        if self.share is None:
            return ()
        first, last = self.share if isinstance(self.share, list) else (self.share, self.share)
        return ((0.0, float(first)), (1.0, float(last)))


class _Book(Values):
    """The whole of `arms.yaml`."""

    arms: Annotated[dict[Annotated[str, StringConstraints(pattern=r"^[a-z0-9_+.-]+$")], _Arm], Field(min_length=1)]
    standard: list[str]
    baseline: str
    families: list[list[str]] = Field(default_factory=list)
    paper: dict[str, Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)]] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _names(self) -> _Book:
        for name, arm in self.arms.items():
            words = name.split("+")
            if wrong := [word for word in arm.train if word not in OWN and word not in words]:
                raise ValueError(f"arm {name}: {wrong[0]!r} stands in train and must stand in its name")
            if "synth" in words and "synth" not in arm.train:
                raise ValueError(f"arm {name}: 'synth' must stand in its name and in train, or in neither")
        members = [name for family in self.families for name in family]
        for name in members:
            if name not in self.arms:
                raise ValueError(f"families: {name} is none of the arms{nearest(name, self.arms)}")
            if members.count(name) > 1 or name == self.baseline:
                raise ValueError(f"families: {name} must stand in one of them, once, and the baseline in none")
        if self.baseline not in self.arms:
            raise ValueError(f"baseline {self.baseline} is none of the arms{nearest(self.baseline, self.arms)}")
        families = [re.escape(name).replace("synth", "([a-z][a-z0-9_]*)") for name in self.arms]
        named = {word for arm in self.arms.values() for word in arm.train if word not in (*OWN, "synth")}
        words = {word for name in self.arms for word in name.split("+")} - named  # no generator is called like these
        for name in self.standard:
            found = [match for family in families if (match := re.fullmatch(family, name))]
            if name not in self.arms and not any(m.groups() and not nearest(m[1], words) for m in found):
                raise ValueError(f"standard: {name} is none of the arms{nearest(name, self.arms)}")
        return self
