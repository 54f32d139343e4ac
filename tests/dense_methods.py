"""Every method's server written out: dense fp64 matrices, loops, full SVDs; nothing of fedsb.methods.

From the papers' equations, one function per rule. Factors of head h are columns h*r..(h+1)*r of B and those
rows of A; a client of rank r_i holds the leading r_i of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import scipy.linalg
from oracles import best_of_rank

Arrays = dict[str, np.ndarray]


@dataclass
class Answer:
    """What one client sent, by name, and what the server knows of it.

    trained: what it trained, by name, before its method made of it what it sent.
    """

    weight: float
    tensors: dict[str, np.ndarray]
    trained: Mapping[str, np.ndarray]
    heads: tuple[int, ...] | None = None


@dataclass
class Dense:
    """One layer at the server: the change of its base weight, and its factors.

    less: whether the factors count from what they started as.
    """

    B: np.ndarray
    A: np.ndarray
    R: np.ndarray | None
    less: bool = False
    F: np.ndarray | None = None
    base: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.base = np.zeros((len(self.B), self.A.shape[1]))
        self.start = self.B @ self.A if self.less else self.base

    def core(self) -> np.ndarray:
        k = len(self.A)
        if self.R is None:
            return np.eye(k) if self.F is None else self.F.T @ self.F
        heads, r, _ = self.R.shape
        core = np.zeros((k, k))
        for h in range(heads):
            core[h * r : (h + 1) * r, h * r : (h + 1) * r] = self.R[h]
        return core


@dataclass
class Oracle:
    """A method's global model over several layers, round by round."""

    method: str
    layers: dict[str, Dense]
    scale: float
    padding: str = "all"
    residual_rank: int | None = None
    deviation: float | None = None

    def total(self, layer: str) -> np.ndarray:
        part = self.layers[layer]
        return part.base + self.scale * (part.B @ part.core() @ part.A - part.start)

    def close_round(self, number: int, answers: Sequence[Answer]) -> None:
        rule = {
            "fed-sb": self._mean_cores,
            "lora-xs": self._mean_cores,
            "ravan": self._mean_cores,
            "fedit": self._mean_both,
            "la-lora": self._mean_both,
            "ffa-lora": self._mean_B,
            "fedsa-lora": self._mean_A,
            "fedsvd": self._mean_B_then_svd,
            "rolora": self._mean_B if number % 2 else self._mean_A,
            "flora": self._stack,
            "fedex-lora": self._mean_both_and_residual,
            "flexlora": self._svd_of_mean_product,
            "hetlora": self._norm_weighted,
            "fedrot-lora": partial(self._mean_of_turned, number),
            "lora-fair": self._mean_and_correction,
            "fedmomentum": self._svd_and_rest,
            "fr-lora": self._step_of_means,
            "florg": self._mean_of_grams,
            "fedask": self._even_svd_of_mean_B,
        }[self.method]
        rule(answers)

    def _mean_cores(self, answers: Sequence[Answer]) -> None:
        for name, part in self.layers.items():
            new = np.zeros_like(part.R)
            for where in np.ndindex(*new.shape):
                new[where] = self._core_entry(where, part.R[where], name, answers)
            part.R = new

    def _core_entry(self, where, before: float, name: str, answers: Sequence[Answer]) -> float:
        h, i, j = where
        total = weight = 0.0
        for answer in answers:
            sent = answer.tensors[f"{name}.R"]
            trained = list(answer.heads if answer.heads is not None else range(len(sent)))
            holds = i < sent.shape[1] and j < sent.shape[2]
            if holds and h in trained:
                total, weight = total + answer.weight * sent[trained.index(h), i, j], weight + answer.weight
            elif self.padding == "all":
                total, weight = total + answer.weight * (before if holds else 0.0), weight + answer.weight
        return total / weight if weight else before

    def _mean(self, factor: str, name: str, answers: Sequence[Answer], weights: Sequence[float]):
        """Entry by entry, over all or over those that hold it."""
        before = getattr(self.layers[name], factor)
        new = np.zeros_like(before)
        for i, j in np.ndindex(*before.shape):
            total = weight = 0.0
            for answer, w in zip(answers, weights, strict=True):
                sent = answer.tensors[f"{name}.{factor}"]
                holds = i < sent.shape[0] and j < sent.shape[1]
                if holds:
                    total += w * sent[i, j]
                if holds or self.padding == "all":
                    weight += w
            new[i, j] = total / weight if weight else before[i, j]
        return new

    def _mean_B(self, answers: Sequence[Answer]) -> None:
        for name, part in self.layers.items():
            part.B = self._mean("B", name, answers, [a.weight for a in answers])

    def _mean_A(self, answers: Sequence[Answer]) -> None:
        for name, part in self.layers.items():
            part.A = self._mean("A", name, answers, [a.weight for a in answers])

    def _mean_both(self, answers: Sequence[Answer]) -> None:
        left_out = whole = 0.0
        for name, part in self.layers.items():
            products = mean_product(name, answers)
            self._mean_layer(name, part, answers)
            left_out += ((products - part.B @ part.A) ** 2).sum()
            whole += (products**2).sum()
        self.deviation = float(np.sqrt(left_out / whole))

    def _mean_layer(self, name: str, part: Dense, answers: Sequence[Answer]) -> None:
        weights = [a.weight for a in answers]
        part.B, part.A = (self._mean(factor, name, answers, weights) for factor in "BA")

    def _mean_both_and_residual(self, answers: Sequence[Answer]) -> None:
        self._mean_both(answers)
        for name, part in self.layers.items():
            residual = mean_product(name, answers) - part.B @ part.A
            if self.residual_rank is not None:
                residual = best_of_rank(residual, self.residual_rank)
            part.base = part.base + self.scale * residual

    def _stack(self, answers: Sequence[Answer]) -> None:
        for name, part in self.layers.items():
            part.base = part.base + self.scale * mean_product(name, answers)
            part.B = np.zeros_like(part.B)

    def _svd_of_mean_product(self, answers: Sequence[Answer]) -> None:
        lost = whole = 0.0
        for name, part in self.layers.items():
            product = mean_product(name, answers)
            rank = len(part.A)
            U, S, Vh = np.linalg.svd(product, full_matrices=False)
            part.B, part.A = U[:, :rank] * S[:rank], Vh[:rank]
            lost, whole = lost + (S[rank:] ** 2).sum(), whole + (S**2).sum()
        self.deviation = float(np.sqrt(lost / whole))

    def _mean_B_then_svd(self, answers: Sequence[Answer]) -> None:
        self._mean_B(answers)
        for part in self.layers.values():
            rank = len(part.A)
            U, S, Vh = np.linalg.svd(part.B @ part.A, full_matrices=False)
            sign = np.sign(U[np.abs(U).argmax(0), range(U.shape[1])])
            part.B, part.A = (U * sign * S)[:, :rank], (Vh * sign[:, None])[:rank]

    def _mean_of_turned(self, number: int, answers: Sequence[Answer]) -> None:
        """Half of the way to the rotation that brings A (odd rounds) or B (even) nearest to the broadcast."""
        for answer in answers:
            for name, part in self.layers.items():
                B, A = answer.trained[f"{name}.B"], answer.trained[f"{name}.A"]
                Q = aligning_rotation(A.T, part.A.T) if number % 2 else aligning_rotation(B, part.B)
                Q = closest_orthogonal(0.5 * np.eye(len(Q)) + 0.5 * Q)
                answer.tensors |= {f"{name}.B": B @ Q, f"{name}.A": Q.T @ A}
        self._mean_both(answers)

    def _mean_and_correction(self, answers: Sequence[Answer], penalty: float = 0.01) -> None:
        """Each row of dB by least squares over the rows of A, with sqrt(penalty) I below them."""
        left_out = whole = 0.0
        for name, part in self.layers.items():
            product = mean_product(name, answers)
            self._mean_layer(name, part, answers)
            missing = product - part.B @ part.A
            system = np.vstack([part.A.T, np.sqrt(penalty) * np.eye(len(part.A))])
            sides = np.hstack([missing, np.zeros((len(part.B), len(part.A)))])
            part.B = part.B + np.linalg.lstsq(system, sides.T, rcond=None)[0].T
            left_out += ((product - part.B @ part.A) ** 2).sum()
            whole += (product**2).sum()
        self.deviation = float(np.sqrt(left_out / whole))

    def _svd_and_rest(self, answers: Sequence[Answer], energy: float = 0.9999) -> None:
        found, lost, whole = {}, 0.0, 0.0
        for name in self.layers:
            found[name] = np.linalg.svd(mean_product(name, answers), full_matrices=False)
        kept = 0
        for _, S, _ in found.values():
            count = 0
            while (S[:count] ** 2).sum() < energy * (S**2).sum():
                count += 1
            kept = max(kept, count)
        for name, part in self.layers.items():
            U, S, Vh = found[name]
            rank = len(part.A)
            part.B, part.A = U[:, :rank] * np.sqrt(S[:rank]), np.sqrt(S[:rank])[:, None] * Vh[:rank]
            part.base = part.base + self.scale * (U[:, rank:kept] * S[rank:kept]) @ Vh[rank:kept]
            lost, whole = lost + (S[rank:] ** 2).sum(), whole + (S**2).sum()
        self.deviation = float(np.sqrt(lost / whole))

    def _step_of_means(self, answers: Sequence[Answer]) -> None:
        left_out = whole = 0.0
        for name, part in self.layers.items():
            B0, A0, products = part.B, part.A, mean_product(name, answers)
            self._mean_layer(name, part, answers)
            part.base = part.base + self.scale * (part.B @ part.A - part.start)
            left_out += ((products - part.B @ part.A) ** 2).sum()
            whole += ((products - part.start) ** 2).sum()
            part.B, part.A = B0, A0
        self.deviation = float(np.sqrt(left_out / whole))

    def _mean_of_grams(self, answers: Sequence[Answer]) -> None:
        lost = whole = 0.0
        for name, part in self.layers.items():
            grams = [a.weight * a.tensors[f"{name}.F"].T @ a.tensors[f"{name}.F"] for a in answers]
            Q = sum(grams) / sum(a.weight for a in answers)
            values, vectors = np.linalg.eigh(Q)
            rank = len(part.F)
            found = np.sqrt(np.maximum(values[-rank:], 0))[:, None] * vectors[:, -rank:].T
            part.F = scipy.linalg.orthogonal_procrustes(found.T, part.F.T)[0].T @ found
            lost, whole = lost + ((Q - part.F.T @ part.F) ** 2).sum(), whole + (Q**2).sum()
        self.deviation = float(np.sqrt(lost / whole))

    def _even_svd_of_mean_B(self, answers: Sequence[Answer]) -> None:
        for name, part in self.layers.items():
            product = sum(a.weight * a.trained[f"{name}.B"] for a in answers) @ part.A
            U, S, Vh = np.linalg.svd(product / sum(a.weight for a in answers), full_matrices=False)
            U, Vh = U * (sign := np.sign(U[np.abs(U).argmax(0), range(U.shape[1])])), Vh * sign[:, None]
            rank = len(part.A)
            part.B, part.A = U[:, :rank] * np.sqrt(S[:rank]), np.sqrt(S[:rank])[:, None] * Vh[:rank]

    def _norm_weighted(self, answers: Sequence[Answer]) -> None:
        each = []
        for answer in answers:
            products = [answer.tensors[f"{name}.B"] @ answer.tensors[f"{name}.A"] for name in self.layers]
            each.append(np.sqrt(sum((product**2).sum() for product in products)))
        for name, part in self.layers.items():
            part.B, part.A = (self._mean(factor, name, answers, each) for factor in "BA")


def aligning_rotation(moved: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The rotation Q that brings moved @ Q nearest to fixed (Kabsch 1976); I where one is zero."""
    if not moved.any() or not fixed.any():
        return np.eye(moved.shape[1])
    overlap = moved.T @ fixed
    U, _, Vh = scipy.linalg.svd(overlap)
    signs = np.ones(len(U))
    signs[-1] = np.sign(np.linalg.det(U) * np.linalg.det(Vh))
    return U @ np.diag(signs) @ Vh


def closest_orthogonal(matrix: np.ndarray) -> np.ndarray:
    """The orthogonal factor of the polar decomposition, by Higham's iteration."""
    Q = matrix
    for _ in range(100):
        Q = (Q + np.linalg.inv(Q).T) / 2
    return Q


def mean_product(name: str, answers: Sequence[Answer]) -> np.ndarray:
    """sum(w_i B_i A_i) / sum(w_i)."""
    total = sum(a.weight * a.tensors[f"{name}.B"] @ a.tensors[f"{name}.A"] for a in answers)
    return total / sum(a.weight for a in answers)
