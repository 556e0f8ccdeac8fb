"""How a photograph was taken: brightness, sharpness, size; and whether a new one differs in that from all of training.

A lamp that ages, a lens that is moved, a camera that is replaced: the part is the same and every score rises. Then a
threshold from before means little, which a person should read beside the verdict.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

WORDS = {"brightness": ("darker", "brighter"), "sharpness": ("blurred", "sharper")}
MARGIN = 0.1  # of the value itself, beyond the range of training, that photographs may differ by
EVERY = 4  # row and column that is looked at
SHARE = 0.5  # of the range, on top of that: no test image of MVTec's bottle or of magnetic tiles is beyond


def measure(images: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """(B, H, W, 3) uint8 -> (B, 2) float32, computed on a device: mean brightness, 0 to 255, and sharpness.

    Sharpness is the mean step from a pixel to the next over that from a pixel to the fourth: 0 to about 1, whatever the
    contrast. A blurred photograph rises slowly.
    """
    there = torch.from_numpy(images).to(device)
    lines = [there[:, ::EVERY], there[:, :, ::EVERY].transpose(1, 2)]  # rows, and columns: some say enough
    grey = [some.mean(3, dtype=torch.float32) for some in lines]
    near, far = (sum((x[..., n:] - x[..., :-n]).abs_().mean((1, 2)) for x in grey) for n in (1, 4))
    return torch.stack([grey[0].mean((1, 2)), near / far.clamp(min=1e-6)], dim=1).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Appearance:
    """What good photographs are like.

    values: (n, 2) as `measure` gives it. sizes: (n, 2) height and width of the photographs as they are shown.
    """

    values: np.ndarray
    sizes: np.ndarray

    def remarks(self, values: np.ndarray, sizes: np.ndarray) -> list[str]:
        """(N, 2), (N, 2) of others -> for each what sets it apart from all of these, "" if nothing does."""
        counts = Counter(map(tuple, self.sizes.tolist()))
        (usual, most), *_ = counts.most_common(1)
        lows, highs = self._ranges()
        found = []
        for value, size in zip(values, sizes.tolist(), strict=True):
            words = []
            for (name, (less, more)), x, low, high in zip(WORDS.items(), value, lows, highs, strict=True):
                if not low <= x <= high:
                    mean = self.values[:, list(WORDS).index(name)].mean()
                    words.append(f"{less if x < low else more} than all training images ({name} {x / mean:.0%})")
            if tuple(size) not in counts and 2 * most > len(self.sizes):  # not where all sizes differ
                words.append("of another size, {1}x{0}, than all training images ({3}x{2})".format(*size, *usual))
            found.append("; ".join(words))
        return found

    def _ranges(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.values.min(axis=0), self.values.max(axis=0)
        room = SHARE * (high - low)
        return (low - room) * (1 - MARGIN), (high + room) * (1 + MARGIN)

    def joined(self, other: "Appearance") -> "Appearance":
        """These and others."""
        return Appearance(np.concatenate([self.values, other.values]), np.concatenate([self.sizes, other.sizes]))

    def arrays(self) -> dict[str, np.ndarray]:
        """How it is stored, by key."""
        return {"appearance": self.values, "photograph_sizes": self.sizes}

    @classmethod
    def of(cls, stored: Mapping[str, np.ndarray]) -> "Appearance | None":
        """What `arrays` gave; None where nothing is stored."""
        return cls(stored["appearance"], stored["photograph_sizes"]) if "appearance" in stored else None
