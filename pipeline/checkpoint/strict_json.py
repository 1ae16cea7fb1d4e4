"""JSON without the extensions that make it ambiguous: no NaN, no Infinity, no key given twice."""

import json
import math
from typing import Any, NoReturn, TypeAlias

from pipeline.errors import CorruptCheckpoint

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


def dumps(value: JSON) -> str:
    """Readable text, one entry a line; ASCII, so that a lone surrogate in a user's string survives.

    Raises ValueError for inf and nan, TypeError for what JSON does not have.
    """
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def loads(text: str | bytes, where: str) -> Any:
    """The value in `text`; `where` names the file in the error.

    Raises CorruptCheckpoint for everything that is not strict JSON, however deep or long.
    """
    try:
        return json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except (ValueError, RecursionError) as error:
        # json's and unicode's errors are ValueErrors; nesting of hostile depth is a RecursionError.
        raise CorruptCheckpoint(f"{where}: not strict JSON: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result
