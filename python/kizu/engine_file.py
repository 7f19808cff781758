"""Files of engines that are compiled for one device: what one holds is known before its maker's code sees a byte of it.

Layout: the magic, the header's length (4 bytes, little endian), the header's SHA-256, the header (JSON), the plan.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from kizu.engine import TensorSpec
from kizu.errors import EngineError

MAGIC = b"KIZUENG\n"
FORMAT = 1
_LARGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class Header:
    """What was compiled, of what, and for which device.

    Attributes:
        engine, version: the engine's name and its package's full version.
        precision: its arithmetic.
        batch: smallest batch, the one it is fastest at, and the largest.
        compute_capability: of the GPU that it is for, e.g. "8.6".
        graph: SHA-256 of the ONNX file.
        inputs, outputs: as the parsed graph has them.
        plan_size, plan_sha256: of what follows the header.
    """

    engine: str
    version: str
    precision: str
    batch: tuple[int, int, int]
    compute_capability: str
    graph: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    plan_size: int
    plan_sha256: str


def write(path: Path, header: Header, plan: bytes | memoryview) -> None:
    """Write an engine file: all of it or nothing."""
    text = json.dumps({"format": FORMAT, **asdict(header)}).encode()
    write_whole(path, MAGIC, len(text).to_bytes(4, "little"), hashlib.sha256(text).digest(), text, plan)


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that takes its place at once when it is whole; on any failure nothing changes."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def read(path: Path) -> tuple[Header, memoryview]:
    """The header and the plan of an engine file; needs neither the engine's package nor a device.

    Raises:
        EngineError: the file is missing, something else, from another version of kizu, truncated or damaged.
    """
    failure = f"could not load the compiled engine {path}"
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise EngineError(f"{failure}: {error}") from error
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise EngineError(f"{failure}: it is no engine file of kizu; kizu build writes one")
    start = len(MAGIC) + 4 + 32
    size = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
    end = start + size
    if size > _LARGEST_HEADER or hashlib.sha256(data[start:end]).digest() != bytes(data[start - 32 : start]):
        raise EngineError(f"{failure}: its header is truncated or damaged; copy it again or build it anew")
    try:
        header = _header(json.loads(bytes(data[start:end])))
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"{failure}: its header is not one of format {FORMAT} ({error}): another version of kizu wrote it; build "
            "it anew"
        ) from error
    plan = data[end:]
    if len(plan) != header.plan_size:
        raise EngineError(
            f"{failure}: it is truncated or damaged: {len(plan)} bytes of a plan of {header.plan_size}; copy it again "
            "or build it anew"
        )
    if hashlib.sha256(plan).hexdigest() != header.plan_sha256:
        raise EngineError(f"{failure}: it is damaged: its plan does not match its digest; copy it again or build anew")
    return header, plan


def _header(values: dict[str, Any]) -> Header:
    values = dict(values)
    form = values.pop("format")
    if form != FORMAT:
        raise ValueError(f"it says format {form}")
    if set(values) != {item.name for item in fields(Header)}:
        raise ValueError(f"it has the fields {', '.join(sorted(values))}")
    for name in ("inputs", "outputs"):
        values[name] = tuple(TensorSpec(v["name"], tuple(v["shape"]), v["dtype"]) for v in values[name])
    low, best, high = (int(n) for n in values["batch"])
    return Header(**{**values, "batch": (low, best, high)})
