"""What somebody sees who runs commands in a terminal, and what a script reads that runs them without one."""

import json
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.integration.commands import Workplace
from tests.integration.preloaded import ask
from tests.integration.sweeps import QUICK
from tests.integration.terminal import Terminal

CHATTY = """
import os, quick
from dataclasses import replace

def train(config, run):
    print("by python")
    os.system("echo by another")
    quick.train(config, run)

experiment = replace(quick.experiment, train=train, evaluate=None)
"""


@pytest.fixture
def terminal(workplace: Workplace) -> Iterator[Callable[..., Terminal]]:
    """Starts commands in terminals."""
    started: list[Terminal] = []

    def start(*arguments: str, columns: int, **environment: str) -> Terminal:
        given = {"PIPELINE_REPORT_EVERY_S": "0", **environment}
        started.append(Terminal(workplace.folder, *arguments, columns=columns, environment=given))
        return started[-1]

    yield start
    for one in started:
        one.close()


def trainer(terminal: Terminal) -> psutil.Process:
    """The only process that trains."""
    servers = psutil.Process(terminal.process.pid).children()
    (found,) = [one for server in servers if "forkserver" in " ".join(server.cmdline()) for one in server.children()]
    return found


def row(screen: str) -> list[str]:
    """The worker's line."""
    return next((line.split() for line in screen.splitlines() if line.startswith("1  ")), [])


def test_a_sweep_that_is_killed_and_stopped_is_seen_in_its_terminal_and_in_another(workplace, terminal):
    progress = workplace.progress()
    told = {**progress.environment("1 2"), "HISTORY": str(workplace.folder / "history")}
    flags = ("--configurations", "1", "--pruner", "none", "--workers", "1", "--max-epochs", "3")
    here = terminal("sweep", str(QUICK), *flags, columns=80, **told)
    here.wait_for(lambda screen: row(screen)[4:6] == ["1/3", "2"], "the second batch of the second epoch is trained")
    head = here.text.splitlines()
    assert head[0] == "study quick  1 running"
    assert head[1].endswith("  1 of about 3 epochs")
    assert head[2].startswith("best #00 lr=")
    assert head[2].endswith(" at epoch 1")
    assert head[4].split() == ["worker", "configuration", "epochs", "batch", "batches/s", "loss", "to", "rung"]

    first = trainer(here)
    first.kill()
    screen = here.wait_for(
        lambda screen: "resumed from epoch 1" in screen and row(screen)[4:6] == ["1/3", "2"], "it was resumed"
    )
    assert screen.splitlines()[0].endswith("a worker died (exit code -9); another continues its work")
    assert [line.split("  ")[-1] for line in screen.splitlines()[-2:]] == ["killed at epoch 1", "resumed from epoch 1"]
    assert screen.count("study quick") == 1

    here.type("\x03")
    here.wait_for(
        lambda screen: "stopping (SIGINT): takes checkpoints; Ctrl-C once more: at once" in screen, "it stops"
    )
    progress.open_gate()
    assert here.wait() == 75
    assert "study quick: stopped; run the same command again to continue" in here.lines
    assert "worker  configuration" not in here.text, "the view is gone"
    assert not here.cursor_is_hidden
    assert b"\x1b[?" not in here.written

    there = terminal("status", "--study", "quick", "--watch", columns=200)
    seen = there.wait_for(lambda screen: "nobody trains it" in screen, "the study is read")
    assert seen.splitlines()[0] == "study quick  1 interrupted"
    assert [line.split("  ")[-1] for line in seen.splitlines()[-4:-1]] == [
        *("killed at epoch 1", "resumed from epoch 1", "stopped at epoch 1")
    ]
    there.type("\x03")
    assert there.wait() == 0
    assert there.text == seen

    asked = ask(workplace, "status", "--study", "quick", "--json")
    assert (asked.code, asked.err) == (0, "")
    (study,) = json.loads(asked.out)["studies"]
    assert (study["states"], study["epochs"], study["epochs_left"]) == ({"interrupted": 1}, 1, 2)
    assert study["configurations"][0]["why"] == "broken off: 1 lost, 1 preempted"
    plain = ask(workplace, "status", "--study", "quick")
    assert f"{study['configurations'][0]['bytes']:,} bytes" in plain.out
    assert "\x1b" not in plain.out


def test_a_script_reads_one_document_whatever_the_experiment_prints(workplace):
    chatty = workplace.folder / "chatty.py"
    chatty.write_text(CHATTY)
    (workplace.folder / "quick.py").symlink_to(QUICK)
    flags = ("--max-epochs", "1", "--quiet", "--json")
    command = workplace.start("train", chatty, *flags)
    assert command.wait() == 0
    lines = command.output.splitlines()
    begins = lines.index("{")
    assert sorted(lines[:begins]) == ["by another", "by python"], "and nothing else, as it is to be quiet"
    found = json.loads("\n".join(lines[begins:]))
    assert (found["finished"], found["trained"], found["evaluation"]) == (True, True, None)
    (one,) = found["study"]["configurations"]
    assert (one["state"], one["epochs"], found["study"]["best"]) == ("complete", 1, [0])
    again = ask(workplace, "verify", "--study", found["study"]["name"], "--json")
    checked = json.loads(again.out)
    assert (again.code, checked["bad"]) == (0, 0)
    assert one["checkpoint"] in {each["name"] for each in checked["checkpoints"]}
    assert ask(workplace, "status", "--study", "nothing", "--json").out == ""
