"""The memory bank of Point-PEFT: one unit vector for each training cloud, as the frozen backbone sees it.

python -m tools.memory_bank --config cfgs/peft/point_peft_scan_hardest.yaml --ckpts P --out bank.pth
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.peft.apply import methods_of
from models.peft.point_peft import PointPEFT
from tools.probe import extract_features
from tools.splits import DataSplits
from tools.tasks.base import Autocast
from utils.checkpoint import read_checkpoint, save_checkpoint, tensor_hash
from utils.errors import UserError
from utils.logging import get_logger

BUILD = "build"


def wanting(model: nn.Module) -> list[PointPEFT]:
    """The adaptations that look things up in a bank."""
    return [method for method in methods_of(model) if isinstance(method, PointPEFT) and method.bank_from]


def fill(method: PointPEFT, data: DataSplits, autocast: Autocast) -> list[str]:
    """Make the bank or read it; says what it is."""
    if method.bank_from == BUILD:
        found = build_bank(method, data, autocast)
        method.set_bank(found["bank"])
        return [f"memory bank: {found['bank'].shape[1]} clouds of {found['meta']['dataset']}, made by this run"]
    path = str(method.bank_from)
    found = read_bank(path)
    lines = check_bank(found, method, data, path)
    method.set_bank(found["bank"])
    return [f"memory bank: {path}, {found['bank'].shape[1]} clouds", *(f"warning: {line}" for line in lines)]


def build_bank(method: PointPEFT, data: DataSplits, autocast: Autocast) -> dict[str, Any]:
    """Pooled features of the training split, without augmentation, brought to unit length: {bank (C, M), ...}."""
    assert method.extractor is not None
    features = extract_features(method.extractor, data.fit_set, data, autocast, progress="memory bank")
    bank = torch.nn.functional.normalize(torch.from_numpy(features.x).float(), dim=-1).T.contiguous()
    return {"bank": bank, "labels": torch.from_numpy(features.y), "meta": description(method, data)}


def description(method: PointPEFT, data: DataSplits) -> dict[str, Any]:
    """What a bank was made with, or has to be made with."""
    extractor, dataset = method.extractor, data.fit_set.dataset
    assert extractor is not None
    return {
        "backbone": extractor_hash(extractor),
        "pooling": extractor.pooling,
        "groups": extractor.groups,
        "normalised": True,
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "split": dataset.split,
        "clouds": len(dataset),
    }


def extractor_hash(extractor: nn.Module) -> str:
    """Of all that its features depend on; class tokens do not take part."""
    state = {name: value for name, value in extractor.state_dict().items() if "cls_" not in name}
    return tensor_hash(state)


def read_bank(path: str) -> dict[str, Any]:
    """Ours, or a bare tensor of the official form."""
    try:
        found = read_checkpoint(path, bare="bank")
    except UserError as error:
        raise UserError(
            f"{error}; make it with: python -m tools.memory_bank --config C --ckpts P --out {path}, or set bank: build"
        ) from error
    if not isinstance(found.get("bank"), Tensor):
        raise UserError(f"{path}: no memory bank in it; keys found: {', '.join(map(str, list(found)[:8]))}")
    return found


def check_bank(found: Mapping[str, Any], method: PointPEFT, data: DataSplits, path: str) -> list[str]:
    """Raises where a bank does not fit the backbone; says where it may not fit the data."""
    meta = found.get("meta")
    if not isinstance(meta, Mapping):
        return [f"{path}: a bare tensor; which backbone it was made with cannot be checked"]
    needed = description(method, data)
    for key in ("backbone", "pooling", "groups", "normalised"):
        if meta.get(key) != needed[key]:
            raise UserError(
                f"{path}: made with {key} {meta.get(key)}, this run has {needed[key]}; make it again with "
                "python -m tools.memory_bank, the same --config and --ckpts"
            )
    if meta.get("fingerprint") != needed["fingerprint"]:
        return [
            f"{path}: holds {meta.get('dataset')} ({meta.get('clouds')} clouds), not the training split of this run"
        ]
    return []


def main(argv: Sequence[str] | None = None) -> int:
    from tools.build import build_data, build_device, build_model, check_config, load_into
    from tools.cli import Parser, tell
    from tools.runner import Runner
    from utils.config import load_config, to_plain
    from utils.logging import start_logging

    parser = Parser(prog="python -m tools.memory_bank", description="Build the memory bank of Point-PEFT")
    parser.add_argument("--config", required=True, help="YAML file of the run that will use it")
    parser.add_argument("--ckpts", required=True, help="the pre-trained backbone")
    parser.add_argument("--out", help="default: what the configuration names as `bank`")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value")
    args = parser.parse_args(argv)
    try:
        from tools.adapt import adapt

        config = to_plain(load_config(args.config, args.overrides)[0])
        check_config(config)
        start_logging(True)
        device = build_device(config.get("device", "auto"))
        data = build_data(config, device, config.get("seed", 0))
        model = build_model(config, data)
        get_logger().info(load_into(model, read_checkpoint(args.ckpts), args.ckpts, whole=False).summary())
        adapt(model, config)
        found = wanting(model) if config.get("peft") else []
        if not found:
            raise UserError(f"{args.config}: no point_peft with a `bank` in its section `peft`")
        named = found[0].bank_from if found[0].bank_from != BUILD else None
        out = args.out or named
        if not out:
            raise UserError("--out: say where to write; the configuration names no file")
        runner = Runner(**config.get("runner", {}))
        runner.device = device
        bank = build_bank(found[0].to(device), data, runner.autocast)
        save_checkpoint(out, bank)
        get_logger().info(f"{out}: {tuple(bank['bank'].shape)}, {bank['meta']}")
    except (UserError, OSError) as error:
        return tell(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
