"""Embeddings as NumPy arrays and a pandas DataFrame, with a plot: python -m examples.embeddings_to_pandas embeddings/

`avssl embed RUN VIDEOS --out embeddings/` writes such a folder. Needs pandas and matplotlib.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

from avssl.embedding import EmbeddingTable


def main(folder: str, plot: str = "embeddings.png") -> pd.DataFrame:
    """Print the windows with their nearest neighbor, and plot them on two principal components."""
    mpl.use("Agg")  # draw into a file, without a window
    table = EmbeddingTable.read(Path(folder)).pool_by_key()  # one row per clip; without it, one per window
    modality = "video" if table.has_video.any() else "image"
    frame = table.to_pandas()
    frame = frame[frame[f"has_{modality}"]].copy()  # clips without the modality have no vector
    rows = np.stack(frame.pop(f"{modality}_embedding"))  # float32 (n, D)
    frame = frame.reindex(columns=["key", "label"]).fillna("")
    similarity = rows @ rows.T - 2 * np.eye(len(rows))
    frame["nearest"] = frame["key"].to_numpy()[similarity.argmax(axis=1)]
    centered = rows - rows.mean(axis=0)
    frame[["x", "y"]] = centered @ np.linalg.svd(centered, full_matrices=False)[2][:2].T
    axes = frame.plot.scatter("x", "y", c=frame["label"].astype("category").cat.codes, cmap="tab10")
    axes.figure.savefig(plot)
    print(frame.head())
    return frame


if __name__ == "__main__":
    main(*sys.argv[1:])
