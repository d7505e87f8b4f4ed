"""Self-supervised pre-training.

python main_pretrain.py --config cfgs/pretrain/synthetic_small.yaml --exp_name first
python main_pretrain.py --config cfgs/pretrain/synthetic_small.yaml --svm --ckpts P    probe frozen features
"""

import sys

from tools.cli import main

if __name__ == "__main__":
    sys.exit(main("pretrain"))
