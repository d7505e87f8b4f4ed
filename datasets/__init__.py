"""Data sets by name, and the transforms that prepare their batches on the device."""

from utils.registry import Registry

DATASETS = Registry(
    "data set",
    {
        "synthetic_shapes": "datasets.synthetic:synthetic_shapes",
        "packed": "datasets.packed:packed",
        "folder": "datasets.folder:folder",
        "shapenet55": "datasets.shapenet55:shapenet55",
        "modelnet40": "datasets.modelnet40:modelnet40",
        "modelnet_fewshot": "datasets.modelnet_fewshot:modelnet_fewshot",
        "scanobjectnn": "datasets.scanobjectnn:scanobjectnn",
        "shapenetpart": "datasets.shapenetpart:shapenetpart",
        "s3dis": "datasets.s3dis:s3dis",
        "rooms": "datasets.rooms:rooms",
    },
)

TRANSFORMS = Registry(
    "transform",
    {
        "scale_translate": "datasets.transforms:ScaleTranslate",
        "scale": "datasets.transforms:Scale",
        "translate": "datasets.transforms:Translate",
        "center": "datasets.transforms:Center",
        "rotate": "datasets.transforms:Rotate",
        "rotate_freely": "datasets.transforms:RotateFreely",
        "jitter": "datasets.transforms:Jitter",
        "dropout": "datasets.transforms:Dropout",
        "flip": "datasets.transforms:Flip",
        "random_points": "datasets.transforms:RandomPoints",
        "farthest_points": "datasets.transforms:FarthestPoints",
        "resample": "datasets.transforms:Resample",
        "normalize": "datasets.transforms:Normalize",
        "unit_cube": "datasets.transforms:UnitCube",
    },
)
