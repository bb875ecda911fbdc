"""Sets on disk: the same bytes from any number of processes, whatever stops them in between."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import deeplense
from deeplense.data.schema import LensSet
from deeplense.data.store import ShardWriter
from deeplense.errors import ConfigError, DataError, DeepLenseError, RunError
from deeplense.simulate import dataset, workers
from deeplense.simulate import preset as presets
from deeplense.simulate.generate import BLOCK, Simulator

NUM = 5 * BLOCK + 10


class Stubborn(Exception):
    """Cannot be sent to another process: its keyword is lost on the way."""

    def __init__(self, *, number: int) -> None:
        super().__init__(f"number {number}")


class Toy:
    """Stands in for a simulator: random pixels by index, and a mishap at one of them."""

    def __init__(self, mishap: str = "", at: int = 100) -> None:
        self.mishap, self.at = mishap, at

    def recipe(self) -> dict:
        return {"mishap": self.mishap, "at": self.at}

    def provenance(self) -> dict:
        return {"preset": "toy"}

    def stream(self, start: int, stop: int) -> Iterator[LensSet]:
        for low in range(start, stop, 16):
            index = range(low, min(low + 16, stop))
            if self.at in index:
                self._stumble()
            images = np.stack([np.random.default_rng(i).random((1, 8, 8), np.float32) for i in index])
            names, table = [f"{i:08d}" for i in index], pa.table({"index": list(index)})
            yield LensSet(images, names, np.array(index) % 2, ("a", "b"), table, provenance=self.provenance())

    def _stumble(self) -> None:
        match self.mishap:
            case "data":
                raise DataError("galaxy 7 is broken: mend it")
            case "stubborn":
                raise Stubborn(number=3)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)


def small() -> Simulator:
    """Real scenes on 16 coarse pixels."""
    preset = presets.load("common-test").model_copy(update={"num_pix": 16, "pixel_scale": 0.3})
    return Simulator(preset, "published", 3)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_SIZE", BLOCK)


def test_workers_write_the_bytes_that_one_process_writes_and_count_every_image(tmp_path):
    dataset.write_set(small(), NUM, tmp_path / "one")
    writer, counted = ShardWriter(tmp_path / "two", NUM, BLOCK, small().provenance()), []
    workers.write_shards(small(), writer, [1], lambda _: None)
    workers.share(small(), writer, writer.missing(), counted.append, 2)
    assert sum(counted) == NUM - BLOCK and len(counted) == 5
    writer.finish()
    assert digests(tmp_path / "two") == digests(tmp_path / "one") and len(digests(tmp_path / "one")) == 6 + 2


@pytest.mark.slow
def test_workers_share_the_list_of_npy_files(tmp_path):
    for number in (1, 2):
        dataset.write_set(Toy(), NUM, tmp_path / str(number), "npy", workers=number)
    one, two = (digests(tmp_path / str(number)) for number in (1, 2))
    assert one == two and len(one) == NUM + 6 + 1


def test_shards_are_what_the_simulator_streams(tmp_path):
    dataset.write_set(small(), NUM, tmp_path)
    written = deeplense.read(tmp_path)
    assert [n for part in small().stream(0, NUM) for n in part.name] == list(written.name)
    np.testing.assert_array_equal(np.concatenate([p.images for p in small().stream(0, NUM)]), written.images)


@pytest.mark.parametrize(
    ("mishap", "kind", "message"),
    [
        ("data", DataError, "galaxy 7 is broken: mend it"),
        pytest.param("stubborn", RuntimeError, "Stubborn: number 3", marks=pytest.mark.slow),
    ],
)
def test_what_happens_in_a_worker_reaches_the_user(tmp_path, mishap, kind, message):
    with pytest.raises(kind) as raised:
        dataset.write_set(Toy(mishap), NUM, tmp_path, workers=2)
    assert str(raised.value) == message and "_stumble" in raised.value.__notes__[0]


@pytest.mark.slow
def test_a_killed_worker_is_named_and_the_rest_kept(tmp_path):
    with pytest.raises(RunError, match=r"killed.*fewer workers.*same command continues$"):
        dataset.write_set(Toy("killed", at=NUM - 1), NUM, tmp_path / "cut", workers=2)
    assert shards(tmp_path / "cut") > 0
    for name in ("cut", "whole"):
        dataset.write_set(Toy(), NUM, tmp_path / name)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, -2])
def test_no_workers_is_an_error(tmp_path, workers):
    with pytest.raises(ConfigError, match=f"workers={workers}"):
        dataset.write_set(Toy(), NUM, tmp_path, workers=workers)


# ---- one process: writing in the background


class SlowWriter(ShardWriter):
    """Waits to be allowed to write, and fails at one shard."""

    def __init__(self, *args, fails_at: int = -1) -> None:
        super().__init__(*args)
        self.gate, self.fails_at, self.threads = threading.Semaphore(0), fails_at, set()

    def write(self, shard: int, lens_set: LensSet) -> None:
        assert self.gate.acquire(timeout=10)
        self.threads.add(threading.get_ident())
        if shard == self.fails_at:
            raise RunError("the disk is full")
        super().write(shard, lens_set)


def test_one_shard_waits_while_the_next_is_rendered(tmp_path):
    writer, rendered = SlowWriter(tmp_path, NUM, BLOCK, {}), []
    run = threading.Thread(target=workers.write_shards, args=(Toy(), writer, writer.missing(), rendered.append))
    run.start()
    for written in range(4):
        # One at the writer, one that waits, and no third.
        wait_until(lambda bound=(written + 2) * BLOCK: sum(rendered) >= bound)
        time.sleep(0.05)
        assert sum(rendered) == (written + 2) * BLOCK
        writer.gate.release()
    writer.gate.release(2)
    run.join()
    assert not writer.missing() and len(writer.threads) == 1 and run.ident not in writer.threads


@pytest.mark.parametrize("fails_at", [0, 5])
def test_a_failure_to_write_is_raised(tmp_path, fails_at):
    writer = SlowWriter(tmp_path, NUM, BLOCK, {}, fails_at=fails_at)
    writer.gate.release(6)
    with pytest.raises(RunError, match="the disk is full"):
        workers.write_shards(Toy(), writer, writer.missing(), lambda _: None)


def test_a_failure_to_render_loses_no_shard_before_it(tmp_path):
    with pytest.raises(DeepLenseError, match="galaxy 7"):
        dataset.write_set(Toy("data", at=2 * BLOCK), NUM, tmp_path)
    assert ShardWriter(tmp_path, NUM, BLOCK, Toy().provenance()).missing() == [2, 3, 4, 5]


# ---- real processes, really stopped

# Forks after the imports, for a kill every few milliseconds; what is killed is a whole process all the same.
KILLS = """
import os, signal, sys, time
from test_dataset import BLOCK, NUM, dataset, small
dataset.SHARD_SIZE = BLOCK
for delay in map(float, sys.argv[3:]):
    if (child := os.fork()) == 0:
        dataset.write_set(small(), NUM, sys.argv[1], workers=int(sys.argv[2]))
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    print(os.WIFSIGNALED(os.waitpid(child, 0)[1]), flush=True)
"""
WHOLE = """
import sys
from test_dataset import BLOCK, NUM, dataset, small
from deeplense.errors import DeepLenseError
if __name__ == "__main__":
    dataset.SHARD_SIZE = BLOCK
    try:
        dataset.write_set(small(), int(sys.argv[3]), sys.argv[1], workers=int(sys.argv[2]))
    except DeepLenseError as error:
        sys.exit(f"error: {error}")
"""


def start(program: str, folder: Path, *arguments: object) -> subprocess.Popen:
    """A program in a group of its own; what it starts is known by the folder among its arguments."""
    path = os.pathsep.join([str(Path(deeplense.__file__).parents[1]), str(Path(__file__).parent)])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    file = folder.with_name("program.py")
    file.write_text(program)
    command = [sys.executable, str(file), str(folder), *map(str, arguments)]
    return subprocess.Popen(
        command, env=env, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def shards(folder: Path) -> int:
    return len(list(folder.rglob("part-*.parquet")))


def group(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = entry.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(entry.parent.name))
    return found


def test_kill_9_at_any_moment_and_the_same_command_again_equals_the_uninterrupted_run(tmp_path):
    dataset.write_set(small(), NUM, tmp_path / "whole")
    delays = [random.Random(seed).uniform(0.01, 0.25) for seed in range(8)]
    process = start(KILLS, tmp_path / "cut", 1, *delays)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "True" in output  # some were stopped before their end
    dataset.write_set(small(), NUM, tmp_path / "cut")
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@needs_proc
@pytest.mark.slow
def test_kill_9_of_the_parent_ends_its_workers_and_disturbs_nothing(tmp_path):
    many = 16 * BLOCK
    process = start(WHOLE, tmp_path / "cut", 2, many)
    wait_until(lambda: shards(tmp_path / "cut"))
    assert len(group(process.pid)) >= 3
    process.kill()
    process.wait()
    wait_until(lambda: not group(process.pid), 5)
    assert 0 < shards(tmp_path / "cut") < 16
    for name in ("cut", "whole"):
        dataset.write_set(small(), many, tmp_path / name)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_ctrl_c_stops_every_process_with_one_line(tmp_path, number):
    process = start(WHOLE, tmp_path / "cut", number, 200 * BLOCK)
    wait_until(lambda: shards(tmp_path / "cut") > 1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (
        errors.strip() == f"error: stopped: complete shards are kept in {tmp_path / 'cut'}; the same command continues"
    )
    assert process.returncode == 1
    wait_until(lambda: not group(process.pid), 5)
    assert not (tmp_path / "cut" / "dataset.json").exists() and shards(tmp_path / "cut") > 1
