"""The JSON Schema of the spec: completion and checks while one types."""

from __future__ import annotations

from typing import Any

from .spec import Spec


def json_schema() -> dict[str, Any]:
    """Draft 2020-12, with the keys as they stand in a spec."""
    schema = Spec.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
