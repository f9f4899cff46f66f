"""Options of the command line: types, ranges and choices, checked once as they come in, and what commands share.

Only what is quick to import stands here, so that help needs no PyTorch. The checks are our own, not Typer's, for the
sake of their words: one line that names the option, what was typed, and what can be.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

from sbldm.run.limits import (
    LARGEST,
    MOST_BATCH,
    MOST_ITERATIONS,
    MOST_MINUTES,
    MOST_PAIRS,
    MOST_PROCESSES,
    MOST_SEED,
    NOISIEST,
    Guide,
    Own,
    Sampler,
    Spacing,
)
from sbldm.run.models import LATER, MODELS

RUN = Path("runs/default")
DATASET = 501
LABELS = "What the numbers in the masks mean: auto, brats21, brats23, brats24, peds, or a YAML file."

ModelName = Literal[tuple(MODELS)]
Stage = Literal[("all", *dict.fromkeys(stage for model in MODELS.values() for stage in model.stages), *LATER)]
Switch = Literal["on", "off"]
Fid = Literal["1", "force"]


class Wrong(typer.BadParameter):
    """A value that an option does not take; the message goes on from the name of the option."""


class Numbers(tuple[float, ...]):
    """Numbers in one value, with commas between them."""


class Words(tuple[str, ...]):
    """Words in one value, with blanks between them; quotation marks hold a word with blanks together."""


# --- what a value may be ----------------------------------------------------------------------------------------------


def whole(least: int, most: int, *names: str, **more: Any) -> Any:
    """An option that takes a whole number from `least` to `most`."""

    def parse(text: str | int) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise Wrong(f"{text}: must be a whole number from {least} to {most}.")
        return value

    return typer.Option(*names, parser=parse, metavar="INTEGER", **_ranged(more, f"{least} to {most}"))


def number(least: float = -math.inf, most: float = LARGEST, above: bool = False, **more: Any) -> Any:
    """An option that takes a finite number from `least` (or `above` it) to `most`."""
    low = f"above {least:g}" if above else f"from {least:g}"
    reach = f"up to {most:g}" if least == -math.inf else f"{low} to {most:.12g}"

    def parse(text: str | float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most and (value > least or not above)):
            raise Wrong(f"{text}: must be a number {reach}.")
        return value

    return typer.Option(parser=parse, metavar="NUMBER", **_ranged(more, "" if least == -math.inf else reach))


def _ranged(more: dict[str, Any], reach: str) -> dict[str, Any]:
    return more | {"help": f"{more['help']}, {reach}." if reach else more["help"]}


def choice(among: Any, **more: Any) -> Any:
    """An option that takes one of the values of a Literal."""
    return typer.Option(**_chosen(among), **more)


def choice_argument(among: Any, **more: Any) -> Any:
    """An argument, without a name, that takes one of the values of a Literal."""
    return typer.Argument(**_chosen(among), **more)


def _chosen(among: Any) -> dict[str, Any]:
    known = get_args(among)

    def parse(text: str) -> str:
        if text not in known:
            raise Wrong(f"{text}: choose one of {', '.join(known)}{nearest(text, known)}.")
        return text

    def complete(begun: str) -> list[str]:
        return [value for value in known if value.startswith(begun)]

    return {"parser": parse, "metavar": "|".join(known), "autocompletion": complete}


def nearest(word: str, known: Any) -> str:
    """` (did you mean X?)` where there is one; the library behind it is only loaded when something is wrong."""
    from sbldm.run.schema import nearest

    return nearest(word, known)


def numbers(form: str, kind: type = int, least: float = 0, most: float = MOST_SEED, count: int = 0, **more: Any) -> Any:
    """An option that takes numbers with commas (or blanks) between them.

    Args:
        form: how to write them, for the message.
        kind: `int` or `float`.
        least, most: the smallest and the largest number that is taken.
        count: how many there must be, in this order; 0: one at least, of which each is taken once.
        more: of `typer.Option`.
    """

    def parse(text: str | Numbers) -> Numbers:
        if not isinstance(text, str):  # the default
            return text
        try:
            found = [kind(word) for word in text.replace(",", " ").split()]
        except ValueError:
            found = []
        if not found or (count and len(found) != count):
            raise Wrong(f"{text}: write {form}.")
        if wrong := [n for n in found if not (math.isfinite(n) and least <= n <= most)]:
            raise Wrong(f"{text}: {wrong[0]:.16g} is not from {least:g} to {most:.16g}.")
        return Numbers(found if count else dict.fromkeys(found))

    return typer.Option(parser=parse, **{"metavar": "N,N,.."} | more)


def three(least: float, **more: Any) -> Any:
    """An option that takes three numbers along the axes of a brain."""
    form = "three numbers along R, A, S, as in 40,35,30"
    return numbers(form, float, least, LARGEST, 3, **{"metavar": "R,A,S"} | more)


def tolerance(text: str) -> Numbers:
    """`20,10`: per cent of the volume and mm of the centre, above 0; one that is left empty may be anything."""
    parts = [part.strip().removesuffix("%") for part in text.split(",")]
    try:
        found = Numbers(float(part) if part else math.inf for part in [*parts, ""][:2])
    except ValueError:
        found = Numbers()
    if len(parts) > 2 or not found or not all(value > 0 for value in found):
        raise Wrong(f"{text}: write per cent of the volume and mm of the centre, as in 20,10.")
    return found


def words(text: str | Words) -> Words:
    """Words as a shell would split them; an existing folder, alone or behind `name=`, is one word with its blanks."""
    if not isinstance(text, str):
        return text
    if any(part and Path(part).expanduser().is_dir() for part in (text, text.partition("=")[2])):
        return Words([text])
    try:
        return Words(shlex.split(text))
    except ValueError:
        mend = "write it twice around what it quotes, or \\' for an apostrophe in a name"
        raise Wrong(f"{text}: a quotation mark has no counterpart; {mend}.") from None


def words_or_commas(text: str | Words) -> Words:
    """Words with commas or blanks between them."""
    return words(text.replace(",", " ")) if isinstance(text, str) else text


def some_of(among: Any) -> Callable[[str | Words], Words]:
    """A parser of words, with commas or blanks between them, that must all be values of a Literal."""
    known = get_args(among)

    def parse(text: str | Words) -> Words:
        found = words_or_commas(text)
        if other := [word for word in found if word not in known]:
            raise Wrong(f"{text}: {other[0]} is none of {', '.join(known)}.")
        return found

    return parse


def shard(text: str | Numbers) -> Numbers:
    """`i/k` as two whole numbers, i from 1 to k."""
    if not isinstance(text, str):
        return text
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise Wrong(f"{text}: write i/k, for example 1/4.") from None
    if not 1 <= index <= count:
        raise Wrong(f"{text}: i must be from 1 to k.")
    return Numbers([index, count])


# --- commands that take many ------------------------------------------------------------------------------------------


def takes(group: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a dataclass as options; they arrive as one value, before its own arguments."""

    def give(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(group, include_extras=True)
        own = list(signature(command, eval_str=True).parameters.values())[1:]
        options = [
            Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in fields(group)
        ]
        every = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own] + options

        @wraps(command)
        def collected(**values: Any) -> None:
            asked = group(**{option.name: values.pop(option.name) for option in options})
            command(asked, **values)

        del collected.__wrapped__  # whose signature would be taken
        collected.__signature__ = Signature(every)
        collected.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        return collected

    return give


# --- options of several commands --------------------------------------------------------------------------------------

CASES, REQUEST, SAMPLING, CANVAS = "Cases", "Request", "Sampling", "Real brains"
PRESET = "as the preset"

RunOption = Annotated[Path, typer.Option(help="Run folder.")]
OutOption = Annotated[Path, typer.Option(help="Folder to write to.")]
SeedOption = Annotated[int, whole(0, MOST_SEED, help="Seed")]
FirstSeedOption = Annotated[int, whole(0, MOST_SEED, help="Pair i has the seed SEED + i")]
WorkersOption = Annotated[int, whole(1, MOST_PROCESSES, help="Processes")]
PairsOption = Annotated[int | None, whole(1, MOST_PAIRS, help="Number of pairs")]
DatasetOption = Annotated[int, whole(1, 999, help="nnU-Net dataset number")]
MovedOption = Annotated[Path | None, typer.Option(help="Folder of the run's cases, where it has moved.")]
WeightsOption = Annotated[
    str, typer.Option(help="A generator from elsewhere: shipped (the package's own), or a .safetensors file.")
]
BatchOption = Annotated[int | None, whole(1, MOST_BATCH, help="Drawn at once", show_default=PRESET)]
StepsOption = Annotated[
    int | None, whole(1, MOST_ITERATIONS, help="Network evaluations", show_default=PRESET, rich_help_panel=SAMPLING)
]
CanvasOption = Annotated[
    str,
    typer.Option(
        metavar="train|FOLDER",
        help="Draw into real brains: train (the run's training cases), or a folder of cases of your own.",
        rich_help_panel=CANVAS,
    ),
]
OwnOption = Annotated[
    Own | None,
    choice(Own, help="Of copy-paste: the receiver's own tumour. healed: the control, one a pair.", show_default="kept"),
]


@dataclass(frozen=True)
class Preparation:
    """What `prepare`, and `train` before its trainings, are asked for."""

    data: Annotated[
        Path | None, typer.Option(help="Folder of cases; the layout is detected.", rich_help_panel=CASES)
    ] = None
    run: RunOption = RUN
    model: Annotated[ModelName | None, choice(ModelName, help="What to train.", show_default="sbldm")] = None
    preset: Annotated[
        str,
        typer.Option(
            help="demo, small, fast, paper, multimodal, .. (configs/presets), or a YAML file.", show_default="small"
        ),
    ] = ""
    minutes: Annotated[
        float | None, number(0, MOST_MINUTES, above=True, help="Training time to aim at", show_default=PRESET)
    ] = None
    init: Annotated[
        str, typer.Option(help="Weights to go on from in place of random ones: shipped, or a .safetensors file.")
    ] = ""
    cases: Annotated[
        Path | None, typer.Option(help="File with the names of the cases to use, one a line.", rich_help_panel=CASES)
    ] = None
    validation_cases: Annotated[
        Path | None, typer.Option(help="File with the names of the held-back cases.", rich_help_panel=CASES)
    ] = None
    labels: Annotated[str, typer.Option(help=LABELS, show_default="as the layout", rich_help_panel=CASES)] = ""
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop when pre-flight finds anything.", rich_help_panel=CASES)
    ] = False
    accept: Annotated[
        Words | None,
        typer.Option(
            parser=words,
            metavar="WORDS",
            help="Doubts of pre-flight to overrule: CASE, CASE:check or all:check, blanks between.",
            rich_help_panel=CASES,
        ),
    ] = None
    seed: SeedOption = 0
    workers: WorkersOption = 2


@dataclass(frozen=True)
class Sampling:
    """How noise becomes a volume; what is None is as the preset says."""

    sampler: Annotated[
        Sampler | None, choice(Sampler, help="Sampler.", show_default=PRESET, rich_help_panel=SAMPLING)
    ] = None
    steps: StepsOption = None
    spacing: Annotated[
        Spacing | None, choice(Spacing, help="Of the steps of dpm_solver, unipc and heun.", rich_help_panel=SAMPLING)
    ] = None
    sigma_min: Annotated[
        float | None,
        number(
            0,
            NOISIEST,
            above=True,
            help="Noise below which these three draw no detail, of latents of deviation 1",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    eta: Annotated[float | None, number(0, 1, help="Share of fresh noise in ddim", rich_help_panel=SAMPLING)] = None
    guidance: Annotated[
        float | None, number(0, help="1: the request alone, above 1: followed more strictly", rich_help_panel=SAMPLING)
    ] = None
    guide: Annotated[
        Guide | None,
        choice(
            Guide,
            help="Whose answer without a request guidance leads away from: early weights, or the same network unasked.",
            rich_help_panel=SAMPLING,
        ),
    ] = None

    @property
    def sampling(self) -> dict[str, Any]:
        """These alone, by name."""
        return {field.name: getattr(self, field.name) for field in fields(Sampling)}


@dataclass(frozen=True)
class Drawing(Sampling):
    """What `synth` is asked for."""

    run: RunOption = RUN
    n: PairsOption = None
    seed: FirstSeedOption = 0
    requests: Annotated[
        str,
        typer.Option(
            metavar="FILE|gaps",
            help="CSV table of requests; gaps: drawn where real tumours are rare.",
            rich_help_panel=REQUEST,
        ),
    ] = ""
    volume_ml: Annotated[float | None, number(0, above=True, help="Volume, ml", rich_help_panel=REQUEST)] = None
    surface_mm2: Annotated[float | None, number(0, above=True, help="Surface, mm2", rich_help_panel=REQUEST)] = None
    sphericity: Annotated[float | None, number(0, 1, above=True, help="Sphericity", rich_help_panel=REQUEST)] = None
    centre_mm: Annotated[
        Numbers | None, three(-LARGEST, help="From the centre of the brain's box, mm.", rich_help_panel=REQUEST)
    ] = None
    extents_mm: Annotated[Numbers | None, three(0, help="Bounding box, mm.", rich_help_panel=REQUEST)] = None
    core_percent: Annotated[
        float | None,
        number(0, 100, help="Tumour core, per cent of the tumour (of several labels)", rich_help_panel=REQUEST),
    ] = None
    enhancing_percent: Annotated[
        float | None,
        number(0, 100, help="Enhancing tumour, per cent of the tumour, part of the core", rich_help_panel=REQUEST),
    ] = None
    contrast: Annotated[
        float | None,
        number(help="In real brains: brightness above what lies around, in SD of the brain.", rich_help_panel=REQUEST),
    ] = None
    canvas: CanvasOption = ""
    keep: Annotated[
        bool, typer.Option("--keep", help="Each canvas keeps its own tumour, healed otherwise.", rich_help_panel=CANVAS)
    ] = False
    push: Annotated[
        bool, typer.Option("--push", help="New tumours push aside what lies around them.", rich_help_panel=CANVAS)
    ] = False
    satellites: Annotated[
        float | None,
        number(0, 1, help="Share of pairs with a second, smaller tumour near the first", rich_help_panel=CANVAS),
    ] = None
    tol: Annotated[
        Numbers | None,
        typer.Option(
            parser=tolerance,
            metavar="%,MM",
            help="Draw again until within per cent of the volume and mm of the centre: 20,10.",
        ),
    ] = None
    refine: Annotated[
        bool, typer.Option("--refine", help="Sharpen images around the tumour, after `sbldm train refiner`.")
    ] = False
    gate: Annotated[
        Switch, choice(Switch, help="off: write copies and implausible pairs too, marked in the manifest.")
    ] = "on"
    batch: BatchOption = None
    weights: WeightsOption = ""
    dataset: DatasetOption = DATASET
    name: Annotated[str, typer.Option(help="nnU-Net dataset name.", show_default="as the model")] = ""
    data: MovedOption = None
    own: OwnOption = None

    @property
    def request(self) -> dict[str, Any]:
        """One request for all pairs, by name."""
        alone = ("volume_ml", "surface_mm2", "sphericity", "core_percent", "enhancing_percent", "contrast")
        several = {name: getattr(self, name) and list(getattr(self, name)) for name in ("centre_mm", "extents_mm")}
        return {name: getattr(self, name) for name in alone} | several
