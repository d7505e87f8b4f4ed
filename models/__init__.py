"""Networks by name. One file an idea; constructors take plain keyword arguments with the published defaults."""

from utils.registry import Registry

MASKS = Registry(
    "mask",
    {
        "random": "models.masking:RandomMask",
        "block": "models.masking:BlockMask",
    },
)

MODELS = Registry(
    "model",
    {
        "PointMAE": "models.point_mae:PointMAE",
        "PointMAEClassifier": "models.point_mae:PointMAEClassifier",
        "PointMAESegmenter": "models.point_mae_seg:PointMAESegmenter",
    },
    parts={"mask": MASKS},
)
