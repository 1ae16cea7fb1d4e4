"""Command line options from dataclasses: types, defaults and help texts come from the fields."""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

from pipeline.errors import UsageError

# In the metadata of a field: its flag may be given again and again, or several values at once between semicolons.
REPEATABLE = "repeatable"
UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class _Parser(ArgumentParser):
    example = ""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """With an example that is not wrapped, so that it can be copied."""
        return str(super().format_help()) + (f"\nexample: {self.example}\n" if self.example else "")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(message)


def parse(
    prog: str, description: str, groups: Mapping[str, type[Any]], arguments: Sequence[str], *, example: str = ""
) -> dict[str, Any]:
    """Parses arguments into one instance of each group's dataclass.

    The fields of group `config` are `--config.learning-rate`, and `--config.optimizer.lr` where a field is a
    dataclass itself; those of the group with the empty name are `--max-epochs`. A flag that may be true is so without
    a value as well. `--help` prints and exits.

    Raises:
        UsageError: an unknown flag, or a value that is not of its field's type.
    """
    parser = _Parser(prog=prog, description=description, default_env=False, allow_abbrev=False)
    parser.example = example
    for name, cls in groups.items():
        group = parser.add_argument_group(f"--{name}.*" if name else "options", _summary(cls) if name else None)
        _add_fields(group, name, cls, None)
    try:
        found = parser.parse_args(list(arguments), defaults=True)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise UsageError(_one_line(str(error))) from error
    except UsageError as error:
        raise UsageError(_one_line(str(error))) from None
    return {name: _instance(cls, name, found) for name, cls in groups.items()}


def seconds(text: str) -> float:
    """`90`, `90s`, `30m`, `2h` or `1d` in seconds. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no duration; expected for instance 90s, 30m or 2h")
    return float(match[1]) * UNITS_S[match[2]]


def _add_fields(group: Any, name: str, cls: type[Any], defaults: Any) -> None:
    """Adds a flag for each field; `defaults` is an instance that has them, None for the class's own."""
    hints, helps = get_type_hints(cls), _helps(cls)
    for field in dataclasses.fields(cls):
        dotted, hint = _dotted(name, field.name), hints[field.name]
        default = _default(field) if defaults is None else getattr(defaults, field.name)
        given = default is not dataclasses.MISSING
        if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
            _add_fields(group, dotted, hint, default if given else None)
            continue
        if REPEATABLE in field.metadata:
            group.add_argument(f"--{dotted}", type=str, action="append", help=helps.get(field.name, " "))
            continue
        # A required field of a user's dataclass is required here as well.
        group.add_argument(
            f"--{dotted}",
            type=hint,
            default=default if given else None,
            required=not given,
            **({"nargs": "?", "const": True} if hint is bool else {}),
            help=helps.get(field.name, " "),
        )


def _instance(cls: type[Any], name: str, found: Namespace) -> Any:
    hints, values = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        dotted, hint = _dotted(name, field.name), hints[field.name]
        nested = inspect.isclass(hint) and dataclasses.is_dataclass(hint)
        value = _instance(hint, dotted, found) if nested else found[dotted.replace("-", "_")]
        values[field.name] = _split(value) if REPEATABLE in field.metadata else value
    try:
        return cls(**values)
    except UsageError:
        raise
    except (ValueError, TypeError) as error:  # the dataclass's own checks
        raise UsageError(f"--{name}.*: {error}" if name else str(error)) from error


def _split(given: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(part for text in given or () for part in text.split(";") if part.strip())


def _dotted(group: str, field: str) -> str:
    return ".".join(part for part in (group, field.replace("_", "-")) if part)


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _summary(cls: type[Any]) -> str:
    return (inspect.getdoc(cls) or cls.__name__).splitlines()[0]


def _helps(cls: type[Any]) -> dict[str, str]:
    """What the docstrings of a class, and of those it inherits fields from, say of them."""
    parsed = [docstring_parser.parse_from_object(one) for one in reversed(cls.__mro__) if dataclasses.is_dataclass(one)]
    return {p.arg_name: p.description or " " for one in parsed for p in one.params}


def _one_line(message: str) -> str:
    """jsonargparse's own words, on one line and with the flag as it was written."""
    text = " ".join(message.split())
    missing = re.fullmatch(r"the following arguments are required: (.*)", text)
    if missing is not None:
        return f"missing: {', '.join(_flag(key) for key in missing[1].split(', '))}"
    found = re.fullmatch(r'Parser key "([^"]+)": (.*)', text)
    if found is None:
        return text
    reason = re.sub(r"<class '(\w+)'>", r"\1", found[2])
    return f"{_flag(found[1])}: {reason}"


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"
