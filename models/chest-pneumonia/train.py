"""Reproduce the shipped package from the published data set. How: models/README.md.

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
from release import release

HERE = Path(__file__).parent
EPOCHS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and labels.csv")
    parser.add_argument("--weights", type=Path, required=True, help="where the trained weights are or go")
    parser.add_argument(
        "--simulated", type=Path, default=HERE / "simulated.npz", help="where the simulated patients go"
    )
    parser.add_argument("--out", type=Path, default=HERE / "1.0.0", help="the package's folder")
    parser.add_argument("--policy", type=Path, default=HERE / "policy.yaml")
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
    package = release(model, arguments.data, rows, arguments.simulated, arguments.policy, arguments.out)
    print(f"{package.path}: {package.reference.name} {package.reference.version}, digest {package.digest}")


if __name__ == "__main__":
    main()
