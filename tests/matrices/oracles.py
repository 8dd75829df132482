"""Plain Python float64 loops: what the library must give, written without it.

Plug-ins are described by the plain dictionaries that `to_dict` gives. The oracle of a policy
answers True, False, or None where the statistic is within rounding of its threshold; `exits` turns
the answers of one row into the set of steps at which it may leave.

The output of a step is a list of cells, each the numbers of one answer: one cell an example, or one
a real position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

Spec = dict[str, Any]
Cells = list[list[float]]
Answer = bool | None
NEAR = 1e-5
MASK = (1 << 64) - 1

# -- the halting distribution ------------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def pmf(logits: Sequence[float]) -> list[float]:
    """p(n) = λ_n Π_{j<n} (1 − λ_j); the last step takes what remains."""
    alive = 1.0
    p = []
    for logit in logits[:-1]:
        p.append(alive * sigmoid(logit))
        alive *= sigmoid(-logit)
    return [*p, alive]


def lost_pmf(logits: Sequence[float], floor: float = 0.0) -> tuple[list[float], list[bool]]:
    """PALBERT's released code: the masses of the steps, and which of them are the floor."""
    alive = 1.0
    total = 0.0
    p = list[float]()
    floored = list[bool]()
    for logit in logits:
        floored.append(floor > 0 and total > 1.0 - floor)
        p.append(floor / len(logits) if floored[-1] else alive * sigmoid(logit))
        alive *= sigmoid(-logit)
        total += p[-1]
    return p, floored


def cdf(p: Sequence[float]) -> list[float]:
    total = 0.0
    table = []
    for mass in p[:-1]:
        total += mass
        table.append(min(total, 1.0))
    return [*table, 1.0]


def mean(p: Sequence[float]) -> float:
    return math.fsum(n * mass for n, mass in enumerate(p, start=1))


def variance(p: Sequence[float]) -> float:
    return math.fsum(mass * (n - mean(p)) ** 2 for n, mass in enumerate(p, start=1))


def entropy(p: Sequence[float]) -> float:
    return -math.fsum(mass * math.log(mass) for mass in p if mass > 0)


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    """Σ p log(p / q)."""
    pairs = [(a, b) for a, b in zip(p, q, strict=True) if a > 0]
    return (
        math.inf
        if any(b == 0 for _, b in pairs)
        else math.fsum(a * (math.log(a) - math.log(b)) for a, b in pairs)
    )


def act(logits: Sequence[float], epsilon: float) -> tuple[list[float], int, float]:
    """Graves 2016: the weights of the steps, the step N at which halting units add up, and the remainder R."""
    weights = list[float]()
    total = 0.0
    for n, logit in enumerate(logits, start=1):
        if n == len(logits) or total + sigmoid(logit) >= 1.0 - epsilon:
            remainder = 1.0 - total
            return [*weights, remainder] + [0.0] * (len(logits) - n), n, remainder
        weights.append(sigmoid(logit))
        total += sigmoid(logit)
    raise AssertionError("unreachable")


def mean_output(outputs: Sequence[Any], weights: Sequence[float]) -> Any:
    """Σ p_n y_n of the outputs of all steps, lists of numbers, or of lists of them at every position."""
    if not isinstance(outputs[0], list):
        return math.fsum(w * y for w, y in zip(weights, outputs, strict=True))
    return [mean_output(each, weights) for each in zip(*outputs, strict=True)]


def prior(spec: Spec, num_steps: int) -> list[float]:
    """The probabilities of a prior over so many steps."""
    if spec["name"] == "geometric":
        rate = spec["rate"]
        return [rate * (1 - rate) ** n for n in range(num_steps - 1)] + [
            (1 - rate) ** (num_steps - 1)
        ]
    assert spec["name"] == "uniform"
    return [1 / num_steps] * num_steps


# -- tasks and objectives ----------------------------------------------------------------------------------------


def log_softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    norm = top + math.log(math.fsum(math.exp(z - top) for z in logits))
    return [z - norm for z in logits]


def _bce(logit: float, target: float) -> float:
    return max(logit, 0.0) - logit * target + math.log1p(math.exp(-abs(logit)))


def _average(values: Sequence[float]) -> float:
    return math.fsum(values) / max(len(values), 1)


def task_loss(task: str, output: Any, label: Any) -> float:
    """−log p(y | x, n) of one example at one step, up to the constants that the task drops."""
    if task == "classification":
        return -log_softmax(output)[label]
    if task == "regression":
        return _average([(o - y) ** 2 for o, y in zip(output, label, strict=True)])
    if task == "multilabel":
        return _average([_bce(o, y) for o, y in zip(output, label, strict=True)])
    if task == "token_classification":
        return _average(
            [-log_softmax(o)[y] for o, y in zip(output, label, strict=True) if y != -100]
        )
    assert task == "span"
    columns = zip(*output, strict=True)
    return (
        math.fsum(-log_softmax(c)[y] for c, y in zip(columns, label, strict=True) if y != -100) / 2
    )


def distillation_loss(task: str, student: Any, teacher: Any, temperature: float) -> float:
    """T² KL(teacher ‖ student) of classes; the squared distance, or the cross-entropy, of other tasks."""
    if task == "regression":
        return _average([(s - t) ** 2 for s, t in zip(student, teacher, strict=True)])
    if task == "multilabel":
        pairs = zip(student, teacher, strict=True)
        return temperature**2 * _average(
            [_bce(s / temperature, sigmoid(t / temperature)) for s, t in pairs]
        )
    if task == "token_classification":
        each = zip(student, teacher, strict=True)
        return _average([distillation_loss("classification", s, t, temperature) for s, t in each])
    if task == "span":
        columns = zip(zip(*student, strict=True), zip(*teacher, strict=True), strict=True)
        return _average(
            [distillation_loss("classification", s, t, temperature) for s, t in columns]
        )
    log_s = log_softmax([z / temperature for z in student])
    log_t = log_softmax([z / temperature for z in teacher])
    return temperature**2 * math.fsum(
        math.exp(t) * (t - s) for s, t in zip(log_s, log_t, strict=True)
    )


def is_right(task: str, output: Any, label: Any) -> bool:
    """Whether an answer is right in every labelled part."""
    if task == "classification":
        return bool(output.index(max(output)) == label)
    if task == "multilabel":
        return all((z > 0) == bool(y) for z, y in zip(output, label, strict=True))
    if task == "span":
        output = list(map(list, zip(*output, strict=True)))
    return all(o.index(max(o)) == y for o, y in zip(output, label, strict=True) if y != -100)


def objective(spec: Spec, row: Spec, at: Spec | None = None) -> float:
    """The loss of one example, with task, outputs, losses, hazard_logits, prior and teacher.

    Args:
        spec: The objective.
        row: The example.
        at: The example that teachers are read of, where gradients are differences and teachers are
            constants.
    """
    at = at or row
    losses = row["losses"]
    task = row["task"]
    name = spec["name"]
    if name == "weighted":
        return math.fsum(
            w * objective(o, row, at)
            for o, w in zip(spec["objectives"], spec["weights"], strict=True)
        )
    if name == "ponder":
        p = pmf(row["hazard_logits"])
        if spec["mass"] == "lost":
            p, _ = lost_pmf(row["hazard_logits"], spec["floor"])
        q = row["prior"]
        if spec["likelihood"] == "expected_log":
            # The batch may have ended before the last step (`batch_steps`).
            ran = row.get("batch_steps", len(p))
            fit = math.fsum(mass * loss for mass, loss in zip(p[:ran], losses[:ran], strict=True))
        else:
            fit = -math.log(
                math.fsum(mass * math.exp(-loss) for mass, loss in zip(p, losses, strict=True))
            )
        return fit + spec["beta"] * (kl(p, q) if spec["kl"] == "posterior_prior" else kl(q, p))
    if name == "act":
        p, last, remainder = act(row["hazard_logits"], spec["epsilon"])
        answer = mean_output(row["all_outputs"], p)
        return task_loss(task, answer, row["label"]) + spec["cost"] * (last + remainder)
    if name == "all-right":
        each = [
            loss + spec["weight"] * _bce(q, float(is_right(task, output, row["label"])))
            for loss, q, output in zip(
                losses, row["hazard_logits"], row["all_outputs"], strict=True
            )
        ]
        return _average(each)
    if name == "deep-supervision":
        w = [n if spec["weights"] == "linear" else 1 for n in range(1, len(losses) + 1)]
        return math.fsum(a * b for a, b in zip(w, losses, strict=True)) / sum(w)
    if name == "final-step":
        return float(losses[-1])
    if name == "one-step":
        return float(losses[spec["step"] - 1])
    if name == "mutual-distillation":
        pairs = [
            (s, t)
            for i, s in enumerate(row["outputs"])
            for j, t in enumerate(at["outputs"])
            if i != j
        ]
        return _average([distillation_loss(task, s, t, spec["temperature"]) for s, t in pairs])
    assert name == "distillation"
    frozen = spec.get("teacher") == "frozen"
    students, teacher = (
        (row["outputs"], at["teacher"]) if frozen else (row["outputs"][:-1], at["outputs"][-1])
    )
    return spec["weight"] * _average(
        [distillation_loss(task, s, teacher, spec["temperature"]) for s in students]
    )


def batch_steps(rows: Sequence[Sequence[float]], floor: float) -> int:
    """PALBERT's released code: the steps that a batch of hazard logits runs, until all rows are floored."""
    flags = [lost_pmf(logits, floor)[1] for logits in rows]
    return sum(not all(at_step) for at_step in zip(*flags, strict=True))


# -- policies ----------------------------------------------------------------------------------------------------


def _mix(x: int) -> int:
    """The finaliser of SplitMix64."""
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def uniform(seed: int, row_id: int) -> float:
    """The number that a seeded Bernoulli policy draws for a row: 24 bits of a counter-based generator."""
    gamma = 0x9E3779B97F4A7C15
    return (_mix((_mix((seed + gamma) & MASK) + row_id * gamma) & MASK) >> 40) / 2.0**24


def above(value: float, threshold: float) -> Answer:
    """Value > threshold, or None where rounding decides; nothing is above 1, and an exact 0 is not above 0."""
    if threshold == 1.0 or value == threshold == 0.0:
        return False
    return None if abs(value - threshold) < NEAR else value > threshold


def _any(answers: Sequence[Answer]) -> Answer:
    return True if True in answers else None if None in answers else False


def _all(answers: Sequence[Answer]) -> Answer:
    return False if False in answers else None if None in answers else True


def _sure(name: str, cell: list[float], spec: Spec) -> Answer:
    """Whether one answer is sure enough."""
    log_p = log_softmax(cell)
    p = sorted((math.exp(z) for z in log_p), reverse=True)
    if name == "entropy":
        unit = math.log(len(p)) if spec.get("normalize") else 1.0
        return above(spec["threshold"] * unit, entropy(p))
    top = max(cell)
    statistics = {
        "confidence": p[0],
        "margin": p[0] - p[1],
        "energy": sigmoid(top + math.log(math.fsum(math.exp(z - top) for z in cell))),
    }
    return above(statistics[name], spec["threshold"])


def _leads(cell: list[float], n: int, total: int, spec: Spec) -> Answer:
    """Whether the lead of one vote is sure: in standard errors, or greater than what remains."""
    if n == total:
        return False
    p = sorted((math.exp(z) for z in log_softmax(cell)), reverse=True)
    ahead = p[0] - p[1]
    if abs(ahead * n - (total - n)) < 2e-4:
        return None
    if ahead * n > total - n:
        return True
    return above(ahead * math.sqrt(n / (1 - n / total)), spec["threshold"])


def _prediction(task: str | None, cells: Cells) -> list[Any]:
    if task == "multilabel":
        return [z > 0 for z in cells[0]]
    if task == "span":
        columns = zip(*cells, strict=True)
        return [column.index(max(column)) for column in map(list, columns)]
    return [cell.index(max(cell)) for cell in cells]


def _same(task: str | None, now: Cells, before: Cells, tolerance: float) -> Answer:
    if task == "regression":
        return _all([above(tolerance, abs(a - b)) for a, b in zip(now[0], before[0], strict=True)])
    return _prediction(task, now) == _prediction(task, before)


def _still(task: str | None, now: Cells, before: Cells, tolerance: float) -> Answer:
    """Whether a step moved the share of answers, or the numbers, by the tolerance at most."""
    if task == "regression":
        moved = max(abs(a - b) for a, b in zip(now[0], before[0], strict=True))
        return None if abs(moved - tolerance) < NEAR else moved <= tolerance
    pairs = list(zip(_prediction(task, now), _prediction(task, before), strict=True))
    return sum(a != b for a, b in pairs) / len(pairs) <= tolerance


def _counted(changes: Sequence[Answer], patience: int) -> list[Answer]:
    """A counter: +1 where nothing changed, 0 where it did; out once it reaches the patience."""
    counts = {0}
    answers = [False]
    for same in changes:
        counts = ({c + 1 for c in counts} if same is not False else set()) | (
            {0} if same is not True else set()
        )
        reached = {c >= patience for c in counts}
        answers.append(reached.pop() if len(reached) == 1 else None)
    return answers


def _answers(spec: Spec, row: Spec) -> list[Answer]:
    name = spec["name"]
    outputs = row["outputs"]
    task = row["task"]
    steps = range(1, len(outputs) + 1)
    if name in ("confidence", "margin", "energy", "entropy"):
        return [_all([_sure(name, cell, spec) for cell in cells]) for cells in outputs]
    if name == "lead":
        leads = [
            _all([_leads(cell, n, len(outputs), spec) for cell in outputs[n - 1]]) for n in steps
        ]
        return [*leads[:-1], False]
    if name in ("quantile", "bernoulli"):
        q = spec["q"] if name == "quantile" else uniform(spec["seed"], row["row_id"])
        return [above(total, q) for total in cdf(pmf(row["hazard_logits"]))]
    if name == "right-answer":
        return [above(sigmoid(q), spec["threshold"]) for q in row["hazard_logits"]]
    if name == "act":
        totals = accumulate(map(sigmoid, row["hazard_logits"]))
        left = [total - (1.0 - spec["epsilon"]) for total in totals]
        return [None if abs(each) < NEAR else each >= 0 for each in left]
    if name in ("patience", "converged"):
        unchanged = _same if name == "patience" else _still
        pairs = zip(outputs[1:], outputs, strict=False)
        return _counted(
            [unchanged(task, now, old, spec["tolerance"]) for now, old in pairs], spec["patience"]
        )
    if name == "voting":
        given = [_prediction(task, cells) for cells in outputs]
        votes = [
            [[old[k] for old in given[:n]].count(now) for k, now in enumerate(given[n - 1])]
            for n in steps
        ]
        return [min(each) >= spec["votes"] for each in votes]
    if name in ("fixed-step", "from-step"):
        return [n >= spec["step"] for n in steps]
    if name == "last-step":
        return [False for _ in steps]
    if name in ("any", "all"):
        merged: Callable[[Sequence[Answer]], Answer] = _any if name == "any" else _all
        return [
            merged(each) for each in zip(*(_answers(p, row) for p in spec["policies"]), strict=True)
        ]
    assert name == "certified"
    return _answers(spec["policy"], row)


def exits(spec: Spec, row: Spec) -> set[int]:
    """The steps at which a row may leave: one, or more where a statistic is within rounding of its threshold."""
    allowed = set()
    for n, answer in enumerate(_answers(spec, row), start=1):
        if answer is True or n == len(row["outputs"]):
            return {*allowed, n}
        if answer is None:
            allowed.add(n)
    raise AssertionError("unreachable")


# -- official codes: the lines that decide, as plain loops of one row ---------------------------------------------


def pabee(answers: Sequence[Any], patience: int, threshold: float | None = None) -> int:
    """The counter follows the comparison; out when it equals the patience; numbers agree if nearer than a threshold."""
    counter = 0
    for n, (now, before) in enumerate(zip(answers[1:], answers, strict=False), start=2):
        agree = now == before if threshold is None else abs(now - before) < threshold
        counter = counter + 1 if agree else 0
        if counter == patience:
            return n
    return len(answers)


def first_below(values: Sequence[float], threshold: float, *, or_equal: bool = False) -> int:
    """DeeBERT (entropy in nats), FastBERT (normalised) and COSEE: out once the value is below, the last otherwise."""
    for n, value in enumerate(values, start=1):
        if value < threshold or (or_equal and value == threshold):
            return n
    return len(values)


def cosee_energy(logits: Sequence[float], temperature: float = 1.0) -> float:
    """1 / (1 + (Σ_c exp(z_c / T))^T)."""
    return 1.0 / (1.0 + math.fsum(math.exp(z / temperature) for z in logits) ** temperature)


def palbert(logits: Sequence[float], q: float) -> int:
    """Out once the accumulated p is above q, the last step otherwise, whose hazard counts like any other."""
    total = 0.0
    for n, mass in enumerate(lost_pmf(logits)[0], start=1):
        total += mass
        if total > q:
            return n
    return len(logits)


def q_head(logits: Sequence[float], max_steps: int) -> int:
    """TRM halts where q > 0, HRM where q_halt > q_continue, and both at the last step."""
    return next((n for n, q in enumerate(logits[:max_steps], start=1) if q > 0), max_steps)


def universal_transformer(units: Sequence[float], threshold: float) -> tuple[list[float], int]:
    """ACT in Tensor2Tensor: the weights and the updates of a position that ends at the last unit at the latest.

    A position halts with the unit that takes its sum *above* the threshold; what is left at the
    last step is given to no state.
    """
    total = 0.0
    weights = list[float]()
    for unit in units:
        if total + unit > threshold:
            return [*weights, 1.0 - total], len(weights) + 1
        weights.append(unit)
        total += unit
    return weights, len(weights)


def blended(states: Sequence[float], weights: Sequence[float]) -> float:
    """Tensor2Tensor's default state, s w + previous (1 − w), step after step from 0."""
    value = 0.0
    for state, weight in zip(states, weights, strict=False):
        value = state * weight + value * (1.0 - weight)
    return value


def huginn(states: Sequence[Sequence[float]], threshold: float) -> int:
    """The latent difference: out once ‖h_n − h_{n−1}‖ / ‖h_n‖ is below; `states` begin with the initial latents."""
    for n, (now, before) in enumerate(zip(states[1:], states, strict=False), start=1):
        moved = math.dist(now, before) / math.hypot(*now)
        if moved < threshold:
            return n
    return len(states) - 1
