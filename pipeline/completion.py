"""Completion for bash and zsh: a function that knows the commands and their flags by heart, so that Tab is quick.

The command is `python -m pipeline`, so it is python's completion that is extended: everything else that python is
called with completes to file names, as it would without.
"""

import dataclasses
from typing import Any

from pipeline import usage
from pipeline.commands import (
    CheckOptions,
    CommonOptions,
    EvaluateOptions,
    InspectOptions,
    ProveOptions,
    ReportOptions,
    ResumeOptions,
    StatusOptions,
    SweepOptions,
    TrainOptions,
    VerifyOptions,
    WorkerOptions,
)

SHELLS = ("bash", "zsh")
OPTIONS: dict[str, type[Any]] = {
    "main": SweepOptions,
    "prepare": CommonOptions,
    "train": TrainOptions,
    "sweep": SweepOptions,
    "resume": ResumeOptions,
    "worker": WorkerOptions,
    "evaluate": EvaluateOptions,
    "status": StatusOptions,
    "report": ReportOptions,
    "verify": VerifyOptions,
    "inspect": InspectOptions,
    "check": CheckOptions,
    "prove": ProveOptions,
}
# zsh runs the same function, by the emulation of bash's completion that comes with it.
ZSH = "autoload -Uz compinit bashcompinit\ncompinit -C\nbashcompinit\n"
SCRIPT = """\
_thaw() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" flags=""
    COMPREPLY=()
    if [[ "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" == "-m pipeline" ]]; then
        if [[ $COMP_CWORD == 3 ]]; then
            COMPREPLY=($(compgen -W "{commands} --help" -- "$word"))
            return
        fi
        case "${{COMP_WORDS[3]}}" in
{cases}
        esac
        if [[ $word == -* ]]; then
            COMPREPLY=($(compgen -W "$flags --help" -- "$word"))
            return
        fi
        if [[ ${{COMP_WORDS[3]}} == completion ]]; then
            COMPREPLY=($(compgen -W "{shells}" -- "$word"))
            return
        fi
    fi
    COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _thaw python python3
"""


def script(shell: str) -> str:
    """What the shell is to evaluate."""
    cases = "\n".join(
        f'            {name}) flags="{" ".join(_flags(options))}" ;;' for name, options in OPTIONS.items()
    )
    text = SCRIPT.format(commands=" ".join(usage.COMMANDS), cases=cases, shells=" ".join(SHELLS))
    return (ZSH if shell == "zsh" else "") + text


def _flags(options: type[Any]) -> list[str]:
    return [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)]
