"""Trained networks as files for use elsewhere:

python -m tools.export --config cfgs/x.yaml --ckpts experiments/x/default/ckpt-best.pth --format onnx --output x.onnx
python -m tools.export --quantized --ckpts experiments/.../ckpt-best.pth --output small.safetensors
python -m tools.export --quantized --ckpts float.pth --policy experiments/.../policy.yaml --output small.safetensors

`onnx` needs the packages onnx and onnxscript, and onnxruntime to check the file; `pt2` is torch.export's own format.
Every file is read again and compared with the network.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tools.cli import Parser, tell
from tools.graph import export_graph
from tools.quantize.export import export_quantized
from utils.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m tools.export", description="Write a trained network as a file for use elsewhere")
    parser.add_argument("--ckpts", required=True)
    parser.add_argument("--config", help="--quantized: left out, that of the checkpoint")
    parser.add_argument("--output", help="file to write; left out, beside the checkpoint")
    parser.add_argument("--format", choices=("onnx", "pt2"), default="onnx")
    parser.add_argument("--batch", type=int, default=1, help="clouds a call of the graph")
    parser.add_argument("--points", type=int, default=1024, help="points a cloud of the graph")
    parser.add_argument("--quantized", action="store_true", help="packed weights, safetensors")
    parser.add_argument("--policy", help="policy.yaml of a search, or a number of bits, for a float checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value")
    args = parser.parse_intermixed_args(argv)
    try:
        print(export_quantized(args) if args.quantized else export_graph(args))
    except (UserError, OSError) as error:
        return tell(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
