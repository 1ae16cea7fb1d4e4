"""What a worker writes, while somebody reads it and when nobody does any more."""

import multiprocessing
import os
from multiprocessing.connection import Connection

from pipeline.engines.output import Output

CONTEXT = multiprocessing.get_context("fork")
MUCH = 1 << 20  # more than a pipe takes


def write(output: Output, stderr: int, orders: Connection) -> None:
    os.dup2(stderr, 2)
    lead_back = output.take()
    os.write(1, b"to stdout\n")
    os.write(2, b"to stderr\n")
    assert orders.recv() == "the reader is gone"
    lead_back()
    os.write(1, b"later\n")
    orders.send("written")
    orders.recv()
    os._exit(0)


def test_a_workers_words_go_into_its_pipe_and_back_to_where_they_went_when_nobody_reads_them():
    output, (ours, theirs), (terminal, written) = Output(CONTEXT), CONTEXT.Pipe(), os.pipe()
    process = CONTEXT.Process(target=write, args=(output, written, theirs))
    process.start()
    output.started()
    said = b""
    while said.count(b"\n") < 2:
        said += output.read()
    assert said == b"to stdout\nto stderr\n"
    output.close()
    ours.send("the reader is gone")
    assert ours.recv() == "written"
    ours.send("leave")
    process.join()
    assert process.exitcode == 0
    for one in (ours, theirs, process):
        one.close()
    for number in (terminal, written):
        os.close(number)


def flood(output: Output, stderr: int) -> None:
    os.dup2(stderr, 2)
    lead_back = output.take()
    kept = os.dup(1)  # as a process that the worker has started has it
    lead_back()
    while_left = MUCH
    while while_left:
        while_left -= os.write(kept, b"x" * min(65536, while_left))
    os._exit(0)


def test_what_is_written_to_a_pipe_that_nobody_reads_blocks_nobody():
    output, (terminal, written) = Output(CONTEXT), os.pipe()
    process = CONTEXT.Process(target=flood, args=(output, written))
    process.start()
    output.close()
    os.close(written)
    passed = 0
    while chunk := os.read(terminal, 65536):
        passed += len(chunk)
    process.join()
    assert process.exitcode == 0
    assert MUCH - 65536 * 2 <= passed <= MUCH, "but for what the pipe still held when it ended"
    process.close()
    os.close(terminal)
