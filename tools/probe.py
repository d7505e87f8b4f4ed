"""How well frozen features separate classes: linear SVM, nearest neighbours, linear classifier, off one extraction.

Choices (C, k) are made by cross-validation on the training features, never on the test set.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn
from tqdm import tqdm

from datasets.loader import Loader
from tools.splits import DataSplits
from tools.tasks.base import Autocast, evaluating, extra_inputs, prepared
from utils import dist
from utils.errors import UserError

C_GRID = (0.01, 0.1, 1.0, 10.0, 100.0)  # times 1 / width of the features
K_GRID = (1, 5, 10, 20)
FOLDS = 3
PROBES = ("svm", "svm_cv", "knn", "linear", "prototype")


@dataclass
class Features:
    """Vectors and labels of one set; equal `groups` are near-duplicates and stay together in cross-validation."""

    x: np.ndarray  # (n, C)
    y: np.ndarray  # (n,)
    groups: np.ndarray | None = None


@dataclass
class Score:
    accuracy: float  # percent
    protocol: str


def extract_features(
    model: nn.Module,
    loader: Loader,
    data: DataSplits,
    autocast: Autocast,
    progress: str = "",
    vector: str = "encode",
) -> Features:
    """`model.encode` of every cloud, in the order of the data set, whatever the number of processes. progress: what a
    bar on the terminal is named; none without it. vector: another method of the model, taken where it has it."""
    encode = getattr(model, vector, getattr(model, "encode", None))
    if encode is None:
        raise UserError(f"model '{type(model).__name__}' has no encode(points): its features cannot be probed")
    rows = []
    model.eval()
    with evaluating(autocast):
        quiet = None if progress and dist.is_main() else True  # None: on a terminal only
        for batch in tqdm(prepared(loader, data), progress, len(loader), leave=False, disable=quiet):
            vectors = encode(batch["points"], **extra_inputs(model, batch)).float().cpu().numpy()
            rows.append((batch["index"].cpu().numpy(), vectors, batch["label"].cpu().numpy()))
    everyone = [row for part in dist.gather_objects(rows) for row in part]
    index, x, y = (np.concatenate(column) for column in zip(*everyone))
    position = np.empty(loader.dataset.index.max() + 1, dtype=np.int64)
    position[loader.dataset.index] = np.arange(len(loader.dataset))
    order = np.argsort(position[index])
    if not np.isfinite(x).all():
        raise UserError("the features hold NaN or infinity: the model has diverged")
    groups = loader.dataset.groups
    return Features(x[order], y[order], None if groups is None else groups[loader.dataset.index])


def has_classes(data: DataSplits) -> bool:
    """Whether the training clouds differ in class, as every probe needs."""
    return len(np.unique(data.fit_set.dataset.class_labels)) > 1


def check_data(data: DataSplits) -> None:
    if data.test is None:
        raise UserError("data.test: a probe needs a test set")
    if not has_classes(data):
        raise UserError("data.train: all clouds are of one class, so a probe has nothing to tell apart")


def run_probes(model: nn.Module, data: DataSplits, autocast: Autocast, names: tuple[str, ...]) -> list[dict]:
    """Result rows on the test set."""
    check_data(data)
    assert data.test is not None
    train = extract_features(model, data.fit_set, data, autocast)
    test = extract_features(model, data.test, data, autocast)
    functions: dict[str, Callable[[Features, Features], Score]] = {
        "svm": svm,
        "svm_cv": svm_cv,
        "knn": knn,
        "linear": linear,
        "prototype": prototype,
    }
    rows = []
    for name in names:
        score = functions[name](train, test)
        rows.append({"metric": f"{name}_acc", "value": score.accuracy, "split": "test", "protocol": score.protocol})
    return rows


def svm(train: Features, test: Features, c: float = 0.01) -> Score:
    """The field's probe: linear SVM, C = 0.01, features as they are."""
    from sklearn.svm import SVC

    classifier = SVC(C=c, kernel="linear").fit(train.x, train.y)
    return Score(_percent(classifier.predict(test.x), test.y), f"linear SVM, C {c:g}")


def svm_cv(train: Features, test: Features, grid: tuple[float, ...] = C_GRID) -> Score:
    """Linear SVM on standardised features, C chosen on the training data: fair to any width and scale of features."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    def make(c: float):
        return make_pipeline(StandardScaler(), SVC(C=c / train.x.shape[1], kernel="linear"))

    return _chosen(make, grid, train, test, "linear SVM on standardised features, C x width")


def knn(train: Features, test: Features) -> Score:
    """Nearest neighbours by cosine similarity, k chosen on the training data."""
    from sklearn.neighbors import KNeighborsClassifier

    def make(k: int):
        return KNeighborsClassifier(k, metric="cosine", weights="distance", algorithm="brute")

    fitting = tuple(k for k in K_GRID if k <= len(train.x) // FOLDS) or (1,)
    return _chosen(make, fitting, train, test, "cosine nearest neighbours, k")


def linear(train: Features, test: Features) -> Score:
    """Logistic regression on standardised features, C chosen on the training data."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def make(c: float):
        return make_pipeline(StandardScaler(), LogisticRegression(C=c / train.x.shape[1], max_iter=100))

    return _chosen(make, C_GRID[1:], train, test, "logistic regression on standardised features, C x width")


def prototype(train: Features, test: Features) -> Score:
    """The class whose mean unit vector is nearest by angle, after the mean of the training features is taken off."""
    mean = train.x.mean(axis=0)
    support, query = _unit(train.x - mean), _unit(test.x - mean)
    classes = np.unique(train.y)
    means = np.stack([support[train.y == label].mean(axis=0) for label in classes])
    prediction = classes[np.argmax(query @ _unit(means).T, axis=1)]
    return Score(_percent(prediction, test.y), "nearest class mean by angle, features centred")


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _chosen(make, grid: tuple, train: Features, test: Features, protocol: str) -> Score:
    """Fit with the value that wins the cross-validation on the training features; ties go to the smaller value. With
    one cloud in some class there is nothing to cross-validate: the value 1 is used."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score

    smallest = int(np.bincount(train.y)[np.unique(train.y)].min())
    value, rule = (grid[0] if len(grid) == 1 else 1), ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many iterations are part of the protocol
        if smallest >= 2 and len(grid) > 1:
            kind = StratifiedKFold if train.groups is None else StratifiedGroupKFold
            number = min(FOLDS, smallest)
            folds = kind(number, shuffle=True, random_state=0)
            means = [cross_val_score(make(v), train.x, train.y, cv=folds, groups=train.groups).mean() for v in grid]
            value, rule = grid[int(np.argmax(means))], f" by {number}-fold cross-validation on train"
        accuracy = _percent(make(value).fit(train.x, train.y).predict(test.x), test.y)
    return Score(accuracy, f"{protocol} {value:g}{rule}")


def _percent(prediction: np.ndarray, truth: np.ndarray) -> float:
    return 100.0 * float((prediction == truth).mean())
