"""Run a backbone without gradients: patches in, pooled features out, as fast as the device allows."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy, deepcopy
from itertools import chain, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..model.modeling_delst import DelstModel
from ..model.vision_delst import encode_images

# Batch size on a CPU: patches with this many pixels in total, but at least this many patches.
CPU_PIXELS, CPU_PATCHES = 8 * 112**2, 4
_SAME = 1e-4  # tolerance, relative to the largest feature; folding changes float32 by 1e-6
_Key = TypeVar("_Key")
_Result = TypeVar("_Result")


class InferenceBackbone:
    """The backbone of a model, for inference.

    On a CPU convolutions run channels-last, which halves their time, and on a few patches at a time, so that activations stay
    in cache. Batch norms that follow a convolution are folded into it, in a copy whose activations work in place and whose
    convolutions pad their own input; MobileNetV2 then takes half the time.

    Args:
        model: The model, in eval mode; its weights stay as they are.

    Examples:
        >>> from delst_hf import DelstModel
        >>> model = DelstModel.from_pretrained("runs/toy/pretrain/model").eval()
        >>> with torch.no_grad():
        ...     InferenceBackbone(model)(torch.zeros(3, 3, 32, 32)).shape[0]
        3
    """

    def __init__(self, model: DelstModel):
        self._pooling = model.config.vision_pooling
        self._network: Any = model.vision_model
        self._is_folded = False
        if model.device.type == "cpu":
            self._network.to(memory_format=torch.channels_last)  # type: ignore[call-arg]

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Return the pooled features (patches, width) of patches (patches, 3, height, width) on the model's device."""
        if not self._is_folded:
            self._network, self._is_folded = _folded(self._network, pixel_values[:2], self._pooling), True
        size = max(len(pixel_values), 1)
        if pixel_values.device.type == "cpu":
            size = max(CPU_PATCHES, CPU_PIXELS // pixel_values.shape[-2:].numel())
        parts = pixel_values.split(size)
        return torch.cat([_pooled(self._network, part, self._pooling) for part in parts])


def on_cpu(tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Start to copy tensors of one device to the CPU; return a function that waits for the copies.

    Examples:
        >>> wait = on_cpu({"features": torch.ones(2)})
        >>> wait()["features"].tolist()
        [1.0, 1.0]
    """
    copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
    device = next(iter(tensors.values())).device
    copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def wait() -> dict[str, Tensor]:
        if copied is not None:
            copied.synchronize()
        return copies

    return wait


def one_late(begun: Iterable[tuple[_Key, Callable[[], _Result]]]) -> Iterator[tuple[_Key, _Result]]:
    """Yield each key and its result once the next item is started, so that a GPU computes while results are stored.

    Examples:
        >>> list(one_late((number, lambda: "done") for number in range(2)))
        [(0, 'done'), (1, 'done')]
    """
    end: Any = None
    for (key, wait), _ in pairwise(chain(begun, [end])):
        yield key, wait()


def _pooled(network: Any, pixel_values: Tensor, pooling: str) -> Tensor:
    return encode_images(network, pixel_values, pooling).pooler_output


def _folded(network: Any, pixel_values: Tensor, pooling: str) -> Any:
    """Return a copy with batch norms folded into convolutions, or the network itself if there are none or outputs change.

    Activations of the copy work in place.
    """
    if not any(_is_fixed(layer) for layer in network.modules()):
        return network
    pairs, pooled = _pairs(network, pixel_values, pooling)
    folded = deepcopy(network)
    for convolution, norm in pairs.items():
        folded.set_submodule(
            convolution, fuse_conv_bn_eval(folded.get_submodule(convolution), folded.get_submodule(norm))
        )
        folded.set_submodule(norm, nn.Identity())
    for layer in folded.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = True
        _pad_inside(layer)
    # Outputs change if another layer reads the output of a folded convolution or the input of an activation.
    difference = (_pooled(folded, pixel_values, pooling) - pooled).abs().max()
    return folded if difference <= _SAME * pooled.abs().max() else network


def _pad_inside(layer: Any) -> None:
    """Let the convolution of a MobileNet layer pad its own input if padding is the same on all sides; saves a copy."""
    if getattr(getattr(layer, "config", None), "tf_padding", False) and hasattr(layer, "convolution"):
        convolution = layer.convolution
        if convolution.stride == (1, 1):
            sizes = zip(convolution.kernel_size, convolution.dilation)
            convolution.padding = tuple(size // 2 * dilation for size, dilation in sizes)
            layer.config = copy(layer.config)
            layer.config.tf_padding = False


def _pairs(network: Any, pixel_values: Tensor, pooling: str) -> tuple[dict[str, str], Tensor]:
    """Run the network; return convolution -> batch norm that reads its output, by their names, and the pooled features.

    A layer that runs twice is in no pair.
    """
    outputs: dict[int, tuple[str, Tensor]] = {}  # kept, so that no later tensor has the same id
    calls: dict[str, int] = {}
    pairs: dict[str, str] = {}

    def watched(name: str) -> Any:
        def after(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                outputs[id(output)] = name, output
            elif arguments and id(arguments[0]) in outputs:
                pairs[outputs[id(arguments[0])][0]] = name

        return after

    layers = [
        (name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d) or _is_fixed(layer)
    ]
    hooks = [layer.register_forward_hook(watched(name)) for name, layer in layers]
    try:
        pooled = _pooled(network, pixel_values, pooling)
    finally:
        for hook in hooks:
            hook.remove()
    return {one: norm for one, norm in pairs.items() if calls[one] == calls[norm] == 1}, pooled


def _is_fixed(layer: nn.Module) -> bool:
    """Tell whether a layer is a plain float32 batch norm that uses its running statistics."""
    plain = type(layer) is nn.BatchNorm2d and not layer.training and layer.running_mean is not None
    return plain and layer.running_mean.dtype == torch.float32
