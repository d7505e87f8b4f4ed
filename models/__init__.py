"""Networks by name. One file an idea; constructors take plain keyword arguments with the published defaults."""

from models.samplers import SAMPLERS
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
        "PointM2AE": "models.point_m2ae:PointM2AE",
        "PointM2AEClassifier": "models.point_m2ae_finetune:PointM2AEClassifier",
        "PointM2AESegmenter": "models.point_m2ae_finetune:PointM2AESegmenter",
        "PointNetClassifier": "models.pointnet:PointNetClassifier",
        "PointNetAutoEncoder": "models.pointnet:PointNetAutoEncoder",
        "PCRNet": "models.pcrnet:PCRNet",
        "SampledNetwork": "models.sampled:SampledNetwork",
    },
    parts={"mask": MASKS, "sampler": SAMPLERS},
)
MODELS.parts["network"] = MODELS  # inside a SampledNetwork
