"""All data sets in one module, for `_target_` in `conf/data/*.yaml` and for the tests."""

from __future__ import annotations

from genlab.data.array import ArrayFile
from genlab.data.base import Images, ImageSource, SourceSplit
from genlab.data.cifar import CIFAR10
from genlab.data.folder import ImageFolder
from genlab.data.gaussian import Gaussian
from genlab.data.huggingface import HuggingFace
from genlab.data.idx import MNIST, FashionMNIST, IDXSource, MNISTMini
from genlab.data.torch_dataset import TorchDataset

__all__ = [
    "CIFAR10",
    "MNIST",
    "ArrayFile",
    "FashionMNIST",
    "Gaussian",
    "HuggingFace",
    "IDXSource",
    "ImageFolder",
    "ImageSource",
    "Images",
    "MNISTMini",
    "SourceSplit",
    "TorchDataset",
]
