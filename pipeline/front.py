"""The commands that load nothing heavy: the help, `new` and `completion`."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import usage
from pipeline.errors import UsageError

TEMPLATE = Path(__file__).with_name("template.py")
HELP = ("-h", "--help")


def answer(arguments: Sequence[str]) -> int | None:
    """The exit code of a command that is answered here; None for every other command."""
    if not arguments or arguments[0] in HELP:
        print(usage.overview())
        return 0 if arguments else 2
    command = {"new": new_command, "completion": completion_command}.get(arguments[0])
    if command is None:
        return None
    if any(argument in HELP for argument in arguments):
        print(usage.details(arguments[0]))
        return 0
    try:
        return command(arguments[1:])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def new_command(arguments: Sequence[str]) -> int:
    """Writes the template as NAME.py."""
    if len(arguments) != 1:
        raise UsageError("new: which name? give one, for instance `python -m pipeline new mine`")
    file = Path(f"{arguments[0].removesuffix('.py')}.py")
    if not re.fullmatch(r"\w[\w-]*", file.stem):
        raise UsageError(f"new {arguments[0]}: expected a name of letters, digits, _ and -")
    text = TEMPLATE.read_text(encoding="utf-8").replace(TEMPLATE.name, str(file))
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise UsageError(f"new {arguments[0]}: {file} is there already; take another name") from None
    except OSError as error:
        raise UsageError(f"new {arguments[0]}: {file} cannot be written: {error.strerror}") from None
    print(f"wrote {file}; try it:  python -m pipeline sweep {file} --configurations 2 --max-epochs 2")
    return 0


def completion_command(arguments: Sequence[str]) -> int:
    """Prints a shell's completion, made from the flags as they are now."""
    from pipeline.completion import SHELLS, script

    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise UsageError(f"completion: for which shell? give one of {', '.join(SHELLS)}")
    print(script(arguments[0]), end="")
    return 0
