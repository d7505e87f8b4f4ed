"""Quantized networks as files whose size is what the bits say: packed codes, small tables, everything else as it is.

The container is safetensors. For a quantized layer `NAME.codes` holds the codes of the flattened weight, bits after
bits, lowest bit first; beside it lie `NAME.codebook`, or `NAME.scale` and `NAME.low`. The metadata say bits and shapes.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.quant.apply import (
    Policy,
    Quantizer,
    is_quantized,
    layers_of,
    parametrization_of,
    quantize,
    trained_weight,
)
from models.quant.linear import ActivationRange
from utils.errors import UserError, first_line

FORMAT, KEY = 1, "pointsmith.quantized"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
Entry = tuple[torch.dtype, tuple[int, ...]]


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Numbers below 2^bits -> bytes, lowest bit first, the last byte filled with zeros."""
    flat = codes.detach().flatten().cpu().numpy().astype(np.uint8)
    spread = np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(spread.ravel(), bitorder="little"))


def unpack_bits(packed: Tensor, bits: int, number: int) -> Tensor:
    flat = np.unpackbits(packed.cpu().numpy(), count=bits * number, bitorder="little").reshape(number, bits)
    return torch.from_numpy(np.packbits(flat, axis=1, bitorder="little").ravel())


def packed_length(number: int, bits: int) -> int:
    return -(-number * bits // 8)


class Sizes:
    """Bytes on disk of a model under any policy, without writing it: the budget of a search counts these.

    Exact: the size of the file that `save_quantized` writes, header and all.
    """

    def __init__(self, model: nn.Module, quantizer: Quantizer):
        self.quantizer = quantizer
        self.shapes = {name: layer.weight.shape for name, layer in layers_of(model).items()}
        named = unique_tensors(model.state_dict(keep_vars=True))[0]
        weights = {f"{name}.weight" for name in self.shapes}
        self.others: dict[str, Entry] = {
            name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in named.items() if name not in weights
        }
        self.aliases = unique_tensors(model.state_dict(keep_vars=True))[1]
        self.dtypes = {name: named[f"{name}.weight"].dtype for name in self.shapes}

    def file(self, policy: Mapping[str, tuple[int, int]]) -> int:
        """Bytes of the whole file."""
        entries = dict(self.others)
        for name in self.shapes:
            entries |= self.layer(name, policy.get(name, (0, 0))[0])
            if policy.get(name, (0, 0))[1]:
                entries |= {f"{name}.input_range.{key}": (torch.float32, ()) for key in ("high", "low", "signed")}
        header = make_header(entries, describe(self.shapes, dict(policy), self.aliases))
        return len(header) + sum(_bytes(entry) for entry in entries.values())

    def float_file(self) -> int:
        return self.file({})

    def layer(self, name: str, bits: int) -> dict[str, Entry]:
        """What is stored for one layer."""
        shape, dtype = self.shapes[name], self.dtypes[name]
        if not bits:
            return {f"{name}.weight": (dtype, tuple(shape))}
        tables = self.quantizer.table_bytes(shape, bits)
        stored = {f"{name}.{key}": (dtype, (number,)) for key, number in tables.items()}
        return {f"{name}.codes": (torch.uint8, (packed_length(shape.numel(), bits),)), **stored}

    def nominal(self, policy: Mapping[str, tuple[int, int]]) -> float:
        """The share that the field prints: bits of the weights of the quantized layers over 32 a weight. Codebooks,
        biases, norms and layers left float do not count."""
        counted = {name: self.shapes[name].numel() for name, (bits, _) in policy.items() if bits}
        return sum(policy[name][0] * number for name, number in counted.items()) / max(32 * sum(counted.values()), 1)


def _bytes(entry: Entry) -> int:
    dtype, shape = entry
    return dtype.itemsize * int(np.prod(shape, dtype=np.int64))


def describe(shapes: Mapping[str, torch.Size], policy: Policy, aliases: Mapping[str, str]) -> str:
    layers = {name: [list(shapes[name]), *policy[name]] for name in shapes if name in policy and any(policy[name])}
    return json.dumps({"format": FORMAT, "layers": layers, "aliases": dict(aliases)}, separators=(",", ":"))


def make_header(entries: Mapping[str, Entry], description: str) -> bytes:
    """The header of a safetensors file: its length, then JSON with dtype, shape and place of every tensor."""
    table: dict[str, Any] = {"__metadata__": {KEY: description}}
    end = 0
    for name, (dtype, shape) in sorted(entries.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        start, end = end, end + _bytes((dtype, shape))
        table[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def unique_tensors(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict with each tensor once, and which names are others' (tied weights)."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    owner: dict[int, str] = {}
    for name, tensor in state.items():
        first = owner.setdefault(id(tensor), name)
        if first == name:
            kept[name] = tensor
        else:
            aliases[name] = first
    return kept, aliases


def pack_model(model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """The tensors of the file and the description that goes with them."""
    layers = layers_of(model)
    shapes = {name: layer.weight.shape for name, layer in layers.items()}
    policy = policy_of(model)
    state, aliases = unique_tensors(model.state_dict(keep_vars=True))
    tensors = {name: value.detach() for name, value in state.items() if ".parametrizations.weight" not in name}
    for name, layer in layers.items():
        if is_quantized(layer):
            tables = parametrization_of(layer).pack(trained_weight(layer))
            packed = pack_bits(tables.pop("codes"), policy[name][0])
            tensors |= {f"{name}.codes": packed, **{f"{name}.{key}": value.flatten() for key, value in tables.items()}}
    renamed = {
        _float_name(other): _float_name(first)
        for other, first in aliases.items()
        if ".parametrizations." not in other or other.endswith(".original")
    }
    return tensors, describe(shapes, policy, renamed)


def _float_name(name: str) -> str:
    return name.replace(".parametrizations.weight.original", ".weight")


def policy_of(model: nn.Module) -> Policy:
    """What a quantized model was quantized with."""
    policy: Policy = {}
    for name, layer in layers_of(model).items():
        range_ = getattr(layer, "input_range", None)
        bits = parametrization_of(layer).bits if is_quantized(layer) else 0
        policy[name] = (bits, range_.bits if isinstance(range_, ActivationRange) else 0)
    return policy


def save_quantized(path: str | Path, model: nn.Module) -> int:
    """Write the packed file whole or not at all; returns its size in bytes."""
    path = Path(path)
    tensors, description = pack_model(model)
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(make_header(entries, description))
            for name, _ in sorted(entries.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
                file.write(_raw(tensors[name]))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size


def _raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def is_packed(path: str | Path) -> bool:
    """Whether a file is one of ours with packed weights."""
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_packed(path: str | Path) -> tuple[dict[str, Tensor], Policy]:
    """The state dict with the dense weights that the quantized layers compute with, and the policy of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[KEY])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        if about["format"] != FORMAT:
            raise UserError(f"{path}: format {about['format']}, this version reads {FORMAT}")
        policy: Policy = {}
        for name, (shape, bits, activation_bits) in about["layers"].items():
            policy[name] = (bits, activation_bits)
            if bits:
                state[f"{name}.weight"] = _unpack_layer(state, name, shape, bits)
        state |= {other: state[first] for other, first in about["aliases"].items()}
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged or not a packed model ({first_line(error)}); export it again") from error
    return state, policy


def _unpack_layer(state: dict[str, Tensor], name: str, shape: list[int], bits: int) -> Tensor:
    """Takes the tables of a layer out of the state; the same arithmetic as in training, so the same bits come out."""
    number = int(np.prod(shape, dtype=np.int64))
    codes = unpack_bits(state.pop(f"{name}.codes"), bits, number).long()
    if f"{name}.codebook" in state:
        return state.pop(f"{name}.codebook")[codes].reshape(shape)
    scale, low = state.pop(f"{name}.scale"), state.pop(f"{name}.low", None)
    first = 1 - 2 ** (bits - 1) if low is None else 0  # steps around zero, or from `low` on
    wide = (-1,) + (1,) * (len(shape) - 1) if len(scale) > 1 else (1,) * len(shape)
    levels = (codes + first).reshape(shape).to(scale.dtype) * scale.reshape(wide)
    return levels + (0.0 if low is None else low.reshape(wide))


def load_packed(model: nn.Module, path: str | Path, quantizer: Any) -> Policy:
    """Fill a float model of the same architecture from a packed file: its predictions are those of the model that was
    saved, to the bit. The weights come out dense; inputs that were rounded are rounded again."""
    state, policy = read_packed(path)
    ranges = {name: (0, activation_bits) for name, (_, activation_bits) in policy.items() if activation_bits}
    quantize(model, ranges, quantizer)
    wrong = sorted(set(model.state_dict()) ^ set(state))
    if wrong:
        raise UserError(f"{path}: does not fit the model, first at {wrong[0]}; use the configuration it was made with")
    model.load_state_dict(state)
    return policy
