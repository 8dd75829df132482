"""Two protocols: the rows that a loop runs, and the model that starts them.

The loop knows neither models nor records. It is given a `Source`, and calls it in one order:

    advance(1), read, keep, advance(2), read, keep, …, advance(N), read

where "read" is any of `output`, `output_of`, `features` and `hazard_logit`, as the policy needs
them. So a policy that is replayed on a record and one that decides while a model runs see the same
rows, step by step.

Sources of this library: `ponder.model.source.ModelSource` computes the steps of a PyTorch model,
`ponder.loops.positions.PositionSource` those of the positions of a looped model, an export computes
graphs, `ponder.running.chunk.Chunk` holds several batches, a ranker holds the candidates of
queries, and `ponder.calibration.records.RecordedSource` looks up what was recorded.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from numpy.typing import NDArray

from ponder.policies.base import ExitPolicy, PolicyBatch
from ponder.tasks import Task

__all__ = ["Array", "Ints", "Source", "Start", "SteppedModel", "stepped_part"]

Array: TypeAlias = Any
"""A NumPy array or a tensor; all that one source gives are of one library."""
Ints: TypeAlias = NDArray[Any]
"""A NumPy array of integers."""


class Source(Protocol):
    """The rows that are still running, at the step that they have reached.

    Arrays are `(rows, …)`, in one order of rows that `keep` preserves. An index is a NumPy array of
    rising places among the running rows, on the host, also if the source is on another device.
    Readings belong to the step of the last `advance`. They are computed on demand: a reading that
    no policy needs costs nothing.

    Only the owner of a run calls `advance` and `keep`: the loop, or a `Chunk` for its batches.
    Reading changes no answer, so any reading may be repeated or left out.

    Steps may be whole models. A cascade is a source whose steps are its stages: `advance` notes the
    number of the stage, `output` runs that stage on the inputs of the running rows, once, and
    `keep` drops the inputs that were answered. Such a source has no features and no hazards, and
    its mask is None.

    Example:
        >>> import numpy as np
        >>> class Table:  # scores that are known in advance, (rows, steps, classes)
        ...     mask, policy_context = None, {}
        ...     def __init__(self, scores): self.scores = scores
        ...     def advance(self, step): self.step = step
        ...     def output(self): return self.scores[:, self.step - 1]
        ...     def output_of(self, index): return self.output()[index]
        ...     def keep(self, index): self.scores = self.scores[index]
        >>> source = Table(np.array([[[0.0, 9.0], [0.0, 9.0]], [[0.0, 0.5], [9.0, 0.0]]]))
        >>> source.advance(2)
        >>> source.output_of(np.array([1]))
        array([[9., 0.]])
    """

    @property
    def mask(self) -> Array | None:
        """Positions that are not padding, `(rows, length)` bool; None if nothing has positions."""

    @property
    def policy_context(self) -> Mapping[str, Array]:
        """Values of each row that only policies read, by name, `(rows, …)` each."""

    def advance(self, step: int) -> None:
        """Bring all running rows to a step, 1-based; in a stream, each row to its next one."""

    def output(self) -> Array:
        """Return the outputs of the running rows, `(rows, …)`; before step 1 for their shape."""

    def output_of(self, index: Ints) -> Array:
        """Return the outputs of some running rows, `(len(index), …)`, if possible of no others."""

    def features(self) -> Array:
        """Return the features of the running rows, `(rows, …)`, if a policy needs them."""

    def hazard_logit(self) -> Array:
        """Return the logits of the hazards, `(rows,)` float32 or float64, for needs of "hazard"."""

    def keep(self, index: Ints) -> None:
        """Keep some of the running rows; the others have exited."""


SourceT_co = TypeVar("SourceT_co", bound=Source, covariant=True)


class Start(NamedTuple, Generic[SourceT_co]):
    """Rows before their first step, and the batch that policies see."""

    source: SourceT_co
    batch: PolicyBatch


class SteppedModel(Protocol):
    """A model that runs step by step, as data sets, records, streams and rankers use it."""

    @property
    def num_steps(self) -> int:
        """N, the number of steps at full depth."""

    @property
    def task(self) -> Task | None:
        """The meaning of the outputs; None if the labels show it."""

    def checked(self, policy: ExitPolicy | None, num_steps: int | None = None) -> ExitPolicy:
        """Return a policy, by default the model's, after a check that it can serve the model."""

    def start(
        self,
        inputs: Any,
        needs: Container[str] = (),
        num_steps: int | None = None,
        /,
        *,
        row_ids: Any = None,
        policy_context: Mapping[str, Array] | None = None,
        **context: Any,
    ) -> Start[Source]:
        """Return a batch before its first step; `needs` are those of the policy."""

    def weights_digest(self) -> str | None:
        """Return the digest of the weights that answers and exits come from, if there is one."""


def stepped_part(model: Any) -> Any:
    """Return the model inside that has the steps and the weights; other models are returned.

    Example:
        >>> from types import SimpleNamespace
        >>> from ponder.running.source import stepped_part
        >>> whole = SimpleNamespace(ponder=model)
        >>> stepped_part(whole) is stepped_part(model) is model
        True
    """
    # `isinstance` of a protocol would not see it: from Python 3.12 on it looks attributes up
    # statically, and the modules of an `nn.Module` are found by `__getattr__` alone.
    return getattr(model, "ponder", model)
