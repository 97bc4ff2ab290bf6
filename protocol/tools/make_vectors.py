"""Writes the test vectors in `protocol/vectors/`: bytes of the wire with their meaning.

    python protocol/tools/make_vectors.py            writes the files
    python protocol/tools/make_vectors.py --check    prints which files differ; exits with 1 if any does

Bytes marked `by_hand` were written down from the specification, not by our encoder, so that the encoder can be wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from conversation_vectors import conversation
from lane_vectors import lane
from message_vectors import malformed, messages
from sampling_vectors import sampling
from tensor_vectors import specs, tensors, texts

FOLDER = Path(__file__).parents[1] / "vectors"


def files() -> dict[str, bytes]:
    """Returns the content of every vector file by its name."""
    return {
        "messages.json": _json(messages()),
        "malformed.json": _json(malformed()),
        "spec.json": _json(specs()),
        "tensors.json": _json(tensors()),
        "texts.json": _json(texts()),
        "sampling.json": _json(sampling()),
        "conversation.json": _json(conversation()),
        "lane.json": _json(lane()),
    }


def main() -> int:
    """Writes or checks the files; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the test vectors of the protocol.")
    parser.add_argument("--check", action="store_true", help="only print which files differ")
    is_check = parser.parse_args().check
    differing = []
    for name, data in files().items():
        path = FOLDER / name
        if not path.exists() or path.read_bytes() != data:
            differing.append(name)
            if not is_check:
                FOLDER.mkdir(exist_ok=True)
                path.write_bytes(data)
    print("\n".join(differing) or "every vector file is up to date")
    return 1 if is_check and differing else 0


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(main())
