"""The commands: each parses, calls and prints."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from pipeline import checking, documents, summary, usage
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
from pipeline.engines import local
from pipeline.engines.child import configure_logging
from pipeline.errors import ThawError, UsageError
from pipeline.experiment import ExperimentFile, load_experiment
from pipeline.options import parse
from pipeline.planning import Plan
from pipeline.session import Session
from pipeline.signals import StopRequest
from pipeline.summary import DONE, FAILED, STOPPED, Said
from pipeline.sweep.patience import Unsaved
from pipeline.terminal.watch import watch
from pipeline.tracking import server

DEFAULT_FILE = "experiments/tabular.py"
USAGE = 2


def run_command(arguments: Sequence[str], stop: StopRequest) -> int:
    """Runs one command and returns its exit code. Raises Interrupted when stopped before there was work to save."""
    configure_logging(logging.WARNING if _wants("quiet", arguments) else logging.INFO)
    as_json = _wants("json", arguments)
    try:
        if arguments[0] not in COMMANDS:
            raise UsageError(f"{arguments[0]}: no such command; there are {', '.join(usage.COMMANDS)}")
        with _printed_elsewhere() if as_json else nullcontext():
            said = COMMANDS[arguments[0]](arguments[1:], stop)
            text = documents.text(said.document()) if as_json else said.text
        if text:
            print(text)
        return said.code
    except Exception as error:
        message = str(error) if isinstance(error, ThawError) else server.refusal(error)
        if message is None:
            raise  # a bug
        if _wants("traceback", arguments):
            traceback.print_exception(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else STOPPED if isinstance(error, Unsaved) else FAILED


def main_command(arguments: Sequence[str], stop: StopRequest) -> Said:
    """The whole job: prepare, sweep, evaluate the best, register it."""
    return _sweep("main", arguments, stop, default_file=DEFAULT_FILE, evaluate=True)


def sweep_command(arguments: Sequence[str], stop: StopRequest) -> Said:
    """Sweeps FILE: draws configurations, pauses and promotes them. Again: resumes."""
    return _sweep("sweep", arguments, stop, default_file=None, evaluate=False)


def _sweep(
    command: str, arguments: Sequence[str], stop: StopRequest, *, default_file: str | None, evaluate: bool
) -> Said:
    context = local.start_forkserver()
    file, rest = _file(command, arguments, default_file, SweepOptions)
    options, data = _parsed(command, rest, SweepOptions, file)
    session = Session(options.storage, stop, context)
    study = session.open_sweep(
        file,
        data,
        name=options.study,
        plan=Plan(
            configurations=options.configurations,
            max_epochs=options.max_epochs,
            min_epochs=options.min_epochs,
            eta=options.eta,
            pruner=options.pruner,
            sampler=options.sampler,
            seed=options.seed,
            pruner_args=options.pruner_args,
            enqueue=options.enqueue,
            enqueue_file=options.enqueue_file,
            grid=options.grid,
            warm_start=options.warm_start,
        ),
        workers=options.processes,
        accept_change=options.accept_change,
    )
    return summary.report(session.work(study, file, options.how(), evaluate=evaluate))


def train_command(arguments: Sequence[str], stop: StopRequest) -> Said:
    """Trains one configuration of FILE. Again: resumes."""
    context = local.start_forkserver()
    file, rest = _file("train", arguments, None, TrainOptions)
    groups: dict[str, type[Any]] = {"": TrainOptions, "config": file.experiment.config, **_data_group(file)}
    found = _parse("train", groups, rest, file)
    options: TrainOptions = found[""]
    session = Session(options.storage, stop, context)
    study = session.open_training(
        file,
        found.get("data"),
        found["config"],
        name=options.study,
        max_epochs=options.max_epochs,
        seed=options.seed,
        accept_change=options.accept_change,
        workers=min(options.processes_per_trial or 1, options.processes),
    )
    return summary.report(session.work(study, file, options.how()))


def prepare_command(arguments: Sequence[str], stop: StopRequest) -> Said:
    """Prepares the data of FILE. Unchanged, it is found again."""
    file, rest = _file("prepare", arguments, None, CommonOptions)
    options, data = _parsed("prepare", rest, CommonOptions, file)
    return summary.tables(Session(options.storage, stop, None).prepare(file, data))


def resume_command(arguments: Sequence[str], stop: StopRequest) -> Said:
    """Continues a study, or gives configurations of it the whole budget, or more."""
    options: ResumeOptions = _parse("resume", {"": ResumeOptions}, arguments)[""]
    session = Session(options.storage, stop, local.start_forkserver())
    study, file = session.reopen_study(options.study, accept_change=options.accept_change, workers=options.processes)
    return summary.report(session.work(study, file, options.how(), reopening=options.reopening()))


def worker_command(arguments: Sequence[str], stop: StopRequest) -> Said:
    """Works on a study that was begun on this machine or another."""
    context = local.start_forkserver()
    file, rest = _maybe_file(arguments)
    options: WorkerOptions = _parse("worker", {"": WorkerOptions}, rest)[""]
    session = Session(options.storage, stop, context)
    study, experiment = session.join_study(options.study, file, workers=options.processes)
    return summary.report(session.work(study, experiment, options.how()))


def evaluate_command(arguments: Sequence[str], stop: StopRequest) -> Said:
    """Evaluates a study's best configuration on held-out data and registers its model."""
    options: EvaluateOptions = _parse("evaluate", {"": EvaluateOptions}, arguments)[""]
    session = Session(options.storage, stop, None)
    study, file = session.reopen_study(options.study, accept_change=options.accept_change)
    return summary.evaluation(study, session.evaluate(study, file, options.configuration))


def status_command(arguments: Sequence[str], stop: StopRequest) -> Said:
    """Shows how a study stands, or all of them: what runs, what is paused, what is left."""
    options: StatusOptions = _parse("status", {"": StatusOptions}, arguments)[""]
    session = Session(options.storage, stop, None)
    found = session.status(options.study)
    if not options.watch:
        return summary.status(found, session.overview(options.study) if options.study is not None else None)
    watch(session.overviews(options.study), stop, full=options.study is not None)
    return Said(code=DONE, text="", document=dict)


def report_command(arguments: Sequence[str], stop: StopRequest) -> Said:
    """Rebuilds what MLflow shows of a study: pages, pictures, tables and the report that stands alone."""
    options: ReportOptions = _parse("report", {"": ReportOptions}, arguments)[""]
    return summary.reported(Session(options.storage, stop, None).report(options.study))


def verify_command(arguments: Sequence[str], stop: StopRequest) -> Said:
    """Checks the checkpoints of a study or a run against their manifests; changes nothing."""
    options: VerifyOptions = _parse("verify", {"": VerifyOptions}, arguments)[""]
    session = Session(options.storage, stop, None)
    return summary.verdicts(session.verify(options.study, options.run))


def inspect_command(arguments: Sequence[str], stop: StopRequest) -> Said:
    """Prints what is in a checkpoint of RUN, as a tree with shapes and types."""
    if not arguments or arguments[0].startswith("-"):
        _maybe_help("inspect", arguments, InspectOptions)
        raise UsageError("inspect: which run? give its MLflow run id, or the folder of a Run.local")
    options: InspectOptions = _parse("inspect", {"": InspectOptions}, arguments[1:])[""]
    return summary.tree(Session(options.storage, stop, None).checkpoint(arguments[0], options.which))


def check_command(arguments: Sequence[str], _: StopRequest) -> Said:
    """Tells before a long sweep whether this machine can do it."""
    file, rest = _maybe_file(arguments)
    options: CheckOptions = _parse("check", {"": CheckOptions}, rest)[""]
    return summary.checks(checking.check(options.storage, file=file, study=options.study))


def prove_command(arguments: Sequence[str], _: StopRequest) -> Said:
    """Kills and resumes FILE's training, and compares it with an undisturbed one, bit for bit."""
    from pipeline.proving.prove import prove

    context = local.start_forkserver()
    file, rest = _file("prove", arguments, None, ProveOptions)
    groups: dict[str, type[Any]] = {"": ProveOptions, "config": file.experiment.config, **_data_group(file)}
    found = _parse("prove", groups, rest, file)
    options: ProveOptions = found[""]
    return summary.proof(
        prove(
            file,
            found["config"],
            found.get("data"),
            context,
            kills=options.kills,
            max_epochs=options.max_epochs,
            seed=options.seed,
            show_traceback=options.traceback,
        )
    )


COMMANDS: dict[str, Callable[[Sequence[str], StopRequest], Said]] = {
    "main": main_command,
    "prepare": prepare_command,
    "train": train_command,
    "sweep": sweep_command,
    "resume": resume_command,
    "worker": worker_command,
    "evaluate": evaluate_command,
    "status": status_command,
    "report": report_command,
    "verify": verify_command,
    "inspect": inspect_command,
    "check": check_command,
    "prove": prove_command,
}


def _file(
    command: str, arguments: Sequence[str], default: str | None, options: type[Any]
) -> tuple[ExperimentFile, Sequence[str]]:
    """The experiment that the first argument names, and the arguments after it."""
    if arguments and not arguments[0].startswith("-"):
        return load_experiment(arguments[0]), arguments[1:]
    if default is not None:
        return load_experiment(default), arguments
    _maybe_help(command, arguments, options)
    raise UsageError(f"{command}: which experiment? give its file first, for instance experiments/digits.py")


def _maybe_file(arguments: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The first argument, if it is no flag, and the arguments after it."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    return None, arguments


def _maybe_help(command: str, arguments: Sequence[str], options: type[Any]) -> None:
    """Prints a command's help and exits, if that is what it was asked for without its first argument."""
    if any(argument in ("-h", "--help") for argument in arguments):
        _parse(command, {"": options}, arguments)


def _parsed(command: str, arguments: Sequence[str], options: type[Any], file: ExperimentFile) -> tuple[Any, Any]:
    """The options of a command and those of the experiment's `prepare`, None without."""
    groups = {"": options, **_data_group(file)}
    found = _parse(command, groups, arguments, file)
    return found[""], found.get("data")


def _data_group(file: ExperimentFile) -> dict[str, type[Any]]:
    return {} if file.experiment.data is None else {"data": file.experiment.data}


def _parse(
    command: str, groups: Mapping[str, type[Any]], arguments: Sequence[str], file: ExperimentFile | None = None
) -> dict[str, Any]:
    words = usage.COMMANDS[command]
    prog = f"python -m pipeline {command} {words.takes if file is None else file.path.name}".strip()
    return parse(prog, words.summary, groups, arguments, example=words.example)


def _wants(flag: str, arguments: Sequence[str]) -> bool:
    """Whether a flag is true, before anything is parsed: as parsing takes it, also without a value."""
    following = dict(zip(arguments, [*arguments[1:], "--"], strict=True))
    after = following.get(f"--{flag}", "false")
    return f"--{flag}=true" in arguments or after == "true" or after.startswith("-")


@contextmanager
def _printed_elsewhere() -> Iterator[None]:
    """In this block whatever is printed to stdout, by whichever process or library, goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
