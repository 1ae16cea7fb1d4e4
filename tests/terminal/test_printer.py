"""Whole lines from workers that write at the same time, and this process's log beside them."""

import logging
import multiprocessing
import os
import sys

import pytest

from pipeline.engines.output import Output
from pipeline.terminal.printer import DivertedLog, Printer

CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture
def outputs(monkeypatch):
    """Two pipes, as workers have them."""
    made = [Output(CONTEXT) for _ in range(2)]
    yield made
    for one in made:
        one.close()


def test_lines_are_whole_whatever_two_workers_write_at_a_time_and_the_rest_comes_at_the_end(outputs):
    printer, (one, other) = Printer(), outputs
    printer.add(one)
    printer.add(other)
    os.write(one._writer.fileno(), b"half of ")
    os.write(other._writer.fileno(), b"a line\n 10%\r 20%")
    assert printer.take(0.0)
    assert printer.text() == "a line\n"
    os.write(one._writer.fileno(), b"one\nthe last")
    assert printer.take(0.0)
    assert printer.text() == "half of one\n"
    printer.close()
    assert not printer.take(60.0), "nobody waits when it is closed"
    printer.finish()
    assert sorted(printer.text().splitlines()) == [" 20%", "the last"]


def test_a_worker_that_has_ended_is_read_to_its_end(outputs):
    printer, (one, _) = Printer(), outputs
    printer.add(one)
    os.write(one._writer.fileno(), b"its last words")
    one.started()
    while not (text := printer.text()):
        assert printer.take(0.0)
    assert text == "its last words\n"
    printer.close()
    printer.finish()


def test_warnings_wait_for_the_view_and_what_goes_well_is_left_to_it(capsys, monkeypatch):
    root, printer = logging.getLogger(), Printer()
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(root, "level", logging.INFO)
    diverted = DivertedLog(printer)
    diverted.divert()
    logging.getLogger("pipeline").info("all is well")
    logging.getLogger("pipeline").warning("a worker died")
    assert printer.text() == "a worker died\n"
    diverted.lead_back()
    logging.getLogger("pipeline").info("the end")
    assert capsys.readouterr().err == "the end\n"
    printer.close()
    printer.finish()
