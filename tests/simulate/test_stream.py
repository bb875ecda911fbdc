"""Images simulated while training: order, freshness, the curriculum, and nothing shown twice."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deeplense import config
from deeplense.errors import ConfigError
from deeplense.simulate import preset as presets
from deeplense.simulate.generate import BLOCK, Simulator
from deeplense.simulate.stream import (
    VALIDATION_START,
    BlockSampler,
    StreamDataModule,
    StreamDataset,
    is_preset,
    simulated_set,
)

NUM = 4 * BLOCK


def small(strength: float = 1.0) -> Simulator:
    """16 coarse pixels: quick, and every image still another one."""
    preset = presets.load("common-test").model_copy(update={"num_pix": 16, "pixel_scale": 0.3})
    return Simulator(preset, "published", 3, strength)


def places(epoch: int, seed: int = 0, replicas: int = 1, rank: int = 0, num: int = NUM) -> list[int]:
    sampler = BlockSampler(num, seed, replicas, rank)
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    return drawn


def module(*overrides: str) -> StreamDataModule:
    settings = ["data=preset:common-test", "data.fidelity=published", f"data.num={NUM}", f"data.num_val={BLOCK}"]
    return StreamDataModule(config.load("tiny/substructure", [*settings, *overrides]))


def test_order_is_a_function_of_seed_and_epoch():
    num = 40 * BLOCK
    order = places(3, num=num)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 -- other people's draws must not matter
    assert places(3, num=num) == order
    assert [p - 3 * num for p in order] != [p - 4 * num for p in places(4, num=num)]
    other = places(3, seed=1, num=num)
    assert other != order and sorted(other) == sorted(order)


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_is_every_image_once_and_no_other_epochs(epoch):
    assert sorted(places(epoch)) == list(range(epoch * NUM, (epoch + 1) * NUM))


def test_an_order_keeps_blocks_whole():
    order = np.array(places(2)).reshape(-1, BLOCK)
    assert (np.diff(order, axis=1) == 1).all() and (order[:, 0] % BLOCK == 0).all()


@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_devices_share_an_epoch(replicas):
    shares = [places(5, replicas=replicas, rank=r, num=12 * BLOCK) for r in range(replicas)]
    assert len({len(s) for s in shares}) == 1
    assert sorted(p for share in shares for p in share) == list(range(5 * 12 * BLOCK, 6 * 12 * BLOCK))


def test_devices_that_do_not_divide_the_blocks_get_equal_disjoint_shares():
    shares = [places(0, replicas=3, rank=r) for r in range(3)]
    assert [len(s) for s in shares] == [BLOCK] * 3 and len({p for share in shares for p in share}) == 3 * BLOCK


def test_batches_are_the_simulators_images():
    dataset = StreamDataset([small()], NUM, fresh=True)
    index = [5 * NUM + 3, 5 * NUM + 4, 5 * NUM + BLOCK]
    batch, expected = dataset.__getitems__(index), small().images(np.array(index))
    assert batch["image"].dtype == torch.float32 and batch["label"].dtype == batch["index"].dtype == torch.int64
    np.testing.assert_array_equal(batch["image"], expected.images)
    assert batch["label"].tolist() == expected.label.tolist() and batch["index"].tolist() == index
    one = dataset[index[1]]
    assert torch.equal(one["image"], batch["image"][1]) and one["label"] == batch["label"][1]
    assert len(dataset) == NUM


def test_fresh_epochs_never_repeat_an_image_and_others_always_do():
    fresh, fixed = (StreamDataset([small()], BLOCK, fresh=f) for f in (True, False))
    epochs = [range(e * BLOCK, (e + 1) * BLOCK) for e in range(3)]
    seen = torch.cat([fresh.__getitems__(e)["image"] for e in epochs]).flatten(1)
    assert len(torch.unique(seen, dim=0)) == 3 * BLOCK
    first, *others = (fixed.__getitems__(e)["image"] for e in epochs)
    assert all(torch.equal(first, other) for other in others)


def test_the_curriculum_goes_by_epoch_and_its_last_strength_stays():
    dataset = StreamDataset([small(4.0), small(2.0)], BLOCK, fresh=True)
    for epoch, strength in ((0, 4.0), (1, 2.0), (2, 2.0), (9, 2.0)):
        batch = dataset.__getitems__([epoch * BLOCK + 1])
        np.testing.assert_array_equal(batch["image"], small(strength).images([epoch * BLOCK + 1]).images)


def test_a_module_resumes_where_it_was():
    def labels_and_sums(loader):
        return [(b["index"].tolist(), b["image"].sum().item()) for b in loader]

    module_a, module_b = module("data.batch_size=32"), module("data.batch_size=32")
    loader = module_a.train_dataloader()
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        last = labels_and_sums(loader)
    resumed = module_b.train_dataloader()
    resumed.sampler.set_epoch(1)
    assert labels_and_sums(resumed) == last and len(last) == NUM // 32
    assert module_a.fingerprint() == module_b.fingerprint()


def test_validation_images_are_none_of_the_training_images():
    made = module()
    assert len(made.val) == BLOCK and len(made.train) == NUM
    assert list(made.val.name) == [f"{VALIDATION_START + i:08d}" for i in range(BLOCK)]
    assert VALIDATION_START > 10**6 * 10**6  # a million epochs of a million images
    assert set(made.val.class_counts().values()) == {BLOCK // 3}


def test_each_device_gets_its_share():
    made = module()
    seen = []
    for rank in range(2):
        made.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        seen.append([i for b in made.train_dataloader() for i in b["index"].tolist()])
    assert not set(seen[0]) & set(seen[1]) and len(seen[0]) == len(seen[1]) == NUM // 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"data.num={NUM + 1}", f"data.num={NUM + 1}.* blocks of {BLOCK}; try {NUM}"),
        ("data.num=5", f"try {BLOCK}"),
        ("data.strength=[]", "data.strength"),
        ("data.strength=[2.0,0.0]", "factor above 0"),
        ("data.fidelity=publisht", "did you mean 'published'"),
        ("data.path=preset:comon-test", "did you mean 'common-test'"),
    ],
)
def test_bad_settings_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        module(override)


def test_paths_that_mean_a_preset():
    assert is_preset("preset:common-test") and not is_preset("data/lenses") and not is_preset(None)


def test_a_set_in_memory_is_the_start_of_the_sequence():
    images = simulated_set("common-test", "published", 2, 60)
    assert len(images) == 60 and images.provenance["seed"] == 2
    np.testing.assert_array_equal(images.images[:BLOCK], Simulator("common-test", "published", 2).block(0).images)
