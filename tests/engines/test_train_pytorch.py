"""The shipped networks in PyTorch, put together from model.onnx, compute what ONNX Runtime computes."""

import sys

import numpy as np
import pytest

from engines import bench, repository
from engines.bench import Order
from engines.errors import BackendError, ExtraError, GoldenError, GraphError
from tests import kinds

pytest.importorskip("torch", reason="PyTorch is measured with the extra `train`")
pytest.importorskip("onnxscript", reason="PyTorch is measured with the extra `train`")

import torch

from engines.train import pytorch

SHIPPED = [config.name for config in repository.list_models()]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_weights_give_golden_data_and_what_onnx_runtime_gives(name: str) -> None:
    with bench.opened(repository.SHIPPED, name, ["pytorch"]) as found:
        reference, engine = found.engines.values()
        assert (reference.backend, engine.backend) == ("onnxruntime-cpu", "pytorch-cpu")
        inputs = bench.repeated(bench.golden_inputs(repository.SHIPPED, engine.config), 33)
        expected, outputs = reference.run(inputs), engine.run(inputs)
    assert outputs.keys() == expected.keys()
    for tensor, array in outputs.items():
        np.testing.assert_allclose(array, expected[tensor], rtol=1e-4, atol=engine.config.golden_tolerance)
    with pytest.raises(BackendError, match="closed"):
        engine.run(inputs)


def test_it_is_measured_beside_the_reference() -> None:
    with bench.opened(repository.SHIPPED, "bedside", ["pytorch"]) as found:
        inputs = bench.golden_inputs(repository.SHIPPED, found.engines["pytorch"].config)
        content = bench.measure(found.engines, inputs, Order((1, 16), 0.02, 1), lambda *_: None)
    assert [point["batch"] for point in content["pytorch"]["points"]] == [1, 16]
    assert all(point["to_reference"] > 0 for point in content["pytorch"]["points"])


@pytest.mark.parametrize("kind", ["step", "image"])
def test_other_networks_are_refused(kind: str) -> None:
    with pytest.raises(
        GraphError, match="PyTorch can be compared on the networks that `riskstream model train`"
    ):
        pytorch.PyTorchEngine(*kinds.model_of(kind), "cpu")


def test_other_weights_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = pytorch.network_of

    def shifted(*model: object) -> torch.nn.Module:
        network = made(*model)  # type: ignore[arg-type]
        with torch.no_grad():
            next(network.parameters()).add_(0.05)
        return network

    monkeypatch.setattr(pytorch, "network_of", shifted)
    with pytest.raises(GoldenError), bench.opened(repository.SHIPPED, "vitals", ["pytorch"]):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_cuda_is_refused() -> None:
    with (
        pytest.raises(BackendError, match=r"pytorch-cuda cannot run here: PyTorch .* finds no GPU"),
        bench.opened(repository.SHIPPED, "vitals", ["pytorch-cuda"]),
    ):
        pass


def test_without_pytorch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "engines.train.pytorch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with (
        pytest.raises(ExtraError, match=r"measuring PyTorch needs torch: pip install 'riskstream\[train\]'"),
        bench.opened(repository.SHIPPED, "vitals", ["pytorch"]),
    ):
        pass
