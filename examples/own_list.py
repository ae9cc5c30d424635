"""A format of lists of your own: a tab-separated file of an archive, with times as minutes:seconds.

    avssl prep index --plugin examples/own_list.py archive.tsv --format archive --media VIDEOS --out corpus.jsonl

Each row: a file below --media, begin, end, labels with commas between: `tape7.mp4 0:05 1:30 dog,rain`.
"""

import csv

from data_prep.index.lists.formats import register_list_format
from data_prep.index.lists.row import BadRow, ListedFile


def seconds(text: str) -> float:
    minutes, _, rest = text.rpartition(":")
    return 60 * float(minutes or 0) + float(rest)


@register_list_format("archive")
def archive(path):
    with path.open(newline="", encoding="utf-8") as file:
        for number, cells in enumerate(csv.reader(file, delimiter="\t"), start=1):
            try:
                name, begin, end, labels = cells
                segment = seconds(begin), seconds(end)
            except ValueError as error:
                yield BadRow(f"line {number}", f"is not file, begin, end, labels with tabs between: {error}")
                continue
            yield ListedFile(path=name, segment=segment, labels={"label": labels.split(",")})
