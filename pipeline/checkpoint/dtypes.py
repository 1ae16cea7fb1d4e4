"""What the codec's two directions share: limits, and how each dtype is stored."""

import torch

MAX_DEPTH = 100  # of what is encoded; the parts of a complex number are one deeper
MAX_ENTRIES = 10_000_000

Path = tuple[str, ...]

DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
STORED = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2),
}
# Dtypes that safetensors lacks (or not in every version), with the dtype that their bits are stored as.
VIEWED = {
    torch.complex128: torch.float64,
    torch.complex64: torch.float32,
    torch.complex32: torch.float16,
    torch.float8_e4m3fnuz: torch.uint8,
    torch.float8_e5m2fnuz: torch.uint8,
    torch.float8_e8m0fnu: torch.uint8,
}


def show(path: Path) -> str:
    """The dotted path, for an error."""
    return ".".join(path) or "the value itself"
