"""Splits, binarisation, flips and refusals of the datamodule."""

from __future__ import annotations

import multiprocessing
import pickle
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from conf_files import CONF, LACKING, PARTNERS
from hydra.utils import instantiate
from omegaconf import OmegaConf

from genlab.data.batches import Batches, BatchLoader, Split, binarise, binarise_static
from genlab.data.datamodule import ImageData
from genlab.data.order import EvalOrder, TrainOrder
from genlab.data.sources import Gaussian, Images, ImageSource, MNISTMini
from genlab.errors import ConfigError
from genlab.protocols import ImageSpec
from genlab.seeding import numpy_generator

CONFIGS = [
    path
    for path in sorted((CONF / "data").glob("[!_]*.yaml"))
    if f"data/{path.stem}" not in LACKING
]


class Constant(ImageSource):
    """Images of one level each: image i of the training set has level i mod 256."""

    name = "constant"
    spec = ImageSpec(3, 4, 5, classes=("even", "odd"))

    def __init__(self, images: int = 100) -> None:
        self.images = images

    def prepare(self, data_dir):
        pass

    def load(self, data_dir, split):
        levels = np.arange(self.images) % 256
        pixels = np.broadcast_to(levels[:, None, None, None], (self.images, 3, 4, 5))
        return Images(pixels.astype(np.uint8), (levels % 2).astype(np.int64))


def data(source=None, **options) -> ImageData:
    defaults = {"batch_size": 8, "eval_batch_size": 9, "val_images": 20, "seed": 1, "data_dir": "x"}
    return ImageData(source or Constant(), **(defaults | options))


def everything(loader) -> dict[str, np.ndarray]:
    batches = list(loader)
    return {key: torch.cat([b[key] for b in batches]).numpy() for key in batches[0]}


def test_train_and_validation_part_the_official_training_set():
    module = data()
    train, val = module.pixels("train")[:, 0, 0, 0], module.pixels("val")[:, 0, 0, 0]
    assert len(val) == 20
    assert sorted([*train, *val]) == list(range(100))
    assert module.pixels("test")[:, 0, 0, 0].tolist() == list(range(100))


def test_the_validation_part_is_the_same_for_every_seed():
    np.testing.assert_array_equal(data(seed=1).pixels("val"), data(seed=2).pixels("val"))


def test_fewer_training_images_are_some_of_the_same():
    few, all_of_them = data(train_images=30), data()
    levels = set(few.pixels("train")[:, 0, 0, 0].tolist())
    assert len(levels) == 30 and levels < set(all_of_them.pixels("train")[:, 0, 0, 0].tolist())
    np.testing.assert_array_equal(few.pixels("val"), all_of_them.pixels("val"))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_batch_holds_the_images_that_its_index_names(split):
    module = data()
    batch = everything(getattr(module, f"{split}_dataloader")())
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == batch["index"].dtype == np.int64
    np.testing.assert_array_equal(batch["image"], module.pixels(split)[batch["index"]])
    np.testing.assert_array_equal(batch["label"], module.labels(split)[batch["index"]])
    np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0, 0] % 2)


def test_evaluation_sees_every_image_once_in_order():
    module = data()
    assert [len(b["index"]) for b in module.val_dataloader()] == [9, 9, 2]
    assert everything(module.test_dataloader())["index"].tolist() == list(range(100))
    assert data(val_images=0).val_dataloader() == []


def test_setup_reads_the_data_once():
    loads = []

    class Counted(Constant):
        def load(self, data_dir, split):
            loads.append(split)
            return super().load(data_dir, split)

    module = data(Counted())
    for stage in ("fit", "validate", "fit", "test", "test", None):
        module.setup(stage)
    assert loads == ["train", "test"]


def test_bits_have_the_probability_of_their_level():
    levels = np.repeat(np.arange(256, dtype=np.uint8), 4000).reshape(-1, 1, 1, 1)
    for bits in (
        binarise(levels, numpy_generator(0, "test")),
        binarise_static(levels.copy(), np.arange(len(levels)), 0, "train"),
    ):
        assert set(np.unique(bits)) == {0, 255}
        frequency = (bits.reshape(256, -1) == 255).mean(1)
        p = np.arange(256) / 255
        # Exact at the ends: black stays black and white stays white.
        assert frequency[0] == 0 and frequency[255] == 1
        z = (frequency - p)[1:-1] / np.sqrt(p * (1 - p) / 4000)[1:-1]
        assert np.abs(z).max() < 5 and abs(np.mean(z**2) - 1) < 0.4


def test_neighbouring_images_and_pixels_are_binarised_independently():
    grey = np.full((2000, 1, 4, 4), 127, dtype=np.uint8)
    bits = binarise_static(grey, np.arange(2000), 0, "train").reshape(2000, 16) / 255.0
    correlation = np.corrcoef(np.hstack([bits[:-1], bits[1:]]).T)
    assert np.abs(correlation - np.eye(32)).max() < 5 / np.sqrt(2000)


def test_a_static_bit_depends_on_seed_and_image_alone():
    grey = numpy_generator(0, "grey").integers(0, 256, (1500, 1, 5, 5), dtype=np.uint8)
    whole = binarise_static(grey.copy(), np.arange(1500), 7, "train")
    some = np.array([0, 3, 511, 512, 1400, 1499])
    np.testing.assert_array_equal(binarise_static(grey, some, 7, "train"), whole[some])
    for seed, split in ((8, "train"), (7, "test")):
        assert (binarise_static(grey, some, seed, split) != whole[some]).any()


def test_static_binarisation_is_one_set_of_binary_images():
    module = data(binarisation="static")
    assert module.spec.levels == 2 and data().spec.levels == 256
    first, again = (everything(module.train_dataloader()) for _ in range(2))
    for split in ("train", "val", "test"):
        assert set(np.unique(module.pixels(split))) == {0, 255}
    np.testing.assert_array_equal(first["image"], module.pixels("train")[first["index"]])
    np.testing.assert_array_equal(first["image"], again["image"])
    other = data(binarisation="static", batch_size=3, eval_batch_size=2, num_workers=0)
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(module.pixels(split), other.pixels(split))


def epochs(module: ImageData, number: int) -> list[dict[str, np.ndarray]]:
    """Return the batches of the training loader in its first epochs."""
    part = module._splits.get("train") or (module.setup("fit"), module._splits["train"])[1]
    dataset = Batches(
        part, module.seed, flip=module.flip, binarised=module.binarisation == "dynamic"
    )
    orders = [
        TrainOrder(len(part), 8, module.seed, lambda e=e: e * (len(part) // 8))
        for e in range(number)
    ]
    return [everything(BatchLoader(dataset, order)) for order in orders]


def test_dynamic_bits_change_by_epoch_and_repeat_by_seed():
    module = data(binarisation="dynamic")
    first, second = epochs(module, 2)
    assert set(np.unique(first["image"])) == {0, 255}
    by_image = [e["image"][np.argsort(e["index"])] for e in (first, second)]
    assert (by_image[0] != by_image[1]).any()
    again = epochs(data(binarisation="dynamic"), 1)[0]
    np.testing.assert_array_equal(first["image"], again["image"])
    assert (epochs(data(binarisation="dynamic", seed=2), 1)[0]["image"] != first["image"]).any()
    # The training pixels themselves stay grey; validation and test are static.
    assert len(np.unique(module.pixels("train"))) == 80
    static = data(binarisation="static")
    for split in ("val", "test"):
        np.testing.assert_array_equal(module.pixels(split), static.pixels(split))
        loader = getattr(module, f"{split}_dataloader")()
        np.testing.assert_array_equal(everything(loader)["image"], module.pixels(split))


def test_a_flip_mirrors_about_half_of_the_training_images():
    pixels = numpy_generator(0, "pixels").integers(0, 256, (800, 3, 4, 5), dtype=np.uint8)
    split = Split(pixels, np.zeros(800, dtype=np.int64), None)
    batch = everything(BatchLoader(Batches(split, 0, flip=True), EvalOrder(800, 100)))
    same = (batch["image"] == pixels).all((1, 2, 3))
    mirrored = (batch["image"] == pixels[..., ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(800)


class Flags(ImageSource):
    """The same image in train and test: a black column, four of middle grey, a white one."""

    name = "flags"
    spec = ImageSpec(1, 8, 6)

    def prepare(self, data_dir):
        pass

    def load(self, data_dir, split):
        row = np.array([0, 127, 127, 127, 127, 255], dtype=np.uint8)
        return Images(np.tile(row, (400, 1, 8, 1)), np.zeros(400, dtype=np.int64))


class BatchRecorder(lightning.LightningModule):
    """A module that learns nothing and keeps the batches that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[dict[str, torch.Tensor]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return self.weight * batch["image"].float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trained_on(module: ImageData, epochs: int) -> list[dict[str, np.ndarray]]:
    """Return the batches that a module is trained on in each epoch, in order."""
    recorder = BatchRecorder()
    lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        max_epochs=epochs,
    ).fit(recorder, datamodule=module)
    size = len(recorder.seen) // epochs
    return [everything(recorder.seen[e * size : (e + 1) * size]) for e in range(epochs)]


def assert_unrelated(a: np.ndarray, b: np.ndarray) -> None:
    """Check that half of two boolean arrays agree, within 5 standard errors."""
    assert abs((a == b).mean() - 0.5) < 5 * 0.5 / np.sqrt(a.size)


def test_flips_and_bits_of_an_epoch_are_not_those_of_another():
    """They differ in the same place of the same batch, and for the same image."""
    options = {"flip": True, "binarisation": "dynamic", "val_images": 0}
    epochs = trained_on(data(Flags(), **options), 3)
    coins = [
        # a black pixel stays black, and a white one white
        (e["image"][:, 0, 0, 0] == 255, e["image"][..., 1:5] == 255, np.argsort(e["index"]))
        for e in epochs
    ]
    for (flips, bits, order), (other_flips, other_bits, other_order) in pairwise(coins):
        assert abs(flips.mean() - 0.5) < 5 * 0.5 / np.sqrt(400)
        assert_unrelated(flips, other_flips)
        assert_unrelated(flips[order], other_flips[other_order])
        assert_unrelated(bits, other_bits)
        assert_unrelated(bits[order], other_bits[other_order])
        # nor are those of a batch those of the next
        assert_unrelated(flips[8:], flips[:-8])
        assert_unrelated(bits[8:], bits[:-8])
    again = trained_on(data(Flags(), **options), 1)[0]
    np.testing.assert_array_equal(again["image"], epochs[0]["image"])


def test_static_bits_of_the_test_images_are_drawn_from_streams_of_their_own():
    """The images of train and test are equal, row by row; their bits are not, in any row."""
    for options in ({"val_images": 0}, {"val_images": 100}):
        module = data(Flags(), binarisation="static", **options)
        splits = ("train", "val", "test") if options["val_images"] else ("train", "test")
        images = [image.tobytes() for split in splits for image in module.pixels(split)]
        assert len(set(images)) == len(images) == 800


def test_ranks_gather_flip_and_binarise_their_rows_as_one_process_would():
    split = Split(*Flags().load(None, "train"), None)
    dataset = Batches(split, 0, flip=True, binarised=True)
    for world in (2, 3):
        for train in (True, False):
            one, *ranks = (
                [
                    dataset[place]
                    for place in (
                        TrainOrder(100, size, 0, rank=rank, world=of)
                        if train
                        else EvalOrder(100, size, rank, of)
                    )
                ]
                for rank, of, size in [(0, 1, 12 * world), *((r, world, 12) for r in range(world))]
            )
            for rank, batches in enumerate(ranks):
                for mine, whole in zip(batches, one, strict=True):
                    for key in ("index", "image"):
                        assert torch.equal(mine[key], whole[key][rank::world])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_batches_gathered_on_a_device_are_those_gathered_from_arrays(flip, world):
    pixels, labels = Constant().load(None, "train")
    pixels = pixels + np.arange(5, dtype=np.uint8)  # not its own mirror image
    part = Split(pixels, labels, np.arange(3, 90, 2))
    ours, theirs = (
        Batches(part, 7, flip=flip, device=device) for device in (torch.device("cpu"), None)
    )
    for rank in range(world):
        for batch in TrainOrder(len(part), 4, 1, rank=rank, world=world):
            a, b = ours[batch], theirs[batch]
            assert a.keys() == b.keys()
            for key in a:
                assert torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype


def test_images_are_held_on_a_gpu_where_they_fill_a_quarter_of_its_memory(monkeypatch):
    module = data()
    size = 80 * 3 * 4 * 5

    def holder(free, root="cuda", **options):
        module = data(**options)
        part, device = module._part("train"), torch.device(root)
        module.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=device))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda of: (free, 10 * free))
        return module._gpu_with_room_for(part)

    assert size == module.pixels("train").nbytes
    assert holder(4 * size) == torch.device("cuda")
    assert holder(4 * size - 1) is None
    assert holder(0, device="cuda") == torch.device("cuda")
    assert holder(4 * size, device="cpu") is None
    assert holder(4 * size, root="cpu") is None
    assert holder(4 * size, num_workers=1) is None
    assert holder(4 * size, binarisation="dynamic") is None


def test_workers_yield_the_same_batches_in_every_epoch():
    options = {"flip": True, "binarisation": "dynamic"}
    alone, helped = data(**options), data(**options, num_workers=2)
    loader = helped.train_dataloader()
    for _ in range(2):
        for a, b in zip(alone.train_dataloader(), loader, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)
    assert len(multiprocessing.active_children()) == 2
    helped.teardown()
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_not_forked_would_gather_the_same():
    dataset = Batches(Split(*Constant().load(None, "train"), None), 0, flip=True, binarised=True)
    for batch in EvalOrder(100, 30):
        a, b = dataset[batch], pickle.loads(pickle.dumps(dataset))[batch]
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_memory_map_is_pickled_by_its_name(tmp_path):
    np.save(tmp_path / "pixels.npy", np.arange(60_000, dtype=np.uint8).reshape(-1, 1, 2, 3))
    pixels = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    dataset = Batches(Split(pixels, np.zeros(10_000, dtype=np.int64), None), 0)
    content = pickle.dumps(dataset)
    assert len(content) < 60_000 + 8 * 10_000
    batch = next(iter(EvalOrder(10_000, 50)))
    assert torch.equal(pickle.loads(content)[batch]["image"], dataset[batch]["image"])


def test_loading_takes_nothing_from_the_global_random_streams():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    list(data(flip=True, binarisation="dynamic").train_dataloader())
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batch_size": 0}, r"^batch_size=0"),
        ({"batch_size": 1.5}, r"^batch_size=1\.5"),
        ({"eval_batch_size": -3}, r"^eval_batch_size=-3"),
        ({"val_images": -1}, r"^val_images=-1"),
        ({"num_workers": -1}, r"^num_workers=-1"),
        ({"train_images": 0}, r"^train_images=0"),
        ({"binarisation": "sometimes"}, r"^binarisation=sometimes"),
        ({"flip": "yes"}, r"^flip='yes'"),
        ({"seed": 1.5}, r"^seed=1\.5"),
        ({"device": "gpu"}, r"^device=gpu: give one of auto, cpu, cuda"),
        ({"device": "cuda", "num_workers": 2}, r"^device=cuda: num_workers=2 "),
        ({"device": "cuda", "binarisation": "dynamic"}, r"^device=cuda: .*binarisation=dynamic"),
        ({"source": "mnist"}, r"^source='mnist'"),
        ({"source": Gaussian([1.0] * 8), "binarisation": "static"}, "real numbers"),
    ],
)
def test_a_wrong_value_is_refused_before_any_data_is_read(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        data(**options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batch_size": 81}, r"data\.batch_size=81 .* 80 training images"),
        ({"val_images": 100}, r"data\.val_images=100"),
        ({"train_images": 81}, r"data\.train_images=81"),
    ],
)
def test_more_than_there_is_is_refused_at_setup(options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        data(**options).setup("fit")


def test_the_embedded_digits_are_split_as_documented():
    module = ImageData(MNISTMini(), 128, 500, 1000, 0, "nowhere")
    module.setup()
    assert [len(module.pixels(split)) for split in ("train", "val", "test")] == [9000, 1000, 2000]
    assert module.spec.shape == (1, 28, 28) and len(module.spec.classes) == 10


class TestGaussian:
    def test_the_covariance_has_the_eigenvalues_asked_for(self):
        source = Gaussian([1.0, 4.0, 0.5, 2.0], shape=(1, 2, 2))
        np.testing.assert_allclose(source.eigenvalues, [4, 2, 1, 0.5])
        np.testing.assert_allclose(np.linalg.eigvalsh(source.covariance)[::-1], source.eigenvalues)
        np.testing.assert_allclose(
            Gaussian(covariance=source.covariance, shape=(1, 2, 2)).eigenvalues, [4, 2, 1, 0.5]
        )

    def test_the_images_have_that_mean_and_covariance(self):
        n = 200_000
        source = Gaussian([4.0, 1.0, 0.1, 0.0], shape=(1, 2, 2), train_images=n, mean=3.0)
        x = source.load(Path(), "train").pixels
        assert x.dtype == np.float32 and x.shape == (n, *source.spec.shape)
        x = x.reshape(n, -1).astype(np.float64)
        np.testing.assert_allclose(x.mean(0), source.mean, atol=5 * np.sqrt(4 / n))
        np.testing.assert_allclose(np.cov(x.T), source.covariance, atol=5 * 4 * np.sqrt(2 / n))
        assert source.spec.levels is None

    def test_batches_are_real_numbers(self):
        module = data(Gaussian([1.0] * 8))
        batch = everything(module.train_dataloader())
        assert batch["image"].dtype == np.float32
        np.testing.assert_array_equal(batch["image"], module.pixels("train")[batch["index"]])
        assert (module.pixels("test")[:10] != module.pixels("train")[:10]).any()

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({}, "exactly one"),
            ({"eigenvalues": [1.0], "covariance": [[1.0]]}, "exactly one"),
            ({"eigenvalues": [1.0, 2.0]}, "give 8 finite numbers"),
            ({"eigenvalues": [-1.0] * 8}, "at least 0"),
            ({"eigenvalues": [float("nan")] * 8}, "finite"),
            ({"covariance": [[1.0, 2.0], [0.0, 1.0]], "shape": [1, 1, 2]}, "symmetric"),
            ({"covariance": [[1.0, 2.0], [2.0, 1.0]], "shape": [1, 1, 2]}, "none may be negative"),
            ({"eigenvalues": [1.0] * 8, "shape": [2, 4]}, "channels, height and width"),
            ({"eigenvalues": [1.0] * 8, "train_images": 0}, "train_images=0"),
        ],
    )
    def test_what_is_no_covariance_is_refused(self, options, complaint):
        with pytest.raises(ValueError, match=complaint):
            Gaussian(**options)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_makes_a_datamodule(path):
    config = OmegaConf.merge(
        OmegaConf.load(path.parent / "_base.yaml"), OmegaConf.load(path), {"seed": 3}
    )
    defaults = config.pop("defaults")
    assert defaults == ["_base", "_self_"]
    given = [word for word in PARTNERS.get(f"data/{path.stem}", []) if word.startswith("data.")]
    config = OmegaConf.merge(config, OmegaConf.from_dotlist(given).get("data", {}))
    module = instantiate(config)
    assert module.source.name == path.stem and module.spec.dims > 0
