"""Fuzz the parsers: for any damaged input they answer, or raise an error of genlab.

    python tests/fuzz.py                          a million inputs, some ten minutes (make fuzz)
    python tests/fuzz.py --inputs 2000 --seed 1   fewer, others

Each input is a valid file with a few random changes: bits flipped, parts cut out, doubled or moved,
numbers and texts from a list of awkward ones put in. An input that ends in another error is printed
with what it takes to see it again, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import logging
import random
import shutil
import struct
import sys
import tarfile
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from model_trees import mutated, trees
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from watched import watched

from genlab.config.check import from_yaml, resolve, to_yaml
from genlab.config.compose import compose
from genlab.data.array import ArrayFile
from genlab.data.cifar import _extract
from genlab.data.decoding import FORMATS, Decoded, Decoder, warnings_of_pillow
from genlab.data.idx import read_idx
from genlab.errors import GenlabError, at_key
from genlab.protocols import ImageSpec
from genlab.report import collect, write_sweep
from genlab.runs.directory import RunDirectory
from genlab.runs.manifest import Job, Manifest
from genlab.training import weights
from genlab.training.load import Received, build_received, read_model
from genlab.vae.kl import KLConvention

AWKWARD = [
    *(b"", b"\0", b"\xff" * 8, b"\x7f\xff\xff\xff", b"-1", b"NaN", b"1e999", b"null", b"[]", b"{}"),
    *(b'"', b"${oc.env:HOME}", b"../../x", b"\n", b"\xed\xa0\x80", b"!!python/object:os.system x"),
    *(b"&a [*a]", b"</script>", b"_target_: os.system", b"\x1f\x8b", b"9" * 400, b"[" * 50),
]


def changed(data: bytes, chance: random.Random) -> bytes:
    """The data with one to four changes."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(content) + 1)
        end = min(len(content), start + chance.choice([1, 2, 8, 64, 4096]))
        match chance.randrange(5):
            case 0 if content:
                content[start - 1] ^= 1 << chance.randrange(8)
            case 1:
                del content[start:end]
            case 2:
                content[start:start] = content[start:end]
            case 3:
                content[start:end] = chance.choice(AWKWARD)
            case _:
                content[start:end] = chance.randbytes(end - start)
    return bytes(content)


def idx(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    plain = struct.pack(">IIII", 0x803, 3, 4, 4) + bytes(range(48))
    path = folder / "idx"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_idx(path, 3)

    return plain, read


def idx_gzipped(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    plain, read = idx(folder)
    return gzip.compress(plain), read


def cifar(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("cifar/data_batch_1.bin", "cifar/test_batch.bin"):
            member = tarfile.TarInfo(name)
            member.size = 200
            tar.addfile(member, io.BytesIO(bytes(200)))
    archive, target = folder / "cifar.tar.gz", folder / "cifar"
    target.mkdir()

    def read(data: bytes) -> None:
        archive.write_bytes(data)
        _extract(archive, {"data_batch_1.bin", "test_batch.bin"}, target)
        outside = {path.name for path in folder.iterdir()} - {"cifar", "cifar.tar.gz"}
        assert not outside, f"the archive wrote {outside}"

    return buffer.getvalue(), read


def image(kind: str) -> Callable[[Path], tuple[bytes, Callable[[bytes], object]]]:
    """An image file of a format of Pillow's."""

    def target(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
        buffer, decoder = io.BytesIO(), Decoder(8, 8, 3, "crop", "white")
        Image.fromarray(np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3)).save(
            buffer, kind
        )

        def read(data: bytes) -> None:
            with warnings_of_pillow():
                assert isinstance(decoder(data), Decoded | str)

        return buffer.getvalue(), read

    return target


def arrays(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    """An .npz of images and labels."""
    buffer, path, cache = io.BytesIO(), folder / "a.npz", folder / "cache"
    images = np.arange(640, dtype=np.uint16).astype(np.uint8).reshape(40, 4, 4)
    np.savez(buffer, images=images, labels=np.arange(40) % 2)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            ArrayFile(str(path), cache_dir=str(cache)).prepare(folder)
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    return buffer.getvalue(), read


def checkpoint(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    """A checkpoint whose checksums are right, since a changed one is refused for them alone."""
    path, module = folder / "last.ckpt", torch.nn.Linear(4, 5)
    optimizer = torch.optim.Adam(module.parameters())
    content = {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    torch.save({**content, "callbacks": {"x": {"seconds": 1.5, "path": "y"}}, "epoch": 3}, path)
    with zipfile.ZipFile(path) as archive:
        valid = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in valid if name.endswith("data.pkl"))

    def read(data: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in valid.items():
                archive.writestr(name, data if name == pickled else part)
        weights.load_into(module, path)

    return valid[pickled], read


def run_directory(name: str) -> Callable[[Path], tuple[bytes, Callable[[bytes], object]]]:
    """One file of one of two runs of a sweep; all of the report is written of it."""

    def target(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
        jobs = []
        for weight in (1, 30):
            run = folder / "sweep" / f"run-{weight}"
            with RunDirectory(run) as directory:
                config = {"seed": 0, "group": "sweep", "model": {"kl_weight": weight, "net": None}}
                directory.write_config(yaml.safe_dump(config))
                directory.write_status("completed")
                directory.append_metrics(1, 0, {"train/kl": 1.0, "val/kl": 2.0})
                metrics = {"test/reconstruction": 9.0, "test/kl": 1.0, "test/neg_elbo": 10.0}
                directory.write_result({"metrics": metrics, "seed": 0, "verdict": "all active"})
                directory.write_bound({"log_snr_edges": [-1, 0, 1], "nats_by_log_snr": [1.0, 2.0]})
                directory.write_env({"packages": {"genlab": "1"}})
            point: dict[str, Any] = {"model.kl_weight": weight}
            jobs.append(Job(run.name, (f"model.kl_weight={weight}",), point, 0, config))
        Manifest("sweep", ("model.kl_weight",), tuple(jobs)).write(folder / "sweep")
        places = (folder / "sweep" / "run-30" / name, folder / "sweep" / name)
        path = next(place for place in places if place.exists())

        def read(data: bytes) -> None:
            path.write_bytes(data)
            records = collect(folder / "sweep")
            if len(data) % 64 == 0:  # the page takes a hundred times as long as the reading
                write_sweep(records, folder / "sweep")

        return path.read_bytes(), read

    return target


def run_config(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    """The config of a received run, from which a model would be built."""
    text = to_yaml(resolve(compose(["model.latent_dim=3"])))

    def read(data: bytes) -> None:
        config = from_yaml(data.decode("utf-8", "replace"), "config.yaml")
        read_model(config.get("model"))

    return text.encode(), read


def model_tree(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    """The model of a received run, whose classes, keys and values are exchanged.

    The bytes are the seed of the changes, so that each input has its own.
    """
    mutated(random.Random(), folder)  # imports all modules, which writes files of bytecode
    valid = b"a model"

    def read(data: bytes) -> None:
        with watched() as events:
            try:
                chance = random.Random(data)
                tree = trees()[0] if data == valid else mutated(chance, folder / "owned")
                model = build_received(Received(read_model(tree), ImageSpec(1, 28, 28)))
            except GenlabError:
                assert not events, events
                raise
        assert isinstance(model, nn.Module) and not events, events

    return valid, read


def kl_convention(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    def read(data: bytes) -> None:
        try:
            given = yaml.safe_load(data.decode("utf-8", "replace"))
        except (yaml.YAMLError, ValueError):
            return
        if isinstance(given, dict):
            known = {k: v for k, v in given.items() if k in ("error", "reconstruction", "kl")}
            with at_key("model.kl_convention"):
                str(KLConvention(**known).beta(0.1, 784, 20))

    return b"error: squared\nreconstruction: mean\nkl: sum\n", read


def override(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    def read(data: bytes) -> None:
        given = data.decode("utf-8", "replace").split("\n")
        resolve(compose(given))

    text = "model.kl_weight=0.5\nmodel/likelihood=bernoulli\n+trainer.min_steps=1\ntags=[a,b]"
    return text.encode(), read


#: Parsers, and how large a share of the inputs each is given.
TARGETS: dict[str, tuple[Callable[[Path], tuple[bytes, Callable[[bytes], object]]], float]] = {
    "idx": (idx, 0.3),
    "npz": (arrays, 0.005),
    **{f"image, {kind}": (image(kind), 0.005) for kind in FORMATS if kind != "TIFF"},
    "image, TIFF": (image("TIFF"), 0.001),  # each damage is a line of libtiff's on stderr
    "idx, gzipped": (idx_gzipped, 0.3),
    "kl_convention": (kl_convention, 0.2),
    "cifar archive": (cifar, 0.045),
    "checkpoint": (checkpoint, 0.0475),
    "status.json": (run_directory("status.json"), 0.01),
    "metrics.jsonl": (run_directory("metrics.jsonl"), 0.01),
    "result.json": (run_directory("result.json"), 0.01),
    "bound.json": (run_directory("bound.json"), 0.005),
    "config.yaml": (run_directory("config.yaml"), 0.005),
    "manifest.json": (run_directory("manifest.json"), 0.005),
    "config of a received run": (run_config, 0.002),
    "model of a received run": (model_tree, 0.005),
    "override": (override, 0.0005),
}


def fuzz(name: str, inputs: int, seed: int) -> int:
    """Count the inputs that ended in an error that is not genlab's."""
    make, _ = TARGETS[name]
    failures = refused = 0
    with tempfile.TemporaryDirectory() as folder:
        valid, read = make(Path(folder))
        read(valid)
        for number in range(inputs):
            data = changed(valid, random.Random(f"{seed} {name} {number}"))
            try:
                read(data)
            except GenlabError:
                refused += 1
            except Exception:
                failures += 1
                if failures <= 3:
                    print(f"{name}, seed {seed}, input {number}: {data[:200]!r}", flush=True)
                    traceback.print_exc()
    print(f"{name:26}{inputs:>9,} inputs{refused:>9,} refused{failures:>5} failures", flush=True)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, help="one alone, with all of the inputs")
    options = parser.parse_args()
    OmegaConf.clear_resolver("oc.env")  # what a variable holds is not in question
    logging.disable(logging.WARNING)
    chosen = {options.target: 1.0} if options.target else {n: s for n, (_, s) in TARGETS.items()}
    failures = sum(
        fuzz(name, max(1, round(options.inputs * share)), options.seed)
        for name, share in chosen.items()
    )
    print(json.dumps({"inputs": options.inputs, "seed": options.seed, "failures": failures}))
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
