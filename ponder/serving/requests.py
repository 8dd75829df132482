"""What a request to `/predict` looks like; anything else is answered by 422."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from ponder.serving.model import Text

__all__ = ["PredictRequest"]


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("expected text that UTF-8 can hold; half of a surrogate pair is none") from error
    return text


def _kind(value: object) -> str | None:
    """Which of both a text is, so that an error is about this one alone."""
    return "text" if isinstance(value, str) else "pair" if isinstance(value, list) else None


_Utf8 = Annotated[str, AfterValidator(_encodable)]
_Pair = Annotated[list[_Utf8], Field(min_length=2, max_length=2)]
_Text = Annotated[
    Annotated[_Utf8, Tag("text")] | Annotated[_Pair, Tag("pair")],
    Discriminator(
        _kind, custom_error_type="text_type", custom_error_message="Input should be a text, or a pair: a list of two"
    ),
]


class PredictRequest(BaseModel):
    """A request: one text, or many.

    Args:
        text: One text, or a pair `[text, text]`.
        texts: Or many of these.
        threshold: A threshold for this request, instead of that of the model's exit policy.
        max_steps: Every text is answered by this step at the latest.
        deadline: Seconds from the request's arrival after which it is answered as it stands.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    text: _Text | None = None
    texts: Annotated[list[_Text], Field(min_length=1)] | None = None
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    deadline: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.texts is None):
            raise ValueError("expected either text or texts")
        return self

    def all_texts(self) -> list[Text]:
        """The texts, pairs as tuples."""
        given: list[Any] = [self.text] if self.texts is None else list(self.texts)
        return [text if isinstance(text, str) else (text[0], text[1]) for text in given]
