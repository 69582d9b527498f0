"""What a device can do at the most, so that a measured rate can be set against it."""

from __future__ import annotations

import re

import torch

# Dense bf16 tensor-core peak in FLOP/s with fp32 accumulation, from the vendor's data sheets and architecture papers
# (without sparsity), by words of the name that torch reports.
PEAK_BF16_FLOPS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 4080": 97e12,
    "RTX 3090": 71e12,
    "RTX 3080": 59e12,
    "RTX 3070": 40e12,
}
# Other chips or clocks under a name that begins alike.
VARIANT = re.compile(r"\b(Ti|SUPER|Laptop|Max-Q|Mobile|D)\b")


def peak_flops(device_name: str) -> float | None:
    """Peak bf16 FLOP/s of a GPU by its name as torch reports it; None for one that is not in the table."""
    names = [name for name in PEAK_BF16_FLOPS if re.search(rf"\b{name}\b", device_name)]
    if not names or VARIANT.search(device_name):
        return None
    return PEAK_BF16_FLOPS[max(names, key=len)]


def default_device() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def check_device(name: str) -> str:
    """The name of a device, where torch can compute on it.

    Raises:
        ValueError: neither the CPU nor a CUDA GPU that torch sees.
    """
    count = torch.cuda.device_count()
    gpus = ["cuda", *(f"cuda:{index}" for index in range(count))] if count else []
    if name in ("cpu", *gpus):
        return name
    raise ValueError(f"device is {name!r}, which torch does not see here: choose {' or '.join(['cpu', *gpus])}.")


def device_name(device: torch.device | str) -> str:
    """The model name of a device."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as lines:
            models = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
        return ", ".join(sorted(models)) or "CPU"
    except OSError:
        return "CPU"


def mfu(flops_per_token: float, tokens_per_second: float, name: str, devices: int = 1) -> float | None:
    """Model FLOPs utilisation in [0, 1] (PaLM, arXiv 2204.02311, appendix B); None where the peak is unknown."""
    peak = peak_flops(name)
    return None if peak is None else flops_per_token * tokens_per_second / (peak * devices)
