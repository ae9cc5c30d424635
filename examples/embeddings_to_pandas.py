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
    rows = table.video_embedding if table.video_embedding is not None else table.image_embedding  # float32 (n, D)
    is_present = ~np.isnan(rows).any(axis=1)  # clips without the modality have no vector
    rows = rows[is_present]
    frame = pd.DataFrame({"key": table.keys, "labels": table.labels})[is_present]
    frame["label"] = [", ".join(labels.get("label", [])) for labels in frame.pop("labels")]
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
