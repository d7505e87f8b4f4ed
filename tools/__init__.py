"""From a configuration to a finished run: builder, the one training loop, tasks, probes, reports."""

from utils.registry import Registry

TASKS = Registry(
    "task",
    {
        "pretrain": "tools.tasks.pretrain:Pretrain",
        "classify": "tools.tasks.classify:Classify",
        "retrieve": "tools.tasks.retrieve:Retrieve",
        "reconstruct": "tools.tasks.reconstruct:Reconstruct",
        "register": "tools.tasks.register:Register",
        "part_segmentation": "tools.tasks.segment:PartSegmentation",
        "semantic_segmentation": "tools.tasks.segment:SemanticSegmentation",
    },
)

OPTIMIZERS = Registry(
    "optimizer",
    {"AdamW": "torch.optim:AdamW", "Adam": "torch.optim:Adam", "SGD": "torch.optim:SGD"},
)

SCHEDULERS = Registry(
    "scheduler",
    {
        "cosine": "tools.schedule:Cosine",
        "step": "tools.schedule:Step",
        "decay": "tools.schedule:Decay",
        "constant": "tools.schedule:Constant",
    },
)
