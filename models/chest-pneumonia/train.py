"""From the published data set to all that `stepwedge package build` makes the shipped package of.

How: models/README.md.
Weights and simulated patients that are there already are kept; delete them to make them again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from folds import CLASSES, label_index, read_rows, tensors
from learn import SIDE, plain_spec, train, training_images
from network import Network
from principal import write_simulator
from release import export, write_golden_images, write_labels

HERE = Path(__file__).parent
EPOCHS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and labels.csv")
    parser.add_argument("--weights", type=Path, required=True, help="where the trained weights are or go")
    parser.add_argument(
        "--simulated", type=Path, default=HERE / "simulated.npz", help="where the simulated patients go"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for model.onnx, labels.csv and the golden images"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = read_rows(arguments.data)
    chosen = [row for row in rows if row.fold == "train"]
    if not arguments.weights.exists():
        network = train(training_images(arguments.data, chosen), label_index(chosen), EPOCHS)
        torch.save(network.state_dict(), arguments.weights)
    if not arguments.simulated.exists():
        write_simulator(
            arguments.simulated, tensors(arguments.data, chosen, plain_spec(SIDE))[:, 0], label_index(chosen)
        )
    model = Network(len(CLASSES)).eval()
    model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    arguments.out.mkdir(parents=True, exist_ok=True)
    export(model, arguments.out / "model.onnx")
    write_labels(arguments.out / "labels.csv", rows)
    write_golden_images(arguments.out / "golden", arguments.simulated)


if __name__ == "__main__":
    main()
