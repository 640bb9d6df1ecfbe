"""Draw the pictures of docs/concepts.md, from a fit to made vectors: python docs/draw.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from faiss_qama.quantizer.calibration import OVERSAMPLES
from faiss_qama.training import FitConfig, fit

PICTURES = Path(__file__).parent / "pictures"
GREY, BLUE, ORANGE = "#777777", "#3b82f6", "#e8770c"  # legible on white and on black
STYLE = {
    "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "axes.spines.top": False, "axes.spines.right": False, "font.size": 11, "svg.hashsalt": "concepts",
}  # fmt: skip


def vectors(n: int, seed: int, d: int = 128) -> np.ndarray:
    """Return n unit vectors around clusters, whose spectrum decays."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(0)
    centres = world.standard_normal((200, d)) / np.sqrt(1 + np.arange(d))
    x = centres[rng.integers(200, size=n)] + 0.6 * rng.standard_normal((n, d)) / np.sqrt(1 + np.arange(d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def save(figure: Figure, name: str) -> None:
    """Write a picture without a background, and without a date."""
    figure.savefig(PICTURES / f"{name}.svg", transparent=True, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draw them all."""
    x, xq = vectors(20_000, 1), vectors(100, 2)
    quantizer = fit(x, config=FitConfig(layout="2x64"), queries=vectors(700, 3))

    z, cuts = quantizer.transform(x)[:, 0], quantizer.thresholds[0]
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    axes.hist(z, bins=120, color=BLUE, alpha=0.5)
    edges = [z.min(), *cuts, z.max()]
    for cut in cuts:
        axes.axvline(cut, color=ORANGE)
    for level in range(4):
        bits = "1" * level + "0" * (3 - level)
        middle = (edges[level] + edges[level + 1]) / 2
        axes.text(middle, 1.02, f"level {level}\n{bits}", ha="center", transform=axes.get_xaxis_transform())
    axes.set(xlabel="a component after the transform", yticks=[])
    save(figure, "levels")

    code, query = quantizer.encode(x[:2000]), xq[0]
    exact = x[:2000] @ query
    bits, asked = (np.unpackbits(c, axis=1) for c in (code, quantizer.encode_queries(xq[:1])))
    hamming = -np.count_nonzero(bits != asked, axis=1)
    figure, both = plt.subplots(1, 2, figsize=(7, 3), layout="constrained", sharex=True)
    for axes, score, title in zip(
        both, (hamming, quantizer.decode(code) @ query), ("Hamming", "asymmetric"), strict=True
    ):
        axes.scatter(exact, score, s=4, rasterized=True, color=BLUE, alpha=0.4, linewidths=0)
        axes.set(
            xticks=[-0.5, 0, 0.5],
            title=f"{title}, correlation {np.corrcoef(exact, score)[0, 1]:.3f}",
            xlabel="exact inner product",
            yticks=[],
        )
    both[0].set_ylabel("score")
    save(figure, "scores")

    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    for curve, name, colour in (
        (quantizer.calibration.floats[1], "rescored from floats", BLUE),
        (quantizer.calibration.codes[1], "rescored from codes", ORANGE),
    ):
        axes.plot(OVERSAMPLES, curve, color=colour, label=name, linewidth=2)
    axes.axhline(0.95, color=GREY, linestyle=":")
    axes.set(xscale="log", xlabel="oversample", ylabel="recall@10", xlim=(1, 200))
    axes.legend(frameon=False, loc="lower right")
    save(figure, "calibration")

    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    numbers, spread = np.arange(128), fit(x, config=FitConfig(layout="2x128", rotation="none")).transform(x).std(axis=0)
    left.bar(numbers, spread, width=1, color=np.where(numbers < 32, ORANGE, np.where(numbers < 96, BLUE, "#cccccc")))
    left.text(34, spread[8], "2x32,1x64", color=GREY)
    left.set(xlabel="component", ylabel="spread", yticks=[])
    whole = x - x.mean(axis=0)
    for name, colour in (("2x32", ORANGE), ("2x32+2x64", BLUE)):
        rest = x - fit(x, config=FitConfig(layout=name)).encode_decode(x)
        right.plot(numbers, _spectrum(rest), color=colour, label=f"left over by {name}", linewidth=2)
    right.plot(numbers, _spectrum(whole), color=GREY, label="the corpus", linewidth=1)
    right.set(xlabel="principal component", yticks=[])
    right.legend(frameon=False)
    save(figure, "layouts")


def _spectrum(x: np.ndarray) -> np.ndarray:
    """Return the spread of each principal component, falling."""
    return np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(x.T))[::-1], 0))


if __name__ == "__main__":
    plt.rcParams.update(STYLE)
    main()
