"""What is there of a data set, what is missing or damaged, and what to do about it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets import store
from datasets.listing import Columns, Listing
from datasets.raw import Entry, pack_folder
from utils.errors import UserError
from utils.schema import parameters

Finding = tuple[str, str]  # OK, NOTE, FAIL or nothing (a plain line); and a sentence
SAMPLE = 64  # clouds read unless all are asked for
NAMED = 5  # files that are named before the rest is counted


def taken_by(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in parameters(function)}


def pack_path(module: ModuleType, root: str, options: dict[str, Any]) -> Path:
    """The packed form of these options; rooms and blocks of S3DIS are told apart by what is there."""
    taken = taken_by(module.pack_key, options)
    if "form" in parameters(module.pack_key) and taken.get("form", "auto") == "auto":
        taken["form"] = module.find_form(root, options.get("cache"))
    return pack_folder(root, options.get("cache")) / module.pack_key(**taken)


def check(name: str, module: ModuleType, root: str, options: dict[str, Any], every: bool = False) -> list[Finding]:
    """Findings in order; the last ones say what to do."""
    base = Path(root).expanduser()
    findings: list[Finding] = [("", f"{name} in {base}")]
    if not base.is_dir():
        findings.append(("FAIL", f"{base}: no such folder; expected there:"))
        return findings + [("", f"  {entry.pattern}: {entry.about}; {entry.advice}") for entry in module.TREE]
    for entry in module.TREE:
        findings += check_entry(base, entry)
    try:
        listing = module.listing(root, **taken_by(module.listing, options))
    except UserError as error:
        findings.append(("FAIL", str(error)))
        return [*findings, *advice(findings, name)]
    findings += [("NOTE", note) for note in listing.notes]
    findings += [*check_files(listing), *check_counts(listing), *check_clouds(listing, every)]
    findings += check_pack(name, module, listing, base, options)
    return [*findings, *advice(findings, name)]


def check_entry(base: Path, entry: Entry) -> Iterator[Finding]:
    found = sorted(base.glob(entry.pattern))
    about = f"{entry.pattern}: {entry.about}"
    if not found:
        yield ("FAIL" if entry.required else "", f"{about}: not there" + (f"; {entry.advice}" if entry.advice else ""))
        return
    complete = len(found) == entry.number
    yield "OK" if complete else "NOTE", f"{about}: {len(found):,} files" + ("" if complete else f" of {entry.number:,}")
    for path in found if entry.number <= 2 else []:
        if path.suffix in (".txt", ".json"):
            content = path.read_bytes()
            lines = f"{len(content.splitlines()):,} lines, " if path.suffix == ".txt" else ""
            yield "", f"  {path.name}: {lines}sha256 {hashlib.sha256(content).hexdigest()[:16]}"


def check_files(listing: Listing) -> Iterator[Finding]:
    """Listed files that are not there, and empty ones."""
    if not listing.files:
        return
    bad = [path for path in listing.files if not path.is_file() or path.stat().st_size == 0]
    yield from _named("FAIL", "listed, but not there or empty", bad)
    if len(set(listing.ids)) < len(listing.ids):
        yield "FAIL", f"the lists name {len(listing.ids) - len(set(listing.ids))} clouds more than once"
    if not bad:
        yield "OK", f"all {len(listing.files):,} listed files are there"


def check_counts(listing: Listing) -> Iterator[Finding]:
    """Clouds of each split and class, against those of the complete set where they are known."""
    parts = sorted(set(listing.parts), key=listing.parts.index)
    for part in parts:
        found, wanted = listing.parts.count(part), listing.expected.get(part)
        state = "OK" if found == wanted else "NOTE"
        yield ("", f"{part}: {found:,} clouds") if wanted is None else (
            state, f"{part}: {found:,} clouds" + ("" if found == wanted else f", the complete set has {wanted:,}")
        )  # fmt: skip
    table = np.zeros((len(listing.class_names), len(parts)), np.int64)
    np.add.at(table, (listing.labels, np.array([parts.index(part) for part in listing.parts])), 1)
    width = max(len(name) for name in listing.class_names)
    yield "", f"{'class':<{width}} " + " ".join(f"{part:>7}" for part in parts)
    for name, row in zip(listing.class_names, table):
        wanted = listing.expected_classes.get(name)
        odd = "" if wanted in (None, row.sum()) else f"   the complete set has {wanted} together"
        if row.any():
            yield "", f"{name:<{width}} " + " ".join(f"{count:>7,}" for count in row) + odd
    yield from _named(
        "NOTE", "no clouds of class", [name for name, row in zip(listing.class_names, table) if not row.any()]
    )


def check_clouds(listing: Listing, every: bool) -> Iterator[Finding]:
    """Read clouds: damaged ones by name; sizes, place, part labels of the others."""
    count = len(listing.ids)
    chosen = range(count) if every else np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int)).tolist()
    clouds: list[Columns] = []
    facts: list[tuple[float, ...]] = []
    damaged = []
    for index in tqdm(chosen, desc="reading", unit="cloud", disable=len(chosen) <= SAMPLE or None):
        try:
            columns = listing.cloud(index)
        except UserError as error:
            damaged.append(str(error))
            continue
        points = columns["points"]
        centre = points.mean(axis=0, dtype=np.float64)
        parts = (columns["seg"].min(), columns["seg"].max()) if "seg" in columns else ()
        facts.append(
            (len(points), float(np.linalg.norm(centre)), np.linalg.norm(points - centre, axis=1).max(), *parts)
        )
        clouds = [columns]
    yield from _named("FAIL", "damaged", damaged)
    if not clouds:
        return
    low, high = np.min(facts, axis=0), np.max(facts, axis=0)
    read = f"all {count:,}" if every else f"{len(facts)} of {count:,}"
    yield "OK", f"read {read} clouds: {low[0]:,.0f} to {high[0]:,.0f} points, {', '.join(clouds[0])}"
    yield "", f"mean up to {high[1]:.3g} from the origin, radius {low[2]:.3g} to {high[2]:.3g} about it"
    scale = "normalised (mean 0, radius 1)" if listing.normalized else "not normalised"
    order = "points in random order" if listing.shuffled else "points in the order of the files"
    yield "", f"declared: {listing.up_axis} is up, {scale} as read, {order}"
    yield "", f"labels {listing.labels.min()} to {listing.labels.max()} of {len(listing.class_names)} classes"
    if len(low) > 3:
        yield "", f"part labels {low[3]:.0f} to {high[4]:.0f} of {len(listing.part_names)}"


def check_pack(name: str, module: ModuleType, listing: Listing, base: Path, options: dict[str, Any]) -> list[Finding]:
    path = pack_path(module, str(base), options)
    if not path.is_dir():
        return [("NOTE", f"{path}: not packed; python -m tools.data pack {name} --root {base}")]
    try:
        wrong = store.verify(path)
        if not wrong and not store.is_current(path, listing):
            wrong = [f"{path}: packed from other files or lists; pack again"]
    except UserError as error:
        wrong = [str(error)]
    return [("FAIL", line) for line in wrong] or [("OK", f"{path}: packed, checksums agree")]


def advice(findings: list[Finding], name: str) -> list[Finding]:
    states = [state for state, _ in findings]
    if "FAIL" in states:
        return [("", f"{states.count('FAIL')} problem(s), see FAIL above; put the files there and check again")]
    if "NOTE" in states:
        return [("", f"{name} can be used; see NOTE above")]
    return [("", f"{name} is complete")]


def _named(state: str, what: str, things: list) -> Iterator[Finding]:
    for thing in things[:NAMED]:
        yield state, f"{what}: {thing}"
    if len(things) > NAMED:
        yield state, f"{what}: {len(things) - NAMED:,} more"
