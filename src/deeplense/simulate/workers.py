"""Several processes that render and write the shards of one set, and one that watches over them.

Each process owns its shards from the first pixel to the file, so that nothing but progress travels between them.
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np
import torch

from deeplense.data.fill import Advance, Writer
from deeplense.data.schema import LensSet
from deeplense.data.store import ShardWriter
from deeplense.errors import RunError
from deeplense.simulate.generate import Simulator, concatenate

logger = logging.getLogger(__name__)


def write_shards(simulator: Simulator, writer: Writer, shards: list[int], advance: Advance, lock: Any = None) -> None:
    """Render shards and write each in the background while the next one is rendered.

    Args:
        advance: told of every few images that they are rendered.
        lock: held while writing, for the layout whose files all writers share.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    with ThreadPoolExecutor(1) as background:
        written: Future[None] | None = None
        for shard in shards:
            lens_set = _render(simulator, writer.rows(shard), advance)
            if written is not None:  # no more than one shard waits: they are large
                written.result()
            written = background.submit(_write, writer, shard, lens_set, lock)
            del lens_set
        if written is not None:
            written.result()


def share(simulator: Simulator, writer: Writer, shards: list[int], advance: Advance, workers: int) -> None:
    """Have processes of their own render and write the shards; none of them outlives this call.

    Raises:
        RunError: a worker was killed; or what happened in a worker.
    """
    context = mp.get_context("spawn")  # a fork would inherit the locks of torch's threads in any state
    # Shards are files of their own, but all writers of .npy files keep one list of what is done.
    lock = None if isinstance(writer, ShardWriter) else context.Lock()
    workers = min(workers, len(shards))
    threads = max(1, torch.get_num_threads() // workers)
    processes: dict[Connection, Any] = {}
    try:
        with _deaf():
            for number in range(workers):
                receiver, sender = context.Pipe(duplex=False)
                job = (type(simulator), simulator.recipe(), writer, shards[number::workers], threads, lock)
                process = context.Process(target=_work, args=(sender, *job), daemon=True)
                process.start()
                sender.close()  # the worker's copy is the last one: its end is the end of the pipe
                processes[receiver] = process
        _listen(processes, advance)
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def _render(simulator: Simulator, rows: range, advance: Advance) -> LensSet:
    """The images of a shard as one set, each held in memory once."""
    images, parts, done = np.empty(0, np.float32), [], 0
    for part in simulator.stream(rows.start, rows.stop):
        if not done:
            images = np.empty((len(rows), *part.images.shape[1:]), np.float32)
        images[done : done + len(part)] = part.images
        # The rest of a part is small; it travels with images of no pixels.
        parts.append(replace(part, images=np.empty((len(part), 0, 0, 0), np.float32)))
        done += len(part)
        advance(len(part))
    return replace(concatenate(parts), images=images)


def _write(writer: Writer, shard: int, lens_set: LensSet, lock: Any) -> None:
    with lock or nullcontext():
        writer.write(shard, lens_set)


def _listen(processes: dict[Connection, Any], advance: Advance) -> None:
    """Pass on progress until every worker has said that it is done.

    Raises:
        RunError: a worker died without a word; or the exception that one sent.
    """
    busy = dict(processes)
    while busy:
        for receiver in cast(list[Connection], connection.wait(list(busy))):
            try:
                message = receiver.recv()
            except EOFError:
                processes[receiver].join()
                raise RunError(_obituary(processes[receiver].exitcode)) from None
            if message is None:
                del busy[receiver]
            elif isinstance(message, BaseException):
                raise message
            else:
                advance(message)


def _obituary(code: int | None) -> str:
    kept = "complete shards are kept, and the same command continues"
    if code == -signal.SIGKILL:
        return f"a worker process was killed, perhaps for want of memory: try fewer workers; {kept}"
    return f"a worker process ended with exit code {code}, see above; {kept}"


def _work(
    sender: Connection,
    kind: type[Simulator],
    recipe: dict[str, Any],
    writer: Writer,
    shards: list[int],
    threads: int,
    lock: Any,
) -> None:
    """What a worker process does: its shards, then None; or the exception that stopped it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        write_shards(kind(**recipe), writer, shards, sender.send, lock)
        sender.send(None)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
        sender.send(_portable(error))


def _die_with_parent() -> None:
    """End this process when its parent has ended, however that came about."""
    parent = mp.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error as it survives the journey to another process, with the lines where it happened as a note."""
    lines = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - any class may forbid it in its own way
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a worker process:\n{lines}")
    return error


@contextmanager
def _deaf() -> Iterator[None]:
    """Start processes that ignore Ctrl-C from their first moment on; only the main thread can arrange that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
