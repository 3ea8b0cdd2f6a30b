"""Train a small network in float, then on fake-quantized values, convert it, and compare the accuracies.

The task is made up and seeded: an image of noise with one bright bar in it, and the class says how the bar lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import qlib

CLASSES = 4
SIZE = 12
BATCH = 64


@dataclass(frozen=True)
class Result:
    """The share of test images that each form classifies rightly, and by how much the final form lies off at most."""

    float_accuracy: float
    trained_accuracy: float
    final_accuracy: float
    largest_difference: float


def images(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` images (count, 1, SIZE, SIZE) and their classes: a bar that lies flat, upright or along a diagonal."""
    classes = torch.randint(CLASSES, (count,), generator=generator)
    x = torch.randn(count, 1, SIZE, SIZE, generator=generator) * 0.6
    places = torch.randint(2, SIZE - 2, (count,), generator=generator)
    for image, kind, place in zip(x, classes.tolist(), places.tolist(), strict=True):
        line = torch.arange(SIZE)
        rows, columns = (
            (torch.full_like(line, place), line),
            (line, torch.full_like(line, place)),
            (line, (line + place) % SIZE),
            (line, (place - line) % SIZE),
        )[kind]
        image[0, rows, columns] += 1.2
    return x, classes


def network() -> nn.Module:
    """Two convolutions with batch norms, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, CLASSES),
    )


def train(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, rate: float) -> None:
    """Minimise the cross entropy by stochastic gradient descent with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    x, classes = data
    for _ in range(epochs):
        for start in range(0, len(x), BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[start : start + BATCH]), classes[start : start + BATCH])
            loss.backward()
            optimizer.step()


def accuracy(model: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor]) -> float:
    """The share of images whose greatest output is their class's."""
    x, classes = data
    with torch.no_grad():
        found = torch.cat([model(batch).argmax(1) for batch in x.split(BATCH)])
    return float((found == classes).float().mean())


def run(train_batches: int = 40, test_batches: int = 32, epochs: int = 6) -> Result:
    """The whole way from an untrained network to integers; every random number follows from one seed."""
    generator = torch.Generator().manual_seed(0)
    train_data, test_data = (images(n * BATCH, generator) for n in (train_batches, test_batches))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network()
    train(model.train(), train_data, epochs, 0.02)

    captured = qlib.capture(model, (train_data[0][:BATCH],))
    prepared = qlib.prepare_qat(captured, "qat")
    train(prepared, train_data, max(epochs // 3, 1), 0.005)
    prepared.apply(qlib.freeze_bn_stats).apply(qlib.disable_observer)
    train(prepared, train_data, 1, 0.002)

    prepared.eval()
    final = qlib.lower(qlib.convert(prepared))
    with torch.no_grad():
        apart = (prepared(test_data[0][:BATCH]) - final(test_data[0][:BATCH])).abs().max()
    return Result(
        accuracy(model.eval(), test_data), accuracy(prepared, test_data), accuracy(final, test_data), float(apart)
    )


def main() -> None:
    """Print the accuracies of the float, the fake-quantized and the final model, and their differences."""
    result = run()
    print(f"float           {result.float_accuracy:7.2%}")
    difference = result.trained_accuracy - result.float_accuracy
    print(f"fake-quantized  {result.trained_accuracy:7.2%}  {difference:+.2%} against float")
    difference = result.final_accuracy - result.float_accuracy
    print(f"final, in int8  {result.final_accuracy:7.2%}  {difference:+.2%} against float")
    print(f"largest difference of an output, fake-quantized against final: {result.largest_difference:.3g}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
