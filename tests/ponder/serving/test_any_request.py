"""Whatever is sent to `/predict`, the answer is JSON with a status that is meant, and the service goes on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ponder.serving.serving_toys import application, opened, outcomes

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
FIELDS = {
    "text": JSON | st.text(st.characters(), max_size=30),
    "texts": JSON | st.lists(st.text(st.characters(), max_size=30), max_size=70),
    "threshold": JSON | st.floats(0, 1),
    "max_steps": JSON | st.integers(-1, 6),
    "deadline": JSON | st.floats(),
}
BODIES = st.fixed_dictionaries({}, optional={**FIELDS, "other": JSON}) | JSON
MEANT = {"answered": 200, "invalid": 422, "timed_out": 504, "failed": 500}


@settings(max_examples=3)
@given(st.lists(BODIES, min_size=30, max_size=30))
def test_any_json_is_answered_with_json(bodies: list[Any]) -> None:
    async def asked() -> None:
        counts = dict.fromkeys(MEANT.values(), 0)
        async with opened(application()) as client:
            for body in bodies:
                content = json.dumps(body).encode()
                told = await client.post("/predict", content=content, headers={"content-type": "application/json"})
                assert told.status_code in (200, 422, 504), (body, told.text)
                assert isinstance(told.json(), dict)
                counts[told.status_code] += 1
            assert {MEANT[name]: count for name, count in (await outcomes(client)).items()} == {
                status: count for status, count in counts.items() if count
            }
            assert (await client.post("/predict", json={"text": "still here"})).status_code == 200

    asyncio.run(asked())
