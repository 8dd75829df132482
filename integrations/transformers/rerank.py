"""`CrossEncoder`: a fine-tuned cross encoder that lets go of candidates that cannot be among the best of their query.

Early heads regress the model's own last score on the states of the frozen model, in closed form and
without labels; the margin of `policies.TopK` is then certified on other queries: "the same top k on
95% of them".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from ponder._utils.rows import content_ids, split
from ponder.calibration.control import RiskControl
from ponder.calibration.risks import ranked
from ponder.calibration.statement import CONFIDENCE, LEVEL
from ponder.deploy.ranking import Pool, Ranker, RankerSettings, pools_of, rows_of
from ponder.errors import ArgumentError
from ponder.inference.batches import start_batches
from ponder.inference.examples import ExampleReader
from ponder.integrations.transformers.config import changed_files
from ponder.integrations.transformers.exits import as_before_if_refused, counter
from ponder.integrations.transformers.heads import PonderForSequenceClassification
from ponder.integrations.transformers.loading import load_whole
from ponder.integrations.transformers.texts import examples_of, load_tokenizer
from ponder.policies import LastStep, TopK

__all__ = ["CrossEncoder"]

_MEMORY = 2**30  # bytes of the features that the heads learn on
_RIDGE = 30.0  # of scaled inputs; from 10 to 100 the held-out errors on Banking77 and CLINC150 are within 4%


class CrossEncoder(Ranker):
    """A cross encoder whose candidates leave early, used as that of Sentence Transformers.

    Args:
        model: A fine-tuned sequence classifier of Transformers: a folder, a hub name, or the model
            itself.
        label: Which output ranks, where the model has several.
        tokenizer: The tokenizer, where the model is in memory.

    Example:
        >>> ranker = CrossEncoder(BertForSequenceClassification(config), label=1, tokenizer=tokenizer)
        >>> [best] = ranker.rank("a text", ["short", "a text", "text a short"], top_k=1)
        >>> sorted(best)
        ['corpus_id', 'exit_step', 'score']
        >>> documents = ["short", "a text", "text a short", "a short text"]
        >>> pools = [{"query": f"a text {n}", "documents": documents} for n in range(100)]
        >>> ranker.fit_exits(pools, top_k=1, changed=0.1).policy.rows  # queries that certify
        50
    """

    def __init__(
        self,
        model: str | PathLike[str] | nn.Module,
        label: int | None = None,
        *,
        tokenizer: Any = None,
    ) -> None:
        whole: Any = model
        if not isinstance(model, nn.Module):
            tokenizer = load_tokenizer(str(model)) if tokenizer is None else tokenizer
            whole = load_whole(AutoModelForSequenceClassification, model, {"dtype": "auto"})
        sigmoid = not _activation(whole.config, model).endswith("Identity")
        made = PonderForSequenceClassification.from_finetuned(_with_one_label(whole, label))
        made.tokenizer = tokenizer
        super().__init__(made, RankerSettings(sigmoid=sigmoid))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a folder that `save` wrote."""
        model: Any = PonderForSequenceClassification.from_pretrained(str(folder)).eval()
        made = cls.__new__(cls)
        settings = RankerSettings.read(
            Path(folder), model.ponder.weights_digest, partial(changed_files, str(folder))
        )
        Ranker.__init__(made, model, settings)
        return made

    def save(self, folder: str | Path) -> None:
        """Write model, tokenizer, policy and promise into a folder."""
        self.model.save_pretrained(folder)
        self.settings.write(Path(folder))

    def start(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> Any:
        """See `Ranker`."""
        reader = ExampleReader(self.model.ponder)
        examples = [reader.read(example) for example in examples_of(self.model, pairs)]
        return start_batches(reader, examples, {"output"}, max_batch=batch_size, regroups=False)[0]

    def fit_exits(
        self,
        queries: Sequence[Any],
        *,
        top_k: int = 10,
        changed: float = LEVEL,
        risk: str = "top_k",
        confidence: float = CONFIDENCE,
        ordered: bool = True,
        progress: Callable[[str, int, int], object] | None = None,
    ) -> RiskControl:
        """Fit early heads on half of the queries, and certify the margin on the other half; no labels are needed.

        First-stage scores, where all queries have them, become the first step of the policy and an
        input of the heads.

        Args:
            queries: Queries with their candidates, as those to come: dicts with `query`,
                `documents`, and perhaps `scores` (first stage) and `labels`.
            top_k: How many candidates of a query are wanted.
            changed: Bound of the risk: of ``"top_k"`` and ``"top_1"`` the share of queries with
                another answer than the full rerank, of ``"ndcg"`` and ``"ndcg_gap"`` a mean loss.
            risk: ``"top_k"``, ``"top_1"``, ``"ndcg"`` (against the full order) or ``"ndcg_gap"``
                (against labels).
            confidence: Probability with which the promise holds.
            ordered: Whether the best run to the last step, so that their order is that of the full
                rerank; without it all leave once the set is known.
            progress: Called with a phase, what is done of it, and how much it is in all.

        Returns:
            The policy with its statement; the ranker has taken it.
        """
        policy = TopK(top_k, 1.0, ordered=ordered)
        pools = pools_of(queries)
        learn, check = split(content_ids([pool.query for pool in pools]))
        if len(learn) < 2 or not len(check):
            expected = "some distinct queries, best 500 and more"
            remedy = "Take some of a log; they need no labels."
            raise ArgumentError("queries", expected=expected, got=str(len(pools)), remedy=remedy)
        staged = all(len(pool.scores) for pool in pools)
        fitted = {"queries": len(pools), "learned_on": len(learn)}
        before = self.settings
        try:
            with as_before_if_refused(self.model):
                self.settings = replace(
                    before, top_k=None, policy=LastStep(), blend=(), fitted=fitted
                )
                spread = self._learn([pools[n] for n in learn], top_k, staged, progress)
                return self.certify(
                    [pools[n] for n in check],
                    replace(policy, spread=spread),
                    changed=changed,
                    confidence=confidence,
                    risk=risk,
                )
        except BaseException:
            self.settings = before
            raise

    _run = torch.inference_mode()(Ranker._run)

    def _learn(
        self,
        pools: Sequence[Pool],
        top_k: int,
        staged: bool,
        progress: Callable[[str, int, int], object] | None,
    ) -> tuple[float, ...]:
        """Set the early heads, and return how far the scores of each step stray from the last on held-out queries."""
        heads = list(self.model.ponder.head.heads)[:-1]
        most = _MEMORY // (4 * self.layers * (1 + heads[0].linear.in_features))
        pools = pools[
            : max(int(np.searchsorted(np.cumsum([len(pool.documents) for pool in pools]), most)), 2)
        ]
        pairs, groups, scores = rows_of(pools)
        seen = self.model.record(
            pairs, keep_features=True, progress=counter(progress, "learn", len(pairs))
        )
        assert seen.features is not None
        first = torch.from_numpy(scores)[:, None][:, : int(staged)]
        fit = _Ridge(seen.outputs[:, -1, 0].double(), torch.from_numpy(groups), top_k)
        blend = list[tuple[float, float]]()
        spread = list[float]()
        if staged:
            weight, offset, error = fit(first)
            blend.append((offset, float(weight[0])))
            spread.append(error)
        for step, head in enumerate(heads):
            features = seen.features[:, step]
            width = head.linear.in_features
            weight, offset, error = fit(
                torch.cat([features[:, :1], head.states_of(features), first], 1).double()
            )
            with torch.no_grad():
                head.scale.copy_(weight[0])
                head.linear.weight.copy_(weight[None, 1 : 1 + width])
                head.linear.bias.fill_(offset)
            blend.append((0.0, float(weight[1 + width :].sum())))
            spread.append(error)
        self.settings = replace(self.settings, blend=(*blend, (0.0, 0.0)) if staged else ())
        return tuple(round(each, 6) for each in spread)


class _Ridge:
    """Ridge regressions of one target, most of all of the high scores, with weights 1 / (1 + place / max(k, 10)).

    The error of each is that on every fifth query, when the others taught, among the candidates
    near the k-th.
    """

    def __init__(self, target: Tensor, groups: Tensor, top_k: int) -> None:
        place = torch.from_numpy(ranked(groups.numpy(), target.numpy()))
        held = groups % 5 == 0
        self.target = target
        self.groups = groups
        self.taught = ~held
        self.near = held & (place < 4 * top_k)
        self.weights = 1.0 / (1.0 + place.double() / max(top_k, 10))

    def __call__(self, inputs: Tensor) -> tuple[Tensor, float, float]:
        """Return weights, `(inputs,)`, offset, and the held-out error within queries."""
        scale = inputs.std(0).clamp(min=1e-6)
        weight, offset = self._solve(inputs / scale, slice(None))
        held_out, _ = self._solve(inputs / scale, self.taught)
        error = (inputs / scale @ held_out - self.target)[self.near]
        groups = self.groups[self.near]
        error -= (torch.bincount(groups, error) / torch.bincount(groups).clamp(min=1))[groups]
        return weight / scale, float(offset), max(float(error.square().mean().sqrt()), 1e-6)

    def _solve(self, inputs: Tensor, rows: Any) -> tuple[Tensor, Tensor]:
        inputs = inputs[rows]
        target = self.target[rows]
        weights = self.weights[rows]
        centre = weights @ inputs / weights.sum()
        mean = weights @ target / weights.sum()
        weighted = (inputs - centre) * weights[:, None]
        gram = weighted.T @ (inputs - centre) + _RIDGE * torch.eye(
            inputs.shape[1], dtype=inputs.dtype
        )
        solved: Tensor = torch.linalg.solve(gram, weighted.T @ (target - mean))
        return solved, mean - centre @ solved


def _activation(config: Any, model: Any) -> str:
    """Return the name of the activation of Sentence Transformers, beside the model or in its configuration."""
    said = {"activation_fn": getattr(config, "sbert_ce_default_activation_function", None)}
    said |= getattr(config, "sentence_transformers", None) or {}
    with suppress(OSError, ValueError, TypeError):
        said |= json.loads((Path(model) / "config_sentence_transformers.json").read_text())
    return str(said["activation_fn"] or "Sigmoid")


def _with_one_label(model: Any, label: int | None) -> Any:
    """Return a model with one output: its own, or the row `label` of its last linear layer."""
    labels = int(model.config.num_labels)
    if labels > 1:
        if label not in range(labels):
            expected = (
                f"the output that ranks, from 0 to {labels - 1}: {dict(model.config.id2label)}"
            )
            remedy = "Pass label=1, say; a model that was trained to rank has one output."
            raise ArgumentError("label", expected=expected, got=repr(label), remedy=remedy)
        last = [
            part
            for part in model.modules()
            if isinstance(part, nn.Linear) and part.out_features == labels
        ][-1]
        last.weight = nn.Parameter(last.weight.detach()[[label]])
        last.bias = None if last.bias is None else nn.Parameter(last.bias.detach()[[label]])
        last.out_features = 1
        model.num_labels = model.config.num_labels = 1
    model.config.problem_type = "regression"
    return model
