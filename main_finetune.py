"""Everything downstream of pre-training; the task is named in the configuration.

python main_finetune.py --config cfgs/finetune/synthetic_small.yaml --finetune_model --ckpts P --exp_name first
python main_finetune.py --config cfgs/finetune/synthetic_small.yaml --scratch_model --exp_name scratch
python main_finetune.py --config cfgs/finetune/synthetic_small.yaml --test --ckpts P [--vote]
"""

import sys

from tools.cli import main

if __name__ == "__main__":
    sys.exit(main("finetune"))
