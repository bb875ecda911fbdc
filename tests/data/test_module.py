from dataclasses import replace

import numpy as np
import pytest
import torch

from deeplense.data.module import LensDataModule, LensDataset
from deeplense.errors import DataError
from toy import data, lens_set


def order(module, epoch):
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return torch.cat([batch["index"] for batch in loader])


def test_batches_hold_the_images_and_labels_of_their_indices():
    module = data(50, batch_size=16)
    for batch in module.train_dataloader():
        rows = batch["index"].numpy()
        assert batch["image"].dtype == torch.float32 and batch["label"].dtype == torch.int64
        np.testing.assert_array_equal(batch["image"], module.train.images[rows])
        np.testing.assert_array_equal(batch["label"], module.train.label[rows])


def test_order_follows_from_seed_and_epoch_alone():
    torch.manual_seed(0)
    first = order(data(), 3)
    torch.manual_seed(99)
    assert torch.equal(order(data(), 3), first)
    assert not torch.equal(order(data(), 4), first)
    other_seed = LensDataModule(lens_set(96, seed=1), lens_set(48, seed=2), 16, seed=1)
    assert not torch.equal(order(other_seed, 3), first)


def test_loading_draws_nothing_from_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    order(data(), 0)
    assert torch.equal(torch.rand(1), expected)


def test_an_epoch_shows_each_training_image_once_and_validation_is_in_order():
    module = data(96, batch_size=16)
    assert sorted(order(module, 0).tolist()) == list(range(96))
    assert torch.cat([b["index"] for b in module.val_dataloader()]).tolist() == list(range(48))


def test_small_sets_are_not_dropped():
    assert len(order(data(12, batch_size=64), 0)) == 12


def test_one_item_and_unlabelled_sets():
    item = LensDataset(replace(lens_set(5), label=None))[3]
    assert item["index"].item() == 3 and "label" not in item and item["image"].shape == (1, 24, 24)


def test_sets_that_cannot_be_learnt_from():
    good = lens_set(30)
    alone = lens_set(1)
    wrong = [
        (replace(good, label=None), good, "needs labels"),
        (alone, good, "only one class"),
        (good, replace(good, classes=("no", "cdm", "axion")), "must agree"),
        (good, replace(good, images=good.images.repeat(2, axis=1)), "validation images"),
    ]
    for train, val, message in wrong:
        with pytest.raises(DataError, match=message):
            LensDataModule(train, val, 8)


def test_validation_without_a_class_comes_with_a_warning(caplog):
    good = lens_set(30)
    LensDataModule(good, lens_set(30, seed=1), 8)
    assert not caplog.text
    LensDataModule(good, good.select(np.flatnonzero(good.label != 1)), 8)
    assert "no validation image is of class sphere" in caplog.text
