"""MetaBIN in plain PyTorch, written from the paper alone: what our JAX code is compared with.

The benchmark experiments/benchmarks/iteration.py times the same code, so it stays natural: no trick of ours is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_nets import ReID, build, from_flax, load_flax

__all__ = ["Batch", "ReID", "Trainer", "build", "from_flax", "load_flax"]

# --- losses: Eq. 2, 3, 6, 7 ---


def cross_entropy(logits: Tensor, pid: Tensor, smoothing: float = 0.1) -> Tensor:
    return F.cross_entropy(logits, pid, label_smoothing=smoothing)


def distances(feature: Tensor) -> Tensor:
    square = feature.square().sum(1)
    return (square[:, None] + square[None, :] - 2 * feature @ feature.T).clamp(min=1e-12).sqrt()


def triplet(feature: Tensor, pid: Tensor, margin: float = 0.3) -> Tensor:
    distance, same = distances(feature), pid[:, None] == pid[None, :]
    farthest_positive = distance.masked_fill(~same, -torch.inf).amax(1)
    nearest_negative = distance.masked_fill(same, torch.inf).amin(1)
    return F.relu(farthest_positive - nearest_negative + margin).mean()


def scatter(feature: Tensor, domain: Tensor, normalize_first: bool = False) -> Tensor:
    """Mean over samples; with `normalize_first` centroids of unit vectors and the mean of domain means."""
    members = F.normalize(feature) if normalize_first else feature
    cosines = []
    for k in domain.unique():
        centroid = members[domain == k].mean(0, keepdim=True)
        cosines.append(F.cosine_similarity(feature[domain == k], centroid))
    return torch.stack([c.mean() for c in cosines]).mean() if normalize_first else torch.cat(cosines).mean()


def shuffle(feature: Tensor, pid: Tensor, domain: Tensor) -> Tensor:
    distance, same_domain = distances(feature), domain[:, None] == domain[None, :]
    intra = same_domain & (pid[:, None] != pid[None, :])
    farthest_inter = distance.masked_fill(same_domain, -torch.inf).amax(1)
    nearest_intra = distance.masked_fill(~intra, torch.inf).amin(1)
    return F.softplus(farthest_inter - nearest_intra).mean()


# --- schedules ---


def triangular(low: float, high: float, up: int, down: int) -> Callable[[int], float]:
    def value(step: int) -> float:
        step %= up + down
        rise = step / up if step < up else (up + down - step) / down
        return low + (high - low) * rise

    return value


def warmup_step(base: float, warmup: int, boundaries: Iterable[int], factor: float, start: float):
    def value(step: int) -> float:
        ramp = start + (1 - start) * step / warmup if step < warmup else 1.0
        return base * ramp * factor ** sum(step >= boundary for boundary in boundaries)

    return value


# --- Algorithm 1 ---


class Batch(NamedTuple):
    image: Tensor  # [N, 3, H, W]
    pid: Tensor  # int64 [N]
    domain: Tensor  # int64 [N]


def meta_train_loss(feature: Tensor, batch: Batch) -> Tensor:  # Eq. 8
    return scatter(feature, batch.domain) + shuffle(feature, batch.pid, batch.domain) + triplet(feature, batch.pid)


def meta_test_loss(feature: Tensor, batch: Batch) -> Tensor:  # Eq. 10
    return triplet(feature, batch.pid)


def straight_through_clip(x: Tensor) -> Tensor:
    return x + (x.clamp(0, 1) - x).detach()


class Trainer:
    """Base update, inner update, meta update; `alpha` and `beta` are functions of the step.

    `clip` keeps the inner rho' in [0, 1]. BNNeck's bias is never trained.
    """

    def __init__(
        self,
        model: ReID,
        alpha: Callable[[int], float],
        beta: Callable[[int], float],
        gamma: float = 0.1,
        first_order: bool = True,
        bias_lr_factor: float = 1.0,
        clip: Callable[[Tensor], Tensor] = straight_through_clip,
    ):
        self.model, self.alpha, self.beta, self.gamma = model, alpha, beta, gamma
        self.first_order, self.bias_lr_factor, self.clip, self.step = first_order, bias_lr_factor, clip, 0
        named = {name: p for name, p in model.named_parameters() if name != "bnneck.bias"}
        self.rho = {name: p for name, p in named.items() if name.endswith("rho")}
        self.params = {name: p for name, p in named.items() if name not in self.rho}
        groups = [
            {
                "params": [p for name, p in self.params.items() if name.endswith("bias") == is_bias],
                "bias": is_bias,
            }
            for is_bias in (False, True)
        ]
        self.optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)

    def _train_only(self, wanted: dict[str, Tensor]) -> None:
        for p in (*self.params.values(), *self.rho.values()):
            p.requires_grad_(False)
        for p in wanted.values():
            p.requires_grad_(True)

    def base_update(self, batch: Batch) -> Tensor:
        self._train_only(self.params)
        feature, _, logits = self.model(batch.image)
        loss = cross_entropy(logits, batch.pid) + triplet(feature, batch.pid)
        for group in self.optimizer.param_groups:
            group["lr"] = self.alpha(self.step) * (self.bias_lr_factor if group["bias"] else 1.0)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _feature(self, rho: dict[str, Tensor], image: Tensor) -> Tensor:
        """The feature with `rho` in place; running statistics go to copies that are thrown away."""
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        return torch.func.functional_call(self.model, {**rho, **buffers}, (image,))[0]

    def meta_gradient(self, meta_train: Batch, meta_test: Batch) -> dict[str, Tensor]:
        self._train_only(self.rho)
        inner_loss = meta_train_loss(self._feature(self.rho, meta_train.image), meta_train)
        inner = torch.autograd.grad(inner_loss, list(self.rho.values()), create_graph=not self.first_order)
        beta = self.beta(self.step)
        adapted = {name: self.clip(rho - beta * g) for (name, rho), g in zip(self.rho.items(), inner, strict=True)}
        outer_loss = meta_test_loss(self._feature(adapted, meta_test.image), meta_test)
        return dict(zip(self.rho, torch.autograd.grad(outer_loss, list(self.rho.values())), strict=True))

    @torch.no_grad()
    def _step_rho(self, gradient: dict[str, Tensor]) -> None:
        for name, rho in self.rho.items():
            rho.sub_(self.gamma * gradient[name]).clamp_(0, 1)

    def iteration(self, base: Batch, meta_train: Batch, meta_test: Batch) -> Tensor:
        """One iteration of Algorithm 1; returns the base loss."""
        self.model.train()
        loss = self.base_update(base)
        self._step_rho(self.meta_gradient(meta_train, meta_test))
        self.step += 1
        return loss
