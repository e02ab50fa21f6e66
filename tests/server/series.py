"""Reads metrics back from the text in which they are served."""

from __future__ import annotations

import re

COUNTS = {"open_tasks": 0, "open_operations": 0, "sessions": 0, "waiting": 0, "at_work": 0}
SAMPLE = re.compile(r'(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
UNESCAPE = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def parse(text):
    """Read the text form: (name, labels) -> value."""
    samples = {}
    for line in text.decode().splitlines():
        if not line.startswith("#"):
            name, labels, value = SAMPLE.fullmatch(line).groups()
            pairs = {
                key: re.sub(r"\\.", lambda found: UNESCAPE[found[0]], value)
                for key, value in LABEL.findall(labels or "")
            }
            samples[name, frozenset(pairs.items())] = float(value)
    return samples


def sample(samples, name, **labels):
    return samples.get((name, frozenset(labels.items())), 0.0)
