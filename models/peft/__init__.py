"""Ways to adapt a frozen backbone with few trained parameters, by name; `peft:` in a configuration lists them."""

from utils.registry import Registry

PEFT = Registry(
    "adaptation",
    {
        "adapter": "models.peft.adapter:Adapter",
        "bitfit": "models.peft.selection:BitFit",
        "dapt": "models.peft.dapt:DAPT",
        "freeze_stats": "models.peft.selection:FreezeStats",
        "idpt": "models.peft.idpt:IDPT",
        "linear_probe": "models.peft.selection:LinearProbe",
        "lora": "models.peft.lora:LoRA",
        "point_peft": "models.peft.point_peft:PointPEFT",
        "unfreeze": "models.peft.selection:Unfreeze",
        "vpt": "models.peft.vpt:VPT",
    },
)
