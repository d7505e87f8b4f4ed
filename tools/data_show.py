"""Samples of a data set as a picture and as a page that needs nothing else."""

from __future__ import annotations

import base64
import html
from pathlib import Path

import numpy as np

from datasets.base import PointClouds
from tools.draw import draw_clouds

CLOUDS, COLUMNS = 24, 6
STYLE = "body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:2em auto;color:#222}td{padding:0 1em 0 0}"
UPRIGHT = {"x": [1, 0, 2], "y": [0, 1, 2], "z": [1, 2, 0]}  # columns that become x, y (up), z


def show(dataset: PointClouds, out: Path) -> list[Path]:
    """samples.png and samples.html of clouds from every class in turn, coloured by part or height."""
    positions = spread_over_classes(dataset.class_labels, CLOUDS)
    batch = dataset.fetch(positions)
    points = batch["points"].numpy()[..., UPRIGHT.get(dataset.up_axis or "y", UPRIGHT["y"])]
    colors = list(batch["seg"].numpy()) if "seg" in batch else [_height(cloud) for cloud in points]
    folder = out / f"{dataset.name}_{dataset.split}"
    picture, page = folder / "samples.png", folder / "samples.html"
    draw_clouds(list(points), colors, picture, columns=COLUMNS)
    names = [dataset.class_names[label] for label in dataset.class_labels[positions]]
    page.write_text(_page(dataset, names, picture.read_bytes()), encoding="utf-8")
    return [picture, page]


def spread_over_classes(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions that take classes in turn, spread over each class."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if len(members) > count:
        members = [members[i] for i in np.linspace(0, len(members) - 1, count).astype(int)]
    each = -(-count // len(members))
    chosen = [group[np.unique(np.linspace(0, len(group) - 1, each).astype(int))] for group in members]
    return np.concatenate(chosen)[:count]


def _height(points: np.ndarray) -> np.ndarray:
    """Colours from blue (low) to orange (high)."""
    share = (points[:, 1:2] - points[:, 1].min()) / max(float(np.ptp(points[:, 1])), 1e-9)
    return (1 - share) * np.array([0.15, 0.39, 0.63]) + share * np.array([0.91, 0.47, 0.13])


def _page(dataset: PointClouds, names: list[str], picture: bytes) -> str:
    facts = {
        "clouds": f"{len(dataset):,} in split {dataset.split}",
        "points": f"{dataset.num_points:,} a cloud",
        "classes": f"{dataset.num_classes}; {len(np.unique(dataset.class_labels))} of them occur",
        "parts": str(len(dataset.part_names)),
        "up": dataset.up_axis or "not declared",
        "normalised": {None: "not declared", True: "yes: mean 0, radius 1", False: "no"}[dataset.normalized],
        "fingerprint": dataset.fingerprint(),
    }
    rows = "".join(f"<tr><td>{key}</td><td>{html.escape(value)}</td></tr>" for key, value in facts.items())
    lines = [", ".join(names[i : i + COLUMNS]) for i in range(0, len(names), COLUMNS)]
    listed = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    image = base64.b64encode(picture).decode()
    title = html.escape(dataset.name)
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        f"<table>{rows}</table><img src='data:image/png;base64,{image}' style='max-width:100%' alt='samples'>"
        f"<p>Rows from top to bottom:</p><ol>{listed}</ol>"
    )
