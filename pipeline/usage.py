"""What commands there are, in words: what the help says, before anything heavy is imported."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A command in words.

    Attributes:
        summary: what it does, in one line.
        takes: what comes before its flags.
        example: a command line that shows it.
    """

    summary: str
    takes: str = ""
    example: str


COMMANDS = {
    "new": Usage(
        summary="Writes a commented experiment file NAME.py to start from.",
        takes="NAME",
        example="python -m pipeline new mine",
    ),
    "main": Usage(
        summary="The whole job: prepare, sweep, evaluate the best, register it.",
        takes="[FILE]",
        example="python -m pipeline main --data.path my.csv --data.target price_class",
    ),
    "prepare": Usage(
        summary="Prepares the data of FILE. Unchanged, it is found again.",
        takes="FILE",
        example="python -m pipeline prepare experiments/tabular.py",
    ),
    "train": Usage(
        summary="Trains one configuration of FILE. Again: resumes.",
        takes="FILE",
        example="python -m pipeline train experiments/digits.py --config.lr 0.01",
    ),
    "sweep": Usage(
        summary="Sweeps FILE: draws configurations, pauses and promotes them. Again: resumes.",
        takes="FILE",
        example="python -m pipeline sweep experiments/digits.py --configurations 12 --workers 2",
    ),
    "resume": Usage(
        summary="Continues a study, or gives configurations of it the whole budget, or more.",
        example="python -m pipeline resume --study digits --configuration 7",
    ),
    "worker": Usage(
        summary="Works on a study that was begun on this machine or another, beside its other workers.",
        takes="[FILE]",
        example="python -m pipeline worker --study digits --grace-s 60",
    ),
    "evaluate": Usage(
        summary="Evaluates a study's best configuration on held-out data and registers its model.",
        example="python -m pipeline evaluate --study digits",
    ),
    "status": Usage(
        summary="Shows how a study stands, or all of them: what runs, what is paused, what is left.",
        example="python -m pipeline status --study digits --watch",
    ),
    "report": Usage(
        summary="Rebuilds what MLflow shows of a study: pages, pictures, tables and a report that stands alone.",
        example="python -m pipeline report --study digits",
    ),
    "verify": Usage(
        summary="Checks the checkpoints of a study or a run against their manifests; changes nothing.",
        example="python -m pipeline verify --study digits",
    ),
    "inspect": Usage(
        summary="Prints what is in a checkpoint of RUN, as a tree with shapes and types.",
        takes="RUN",
        example="python -m pipeline inspect 4f0c2a9be1d84c6c9a7b3f5d2e8a1c60 --which best",
    ),
    "check": Usage(
        summary="Tells before a long sweep whether this machine can do it; leaves nothing behind.",
        takes="[FILE]",
        example="python -m pipeline check --study digits",
    ),
    "prove": Usage(
        summary="Kills and resumes FILE's training, and compares it with an undisturbed one, bit for bit.",
        takes="FILE",
        example="python -m pipeline prove experiments/digits.py --kills 5",
    ),
    "completion": Usage(
        summary="Prints what makes a shell, bash or zsh, complete these commands and their flags.",
        takes="SHELL",
        example='eval "$(python -m pipeline completion bash)"',
    ),
}


def overview() -> str:
    """What `--help` prints."""
    return "\n".join(
        [
            "usage: python -m pipeline COMMAND [FILE] [--flags]",
            "",
            "Hyperparameter sweeps that survive: kill anything, run the same command again.",
            "",
            *(f"  {name:<12}{command.summary}" for name, command in COMMANDS.items()),
            "",
            "python -m pipeline COMMAND [FILE] --help lists a command's flags, and those of the experiment FILE.",
            "Every flag takes a value, as in --accept-change true; a true one may leave it out.",
        ]
    )


def details(name: str) -> str:
    """What `--help` says of a command that has no flags."""
    command = COMMANDS[name]
    return "\n".join(
        [f"usage: python -m pipeline {name} {command.takes}", "", command.summary, "", f"example: {command.example}"]
    )
