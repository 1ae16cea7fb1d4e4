"""What workers are given, and how they are ended."""

import select
import signal

from tests.integration.commands import Workplace, wait_until_gone
from tests.integration.sweeps import QUICK, Sweep


def test_workers_are_given_the_visible_devices_in_turn(workplace: Workplace) -> None:
    experiment = workplace.folder / "told.py"
    text = QUICK.read_text(encoding="utf-8")
    begin = "    generator = torch.Generator().manual_seed(1)\n"
    assert begin in text
    noted = '    Path("devices", f"{os.getpid()} {os.environ.get(\'CUDA_VISIBLE_DEVICES\')}").touch()\n'
    experiment.write_text(text.replace(begin, noted + begin), encoding="utf-8")
    (workplace.folder / "devices").mkdir()
    sweep = Sweep.of(workplace)
    arguments = ("sweep", str(experiment), "--configurations", "8", "--workers", "3", "--gpus-per-trial", "0.5")
    command = workplace.start(*arguments, environment={**sweep.environment(""), "CUDA_VISIBLE_DEVICES": "3, 5"})
    assert command.wait() == 0, command.output
    found = [path.name.split() for path in (workplace.folder / "devices").iterdir()]
    by_process = dict(found)
    assert len(by_process) == len(found), "a process keeps its device"
    assert sorted(by_process.values()) == ["3", "3", "5"]


def test_ctrl_c_again_ends_everything_at_once_and_charges_nobody(workplace: Workplace) -> None:
    sweep = Sweep.of(workplace, "--configurations", "1", "--workers", "1")
    command = sweep.start(gate="1 2")  # where the worker waits, so that it can take no checkpoint
    sweep.progress.wait_for_end_of(" 1 2", command)
    members = command.members()
    command.signal_group(signal.SIGINT)
    while not select.select([command.ended_fd], [], [], 0.5)[0]:  # within a second it would be the same Ctrl-C
        command.signal_group(signal.SIGINT)
    assert command.wait() == 75, command.output
    wait_until_gone(members)
    assert workplace.study("quick").lineages()[0].ended == "preempted"
    sweep.finish()
    ended = [segment.user_attrs["ended"] for segment in workplace.study("quick").lineages()[0].segments]
    assert ended == ["paused", "preempted", "paused", "complete"]
