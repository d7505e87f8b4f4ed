"""What the command line asks of a configuration before anything of quantization is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config import parse_yaml
from utils.errors import UserError
from utils.schema import check_arguments, check_required, check_type


def has_quantization(config: Mapping[str, Any]) -> bool:
    return "quantize" in config


def check_quantize(config: Mapping[str, Any]) -> None:
    """Sections `quantize` and `search`: names, options, types."""
    if "search" in config and "quantize" not in config:
        raise UserError("search: needs a section 'quantize' that says with which quantizer")
    if "quantize" not in config:
        return
    from models.quant import QUANTIZERS
    from tools import AGENTS
    from tools.quantize.search import Search, budget
    from tools.quantize.section import Quantization

    section = config["quantize"]
    check_type(section, dict, "quantize")
    check_arguments(Quantization, section, "quantize", "section 'quantize'")
    if section.get("quantizer") is not None:
        QUANTIZERS.check(section["quantizer"], "quantize.quantizer")
    if (config.get("runner") or {}).get("ema_decay"):
        raise UserError("runner.ema_decay: codes cannot be averaged; leave it out of a quantized run")
    if "search" in config:
        check_type(config["search"], dict, "search")
        check_arguments(Search, config["search"], "search", "section 'search'")
        check_required(Search, config["search"], "search", "section 'search'")
        AGENTS.check(config["search"]["agent"], "search.agent")
        check_arguments(budget, config["search"]["budget"], "search.budget", "section 'budget'")


def with_policy(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the policy in it instead of the name of its file: a run keeps what it was made with."""
    section = config.get("quantize")
    if not section or not isinstance(section.get("policy"), str):
        return config
    return {**config, "quantize": {**section, "policy": read_policy(section["policy"])}}


def read_policy(policy: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """layer -> bits, out of a file or as it stands."""
    if policy is None or isinstance(policy, Mapping):
        return dict(policy or {})
    path = Path(policy)
    if not path.is_file():
        raise UserError(f"quantize.policy: {path}: no such file; a search writes policy.yaml into its folder")
    content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    layers = content.get("layers") if isinstance(content, dict) else None
    if not isinstance(layers, dict):
        raise UserError(f"{path}: not a policy; expected `layers:` with `name: bits` lines")
    return layers
