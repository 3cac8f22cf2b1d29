"""The order of the images: permutations, shards, and going on where a run stopped."""

from __future__ import annotations

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback

from genlab.data.datamodule import ImageData
from genlab.data.order import EvalOrder, TrainOrder
from genlab.data.sources import Gaussian

SIZES = st.integers(1, 200)
BATCHES = st.integers(1, 40)
WORLDS = st.integers(1, 3)


def positions(order) -> list[list[int]]:
    return [batch.positions.tolist() for batch in order]


@given(SIZES, BATCHES, st.integers(0, 5))
def test_an_epoch_is_a_permutation_less_its_remainder(images, size, epoch):
    order = TrainOrder(images, size, 0, lambda: epoch * (images // size))
    if len(order) > 0:
        batches = positions(order)
        seen = sum(batches, [])
        assert all(len(batch) == size for batch in batches) and len(batches) == len(order)
        assert len(set(seen)) == len(seen) == images - images % size
        assert set(seen) <= set(range(images))


def test_epochs_and_seeds_differ_and_repeat():
    orders = {
        (seed, epoch): positions(TrainOrder(50, 50, seed, lambda epoch=epoch: epoch))[0]
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(o) for o in orders.values()}) == 4
    assert orders[0, 1] == positions(TrainOrder(50, 50, 0, lambda: 1))[0]


@given(st.integers(20, 200), st.integers(1, 20), st.data())
def test_it_begins_anywhere(images, size, data):
    per_epoch = images // size
    seen = data.draw(st.integers(0, 3 * per_epoch))
    epoch, offset = divmod(seen, per_epoch)
    whole = list(TrainOrder(images, size, 3, lambda: epoch * per_epoch))
    rest = list(TrainOrder(images, size, 3, lambda: seen))
    assert [b[:3] for b in rest] == [b[:3] for b in whole[offset:]]
    assert [b.positions.tolist() for b in rest] == [b.positions.tolist() for b in whole[offset:]]


@given(st.integers(20, 200), st.integers(1, 6), WORLDS)
def test_ranks_are_dealt_the_rows_of_each_training_batch_in_turn(images, size, world):
    one = positions(TrainOrder(images, size * world, 0))
    for rank in range(world):
        mine = positions(TrainOrder(images, size, 0, rank=rank, world=world))
        assert mine == [batch[rank::world] for batch in one]


@given(SIZES, BATCHES, WORLDS)
def test_ranks_are_dealt_the_rows_of_each_evaluation_batch_in_turn(images, size, world):
    """Every batch is split, also a short last one, which may leave a rank without a row."""
    one = positions(EvalOrder(images, size * world))
    for rank in range(world):
        mine = positions(EvalOrder(images, size, rank, world))
        assert mine == [batch[rank::world] for batch in one if len(batch) > rank]


@given(SIZES, BATCHES, WORLDS)
def test_evaluation_neither_loses_nor_repeats_an_image(images, size, world):
    ranks = [EvalOrder(images, size, rank, world) for rank in range(world)]
    seen = [sum(positions(order), []) for order in ranks]
    assert sorted(sum(seen, [])) == list(range(images))
    assert all(order == sorted(order) for order in seen)
    for order in ranks:
        lengths = list(map(len, positions(order)))
        assert len(lengths) == len(order)
        assert all(length == size for length in lengths[:-1])
        assert all(0 < length <= size for length in lengths[-1:])


class Recorder(lightning.LightningModule):
    """A module that learns nothing and notes which images came in which step."""

    def __init__(self, plans_ahead: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.plans_ahead = plans_ahead
        self.seen: dict[int, tuple[int, list[int]]] = {}

    def training_step(self, batch, batch_idx):
        # Not a list: of a step that was repeated the last word counts.
        self.seen[self.global_step] = (batch_idx, batch["index"].tolist())
        return self.weight * batch["image"].mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        if self.plans_ahead:
            # It makes Lightning create the iterators before the counters are restored.
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Stop(Callback):
    """Save a checkpoint when `hook` is called for the n-th step, and stop as a kill would."""

    def __init__(self, path, hook: str, step: int) -> None:
        def act(trainer, *_, **__):
            if trainer.global_step == step and not trainer.sanity_checking:
                trainer.save_checkpoint(path)
                raise KilledError

        setattr(self, hook, act)


class KilledError(Exception):
    pass


def record(folder, workers, *callbacks, limit=1.0, ckpt=None, plans_ahead=False, epochs=3):
    data = ImageData(
        Gaussian([1.0] * 8, train_images=67, test_images=4),
        batch_size=8,
        eval_batch_size=10,
        val_images=7,
        seed=5,
        data_dir=str(folder),
        num_workers=workers,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=epochs,
        limit_train_batches=limit,
        callbacks=list(callbacks),
        default_root_dir=folder,
    )
    module = Recorder(plans_ahead)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=ckpt)
    except KilledError:
        data.teardown()
    return module.seen


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Record the batches of an uninterrupted run: 7 per epoch, or 5 of them."""
    folder = tmp_path_factory.mktemp("straight")
    return {limit: record(folder, 0, limit=limit) for limit in (1.0, 5)}


def test_an_uninterrupted_run_sees_whole_epochs(straight):
    for limit, per_epoch in ((1.0, 7), (5, 5)):
        assert sorted(straight[limit]) == list(range(3 * per_epoch))
        for epoch in range(3):
            steps = [straight[limit][epoch * per_epoch + i] for i in range(per_epoch)]
            assert [i for i, _ in steps] == list(range(per_epoch))
            images = sum((images for _, images in steps), [])
            assert len(set(images)) == 8 * per_epoch
    assert [straight[1.0][7 + i] for i in range(5)] == [straight[5][5 + i] for i in range(5)]


def test_workers_change_nothing(tmp_path, straight):
    assert record(tmp_path, 2) == straight[1.0]


@pytest.mark.parametrize(
    ("hook", "step", "workers", "limit", "plans_ahead"),
    [
        ("on_train_batch_end", 3, 0, 1.0, False),
        ("on_train_batch_end", 10, 0, 1.0, False),
        ("on_train_batch_end", 10, 2, 1.0, False),
        ("on_train_batch_end", 10, 0, 1.0, True),
        ("on_train_batch_end", 10, 2, 1.0, True),
        ("on_train_batch_end", 7, 0, 1.0, False),
        ("on_train_batch_end", 14, 2, 1.0, False),
        ("on_train_batch_end", 8, 0, 5, False),
        ("on_train_batch_end", 8, 2, 5, True),
        ("on_train_batch_end", 10, 0, 5, False),
        ("on_validation_end", 7, 0, 1.0, False),
        ("on_validation_end", 10, 0, 5, False),
        ("on_train_epoch_end", 14, 0, 1.0, False),
        ("on_train_epoch_end", 7, 2, 1.0, True),
        ("on_train_batch_start", 9, 0, 1.0, False),
    ],
)
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(
    tmp_path, straight, hook, step, workers, limit, plans_ahead
):
    path = tmp_path / "stopped.ckpt"
    options = {"limit": limit, "plans_ahead": plans_ahead}
    before = record(tmp_path, workers, Stop(path, hook, step), **options)
    assert sorted(before) == list(range(step))
    after = record(tmp_path, workers, ckpt=path, **options)
    assert before | after == straight[limit]
    assert not set(before) & set(after)


def test_a_run_continued_beyond_its_epochs_goes_on_with_the_next(tmp_path, straight):
    class Save(Callback):
        def on_train_end(self, trainer, module):
            trainer.save_checkpoint(tmp_path / "end.ckpt")

    before = record(tmp_path, 0, Save(), epochs=2)
    after = record(tmp_path, 0, ckpt=tmp_path / "end.ckpt", epochs=3)
    assert before | after == straight[1.0]


def test_a_run_stopped_within_a_step_and_then_between_two_sees_every_image_once(tmp_path, straight):
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    seen = record(tmp_path, 0, Stop(first, "on_before_zero_grad", 9))
    seen |= record(tmp_path, 0, Stop(second, "on_train_batch_end", 11), ckpt=first)
    seen |= record(tmp_path, 0, ckpt=second)
    # Lightning's own `batch_idx` is one behind after the second stop; the images are not.
    assert {k: v[1] for k, v in seen.items()} == {k: v[1] for k, v in straight[1.0].items()}


def test_overfitting_sees_the_same_batches_in_every_epoch(tmp_path):
    data = ImageData(Gaussian([1.0] * 8, train_images=60), 8, 10, 0, 0, str(tmp_path))
    module = Recorder()
    lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=3,
        overfit_batches=2,
    ).fit(module, datamodule=data)
    images = [module.seen[step][1] for step in range(6)]
    assert images[:2] == images[2:4] == images[4:] and images[0] != images[1]


def test_outside_of_training_the_loader_begins_at_epoch_0(tmp_path):
    data = ImageData(Gaussian([1.0] * 8, train_images=60), 8, 10, 0, 0, str(tmp_path))
    loader = data.train_dataloader()
    first = np.concatenate([batch["index"] for batch in loader])
    again = np.concatenate([batch["index"] for batch in loader])
    np.testing.assert_array_equal(first, again)
