"""Plots learning curves, the `log.csv` of runs, on one page: the losses of each run over the samples that it saw.

python examples/plot_curves.py model_cards/baton-nano/curves/*.csv --output model_cards/baton-nano/curves.webp

Needs matplotlib: pip install matplotlib
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
import csv
import io
import math
from pathlib import Path

import matplotlib
from PIL import Image


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import EngFormatter  # noqa: E402


COLUMNS = 4


def read(path: Path) -> tuple[list[float], dict[str, list[float]]]:
    """Samples seen, and what was logged at each point: of the transformer's many columns the sums over all tasks."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "samples" not in rows[0]:
        raise SystemExit(f"{path} is not the log.csv of a run.")
    names = list(rows[0])[4:]
    plain = [name for name in names if "." not in name and name not in ("moments", "log_variance")]
    return [float(row["samples"]) for row in rows], {name: [float(row[name]) for row in rows] for name in plain}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    arguments = parser.parse_args()

    num_rows = math.ceil(len(arguments.logs) / COLUMNS)
    figure, axes = plt.subplots(num_rows, COLUMNS, figsize=(3 * COLUMNS, 2.4 * num_rows), squeeze=False)
    for axis, path in zip(axes.flat, arguments.logs, strict=False):
        samples, losses = read(path)
        for name, values in losses.items():
            axis.plot(samples, values, label=name, linewidth=1)
        axis.set(title=path.stem, yscale="log")
        axis.title.set_fontsize(9)
        axis.tick_params(labelsize=6, which="both")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.legend(fontsize=6, frameon=False)
    for axis in axes.flat[len(arguments.logs) :]:
        axis.remove()
    figure.supxlabel("samples seen", fontsize=9)
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=72, format="png")
    few_colours = Image.open(drawn).quantize(32)  # enough for lines
    few_colours.save(arguments.output, optimize=True, lossless=True, method=6)
    print(arguments.output)
