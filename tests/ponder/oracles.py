"""Plain Python float64 loops: what the library must give, written without it.

Nothing of `ponder` is imported here. Plug-ins are described by the plain dictionaries that `to_dict` gives.

A policy's oracle answers True, False, or None where the statistic is within rounding of its threshold; `exits` turns
the answers of one row into the set of steps at which it may leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Spec = dict[str, Any]
Row = list[float]
Answer = bool | None
NEAR = 1e-5
MASK = (1 << 64) - 1

# -- the halting distribution ------------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


def pmf(logits: Sequence[float]) -> list[float]:
    """p(n) = λ_n Π_{j<n} (1 − λ_j); the last step takes what is left."""
    alive, p = 1.0, []
    for n, logit in enumerate(logits, start=1):
        if n == len(logits):
            p.append(alive)
        else:
            p.append(alive * sigmoid(logit))
            alive *= sigmoid(-logit)
    return p


def cdf(p: Sequence[float]) -> list[float]:
    total, table = 0.0, []
    for mass in p[:-1]:
        total += mass
        table.append(min(total, 1.0))
    return [*table, 1.0]


def survival_before(logits: Sequence[float]) -> list[float]:
    """P(not stopped before n) for every n."""
    alive, table = 1.0, []
    for logit in logits:
        table.append(alive)
        alive *= sigmoid(-logit)
    return table


def mean(p: Sequence[float]) -> float:
    return math.fsum(n * mass for n, mass in enumerate(p, start=1))


def variance(p: Sequence[float]) -> float:
    centre = mean(p)
    return math.fsum(mass * (n - centre) ** 2 for n, mass in enumerate(p, start=1))


def entropy(p: Sequence[float]) -> float:
    return -math.fsum(mass * math.log(mass) for mass in p if mass > 0)


def icdf(p: Sequence[float], q: float) -> set[int]:
    """The first n with CDF_n ≥ q; more than one where a CDF is within rounding of q."""
    allowed = set()
    for n, total in enumerate(cdf(p), start=1):
        if n == len(p) or total >= q + NEAR:
            return {*allowed, n}
        if total > q - NEAR:
            allowed.add(n)
    raise AssertionError("unreachable")


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    """Σ p log(p / q)."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            total += math.inf if b == 0 else a * (math.log(a) - math.log(b))
    return total


# -- priors ------------------------------------------------------------------------------------------------------


def _normalised(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _geometric(num_steps: int, rate: float) -> list[float]:
    p = [rate * (1 - rate) ** (n - 1) for n in range(1, num_steps)]
    return [*p, (1 - rate) ** (num_steps - 1)]


def _uniform_prior(num_steps: int) -> list[float]:
    return [1 / num_steps] * num_steps


def _poisson(num_steps: int, mean: float) -> list[float]:
    weights = [math.exp(-(mean - 1))]
    for n in range(2, num_steps + 1):
        weights.append(weights[-1] * (mean - 1) / (n - 1))
    return _normalised(weights)


def _normal(num_steps: int, mean: float, std: float) -> list[float]:
    return _normalised([math.exp(-((n - mean) ** 2) / (2 * std**2)) for n in range(1, num_steps + 1)])


def _categorical(num_steps: int, probabilities: Sequence[float]) -> list[float]:
    assert len(probabilities) == num_steps
    return _normalised(probabilities)


def _learned(steps: int, /, num_steps: int, initial: Spec | None) -> list[float]:
    """Before any training: where it starts."""
    assert num_steps == steps
    return prior(initial or {"name": "uniform"}, steps)


def _at_depth(num_steps: int, depth: float, family: str) -> list[float]:
    """The family's member with mean 1 + depth (N − 1), by halving an interval of its parameter."""
    low, high = {"geometric": (1e-12, 1 - 1e-12), "poisson": (1 + 1e-12, 3.0 * num_steps + 9)}[family]
    wanted = 1 + depth * (num_steps - 1)
    for _ in range(200):
        middle = (low + high) / 2
        p = _geometric(num_steps, middle) if family == "geometric" else _poisson(num_steps, middle)
        if (mean(p) < wanted) == (family == "poisson"):
            low = middle
        else:
            high = middle
    return p


PRIORS: dict[str, Callable[..., list[float]]] = {
    "at-depth": _at_depth,
    "geometric": _geometric,
    "uniform": _uniform_prior,
    "poisson": _poisson,
    "normal": _normal,
    "categorical": _categorical,
    "empirical": _categorical,
    "learned": _learned,
}


def prior(spec: Spec, num_steps: int) -> list[float]:
    return PRIORS[spec["name"]](num_steps, **{k: v for k, v in spec.items() if k != "name"})


# -- tasks and objectives ----------------------------------------------------------------------------------------


def log_softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    norm = top + math.log(math.fsum(math.exp(z - top) for z in logits))
    return [z - norm for z in logits]


def _bce(logit: float, target: float) -> float:
    return max(logit, 0.0) - logit * target + math.log1p(math.exp(-abs(logit)))


def task_loss(task: str, output: Any, label: Any) -> float:
    """−log p(y | x, n) of one example at one step, up to the constants that the task drops."""
    if task == "classification":
        return -log_softmax(output)[label]
    if task == "regression":
        labels = label if isinstance(label, list) else [label]
        return math.fsum((o - y) ** 2 for o, y in zip(output, labels, strict=True)) / len(output)
    if task == "multilabel":
        return math.fsum(_bce(o, y) for o, y in zip(output, label, strict=True)) / len(output)
    if task == "token_classification":
        kept = [-log_softmax(o)[y] for o, y in zip(output, label, strict=True) if y != -100]
        return math.fsum(kept) / max(len(kept), 1)
    raise AssertionError(task)


def distillation_loss(task: str, student: Row, teacher: Row, temperature: float) -> float:
    if task == "classification":
        log_s = log_softmax([z / temperature for z in student])
        log_t = log_softmax([z / temperature for z in teacher])
        return temperature**2 * math.fsum(math.exp(t) * (t - s) for s, t in zip(log_s, log_t, strict=True))
    if task == "regression":
        return math.fsum((s - t) ** 2 for s, t in zip(student, teacher, strict=True)) / len(student)
    targets = [sigmoid(t / temperature) for t in teacher]
    return temperature**2 * task_loss("multilabel", [s / temperature for s in student], targets)


def _ponder(row: Spec, beta: float, kl: str, likelihood: str) -> float:
    p, q, losses = pmf(row["hazard_logits"]), row["prior"], row["losses"]
    if likelihood == "expected_log":
        fit = math.fsum(mass * loss for mass, loss in zip(p, losses, strict=True))
    else:
        fit = -math.log(math.fsum(mass * math.exp(-loss) for mass, loss in zip(p, losses, strict=True)))
    return fit + beta * (_kl(p, q) if kl == "posterior_prior" else _kl(q, p))


_kl = kl


def _deep_supervision(row: Spec, weights: str) -> float:
    losses = row["losses"]
    w = [n if weights == "linear" else 1 for n in range(1, len(losses) + 1)]
    return math.fsum(a * b for a, b in zip(w, losses, strict=True)) / sum(w)


def _final_step(row: Spec) -> float:
    return float(row["losses"][-1])


def _distillation(
    row: Spec, temperature: float, weight: float, teacher: str = "last_step", step: int | None = None
) -> float:
    frozen = teacher == "frozen"
    students, taught = (row["outputs"], row["teacher"]) if frozen else (row["outputs"][:-1], row["outputs"][-1])
    students = students if step is None else [students[step - 1]]
    if not students:
        return 0.0
    losses = [distillation_loss(row["task"], student, taught, temperature) for student in students]
    return weight * math.fsum(losses) / len(losses)


def signal(name: str, logits: Row) -> float:
    """How sure one step is, growing with certainty."""
    log_p = log_softmax(logits)
    p = sorted((math.exp(z) for z in log_p), reverse=True)
    if name == "energy":
        top = max(logits)
        return sigmoid(top + math.log(math.fsum(math.exp(z - top) for z in logits)))
    return {"confidence": p[0], "margin": p[0] - p[1], "negative_entropy": -entropy(p)}[name]


def _signals(name: str, row: Spec) -> list[float]:
    if name == "halting":
        return cdf(pmf(row["hazard_logits"]))
    return [signal(name, output) for output in row["outputs"]]


def _simulated_exits(row: Spec, thresholds: int, sharpness: float, signal: str) -> float:
    losses = row["losses"]
    early = [value for other in row["batch"] for value in _signals(signal, other)[:-1]]
    if not early:
        return float(losses[0])
    low, high, share = min(early), max(early), row["progress"][0] / row["progress"][1]
    total = 0.0
    for k in range(thresholds):
        threshold = low + (high - low) * (k + 0.5) / thresholds
        left = next((n for n, sure in enumerate(_signals(signal, row)[:-1]) if sure > threshold), len(losses) - 1)
        weights = _normalised([math.exp(-sharpness * share * abs(n - left)) for n in range(len(losses))])
        total += math.fsum(w * loss for w, loss in zip(weights, losses, strict=True))
    return total / thresholds


def _signal_calibration(row: Spec, margin: float, signal: str) -> float:
    gaps = []
    for n in range(len(row["losses"]) - 1):
        of: dict[bool, list[float]] = {True: [], False: []}
        for other in row["batch"]:
            output = other["outputs"][n]
            of[output.index(max(output)) == other["label"]].append(_signals(signal, other)[n])
        if of[True] and of[False]:
            gaps.append(max(0.0, math.fsum(of[False]) / len(of[False]) - math.fsum(of[True]) / len(of[True]) + margin))
    return math.fsum(gaps) / max(len(gaps), 1)


def _alignment(row: Spec, weight: float) -> float:
    *early, last = row["features"]
    if not early:
        return 0.0

    def cosine(a: Row, b: Row) -> float:
        dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))

    return weight * math.fsum(1 - cosine(features, last) for features in early) / len(early)


def _alternating(row: Spec, even: Spec, odd: Spec) -> float:
    return objective(odd if row["progress"][0] % 2 else even, row)


def _mutual(row: Spec, temperature: float) -> float:
    outputs = row["outputs"]
    pairs = [(s, t) for i, s in enumerate(outputs) for j, t in enumerate(outputs) if i != j]
    losses = [distillation_loss(row["task"], student, teacher, temperature) for student, teacher in pairs]
    return math.fsum(losses) / max(len(losses), 1)


def _one_step(row: Spec, step: int) -> float:
    return float(row["losses"][step - 1])


def _random_depth(row: Spec, minimum: int, maximum: int | None, warm_up: int) -> float:
    """Whatever depth was drawn, the loss is that of the last step that ran."""
    return float(row["losses"][-1])


def _weighted(row: Spec, objectives: Sequence[Spec], weights: Sequence[float]) -> float:
    return math.fsum(w * objective(o, row) for o, w in zip(objectives, weights, strict=True))


OBJECTIVES: dict[str, Callable[..., float]] = {
    "alignment": _alignment,
    "alternating": _alternating,
    "signal-calibration": _signal_calibration,
    "simulated-exits": _simulated_exits,
    "ponder": _ponder,
    "deep-supervision": _deep_supervision,
    "final-step": _final_step,
    "distillation": _distillation,
    "mutual-distillation": _mutual,
    "one-step": _one_step,
    "random-depth": _random_depth,
    "weighted": _weighted,
}


def objective(spec: Spec, row: Spec) -> float:
    """The loss of one example; `row` has task, outputs, losses, hazard_logits and prior.

    Some objectives read its label, features, teacher (outputs), progress (step, total), and batch (all rows).
    """
    return OBJECTIVES[spec["name"]](row, **{k: v for k, v in spec.items() if k != "name"})


# -- policies ----------------------------------------------------------------------------------------------------


def mix(x: int) -> int:
    """The finaliser of SplitMix64."""
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def uniform(seed: int, row_id: int) -> float:
    """The number that a seeded Bernoulli policy draws for a row: 24 bits of a counter-based generator."""
    gamma = 0x9E3779B97F4A7C15
    key = mix((seed + gamma) & MASK)
    return (mix((key + row_id * gamma) & MASK) >> 40) / 2.0**24


def above(value: float, threshold: float) -> Answer:
    """Value > threshold, or None where rounding decides; nothing is above 1, and an exact 0 is not above 0."""
    if threshold == 1.0 or value == threshold == 0.0:
        return False
    return None if abs(value - threshold) < NEAR else value > threshold


def _not(answer: Answer) -> Answer:
    return None if answer is None else not answer


def _any(answers: Sequence[Answer]) -> Answer:
    return True if True in answers else None if None in answers else False


def _all(answers: Sequence[Answer]) -> Answer:
    return _not(_any([_not(answer) for answer in answers]))


class _Row:
    """One example's full-depth record: hazard_logits, outputs (a list per step), task, row_id."""

    def __init__(self, record: Spec) -> None:
        self.record = record
        self.num_steps = len(record["outputs"])
        self.cdf = cdf(pmf(record["hazard_logits"])) if record.get("hazard_logits") else None

    def probabilities(self, n: int) -> list[float]:
        return [math.exp(z) for z in log_softmax(self.record["outputs"][n - 1])]


def _quantile(row: _Row, q: float) -> list[Answer]:
    return [above(total, q) for total in row.cdf]


def _bernoulli(row: _Row, seed: int) -> list[Answer]:
    return _quantile(row, uniform(seed, row.record["row_id"]))


def _entropy(row: _Row, threshold: float, normalize: bool = False) -> list[Answer]:
    answers = []
    for n in range(1, row.num_steps + 1):
        p = row.probabilities(n)
        answers.append(above(threshold * (math.log(len(p)) if normalize else 1.0), entropy(p)))
    return answers


def _confidence(row: _Row, threshold: float) -> list[Answer]:
    return [above(max(row.probabilities(n)), threshold) for n in range(1, row.num_steps + 1)]


def _energy(row: _Row, threshold: float) -> list[Answer]:
    return [above(signal("energy", output), threshold) for output in row.record["outputs"]]


def _margin(row: _Row, threshold: float) -> list[Answer]:
    answers = []
    for n in range(1, row.num_steps + 1):
        best, second, *_ = sorted(row.probabilities(n), reverse=True)
        answers.append(above(best - second, threshold))
    return answers


def _agreement(task: str | None, now: Row, before: Row, tolerance: float) -> Answer:
    if task == "regression":
        return _all([above(tolerance, abs(a - b)) for a, b in zip(now, before, strict=True)])
    if task == "multilabel":
        return [a > 0 for a in now] == [b > 0 for b in before]
    return now.index(max(now)) == before.index(max(before))


def _patience(row: _Row, patience: int, tolerance: float = 0.0) -> list[Answer]:
    """PABEE's counter: +1 where the answer stays, 0 where it changes; out once it reaches the patience."""
    outputs, counts, answers = row.record["outputs"], {0}, [False]
    for now, before in zip(outputs[1:], outputs, strict=False):
        same = _agreement(row.record["task"], now, before, tolerance)
        counts = ({c + 1 for c in counts} if same is not False else set()) | ({0} if same is not True else set())
        reached = {c >= patience for c in counts}
        answers.append(reached.pop() if len(reached) == 1 else None)
    return answers


def _converged(row: _Row, tolerance: float, patience: int, on: str) -> list[Answer]:
    """Out once `patience` changes in a row were within the tolerance: a share of the answers, or a distance."""
    assert on == "answers"  # records hold no features; tests/ponder/policies/test_converged_policy.py has those
    outputs, counts, answers = row.record["outputs"], {0}, [False]
    for now, before in zip(outputs[1:], outputs, strict=False):
        if row.record["task"] == "regression":
            moved = max(abs(a - b) for a, b in zip(now, before, strict=True))
            still = None if abs(moved - tolerance) < NEAR else moved <= tolerance
        elif row.record["task"] == "multilabel":
            still = sum((a > 0) != (b > 0) for a, b in zip(now, before, strict=True)) / len(now) <= tolerance
        else:
            still = (now.index(max(now)) != before.index(max(before))) <= tolerance
        counts = ({c + 1 for c in counts} if still is not False else set()) | ({0} if still is not True else set())
        reached = {c >= patience for c in counts}
        answers.append(reached.pop() if len(reached) == 1 else None)
    return answers


def _fixed_step(row: _Row, step: int) -> list[Answer]:
    return [n >= step for n in range(1, row.num_steps + 1)]


def _last_step(row: _Row) -> list[Answer]:
    return [False] * row.num_steps


def _either(row: _Row, policies: Sequence[Spec]) -> list[Answer]:
    return [_any(answers) for answers in zip(*(_answers(p, row) for p in policies), strict=True)]


def _both(row: _Row, policies: Sequence[Spec]) -> list[Answer]:
    return [_all(answers) for answers in zip(*(_answers(p, row) for p in policies), strict=True)]


def _after(row: _Row, policy: Spec, step: int) -> list[Answer]:
    return [answer if n >= step else False for n, answer in enumerate(_answers(policy, row), start=1)]


def _before(row: _Row, policy: Spec, step: int) -> list[Answer]:
    return [answer if n < step else True for n, answer in enumerate(_answers(policy, row), start=1)]


def _certified(row: _Row, policy: Spec, **_: object) -> list[Answer]:
    return _answers(policy, row)


def _tempered(row: _Row, policy: Spec, temperatures: Sequence[float], **_: Any) -> list[Answer]:
    own = list(temperatures) * (row.num_steps if len(temperatures) == 1 else 1)
    outputs = [[z / t for z in output] for output, t in zip(row.record["outputs"], own, strict=True)]
    return _answers(policy, _Row({**row.record, "outputs": outputs}))


def _voting(row: _Row, votes: int) -> list[Answer]:
    given = [output.index(max(output)) for output in row.record["outputs"]]
    return [given[:n].count(given[n - 1]) >= votes for n in range(1, len(given) + 1)]


def gate_signals(row: _Row, names: Sequence[str]) -> list[list[float]]:
    """What a gate reads of each step."""
    outputs, hazards, table = row.record["outputs"], row.record.get("hazard_logits"), []
    streak, expected = 0, 0.0
    for n, output in enumerate(outputs):
        p = row.probabilities(n + 1)
        before = outputs[n - 1] if n else output
        same = n > 0 and output.index(max(output)) == before.index(max(before))
        streak = streak + 1 if same else 0
        values = {name: signal(name, output) for name in ("confidence", "energy", "negative_entropy")}
        values["margin"] = signal("margin", output) if len(output) > 1 else 0.0
        values["streak"] = float(streak)
        values["shift"] = math.fsum(abs(a - b) for a, b in zip(p, row.probabilities(n), strict=True)) / 2 if n else 1.0
        values["movement"] = math.fsum(abs(a - b) for a, b in zip(output, before, strict=True)) / len(output)
        if hazards:
            expected += survival_before(hazards)[n]
            # the CDF of the hazards so far: at the last step the policy is not asked
            alive = survival_before([*hazards, 0.0])[n + 1]
            values |= {"hazard": sigmoid(hazards[n]), "cdf": 1.0 - alive, "expected": expected}
        table.append([values[name] for name in names])
    return table


def walk(tree: Sequence[Row], values: Row) -> float:
    """The leaf of one tree."""
    node = tree[0]
    while node[0] >= 0:
        node = tree[int(node[2] if values[int(node[0])] <= node[1] else node[3])]
    return node[4]


def gate_probabilities(row: _Row, signals: Sequence[str], kind: str, tables: Sequence[Any]) -> list[float]:
    """P(staying pays) at every step but the last."""
    found = []
    for table, values in zip(tables, gate_signals(row, signals), strict=False):
        if kind == "logistic":
            score = math.fsum(w * v for w, v in zip(table, values, strict=False)) + table[-1]
        else:
            score = table[0] + math.fsum(walk(tree, values) for tree in table[1])
        found.append(sigmoid(score))
    return found


def _gate(
    row: _Row, num_steps: int, signals: Any, kind: str, tables: Any, threshold: float, floor: int, **_: Any
) -> list[Answer]:
    found = [above(threshold, p) for p in gate_probabilities(row, signals, kind, tables)]
    return [False if n < floor else answer for n, answer in enumerate(found, start=1)] + [True]


POLICIES: dict[str, Callable[..., list[Answer]]] = {
    "after": _after,
    "all": _both,
    "any": _either,
    "before": _before,
    "bernoulli": _bernoulli,
    "certified": _certified,
    "confidence": _confidence,
    "converged": _converged,
    "energy": _energy,
    "entropy": _entropy,
    "fixed-step": _fixed_step,
    "gate": _gate,
    "last-step": _last_step,
    "margin": _margin,
    "patience": _patience,
    "quantile": _quantile,
    "tempered": _tempered,
    "voting": _voting,
}


def _answers(spec: Spec, row: _Row) -> list[Answer]:
    return POLICIES[spec["name"]](row, **{k: v for k, v in spec.items() if k != "name"})


def exits(spec: Spec, record: Spec) -> set[int]:
    """The steps at which a row may leave: one, or more where a statistic is within rounding of its threshold."""
    row, allowed = _Row(record), set()
    for n, answer in enumerate(_answers(spec, row), start=1):
        if answer is True or n == row.num_steps:
            return {*allowed, n}
        if answer is None:
            allowed.add(n)
    raise AssertionError("unreachable")
