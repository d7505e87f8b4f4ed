"""Finished networks as files for use elsewhere.

python -m tools.export --quantized --ckpts experiments/.../ckpt-best.pth --out small.safetensors
python -m tools.export --quantized --ckpts float.pth --policy experiments/.../policy.yaml --out small.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tools.quantize.export import add_arguments, export_quantized
from utils.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools.export", description=__doc__.splitlines()[0])
    parser.add_argument("--quantized", action="store_true", required=True, help="packed weights, safetensors")
    add_arguments(parser)
    try:
        print(export_quantized(parser.parse_args(argv)))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
