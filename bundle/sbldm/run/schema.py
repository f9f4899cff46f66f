"""Values that people write, as data: YAML read without surprises, checked against one typed schema, never executed.

MONAI's parser runs what starts with `$` and builds what has a `_target_`; presets, budgets and arms are passed from
hand to hand, so they hold plain values alone and no parser sees them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from sbldm.run.errors import InputError, refused

__all__ = ["Values", "checked", "nearest", "read_yaml", "refuse_expressions"]

Schema = TypeVar("Schema", bound=BaseModel)
EXPRESSIONS = ("$", "@", "%")  # how a string begins that MONAI's parser evaluates, looks up or loads


class Values(BaseModel):
    """Base of all schemas: exact types (a whole number is no text), no unknown names, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _as_written(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """A whole number that stands for a float stays one, so that what is written again is what was read."""
        valid = handler(given)
        if isinstance(given, dict):
            valid.__dict__.update({name: value for name, value in given.items() if valid.__dict__[name] == value})
        return valid

    def state(self) -> dict[str, Any]:
        """Plain values for a file: those that were given, without defaults."""
        return self.model_dump(exclude_unset=True)

    def but(self, **values: Any) -> Self:
        """A copy with other values, checked anew; a mapping takes a place as a whole. Raises pydantic's ValueError."""
        return type(self).model_validate(self.state() | values)

    def equals(self, values: Any) -> bool:
        """Whether plain values are these, whichever of them are defaults."""
        try:
            return type(self).model_validate(values) == self
        except ValueError:
            return False


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those of YAML 1.2 (`5e-3` is one, `1:30` is none, `010` is 10), each key once."""


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?[0-9]+$",
    "tag:yaml.org,2002:float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:e[-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern, re.IGNORECASE), list("-+0123456789."))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    own = [loader.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    for key in own:
        if own.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands there twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path, what: str) -> Any:
    """The content of one YAML file of plain values.

    Args:
        path: of the file; a byte order mark is no part of it.
        what: what the file is, for messages, as in "a preset".

    Raises:
        InputError: it is missing, cannot be read or is no YAML, or something in it would be executed.
    """
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise InputError(refused(path, error, "read")) from None
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not readable as YAML ({' '.join(str(error).split())}).") from None
    refuse_expressions(content, f"{path}: ", what)
    return content


def refuse_expressions(content: Any, where: str, what: str) -> None:
    """Make sure that nothing in plain values could be taken for a program.

    Args:
        content: values of any depth.
        where: begin of the message, as in "FILE: ".
        what: what holds the values, as in "a preset".

    Raises:
        InputError: names the value that starts with `$`, `@` or `%`, or the key `_target_` (or another of its kind).
    """
    for name, key, value in _leaves(content):
        if re.fullmatch(r"_\w+_", key):
            raise InputError(f"{where}{name}: the key {key} would be executed; {what} holds plain values alone.")
        for text in (key, value):
            if isinstance(text, str) and text.lstrip().startswith(EXPRESSIONS):
                shown = repr(text.strip()[:40])
                raise InputError(f"{where}{name}: {shown} is an expression; {what} holds plain values alone.")


def _leaves(
    content: Any, prefix: str = "", key: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, str, Any]]:
    """Dotted name, last key and value of everything in nested values; what stands there by many aliases once."""
    seen = set() if seen is None else seen
    if isinstance(content, Mapping | list | tuple):
        if id(content) in seen:
            return
        seen.add(id(content))
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield f"{prefix}{name}", str(name), None
            yield from _leaves(value, f"{prefix}{name}.", str(name), seen)
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from _leaves(value, f"{prefix}{index}.", "", seen)
    else:
        yield prefix.removesuffix("."), key, content


def nearest(word: Any, known: Iterable[Any]) -> str:
    """` (did you mean X?)` for a word that is nearly one of those known, else an empty string."""
    found = difflib.get_close_matches(str(word).lower(), [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean {found[0]}?)" if found else ""


def checked(schema: type[Schema], content: Any, where: str, mend: str) -> Schema:
    """Values as an instance of their schema.

    Args:
        schema: what they must be.
        content: plain values.
        where: begin of the message, as in "FILE: ".
        mend: end of the message: what to look at.

    Raises:
        InputError: names the first value that is wrong and why, how many more there are, and for an unknown name the
            nearest known one.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        found = sorted(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
        faults = [_fault(schema, fault) for fault in found]  # a misspelt name before the one that it makes missing
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(f"{where}{faults[0]}{more}; {mend}.") from None


def _fault(schema: type[BaseModel], fault: Any) -> str:
    """One finding of pydantic in our words."""
    path = [part for part in fault["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    path = _without_tags(schema, path)
    name, given, kind = ".".join(map(str, path)), fault["input"], fault["type"]
    if kind == "missing":
        return f"lacks {name}"
    if kind == "extra_forbidden":
        known = _fields(schema, path[:-1])
        return f"{name} is unknown{nearest(path[-1], known) or '; known are ' + ', '.join(known)}"
    if kind == "union_tag_invalid":
        tags = fault["ctx"]["expected_tags"].replace("'", "").split(", ")
        known = " or ".join(map(repr, tags))
        return f"{name}.kind: {fault['ctx']['tag']!r} should be {known}{nearest(fault['ctx']['tag'], tags)}"
    if kind == "value_error":
        return ": ".join(filter(None, [name, str(fault["ctx"]["error"])]))
    said = fault["msg"].removeprefix("Input ").removeprefix("List ").removeprefix("String ").rstrip(".")
    said = re.sub(r" or instance of \w+", "", said).partition(" after validation")[0]
    if kind == "string_pattern_mismatch":
        said = "should have letters, digits, blanks and . , ( ) / + - alone"
    shown = repr(given) if len(repr(given)) <= 60 else f"{repr(given)[:60]} ..."
    hint = nearest(given, re.findall(r"'(\w+)'", said)) if kind == "literal_error" else ""
    return f"{name.removesuffix('.[key]') or 'the whole'}: {shown} {said}{hint}"


def _without_tags(schema: type[BaseModel], path: list[Any]) -> list[Any]:
    """A place as it is written in the file: the tags that tell the kinds of a union apart stand in no file."""
    kept, kinds = [], [schema]
    for part in path:
        fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
        if part in fields:
            kinds = _models(fields[part].annotation)
        elif len(kinds) > 1 and part in {_tag(kind) for kind in kinds}:
            kinds = [kind for kind in kinds if _tag(kind) == part]
            continue
        kept.append(part)
    return kept


def _tag(kind: type[BaseModel]) -> str:
    """The value of `kind` that names one part of a union."""
    return next(iter(getattr(kind.model_fields.get("kind"), "annotation", None).__args__), "")


def _fields(schema: type[BaseModel], path: list[Any]) -> list[str]:
    """Names that a schema knows at a place inside it."""
    fields = schema.model_fields
    for part in path:
        if part not in fields:
            continue  # the tag of a union, or a place in a list
        kinds = _models(fields[part].annotation)
        fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
    return list(fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]
