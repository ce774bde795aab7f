"""From trained image members to the files that are served: model.onnx and golden.npz."""

import io
import logging
import warnings

import numpy as np
import torch

from engines.engine import F32
from engines.train.export import OPSET, plain
from engines.train.image_network import Ensemble

OUTPUTS = ("probability", "activation")


def to_onnx(ensemble: Ensemble, dims: tuple[int, int, int]) -> bytes:
    """The graph with a free batch axis; the bytes depend on the weights alone.

    Args:
        ensemble: the network that is served.
        dims: channels, height and width of its pictures.
    """
    batch = torch.export.Dim("batch", min=1, max=4096)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            ensemble.eval(),
            (torch.full((2, *dims), 0.5),),
            dynamo=True,
            verbose=False,
            optimize=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: batch},),
        )
    return plain(program.model_proto)


def golden(ensemble: Ensemble, images: F32) -> bytes:
    """golden.npz: pictures float32[n, channels, height, width] and the training network's outputs."""
    with torch.no_grad():
        outputs = ensemble.eval()(torch.from_numpy(images))
    arrays = {"in/image": images}
    arrays |= {f"out/{name}": found.numpy() for name, found in zip(OUTPUTS, outputs, strict=True)}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def synthetic_images(dims: tuple[int, int, int], number: int = 4, seed: int = 2018) -> F32:
    """Pictures that never were, float32[number, *dims]: golden data must hold nobody's image.

    Soft blobs of light, of several sizes, over a slope, with a little noise.
    """
    rng = np.random.default_rng(seed)
    _, height, width = dims
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    made = np.empty((number, *dims), dtype=np.float32)
    for image in range(number):
        ground = 0.3 + 0.2 * (rng.normal() * x + rng.normal() * y)
        for _ in range(6):
            place, size = rng.uniform(-0.8, 0.8, 2), rng.uniform(0.1, 0.5)
            ground += rng.uniform(-0.3, 0.5) * np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / size**2)
        made[image] = np.clip(ground + 0.02 * rng.standard_normal(dims), 0, 1)
    return made
