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
        "distill": "tools.tasks.distill:Distill",
    },
)
TASKS.parts["task"] = TASKS  # distillation wraps another task

OPTIMIZERS = Registry(
    "optimizer",
    {"AdamW": "tools.optim:AdamW", "Adam": "tools.optim:Adam", "SGD": "tools.optim:SGD"},
)

SCHEDULERS = Registry(
    "scheduler",
    {
        "cosine": "tools.schedule:Cosine",
        "step": "tools.schedule:Step",
        "milestones": "tools.schedule:Milestones",
        "decay": "tools.schedule:Decay",
        "constant": "tools.schedule:Constant",
    },
)

AGENTS = Registry(
    "agent",
    {
        "ddpg": "tools.quantize.agents:DdpgAgent",
        "random": "tools.quantize.agents:RandomAgent",
        "uniform": "tools.quantize.agents:UniformAgent",
        "greedy": "tools.quantize.agents:GreedyAgent",
        "evolutionary": "tools.quantize.agents:EvolutionaryAgent",
    },
)
