"""A training loop of your own on anybody's Dataset, with a loss of avssl: python -m examples.own_loop"""

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import FakeData
from torchvision.models import resnet18
from torchvision.transforms import v2

from avssl.losses import nt_xent

augment = v2.Compose(
    [
        v2.ToImage(),
        v2.RandomResizedCrop(32, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        v2.ToDtype(torch.float32, scale=True),
    ]
)


def train(images: Dataset, encoder: torch.nn.Module, epochs: int = 2, batch_size: int = 32) -> list[float]:
    """SimCLR: two augmented views of each image are to find each other in the batch. The losses of all steps."""
    loader = DataLoader(images, batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(epochs):
        for (first, second), _label in loader:
            loss = nt_xent(encoder(first), encoder(second), temperature=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    images = FakeData(size=128, image_size=(3, 40, 40), transform=lambda image: (augment(image), augment(image)))
    print(train(images, resnet18(num_classes=64)))
