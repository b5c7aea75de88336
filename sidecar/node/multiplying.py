"""``python -m sidecar.node.multiplying BACKEND``: a process that makes products for challenges, on the GPU if it can.

Lines in, lines out, so that no crash or memory of a driver is the node's: ``ready`` → ``ready``; ``product SEED SIZE``
→ its commitment; ``rows N,N,…`` → these rows of the last product. Answers are base64; ``error TEXT`` is one too.
"""

from __future__ import annotations

import base64
import importlib
import sys
from typing import Any

import numpy as np

from trust import product
from trust.product import Matrix, Multiply, Product


def _torch() -> Multiply:
    """PyTorch, on its first CUDA device."""
    torch: Any = importlib.import_module("torch")
    device = torch.device("cuda")

    def multiply(left: Matrix, right: Matrix) -> Matrix:
        on_it = [torch.from_numpy(one).to(device).to(torch.float32) for one in (left, right)]
        made: Matrix = (on_it[0] @ on_it[1]).to(torch.int32).cpu().numpy()
        return made

    return multiply


def _cupy() -> Multiply:
    """CuPy, on its first device."""
    cupy: Any = importlib.import_module("cupy")

    def multiply(left: Matrix, right: Matrix) -> Matrix:
        on_it = [cupy.asarray(one).astype(cupy.float32) for one in (left, right)]
        made: Matrix = cupy.asnumpy((on_it[0] @ on_it[1]).astype(cupy.int32))
        return made

    return multiply


BACKENDS = {"numpy": lambda: product.multiply, "torch": _torch, "cupy": _cupy}


def answer(line: str, how: Multiply, made: list[Product]) -> str:
    """To one line; *made* holds the last product."""
    match line.split():
        case ["ready"]:
            how(np.zeros((16, 16), np.int8), np.zeros((16, 16), np.int8))
            return "ready"
        case ["product", seed, size]:
            made[:] = [Product(seed, int(size), how)]
            return base64.b64encode(made[0].commitment).decode()
        case ["rows", wanted] if made:
            return base64.b64encode(made[0].show([int(row) for row in wanted.split(",")])).decode()
    return "error nothing was made of which rows could be shown"


def main() -> None:
    made: list[Product] = []
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    try:
        how = BACKENDS[sys.argv[1]]()
    except Exception as bad:
        print(f"error {sys.argv[1]}: {type(bad).__name__}: {bad}", file=answers, flush=True)
        return
    for line in sys.stdin:
        try:
            print(answer(line, how, made), file=answers, flush=True)
        except Exception as bad:
            print(f"error {type(bad).__name__}: {bad}", file=answers, flush=True)


if __name__ == "__main__":
    main()
