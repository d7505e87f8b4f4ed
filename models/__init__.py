"""Networks by name. One file an idea; constructors take plain keyword arguments with the published defaults."""

from models.layers.attention import ATTENTION
from models.samplers import SAMPLERS
from utils.registry import Registry

MASKS = Registry(
    "mask",
    {
        "random": "models.masking:RandomMask",
        "block": "models.masking:BlockMask",
        "guided": "models.masking:GuidedMask",
    },
)

TOWERS = Registry(
    "tower",
    {
        "text": "models.any2point.towers:text_tower",
        "vision": "models.any2point.towers:vision_tower",
        "audio": "models.any2point.towers:audio_tower",
        "timm": "models.any2point.towers:timm_tower",
    },
    sizes=True,
)

MODELS = Registry(
    "model",
    {
        "PointMAE": "models.point_mae:PointMAE",
        "PointMAEClassifier": "models.point_mae:PointMAEClassifier",
        "PointMAESegmenter": "models.point_mae_seg:PointMAESegmenter",
        "PointBERTClassifier": "models.point_bert:PointBERTClassifier",
        "PointM2AE": "models.point_m2ae:PointM2AE",
        "PointM2AEClassifier": "models.point_m2ae_finetune:PointM2AEClassifier",
        "PointM2AESegmenter": "models.point_m2ae_finetune:PointM2AESegmenter",
        "SA3D": "models.sa3d:SA3D",
        "SimNeighbourhoodClassifier": "models.sim3d:SimNeighbourhoodClassifier",
        "SimPointClassifier": "models.sim3d:SimPointClassifier",
        "SimSegmenter": "models.sim3d:SimSegmenter",
        "PointTransformerClassifier": "models.point_transformer:PointTransformerClassifier",
        "PointTransformerSegmenter": "models.point_transformer:PointTransformerSegmenter",
        "PCTClassifier": "models.pct:PCTClassifier",
        "PCTSegmenter": "models.pct:PCTSegmenter",
        "SortNetClassifier": "models.sortnet:SortNetClassifier",
        "Any2Point": "models.any2point.model:Any2Point",
        "PointNetClassifier": "models.pointnet:PointNetClassifier",
        "PointNetAutoEncoder": "models.pointnet:PointNetAutoEncoder",
        "PCRNet": "models.pcrnet:PCRNet",
        "SampledNetwork": "models.sampled:SampledNetwork",
    },
    parts={"sampler": SAMPLERS, "mask": MASKS, "tower": TOWERS, "attention": ATTENTION, "decoder_attention": ATTENTION},
    sizes=True,
)
MODELS.parts["backbone"] = MODELS
MODELS.parts["network"] = MODELS  # inside a SampledNetwork
