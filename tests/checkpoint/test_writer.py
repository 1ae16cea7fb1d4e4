"""The writer behind training; every wait is for an event."""

import threading

import pytest

from pipeline.checkpoint.writer import Writer


class Store:
    """Writes when it is let; remembers what was written."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.begun = threading.Semaphore(0)
        self.may_write = threading.Semaphore(0)

    def write(self, item: str) -> None:
        self.begun.release()
        self.may_write.acquire()
        self.written.append(item)


def may_drop(waiting: str) -> bool:
    return not waiting.endswith("!")


def test_submit_returns_while_the_item_is_being_written() -> None:
    store = Store()
    writer = Writer(store.write)
    writer.submit("a")
    store.begun.acquire()
    assert store.written == []
    store.may_write.release()
    writer.close()
    assert store.written == ["a"]


def test_a_waiting_item_makes_room_for_a_newer_one() -> None:
    store = Store()
    writer = Writer(store.write)
    writer.submit("a")
    store.begun.acquire()
    assert writer.make_room(may_drop) is None
    writer.submit("b")
    assert writer.make_room(may_drop) == "b"
    writer.submit("c")
    store.may_write.release(2)
    writer.close()
    assert store.written == ["a", "c"]


def test_a_waiting_item_that_must_be_kept_is_written_before_there_is_room() -> None:
    store = Store()
    writer = Writer(store.write)
    writer.submit("a")
    store.begun.acquire()
    writer.submit("best!")
    store.may_write.release(3)
    assert writer.make_room(may_drop) is None
    writer.submit("c")
    writer.close()
    assert store.written == ["a", "best!", "c"]


def test_flush_returns_when_everything_is_written() -> None:
    store = Store()
    writer = Writer(store.write)
    store.may_write.release(1)
    writer.submit("a")
    writer.flush()
    assert store.written == ["a"]
    writer.close()


def test_what_was_put_off_is_done_once_everything_is_written_and_before_a_flush_returns() -> None:
    done: list[str] = []
    writer = Writer(done.append, lambda: done.append("the rest"))
    writer.submit("a")
    writer.flush()
    assert done == ["a", "the rest"]
    writer.submit("b")
    writer.close()
    assert done == ["a", "the rest", "b", "the rest"]


def test_an_error_in_what_was_put_off_surfaces_in_the_flush() -> None:
    def finish() -> None:
        raise DiskFull("the rest")

    writer = Writer(lambda item: None, finish)
    with pytest.raises(DiskFull, match="the rest"):
        writer.flush()
    with pytest.raises(DiskFull, match="the rest"):
        writer.close()


class DiskFull(Exception):
    pass


def test_an_error_of_the_writer_surfaces_as_itself_at_the_next_call() -> None:
    failed = threading.Event()

    def write(item: str) -> None:
        failed.set()
        raise DiskFull(item)

    writer = Writer(write)
    writer.submit("a")
    failed.wait()
    with pytest.raises(DiskFull, match="a"):
        writer.flush()
    with pytest.raises(DiskFull, match="a"):
        writer.submit("b")
    with pytest.raises(DiskFull, match="a"):
        writer.close()


def test_nobody_waits_for_a_writer_that_has_failed() -> None:
    store, failing = Store(), threading.Event()

    def write(item: str) -> None:
        store.begun.release()
        failing.wait()
        raise DiskFull(item)

    writer = Writer(write)
    writer.submit("a")
    store.begun.acquire()
    writer.submit("best!")
    threading.Timer(0, failing.set).start()
    with pytest.raises(DiskFull):
        writer.make_room(may_drop)
    with pytest.raises(DiskFull):
        writer.close()


def nothing_to_write(item: str) -> None:
    raise AssertionError(item)
