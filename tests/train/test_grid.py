import numpy as np
import pytest
import torch
from matplotlib.image import imread

from deeplense import train
from deeplense.errors import RunError
from toy import data, tiny, tiny_diffusion


def test_a_grid_of_samples_every_few_epochs_and_at_the_end(tmp_path):
    run = train.fit(tiny_diffusion(tmp_path / "run", "train.epochs=5", "diffusion.grid_every=2"), data())
    assert [p.name for p in sorted((run / "samples").iterdir())] == [f"epoch-000{k}.png" for k in (2, 4, 5)]
    picture = imread(run / "samples" / "epoch-0005.png")
    assert picture.shape[0] > 300 and np.unique(picture[..., 0]).size > 20


def test_grids_change_nothing_of_the_training(tmp_path):
    runs = [train.fit(tiny_diffusion(tmp_path / str(k), f"diffusion.grid_every={k}"), data()) for k in (0, 1)]
    assert (runs[0] / "model.safetensors").read_bytes() == (runs[1] / "model.safetensors").read_bytes()
    assert not (runs[0] / "samples").exists()


@pytest.mark.parametrize("make", [tiny, tiny_diffusion])
def test_a_loss_that_is_no_number_names_step_batch_and_checkpoint(make, tmp_path, monkeypatch):
    settings = make(tmp_path / "run", "train.epochs=3", "diffusion.grid_every=0")
    module = data()
    images = module.train.images.copy()
    with monkeypatch.context() as patch:  # the images of the second epoch spoil the weights
        started = train.Keeper.on_train_epoch_start

        def spoil(keeper, trainer, task):
            started(keeper, trainer, task)
            if trainer.current_epoch == 1:
                with torch.no_grad():
                    next(task.network.parameters()).fill_(torch.inf)

        patch.setattr(train.Keeper, "on_train_epoch_start", spoil)
        with pytest.raises(
            RunError, match=r"not a number at step 7, batch 1 of epoch 2; .*last.ckpt is good, from the end of epoch 1"
        ):
            train.fit(settings, module)
    assert np.array_equal(images, module.train.images)
    # What is said to be good is good: the same command goes on from there.
    run = train.fit(settings, data())
    assert (run / "model.json").is_file()
