"""Probes of frozen features: classifiers fitted to the hidden states of any model (Zheng et al. 2024, arXiv
2312.07887), and probing tasks of whether one vector for a sequence holds its length, content, order and class (Papreja
et al. 2019, arXiv 1907.01098)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError, check_choice
from segue.mixers.layout import Layout, gather_nodes
from segue.models.classify import ClassHead, CosineHead, LinearHead, PrototypeHead, running_mean

PROBES = ("linear", "cosine", "prototype", "cosine prototype", "logistic")
RIDGE = 1e-3  # of the logistic probe: half of it times the squared weights is added to the mean cross-entropy


@torch.no_grad()
def features_of(model: Any, tokens: Tensor, last: Tensor | None = None, pool: str = "", rows: int = 64) -> Tensor:
    """(B, D) features of rows: the hidden vector at each row's last element.

    model: a `Stack`, a `Classifier`, or anything `Decodable` that returns hidden states (compiled, Hugging Face); an
        `nn.Module` is put in evaluation mode, and left in it.
    tokens: (B, T). last: (B,) long, the index of each row's last element (default: T - 1), behind which is padding.
    pool: "mean" for the mean of all vectors up to there. rows: batch size.
    """
    if isinstance(model, nn.Module):
        model.eval()
    last = torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device) if last is None else last
    features = []
    for batch, index in zip(tokens.split(rows), last.split(rows)):
        layout = Layout.of(batch)
        hidden = model.hidden(batch, layout) if hasattr(model, "hidden") else \
            model.extend(batch, model.init_state(len(batch))).hidden
        hidden = running_mean(hidden, layout) if pool == "mean" else hidden
        features.append(gather_nodes(hidden, index[:, None])[:, 0])
    return torch.cat(features)


def fitted_head(kind: str, features: Tensor, labels: Tensor, classes: int, *, epochs: int = 20, rows: int = 128,
                rate: float = 1e-3, temperature: float = 0.09, seed: int = 0) -> ClassHead:
    """A head of a kind in PROBES, fitted to features (M, D) with classes (M,).

    Prototypes are class means. Linear and cosine heads are trained by Adam: epochs, rows (batch size), rate (learning
    rate); temperature: of the cosine head. "logistic" is ridge-penalised logistic regression on standardised features,
    by L-BFGS: it is deterministic.
    """
    check_choice("probe", kind, PROBES)
    width = features.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind.endswith("prototype"):
            head: ClassHead = PrototypeHead(width, classes, cosine=kind.startswith("cosine")).to(features)
            head.add_examples(features, labels)
            return head
        head = LinearHead(width, classes) if kind in ("linear", "logistic") else CosineHead(width, classes, temperature)
        head = head.to(features)
        if kind == "logistic":
            return _logistic(head, features, labels)
        adam = torch.optim.Adam(head.parameters(), lr=rate)
        for _ in range(epochs):
            for chosen in torch.randperm(len(labels)).split(rows):
                adam.zero_grad()
                F.cross_entropy(head(features[chosen]), labels[chosen]).backward()
                adam.step()
    return head.requires_grad_(False)


def minimise(parameters: Sequence[Tensor], loss: Callable[[], Tensor], steps: int) -> None:
    """Minimise `loss()` over these parameters, in place, by at most `steps` steps of L-BFGS: deterministic."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)


def _logistic(head: Any, features: Tensor, labels: Tensor) -> ClassHead:
    """Fits a linear head by multinomial logistic regression on standardised features, (M, D) with (M,)."""
    mean, deviation = features.mean(0), features.std(0, correction=0)
    deviation = torch.where(deviation > 1e-6 * features.abs().amax(), deviation, torch.inf)  # constant: weight 0
    scaled = (features - mean) / deviation
    weight, bias = (torch.zeros_like(parameter, requires_grad=True) for parameter in (head.weight, head.bias))
    minimise([weight, bias], lambda: F.cross_entropy(scaled @ weight.mT + bias, labels) +
             RIDGE * weight.square().sum() / 2, 200)
    head.weight.data = weight.detach() / deviation
    head.bias.data = bias.detach() - head.weight.data @ mean
    return head.requires_grad_(False)


def probe(kind: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], **choices: Any) -> float:
    """Test accuracy of a head of that kind fitted to the training rows.

    train, test: features (M, D) and classes (M,). choices: of `fitted_head`.
    """
    classes = int(max(train[1].max(), test[1].max())) + 1
    with torch.enable_grad():
        head = fitted_head(kind, train[0].detach(), train[1], classes, **choices)
    with torch.no_grad():
        return float((head(test[0]).argmax(-1) == test[1]).float().mean())


def shuffled_probe(kind: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], times: int = 20,
                   seed: int = 0, **choices: Any) -> tuple[float, list[float]]:
    """The accuracy of `probe`, and those of `times` probes with shuffled training labels: the chance level of a probe
    of these features (the control task of Hewitt & Liang 2019, arXiv 1909.03368)."""
    generator = torch.Generator().manual_seed(seed)
    accuracy = probe(kind, train, test, seed=seed, **choices)
    orders = [torch.randperm(len(train[1]), generator=generator) for _ in range(times)]
    return accuracy, [probe(kind, (train[0], train[1][order]), test, seed=seed, **choices) for order in orders]


# --- probing tasks of sequence vectors ------------------------------------------------------------------------------

Encoder = Callable[[Sequence[np.ndarray]], np.ndarray]
Rows = list[np.ndarray]


@dataclass(frozen=True)
class Question:
    """A probing task. rows: N sequences of ids. labels: (N,), their classes, from 0. groups: (N,), rows of one group
    stay on one side of a split."""

    name: str
    rows: Rows
    labels: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Answer:
    """The result of a probing task on held-out rows. accuracy; balanced: the mean recall over classes. by_majority,
    by_length: accuracies of the most frequent training class, and of a probe of the length alone. classes, tested:
    numbers of classes and of held-out rows."""

    name: str
    accuracy: float
    balanced: float
    by_majority: float
    by_length: float
    classes: int
    tested: int


def content_groups(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(N,): the same group for equal rows."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(np.asarray(row, np.int64).tobytes(), len(numbers)) for row in rows])


def question(name: str, rows: Sequence[np.ndarray], labels: Sequence[int] | np.ndarray,
             groups: np.ndarray | None = None) -> Question:
    """A task with given classes. labels: -1 leaves a row out. groups: by default equal rows form one."""
    kept = np.flatnonzero(np.asarray(labels) >= 0).tolist()
    groups = content_groups(rows) if groups is None else np.asarray(groups)
    return Question(name, [np.asarray(rows[i]) for i in kept], np.asarray(labels)[kept].astype(np.int64), groups[kept])


def length_question(rows: Sequence[np.ndarray], bins: int = 10, groups: np.ndarray | None = None) -> Question:
    """The length of a row, in `bins` classes with about as many rows each."""
    lengths = np.array([len(row) for row in rows])
    edges = np.unique(np.quantile(lengths, np.arange(1, bins) / bins))
    return question("length", rows, np.searchsorted(edges, lengths, side="right"), groups)


def content_question(rows: Sequence[np.ndarray], elements: Sequence[int] | int = 20,
                     groups: np.ndarray | None = None) -> Question:
    """Which of some elements is in a row; of rows with exactly one of them. elements: ids, or how many of those that
    are in most rows."""
    if isinstance(elements, int):
        frequency = Counter(element for row in rows for element in np.unique(row).tolist())
        elements = [element for element, _ in frequency.most_common(elements)]
    present = [np.flatnonzero(np.isin(elements, row)) for row in rows]
    return question("content", rows, [int(index[0]) if len(index) == 1 else -1 for index in present], groups)


def permuted(row: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A copy of the row with the elements at a random share of its positions, at least two, permuted."""
    row, count = np.array(row), max(2, round(share * len(row)))
    positions = rng.permutation(len(row))[:count]
    row[np.sort(positions)] = row[positions]
    return row


def order_question(rows: Sequence[np.ndarray], share: float = 1.0, way: str = "shuffle", seed: int = 0,
                   groups: np.ndarray | None = None) -> Question:
    """Is a row in its order? Each row of two elements or more as it is (0), and with a `share` of its positions
    permuted (way "shuffle") or reversed (way "reverse") (1); both are in one group."""
    if way not in ("shuffle", "reverse") or not 0 < share <= 1:
        raise SegueError(f"order by '{way}' of a share {share}: choose shuffle or reverse, and a share above 0")
    rng = np.random.default_rng(seed)
    groups = content_groups(rows) if groups is None else np.asarray(groups)
    kept = [i for i, row in enumerate(rows) if len(row) > 1]
    original = [np.asarray(rows[i]) for i in kept]
    changed = [permuted(row, share, rng) if way == "shuffle" else row[::-1].copy() for row in original]
    return Question("order", original + changed, np.repeat([0, 1], len(kept)), np.tile(groups[kept], 2))


def grouped_split(groups: np.ndarray, fraction: float = 0.2, seed: int = 0) -> np.ndarray:
    """(N,) bool mask of held-out rows: at most a `fraction` of the rows, in random whole groups (N,); a group with more
    rows than that is never held out."""
    names, group = np.unique(groups, return_inverse=True)
    sizes, most = np.bincount(group), fraction * len(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[sizes[order] <= most]
    held_out = order[np.cumsum(sizes[order]) <= most]
    if not len(held_out) or len(held_out) == len(names):
        raise SegueError(f"{len(names)} groups cannot be split with {fraction:.0%} held out: give more groups")
    return np.isin(group, held_out)


def lengths_of(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 3): the length of each row, its logarithm and its inverse, as features for a linear head."""
    n = np.array([max(1, len(row)) for row in rows], float)
    return np.stack([n, np.log(n), 1 / n], 1)


def answer_question(encoder: Encoder, task: Question, fraction: float = 0.2, seed: int = 0, kind: str = "logistic"
                    ) -> Answer:
    """Fit a head of a kind in PROBES to an encoder's vectors of some rows, and test it on the held-out ones.

    encoder: rows -> (N, D), such as `partial(embed, model)` of any model (`segue.analysis.embedding`). fraction: of the
    rows held out, by groups.
    """
    held_out, labels = grouped_split(task.groups, fraction, seed), torch.from_numpy(task.labels)
    truth, classes = task.labels[held_out], int(labels.max()) + 1

    def correct_of(table: np.ndarray) -> np.ndarray:
        """(M,) bool, whether a head fitted to the training rows of a table is right on each held-out row."""
        features = torch.from_numpy(np.asarray(table, np.float64))
        with torch.enable_grad():
            head = fitted_head(kind, features[~held_out], labels[~held_out], classes, seed=seed)
        return head(features[held_out]).argmax(-1).numpy() == truth

    correct = correct_of(encoder(task.rows))
    majority = np.bincount(task.labels[~held_out]).argmax()
    balanced = float(np.mean([correct[truth == c].mean() for c in np.unique(truth)]))
    return Answer(task.name, float(correct.mean()), balanced, float((truth == majority).mean()),
                  float(correct_of(lengths_of(task.rows)).mean()), classes, len(truth))
