"""The precision of a training run: float32, or a network of bfloat16 or float16 with float32 weights."""

import contextlib
from typing import Any

import torch
from fastai.callback.fp16 import MixedPrecision as FastaiMixedPrecision
from fastai.vision.all import to_float

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Below this many pixels on a side a processor loses to conversions what it wins in convolutions.
SMALLEST_ON_A_PROCESSOR = 64


class PrecisionError(ValueError):
    """A precision that the device does not compute with."""


def resolve(precision: str, image_size: tuple[int, int], device: torch.device) -> str:
    """Return `precision`, or for "auto" what the device does well. Raises PrecisionError if it cannot compute so.

    That is bf16 on GPUs of capability 8 and above, fp16 on older ones with tensor cores (V100, T4), and bf16 on
    processors with AMX or AVX512-BF16 if neither side of `image_size` (pixels) is small; float32 elsewhere.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if precision == "bf16" and capability < (8, 0):
            name = torch.cuda.get_device_name(device)
            raise PrecisionError(f"--precision bf16: {name} has no bfloat16; use fp16 or float32")
        chosen = "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "float32"
    else:
        fast = device.type == "cpu" and _has_bfloat16() and min(image_size) >= SMALLEST_ON_A_PROCESSOR
        chosen = "bf16" if fast else "float32"
    return chosen if precision == "auto" else precision


def callbacks(precision: str, device: torch.device, scaler: dict[str, Any] | None = None) -> list[FastaiMixedPrecision]:
    """Return the callbacks of a fit in `precision`; `scaler` is the state of a checkpoint's gradient scaler."""
    return [] if precision == "float32" else [MixedPrecision(precision, device, scaler)]


class MixedPrecision(FastaiMixedPrecision):
    """fastai's callback of that name, on any device, for training alone, and with a scaler that can resume.

    Weights, loss and validation are float32: the metrics are those of the bundle. The network is in the memory format
    channels_last within the fit. One scaler serves all fits of a run (fastai starts each with a new one).
    """

    def __init__(self, precision: str, device: torch.device, scaler: dict[str, Any] | None = None):
        super().__init__(precision)
        self.type, self.entered = TYPES[precision], contextlib.ExitStack()
        # bfloat16 has the range of float32, and needs no scaler.
        self.scaling = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        if scaler:
            self.scaling.load_state_dict(scaler)

    def before_fit(self) -> None:
        """Use the run's scaler, and channels_last, which halves are fastest in."""
        self.learn.model.to(memory_format=torch.channels_last)
        self.learn.scaler = self.scaling
        self.scales: list[float] = []

    def before_batch(self) -> None:
        """Let the network compute in halves."""
        if self.training:
            self.entered.enter_context(torch.autocast(self.dls.device.type, self.type))

    def after_pred(self) -> None:
        """Compute the loss in float32."""
        self.entered.close()
        self.learn.pred = to_float(self.pred)

    def after_loss(self) -> None:
        """Do nothing: `after_pred` has left the autocast."""

    def after_cancel_batch(self) -> None:
        """Leave the autocast of a batch that another callback skips."""
        self.entered.close()

    def after_fit(self) -> None:
        """Leave the network as it was."""
        self.learn.model.to(memory_format=torch.contiguous_format)
        self.learn.scaler = None


def _has_bfloat16() -> bool:
    """Return whether this processor multiplies matrices of bfloat16 in hardware."""
    # torch has no public names for these; newer releases may drop them, and float32 is right everywhere.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)
