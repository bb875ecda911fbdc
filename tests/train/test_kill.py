"""A real process, really killed, against one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import deeplense

PROGRAM = """
import sys, toy
from deeplense import train
config = getattr(toy, sys.argv[1])(sys.argv[2], "train.epochs=6", "train.ema=0.99", *sys.argv[3:])
train.fit(config, toy.data(480))
"""


def start(run: Path, *overrides: str, config: str = "tiny") -> subprocess.Popen:
    path = os.pathsep.join([str(Path(deeplense.__file__).parents[1]), str(Path(__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    program = run.with_name("program.py")  # a file, for Lightning starts further devices by running it again
    program.write_text(PROGRAM)
    return subprocess.Popen([sys.executable, str(program), config, str(run), *overrides], env=env)


def wait_for_rows(run: Path, number: int, process: subprocess.Popen) -> None:
    metrics = run / "metrics.csv"
    while not metrics.exists() or len(metrics.read_text().splitlines()) <= number:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)


@pytest.mark.parametrize("config", ["tiny", "tiny_diffusion"])
def test_kill_9_in_training_and_the_same_command_again_equals_the_uninterrupted_run(config, tmp_path):
    whole = start(tmp_path / "whole", config=config)
    for number in (2, 3):
        process = start(tmp_path / "cut", config=config)
        wait_for_rows(tmp_path / "cut", number, process)
        time.sleep(0.05)  # into the next epoch
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "cut" / "model.json").exists()
    assert start(tmp_path / "cut", config=config).wait() == 0
    assert whole.wait() == 0
    contents = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert contents[0] == contents[1]


@pytest.mark.slow
def test_two_devices_train_and_one_writes(tmp_path):
    process = start(tmp_path / "two", "train.devices=2", "train.accelerator=cpu")
    assert process.wait() == 0
    assert len((tmp_path / "two" / "metrics.csv").read_text().splitlines()) == 7
    assert (tmp_path / "two" / "model.json").is_file()
