"""What can be purified: models by name, and their weights from safe checkpoints."""

from pbe_fast.models.checkpoint import check_weights, load_model, read_state, save_model
from pbe_fast.models.classifier import Classifier, ModelSpec
from pbe_fast.models.preact_resnet import PreActResNet18
from pbe_fast.models.registry import create_model

__all__ = [
    "Classifier",
    "ModelSpec",
    "PreActResNet18",
    "check_weights",
    "create_model",
    "load_model",
    "read_state",
    "save_model",
]
